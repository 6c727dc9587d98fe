//! The blocks of one sequence, in order.
use super::Block;

/// Blocks of a sequence from its first token on. Frees them last block first, so that eviction, which takes
/// the block freed first, shortens cached prefixes from their end instead of making them unreachable.
#[derive(Debug, Default)]
pub struct BlockTable(Vec<Block>);

impl BlockTable {
    /// Appends a block.
    pub fn push(&mut self, block: Block) {
        self.0.push(block);
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block at `index`.
    pub fn get(&self, index: usize) -> Option<&Block> {
        self.0.get(index)
    }

    /// Block ids in order.
    pub fn ids(&self) -> Vec<u32> {
        self.0.iter().map(Block::id).collect()
    }

    /// Frees all blocks.
    pub fn clear(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear();
    }
}
