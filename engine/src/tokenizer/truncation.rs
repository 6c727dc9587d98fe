//! Prompts that are longer than wanted lose their begin or their end.
use std::ops::Range;

use serde::Deserialize;

/// What is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The begin.
    Left,
    /// The end.
    Right,
}

/// How much of a prompt is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Most tokens; `None` means as many as the model takes.
    pub keep: Option<usize>,
    /// Where the others are missing.
    pub side: Side,
}

impl Truncation {
    /// Cuts the part of `tokens` that is its text, so that the whole is no longer than wanted.
    pub(crate) fn cut(self, tokens: &mut Vec<u32>, text: Range<usize>) {
        let over = tokens.len().saturating_sub(self.keep.unwrap_or(usize::MAX));
        let over = over.min(text.len());
        tokens.drain(match self.side {
            Side::Left => text.start..text.start + over,
            Side::Right => text.end - over..text.end,
        });
    }
}
