//! Command line of the engine.
use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    #[allow(unsafe_code)]
    unsafe {
        qwen_engine::threads::limit();
    }
    match qwen_engine::cli::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
