//! A file on its way: `NAME.part` with the bytes, `NAME.part.ranges` with which of them are there; checked and renamed at the end.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    HubError,
    cache::Lock,
    disk,
    listing::{Checksum, Remote, hex},
};

/// The growing file. Several connections write to it, each into its own range.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    ranges: PathBuf,
    target: PathBuf,
    size: u64,
    state: Mutex<State>,
    /// Held until the last thread is done with the file, also when the download ends early.
    _lock: Arc<Lock>,
}

struct State {
    journal: File,
    have: Ranges,
}

impl Part {
    /// Opens the part of `target`, with what an earlier run left.
    pub(super) fn open(target: &Path, size: u64, lock: &Arc<Lock>) -> Result<Self, HubError> {
        let path = with_suffix(target, &format!("{}.part", lock.infix()));
        let ranges = with_suffix(&path, ".ranges");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(disk(&path))?;
        let held = file.metadata().map_err(disk(&path))?.len().min(size);
        let have = Ranges::parse(&fs::read_to_string(&ranges).unwrap_or_default(), held);
        let journal = OpenOptions::new().append(true).create(true).open(&ranges);
        let journal = journal.map_err(disk(&ranges))?;
        Ok(Self {
            file,
            path,
            ranges,
            target: target.to_owned(),
            size,
            state: Mutex::new(State { journal, have }),
            _lock: lock.clone(),
        })
    }

    /// Bytes that are there.
    pub(super) fn done(&self) -> u64 {
        self.with(|state| state.have.0.iter().map(|range| range.end - range.start).sum())
    }

    /// What is missing, in pieces of at most `most` bytes.
    pub(super) fn missing(&self, most: u64) -> Vec<Range<u64>> {
        self.with(|state| state.have.missing(self.size, most))
    }

