//! Reads a few series out of a Prometheus text exposition while it streams in; keeps nothing else.
use crate::load::{LoadProgress, Origin, Performance, Sample};

/// Lines longer than this are skipped: none of the wanted series comes near it.
const MAX_LINE: usize = 4096;

/// The wanted series, merged over their label sets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    waiting: Option<f64>,
    running: Option<f64>,
    kv_usage: Option<f64>,
    load_bytes: Option<f64>,
    load_bytes_total: Option<f64>,
    load_eta_seconds: Option<f64>,
    hub_wait_seconds: Option<f64>,
    ready: Option<f64>,
    origin: Option<Origin>,
    performance: Performance,
}

impl Series {
    /// The pod's answer; `None` when the text was not written by an engine.
    /// A loading pod has no queue yet, so what it does not export counts as 0.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        if self.waiting.is_none() && self.ready.is_none() && self.load_bytes_total.is_none() {
            return None;
        }
        let loading = self
            .load_bytes_total
            .filter(|_| self.ready != Some(1.0))
            .and_then(|bytes_total| {
                let bytes_loaded = self.load_bytes.unwrap_or(0.0);
                let hub_wait_seconds = self.hub_wait_seconds.unwrap_or(0.0);
                // All bytes read and still not ready: that is warming up or draining, not loading. A hub that asks to
                // wait may do so before it tells how many bytes there are.
                (bytes_loaded < bytes_total || hub_wait_seconds > 0.0).then(|| LoadProgress {
                    bytes_loaded,
                    bytes_total,
                    eta_seconds: self.load_eta_seconds.unwrap_or(0.0),
                    hub_wait_seconds,
                })
            });
        Some(Sample {
            waiting: self.waiting.unwrap_or(0.0),
            running: self.running.unwrap_or(0.0),
            kv_usage: self.kv_usage.unwrap_or(0.0),
            loading,
            origin: self.origin.clone(),
            performance: self.performance,
        })
    }

    fn take(&mut self, line: &[u8]) {
        let end = line
            .iter()
            .position(|byte| matches!(byte, b'{' | b' ' | b'\t'))
            .unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let (slot, merge): (_, fn(f64, f64) -> f64) = match name {
            b"vllm:num_requests_waiting" => (&mut self.waiting, |a, b| a + b),
            b"vllm:num_requests_running" => (&mut self.running, |a, b| a + b),
            b"vllm:kv_cache_usage_perc" => (&mut self.kv_usage, f64::max),
            b"qwen:model_load_bytes" => (&mut self.load_bytes, |a, b| a + b),
            b"qwen:model_load_size_bytes" => (&mut self.load_bytes_total, |a, b| a + b),
            b"qwen:model_load_eta_seconds" => (&mut self.load_eta_seconds, f64::max),
            b"qwen:hub_wait_seconds" => (&mut self.hub_wait_seconds, f64::max),
            b"qwen:benchmark_prompt_tokens_per_second" => (&mut self.performance.prompt_rate, f64::min),
            b"qwen:benchmark_generation_tokens_per_second" => {
                (&mut self.performance.generation_rate, f64::min)
            }
            b"qwen:benchmark_time_to_first_token_seconds" => (&mut self.performance.first_token, f64::max),
            b"qwen:ready" => (&mut self.ready, f64::min),
            b"qwen:model_info" => {
                self.origin = origin(rest);
                return;
            }
            _ => return,
        };
        if let Some(value) = value(rest) {
            *slot = Some(slot.map_or(value, |old| merge(old, value)));
        }
    }
}

