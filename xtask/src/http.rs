//! Plain HTTP to 127.0.0.1: JSON, server-sent events, and the status codes that a load test counts.
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A client that opens a new connection for each request, so that a Service spreads them over its pods.
fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_idle_connections(0)
        .build()
        .into()
}

/// GET of a text.
pub fn get_text(url: &str) -> Result<String> {
    get_with(url, &[]).map(|(_, text)| text)
}

/// GET with headers; the status and the body as text.
pub fn get_with(url: &str, headers: &[(&str, &str)]) -> Result<(u16, String)> {
    let request = agent(Duration::from_secs(10)).get(url);
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    let mut response = request.call().with_context(|| format!("GET {url} failed"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

/// GET of a JSON document; `query` is percent-encoded.
pub fn get_json(url: &str, query: &[(&str, &str)]) -> Result<Value> {
    let request = agent(Duration::from_secs(10))
        .get(url)
        .query_pairs(query.iter().copied());
    let mut response = request.call().with_context(|| format!("GET {url} failed"))?;
    let status = response.status();
    let text = response.body_mut().read_to_string()?;
    if !status.is_success() {
        bail!("GET {url} answered {status}: {}", text.trim());
    }
    serde_json::from_str(&text).with_context(|| format!("GET {url} answered no JSON: {text:.200}"))
}

/// Whether a GET is answered with success, soon.
pub fn is_ok(url: &str) -> bool {
    let answer = agent(Duration::from_secs(1)).get(url).call();
    answer.is_ok_and(|response| response.status().is_success())
}

/// POST of a JSON document; the status and the body as text.
pub fn post_json(url: &str, body: &Value, timeout: Duration) -> Result<(u16, String)> {
    post_json_with(url, &[], body, timeout)
}

/// The same with more headers.
pub fn post_json_with(
    url: &str,
    headers: &[(&str, &str)],
    body: &Value,
    timeout: Duration,
) -> Result<(u16, String)> {
    let request = headers
        .iter()
        .fold(agent(timeout).post(url), |request, (name, value)| {
            request.header(*name, *value)
        });
    let mut response = request
        .send_json(body)
        .with_context(|| format!("POST {url} failed"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

/// PATCH by a JSON merge patch; the status and the body as text.
pub fn patch_json(url: &str, patch: &Value, timeout: Duration) -> Result<(u16, String)> {
    let request = agent(timeout)
        .patch(url)
        .header("Content-Type", "application/merge-patch+json");
    let mut response = request
        .send(patch.to_string())
        .with_context(|| format!("PATCH {url} failed"))?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}

/// What a streamed completion brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Streamed {
    /// Chunks that carried text.
    pub chunks: usize,
    /// Tokens generated, as the chunk of usage says.
    pub tokens: Option<u64>,
    /// OpenAI's `finish_reason`, if the stream had one.
    pub finish_reason: Option<String>,
    /// Whether `data: [DONE]` came.
    pub done: bool,
    /// Why the stream broke off, if it did.
    pub broken: Option<String>,
}

/// POSTs a streaming completion and reads it to its end; `on_chunk` is called once for each chunk of text.
///
/// # Errors
/// When the server did not take the request; a stream that broke off later is `broken`.
pub fn stream(url: &str, body: &Value, timeout: Duration, on_chunk: impl FnMut()) -> Result<Streamed> {
    let mut response = agent(timeout)
        .post(url)
        .send_json(body)
        .with_context(|| format!("POST {url} failed"))?;
    if !response.status().is_success() {
        bail!(
            "POST {url} answered {}: {}",
            response.status(),
            response.body_mut().read_to_string()?.trim()
        );
    }
    let mut streamed = Streamed::default();
    let read = read_events(
        BufReader::new(response.body_mut().as_reader()),
        &mut streamed,
        on_chunk,
    );
    streamed.broken = read.err().map(|error| format!("{error:#}"));
    Ok(streamed)
}

fn read_events(reader: impl BufRead, streamed: &mut Streamed, mut on_chunk: impl FnMut()) -> Result<()> {
    for line in reader.lines() {
        let line = line.context("the connection was lost")?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            streamed.done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).with_context(|| format!("bad event: {data}"))?;
        streamed.tokens = event["usage"]["completion_tokens"].as_u64().or(streamed.tokens);
        let choice = &event["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            streamed.finish_reason = Some(reason.to_owned());
        }
        let text = choice["delta"]["content"]
            .as_str()
            .or(choice["text"].as_str())
            .unwrap_or_default();
        if !text.is_empty() {
            streamed.chunks += 1;
            on_chunk();
        }
    }
    bail!("it ended without [DONE]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_whole_only_with_its_last_line() {
        let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
                      data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";
        let (mut seen, mut whole) = (0, Streamed::default());
        read_events(events.as_bytes(), &mut whole, || seen += 1).unwrap();
        assert_eq!(
            (whole.chunks, whole.done, whole.finish_reason.as_deref()),
            (1, true, Some("length"))
        );
        assert_eq!((seen, whole.tokens), (1, Some(7)));
        let mut cut = Streamed::default();
        assert!(read_events(&events.as_bytes()[..events.len() - 16], &mut cut, || ()).is_err());
        assert!(!cut.done);
    }
}
