//! Downloads models from the Hugging Face hub's HTTP interface: resumed when cut, checked, and whole before they are seen.
use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Response, StatusCode, header};
use serde::Deserialize;

mod part;
use part::Part;

const PUBLIC: &str = "https://huggingface.co";
/// Attempts without a single new byte before giving up; with the doubling waits about two minutes.
const ATTEMPTS: u32 = 8;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Files beside the weights that an engine reads.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "modules.json",
    "model.safetensors.index.json",
];

/// Why a download failed; one sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No HTTP client could be made, for example because the system has no CA certificates.
    #[error("cannot set up HTTPS for the model hub: {0}")]
    Client(String),
    /// The revision has characters that no branch, tag or commit has.
    #[error("revision {0:?} is not a branch, tag or commit; use for example main")]
    Revision(String),
    /// The hub cannot be reached, or stopped answering.
    #[error(
        "cannot read {url}: {reason}; check the network and --hf-endpoint (HF_ENDPOINT; spec.model.endpoint)"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What failed.
        reason: String,
    },
    /// The hub refused.
    #[error("the hub answered {status} to {url}: {hint}")]
    Refused {
        /// What was asked for.
        url: String,
        /// Its status.
        status: StatusCode,
        /// What to do.
        hint: &'static str,
    },
    /// The answer is not what the hub's interface promises.
    #[error(
        "{url} did not answer as a model hub does: {reason}; check --hf-endpoint (HF_ENDPOINT; spec.model.endpoint)"
    )]
    Answer {
        /// What was asked for.
        url: String,
        /// What is missing.
        reason: String,
    },
    /// The repository holds no safetensors.
    #[error("{0} has no model.safetensors file; only safetensors weights can be served")]
    NoWeights(String),
    /// A downloaded file is not what the hub says it is.
    #[error("{file} has {found} and the hub says {expected}; it was removed, start again")]
    WrongBytes {
        /// The file's name.
        file: String,
        /// Its size or checksum.
        expected: String,
        /// What came.
        found: String,
    },
    /// The disk failed or is full.
    #[error("cannot write {path}: {reason}; free space or give another --download-dir")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// A failed attempt: final, or worth another one after the wait that the hub asked for.
enum Failure {
    Final(HubError),
    Later(HubError, Option<Duration>),
}

/// What the hub knows about a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Remote>,
}

/// A file of a revision.
#[derive(Deserialize)]
struct Remote {
    rfilename: String,
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// A client of one hub.
pub struct Hub {
    client: reqwest::Client,
    endpoint: String,
    token: Option<String>,
    first_wait: Duration,
}

impl Hub {
    /// A client of the hub at `endpoint` (`None`: the public one). Proxies and CA certificates are the system's.
    pub fn new(endpoint: Option<&str>, token: Option<String>) -> Result<Self, HubError> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .user_agent(concat!("qwen-engine/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| HubError::Client(reason(error)))?;
        let endpoint = endpoint
            .filter(|endpoint| !endpoint.is_empty())
            .unwrap_or(PUBLIC)
            .trim_end_matches('/')
            .to_owned();
        Ok(Self {
            client,
            endpoint,
            token: token.filter(|token| !token.is_empty()),
            first_wait: Duration::from_secs(1),
        })
    }

    /// Waits `wait` after the first failed attempt and twice as long after each further one.
    #[must_use]
    pub fn first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait;
        self
    }

