//! Why a download failed, each in one sentence for the user.
use std::{
    io,
    path::{Path, PathBuf},
};

use reqwest::StatusCode;

use super::Site;

/// Why a download failed; one sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No HTTP client could be made, for example because the system has no CA certificates.
    #[error("cannot set up HTTPS for the model hub: {0}")]
    Client(String),
    /// The revision has characters that no branch, tag or commit has.
    #[error("revision {revision:?} is not a branch, tag or commit; use for example {}", .site.default_revision())]
    Revision {
        /// Whose revision.
        site: Site,
        /// What was given.
        revision: String,
    },
    /// The base URL is none.
    #[error("{endpoint:?} is not the URL of a model hub; give {} as for example https://hub.example", .site.endpoint_names())]
    Endpoint {
        /// Which hub.
        site: Site,
        /// What was given.
        endpoint: String,
    },
    /// The hub cannot be reached, or stopped answering.
    #[error("cannot read {url}: {reason}; check the network and {}", .site.endpoint_names())]
    Unreachable {
        /// Which hub.
        site: Site,
        /// What was asked for.
        url: String,
        /// What failed.
        reason: String,
    },
    /// The server's certificate is not one that this machine trusts.
    #[error(
        "cannot read {url}: {reason}; if that is your own mirror, name a file with its CA certificate in SSL_CERT_FILE"
    )]
    Certificate {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
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
        hint: String,
    },
    /// The answer is not what the hub's interface promises.
    #[error("{url} did not answer as a model hub does: {reason}; check {}", .site.endpoint_names())]
    Answer {
        /// Which hub.
        site: Site,
        /// What was asked for.
        url: String,
        /// What is missing.
        reason: String,
    },
    /// The files of a bucket are others than those that were asked for.
    #[error(
        "{repo} holds other files by now, their state is {found} and not {asked}; put those of before back, or set --revision (spec.model.revision) to {found}"
    )]
    Replaced {
        /// The model.
        repo: String,
        /// The state that was asked for.
        asked: String,
        /// The state that is there.
        found: String,
    },
    /// The repository holds no safetensors.
    #[error("{0} has no model.safetensors file; only safetensors weights can be served")]
    NoWeights(String),
    /// The index names a file that the repository does not have.
    #[error("{repo} is not whole: {reason}; choose another revision")]
    Index {
        /// The model.
        repo: String,
        /// What is wrong.
        reason: String,
    },
    /// Offline, and the model is not here.
    #[error(
        "{repo} at revision {revision} is not whole in {path} and --offline (HF_HUB_OFFLINE) forbids to download it; start once without it, or name a directory with the model"
    )]
    Offline {
        /// The model.
        repo: String,
        /// Its revision.
        revision: String,
        /// Where it would be.
        path: PathBuf,
    },
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
    /// There is less space than the model needs.
    #[error(
        "the download needs {needed} more bytes in {path} and {free} are free; free space or give another --download-dir"
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes that the disk takes.
        free: u64,
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

/// Says which file could not be written.
pub(super) fn disk(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |reason| HubError::Disk { path, reason }
}
