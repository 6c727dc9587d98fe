//! One hub over HTTP: a single attempt, what its failure means, and how long to wait before the next.
use std::{error::Error, io, ops::Range, sync::Arc, time::Duration};

use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use reqwest::{Response, StatusCode, Url, header};

use super::{HubError, S3Access, Site, Throttle};

/// Attempts without a single new byte before giving up; with the growing waits about two minutes.
const ATTEMPTS: u32 = 8;
/// The longest wait of our own choice.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that a hub may ask for: the window of the public hub's rate limit.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// A failed attempt.
pub(super) enum Failure {
    /// Another attempt would fail, too.
    Final(HubError),
    /// Worth another attempt, after the wait that the hub asked for.
    Later(HubError, Option<Duration>),
    /// The server sends only whole files.
    NoRanges,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// A hub's address and how it is spoken to.
pub(super) struct Client {
    http: reqwest::Client,
    pub(super) site: Site,
    pub(super) endpoint: String,
    token: Option<String>,
    bucket: S3Access,
    pub(super) first_wait: Duration,
    pub(super) throttle: Arc<Throttle>,
}

impl Client {
    /// Proxies and CA certificates are the system's.
    pub(super) fn new(site: Site, endpoint: Option<&str>, token: Option<String>) -> Result<Self, HubError> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .user_agent(concat!("qwen-engine/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| HubError::Client(reason(&error.without_url())))?;
        let endpoint = endpoint
            .filter(|endpoint| !endpoint.is_empty())
            .unwrap_or(site.public())
            .trim_end_matches('/')
            .to_owned();
        let url = Url::parse(&endpoint).ok();
        if !url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()) {
            return Err(HubError::Endpoint { site, endpoint });
        }
        Ok(Self {
            http,
            site,
            endpoint,
            token: token.filter(|token| !token.is_empty()),
            bucket: S3Access::default(),
            first_wait: Duration::from_secs(1),
            throttle: Arc::default(),
        })
    }

    /// The same for buckets: what signs their requests takes the place of a token.
    pub(super) fn of_buckets(bucket: S3Access) -> Result<Self, HubError> {
        let usual = format!("https://s3.{}.amazonaws.com", bucket.region());
        let given = bucket.endpoint.as_deref().filter(|given| !given.is_empty());
        // Checked with a bucket's name in the place of one, and kept without.
        let endpoint = given.unwrap_or(&usual).trim_end_matches('/').to_owned();
        let checked = Self::new(Site::S3, Some(&endpoint.replace("{bucket}", "bucket")), None)?;
        Ok(Self {
            endpoint,
            bucket,
            ..checked
        })
    }

    /// The text at `url`, with as many attempts as it takes.
    pub(super) async fn text(&self, url: &str) -> Result<String, HubError> {
        let mut failures = 0;
        loop {
            let answer = async {
                let response = self.get(url, None, None).await?;
                response.text().await.map_err(|error| self.later(url, error))
            };
            match answer.await {
                Ok(text) => return Ok(text),
                Err(failure) => self.pause(failure, &mut failures).await?,
            }
        }
    }

