//! The engine thread over the fake model: queue, abort, drain, failures and what the observer sees.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use qwen_engine::engine::{Engine, EngineHandle, Health, TokenStream};
use qwen_engine::model::fake::FakeModel;
use qwen_engine::model::{Logits, Model, ModelError, StepPlan};
use qwen_engine::request::{
    FinishReason, FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, StopParams,
    SubmitError, TokenEvent,
};
use qwen_engine::scheduler::EngineConfig;
use tokio::sync::watch;

/// Keeps the last statistics and every finished request.
#[derive(Debug)]
struct Recorder {
    stats: watch::Sender<StepStats>,
    finished: Mutex<Vec<FinishedRequest>>,
}

impl Observer for Recorder {
    fn step(&self, stats: &StepStats) {
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
        tokio::time::timeout(Duration::from_secs(60), stats.wait_for(wanted))
            .await
            .unwrap()
            .unwrap();
    }

    fn reasons(&self) -> Vec<FinishReason> {
        self.finished
            .lock()
            .unwrap()
            .iter()
            .map(|request| request.reason)
            .collect()
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 64,
        max_model_len: 128,
        max_queued_requests: 2,
        block_size: 16,
        num_blocks: 16,
        enable_prefix_caching: true,
        ..EngineConfig::default()
    }
}

fn start(model: impl Model + 'static) -> (EngineHandle, Arc<Recorder>) {
    let recorder = Arc::new(Recorder {
        stats: watch::Sender::default(),
        finished: Mutex::default(),
    });
    (
        Engine::start(Box::new(model), config(), recorder.clone()).unwrap(),
        recorder,
    )
}

fn request(prompt: usize, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        id: "test".into(),
        prompt: (0..prompt as u32).collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        stop: StopParams {
            max_tokens,
            min_tokens: 0,
            stop_token_ids: vec![99],
        },
        constraint: None,
        arrival: Instant::now(),
        terms: qwen_engine::request::Terms::default(),
    }
}

async fn all(stream: TokenStream) -> Vec<TokenEvent> {
    stream.collect().await
}

#[tokio::test]
async fn tokens_arrive_and_the_stop_token_is_told_apart() {
    let (engine, recorder) = start(FakeModel::new(100).with_reply(vec![7, 8, 99]));
    let events = all(engine.submit(request(5, 10)).unwrap()).await;
    assert_eq!(
        events,
        [
            TokenEvent::Token(7),
            TokenEvent::Token(8),
            TokenEvent::Stop(99),
            TokenEvent::Finished(FinishReason::Stop)
        ]
    );
    let events = all(engine.submit(request(5, 2)).unwrap()).await;
    assert_eq!(events.last(), Some(&TokenEvent::Finished(FinishReason::Length)));
    assert_eq!(recorder.stats.borrow().kv_usage, 0.0);
    let finished = recorder.finished.lock().unwrap().clone();
    // As in vLLM, the stop token counts as generated.
    assert_eq!(
        finished
            .iter()
            .map(|one| one.generated_tokens)
            .collect::<Vec<_>>(),
        [3, 2]
    );
    assert!(
        finished
            .iter()
            .all(|one| one.queued <= one.scheduled.unwrap() && one.first_token <= one.last_token)
    );
    assert_eq!(engine.health(), Health::Idle);
}

