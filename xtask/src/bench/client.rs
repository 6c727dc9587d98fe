//! Clients of the benchmark: streams through loopback, timed chunk by chunk.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::http;

/// No answer of the benchmark takes so long.
const LIMIT: Duration = Duration::from_secs(180);

/// One streamed answer.
#[derive(Debug)]
pub struct Answer {
    begun: Instant,
    /// When each piece of text came.
    chunks: Vec<Instant>,
    /// Tokens, as the server counts them.
    tokens: u64,
}

impl Answer {
    /// Seconds to the first piece of text.
    pub fn first(&self) -> f64 {
        self.chunks
            .first()
            .map_or(f64::NAN, |first| (*first - self.begun).as_secs_f64())
    }

    /// Seconds between two pieces, on average.
    pub fn between(&self) -> f64 {
        match self.chunks.as_slice() {
            [first, .., last] => (*last - *first).as_secs_f64() / (self.chunks.len() - 1) as f64,
            _ => f64::NAN,
        }
    }
}

/// A completion of `tokens` tokens that streams.
pub fn request(prompt: &[u32], tokens: usize) -> Value {
    json!({"prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true,
           "stream_options": {"include_usage": true}})
}

/// A prompt of random words that no earlier one begins with.
pub fn prompt(tokens: usize) -> Vec<u32> {
    static STATE: AtomicU64 = AtomicU64::new(1);
    let step = |state: u64| {
        state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407)
    };
    let mut state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let token = || {
        state = step(state);
        // Words lie between the bytes and the end of the vocabulary.
        1000 + ((state >> 33) % 150_000) as u32
    };
    std::iter::repeat_with(token).take(tokens).collect()
}

/// Asks and reads the answer to its end.
pub fn ask(base: &str, body: &Value) -> Result<Answer> {
    let (begun, mut chunks) = (Instant::now(), Vec::new());
    let streamed = http::stream(&format!("{base}/v1/completions"), body, LIMIT, || {
        chunks.push(Instant::now());
    })?;
    ensure!(streamed.done, "an answer broke off: {:?}", streamed.broken);
    let tokens = streamed.tokens.context("an answer without usage")?;
    Ok(Answer {
        begun,
        chunks,
        tokens,
    })
}

/// Asks all at once.
pub fn together(base: &str, bodies: &[Value]) -> Result<Vec<Answer>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| ask(base, body)))
            .collect();
        let joined = clients.into_iter().map(|client| client.join());
        joined
            .map(|answer| answer.map_err(|_| anyhow!("a client panicked"))?)
            .collect()
    })
}

/// Tokens a second from the first request to the last token, prompts included.
pub fn whole_rate(answers: &[Answer]) -> f64 {
    let begun = answers.iter().map(|answer| answer.begun).min();
    let ended = answers
        .iter()
        .filter_map(|answer| answer.chunks.last().copied())
        .max();
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    rate(tokens as f64, begun, ended)
}

/// Tokens a second while every stream has begun and none has ended.
pub fn decode_rate(answers: &[Answer]) -> f64 {
    let begun = answers
        .iter()
        .filter_map(|answer| answer.chunks.first().copied())
        .max();
    let ended = answers
        .iter()
        .filter_map(|answer| answer.chunks.last().copied())
        .min();
    let (Some(from), Some(to)) = (begun, ended) else {
        return f64::NAN;
    };
    let within = |chunk: &&Instant| **chunk > from && **chunk <= to;
    let count = answers
        .iter()
        .map(|answer| answer.chunks.iter().filter(within).count())
        .sum::<usize>();
    rate(count as f64, begun, ended)
}

fn rate(tokens: f64, begun: Option<Instant>, ended: Option<Instant>) -> f64 {
    match (begun, ended) {
        (Some(begun), Some(ended)) => tokens / ended.saturating_duration_since(begun).as_secs_f64(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_what_lies_in_their_time() {
        let begun = Instant::now();
        let answer = |seconds: &[u64]| Answer {
            begun,
            chunks: seconds
                .iter()
                .map(|at| begun + Duration::from_secs(*at))
                .collect(),
            tokens: seconds.len() as u64,
        };
        let answers = [answer(&[1, 2, 3, 4]), answer(&[2, 3, 4, 5])];
        assert_eq!((answers[0].first(), answers[0].between()), (1.0, 1.0));
        assert_eq!(whole_rate(&answers), 8.0 / 5.0);
        // From 2 s to 4 s: two of each.
        assert_eq!(decode_rate(&answers), 2.0);
    }

    #[test]
    fn no_prompt_begins_like_another() {
        assert_ne!(prompt(4), prompt(4));
        assert!(prompt(64).iter().all(|token| (1000..151_000).contains(token)));
    }
}
