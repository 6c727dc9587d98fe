//! Who waits for whom: clients share the engine by tokens, priorities come first, and `--max-num-seqs auto` follows
//! the KV cache.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::HashMap;

use proptest::prelude::*;
use qwen_engine::request::Terms;
use qwen_engine::scheduler::{EngineConfig, Observed, RunningLimit, Scheduler, Step};
use qwen_engine::sequence::{Sequence, SequenceId};

const BLOCK: usize = 4;
const OUTPUT: usize = 6;

fn config(max_num_seqs: usize, num_blocks: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        block_size: BLOCK,
        num_blocks,
        enable_prefix_caching: false,
        ..EngineConfig::default()
    }
}

/// Every request generates `OUTPUT` tokens.
struct Harness {
    scheduler: Scheduler,
    /// Client, and tokens still to come.
    live: HashMap<SequenceId, (u64, usize)>,
    next: SequenceId,
    /// Tokens that each client was served: prompts at their start, and output.
    served: HashMap<u64, usize>,
    prompts: HashMap<SequenceId, usize>,
}

impl Harness {
    fn new(config: EngineConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            live: HashMap::new(),
            next: 0,
            served: HashMap::new(),
            prompts: HashMap::new(),
        }
    }

    fn submit(&mut self, client: u64, priority: i64, prompt: usize) -> SequenceId {
        self.submit_of(1, client, priority, prompt)
    }

    /// Prompts of one family begin alike.
    fn submit_of(&mut self, family: u32, client: u64, priority: i64, prompt: usize) -> SequenceId {
        let id = self.next;
        self.next += 1;
        let sequence = Sequence::new(id, vec![family; prompt]);
        self.scheduler.enqueue(sequence.with_terms(Terms {
            client,
            priority,
            ..Terms::default()
        }));
        self.live.insert(id, (client, OUTPUT));
        self.prompts.insert(id, prompt);
        id
    }

    fn step(&mut self) -> Step {
        let step = self.scheduler.schedule();
        for (id, _) in &step.started {
            *self.served.entry(self.live[id].0).or_default() += self.prompts[id];
        }
        let wanted = step.plan.chunks.iter().filter(|chunk| chunk.sample);
        let sampled: HashMap<_, _> = wanted.map(|chunk| (chunk.sequence, 2)).collect();
        self.scheduler.complete(&step.plan, &sampled);
        for id in sampled.keys() {
            let (client, left) = self.live.get_mut(id).unwrap();
            *self.served.entry(*client).or_default() += 1;
            *left -= 1;
            if *left == 0 {
                self.live.remove(id);
                assert!(self.scheduler.remove(*id));
            }
        }
        step
    }

    /// Ids in the order in which they start, until `id` does.
    fn started_until(&mut self, id: SequenceId) -> Vec<SequenceId> {
        let mut order = Vec::new();
        while !order.contains(&id) {
            order.extend(self.step().started.into_iter().map(|(id, _)| id));
        }
        order
    }

    fn waits(&self, client: u64) -> usize {
        self.live.values().filter(|(other, _)| *other == client).count()
    }
}

#[test]
fn one_request_passes_a_thousand_of_another_key() {
    let mut harness = Harness::new(config(1, 16));
    for _ in 0..1000 {
        harness.submit(1, 0, 8);
    }
    for _ in 0..50 {
        harness.step();
    }
    let single = harness.submit(2, 0, 8);
    let before = harness.started_until(single);
    assert!(before.len() <= 2, "it waited for {} others", before.len() - 1);
}

#[test]
fn idling_saves_up_nothing() {
    let mut harness = Harness::new(config(1, 16));
    for _ in 0..100 {
        harness.submit(1, 0, 8);
    }
    for _ in 0..200 {
        harness.step();
    }
    // Served nothing so far, the second key may not catch up on 200 steps: from now on they take turns.
    let last = (0..10).map(|_| harness.submit(2, 0, 8)).last().unwrap();
    let order = harness.started_until(last);
    let others = order.iter().filter(|id| **id < 100).count();
    assert!(
        (8..=11).contains(&others),
        "{others} of the other key among {}",
        order.len()
    );
}

