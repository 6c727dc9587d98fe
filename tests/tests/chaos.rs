//! The faults of `make chaos`, with short windows: each alert fires in the real Alertmanager, and resolves.
//!
//! Run with: `make test-cluster`.
use anyhow::Result;
use qwen_tests::Cluster;
use xtask::chaos::{self, Options};

#[test]
#[ignore = "needs the local cluster"]
fn every_fault_is_told_and_its_alert_resolves() -> Result<()> {
    chaos::prove(&Cluster::with_operator()?.demo(), &Options::default())
}
