//! Command line of the project's chores: `cargo xtask …`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::paths::Paths;
use xtask::{bench, chaos, cluster, demo, images};

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// The local Kubernetes cluster of the demo and the end-to-end tests.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Builds the container images of operator and engine into target/images, without a docker engine.
    Images(images::Options),
    /// Measures the engine on this machine's CPU and writes the report into docs/benchmarks.
    BenchEngine(bench::Options),
    /// Measures the operator with hundreds of services on a control plane of its own, with pretended nodes.
    BenchOperator(bench::operator::Options),
    /// The whole path of a user: cluster, operator, model, metrics, autoscaling, alert.
    Demo(demo::Options),
    /// Removes everything that the demo started.
    DemoDown(demo::Options),
    /// Brings faults on services of the local cluster and measures which alerts fire, when, and when they resolve.
    Chaos(chaos::Options),
}

#[derive(Subcommand)]
enum Cluster {
    /// Starts the cluster, or brings a running one up to date.
    Up,
    /// Stops the cluster and removes everything it left on the machine.
    Down,
    /// Shows what runs.
    Status,
    /// Builds the cluster's programs into the cache and links them into target/cluster/bin; starts nothing.
    Programs,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let paths = Paths::find()?;
    match cli.chore {
        Chore::Cluster(Cluster::Up) => cluster::up(&paths),
        Chore::Cluster(Cluster::Down) => cluster::down(&paths),
        Chore::Cluster(Cluster::Status) => cluster::status(&paths),
        Chore::Cluster(Cluster::Programs) => xtask::programs::install(&paths),
        Chore::Images(options) => images::run(&paths, &options),
        Chore::BenchEngine(options) => bench::run(&paths, &options),
        Chore::BenchOperator(options) => bench::operator::run(&paths, &options),
        Chore::Demo(options) => demo::up(&paths, &options),
        Chore::DemoDown(options) => demo::down(&paths, &options),
        Chore::Chaos(options) => chaos::run(&paths, &options),
    }
}
