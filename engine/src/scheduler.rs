//! Decides what each step computes: continuous batching over paged KV. Pure: no clock, no tensors, no I/O.
//!
//! Decoding sequences come first, so a long prompt never delays a token by more than one step, and a budget of
//! tokens and attention bounds what that step costs. Of what is left of it the prompt that started first takes half,
//! the next one half of the rest, and so on, so that a short prompt need not wait for the end of a long one. A sequence gets blocks for all its tokens when it is admitted, so only decoding can run out of blocks; then the
//! sequence that started last gives its blocks up, among those of the lowest priority, and is computed again later. So
//! it does where a more urgent one waits for its place or its blocks.
mod budget;
mod config;
mod limit;
mod queue;

use std::collections::HashMap;

pub use config::{EngineConfig, SchedulingPolicy};
pub use limit::{Observed, RunningLimit};

use crate::kv::{BlockCopy, BlockPool};
use crate::model::StepPlan;
use crate::sequence::{Sequence, SequenceId};
use budget::Budget;
use queue::Queue;

/// What a step computes and what it took to get there.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Work for the model; empty when nothing can run.
    pub plan: StepPlan,
    /// Copies to make before the plan runs, in this order.
    pub copies: Vec<BlockCopy>,
    /// Sequences that run for the first time, with the prompt tokens found in the cache.
    pub started: Vec<(SequenceId, usize)>,
    /// Sequences whose blocks were taken away.
    pub preempted: Vec<SequenceId>,
    /// Tokens of prompts that are computed for the first time.
    pub prefill_tokens: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: usize,
    /// Prompt tokens found there.
    pub prefix_hits: usize,
    /// Of these, tokens whose KV came from host memory.
    pub host_hits: usize,
}

/// Waiting and running sequences and their blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: EngineConfig,
    pool: BlockPool,
    waiting: Queue,
    /// By priority, then in the order in which they first started.
    running: Vec<Sequence>,
    limit: RunningLimit,
    /// Sequences started so far.
    tickets: u64,
}

