//! The scheduler under random traffic: blocks, swap space, budget, priorities and progress, as properties.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use qwen_engine::kv::BlockCopy;
use qwen_engine::model::Chunk;
use qwen_engine::request::Terms;
use qwen_engine::scheduler::{EngineConfig, Scheduler, Step};
use qwen_engine::sequence::{Sequence, SequenceId};

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
        terms: Terms,
    },
    /// The n-th live request leaves.
    Abort(usize),
    /// The step's copies fail: its requests end, and the others' blocks hold nobody knows what.
    Fail,
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    let terms = (0..3_u64, -1..2_i64).prop_map(|(client, priority)| Terms {
        client,
        priority,
        ..Terms::default()
    });
    let submit = (0..3_u32, 1..=40_usize, 1..=24_usize, terms);
    prop_oneof![
        12 => submit.prop_map(|(family, prompt, output, terms)| Event::Submit { family, prompt, output, terms }),
        4 => any::<usize>().prop_map(Event::Abort),
        1 => Just(Event::Fail),
        24 => Just(Event::Step),
    ]
}

fn config() -> impl Strategy<Value = EngineConfig> {
    let limits = (1..6_usize, 0..24_usize, FEWEST_BLOCKS..40, 0..30_usize);
    let ways = (any::<bool>(), any::<bool>(), 1..2000_usize);
    (limits, ways).prop_map(
        |((max_num_seqs, extra, num_blocks, host), (enable_prefix_caching, auto_num_seqs, attention))| {
            EngineConfig {
                max_num_seqs,
                auto_num_seqs,
                max_num_batched_tokens: max_num_seqs + extra,
                max_step_attention: attention,
                max_model_len: FEWEST_BLOCKS * BLOCK,
                block_size: BLOCK,
                num_blocks,
                num_host_blocks: if enable_prefix_caching { host } else { 0 },
                enable_prefix_caching,
                ..EngineConfig::default()
            }
        },
    )
}

struct Request {
    prompt: usize,
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
    host: HashMap<(u32, usize), Vec<u32>>,
    /// Who sampled a token in the last step.
    decoding: HashSet<SequenceId>,
    preemptions: usize,
    hits: usize,
    /// Prompt tokens that steps told to be new, and those of requests that have got a token.
    prompt_tokens: usize,
    prompts: usize,
    /// Prompt and output tokens computed.
    computed: usize,
    swapped_in: usize,
}