    /// The directory with the files of `repo` at `revision` below `kept`, after fetching what is missing there.
    /// Several processes may share `kept`: one downloads, the others wait for it.
    pub async fn download(
        &self,
        repo: &str,
        revision: &str,
        kept: &Path,
        progress: impl Fn(u64, u64) + Sync,
    ) -> Result<PathBuf, HubError> {
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || !revision.chars().all(valid) {
            return Err(HubError::Revision(revision.into()));
        }
        let home = kept.join(repo.replace('/', "--"));
        std::fs::create_dir_all(home.join("refs")).map_err(disk(&home))?;
        let _lock = lock(home.join("lock")).await?;
        // Written after the last file of its revision, so it also says that everything is there.
        let reference = home.join("refs").join(revision.replace('/', "--"));
        let known = std::fs::read_to_string(&reference)
            .ok()
            .map(|commit| home.join(commit.trim()));
        if let (Some(dir), true) = (&known, is_commit(revision)) {
            return Ok(dir.clone());
        }
        let found = match (self.revision(repo, revision).await, known) {
            (Err(error @ HubError::Unreachable { .. }), Some(dir)) => {
                tracing::warn!(%error, "the hub cannot be asked for news; what was downloaded before is served");
                return Ok(dir);
            }
            (found, _) => found?,
        };
        let dir = home.join(&found.sha);
        std::fs::create_dir_all(&dir).map_err(disk(&dir))?;
        self.fetch_all(repo, &found, &dir, progress).await?;
        std::fs::write(&reference, &found.sha).map_err(disk(&reference))?;
        Ok(dir)
    }

    async fn revision(&self, repo: &str, revision: &str) -> Result<Revision, HubError> {
        let url = format!(
            "{}/api/models/{repo}/revision/{}?blobs=true",
            self.endpoint,
            revision.replace('/', "%2F")
        );
        let mut failures = 0;
        let text = loop {
            let answer = async {
                self.get(&url, 0)
                    .await?
                    .text()
                    .await
                    .map_err(|error| later(&url, error))
            };
            match answer.await {
                Ok(text) => break text,
                Err(failure) => self.pause(failure, &mut failures).await?,
            }
        };
        let answer = |reason: String| HubError::Answer {
            url: url.clone(),
            reason,
        };
        let mut found: Revision = serde_json::from_str(&text).map_err(|error| answer(error.to_string()))?;
        if !is_commit(&found.sha) {
            return Err(answer(format!("{:?} is not a commit", found.sha)));
        }
        found.siblings.retain(|file| is_wanted(&file.rfilename));
        // Small files first: a model of another architecture is seen before gigabytes came.
        found.siblings.sort_by_key(|file| is_weights(&file.rfilename));
        match found.siblings.last() {
            Some(last) if is_weights(&last.rfilename) => Ok(found),
            _ => Err(HubError::NoWeights(format!("hf://{repo}"))),
        }
    }

    async fn fetch_all(
        &self,
        repo: &str,
        revision: &Revision,
        dir: &Path,
        progress: impl Fn(u64, u64) + Sync,
    ) -> Result<(), HubError> {
        let total = revision.siblings.iter().map(|file| file.size).sum();
        let mut before = 0;
        for file in &revision.siblings {
            let target = dir.join(&file.rfilename);
            if !std::fs::metadata(&target).is_ok_and(|found| found.len() == file.size) {
                let url = format!(
                    "{}/{repo}/resolve/{}/{}",
                    self.endpoint, revision.sha, file.rfilename
                );
                self.fetch(&url, file, &target, |done| progress(before + done, total))
                    .await?;
            }
            before += file.size;
            progress(before, total);
        }
        Ok(())
    }

    /// Downloads one file into `target.part` and renames it when it is whole and right.
    async fn fetch(
        &self,
        url: &str,
        file: &Remote,
        target: &Path,
        report: impl Fn(u64) + Sync,
    ) -> Result<(), HubError> {
        let mut part = Part::open(target).await?;
        let mut failures = 0;
        while part.len() != file.size {
            let before = part.len();
            if let Err(failure) = self.append(url, &mut part, file, &report).await {
                if part.len() > before {
                    failures = 0;
                }
                self.pause(failure, &mut failures).await?;
            }
        }
        part.finish(&file.rfilename, file.lfs.as_ref().map(|lfs| lfs.sha256.as_str()))
            .await
    }

