//! Command line of the engine.
use std::process::ExitCode;

#[allow(unsafe_code)]
fn main() -> ExitCode {
    // SAFETY: nothing has run yet, so this is the only thread.
    unsafe {
        qwen_engine::threads::limit();
        qwen_engine::cli::plain_errors();
    }
    qwen_engine::memory::keep_freed();
    match qwen_engine::cli::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
