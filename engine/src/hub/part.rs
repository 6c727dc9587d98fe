//! A file on its way: `NAME.part`, hashed while it grows, renamed when it is whole and right.
use std::{
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tokio::{
    fs::{self, File, OpenOptions},
    io::{AsyncReadExt, AsyncWriteExt},
};

use super::{HubError, disk};

/// The growing file and the hash of what it holds.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    len: u64,
    hash: Sha256,
}

impl Part {
    /// Opens the part of `target`; what an earlier run left is kept and hashed.
    pub(super) async fn open(target: &Path) -> Result<Self, HubError> {
        let mut path = target.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).await;
        let mut part = Self { file: opened.map_err(disk(&path))?, path, target: target.to_owned(), len: 0, hash: Sha256::new() };
        part.read_existing().await.map_err(disk(&part.path))?;
        Ok(part)
    }

    /// Leaves the file's position at its end.
    async fn read_existing(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer).await? {
                0 => return Ok(()),
                read => {
                    self.hash.update(&buffer[..read]);
                    self.len += read as u64;
                }
            }
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends; on an error the file may hold more than `len` tells, and the download ends.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).await.map_err(disk(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything so far.
    pub(super) async fn restart(&mut self) -> Result<(), HubError> {
        self.file = File::create(&self.path).await.map_err(disk(&self.path))?;
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    /// Checks the hash, if the hub gave one, and gives the file its name. Wrong bytes are removed.
    pub(super) async fn finish(mut self, name: &str, sha256: Option<&str>) -> Result<(), HubError> {
        let found = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if let Some(expected) = sha256.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            fs::remove_file(&self.path).await.map_err(disk(&self.path))?;
            return Err(HubError::WrongBytes { file: name.into(), expected: format!("sha256 {expected}"), found: format!("sha256 {found}") });
        }
        self.file.flush().await.map_err(disk(&self.path))?;
        self.file.sync_all().await.map_err(disk(&self.path))?;
        fs::rename(&self.path, &self.target).await.map_err(disk(&self.target))
    }
}