/// The value after an optional label set; a timestamp may follow it.
/// NaN, infinities and negative numbers say nothing about a load and are skipped.
fn value(rest: &[u8]) -> Option<f64> {
    let after = if rest.first() == Some(&b'{') {
        &rest[labels_end(rest)?..]
    } else {
        rest
    };
    let token = after
        .split(u8::is_ascii_whitespace)
        .find(|token| !token.is_empty())?;
    let value: f64 = std::str::from_utf8(token).ok()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

/// The labels that tell a commit.
fn origin(labels: &[u8]) -> Option<Origin> {
    let labels = std::str::from_utf8(labels).ok()?;
    // A quote inside a value is escaped, so no value can look like another label.
    let label = |name: &str| {
        let begin = format!("{name}=\"");
        let mut found = labels.match_indices(&begin);
        let (at, _) = found.find(|(at, _)| labels[..*at].ends_with(['{', ',']))?;
        let (value, _) = labels[at + begin.len()..].split_once('"')?;
        // No name and no commit of a hub needs an escape.
        (!value.is_empty() && !value.contains('\\')).then(|| value.to_owned())
    };
    Some(Origin {
        source: label("source")?,
        revision: label("revision")?,
        commit: label("commit")?,
    })
}

/// Position after the closing brace; braces and escaped quotes inside label values do not count.
fn labels_end(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Takes the text in chunks of any size.
#[derive(Debug, Default)]
pub struct SeriesReader {
    series: Series,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    overlong: bool,
}

impl SeriesReader {
    /// Takes the next chunk.
    pub fn push(&mut self, mut chunk: &[u8]) {
        while let Some(at) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&chunk[..at], &chunk[at + 1..]);
            if self.partial.is_empty() && !self.overlong {
                if line.len() <= MAX_LINE {
                    self.series.take(line);
                }
            } else {
                self.hold(line);
                self.end_line();
            }
            chunk = rest;
        }
        self.hold(chunk);
    }

    /// The series of the whole text; a last line without its newline counts.
    #[must_use]
    pub fn finish(mut self) -> Series {
        self.end_line();
        self.series
    }

    fn hold(&mut self, part: &[u8]) {
        if self.overlong || self.partial.len() + part.len() > MAX_LINE {
            self.overlong = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(part);
        }
    }

    fn end_line(&mut self) {
        if !self.overlong {
            self.series.take(&self.partial);
        }
        self.partial.clear();
        self.overlong = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Series {
        let mut reader = SeriesReader::default();
        reader.push(text.as_bytes());
        reader.finish()
    }

    const BUSY: &str = "# HELP vllm:num_requests_waiting Number of requests waiting.\n\
        # TYPE vllm:num_requests_waiting gauge\n\
        vllm:num_requests_waiting{engine=\"0\",model_name=\"a } \\\" b\"} 9.0\n\
        vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 5\n\
        vllm:num_requests_running 4 1700000000000\n\
        vllm:kv_cache_usage_perc{engine=\"0\"} 8.5e-1\n\
        qwen:ready 1";

    #[test]
    fn values_come_out_of_a_real_looking_text() {
        let sample = read(BUSY).sample().unwrap();
        assert_eq!(
            sample,
            Sample {
                waiting: 9.0,
                running: 4.0,
                kv_usage: 0.85,
                ..Sample::default()
            }
        );
    }

    #[test]
    fn several_engines_of_one_pod_are_summed_and_the_fullest_cache_counts() {
        let text = "vllm:num_requests_waiting{engine=\"0\"} 1\nvllm:num_requests_waiting{engine=\"1\"} 2\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.7\n";
        let sample = read(text).sample().unwrap();
        assert_eq!((sample.waiting, sample.kv_usage), (3.0, 0.7));
    }

    #[test]
    fn a_loading_pod_reports_zero_and_its_progress() {
        let text = "qwen:ready 0\nqwen:model_load_bytes 40\nqwen:model_load_size_bytes 100\nqwen:model_load_eta_seconds 3\n";
        let loading = Some(LoadProgress {
            bytes_loaded: 40.0,
            bytes_total: 100.0,
            eta_seconds: 3.0,
            hub_wait_seconds: 0.0,
        });
        assert_eq!(
            read(text).sample(),
            Some(Sample {
                loading,
                ..Sample::default()
            })
        );
    }

    #[test]
    fn what_a_benchmark_measured_is_read() {
        let text = "qwen:ready 1\nqwen:benchmark_time_to_first_token_seconds 0.25\n\
            qwen:benchmark_prompt_tokens_per_second 900.5\nqwen:benchmark_generation_tokens_per_second 80\n";
        let measured = Performance {
            prompt_rate: Some(900.5),
            generation_rate: Some(80.0),
            first_token: Some(0.25),
        };
        assert_eq!(read(text).sample().unwrap().performance, measured);
        assert_eq!(
            read("qwen:ready 1\n").sample().unwrap().performance,
            Performance::default()
        );
    }

    #[test]
    fn a_hub_that_asks_to_wait_is_seen_before_it_tells_of_bytes() {
        let text = "qwen:ready 0\nqwen:model_load_bytes 0\nqwen:model_load_size_bytes 0\nqwen:hub_wait_seconds 42.5\n";
        let loading = read(text).sample().unwrap().loading.unwrap();
        assert_eq!((loading.bytes_total, loading.hub_wait_seconds), (0.0, 42.5));
    }

    #[test]
    fn the_labels_tell_which_commit_is_served() {
        let told = |labels: &str| {
            let text = format!("qwen:ready 1\nqwen:model_info{{{labels}}} 1\n");
            read(&text).sample().unwrap().origin
        };
        let labels =
            "commit=\"0a1\",engine=\"0\",model_name=\"x,commit=\\\"9\",revision=\"main\",source=\"hf://a/b\"";
        let origin = Origin {
            source: "hf://a/b".into(),
            revision: "main".into(),
            commit: "0a1".into(),
        };
        assert_eq!(told(labels), Some(origin));
        for broken in [
            "",
            "commit=\"0a1\"",
            &labels[..labels.len() - 1],
            &labels.replace("0a1", ""),
        ] {
            assert_eq!(told(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_draining_pod_is_not_loading() {
        let text = "qwen:ready 0\nqwen:model_load_bytes 100\nqwen:model_load_size_bytes 100\n";
        assert_eq!(read(text).sample().unwrap().loading, None);
    }

    #[test]
    fn another_programs_metrics_are_no_answer() {
        assert_eq!(read("go_goroutines 12\n").sample(), None);
        assert_eq!(read("vllm:num_requests_waiting NaN\n").sample(), None);
    }

    #[test]
    fn an_overlong_line_is_skipped_and_the_next_one_read() {
        let text = format!(
            "vllm:num_requests_waiting{{x=\"{}\"}} 1\nqwen:ready 1\n",
            "y".repeat(MAX_LINE)
        );
        assert_eq!(read(&text), read("qwen:ready 1\n"));
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(size in 1usize..200) {
            let mut reader = SeriesReader::default();
            for chunk in BUSY.as_bytes().chunks(size) {
                reader.push(chunk);
            }
            prop_assert_eq!(reader.finish(), read(BUSY));
        }

        #[test]
        fn no_bytes_confuse_it_and_what_it_holds_is_bounded(chunks in prop::collection::vec(any::<Vec<u8>>(), 0..50)) {
            let mut reader = SeriesReader::default();
            for chunk in &chunks {
                reader.push(chunk);
                prop_assert!(reader.partial.len() <= MAX_LINE);
            }
            reader.push(b"\nqwen:ready 1\n");
            prop_assert!(reader.finish().ready.is_some());
        }

        #[test]
        fn any_finite_value_survives(value in 0.0f64..1e15) {
            let series = read(&format!("vllm:num_requests_waiting{{a=\"b\"}} {value}\n"));
            prop_assert_eq!(series.waiting, Some(value));
        }
    }
}
