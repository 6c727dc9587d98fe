//! The limits of the engine, named as vLLM's flags.
use std::time::Duration;

/// Which of the waiting requests runs next, `--scheduling-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulingPolicy {
    /// In order of arrival, clients sharing the engine; requests have no priority.
    #[default]
    Fcfs,
    /// The lowest `priority` first; the same order among equals.
    Priority,
}

/// Limits of the scheduler and of what may wait for it.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most sequences in execution.
    pub max_num_seqs: usize,
    /// Whether the bound follows KV use and preemptions below `max_num_seqs`: `--max-num-seqs auto`.
    pub auto_num_seqs: bool,
    /// Most tokens in one step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Most pairs of a token and one that it attends to in one step, decodes excepted: what bounds the time of a
    /// chunk that starts behind a long context. A step's first chunk gets a block of tokens in any case.
    pub max_step_attention: usize,
    /// Most tokens of prompt and output of a request.
    pub max_model_len: usize,
    /// Most requests waiting beyond those that can start at once.
    pub max_queued_requests: usize,
    /// Most prompt tokens of requests that wait; a request in an empty queue may have more.
    pub max_queued_tokens: usize,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// KV blocks.
    pub num_blocks: usize,
    /// Blocks of host memory for contents that KV blocks lose.
    pub num_host_blocks: usize,
    /// Whether KV of equal prefixes is shared.
    pub enable_prefix_caching: bool,
    /// Which request runs next.
    pub policy: SchedulingPolicy,
    /// How long a step may give no sign of life before it counts as stuck.
    pub stuck_after: Duration,
}

impl Default for EngineConfig {
    /// vLLM's defaults where it has any, and no KV blocks yet.
    fn default() -> Self {
        Self {
            max_num_seqs: 256,
            auto_num_seqs: false,
            max_num_batched_tokens: 2048,
            max_step_attention: usize::MAX,
            max_model_len: 32_768,
            max_queued_requests: 1024,
            max_queued_tokens: usize::MAX,
            block_size: 16,
            num_blocks: 0,
            num_host_blocks: 0,
            enable_prefix_caching: true,
            policy: SchedulingPolicy::Fcfs,
            stuck_after: Duration::from_secs(60),
        }
    }
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
        if self.num_host_blocks > 0 && !self.enable_prefix_caching {
            return Err("--swap-space needs prefix caching, which finds swapped blocks again; leave --no-enable-prefix-caching out".to_owned());
        }
        Ok(())
    }
}
