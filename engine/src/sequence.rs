//! One request as the scheduler sees it: tokens, how many of them have KV, and the blocks that hold it.
use crate::kv::{BlockHash, BlockPool, BlockTable};
use crate::model::Chunk;
use crate::request::Terms;

/// Names a sequence for its whole life.
pub type SequenceId = u64;

/// Prompt and output of one request with its blocks.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens whose KV is in the blocks.
    computed: usize,
    /// Tokens of the prompt that were ever computed or found: what is computed again is no news.
    prompt_known: usize,
    blocks: BlockTable,
    /// Names of the full blocks; empty when prefix caching is off.
    hashes: Vec<BlockHash>,
    /// Blocks whose content is published or came from the cache.
    published: usize,
    /// Whether the logits of its prompt are wanted.
    scored: bool,
    /// For whom and how urgently.
    pub(crate) terms: Terms,
    /// Its place in the order of arrival.
    pub(crate) arrival: u64,
    /// Its place in the order of first starts, once it has run.
    pub(crate) ticket: Option<u64>,
}

impl Sequence {
    /// A new sequence without blocks; `prompt` holds at least one token.
    pub fn new(id: SequenceId, prompt: Vec<u32>) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            prompt_known: 0,
            blocks: BlockTable::default(),
            hashes: Vec::new(),
            published: 0,
            scored: false,
            terms: Terms::default(),
            arrival: 0,
            ticket: None,
        }
    }

    /// The same, with the logits of its whole prompt wanted: nothing of it is taken from the cache.
    pub fn scored(id: SequenceId, prompt: Vec<u32>) -> Self {
        Self {
            scored: true,
            ..Self::new(id, prompt)
        }
    }

    /// The same for a certain client, with a priority.
    pub fn with_terms(mut self, terms: Terms) -> Self {
        self.terms = terms;
        self
    }

    /// Whether the logits of its prompt are still to come: afterwards it is a sequence like any other.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.scored && self.tokens.len() == self.prompt_len
    }

    /// Tokens of prompt and output so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it has no tokens; a prompt has at least one, so never.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Tokens whose KV is in the blocks.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens still without KV: 1 while decoding, more in prefill.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Its blocks.
    pub fn blocks(&self) -> &BlockTable {
        &self.blocks
    }

    /// Names of its full blocks, as far as they were computed or looked up.
    pub(crate) fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// How many of its first blocks can be found, and how many free ones it needs; with the pool's uses as they are, or
    /// as they might be.
    pub(crate) fn look_up(
        &mut self,
        pool: &BlockPool,
        block_size: usize,
        caching: bool,
        uses: Option<&[u32]>,
    ) -> (usize, usize) {
        if caching {
            BlockHash::extend(&mut self.hashes, self.terms.salt, &self.tokens, block_size);
        }
        // The last token is always computed: its logits choose the next one.
        let reusable = match self.scores_prompt() {
            true => 0,
            false => (self.tokens.len() - 1) / block_size,
        };
        let known: Vec<bool> = self
            .hashes
            .iter()
            .take(reusable)
            .map_while(|hash| pool.in_use(hash, uses))
            .collect();
        // A block that another sequence uses is shared; every other one, found or new, is one less that is free.
        let shared = known.iter().filter(|in_use| **in_use).count();
        (known.len(), self.tokens.len().div_ceil(block_size) - shared)
    }

    /// Takes blocks for all its tokens, cached ones first, leaving at least `reserve` free for the others.
    /// Returns the tokens found in the cache and how many of them came from host memory, or `None`, holding nothing,
    /// when there are too few blocks.
    pub(crate) fn place(
        &mut self,
        pool: &BlockPool,
        block_size: usize,
        caching: bool,
        reserve: usize,
    ) -> Option<(usize, usize)> {
        debug_assert!(self.blocks.is_empty());
        let (known, missing) = self.look_up(pool, block_size, caching, None);
        if pool.available() < missing + reserve {
            return None;
        }
        let mut found: Vec<_> = self.hashes[..known].iter().map(|hash| pool.find(hash)).collect();
        // Only now that no device block can lose what is wanted are the others filled from the host.
        let mut recalled = 0;
        for (block, hash) in found.iter_mut().zip(&self.hashes) {
            if block.is_none() {
                *block = pool.recall(hash);
                recalled += usize::from(block.is_some());
            }
        }
        for block in found.into_iter().map_while(|block| block) {
            self.blocks.push(block);
        }
        let found = self.blocks.len();
        if !self.grow(pool, block_size) {
            self.blocks.clear();
            return None;
        }
        self.computed = found * block_size;
        self.published = found;
        if self.ticket.is_none() {
            self.prompt_known = self.computed;
        }
        Some((self.computed, recalled * block_size))
    }

    /// Makes sure that every token has a block; false when the pool is empty.
    pub(crate) fn grow(&mut self, pool: &BlockPool, block_size: usize) -> bool {
        while self.blocks.len() * block_size < self.tokens.len() {
            match pool.allocate() {
                Some(block) => self.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    /// Gives all blocks back; the KV must be computed again.
    pub(crate) fn release(&mut self) {
        self.blocks.clear();
        self.computed = 0;
        self.published = 0;
    }

    /// How many of the next `count` tokens are of the prompt and were never computed: over its life, all that were not
    /// found in the cache at its start.
    pub(crate) fn new_prompt_tokens(&self, count: usize) -> usize {
        let end = self.prompt_len.min(self.computed + count);
        end.saturating_sub(self.prompt_known)
    }

    /// The next `count` tokens as work for the model.
    pub(crate) fn chunk(&self, count: usize) -> Chunk {
        let end = self.computed + count;
        // The last token of the prompt predicts the first of the answer.
        let scored = match self.scores_prompt() {
            true => end.min(self.prompt_len - 1),
            false => 0,
        };
        Chunk {
            sequence: self.id,
            tokens: self.tokens[self.computed..end].to_vec(),
            start: self.computed,
            blocks: self.blocks.ids(),
            sample: end == self.tokens.len(),
            prompt_rows: scored.saturating_sub(self.computed),
        }
    }

    /// Records that the model computed `count` more tokens and what it sampled then.
    pub(crate) fn advance(
        &mut self,
        count: usize,
        sampled: Option<u32>,
        pool: &BlockPool,
        block_size: usize,
        caching: bool,
    ) {
        self.prompt_known += self.new_prompt_tokens(count);
        self.computed += count;
        if caching {
            BlockHash::extend(&mut self.hashes, self.terms.salt, &self.tokens, block_size);
            let full = self.computed / block_size;
            for index in self.published..full {
                if let (Some(block), Some(hash)) = (self.blocks.get(index), self.hashes.get(index)) {
                    pool.publish(block, *hash);
                }
            }
            self.published = self.published.max(full);
        }
        self.tokens.extend(sampled);
    }
}
