//! Health: a frozen step, and what must not be taken for one.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use qwen_engine::{
    engine::{EngineConfig, Health},
    heartbeat::Heartbeat,
    model::{Logits, Model, ModelError, StepPlan, fake::FakeModel},
};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::support::{VOCABULARY, config, post, send, serving_with};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_frozen_step_is_told_and_ends_readiness() {
    let (model, gate) = FakeModel::new(VOCABULARY).with_gate();
    let config = EngineConfig {
        stuck_after: Duration::ZERO,
        ..config(1, 1)
    };
    let mut server = serving_with(model, config);
    let router = server.router.clone();
    let body = json!({"prompt": "x", "max_tokens": 2});
    let request = tokio::spawn(async move { send(&router, post("/v1/completions", body)).await });
    server.until_counts(1, 0).await;
    let mut reply = server.get("/health").await;
    while reply.status == StatusCode::OK {
        tokio::task::yield_now().await;
        reply = server.get("/health").await;
    }
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let health = reply.json();
    assert_eq!(health["status"], "stuck");
    let message = health["message"].as_str().unwrap();
    assert!(message.contains("no sign of life for 0 s"), "{message}");
    let ready = server.get("/ready").await;
    assert_eq!(
        (ready.status, &ready.json()["reason"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("stuck"))
    );
    let labels = r#"{engine="0",model_name="qwen3"}"#;
    assert_eq!(server.sample(&format!("qwen:ready{labels}")).await, 0.0);

    drop(gate);
    assert_eq!(request.await.unwrap().status, StatusCode::OK);
    while server.get("/health").await.status != StatusCode::OK {
        tokio::task::yield_now().await;
    }
    // At rest it may be silent for ever.
    let engine = &server.app.loaded().unwrap().engine;
    while engine.health() != Health::Idle {
        tokio::task::yield_now().await;
    }
    assert_eq!(engine.health_at(Instant::now() + 1000 * HOUR), Health::Idle);
    assert_eq!(server.get("/ready").await.status, StatusCode::OK);
}

/// Computes NaN while it is told so.
struct Damaged {
    damaged: Arc<AtomicBool>,
    inner: FakeModel,
}

impl Model for Damaged {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        let mut logits = self.inner.forward(plan)?;
        if self.damaged.load(Ordering::Relaxed) {
            logits.rows_mut().for_each(|row| row.fill(f32::NAN));
        }
        Ok(logits)
    }
}

#[tokio::test]
async fn nan_is_told_as_the_models_fault_and_ends_health_when_nothing_else_comes() {
    let damaged = Arc::new(AtomicBool::new(true));
    let model = Damaged {
        damaged: damaged.clone(),
        inner: FakeModel::new(VOCABULARY),
    };
    let server = serving_with(model, config(1, 1));
    let ask = || server.post("/v1/completions", json!({"prompt": "x", "max_tokens": 1}));
    for _ in 0..16 {
        assert_eq!(server.get("/health").await.status, StatusCode::OK);
        let reply = ask().await;
        assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
        let error = reply.json()["error"].clone();
        assert!(
            error["type"] == "server_error"
                && error["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("computed NaN")),
            "{error}"
        );
    }
    for path in ["/health", "/ready"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(
            reply.body.contains("NaN for 16 requests in a row"),
            "{}",
            reply.body
        );
    }
    // One prompt alone may overflow: what goes well takes the blame off the weights.
    damaged.store(false, Ordering::Relaxed);
    assert_eq!(ask().await.status, StatusCode::OK);
    assert_eq!(server.get("/health").await.status, StatusCode::OK);
}

/// A step that is as long as the test wants it, and beats when the test says so.
struct Beating {
    heartbeat: Heartbeat,
    signals: Receiver<()>,
    beaten: UnboundedSender<Instant>,
    inner: FakeModel,
}

impl Model for Beating {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        while let Ok(()) = self.signals.recv() {
            self.heartbeat.beat();
            self.beaten.send(Instant::now()).unwrap();
        }
        self.inner.forward(plan)
    }

    fn set_heartbeat(&mut self, heartbeat: Heartbeat) {
        self.heartbeat = heartbeat;
    }
}

#[tokio::test]
async fn a_long_step_that_beats_is_not_stuck() {
    let ((signal, signals), (beaten, mut beats)) = (channel(), unbounded_channel());
    let model = Beating {
        heartbeat: Heartbeat::default(),
        signals,
        beaten,
        inner: FakeModel::new(VOCABULARY),
    };
    let config = EngineConfig {
        stuck_after: HOUR,
        ..config(1, 1)
    };
    let mut server = serving_with(model, config);
    let router = server.router.clone();
    let body = json!({"prompt": "x", "max_tokens": 1});
    let request = tokio::spawn(async move { send(&router, post("/v1/completions", body)).await });
    server.until_counts(1, 0).await;
    let engine = server.app.loaded().unwrap().engine.clone();
    let next = async |beats: &mut UnboundedReceiver<Instant>| beats.recv().await.unwrap();
    for _ in 0..3 {
        signal.send(()).unwrap();
        let beat = next(&mut beats).await;
        // Each beat buys another hour, however long the step goes on.
        assert_eq!(engine.health_at(beat + HOUR / 2), Health::Stepping);
        assert!(matches!(engine.health_at(beat + 2 * HOUR), Health::Stuck(_)));
        assert_eq!(server.get("/health").await.json()["status"], "stepping");
    }
    drop(signal);
    assert_eq!(request.await.unwrap().status, StatusCode::OK);
}
