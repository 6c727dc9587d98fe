//! What ends a request before its time, and what is left then: panics, failed copies, cancels at any moment.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use qwen_engine::engine::{Engine, EngineHandle, Health, TokenStream};
use qwen_engine::kv::BlockCopy;
use qwen_engine::model::fake::{FakeModel, StepGate};
use qwen_engine::model::{Logits, Model, ModelError, StepPlan};
use qwen_engine::request::{
    FinishReason, FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, StopParams, Terms,
    TokenEvent,
};
use qwen_engine::scheduler::EngineConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

const VOCABULARY: usize = 100;
/// Whoever computes it panics.
const POISON: u32 = 66;

/// Panics over a token, and copies nothing when told so.
struct Fragile {
    inner: FakeModel,
    copies_fail: Arc<Mutex<bool>>,
}

impl Model for Fragile {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        let logits = self.inner.forward(plan)?;
        let poisoned = plan.chunks.iter().any(|chunk| chunk.tokens.contains(&POISON));
        assert!(!poisoned, "poison in a batch of {}", plan.chunks.len());
        Ok(logits)
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        match *self.copies_fail.lock().unwrap() && !copies.is_empty() {
            true => Err(ModelError::Other("the host has no memory left".into())),
            false => Ok(()),
        }
    }

    fn usable_after_panic(&self) -> bool {
        true
    }
}

/// The counts after the last change, what was ever seen, and every end.
struct Recorder {
    stats: watch::Sender<StepStats>,
    seen: Mutex<(usize, f64)>,
    finished: Mutex<Vec<FinishedRequest>>,
}

impl Observer for Recorder {
    fn step(&self, stats: &StepStats) {
        let mut seen = self.seen.lock().unwrap();
        *seen = (seen.0 + stats.preemptions, seen.1.max(stats.swap_usage));
        self.stats.send_replace(stats.clone());
    }

    fn finished(&self, request: &FinishedRequest) {
        self.finished.lock().unwrap().push(request.clone());
    }
}

impl Recorder {
    async fn until(&self, wanted: impl FnMut(&StepStats) -> bool) {
        let mut stats = self.stats.subscribe();
        // The sender lives in self; the time only turns a broken engine into a failure.
        let change = tokio::time::timeout(Duration::from_secs(60), stats.wait_for(wanted));
        change.await.unwrap().unwrap();
    }

    fn count(&self, reason: FinishReason) -> usize {
        let finished = self.finished.lock().unwrap();
        finished.iter().filter(|request| request.reason == reason).count()
    }

    async fn assert_nothing_is_left(&self) {
        // The last request ends before the observer is told of it.
        self.until(|stats| stats.running + stats.waiting == 0).await;
        let stats = self.stats.borrow();
        assert_eq!((stats.running, stats.waiting), (0, 0));
        assert_eq!((stats.kv_usage, stats.swap_usage), (0.0, 0.0));
    }
}

/// Waits until the engine rests, which it does soon after its last request has ended.
async fn idle(engine: &EngineHandle) {
    let rests = async {
        while engine.health() != Health::Idle {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rests)
        .await
        .unwrap();
}

fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        block_size: 4,
        num_blocks: 16,
        num_host_blocks: 12,
        ..EngineConfig::default()
    }
}

struct Bench {
    engine: EngineHandle,
    recorder: Arc<Recorder>,
    gate: Option<StepGate>,
    copies_fail: Arc<Mutex<bool>>,
}

fn start(config: EngineConfig, gated: bool) -> Bench {
    match gated {
        true => {
            let (model, gate) = FakeModel::new(VOCABULARY).with_gate();
            start_with(config, model, Some(gate))
        }
        false => start_with(config, FakeModel::new(VOCABULARY), None),
    }
}

fn start_with(config: EngineConfig, inner: FakeModel, gate: Option<StepGate>) -> Bench {
    let recorder = Arc::new(Recorder {
        stats: watch::Sender::default(),
        seen: Mutex::default(),
        finished: Mutex::default(),
    });
    let copies_fail = Arc::new(Mutex::new(false));
    let model = Fragile {
        inner,
        copies_fail: copies_fail.clone(),
    };
    Bench {
        engine: Engine::start(Box::new(model), config, recorder.clone()).unwrap(),
        recorder,
        gate,
        copies_fail,
    }
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        id: "test".into(),
        prompt,
        sampling: SamplingParams {
            temperature: 0.0,
            // The fake's rule may come upon it.
            logit_bias: vec![(POISON, -1000.0)],
            ..SamplingParams::default()
        },
        stop: StopParams {
            max_tokens,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
        },
        constraint: None,
        terms: Terms::default(),
        arrival: Instant::now(),
    }
}

async fn all(stream: TokenStream) -> Vec<TokenEvent> {
    stream.collect().await
}

