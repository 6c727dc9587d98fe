//! Progress of long steps: a spinner with elapsed time on a terminal, plain lines elsewhere (CI, a file).

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a long step says this often that it still goes on.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// Longest note, in characters: an error of a program that is asked again and again can fill a screen.
const MAX_NOTE: usize = 160;

/// A step under way.
pub struct Step {
    label: String,
    begun: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Shows what is going on now inside the step.
    pub fn note(&mut self, text: &str) {
        let text: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(MAX_NOTE)
            .collect();
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if self.said.elapsed() >= PLAIN_INTERVAL => {
                println!("   {} [{}] {text}", self.label, seconds(self.begun.elapsed()));
                self.said = Instant::now();
            }
            None => {}
        }
    }
}

/// Does one step, showing its name, how long it takes, and what its closure returns as a last remark.
pub fn step(label: &str, work: impl FnOnce(&mut Step) -> Result<String>) -> Result<()> {
    let bar = std::io::stdout().is_terminal().then(ProgressBar::new_spinner);
    if let Some(bar) = &bar {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
    } else {
        println!("-> {label}");
    }
    let mut step = Step {
        label: label.to_owned(),
        begun: Instant::now(),
        said: Instant::now(),
        bar,
    };
    let result = work(&mut step);
    if let Some(bar) = &step.bar {
        bar.finish_and_clear();
    }
    let taken = seconds(step.begun.elapsed());
    match &result {
        Ok(remark) if remark.is_empty() => println!("ok {label} ({taken})"),
        Ok(remark) => println!("ok {label} ({taken}): {remark}"),
        Err(_) => println!("!! {label} failed after {taken}"),
    }
    result.map(drop)
}

/// `75.4 s` as `1m15s`, `0.42 s` as `0.4s`.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1}s", time.as_secs_f32()),
        whole @ 10..60 => format!("{whole}s"),
        whole => format!("{}m{:02}s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4s");
        assert_eq!(seconds(Duration::from_secs(12)), "12s");
        assert_eq!(seconds(Duration::from_secs(425)), "7m05s");
    }

    #[test]
    fn a_failed_step_hands_its_error_on() {
        let error = step("try", |_| anyhow::bail!("no")).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