    /// Writes at `at`. Blocks; the loader's thread has nothing else to do.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all_at(bytes, at).map_err(disk(&self.path))
    }

    /// Notes that `range` is written, for a later process.
    pub(super) fn record(&self, range: Range<u64>) -> Result<(), HubError> {
        if range.is_empty() {
            return Ok(());
        }
        let line = format!("{} {}\n", range.start, range.end);
        self.with(|state| {
            state.have.insert(range);
            state.journal.write_all(line.as_bytes())
        })
        .map_err(disk(&self.ranges))
    }

    /// Forgets everything so far.
    pub(super) fn restart(&self) -> Result<(), HubError> {
        self.with(|state| {
            state.have = Ranges::default();
            state.journal.set_len(0)
        })
        .map_err(disk(&self.ranges))?;
        self.file.set_len(0).map_err(disk(&self.path))
    }

    /// Checks the bytes and gives the file its name. Wrong bytes are removed.
    pub(super) async fn finish(self, remote: &Remote) -> Result<(), HubError> {
        let (name, checksum) = (remote.name.clone(), remote.checksum.clone());
        // On a thread of its own: other files go on while this one is read.
        let work = tokio::task::spawn_blocking(move || self.check_and_rename(name, checksum));
        work.await.map_err(|error| HubError::Client(error.to_string()))?
    }

    fn check_and_rename(self, name: String, checksum: Option<Checksum>) -> Result<(), HubError> {
        let found = match &checksum {
            None => None,
            Some(Checksum::Sha256(sum)) => {
                let found = self.hash(Sha256::new()).map_err(disk(&self.path))?;
                Some(("sha256", sum, found))
            }
            Some(Checksum::GitBlob(sum)) => {
                let begun = Sha1::new_with_prefix(format!("blob {}\0", self.size));
                let found = self.hash(begun).map_err(disk(&self.path))?;
                Some(("git blob id", sum, found))
            }
        };
        if let Some((kind, expected, found)) = found
            && !expected.eq_ignore_ascii_case(&found)
        {
            fs::remove_file(&self.path).map_err(disk(&self.path))?;
            fs::remove_file(&self.ranges).map_err(disk(&self.ranges))?;
            return Err(HubError::WrongBytes {
                file: name,
                expected: format!("{kind} {expected}"),
                found: format!("{kind} {found}"),
            });
        }
        self.file.sync_all().map_err(disk(&self.path))?;
        fs::rename(&self.path, &self.target).map_err(disk(&self.target))?;
        fs::remove_file(&self.ranges).map_err(disk(&self.ranges))
    }

    fn hash(&self, mut hash: impl Digest) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        Ok(hex(&hash.finalize()))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // Nothing panics while it holds the lock, and half a change would only cost a range.
        work(&mut self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Ranges of bytes, in order and apart from each other.
#[derive(Debug, Default, PartialEq)]
struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Reads the journal. A line that was cut by a kill is wrong or tells less than what is there, never more.
    fn parse(text: &str, held: u64) -> Self {
        let mut ranges = Self::default();
        for line in text.lines() {
            if let Some((start, end)) = line.split_once(' ')
                && let (Ok(start), Ok(end)) = (start.parse::<u64>(), end.parse::<u64>())
                && start < end.min(held)
            {
                ranges.insert(start..end.min(held));
            }
        }
        ranges
    }

    fn insert(&mut self, mut new: Range<u64>) {
        self.0.retain(|old| {
            let apart = old.end < new.start || new.end < old.start;
            if !apart {
                new = old.start.min(new.start)..old.end.max(new.end);
            }
            apart
        });
        let place = self.0.partition_point(|old| old.start < new.start);
        self.0.insert(place, new);
    }

    fn missing(&self, size: u64, most: u64) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        for next in self.0.iter().cloned().chain(std::iter::once(size..size)) {
            while at < next.start {
                let end = next.start.min(at + most);
                pieces.push(at..end);
                at = end;
            }
            at = next.end;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_torn_journal_never_tells_more_than_there_is() {
        let whole = "0 100\n300 500\n";
        for cut in 0..whole.len() {
            // What a killed process began to write, and what the next one appended.
            let text = format!("{}700 800\n", &whole[..cut]);
            let ranges = Ranges::parse(&text, 1000);
            for range in &ranges.0 {
                let told = [0..100, 300..500, 700..800];
                assert!(
                    told.iter()
                        .any(|true_one| true_one.start <= range.start && range.end <= true_one.end),
                    "{text:?}: {range:?}"
                );
            }
        }
        assert_eq!(
            Ranges::parse("0 100\n", 60).missing(100, 100),
            Ranges::parse("0 60\n", 100).missing(100, 100)
        );
    }

    #[tokio::test]
    async fn without_locks_two_write_files_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("config.json");
        let open =
            |unique: &str| Part::open(&target, 3, &Arc::new(Lock::Unsupported(unique.into()))).unwrap();
        let remote = Remote {
            name: "config.json".into(),
            size: 3,
            // Of "abc".
            checksum: Some(Checksum::GitBlob(
                "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f".into(),
            )),
            url: String::new(),
            tag: None,
        };
        let (one, other) = (open("a"), open("b"));
        one.write(0, b"abc").unwrap();
        other.write(0, b"ab").unwrap();
        one.finish(&remote).await.unwrap();
        other.write(2, b"c").unwrap();
        other.finish(&remote).await.unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn what_is_missing_and_what_is_there_make_up_the_file(
            ranges in prop::collection::vec((0_u64..200, 1_u64..60), 0..20),
            most in 1_u64..100,
        ) {
            let size = 260;
            let mut have = Ranges::default();
            let mut bytes = [false; 260];
            for (start, length) in ranges {
                have.insert(start..start + length);
                bytes[start as usize..(start + length) as usize].fill(true);
            }
            for range in have.missing(size, most) {
                prop_assert!(range.end - range.start <= most);
                for at in range {
                    prop_assert!(!std::mem::replace(&mut bytes[at as usize], true));
                }
            }
            prop_assert!(bytes.iter().all(|there| *there));
        }
    }
}