    /// One attempt at `url`, or at these bytes of it, as long as it has this tag.
    pub(super) async fn get(
        &self,
        url: &str,
        range: Option<Range<u64>>,
        tag: Option<&str>,
    ) -> Result<Response, Failure> {
        let mut request = self.http.get(url);
        if let Some(token) = &self.token {
            // Neither header follows a redirect to another host, such as the one that holds the weights.
            request = request.bearer_auth(token);
            if self.site == Site::ModelScope {
                request = request.header(header::COOKIE, format!("m_session_id={token}"));
            }
        }
        if let (Site::S3, Ok(url)) = (self.site, Url::parse(url)) {
            for (name, value) in self.bucket.signed(&url, Vec::new(), Timestamp::now()) {
                request = request.header(name, value);
            }
        }
        if let Some(tag) = tag {
            request = request.header(header::IF_MATCH, tag);
        }
        if let Some(Range { start, end }) = range {
            request = request.header(header::RANGE, format!("bytes={start}-{}", end - 1));
        }
        let response = request.send().await.map_err(|error| self.later(url, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(url, &response))
    }

    /// What a status that is no success means.
    fn refused(&self, url: &str, response: &Response) -> Failure {
        let status = response.status();
        let refused = |hint: String| HubError::Refused {
            url: url.into(),
            status,
            hint,
        };
        match status {
            StatusCode::FORBIDDEN if self.site == Site::S3 => Failure::Final(refused(match self.bucket.key {
                None => "the bucket is not public; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (spec.model.s3.secretRef)".into(),
                Some(_) => "the key may not read the bucket; check AWS_ACCESS_KEY_ID, its secret, the region, the bucket's policy and this machine's clock".into(),
            })),
            StatusCode::PRECONDITION_FAILED => Failure::Final(refused(
                "the file was replaced while it was downloaded; start again".into(),
            )),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Final(refused(match self.token {
                None => format!(
                    "the model is gated, private or does not exist; set {} to a token that may read it",
                    self.site.token_name()
                ),
                Some(_) => "the token may not read this model; ask for access on the model's page or use another token".into(),
            })),
            StatusCode::NOT_FOUND => Failure::Final(refused(
                "there is no such model, revision or file; check the names".into(),
            )),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::Later(
                refused("too many requests; try again later".into()),
                retry_after(response),
            ),
            _ if status.is_server_error() => Failure::Later(
                self.unreachable(url, format!("the hub answered {status}")),
                retry_after(response),
            ),
            _ => Failure::Final(refused(format!(
                "this was not expected; check {}",
                self.site.endpoint_names()
            ))),
        }
    }

    pub(super) fn unreachable(&self, url: &str, reason: String) -> HubError {
        HubError::Unreachable {
            site: self.site,
            url: url.into(),
            reason,
        }
    }

    /// What a failed exchange means: only a certificate does not get better with time.
    pub(super) fn later(&self, url: &str, error: reqwest::Error) -> Failure {
        // After a redirect the error's URL carries a signature.
        let error = error.without_url();
        let reason = reason(&error);
        if is_certificate(&error) {
            let url = url.into();
            return Failure::Final(HubError::Certificate { url, reason });
        }
        Failure::Later(self.unreachable(url, reason), None)
    }

    /// Waits before the next attempt, or gives the failure back when there is none.
    pub(super) async fn pause(&self, failure: Failure, failures: &mut u32) -> Result<(), HubError> {
        let (error, asked) = match failure {
            Failure::Later(error, asked) if *failures + 1 < ATTEMPTS => (error, asked),
            Failure::Later(error, _) | Failure::Final(error) => return Err(error),
            Failure::NoRanges => return Ok(()),
        };
        let wait = wait(self.first_wait, *failures, asked);
        *failures += 1;
        if let HubError::Refused {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..
        } = error
        {
            self.throttle.note(wait);
        }
        tracing::warn!(%error, wait_seconds = wait.as_secs_f64(), "the download goes on after a wait");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The wait after so many failures before: doubled each time, and never shorter than what the hub asked for. Both are
/// spread, so that many clients do not come back at once.
fn wait(first: Duration, failures: u32, asked: Option<Duration>) -> Duration {
    let grown = (first * 2_u32.pow(failures.min(16))).min(LONGEST_WAIT);
    let spread = grown.mul_f64(rand::random_range(0.75..1.25));
    let asked = asked.map(|asked| asked.min(LONGEST_ASKED).mul_f64(rand::random_range(1.0..1.25)));
    asked.map_or(spread, |asked| asked.max(spread))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    asked(text, Timestamp::now())
}

/// Retry-After in either form: seconds, or a date.
fn asked(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(text).ok()?;
    // A date that has passed asks for no wait.
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// The error with its causes.
fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Whether the server's certificate is the cause.
fn is_certificate(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(next) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = next.downcast_ref() {
            return true;
        }
        // io::Error leaves out the error that it wraps and names only that one's source.
        let wrapped = next.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = wrapped.map_or_else(|| next.source(), |wrapped| Some(wrapped));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        for (text, seconds) in [
            ("7", Some(7)),
            ("Wed, 25 Nov 2026 10:00:30 GMT", Some(30)),
            ("Wed, 25 Nov 2026 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(asked(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn an_endpoint_is_a_url() {
        let client = |endpoint| Client::new(Site::HuggingFace, Some(endpoint), None);
        for bad in [
            "foo",
            "hub.example",
            "hub.example:80",
            "ftp://hub.example",
            "https://",
        ] {
            let error = client(bad).err().unwrap().to_string();
            assert!(error.contains("HF_ENDPOINT"), "{error}");
        }
        for good in ["", "https://hub.example/", "http://127.0.0.1:1/mirror"] {
            assert!(client(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn waits_grow_to_a_bound_and_are_never_shorter_than_asked() {
        let first = Duration::from_secs(1);
        let bounds = |wait: Duration, low: u64, high: u64| {
            assert!(
                (Duration::from_secs(low)..=Duration::from_secs(high)).contains(&wait),
                "{wait:?}"
            );
        };
        bounds(wait(first, 0, None), 0, 2);
        bounds(wait(first, 3, None), 6, 10);
        bounds(wait(first, 30, None), 45, 75);
        bounds(wait(first, 0, Some(Duration::from_secs(20))), 20, 25);
        bounds(wait(first, 3, Some(Duration::ZERO)), 6, 10);
        bounds(wait(first, 0, Some(Duration::from_secs(86_400))), 300, 375);
        let asked = |_| wait(first, 0, Some(Duration::from_secs(20)));
        let waits: std::collections::BTreeSet<_> = (0..8).map(asked).collect();
        assert!(waits.len() > 1, "all come back at the same time: {waits:?}");
    }
}