#[test]
fn priority_comes_before_fairness_and_arrival() {
    let mut harness = Harness::new(config(1, 16));
    let patient = harness.submit(1, 5, 8);
    let usual = harness.submit(2, 0, 8);
    let urgent = harness.submit(2, -1, 8);
    assert_eq!(harness.started_until(patient), [urgent, usual, patient]);
}

#[test]
fn a_more_urgent_request_takes_places_and_blocks_of_less_urgent_ones() {
    // Two places, both taken; and 16 blocks, of which the second of the two has 10.
    for (seqs, urgent_prompt) in [(2, 8), (8, 32)] {
        let mut harness = Harness::new(config(seqs, 16));
        let first = harness.submit(1, 0, 8);
        harness.started_until(first);
        let patient = harness.submit(1, 5, 40);
        harness.started_until(patient);
        let urgent = harness.submit(2, -1, urgent_prompt);
        let step = harness.step();
        assert_eq!(step.preempted, [patient], "the least urgent gives way");
        assert_eq!(step.started.first().map(|(id, _)| *id), Some(urgent));
        while harness.live.contains_key(&patient) {
            harness.step();
        }
    }
}

#[test]
fn nobody_gives_way_in_vain_or_to_an_equal() {
    let mut harness = Harness::new(config(8, 16));
    let equal = harness.submit(1, 0, 20);
    let patient = harness.submit(1, 5, 20);
    harness.started_until(patient);
    // 15 blocks, of which the patient one has 5 or 6 and 4 are free: it would still lack some.
    harness.submit(2, 0, 60);
    while harness.live.contains_key(&equal) || harness.live.contains_key(&patient) {
        assert!(harness.step().preempted.is_empty());
    }
}

/// Blocks that two sequences use are free when both are gone, and are there already for a third.
#[test]
fn who_gives_way_is_decided_by_the_blocks_that_are_not_shared() {
    let shared = EngineConfig {
        enable_prefix_caching: true,
        ..config(8, 16)
    };
    // The urgent one finds 6 of its 11 blocks in use by an equal one, and lacks no more than the patient one has.
    let mut harness = Harness::new(shared.clone());
    let equal = harness.submit(1, 0, 24);
    harness.started_until(equal);
    let patient = harness.submit_of(3, 1, 5, 28);
    harness.started_until(patient);
    let urgent = harness.submit(1, 0, 44);
    let step = harness.step();
    assert_eq!(step.preempted, [patient]);
    assert_eq!(step.started.first().map(|(id, _)| *id), Some(urgent));
    // The patient one has 7 blocks, but 5 of them would stay in use.
    let mut harness = Harness::new(shared);
    let equal = harness.submit(1, 0, 24);
    harness.started_until(equal);
    let patient = harness.submit(1, 5, 25);
    harness.started_until(patient);
    harness.submit_of(3, 1, 0, 44);
    while harness.live.contains_key(&equal) && harness.live.contains_key(&patient) {
        assert!(harness.step().preempted.is_empty());
    }
}

