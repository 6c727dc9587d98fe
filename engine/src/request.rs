//! The contract between the HTTP side and the engine thread: what is asked, what comes back, how it ends.
use std::time::{Duration, Instant};

use crate::{constraint::Constraint, kv::BlockHash};

/// How the next token is chosen; OpenAI's and vLLM's fields with vLLM's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this share; 1 keeps all.
    pub top_p: f32,
    /// The number of most likely tokens kept; 0 keeps all.
    pub top_k: u32,
    /// Tokens below this share of the likeliest token's probability are dropped; 0 keeps all.
    pub min_p: f32,
    /// OpenAI's penalty on tokens already generated, −2 to 2.
    pub presence_penalty: f32,
    /// OpenAI's penalty per occurrence in what was generated, −2 to 2.
    pub frequency_penalty: f32,
    /// Hugging Face's penalty on tokens of prompt and output, above 0; 1 is off.
    pub repetition_penalty: f32,
    /// The request's own random stream; `None` draws one.
    pub seed: Option<u64>,
    /// What is added to the logits of these tokens, −100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that may come; `None` allows all.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Token sequences that may not come; none of them is empty.
    pub bad_words: Vec<Vec<u32>>,
    /// How many of the likeliest tokens to report with each one chosen; `None` reports nothing.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first, which nothing predicts.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// When generation ends, apart from stop strings, which the detokenizer watches.
#[derive(Debug, Clone, PartialEq)]
pub struct StopParams {
    /// Most tokens to generate; 0 computes the prompt only, as for an embedding.
    pub max_tokens: usize,
    /// Fewest tokens before an end-of-sequence or stop token may end it.
    pub min_tokens: usize,
    /// Tokens that end generation: the model's end-of-sequence tokens and the request's `stop_token_ids`.
    pub stop_token_ids: Vec<u32>,
}

/// For whom and how urgently a request is served, and with whom it shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Whose request it is; clients share the engine evenly. 0 is the one whom all share that bring no API key.
    pub client: u64,
    /// Lower comes earlier; 0 unless `--scheduling-policy priority` is set.
    pub priority: i64,
    /// What names its KV in the prefix cache apart: only requests of the same salt share.
    pub salt: Option<BlockHash>,
}

/// A request that passed every check at the border: the engine thread never refuses its content.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Shown in logs; unique.
    pub id: String,
    /// Prompt tokens, at least one; prompt + max_tokens fits the model's length.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopParams,
    /// What the text must be; its end tokens must be among `stop_token_ids`.
    pub constraint: Option<Constraint>,
    /// For whom and how urgently.
    pub terms: Terms,
    /// When the request reached the HTTP side; latency counts from here, as in vLLM.
    pub arrival: Instant,
}

/// Why a request ended; the label `finished_reason` of `vllm:request_success_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// The client left.
    Abort,
    /// The model failed.
    Error,
}

