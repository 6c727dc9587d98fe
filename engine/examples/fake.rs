//! A server whose model computes nothing: what HTTP, scheduling, sampling and streaming cost by themselves.
//! `cargo run --release -p qwen-engine --example fake -- PORT MILLISECONDS`: a step takes at least so long.
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use qwen_engine::constraint::Grammars;
use qwen_engine::engine::{Engine, EngineConfig};
use qwen_engine::http::{ApiKeys, App, Serving};
use qwen_engine::metrics::{CacheInfo, Metrics};
use qwen_engine::model::fake::FakeModel;
use qwen_engine::progress::Progress;
use qwen_engine::serve::serve_until;
use qwen_engine::tokenizer::Tokenizer;
use qwen_engine::wire::Defaults;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Tokens of `Tokenizer::of_bytes`.
const VOCABULARY: usize = 258;
const END: u32 = 257;
const LENGTH: usize = 4096;
const BLOCK: usize = 16;
const SEQUENCES: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let argument = |index| std::env::args().nth(index).ok_or("usage: fake PORT MILLISECONDS");
    let port: u16 = argument(1)?.parse()?;
    let delay = Duration::from_millis(argument(2)?.parse()?);
    // As `qwen-engine serve` has it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(port, delay))
}

async fn serve(port: u16, delay: Duration) -> Result<(), Box<dyn Error>> {
    let metrics = Arc::new(Metrics::new("fake")?.with_process()?);
    let names = vec!["fake".to_owned()];
    let progress = Arc::new(Progress::default());
    let app = App::new(names, ApiKeys::new(&[]), metrics.clone(), progress);
    let (sender, loaded) = oneshot::channel();
    if sender.send(Ok(load(metrics, delay)?)).is_err() {
        return Err("nobody waits for the model".into());
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let stop = futures::stream::pending();
    Ok(serve_until(listener, Arc::new(app), loaded, stop, Duration::ZERO).await?)
}

fn load(metrics: Arc<Metrics>, delay: Duration) -> Result<Serving, Box<dyn Error>> {
    let num_blocks = SEQUENCES * LENGTH / BLOCK;
    let cache = CacheInfo {
        block_size: BLOCK,
        num_blocks,
        prefix_caching: true,
        gpu_memory_utilization: 0.9,
        ..CacheInfo::default()
    };
    metrics.model_known(LENGTH, &cache)?;
    let limits = EngineConfig {
        max_num_seqs: SEQUENCES,
        max_model_len: LENGTH,
        block_size: BLOCK,
        num_blocks,
        ..EngineConfig::default()
    };
    // Letters only, so that every token is a text of its own.
    let reply = (b'a'..=b'z').map(u32::from).collect();
    let model = FakeModel::new(VOCABULARY).with_reply(reply).with_delay(delay);
    let tokenizer = Tokenizer::of_bytes()?;
    Ok(Serving {
        engine: Engine::start(Box::new(model), limits, metrics)?,
        grammars: Grammars::new(tokenizer.clone(), vec![END]),
        tokenizer,
        template: None,
        max_model_len: LENGTH,
        eos: vec![END],
        defaults: Defaults::default(),
    })
}