impl Harness {
    fn new(config: EngineConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()),
            config,
            live: HashMap::new(),
            next_id: 0,
            cache: HashMap::new(),
            host: HashMap::new(),
            decoding: HashSet::new(),
            preemptions: 0,
            hits: 0,
            prompt_tokens: 0,
            prompts: 0,
            computed: 0,
            swapped_in: 0,
        }
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Submit {
                family,
                prompt,
                output,
                terms,
            } => {
                let tokens: Vec<u32> = (0..prompt as u32).map(|i| family * 1000 + i).collect();
                let sequence = Sequence::new(self.next_id, tokens.clone());
                self.scheduler.enqueue(sequence.with_terms(terms));
                let left = output;
                self.live.insert(self.next_id, Request { prompt, tokens, left });
                self.next_id += 1;
            }
            Event::Abort(index) => {
                let mut ids: Vec<_> = self.live.keys().copied().collect();
                ids.sort_unstable();
                if !ids.is_empty() {
                    self.end(ids[index % ids.len()]);
                }
            }
            Event::Fail => {
                let step = self.scheduler.schedule();
                self.check(&step);
                for chunk in &step.plan.chunks {
                    self.end(chunk.sequence);
                }
                self.scheduler.forget_contents();
                let others = self.scheduler.restart_running();
                assert!(others.iter().all(|id| self.live.contains_key(id)));
                assert_eq!((self.scheduler.running(), self.scheduler.kv_usage()), (0, 0.0));
                self.cache.clear();
                self.host.clear();
                self.decoding.clear();
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
            assert_eq!(self.scheduler.swap_usage(), 0.0, "nobody owns what is swapped");
        }
    }

    fn step(&mut self) {
        let step = self.scheduler.schedule();
        self.preemptions += step.preempted.len();
        self.hits += step.started.iter().map(|(_, hits)| hits).sum::<usize>();
        self.prompt_tokens += step.prefill_tokens;
        self.check(&step);
        self.copy(&step.copies);
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
            if request.tokens.len() == request.prompt {
                self.prompts += request.prompt;
            }
            request.tokens.push(token);
            request.left -= 1;
            if request.left == 0 {
                self.end(id);
            }
        }
    }

    fn check(&self, step: &Step) {
        let chunks = &step.plan.chunks;
        assert!((0.0..=1.0).contains(&self.scheduler.swap_usage()));
        assert!(
            chunks
                .iter()
                .all(|chunk| !step.preempted.contains(&chunk.sequence))
        );
        assert!(
            step.plan.tokens() <= self.config.max_num_batched_tokens,
            "over the token budget"
        );
        let prompts = chunks.iter().filter(|chunk| chunk.tokens.len() > 1);
        let attention: Vec<usize> = prompts.map(pairs).collect();
        // A block of tokens is allowed in any case.
        assert!(
            attention.iter().sum::<usize>() <= self.config.max_step_attention
                || chunks
                    .iter()
                    .filter(|chunk| chunk.tokens.len() > 1)
                    .all(|chunk| chunk.tokens.len() <= BLOCK),
            "over the attention budget: {attention:?}"
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

    fn copy(&mut self, copies: &[BlockCopy]) {
        for copy in copies {
            for offset in 0..BLOCK {
                match *copy {
                    BlockCopy::Out { block, host } => {
                        assert!((host as usize) < self.config.num_host_blocks);
                        let past = self.cache[&(block, offset)].clone();
                        self.host.insert((host, offset), past);
                    }
                    BlockCopy::In { host, block } => {
                        let past = self.host[&(host, offset)].clone();
                        self.cache.insert((block, offset), past);
                    }
                }
            }
            self.swapped_in += usize::from(matches!(copy, BlockCopy::In { .. }));
        }
    }

    fn compute(&mut self, chunk: &Chunk) {
        self.computed += chunk.tokens.len();
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

/// Pairs of a token and one that it attends to.
fn pairs(chunk: &Chunk) -> usize {
    (chunk.start..chunk.start + chunk.tokens.len())
        .map(|position| position + 1)
        .sum()
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

/// However often they are computed, as with vLLM every prompt's tokens count once, found or computed.
#[test]
fn preempted_prompts_are_counted_once() {
    for num_host_blocks in [0, 32] {
        let mut harness = Harness::new(EngineConfig {
            num_host_blocks,
            ..small(16, 7)
        });
        for family in [0, 1, 0, 2, 1] {
            harness.play(&of_family(family, 21, 24));
            harness.play(&Event::Step);
        }
        harness.finish();
        assert!(harness.preemptions > 0);
        assert!(harness.computed > harness.prompts - harness.hits + 5 * 23);
        assert_eq!(harness.prompt_tokens + harness.hits, harness.prompts);
    }
}

fn small(num_blocks: usize, budget: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: budget,
        max_model_len: 64,
        block_size: BLOCK,
        num_blocks,
        ..EngineConfig::default()
    }
}

fn submit(prompt: usize, output: usize) -> Event {
    of_family(0, prompt, output)
}

fn of_family(family: u32, prompt: usize, output: usize) -> Event {
    Event::Submit {
        family,
        prompt,
        output,
        terms: Terms::default(),
    }
}

#[test]
fn too_few_blocks_preempt_the_last_to_arrive() {
    let mut harness = Harness::new(small(16, 64));
    for family in 0..3 {
        harness.play(&of_family(family, 12, 24));
    }
    harness.finish();
    assert!(harness.preemptions > 0);
}

#[test]
fn what_was_swapped_out_is_not_computed_again() {
    let run = |num_host_blocks| {
        let mut harness = Harness::new(EngineConfig {
            num_host_blocks,
            ..small(16, 64)
        });
        for family in 0..3 {
            harness.play(&of_family(family, 12, 24));
        }
        harness.finish();
        assert!(harness.preemptions > 0);
        harness
    };
    let (without, with) = (run(0), run(32));
    assert!(with.swapped_in > 0);
    // Three requests of 36 tokens, the last of which needs no KV. What is computed twice are parts of blocks alone:
    // less than a block at each preemption.
    let once = 3 * 35;
    assert!(
        without.computed > once + without.preemptions * BLOCK,
        "{}",
        without.computed
    );
    assert!(
        with.computed <= once + with.preemptions * BLOCK,
        "{}",
        with.computed
    );
}

#[test]
fn the_least_urgent_is_preempted() {
    let mut harness = Harness::new(small(16, 64));
    let urgent = |priority| Event::Submit {
        family: priority as u32,
        prompt: 12,
        output: 24,
        terms: Terms {
            priority,
            ..Terms::default()
        },
    };
    harness.play(&urgent(1));
    harness.play(&Event::Step);
    harness.play(&urgent(0));
    harness.play(&urgent(0));
    let mut victims = Vec::new();
    while harness.live.len() == 3 {
        let step = harness.scheduler.schedule();
        victims.extend(step.preempted.clone());
        harness.check(&step);
        for chunk in &step.plan.chunks {
            harness.compute(chunk);
        }
        let sampled: HashMap<_, _> = step.plan.chunks.iter().map(|chunk| (chunk.sequence, 7)).collect();
        harness.scheduler.complete(&step.plan, &sampled);
        for id in sampled.keys() {
            harness.live.get_mut(id).unwrap().tokens.push(7);
        }
        if !victims.is_empty() {
            break;
        }
    }
    assert_eq!(victims, [0], "it came first, but is the least urgent");
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
    harness.play(&of_family(1, 3, 24));
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
    harness.play(&of_family(0, 17, 1));
    harness.finish();
    // Takes 13 of 16 blocks: 12 never used or partly filled, one from the end of the first prompt.
    harness.play(&of_family(1, 40, 12));
    harness.finish();
    let before = harness.hits;
    harness.play(&of_family(0, 17, 1));
    harness.finish();
    assert_eq!(harness.hits - before, 3 * BLOCK);
}
