//! Files over several connections: in pieces, resumed where they broke off, with one tally of the bytes.
use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use tokio::sync::Semaphore;

use super::{
    HubError,
    cache::{Lock, free, has},
    client::{Client, Failure},
    listing::Remote,
    part::Part,
};

/// Connections at once, whatever the number of files.
const CONNECTIONS: usize = 8;
/// After so many bytes they are noted as done: what a kill costs at most on each connection.
const NOTED: u64 = 4 << 20;

/// Bytes done of all files, reported as they come.
pub(super) struct Tally<'a> {
    done: AtomicU64,
    total: u64,
    report: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Tally<'a> {
    pub(super) fn new(total: u64, report: &'a (dyn Fn(u64, u64) + Sync)) -> Self {
        Self {
            done: AtomicU64::new(0),
            total,
            report,
        }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.report)(done, self.total);
    }

    fn take_back(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        (self.report)(done, self.total);
    }
}

/// One download: where from, and how much at once.
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) piece: u64,
    pub(super) lock: &'a Arc<Lock>,
    pub(super) tally: Tally<'a>,
}

impl Fetch<'_> {
    /// Brings all `files` into `dir`.
    pub(super) async fn all(&self, files: &[Remote], dir: &Path) -> Result<(), HubError> {
        let connections = Semaphore::new(CONNECTIONS);
        let (mut parts, mut here) = (Vec::new(), 0);
        for file in files {
            let target = dir.join(&file.name);
            if has(&target, file.size) {
                here += file.size;
            } else {
                let part = Part::open(&target, file.size, self.lock)?;
                here += part.done();
                parts.push((file, part));
            }
        }
        // In one report: the first one tells what earlier runs brought, from which the pace is reckoned.
        self.tally.add(here);
        // Better told now than after an hour.
        let needed = self
            .tally
            .total
            .saturating_sub(self.tally.done.load(Ordering::Relaxed));
        if let Some(free) = free(dir).filter(|free| *free < needed) {
            let path = dir.into();
            return Err(HubError::Space { path, needed, free });
        }
        stream::iter(parts)
            .map(|(file, part)| self.file(file, part, &connections))
            .buffer_unordered(CONNECTIONS)
            .try_collect()
            .await
    }

    async fn file(&self, file: &Remote, part: Part, connections: &Semaphore) -> Result<(), HubError> {
        let pieces = stream::iter(part.missing(self.piece))
            .map(|range| self.range(file, &part, range, connections))
            .buffer_unordered(CONNECTIONS)
            .try_collect::<()>();
        match pieces.await {
            Ok(()) => {}
            Err(Failure::Final(error) | Failure::Later(error, _)) => return Err(error),
            Err(Failure::NoRanges) => {
                tracing::info!(
                    file = file.name,
                    "the hub sends no parts of files; it comes over one connection"
                );
                self.restart(&part, part.done())?;
                match self.range(file, &part, 0..file.size, connections).await {
                    Ok(()) | Err(Failure::NoRanges) => {}
                    Err(Failure::Final(error) | Failure::Later(error, _)) => return Err(error),
                }
            }
        }
        part.finish(file).await
    }

    /// Brings one piece, with as many attempts as it takes.
    async fn range(
        &self,
        file: &Remote,
        part: &Part,
        range: Range<u64>,
        connections: &Semaphore,
    ) -> Result<(), Failure> {
        let mut at = range.start;
        let mut failures = 0;
        while at < range.end {
            let before = at;
            let attempt = {
                let _permit = connections.acquire().await;
                self.attempt(file, part, &range, &mut at).await
            };
            match attempt {
                Ok(()) => {}
                Err(Failure::NoRanges) => return Err(Failure::NoRanges),
                Err(failure) => {
                    if at > before {
                        failures = 0;
                    }
                    self.client.pause(failure, &mut failures).await?;
                }
            }
        }
        Ok(())
    }

    /// One attempt at the rest of a piece; `at` moves with what came.
    async fn attempt(
        &self,
        file: &Remote,
        part: &Part,
        range: &Range<u64>,
        at: &mut u64,
    ) -> Result<(), Failure> {
        let whole = *range == (0..file.size);
        let asked = (!whole || *at > 0).then_some(*at..range.end);
        let partial = asked.is_some();
        let mut response = self.client.get(&file.url, asked, file.tag.as_deref()).await?;
        if partial && response.status() != StatusCode::PARTIAL_CONTENT {
            if !whole {
                return Err(Failure::NoRanges);
            }
            self.restart(part, *at)?;
            *at = 0;
        }
        let mut noted = *at;
        let came = loop {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    let length = bytes.len() as u64;
                    if *at + length > range.end {
                        self.restart(part, part.done())?;
                        return Err(Failure::Final(HubError::WrongBytes {
                            file: file.name.clone(),
                            expected: format!("{} bytes", file.size),
                            found: "more bytes".into(),
                        }));
                    }
                    part.write(*at, &bytes)?;
                    *at += length;
                    self.tally.add(length);
                    if *at - noted >= NOTED {
                        part.record(noted..*at)?;
                        noted = *at;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(self.client.later(&file.url, error)),
            }
        };
        part.record(noted..*at)?;
        came?;
        if *at < range.end {
            let reason = format!("it ended after {} of {} bytes", at, range.end);
            return Err(Failure::Later(self.client.unreachable(&file.url, reason), None));
        }
        Ok(())
    }

    fn restart(&self, part: &Part, counted: u64) -> Result<(), HubError> {
        self.tally.take_back(counted);
        part.restart()
    }
}
