//! The block pool: hands out blocks that return themselves on drop and remembers the contents of free ones.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::swap::HostBlocks;
use super::{BlockCopy, BlockHash};

/// All KV blocks. Clones share the same blocks.
#[derive(Debug, Clone)]
pub struct BlockPool(Arc<Mutex<Blocks>>);

/// One use of a block. Clones and cache hits are further uses; the last drop frees the block.
#[derive(Debug)]
pub struct Block {
    id: u32,
    pool: BlockPool,
}

#[derive(Debug)]
struct Blocks {
    /// Uses of each block.
    uses: Vec<u32>,
    /// The published content of each block, in use or not.
    content: Vec<Option<BlockHash>>,
    by_content: HashMap<BlockHash, u32>,
    /// Free blocks without content.
    empty: Vec<u32>,
    /// Free blocks with content, by the time of their last release: the first is evicted first.
    cached: BTreeMap<u64, u32>,
    /// When each cached block was released: its key in `cached`.
    released: Vec<u64>,
    clock: u64,
    /// Where evicted contents go.
    host: HostBlocks,
}

impl BlockPool {
    /// A pool of `count` free blocks.
    pub fn new(count: usize) -> Self {
        Self::with_host(count, 0)
    }

    /// A pool of `count` free blocks whose evicted contents move to `host` blocks of host memory.
    pub fn with_host(count: usize, host: usize) -> Self {
        let ids = u32::try_from(count).unwrap_or(u32::MAX);
        Self(Arc::new(Mutex::new(Blocks {
            uses: vec![0; count],
            content: vec![None; count],
            by_content: HashMap::new(),
            empty: (0..ids).rev().collect(),
            cached: BTreeMap::new(),
            released: vec![0; count],
            clock: 0,
            host: HostBlocks::new(host),
        })))
    }

    /// A free block, evicting the content unused for the longest time; `None` when all are in use.
    pub fn allocate(&self) -> Option<Block> {
        let mut blocks = self.lock();
        let id = blocks.take_free()?;
        blocks.uses[id as usize] = 1;
        Some(Block {
            id,
            pool: self.clone(),
        })
    }

    /// The uses that each block would still have without these.
    pub fn uses_without(&self, ended: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut uses = self.lock().uses.clone();
        ended.for_each(|id| uses[id as usize] -= 1);
        uses
    }

    /// Whether a content can be found, and if so, whether in a block that is in use, now or after a change of `uses`:
    /// that one costs no free block.
    pub fn in_use(&self, hash: &BlockHash, uses: Option<&[u32]>) -> Option<bool> {
        let blocks = self.lock();
        match blocks.by_content.get(hash) {
            Some(&id) => Some(uses.unwrap_or(&blocks.uses)[id as usize] > 0),
            None => blocks.host.holds(hash).then_some(false),
        }
    }

    /// A free block that a content in host memory is copied to, if it is there.
    pub fn recall(&self, hash: &BlockHash) -> Option<Block> {
        let mut blocks = self.lock();
        if blocks.free() == 0 || blocks.by_content.contains_key(hash) {
            return None;
        }
        // Taken first: the eviction that frees a block may fill host blocks.
        let host = blocks.host.take(hash)?;
        let id = blocks.take_free()?;
        blocks.host.bring_in(host, id);
        blocks.content[id as usize] = Some(*hash);
        blocks.by_content.insert(*hash, id);
        blocks.uses[id as usize] = 1;
        Some(Block {
            id,
            pool: self.clone(),
        })
    }

    /// Copies between device and host that must be made before the next step; each is told once.
    pub fn copies(&self) -> Vec<BlockCopy> {
        self.lock().host.copies()
    }

    /// Share of the host blocks that hold one of these contents; 0 without any.
    pub fn host_share<'a>(&self, wanted: impl Iterator<Item = &'a BlockHash>) -> f64 {
        let blocks = self.lock();
        if blocks.host.total() == 0 {
            return 0.0;
        }
        let held: HashSet<_> = wanted.filter(|hash| blocks.host.holds(hash)).collect();
        held.len() as f64 / blocks.host.total() as f64
    }

    /// Forgets all contents, in host memory too: none is found any more.
    pub fn forget(&self) {
        let mut blocks = self.lock();
        blocks.host = HostBlocks::new(blocks.host.total());
        blocks.by_content.clear();
        blocks.content.fill(None);
        while let Some((_, id)) = blocks.cached.pop_first() {
            blocks.empty.push(id);
        }
    }

    /// The block that holds this content, if any.
    pub fn find(&self, hash: &BlockHash) -> Option<Block> {
        let mut blocks = self.lock();
        let id = *blocks.by_content.get(hash)?;
        if blocks.uses[id as usize] == 0 {
            let released = blocks.released[id as usize];
            blocks.cached.remove(&released);
        }
        blocks.uses[id as usize] += 1;
        Some(Block {
            id,
            pool: self.clone(),
        })
    }

    /// Makes a computed block's content findable. A content already known keeps its first block.
    pub fn publish(&self, block: &Block, hash: BlockHash) {
        let mut blocks = self.lock();
        if blocks.content[block.id as usize].is_none() && !blocks.by_content.contains_key(&hash) {
            blocks.content[block.id as usize] = Some(hash);
            blocks.by_content.insert(hash, block.id);
        }
    }

    /// Blocks that `allocate` can still hand out.
    pub fn available(&self) -> usize {
        self.lock().free()
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.lock().uses.len()
    }

    fn release(&self, id: u32) {
        let mut blocks = self.lock();
        let uses = &mut blocks.uses[id as usize];
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        if blocks.content[id as usize].is_none() {
            blocks.empty.push(id);
            return;
        }
        blocks.clock += 1;
        let now = blocks.clock;
        blocks.released[id as usize] = now;
        blocks.cached.insert(now, id);
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        // No code can panic between two changes that belong together, so a poisoned lock is still consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    fn free(&self) -> usize {
        self.empty.len() + self.cached.len()
    }

    /// A free block without content, if need be the one whose content was unused for the longest time.
    fn take_free(&mut self) -> Option<u32> {
        if let Some(id) = self.empty.pop() {
            return Some(id);
        }
        let (_, id) = self.cached.pop_first()?;
        if let Some(hash) = self.content[id as usize].take() {
            self.by_content.remove(&hash);
            self.host.keep(id, hash);
        }
        Some(id)
    }
}

impl Block {
    /// Its index in the KV cache.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.release(self.id);
    }
}
