//! Decides what each step computes: continuous batching over paged KV. Pure: no clock, no tensors, no I/O.
//!
//! Decoding sequences come first, so a long prompt never delays a token by more than one step; prompts share
//! what is left of the token budget in order of arrival. A sequence gets blocks for all its tokens when it is
//! admitted, so only decoding can run out of blocks; then the sequence that arrived last gives its blocks up
//! and is computed again later.
use std::collections::{HashMap, VecDeque};

use crate::kv::BlockPool;
use crate::model::StepPlan;
use crate::sequence::{Sequence, SequenceId};

/// Limits of the scheduler, named as vLLM's flags.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most sequences in execution.
    pub max_num_seqs: usize,
    /// Most tokens in one step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Most tokens of prompt and output of a request.
    pub max_model_len: usize,
    /// Most requests waiting beyond those that can start at once.
    pub max_queued_requests: usize,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// KV blocks.
    pub num_blocks: usize,
    /// Whether KV of equal prefixes is shared.
    pub enable_prefix_caching: bool,
}

impl EngineConfig {
    /// # Errors
    /// One sentence on the first limit that cannot work.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-model-len", self.max_model_len),
            ("--block-size", self.block_size),
            ("the number of KV blocks", self.num_blocks),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0; it must be at least 1"));
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(format!(
                "--max-num-batched-tokens is {} and --max-num-seqs is {}: every running sequence needs a token per step, so raise the first or lower the second",
                self.max_num_batched_tokens, self.max_num_seqs
            ));
        }
        Ok(())
    }
}

/// What a step computes and what it took to get there.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Work for the model; empty when nothing can run.
    pub plan: StepPlan,
    /// Sequences that run for the first time, with the prompt tokens found in the cache.
    pub started: Vec<(SequenceId, usize)>,
    /// Sequences whose blocks were taken away.
    pub preempted: Vec<SequenceId>,
    /// Tokens of the plan that are not a decoding sequence's one.
    pub prefill_tokens: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: usize,
    /// Prompt tokens found there.
    pub prefix_hits: usize,
}

/// Waiting and running sequences and their blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: EngineConfig,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    /// In order of arrival; all of them arrived before all that wait.
    running: Vec<Sequence>,
}

impl Scheduler {
    /// A scheduler without sequences; `config` is valid.
    pub fn new(config: EngineConfig) -> Self {
        let pool = BlockPool::new(config.num_blocks);
        Self {
            config,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Queues a sequence. The caller checked that prompt and output fit the cache.
    pub fn add(&mut self, id: SequenceId, prompt: Vec<u32>) {
        self.waiting.push_back(Sequence::new(id, prompt));
    }

    /// The same, with the logits of its whole prompt wanted.
    pub fn add_scored(&mut self, id: SequenceId, prompt: Vec<u32>) {
        self.waiting.push_back(Sequence::scored(id, prompt));
    }

    /// Forgets a sequence and frees its blocks; false if it is not here.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.running.retain(|sequence| sequence.id != id);
        self.waiting.len() + self.running.len() < before
    }

    /// Sequences waiting, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences in execution.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Share of blocks in use, 0 to 1. Cached blocks that nobody uses are free.
    pub fn kv_usage(&self) -> f64 {
        let total = self.pool.total();
        (total - self.pool.available()) as f64 / total as f64
    }

    /// Plans the next step. `complete` must follow before the next plan.
    pub fn schedule(&mut self) -> Step {
        let mut step = Step {
            plan: StepPlan {
                chunks: Vec::new(),
                block_size: self.config.block_size,
            },
            started: Vec::new(),
            preempted: Vec::new(),
            prefill_tokens: 0,
            prefix_queries: 0,
            prefix_hits: 0,
        };
        let mut budget = self.config.max_num_batched_tokens;
        self.plan_decodes(&mut step, &mut budget);
        for sequence in self.running.iter().filter(|sequence| sequence.remaining() > 1) {
            plan_prefill(sequence, &mut step, &mut budget);
        }
        // Blocks that a preemption just freed belong to those still running.
        if step.preempted.is_empty() {
            self.admit(&mut step, &mut budget);
        }
        step
    }

    /// Records that the model ran the plan and which tokens were sampled.
    pub fn complete(&mut self, plan: &StepPlan, sampled: &HashMap<SequenceId, u32>) {
        let computed: HashMap<_, _> = plan
            .chunks
            .iter()
            .map(|chunk| (chunk.sequence, chunk.tokens.len()))
            .collect();
        let EngineConfig {
            block_size,
            enable_prefix_caching,
            ..
        } = self.config;
        for sequence in &mut self.running {
            if let Some(&count) = computed.get(&sequence.id) {
                let token = sampled.get(&sequence.id).copied();
                sequence.advance(count, token, &self.pool, block_size, enable_prefix_caching);
            }
        }
    }

    fn plan_decodes(&mut self, step: &mut Step, budget: &mut usize) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].remaining() > 1 {
                index += 1;
                continue;
            }
            while !self.running[index].grow(&self.pool, self.config.block_size) {
                // The one that arrived last has lost the least work, and is planned after all others here.
                if let Some(mut victim) = self.running.pop() {
                    victim.release();
                    step.preempted.push(victim.id);
                    self.waiting.push_front(victim);
                }
                if index == self.running.len() {
                    return;
                }
            }
            step.plan.chunks.push(self.running[index].chunk(1));
            *budget -= 1;
            index += 1;
        }
    }

    fn admit(&mut self, step: &mut Step, budget: &mut usize) {
        let EngineConfig {
            block_size,
            enable_prefix_caching: caching,
            ..
        } = self.config;
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            // A block for each running sequence stays free, or the newcomer would soon be preempted again.
            let reserve = self.running.len();
            let Some(sequence) = self.waiting.front_mut() else {
                return;
            };
            let Some(hits) = sequence.place(&self.pool, block_size, caching, reserve) else {
                return;
            };
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            if !sequence.admitted {
                sequence.admitted = true;
                step.started.push((sequence.id, hits));
                if caching && !sequence.scores_prompt() {
                    step.prefix_queries += sequence.prompt_len();
                    step.prefix_hits += hits;
                }
            }
            plan_prefill(&sequence, step, budget);
            self.running.push(sequence);
        }
    }
}

fn plan_prefill(sequence: &Sequence, step: &mut Step, budget: &mut usize) {
    let count = sequence.remaining().min(*budget);
    if count > 0 {
        step.plan.chunks.push(sequence.chunk(count));
        step.prefill_tokens += count;
        *budget -= count;
    }
}
