//! Traces: spans go to an OTLP collector over HTTP, in batches, from a thread of their own.
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use reqwest::Url;
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::cli::Fatal;

/// Time for one batch.
const EXPORT: Duration = Duration::from_secs(10);
/// What OTEL_TRACES_SAMPLER may say; the SDK reads it, but would only shrug at another word.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The way of spans out of the process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Exports to `endpoint`. Sampler, service name, headers and batches follow the OTEL_ variables. `runtime` sends.
    /// Errors: what the SDK cannot make an exporter of.
    pub fn start(endpoint: &str, runtime: Handle) -> Result<Self, Fatal> {
        let wrong =
            |error: &dyn std::fmt::Display| Fatal(format!("cannot export traces to {endpoint}: {error}"));
        // Another part may have chosen the provider already; it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(EXPORT).build();
        let sender = Sender {
            client: client.map_err(|error| wrong(&error))?,
            runtime,
            endpoint: endpoint.to_owned(),
            failing: Arc::default(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(EXPORT)
            .build()
            .map_err(|error| wrong(&error))?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("qwen-engine");
        info!(endpoint, "traces are exported");
        Ok(Self { provider, tracer })
    }

    /// Makes spans; it drops them rather than wait for the collector.
    pub fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }

    /// Sends what is left, for at most this long. Blocks.
    pub fn finish(&self, limit: Duration) {
        // A collector that does not answer was told when it first failed.
        let _ = self.provider.shutdown_with_timeout(limit);
    }
}

/// Who we are, unless the environment says otherwise.
fn resource() -> Resource {
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    match named {
        true => resource.build(),
        false => resource.with_service_name("qwen-engine").build(),
    }
}

/// Where traces go: the flag's value, else what OpenTelemetry's variables say; `None` means that nobody wants any.
///
/// # Errors
/// One sentence on the variable or flag that cannot be honoured.
pub fn endpoint(flag: Option<&str>, env: impl Fn(&str) -> Option<String>) -> Result<Option<String>, Fatal> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let general = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let named = flag
        .map(|value| ("--otlp-traces-endpoint", value.to_owned()))
        .or_else(|| {
            let name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
            Some((name, set(name)?))
        })
        .or_else(|| Some((general, set(general)?)));
    let Some((name, value)) = named.filter(|_| !off) else {
        return Ok(None);
    };
    for protocol in [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ] {
        if let Some(asked) = set(protocol) {
            if asked != "http/protobuf" {
                return Err(Fatal(format!(
                    "{protocol} is {asked}, and this engine speaks OTLP over HTTP; set it to http/protobuf and the endpoint to the collector's HTTP port, usually 4318"
                )));
            }
            break;
        }
    }
    check_sampler(&set)?;
    let mut url = Url::parse(&value)
        .ok()
        .filter(|url| url.has_host() && url.scheme().starts_with("http"));
    let Some(url) = &mut url else {
        return Err(Fatal(format!(
            "{name} {value} is not a URL of http or https; use for example http://collector:4318/v1/traces"
        )));
    };
    // As the specification has it for the general variable, and as everybody means it elsewhere.
    if name == general || url.path() == "/" {
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(Some(url.to_string()))
}

fn check_sampler(set: &impl Fn(&str) -> Option<String>) -> Result<(), Fatal> {
    let Some(sampler) = set("OTEL_TRACES_SAMPLER") else {
        return Ok(());
    };
    if !SAMPLERS.contains(&sampler.as_str()) {
        return Err(Fatal(format!(
            "OTEL_TRACES_SAMPLER {sampler} is not known; use one of {}",
            SAMPLERS.join(", ")
        )));
    }
    let ratio = set("OTEL_TRACES_SAMPLER_ARG").unwrap_or_default();
    if sampler.ends_with("ratio") && !ratio.parse().is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio)) {
        return Err(Fatal(format!(
            "OTEL_TRACES_SAMPLER_ARG \"{ratio}\" is not a share of traces; use a number from 0 to 1"
        )));
    }
    Ok(())
}

/// The exporter's HTTP client: the SDK's thread waits, the runtime sends.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    endpoint: String,
    failing: Arc<AtomicBool>,
}

type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Sender {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Sending<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let sent = self.runtime.spawn(send(self.client.clone(), request));
        Box::pin(async move {
            let result = sent.await.map_err(HttpError::from).and_then(|sent| sent);
            self.tell(match &result {
                Ok(response) if response.status().is_success() => None,
                Ok(response) => Some(format!("it answers {}", response.status())),
                Err(error) => Some(error.to_string()),
            });
            result
        })
    }
}

impl Sender {
    /// Tells of a collector that fails when it begins to, and when it is back: not at every batch.
    fn tell(&self, problem: Option<String>) {
        let fails = problem.is_some();
        if self.failing.swap(fails, Ordering::Relaxed) == fails {
            return;
        }
        let endpoint = &self.endpoint;
        match problem {
            Some(problem) => warn!(
                endpoint,
                problem, "the collector takes no traces; they are dropped until it does"
            ),
            None => info!(endpoint, "the collector takes traces again"),
        }
    }
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let answer = client.execute(request.try_into()?).await?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    *response.body_mut() = answer.bytes().await?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(flag: Option<&str>, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let value = |name: &str| {
            let pair = env.iter().find(|(known, _)| *known == name);
            pair.map(|(_, value)| (*value).to_owned())
        };
        endpoint(flag, value).map_err(|error| error.to_string())
    }

    #[test]
    fn the_flag_comes_before_the_variables_and_nothing_means_none() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318/otlp/");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/x");
        for (flag, env, expected) in [
            (None, vec![], None),
            (
                Some("http://flag:4318"),
                vec![general, traces],
                Some("http://flag:4318/v1/traces"),
            ),
            (
                Some("http://flag:4318/mine"),
                vec![],
                Some("http://flag:4318/mine"),
            ),
            (None, vec![general, traces], Some("https://traces/x")),
            (None, vec![general], Some("http://general:4318/otlp/v1/traces")),
            (Some("http://flag"), vec![("OTEL_SDK_DISABLED", "true")], None),
            (None, vec![general, ("OTEL_TRACES_EXPORTER", "none")], None),
        ] {
            assert_eq!(
                found(flag, &env),
                Ok(expected.map(str::to_owned)),
                "{flag:?} {env:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        for (env, words) in [
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "set it to http/protobuf"),
            (("OTEL_TRACES_SAMPLER", "some"), "OTEL_TRACES_SAMPLER some"),
            (ratio, "OTEL_TRACES_SAMPLER_ARG \"\""),
        ] {
            let error = found(Some("http://flag"), &[env]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(found(Some("http://flag"), &[ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.25")]).is_ok());
        for text in ["collector:4318", "ftp://collector", "http://"] {
            let error = found(Some(text), &[]).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
