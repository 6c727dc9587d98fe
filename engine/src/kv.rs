//! Paged key-value blocks: who owns which, and which contents can be found again.
mod hash;
mod pool;
mod table;

pub use hash::BlockHash;
pub use pool::{Block, BlockPool};
pub use table::BlockTable;