/// How likely the model held a token to be: natural logarithms of the softmax of its raw logits, as in vLLM.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its own.
    pub logprob: f32,
    /// 1 for the likeliest token, and so on.
    pub rank: usize,
    /// The likeliest tokens in its place, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What a running request tells its client side.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// The tokens of the prompt from the second on, where `prompt_logprobs` asked for them; before any token.
    Prompt(Vec<TokenLogprobs>),
    /// One more token.
    Token(u32),
    /// The same, where `logprobs` asked for it.
    Scored(TokenLogprobs),
    /// The token that ended it, which is no part of the text.
    Stop(u32),
    /// The hidden state of the prompt's last token, from a model that makes embeddings.
    Embedding(Vec<f32>),
    /// The last event of a request that ended by itself.
    Finished(FinishReason),
    /// The last event of a request that failed; one sentence for the client.
    Failed(String),
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: answer 429 with Retry-After.
    #[error(
        "the queue is full: {waiting} requests wait and --max-queued-requests is {limit}; try again later"
    )]
    QueueFull {
        /// Requests waiting now.
        waiting: usize,
        /// The limit in force.
        limit: usize,
        /// When a place is likely free.
        retry_after: Duration,
    },
    /// The queue holds too many prompt tokens: answer 429 with Retry-After.
    #[error(
        "the queue is full: {waiting} prompt tokens wait and --max-queued-tokens is {limit}; try again later"
    )]
    TokensFull {
        /// Prompt tokens waiting now.
        waiting: usize,
        /// The limit in force.
        limit: usize,
        /// When a place is likely free.
        retry_after: Duration,
    },
    /// The request has a priority and the engine knows none: answer 400.
    #[error(
        "the request has priority {0} and priority scheduling is not enabled; leave `priority` out or start the server with --scheduling-policy priority"
    )]
    NoPriorities(i64),
    /// The request could never run: answer 400.
    #[error(
        "the request needs {needed} KV-cache blocks of {block_size} tokens and the cache has {total}; shorten the prompt or max_tokens"
    )]
    NeverFits {
        /// Blocks for prompt and output.
        needed: usize,
        /// All blocks.
        total: usize,
        /// Tokens in a block.
        block_size: usize,
    },
    /// The engine is shutting down: answer 503.
    #[error("the engine is shutting down and takes no new requests")]
    Draining,
    /// The engine thread is gone: answer 503.
    #[error("the engine thread has stopped; see its log")]
    Dead,
}

impl SubmitError {
    /// vLLM's name of the limit that was reached, if it was one: the reason in vllm:admission_rejections_total.
    pub fn limit_reached(&self) -> Option<&'static str> {
        match self {
            Self::QueueFull { .. } => Some("max_num_queued_reqs"),
            Self::TokensFull { .. } => Some("max_num_queued_tokens"),
            _ => None,
        }
    }

    /// When to try again, where that makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } | Self::TokensFull { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// The life of a finished request, measured on one monotonic clock as vLLM does.
#[derive(Debug, Clone)]
pub struct FinishedRequest {
    /// How it ended.
    pub reason: FinishReason,
    /// When the request reached the HTTP side.
    pub arrival: Instant,
    /// When the scheduler took it into its queue.
    pub queued: Instant,
    /// When it was first scheduled; `None` if it left before.
    pub scheduled: Option<Instant>,
    /// When its first token was sampled.
    pub first_token: Option<Instant>,
    /// When its last token was sampled.
    pub last_token: Option<Instant>,
    /// When it ended.
    pub finished: Instant,
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens whose KV was found in the cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// The request's `max_tokens`.
    pub max_tokens: usize,
    /// Times its blocks were taken away.
    pub preemptions: usize,
}

/// What one step of the engine did and the state it left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepStats {
    /// Requests in execution.
    pub running: usize,
    /// Requests waiting.
    pub waiting: usize,
    /// Share of KV blocks in use, 0 to 1.
    pub kv_usage: f64,
    /// Share of the host's blocks in use, 0 to 1.
    pub swap_usage: f64,
    /// Most requests in execution, as it is in force.
    pub max_num_seqs: usize,
    /// Prompt tokens computed in this step.
    pub prefill_tokens: usize,
    /// Tokens sampled in this step.
    pub generated_tokens: usize,
    /// Prompt tokens looked up in the prefix cache in this step.
    pub prefix_queries: usize,
    /// Prompt tokens found there.
    pub prefix_hits: usize,
    /// Of these, tokens whose KV came from host memory.
    pub host_hits: usize,
    /// Requests preempted in this step.
    pub preemptions: usize,
    /// Seconds from arrival to first token, one for each request that got its first token.
    pub first_token_latencies: Vec<f64>,
    /// Seconds since the previous token, one for each token that was not a request's first.
    pub inter_token_latencies: Vec<f64>,
}

/// Receives what the engine thread measures; must not block. The metrics registry implements it.
pub trait Observer: Send + Sync {
    /// After every step, and whenever the counts change without one (submit, abort).
    fn step(&self, stats: &StepStats);
    /// Once for each request that was submitted, however it ended.
    fn finished(&self, request: &FinishedRequest);
}
