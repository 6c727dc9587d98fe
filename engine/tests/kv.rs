//! The block pool against a model of it that remembers contents in plain lists: nothing is found that was evicted,
//! and nothing is missed that was not, in device and host memory.
#![allow(clippy::unwrap_used, clippy::panic)]
use proptest::prelude::*;
use qwen_engine::kv::{Block, BlockCopy, BlockHash, BlockPool};

/// Contents that may be stored.
const CONTENTS: usize = 12;

#[derive(Debug, Clone)]
enum Event {
    /// A block is taken, its content computed and published.
    Store(usize),
    /// A block is taken and keeps no content.
    Scratch,
    /// A content is asked for: on the device, else in the host.
    Find(usize),
    /// The n-th block in use is dropped.
    Drop(usize),
    /// A step failed.
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0..CONTENTS).prop_map(Event::Store),
        1 => Just(Event::Scratch),
        5 => (0..CONTENTS).prop_map(Event::Find),
        8 => any::<usize>().prop_map(Event::Drop),
        1 => Just(Event::Forget),
    ]
}

/// One block of a made-up token: its name.
fn hash(content: usize) -> BlockHash {
    let mut names = Vec::new();
    BlockHash::extend(&mut names, None, &[content as u32], 1);
    names[0]
}

/// What there should be. Contents are numbers; the oldest of a list is evicted first.
#[derive(Default)]
struct Model {
    device: usize,
    host_size: usize,
    /// Blocks in use, by what can be found in them.
    used: Vec<(u32, Option<usize>)>,
    cached: Vec<usize>,
    host: Vec<usize>,
}

impl Model {
    fn blocks_in_use(&self) -> usize {
        let mut ids: Vec<_> = self.used.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    fn on_device(&self, content: usize) -> bool {
        self.cached.contains(&content) || self.used.iter().any(|(_, known)| *known == Some(content))
    }

    /// A free block is taken; false if there is none.
    fn take(&mut self) -> bool {
        let in_use = self.blocks_in_use();
        if in_use == self.device {
            return false;
        }
        if in_use + self.cached.len() == self.device {
            let evicted = self.cached.remove(0);
            self.host.retain(|content| *content != evicted);
            self.host.push(evicted);
            if self.host.len() > self.host_size {
                self.host.remove(0);
            }
        }
        true
    }

    fn drop(&mut self, index: usize) {
        let (id, content) = self.used.swap_remove(index);
        if self.used.iter().all(|(other, _)| *other != id) {
            self.cached.extend(content);
        }
    }
}

/// Pool, model, and memory that holds what copies really moved.
struct Harness {
    pool: BlockPool,
    blocks: Vec<Block>,
    model: Model,
    device: Vec<Option<usize>>,
    host: Vec<Option<usize>>,
}

impl Harness {
    fn play(&mut self, event: &Event) {
        match *event {
            Event::Store(content) => {
                let can = self.model.take();
                let Some(block) = self.pool.allocate() else {
                    assert!(!can);
                    return;
                };
                assert!(can);
                self.copy();
                self.device[block.id() as usize] = Some(content);
                // As published elsewhere, it stays there.
                let known = (!self.model.on_device(content)).then_some(content);
                self.model.used.push((block.id(), known));
                self.pool.publish(&block, hash(content));
                self.blocks.push(block);
            }
            Event::Scratch => {
                if let Some(block) = self.pool.allocate() {
                    assert!(self.model.take());
                    self.copy();
                    self.device[block.id() as usize] = None;
                    self.model.used.push((block.id(), None));
                    self.blocks.push(block);
                }
            }
            Event::Find(content) => self.find(content),
            Event::Drop(index) if !self.blocks.is_empty() => {
                let index = index % self.blocks.len();
                self.model.drop(index);
                self.blocks.swap_remove(index);
            }
            Event::Drop(_) => {}
            Event::Forget => {
                self.pool.forget();
                self.model.cached.clear();
                self.model.host.clear();
                self.model
                    .used
                    .iter_mut()
                    .for_each(|(_, content)| *content = None);
            }
        }
    }

    fn find(&mut self, content: usize) {
        let model = &mut self.model;
        let on_device = model.on_device(content);
        let found = self.pool.find(&hash(content));
        assert_eq!(found.is_some(), on_device);
        let block = match found {
            Some(block) => {
                model.cached.retain(|other| *other != content);
                block
            }
            None => {
                let held = model.host.contains(&content);
                let free = model.blocks_in_use() < model.device;
                let found = self.pool.recall(&hash(content));
                assert_eq!(found.is_some(), held && free);
                let Some(block) = found else { return };
                model.host.retain(|other| *other != content);
                // Its host block is free only after the copy, so the evicted content must fit beside it.
                model.host_size -= 1;
                assert!(model.take());
                model.host_size += 1;
                block
            }
        };
        self.copy();
        assert_eq!(
            self.device[block.id() as usize],
            Some(content),
            "a foreign content"
        );
        self.model.used.push((block.id(), Some(content)));
        self.blocks.push(block);
    }

    fn copy(&mut self) {
        for copy in self.pool.copies() {
            match copy {
                BlockCopy::Out { block, host } => self.host[host as usize] = self.device[block as usize],
                BlockCopy::In { host, block } => self.device[block as usize] = self.host[host as usize],
            }
        }
    }

    fn check(&self) {
        let Model {
            device, host_size, ..
        } = self.model;
        assert_eq!(self.pool.available(), device - self.model.blocks_in_use());
        assert_eq!(
            self.pool
                .host_share((0..CONTENTS).map(hash).collect::<Vec<_>>().iter()),
            self.model.host.len() as f64 / host_size.max(1) as f64
        );
        for content in 0..CONTENTS {
            let used = self.model.used.iter().any(|(_, known)| *known == Some(content));
            let known = self.model.on_device(content) || self.model.host.contains(&content);
            assert_eq!(
                self.pool.in_use(&hash(content), None),
                known.then_some(used),
                "content {content}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_pool_finds_what_a_list_finds(device in 1..8_usize, host in 0..6_usize, events in prop::collection::vec(event(), 1..150)) {
        let mut harness = Harness {
            pool: BlockPool::with_host(device, host),
            blocks: Vec::new(),
            model: Model { device, host_size: host, ..Model::default() },
            device: vec![None; device],
            host: vec![None; host],
        };
        for event in &events {
            harness.play(event);
            harness.check();
        }
        harness.blocks.clear();
        prop_assert_eq!(harness.pool.available(), device);
    }
}
