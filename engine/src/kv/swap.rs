//! Host memory behind the block pool: contents that device blocks lose wait there to come back.
use std::collections::{BTreeMap, HashMap};

use super::BlockHash;

/// A copy of one block's KV. The copies of a step are made in their order, before the step computes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockCopy {
    /// From a device block to a host block.
    Out {
        /// Device block.
        block: u32,
        /// Host block.
        host: u32,
    },
    /// From a host block to a device block.
    In {
        /// Host block.
        host: u32,
        /// Device block.
        block: u32,
    },
}

/// The host blocks and what they hold. A content that returns to the device leaves the host.
#[derive(Debug, Default)]
pub(super) struct HostBlocks {
    total: usize,
    empty: Vec<u32>,
    /// Where each content lies, and its key in `by_age`.
    by_content: HashMap<BlockHash, (u32, u64)>,
    /// The first is given up first.
    by_age: BTreeMap<u64, BlockHash>,
    clock: u64,
    copies: Vec<BlockCopy>,
}

impl HostBlocks {
    pub(super) fn new(count: usize) -> Self {
        let ids = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            total: count,
            empty: (0..ids).rev().collect(),
            ..Self::default()
        }
    }

    pub(super) fn holds(&self, hash: &BlockHash) -> bool {
        self.by_content.contains_key(hash)
    }

    /// Keeps the content that a device block is about to lose, giving up the oldest one if need be.
    pub(super) fn keep(&mut self, block: u32, hash: BlockHash) {
        let known = self.forget(&hash);
        let Some(host) = known.or_else(|| self.empty.pop()).or_else(|| self.evict()) else {
            return;
        };
        if known.is_none() {
            self.copies.push(BlockCopy::Out { block, host });
        }
        self.clock += 1;
        self.by_content.insert(hash, (host, self.clock));
        self.by_age.insert(self.clock, hash);
    }

    /// Takes a content out. Its host block must not be filled again before `bring_in`, which frees it.
    pub(super) fn take(&mut self, hash: &BlockHash) -> Option<u32> {
        self.forget(hash)
    }

    pub(super) fn bring_in(&mut self, host: u32, block: u32) {
        self.copies.push(BlockCopy::In { host, block });
        self.empty.push(host);
    }

    /// Copies to be made, each told once.
    pub(super) fn copies(&mut self) -> Vec<BlockCopy> {
        std::mem::take(&mut self.copies)
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    fn forget(&mut self, hash: &BlockHash) -> Option<u32> {
        let (host, age) = self.by_content.remove(hash)?;
        self.by_age.remove(&age);
        Some(host)
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, hash) = self.by_age.pop_first()?;
        self.by_content.remove(&hash).map(|(host, _)| host)
    }
}
