//! Logs: text for people, JSON for collectors; never a prompt unless it is asked for. Traces are in their own file.
mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt};

pub use traces::{Traces, endpoint};

use crate::{cli::Fatal, config::LogFormat};

/// Starts logging to stderr. Errors: the filter is malformed, or logging was started before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), Fatal> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        Fatal(format!(
            "--log-level {filter} is not a level or filter: {error}; use for example info"
        ))
    })?;
    let logs = fmt()
        .with_env_filter(parsed)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    let started = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
    };
    started.map_err(|error| Fatal(format!("cannot start logging: {error}")))?;
    // A panic is one line of the log, in its format, like everything else.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        let (words, thread) = (panic.payload_as_str(), thread.name());
        tracing::error!(words, place, thread, "a panic, which is a bug");
    }));
    Ok(())
}
