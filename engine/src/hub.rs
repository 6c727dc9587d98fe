//! Downloads models from the Hugging Face hub, from ModelScope and from buckets: resumed when cut, checked, and whole before they are seen.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod cache;
mod client;
mod error;
mod fetch;
mod listing;
mod part;
mod s3;
mod throttle;

pub use error::HubError;
pub use s3::S3Access;
pub use throttle::Throttle;

use cache::{Home, Lock};
use client::Client;
use error::disk;
use fetch::{Fetch, Tally};
use listing::{INDEX, Remote};

/// Bytes that one request asks for at most; smaller files come in one piece.
const PIECE: u64 = 64 << 20;

/// Whose interface a hub has; mirrors have the one of their original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// `hf://`
    HuggingFace,
    /// `modelscope://`
    ModelScope,
    /// `s3://`, whose repositories are folders of a bucket, and whose commits are made of their files' tags.
    S3,
}

impl Site {
    fn public(self) -> &'static str {
        match self {
            Self::HuggingFace => "https://huggingface.co",
            Self::ModelScope => "https://www.modelscope.cn",
            // In its region, which `Client::bucket` knows.
            Self::S3 => "https://s3.amazonaws.com",
        }
    }

    /// The branch that is meant where none is named.
    pub fn default_revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
            Self::S3 => "latest",
        }
    }

    /// The model's name with its scheme.
    pub(crate) fn name_of(self, repo: &str) -> String {
        match self {
            Self::HuggingFace => format!("hf://{repo}"),
            Self::ModelScope => format!("modelscope://{repo}"),
            Self::S3 => format!("s3://{repo}"),
        }
    }

    fn endpoint_names(self) -> &'static str {
        match self {
            Self::HuggingFace => "--hf-endpoint (HF_ENDPOINT; spec.model.endpoint)",
            Self::ModelScope => "--modelscope-endpoint (MODELSCOPE_ENDPOINT; spec.model.endpoint)",
            Self::S3 => "--s3-endpoint and --s3-region (AWS_ENDPOINT_URL, AWS_REGION; spec.model.s3)",
        }
    }

    fn token_name(self) -> &'static str {
        match self {
            Self::HuggingFace => "HF_TOKEN",
            Self::ModelScope => "MODELSCOPE_API_TOKEN",
            Self::S3 => "AWS_ACCESS_KEY_ID",
        }
    }
}

/// A client of one hub.
pub struct Hub {
    client: Client,
    piece: u64,
}

impl Hub {
    /// A client of the hub at `endpoint` (`None`: the public one).
    pub fn new(site: Site, endpoint: Option<&str>, token: Option<String>) -> Result<Self, HubError> {
        Ok(Self {
            client: Client::new(site, endpoint, token)?,
            piece: PIECE,
        })
    }

    /// A client of buckets.
    pub fn of_buckets(access: S3Access) -> Result<Self, HubError> {
        Ok(Self {
            client: Client::of_buckets(access)?,
            piece: PIECE,
        })
    }

    /// Waits about `wait` after the first failed attempt and twice as long after each further one.
    #[must_use]
    pub fn first_wait(mut self, wait: Duration) -> Self {
        self.client.first_wait = wait;
        self
    }

    /// Tells there how often the hub asked to wait.
    #[must_use]
    pub fn throttle(mut self, throttle: Arc<Throttle>) -> Self {
        self.client.throttle = throttle;
        self
    }

    /// Asks for at most so many bytes with one request.
    #[must_use]
    pub fn piece(mut self, bytes: u64) -> Self {
        self.piece = bytes.max(1);
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
        let site = self.client.site;
        check_revision(site, revision)?;
        let home = Home::new(kept, site, repo);
        // A commit never changes, so nobody has to be asked for news, and nothing is written.
        if let (true, Some(dir)) = (listing::is_commit(revision), home.whole(revision)) {
            return Ok(dir);
        }
        let lock = match (home.lock().await, home.whole(revision)) {
            (Err(error), Some(dir)) => {
                tracing::warn!(%error, "what was downloaded before is served");
                return Ok(dir);
            }
            (lock, _) => Arc::new(lock?),
        };
        match (
            self.update(repo, revision, &home, lock, progress).await,
            home.whole(revision),
        ) {
            (Err(error @ HubError::Unreachable { .. }), Some(dir)) => {
                tracing::warn!(%error, "the hub cannot be asked for news; what was downloaded before is served");
                Ok(dir)
            }
            (updated, _) => updated,
        }
    }

    /// The snapshot as the hub has it now.
    async fn update(
        &self,
        repo: &str,
        revision: &str,
        home: &Home,
        lock: Arc<Lock>,
        progress: impl Fn(u64, u64) + Sync,
    ) -> Result<PathBuf, HubError> {
        let found = self.client.listing(repo, revision).await?;
        // A bucket has no older states, so one that is asked for must be the one that is there.
        let site = self.client.site;
        if site == Site::S3 && ![site.default_revision(), &found.commit].contains(&revision) {
            return Err(HubError::Replaced {
                repo: site.name_of(repo),
                asked: revision.into(),
                found: found.commit,
            });
        }
        let dir = home.snapshot(&found.commit);
        std::fs::create_dir_all(&dir).map_err(disk(&dir))?;
        home.clean(&dir);
        let fetch = |total, report| Fetch {
            client: &self.client,
            piece: self.piece,
            lock: &lock,
            tally: Tally::new(total, report),
        };
        // Small files first: they say which weights are needed.
        fetch(size(&found.small), &|_, _| {})
            .all(&found.small, &dir)
            .await?;
        let index = found
            .small
            .iter()
            .any(|file| file.name == INDEX)
            .then(|| dir.join(INDEX));
        let index = index
            .map(|path| std::fs::read_to_string(&path).map_err(disk(&path)))
            .transpose()?;
        let mut files =
            listing::choose(found.weights, index.as_deref()).map_err(|reason| HubError::Index {
                repo: self.client.site.name_of(repo),
                reason,
            })?;
        files.extend(found.small);
        fetch(size(&files), &progress).all(&files, &dir).await?;
        home.publish(revision, &found.commit, &files)?;
        tracing::info!(commit = found.commit, path = %dir.display(), "the model is downloaded");
        Ok(dir)
    }
}

/// The directory with the files of `repo` at `revision` below `kept`, without asking anybody and without writing.
pub fn offline(site: Site, repo: &str, revision: &str, kept: &Path) -> Result<PathBuf, HubError> {
    check_revision(site, revision)?;
    let home = Home::new(kept, site, repo);
    home.whole(revision).ok_or_else(|| HubError::Offline {
        repo: site.name_of(repo),
        revision: revision.into(),
        path: home.dir().into(),
    })
}

/// The commit whose files a directory holds, which is its name.
pub(crate) fn commit_of(snapshot: &Path) -> String {
    let name = snapshot.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The revision becomes part of a path and of a URL.
fn check_revision(site: Site, revision: &str) -> Result<(), HubError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let begins = revision.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && revision.chars().all(valid) && !revision.contains("..") {
        return Ok(());
    }
    Err(HubError::Revision {
        site,
        revision: revision.into(),
    })
}

fn size(files: &[Remote]) -> u64 {
    files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
}