#[tokio::test]
async fn the_queue_is_full_beyond_places_and_limit() {
    let (model, gate) = FakeModel::new(100).with_gate();
    let (engine, recorder) = start(model);
    let streams: Vec<_> = (0..4).map(|_| engine.submit(request(3, 2)).unwrap()).collect();
    let refused = engine.submit(request(3, 2)).unwrap_err();
    assert!(
        matches!(
            refused,
            SubmitError::QueueFull {
                waiting: 2,
                limit: 2,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        engine.queue_full().map(|error| error.to_string()),
        Some(refused.to_string())
    );
    drop(gate);
    for stream in streams {
        assert_eq!(all(stream).await.len(), 3);
    }
    assert!(engine.queue_full().is_none());
    recorder.until(|stats| stats.running + stats.waiting == 0).await;
}

#[tokio::test]
async fn what_can_never_fit_is_refused_with_its_numbers() {
    let (engine, _recorder) = start(FakeModel::new(100));
    let error = engine.submit(request(200, 100)).unwrap_err();
    assert_eq!(
        error,
        SubmitError::NeverFits {
            needed: 19,
            total: 16,
            block_size: 16
        }
    );
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks_within_a_step() {
    let (model, gate) = FakeModel::new(100).with_gate();
    let (engine, recorder) = start(model);
    let mut stream = engine.submit(request(20, 100)).unwrap();
    gate.send(()).unwrap();
    assert!(matches!(stream.next().await, Some(TokenEvent::Token(_))));
    recorder.until(|stats| stats.kv_usage > 0.0).await;
    drop(stream);
    // One more step may already have begun.
    gate.send(()).unwrap();
    recorder
        .until(|stats| stats.running == 0 && stats.kv_usage == 0.0)
        .await;
    assert_eq!(recorder.reasons(), [FinishReason::Abort]);
}

#[tokio::test]
async fn a_thousand_cancels_leave_nothing_behind() {
    let (engine, recorder) = start(FakeModel::new(100));
    for index in 0..1000 {
        let mut stream = engine.submit(request(1 + index % 40, 60)).unwrap();
        for _ in 0..index % 3 {
            stream.next().await;
        }
        drop(stream);
        recorder.until(|stats| stats.running + stats.waiting == 0).await;
    }
    engine.drain().await;
    assert_eq!(recorder.stats.borrow().kv_usage, 0.0);
    assert_eq!(recorder.reasons().len(), 1000);
}

#[tokio::test]
async fn a_stop_string_ends_as_stop() {
    let (model, gate) = FakeModel::new(100).with_gate();
    let (engine, recorder) = start(model);
    let mut stream = engine.submit(request(3, 50)).unwrap();
    gate.send(()).unwrap();
    stream.next().await;
    stream.stop();
    drop(gate);
    engine.drain().await;
    assert_eq!(recorder.reasons(), [FinishReason::Stop]);
}

#[tokio::test]
async fn drain_takes_nothing_new_and_waits_for_the_rest() {
    let (model, gate) = FakeModel::new(100).with_gate();
    let (engine, recorder) = start(model);
    let stream = engine.submit(request(3, 2)).unwrap();
    let drain = engine.drain();
    tokio::pin!(drain);
    assert!(futures::poll!(drain.as_mut()).is_pending());
    assert_eq!(engine.submit(request(3, 2)).unwrap_err(), SubmitError::Draining);
    drop(gate);
    drain.await;
    assert_eq!(all(stream).await.len(), 3);
    assert_eq!(recorder.reasons(), [FinishReason::Length]);
}

/// Works once, then fails as told.
struct Broken {
    inner: FakeModel,
    steps: usize,
    fail: fn() -> ModelError,
}

impl Model for Broken {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        self.steps += 1;
        match self.steps {
            2 => Err((self.fail)()),
            _ => self.inner.forward(plan),
        }
    }
}

#[tokio::test]
async fn a_failed_step_fails_its_requests_only() {
    let fail = || ModelError::Other("no memory left on the device".into());
    let (engine, recorder) = start(Broken {
        inner: FakeModel::new(100),
        steps: 0,
        fail,
    });
    let events = all(engine.submit(request(3, 9)).unwrap()).await;
    assert_eq!(
        events.last(),
        Some(&TokenEvent::Failed("no memory left on the device".into()))
    );
    assert_eq!(all(engine.submit(request(3, 2)).unwrap()).await.len(), 3);
    engine.drain().await;
    assert_eq!(recorder.reasons(), [FinishReason::Error, FinishReason::Length]);
}

#[tokio::test]
async fn a_panic_is_told_to_clients_and_health() {
    let (engine, recorder) = start(Broken {
        inner: FakeModel::new(100),
        steps: 0,
        fail: || panic!("a bug"),
    });
    let events = all(engine.submit(request(3, 9)).unwrap()).await;
    assert!(matches!(events.last(), Some(TokenEvent::Failed(_))), "{events:?}");
    assert_eq!(engine.health(), Health::Dead);
    assert_eq!(engine.submit(request(3, 2)).unwrap_err(), SubmitError::Dead);
    assert_eq!(recorder.reasons(), [FinishReason::Error]);
}

/// The same seed gives the same tokens, whoever else is in the batch.
#[tokio::test]
async fn the_random_stream_is_the_requests_own() {
    struct Flat;
    impl Model for Flat {
        fn vocab_size(&self) -> usize {
            1000
        }
        fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
            let rows = plan.chunks.iter().filter(|chunk| chunk.sample).count();
            Ok(Logits::new(vec![0.0; rows * 1000], 1000))
        }
    }
    let seeded = |seed| {
        let mut request = request(3, 20);
        request.sampling.temperature = 1.0;
        request.sampling.seed = Some(seed);
        request.stop.stop_token_ids.clear();
        request
    };
    let (engine, _recorder) = start(Flat);
    let alone = all(engine.submit(seeded(1)).unwrap()).await;
    let other = engine.submit(seeded(2)).unwrap();
    let together = engine.submit(seeded(1)).unwrap();
    let (other, together) = tokio::join!(all(other), all(together));
    assert_eq!(alone, together);
    assert_ne!(alone, other);
}
