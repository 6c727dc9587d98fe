//! Paged key-value blocks: who owns which, and which contents can be found again.
mod hash;
mod pool;
mod swap;
mod table;

pub use hash::BlockHash;
pub use pool::{Block, BlockPool};
pub use swap::BlockCopy;
pub use table::BlockTable;
