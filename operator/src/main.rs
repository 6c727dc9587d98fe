//! Command line of the operator.
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use qwen_operator::check::{self, Found};
use qwen_operator::cli::{Board, CheckArgs, Cli, Command, RenderArgs, RunArgs};
use qwen_operator::{dashboard, reference, render, run, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// An error of any command, told in one line.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => start(args),
        Command::Crds => render::crds().map_err(Failure::from).and_then(|text| put(&text)),
        Command::Fields => put(&reference::page()),
        Command::Dashboard { of } => put(&format!(
            "{:#}\n",
            match of {
                Board::Fleet => dashboard::of_fleet(),
                Board::Operator => dashboard::of_operator(),
            }
        )),
        Command::OwnAlerts => render::own_alerts()
            .map_err(Failure::from)
            .and_then(|text| put(&text)),
        Command::Render(args) => print_plans(&args),
        Command::Check(args) => print_findings(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qwen-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: RunArgs) -> Result<(), Failure> {
    telemetry::start(args.log_format, &args.log_level)?;
    // Two threads: the work is waiting for the API server, and each thread costs memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            told.cancel();
        });
        Ok(run::run(args, shutdown).await?)
    })
}

fn print_plans(args: &RenderArgs) -> Result<(), Failure> {
    let text = if args.file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(&args.file)
            .map_err(|error| format!("failed to read {}: {error}", args.file.display()))?
    };
    let plans = render::plans(&text, &args.settings())?;
    for plan in &plans {
        for sentence in &plan.left_out {
            eprintln!("warning: {sentence}");
        }
        put(&render::documents(plan)?)?;
    }
    put(&render::adapter_rule(&plans)?)
}

fn print_findings(args: &CheckArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(check::check(args))?;
    for finding in &findings {
        put(&format!("{finding}\n"))?;
    }
    let missing = findings
        .iter()
        .filter(|finding| matches!(finding.found, Found::Missing(_)))
        .count();
    match missing {
        0 => Ok(()),
        _ => Err(format!(
            "the operator cannot work here before {missing} of {} are put right",
            findings.len()
        )
        .into()),
    }
}

/// Prints; a reader that has seen enough, such as `head`, is no error.
fn put(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("failed to print: {error}").into())
        }
        _ => Ok(()),
    }
}