    /// Streams the rest of a file after what `part` has.
    async fn append(
        &self,
        url: &str,
        part: &mut Part,
        file: &Remote,
        report: &(impl Fn(u64) + Sync),
    ) -> Result<(), Failure> {
        if part.len() > file.size {
            part.restart().await?;
        }
        let mut response = self.get(url, part.len()).await?;
        if part.len() > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            part.restart().await?;
        }
        while let Some(bytes) = response.chunk().await.map_err(|error| later(url, error))? {
            if part.len() + bytes.len() as u64 > file.size {
                part.restart().await?;
                let found = "more bytes".into();
                return Err(Failure::Final(HubError::WrongBytes {
                    file: file.rfilename.clone(),
                    expected: format!("{} bytes", file.size),
                    found,
                }));
            }
            part.write(&bytes).await?;
            report(part.len());
        }
        if part.len() < file.size {
            let reason = format!("it ended after {} of {} bytes", part.len(), file.size);
            return Err(Failure::Later(
                HubError::Unreachable {
                    url: url.into(),
                    reason,
                },
                None,
            ));
        }
        Ok(())
    }

    /// One attempt at `url` from byte `from` on.
    async fn get(&self, url: &str, from: u64) -> Result<Response, Failure> {
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await.map_err(|error| later(url, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let refused = |hint| HubError::Refused {
            url: url.into(),
            status,
            hint,
        };
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.token.is_none() => {
                Failure::Final(refused(
                    "the model is gated, private or does not exist; set HF_TOKEN to a token that may read it",
                ))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Final(refused(
                "the token may not read this model; ask for access on the model's page or use another token",
            )),
            StatusCode::NOT_FOUND => Failure::Final(refused(
                "there is no such model, revision or file; check the names",
            )),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::Later(
                refused("too many requests; try again later"),
                retry_after(&response),
            ),
            _ if status.is_server_error() => {
                let reason = format!("the hub answered {status}");
                Failure::Later(
                    HubError::Unreachable {
                        url: url.into(),
                        reason,
                    },
                    retry_after(&response),
                )
            }
            _ => Failure::Final(refused(
                "this was not expected; check --hf-endpoint (HF_ENDPOINT; spec.model.endpoint)",
            )),
        })
    }

    /// Waits before the next attempt, or gives the error back when there is none.
    async fn pause(&self, failure: Failure, failures: &mut u32) -> Result<(), HubError> {
        let (error, asked) = match failure {
            Failure::Later(error, asked) if *failures + 1 < ATTEMPTS => (error, asked),
            Failure::Later(error, _) | Failure::Final(error) => return Err(error),
        };
        let wait = asked
            .unwrap_or(self.first_wait * 2_u32.pow(*failures))
            .min(LONGEST_WAIT);
        *failures += 1;
        tracing::warn!(%error, wait_seconds = wait.as_secs_f64(), "the download goes on after a wait");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

fn later(url: &str, error: reqwest::Error) -> Failure {
    Failure::Later(
        HubError::Unreachable {
            url: url.into(),
            reason: reason(error),
        },
        None,
    )
}

/// The error with its causes but without its URL, which after a redirect carries a signature.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_weights(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/')
}

fn is_wanted(name: &str) -> bool {
    SMALL_FILES.contains(&name) || is_weights(name)
}

/// The exclusive lock on a file, kept until the result is dropped.
async fn lock(path: PathBuf) -> Result<File, HubError> {
    let file = File::create(&path).map_err(disk(&path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            tracing::info!(path = %path.display(), "another process downloads this model; waiting for it")
        }
        Err(TryLockError::Error(error)) => {
            // Some network file systems have no locks; then two downloads at once are the user's risk.
            tracing::warn!(path = %path.display(), %error, "no lock on the download directory");
            return Ok(file);
        }
    }
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(io::Error::other).flatten().map_err(disk(&path))
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |reason| HubError::Disk { path, reason }
}