/// The queue's head waits for its blocks, and nobody passes it meanwhile, however little the others need.
#[test]
fn many_small_requests_never_starve_a_big_one() {
    let mut harness = Harness::new(config(8, 16));
    for _ in 0..40 {
        harness.submit(1, 0, 4);
    }
    harness.step();
    let big = harness.submit(2, 0, 57);
    let mut passed = 0;
    loop {
        // There are always 32 small ones waiting, of old and of new clients.
        while harness.live.len() < 40 {
            let client = 3 + harness.next % 5;
            harness.submit(client, 0, 4);
        }
        let started: Vec<_> = harness.step().started.into_iter().map(|(id, _)| id).collect();
        if started.contains(&big) {
            break;
        }
        passed += started.len();
        assert!(passed <= 16, "{passed} small ones passed it");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The bound of the virtual token counter: while two clients both wait all the time, what they were served differs
    /// by at most twice the larger of the longest prompt and the KV cache, in tokens, whatever their requests are.
    #[test]
    fn clients_that_always_wait_get_the_same_share(
        seqs in 1..6_usize,
        blocks in 16..40_usize,
        prompts in prop::collection::vec(1..40_usize, 3),
        depth in prop::collection::vec(2..30_usize, 3),
    ) {
        let mut harness = Harness::new(config(seqs, blocks));
        let bound = 2 * (blocks * BLOCK).max(40);
        for _ in 0..400 {
            for client in 0..3 {
                // Always more than can run.
                while harness.waits(client as u64) < seqs + depth[client] {
                    harness.submit(client as u64, 0, prompts[client]);
                }
            }
            harness.step();
            let served: Vec<usize> = (0..3).map(|client| harness.served.get(&client).copied().unwrap_or(0)).collect();
            let (most, least) = (served.iter().max().unwrap(), served.iter().min().unwrap());
            prop_assert!(most - least <= bound, "{served:?} differ by more than {bound}");
        }
    }

    #[test]
    fn the_automatic_bound_stays_below_its_cap_and_shrinks_when_work_is_lost(
        cap in 1..300_usize,
        steps in prop::collection::vec((0..300_usize, 0..10_usize, prop_oneof![3 => Just(0_usize), 1 => 1..5_usize], 0.0..1.0_f64), 1..200),
    ) {
        let mut limit = RunningLimit::new(cap, true);
        for (running, waiting, preempted, kv_usage) in steps {
            let before = limit.bound();
            let running = running.min(before);
            limit.observe(Observed { running, waiting, preempted, kv_usage });
            prop_assert!((1..=cap).contains(&limit.bound()));
            if preempted > 0 {
                prop_assert!(limit.bound() < before || limit.bound() == 1);
            } else {
                prop_assert!(limit.bound() <= before + 1);
            }
        }
        // Calm with others waiting: it is back at the cap within as many steps.
        for _ in 0..cap {
            limit.observe(Observed { running: limit.bound(), waiting: 1, preempted: 0, kv_usage: 0.5 });
        }
        prop_assert_eq!(limit.bound(), cap);
        // Nobody waits or no room: it does not grow.
        let mut limit = RunningLimit::new(cap, true);
        let before = limit.bound();
        limit.observe(Observed { running: before, waiting: 0, preempted: 0, kv_usage: 0.1 });
        limit.observe(Observed { running: before, waiting: 1, preempted: 0, kv_usage: 0.9 });
        prop_assert_eq!(limit.bound(), before);
    }
}

#[test]
fn a_fixed_bound_never_moves() {
    let mut limit = RunningLimit::new(8, false);
    limit.observe(Observed {
        running: 8,
        waiting: 9,
        preempted: 3,
        kv_usage: 1.0,
    });
    assert_eq!(limit.bound(), 8);
}

/// More requests than the cache can hold: the bound finds about the number that fits, and preemptions end.
#[test]
fn the_automatic_bound_settles_where_the_cache_is_full() {
    let preempted = |auto_num_seqs| {
        let mut harness = Harness::new(EngineConfig {
            auto_num_seqs,
            ..config(48, 64)
        });
        for _ in 0..500 {
            harness.submit(0, 0, 6);
        }
        let mut preempted = 0;
        while !harness.live.is_empty() {
            let step = harness.step();
            preempted += step.preempted.len();
        }
        preempted
    };
    let (fixed, auto) = (preempted(false), preempted(true));
    println!("{fixed} preemptions with a fixed bound, {auto} with an automatic one");
    assert!(auto * 2 <= fixed, "{fixed} fixed, {auto} auto");
}
