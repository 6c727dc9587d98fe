//! Keys in a file, as a Kubernetes Secret mounts them: read again as they change, by a look at most once a second.
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::auth::{KeyDigest, digest};

/// How long a change may go unnoticed. Only requests look, so an idle server reads nothing.
const GRAIN: Duration = Duration::from_secs(1);

/// Why a file gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system's reason.
    #[error(
        "cannot read {flag} {path}: {error}; mount a readable file with one key a line",
        path = path.display()
    )]
    Unreadable {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Nothing but comments and blank lines.
    #[error(
        "{flag} {path} holds no key; write one key a line, or leave {flag} out",
        path = path.display()
    )]
    Empty {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
    },
}

pub(super) struct KeyFile {
    flag: &'static str,
    path: PathBuf,
    state: Mutex<Known>,
}

struct Known {
    keys: Arc<[KeyDigest]>,
    looked: Instant,
    /// Whether the last look failed, which is logged once.
    failing: bool,
}

impl KeyFile {
    pub(super) fn open(flag: &'static str, path: &Path, now: Instant) -> Result<Self, KeyFileError> {
        let known = Known {
            keys: read(flag, path)?,
            looked: now,
            failing: false,
        };
        Ok(Self {
            flag,
            path: path.to_owned(),
            state: Mutex::new(known),
        })
    }

    /// The keys in force. Content is compared, not time stamps: a Secret's update swaps a link, an editor writes in
    /// place. A file that cannot be read, or is empty, leaves the last good keys in force.
    pub(super) fn keys(&self, now: Instant) -> Arc<[KeyDigest]> {
        let mut known = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(known.looked) >= GRAIN {
            known.looked = now;
            match read(self.flag, &self.path) {
                Ok(keys) => {
                    if known.failing || keys != known.keys {
                        info!(file = %self.path.display(), count = keys.len(), "{} was read again", self.flag);
                    }
                    (known.keys, known.failing) = (keys, false);
                }
                Err(error) => {
                    if !known.failing {
                        warn!("{error}; the keys read before stay in force");
                    }
                    known.failing = true;
                }
            }
        }
        known.keys.clone()
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Arc<[KeyDigest]>, KeyFileError> {
    let path = || path.to_owned();
    let text = std::fs::read_to_string(path()).map_err(|error| KeyFileError::Unreadable {
        flag,
        path: path(),
        error,
    })?;
    // Editors on Windows begin a file with a byte order mark.
    let keys: Arc<[KeyDigest]> = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(digest)
        .collect();
    match keys.is_empty() {
        true => Err(KeyFileError::Empty { flag, path: path() }),
        false => Ok(keys),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::super::auth::ApiKeys;
    use super::*;

    const FLAG: &str = "--api-key-file";

    fn admits(keys: &ApiKeys, key: &str, now: Instant) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
        keys.admit(&headers, now).is_some()
    }

    #[test]
    fn keys_follow_the_file_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("keys");
        // As the kubelet does it: a new folder, then a link that is swapped.
        let publish = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let fresh = folder.path().join("fresh");
            std::os::unix::fs::symlink(&file, &fresh).unwrap();
            std::fs::rename(&fresh, &link).unwrap();
        };
        publish("1", "# of team A\n\none\r\n  two  \n");
        let keys = ApiKeys::new(&["given".to_owned()])
            .with_file(FLAG, &link)
            .unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        for key in ["one", "two", "given"] {
            assert!(admits(&keys, key, start), "{key}");
        }
        for key in ["", "# of team A", "on", "one "] {
            assert_eq!(admits(&keys, key, start), key.trim() == "one", "{key:?}");
        }
        publish("2", "three\n");
        for (key, admitted) in [("one", false), ("three", true), ("given", true)] {
            assert_eq!(admits(&keys, key, after(2)), admitted, "{key}");
        }
        publish("3", "# nothing\n");
        assert!(admits(&keys, "three", after(4)) && !admits(&keys, "", after(4)));
        std::fs::remove_file(&link).unwrap();
        assert!(admits(&keys, "three", after(6)) && !admits(&keys, "one", after(6)));
        publish("4", "\u{feff}four");
        assert!(admits(&keys, "four", after(8)) && !admits(&keys, "three", after(8)));
    }

    #[test]
    fn a_file_without_keys_is_no_open_door() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let error = |path: &Path| {
            ApiKeys::default()
                .with_file(FLAG, path)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(error(&path).starts_with("cannot read --api-key-file"));
        for text in ["", " \n# none\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(error(&path).contains("holds no key"), "{}", error(&path));
        }
    }
}
