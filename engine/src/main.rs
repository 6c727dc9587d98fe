//! Command line of the engine.
use std::process::ExitCode;

fn main() -> ExitCode {
    match qwen_engine::cli::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
