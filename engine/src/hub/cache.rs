//! One model's place on the disk: snapshots by commit, which of them are whole, and who may write.
//!
//! `COMMIT/` holds the files of one state of the repository and, once all of them are there, `COMMIT/.whole`;
//! `refs/REVISION` names the commit that a branch or tag had when it was last asked for; `lock` is held while writing.
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    HubError, Site, disk,
    listing::{Remote, is_commit},
};

/// After so long nobody goes on with a snapshot that is not whole.
const STALE: Duration = Duration::from_secs(24 * 3600);
const WHOLE: &str = ".whole";

/// The directory of one model.
pub(super) struct Home {
    dir: PathBuf,
}

/// The right to write, as long as it lives.
pub(super) enum Lock {
    /// Nobody else writes.
    Held {
        #[allow(dead_code, reason = "closing the file gives the lock back")]
        file: File,
    },
    /// The file system has no locks: this becomes part of the names of files on their way, so that every process
    /// writes files of its own.
    Unsupported(String),
}

impl Lock {
    /// What comes before `.part`.
    pub(super) fn infix(&self) -> String {
        match self {
            Self::Held { .. } => String::new(),
            Self::Unsupported(unique) => format!(".{unique}"),
        }
    }
}

impl Home {
    pub(super) fn new(kept: &Path, site: Site, repo: &str) -> Self {
        let kept = match site {
            Site::HuggingFace => kept.to_owned(),
            // The same name may be another model there.
            Site::ModelScope => kept.join("modelscope"),
            Site::S3 => kept.join("s3"),
        };
        Self {
            dir: kept.join(repo.replace('/', "--")),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.dir.join("refs").join(revision.replace('/', "%2F"))
    }

    /// The snapshot of `revision`, if every file of it is there in its full size.
    pub(super) fn whole(&self, revision: &str) -> Option<PathBuf> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(self.reference(revision)).ok()?
        };
        let dir = self.snapshot(&commit);
        let text = fs::read_to_string(dir.join(WHOLE)).ok()?;
        let files: BTreeMap<String, u64> = serde_json::from_str(&text).ok()?;
        let there = |(name, size): (&String, &u64)| has(&dir.join(name), *size);
        files.iter().all(there).then_some(dir)
    }

    /// Waits for the right to write here; makes the directories.
    pub(super) async fn lock(&self) -> Result<Lock, HubError> {
        let refs = self.dir.join("refs");
        fs::create_dir_all(&refs).map_err(disk(&refs))?;
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(disk(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Lock::Held { file }),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(path = %path.display(), "another process downloads this model; waiting for it")
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "no lock on the download directory; nothing is resumed there");
                return Ok(Lock::Unsupported(format!("{:016x}", rand::random::<u64>())));
            }
        }
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        let file = locked.map_err(io::Error::other).flatten().map_err(disk(&path))?;
        Ok(Lock::Held { file })
    }

    /// Says that all `files` of `commit`, the state of `revision`, are there.
    pub(super) fn publish(&self, revision: &str, commit: &str, files: &[Remote]) -> Result<(), HubError> {
        let sizes: BTreeMap<&str, u64> = files.iter().map(|file| (file.name.as_str(), file.size)).collect();
        let whole = self.snapshot(commit).join(WHOLE);
        let text = serde_json::to_string(&sizes).map_err(io::Error::other);
        text.and_then(|text| replace(&whole, &text))
            .map_err(disk(&whole))?;
        let reference = self.reference(revision);
        replace(&reference, commit).map_err(disk(&reference))
    }

    /// Removes what broken downloads left a day ago. Errors only leave it there.
    pub(super) fn clean(&self, current: &Path) {
        for dir in entries(&self.dir).filter(|path| path.is_dir() && !path.ends_with("refs")) {
            let newest = entries(&dir)
                .chain([dir.clone()])
                .filter_map(|path| modified(&path))
                .max();
            if dir != current && !dir.join(WHOLE).exists() && newest.is_some_and(is_stale) {
                tracing::info!(path = %dir.display(), "removing what a broken download left");
                let _ = fs::remove_dir_all(dir);
                continue;
            }
            let parts = entries(&dir).filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.ends_with(".part") || name.ends_with(".part.ranges") || name.ends_with(".new")
            });
            for part in parts.filter(|path| modified(path).is_some_and(is_stale)) {
                let _ = fs::remove_file(part);
            }
        }
    }
}

/// Whether `path` is a file of this size.
pub(super) fn has(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// Bytes that the file system of `dir` still takes, if it says so.
pub(super) fn free(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Writes a file that is never seen half written.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{:016x}.new", rand::random::<u64>()));
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|found| found.modified()).ok()
}

fn is_stale(time: SystemTime) -> bool {
    time.elapsed().is_ok_and(|age| age > STALE)
}
