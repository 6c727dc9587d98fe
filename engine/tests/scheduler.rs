//! The scheduler under random traffic: blocks, budget, fairness and progress, as properties.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use qwen_engine::model::Chunk;
use qwen_engine::scheduler::{EngineConfig, Scheduler, Step};
use qwen_engine::sequence::SequenceId;

const BLOCK: usize = 4;
/// The longest request, 40 + 24 tokens, fits the smallest cache.
const FEWEST_BLOCKS: usize = 16;

/// What may happen next.
#[derive(Debug, Clone)]
enum Event {
    /// Prompts of one family are prefixes of each other.
    Submit {
        family: u32,
        prompt: usize,
        output: usize,
    },
    /// The n-th live request leaves.
    Abort(usize),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    let submit = (0..3_u32, 1..=40_usize, 1..=24_usize);
    prop_oneof![
        3 => submit.prop_map(|(family, prompt, output)| Event::Submit { family, prompt, output }),
        1 => any::<usize>().prop_map(Event::Abort),
        6 => Just(Event::Step),
    ]
}

fn config() -> impl Strategy<Value = EngineConfig> {
    let limits = (1..6_usize, 0..24_usize, FEWEST_BLOCKS..40, any::<bool>());
    limits.prop_map(
        |(max_num_seqs, extra, num_blocks, enable_prefix_caching)| EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra,
            max_model_len: FEWEST_BLOCKS * BLOCK,
            max_queued_requests: usize::MAX,
            block_size: BLOCK,
            num_blocks,
            enable_prefix_caching,
        },
    )
}

struct Request {
    tokens: Vec<u32>,
    /// Tokens still to generate.
    left: usize,
}

/// Plays engine and model: the "KV" of a position is the list of tokens up to it, so a block that two sequences
/// write, or that is reused while somebody still reads it, shows as a foreign past.
struct Harness {
    config: EngineConfig,
    scheduler: Scheduler,
    live: HashMap<SequenceId, Request>,
    next_id: SequenceId,
    cache: HashMap<(u32, usize), Vec<u32>>,
    /// Who sampled a token in the last step.
    decoding: HashSet<SequenceId>,
    preemptions: usize,
    hits: usize,
}