impl Scheduler {
    /// A scheduler without sequences; `config` is valid.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            pool: BlockPool::with_host(config.num_blocks, config.num_host_blocks),
            limit: RunningLimit::new(config.max_num_seqs, config.auto_num_seqs),
            config,
            waiting: Queue::default(),
            running: Vec::new(),
            tickets: 0,
        }
    }

    /// Queues a sequence of the shared client.
    pub fn add(&mut self, id: SequenceId, prompt: Vec<u32>) {
        self.enqueue(Sequence::new(id, prompt));
    }

    /// Queues a sequence. The caller checked that prompt and output fit the cache.
    pub fn enqueue(&mut self, sequence: Sequence) {
        self.waiting.push(sequence);
    }

    /// The same, with the logits of its whole prompt wanted.
    pub fn add_scored(&mut self, id: SequenceId, prompt: Vec<u32>) {
        self.enqueue(Sequence::scored(id, prompt));
    }

    /// Forgets a sequence and frees its blocks; false if it is not here.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let before = self.running.len();
        self.running.retain(|sequence| sequence.id != id);
        self.running.len() < before || self.waiting.remove(id)
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

    /// Share of host blocks that hold what preempted sequences will take back, 0 to 1. Those that only may be of use
    /// to somebody are free, as on the device.
    pub fn swap_usage(&self) -> f64 {
        self.pool
            .host_share(self.waiting.preempted().flat_map(Sequence::hashes))
    }

    /// Most sequences that may run now.
    pub fn max_num_seqs(&self) -> usize {
        self.limit.bound()
    }

    /// Finds no KV of earlier steps any more: after a failure nobody knows what the blocks hold.
    pub fn forget_contents(&mut self) {
        self.pool.forget();
    }

    /// Takes all blocks away, to be computed again, and tells whose: after a failure that left them unfilled.
    pub fn restart_running(&mut self) -> Vec<SequenceId> {
        let running = std::mem::take(&mut self.running);
        let ids = running.iter().map(|sequence| sequence.id).collect();
        for mut sequence in running {
            sequence.release();
            self.waiting.push_preempted(sequence);
        }
        ids
    }

    /// Plans the next step. `complete` must follow before the next plan.
    pub fn schedule(&mut self) -> Step {
        let mut step = Step {
            plan: StepPlan {
                chunks: Vec::new(),
                block_size: self.config.block_size,
            },
            copies: Vec::new(),
            started: Vec::new(),
            preempted: Vec::new(),
            prefill_tokens: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            host_hits: 0,
        };
        let mut budget = self.budget();
        self.plan_decodes(&mut step, &mut budget);
        self.plan_prefills(&mut step, &mut budget);
        let short = step.preempted.len();
        // Blocks that a preemption just freed belong to those still running.
        if short == 0 {
            self.admit(&mut step, &mut budget);
        }
        // What was left for others and not taken.
        if budget.has_room() {
            for sequence in self.running.iter().filter(|sequence| sequence.remaining() > 1) {
                plan_prefill(sequence, &mut step, &mut budget, false);
            }
        }
        step.copies = self.pool.copies();
        self.limit.observe(Observed {
            running: self.running.len(),
            waiting: self.waiting.len(),
            preempted: short,
            kv_usage: self.kv_usage(),
        });
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
                self.waiting
                    .charge(sequence.terms.client, usize::from(token.is_some()));
                sequence.advance(count, token, &self.pool, block_size, enable_prefix_caching);
            }
        }
    }

    fn budget(&self) -> Budget {
        let EngineConfig {
            max_num_batched_tokens,
            max_step_attention,
            block_size,
            ..
        } = self.config;
        Budget::new(max_num_batched_tokens, max_step_attention, block_size)
    }

    fn plan_decodes(&mut self, step: &mut Step, budget: &mut Budget) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].remaining() > 1 {
                index += 1;
                continue;
            }
            while !self.running[index].grow(&self.pool, self.config.block_size) {
                // The one that started last loses the least work, and is planned after all others here.
                self.preempt_last(step);
                if index == self.running.len() {
                    return;
                }
            }
            let sequence = &self.running[index];
            budget.decode(sequence.len() - 1);
            // The last token of a prompt is no different.
            step.prefill_tokens += sequence.new_prompt_tokens(1);
            step.plan.chunks.push(sequence.chunk(1));
            index += 1;
        }
    }

    fn plan_prefills(&self, step: &mut Step, budget: &mut Budget) {
        let waiting = self.most_urgent_waiting();
        let prefills = || self.running.iter().filter(|sequence| sequence.remaining() > 1);
        for (index, sequence) in prefills().enumerate() {
            let priority = sequence.terms.priority;
            let next = prefills().nth(index + 1).map(|behind| behind.terms.priority);
            let shared = next.into_iter().chain(waiting).any(|behind| behind <= priority);
            plan_prefill(sequence, step, budget, shared);
        }
    }

    /// The priority of the next that waits, if there is a place for it.
    fn most_urgent_waiting(&self) -> Option<i64> {
        let next = self
            .waiting
            .next()
            .filter(|_| self.running.len() < self.limit.bound())?;
        self.waiting.get(next).map(|sequence| sequence.terms.priority)
    }

    /// Takes the blocks of the sequence that started last among the least urgent, and what was planned for it.
    fn preempt_last(&mut self, step: &mut Step) {
        let Some(mut victim) = self.running.pop() else {
            return;
        };
        let chunks = &mut step.plan.chunks;
        if let Some(index) = chunks.iter().position(|chunk| chunk.sequence == victim.id) {
            let planned = chunks.remove(index).tokens.len();
            step.prefill_tokens -= victim.new_prompt_tokens(planned);
        }
        victim.release();
        step.preempted.push(victim.id);
        self.waiting.push_preempted(victim);
    }

    /// Whether those who are less urgent than a waiting sequence hold what it lacks.
    fn can_give_way(&mut self, next: usize) -> bool {
        let EngineConfig {
            block_size,
            enable_prefix_caching: caching,
            ..
        } = self.config;
        let Some(sequence) = self.waiting.get_mut(next) else {
            return false;
        };
        let priority = sequence.terms.priority;
        let others = self
            .running
            .partition_point(|other| other.terms.priority <= priority);
        let less = &self.running[others..];
        if less.is_empty() {
            return false;
        }
        let uses = self
            .pool
            .uses_without(less.iter().flat_map(|sequence| sequence.blocks().ids()));
        let free = uses.iter().filter(|uses| **uses == 0).count();
        let (_, missing) = sequence.look_up(&self.pool, block_size, caching, Some(&uses));
        free >= missing + others
    }

    fn admit(&mut self, step: &mut Step, budget: &mut Budget) {
        let EngineConfig {
            block_size,
            enable_prefix_caching: caching,
            ..
        } = self.config;
        while budget.has_room() {
            // A block for each running sequence stays free, or the newcomer would soon be preempted again.
            let reserve = self.running.len();
            let seat = reserve < self.limit.bound();
            let Some(next) = self.waiting.next() else {
                return;
            };
            let Some(sequence) = self.waiting.get_mut(next) else {
                return;
            };
            if step.preempted.contains(&sequence.id) {
                // It has just given way, and would find its own blocks again.
                return;
            }
            let placed = match seat {
                true => sequence.place(&self.pool, block_size, caching, reserve),
                false => None,
            };
            let Some((hits, recalled)) = placed else {
                if !self.can_give_way(next) {
                    return;
                }
                self.preempt_last(step);
                if step.plan.chunks.is_empty() {
                    // Nothing of it is spent, and a step must do something.
                    *budget = self.budget();
                }
                continue;
            };
            let mut sequence = self.waiting.take(next);
            if sequence.ticket.is_none() {
                sequence.ticket = Some(self.tickets);
                self.tickets += 1;
                let computed = sequence.prompt_len() - hits;
                self.waiting.charge(sequence.terms.client, computed);
                step.started.push((sequence.id, hits));
                if caching && !sequence.scores_prompt() {
                    step.prefix_queries += sequence.prompt_len();
                    step.prefix_hits += hits;
                    step.host_hits += recalled;
                }
            }
            let priority = sequence.terms.priority;
            let shared = seat
                && self
                    .most_urgent_waiting()
                    .is_some_and(|behind| behind <= priority);
            plan_prefill(&sequence, step, budget, shared);
            let order = |sequence: &Sequence| (sequence.terms.priority, sequence.ticket);
            let index = self
                .running
                .partition_point(|other| order(other) < order(&sequence));
            self.running.insert(index, sequence);
        }
    }
}

/// Plans tokens of a prompt, beside those that are planned already.
fn plan_prefill(sequence: &Sequence, step: &mut Step, budget: &mut Budget, shared: bool) {
    let chunks = &mut step.plan.chunks;
    let planned = chunks.iter().position(|chunk| chunk.sequence == sequence.id);
    let had = planned.map_or(0, |index| chunks[index].tokens.len());
    let more = budget.prefill(sequence.remaining() - had, sequence.computed() + had, shared);
    if more == 0 {
        return;
    }
    let chunk = sequence.chunk(had + more);
    match planned {
        Some(index) => chunks[index] = chunk,
        None => chunks.push(chunk),
    }
    step.prefill_tokens += sequence.new_prompt_tokens(had + more) - sequence.new_prompt_tokens(had);
}