fn failure(events: &[TokenEvent]) -> &str {
    match events.last() {
        Some(TokenEvent::Failed(words)) => words,
        other => panic!("it did not fail but end with {other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_panics_in_a_batch_fails_alone() {
    let healthy = || [request(vec![1, 2, 3], 9), request(vec![4; 7], 5)];
    let Bench { engine, .. } = start(config(), false);
    let mut expected = Vec::new();
    for request in healthy() {
        expected.push(all(engine.submit(request).unwrap()).await);
    }

    let Bench {
        engine,
        recorder,
        gate,
        ..
    } = start(config(), true);
    let [first, second] = healthy().map(|request| engine.submit(request).unwrap());
    // The first step waits at the gate, so all others join the second one.
    recorder.until(|stats| stats.running > 0).await;
    let poisoned = engine.submit(request(vec![1, POISON, 2], 9)).unwrap();
    drop(gate);
    let (first, second, poisoned) = tokio::join!(all(first), all(second), all(poisoned));
    assert_eq!([first, second], expected[..]);
    assert!(failure(&poisoned).contains("panicked"), "{poisoned:?}");
    engine.drain().await;
    idle(&engine).await;
    recorder.assert_nothing_is_left().await;
    assert_eq!(recorder.count(FinishReason::Error), 1);
}

#[tokio::test]
async fn a_model_that_only_panics_is_dead_in_the_end() {
    let Bench { engine, recorder, .. } = start(config(), false);
    while engine.health() != Health::Dead {
        let Ok(stream) = engine.submit(request(vec![POISON], 9)) else {
            break;
        };
        failure(&all(stream).await);
        assert!(recorder.count(FinishReason::Error) < 100, "it never gives up");
    }
    recorder.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_panic_while_a_token_is_chosen_or_scored_costs_that_request_alone() {
    let Bench {
        engine,
        recorder,
        gate,
        ..
    } = start(config(), true);
    // More than can be allocated; the HTTP side would refuse it.
    let absurd = Some(usize::MAX - 1);
    let mut chosen = request(vec![1, 2], 5);
    chosen.sampling.logprobs = absurd;
    let mut scored = request(vec![3, 4], 5);
    scored.sampling.prompt_logprobs = absurd;
    let streams = [request(vec![5, 6], 5), chosen, scored].map(|request| engine.submit(request).unwrap());
    drop(gate);
    let [healthy, chosen, scored] = streams.map(all);
    let (healthy, chosen, scored) = tokio::join!(healthy, chosen, scored);
    assert_eq!(healthy.last(), Some(&TokenEvent::Finished(FinishReason::Length)));
    for events in [chosen, scored] {
        assert!(failure(&events).contains("a bug"), "{events:?}");
    }
    engine.drain().await;
    recorder.assert_nothing_is_left().await;
}

/// Whoever was promised swapped blocks and is not in the plan may not read them: it is computed again.
#[tokio::test]
async fn failed_copies_end_the_steps_requests_and_no_other_goes_wrong() {
    let Bench {
        engine,
        recorder,
        copies_fail,
        ..
    } = start(config(), false);
    let prompt = |family: u32| (0..30).map(|i| (family + i) % POISON).collect::<Vec<_>>();
    let expected = all(engine.submit(request(prompt(1), 20)).unwrap()).await;
    // Each fills most of the cache, so that the next one pushes it out to the host.
    for family in [20, 40] {
        all(engine.submit(request(prompt(family), 20)).unwrap()).await;
    }
    *copies_fail.lock().unwrap() = true;
    let events = all(engine.submit(request(prompt(1), 20)).unwrap()).await;
    assert_eq!(failure(&events), "the host has no memory left");
    *copies_fail.lock().unwrap() = false;
    assert_eq!(
        all(engine.submit(request(prompt(1), 20)).unwrap()).await,
        expected
    );
    engine.drain().await;
    recorder.assert_nothing_is_left().await;
}

/// Two requests of which only one fits to its end: the second is preempted, waits, and is dropped then.
#[tokio::test]
async fn a_preempted_request_that_is_dropped_leaves_the_queue() {
    let Bench {
        engine,
        recorder,
        gate,
        ..
    } = start(config(), true);
    let gate = gate.unwrap();
    let mut first = engine.submit(request(vec![1; 24], 40)).unwrap();
    let second = engine.submit(request(vec![2; 24], 40)).unwrap();
    while (recorder.stats.borrow().running, recorder.stats.borrow().waiting) != (1, 1)
        || recorder.seen.lock().unwrap().0 == 0
    {
        gate.send(()).unwrap();
        first.next().await.unwrap();
    }
    drop(second);
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    recorder.until(|stats| stats.waiting == 0).await;
    drop(gate);
    assert_eq!(
        all(first).await.last(),
        Some(&TokenEvent::Finished(FinishReason::Length))
    );
    engine.drain().await;
    recorder.assert_nothing_is_left().await;
    assert_eq!(recorder.count(FinishReason::Abort), 1);
}

/// Waiting, in the middle of a prompt, between tokens, preempted and swapped out: dropped at any moment.
#[tokio::test]
async fn a_thousand_random_cancels_leave_nothing_behind() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let config = EngineConfig {
        max_num_batched_tokens: 8,
        ..config()
    };
    // Slow enough for the test to keep up with it.
    let model = FakeModel::new(VOCABULARY).with_delay(Duration::from_micros(200));
    let Bench { engine, recorder, .. } = start_with(config, model, None);
    let (mut streams, mut submitted) = (Vec::new(), 0);
    let mut dropped = 0;
    while dropped < 1000 {
        while streams.len() < 10 {
            let family = random.random_range(0..3);
            let prompt = (0..random.random_range(1..40)).map(|i| (family * 20 + i) % POISON);
            let mut request = request(prompt.collect(), random.random_range(12..24));
            request.terms.client = random.random_range(0..3);
            streams.push(engine.submit(request).unwrap());
            submitted += 1;
        }
        let index = random.random_range(0..streams.len());
        for _ in 0..random.random_range(0..6) {
            match random.random_bool(0.5) {
                true => drop(streams[index].next().await),
                false => drop(streams[index].next().now_or_never()),
            }
        }
        streams.swap_remove(index);
        dropped += 1;
    }
    drop(streams);
    engine.drain().await;
    recorder.assert_nothing_is_left().await;
    assert_eq!(recorder.finished.lock().unwrap().len(), submitted);
    assert!(recorder.count(FinishReason::Abort) > 100);
    let (preemptions, swapped) = *recorder.seen.lock().unwrap();
    assert!(
        preemptions > 0 && swapped > 0.0,
        "{preemptions} preemptions, {swapped} swapped"
    );
    idle(&engine).await;
}