impl Harness {
    fn new(config: EngineConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()),
            config,
            live: HashMap::new(),
            next_id: 0,
            cache: HashMap::new(),
            decoding: HashSet::new(),
            preemptions: 0,
            hits: 0,
        }
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Submit {
                family,
                prompt,
                output,
            } => {
                let tokens: Vec<u32> = (0..prompt as u32).map(|i| family * 1000 + i).collect();
                self.scheduler.add(self.next_id, tokens.clone());
                self.live.insert(self.next_id, Request { tokens, left: output });
                self.next_id += 1;
            }
            Event::Abort(index) => {
                let mut ids: Vec<_> = self.live.keys().copied().collect();
                ids.sort_unstable();
                if !ids.is_empty() {
                    self.end(ids[index % ids.len()]);
                }
            }
            Event::Step => self.step(),
        }
    }

    fn end(&mut self, id: SequenceId) {
        assert!(self.scheduler.remove(id), "the scheduler lost a request");
        self.live.remove(&id);
        self.decoding.remove(&id);
        if self.live.is_empty() {
            assert_eq!(self.scheduler.kv_usage(), 0.0, "blocks leak");
        }
    }

    fn step(&mut self) {
        let step = self.scheduler.schedule();
        self.preemptions += step.preempted.len();
        self.hits += step.prefix_hits;
        self.check(&step);
        let mut sampled = HashMap::new();
        for chunk in &step.plan.chunks {
            self.compute(chunk);
            if chunk.sample {
                // Any rule will do, as long as equal pasts give equal tokens.
                sampled.insert(
                    chunk.sequence,
                    5000 + self.live[&chunk.sequence].tokens.len() as u32,
                );
            }
        }
        self.scheduler.complete(&step.plan, &sampled);
        self.decoding = sampled.keys().copied().collect();
        for (id, token) in sampled {
            let request = self.live.get_mut(&id).unwrap();
            request.tokens.push(token);
            request.left -= 1;
            if request.left == 0 {
                self.end(id);
            }
        }
    }

    fn check(&self, step: &Step) {
        let chunks = &step.plan.chunks;
        assert!(
            step.plan.tokens() <= self.config.max_num_batched_tokens,
            "over the token budget"
        );
        assert!(
            self.scheduler.running() <= self.config.max_num_seqs,
            "over --max-num-seqs"
        );
        assert_eq!(
            self.scheduler.running() + self.scheduler.waiting(),
            self.live.len()
        );
        assert_eq!(
            chunks.is_empty(),
            self.live.is_empty(),
            "work and requests must come together"
        );
        let planned: HashSet<_> = chunks.iter().map(|chunk| chunk.sequence).collect();
        assert_eq!(planned.len(), chunks.len(), "a sequence twice in a step");
        for id in &self.decoding {
            assert!(
                planned.contains(id) || step.preempted.contains(id),
                "decode starves"
            );
        }
    }

    fn compute(&mut self, chunk: &Chunk) {
        let tokens = &self.live[&chunk.sequence].tokens;
        let end = chunk.start + chunk.tokens.len();
        assert_eq!(chunk.tokens, tokens[chunk.start..end]);
        assert_eq!(chunk.sample, end == tokens.len());
        assert!(
            chunk
                .blocks
                .iter()
                .all(|id| (*id as usize) < self.config.num_blocks)
        );
        let slot = |position: usize| (chunk.blocks[position / BLOCK], position % BLOCK);
        for position in chunk.start..end {
            self.cache.insert(slot(position), tokens[..=position].to_vec());
        }
        for position in 0..end {
            assert_eq!(
                self.cache[&slot(position)],
                tokens[..=position],
                "position {position} holds a foreign past"
            );
        }
    }

    /// Runs until all requests have ended; more steps than any schedule needs mean that one never ends.
    fn finish(&mut self) {
        let tokens: usize = self.live.values().map(|r| r.tokens.len() + r.left).sum();
        // In the worst case each step gives one token and every request computes all the others' tokens again.
        for _ in 0..=tokens * (self.live.len() + 1) {
            if self.live.is_empty() {
                break;
            }
            self.step();
        }
        assert!(self.live.is_empty(), "{} requests never end", self.live.len());
        assert_eq!(self.scheduler.kv_usage(), 0.0);
        assert_eq!((self.scheduler.running(), self.scheduler.waiting()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_traffic_keeps_every_promise(config in config(), events in prop::collection::vec(event(), 1..120)) {
        let mut harness = Harness::new(config);
        for event in &events {
            harness.play(event);
        }
        harness.finish();
    }
}

fn small(num_blocks: usize, budget: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: budget,
        max_model_len: 64,
        max_queued_requests: 8,
        block_size: BLOCK,
        num_blocks,
        enable_prefix_caching: true,
    }
}

fn submit(prompt: usize, output: usize) -> Event {
    Event::Submit {
        family: 0,
        prompt,
        output,
    }
}

#[test]
fn too_few_blocks_preempt_the_last_to_arrive() {
    let mut harness = Harness::new(small(16, 64));
    for family in 0..3 {
        harness.play(&Event::Submit {
            family,
            prompt: 12,
            output: 24,
        });
    }
    harness.finish();
    assert!(harness.preemptions > 0);
}

#[test]
fn an_equal_prompt_is_found_but_its_last_token_computed() {
    let mut harness = Harness::new(small(16, 64));
    harness.play(&submit(12, 1));
    harness.finish();
    harness.play(&submit(12, 1));
    harness.finish();
    // Of three full blocks two: the last token's logits are needed, so its block is computed again.
    assert_eq!(harness.hits, 2 * BLOCK);
}

#[test]
fn a_long_prompt_never_delays_a_token() {
    let mut harness = Harness::new(small(32, 5));
    harness.play(&Event::Submit {
        family: 1,
        prompt: 3,
        output: 24,
    });
    harness.play(&Event::Step);
    harness.play(&submit(40, 1));
    for _ in 0..8 {
        harness.play(&Event::Step);
        // The prompt takes what is left of the budget, four tokens a step; the other decodes in each.
        assert!(harness.decoding.contains(&0));
    }
    assert_eq!(harness.live[&0].left, 24 - 9);
}

#[test]
fn cached_blocks_are_evicted_from_the_end_of_the_oldest_prefix() {
    let mut harness = Harness::new(small(16, 64));
    harness.play(&Event::Submit {
        family: 0,
        prompt: 17,
        output: 1,
    });
    harness.finish();
    // Takes 13 of 16 blocks: 12 never used or partly filled, one from the end of the first prompt.
    harness.play(&Event::Submit {
        family: 1,
        prompt: 40,
        output: 12,
    });
    harness.finish();
    let before = harness.hits;
    harness.play(&Event::Submit {
        family: 0,
        prompt: 17,
        output: 1,
    });
    harness.finish();
    assert_eq!(harness.hits - before, 3 * BLOCK);
}

/// However the cache and the budget lie, each row of the prompt but the last is asked for once, in order.
#[test]
fn a_scored_prompt_is_computed_whole() {
    let mut scheduler = Scheduler::new(EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 7,
        max_model_len: 64,
        max_queued_requests: 8,
        block_size: BLOCK,
        num_blocks: FEWEST_BLOCKS,
        enable_prefix_caching: true,
    });
    let prompt: Vec<u32> = (0..20).collect();
    for (id, scored) in [(0, false), (1, true), (2, false)] {
        match scored {
            true => scheduler.add_scored(id, prompt.clone()),
            false => scheduler.add(id, prompt.clone()),
        }
        let (mut rows, mut queries, mut hits) = (Vec::new(), 0, 0);
        for _ in 0..5 {
            let step = scheduler.schedule();
            queries += step.prefix_queries;
            hits += step.prefix_hits;
            for chunk in &step.plan.chunks {
                rows.extend(chunk.start..chunk.start + chunk.prompt_rows);
            }
            let wanted = step.plan.chunks.iter().filter(|chunk| chunk.sample);
            let sampled = wanted.map(|chunk| (chunk.sequence, 1)).collect();
            scheduler.complete(&step.plan, &sampled);
        }
        scheduler.remove(id);
        let expected: Vec<usize> = if scored { (0..19).collect() } else { Vec::new() };
        assert_eq!(rows, expected, "{id}");
        assert_eq!((queries, hits), [(20, 0), (0, 0), (20, 16)][id as usize]);
    }
}
