//! Where things lie: the checkout, the cluster's state in it, and the two places outside it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Sockets and short-lived state of the one cluster a machine can have: socket paths must be short, and the
/// owner's name must be found from any checkout.
pub const RUN_DIR: &str = "/run/qwen-cluster";

/// Folders of one checkout.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
}

impl Paths {
    /// Finds the checkout: from cargo, which tells the package's folder, or else from the current folder upwards.
    pub fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(package) => PathBuf::from(package),
            None => env::current_dir().context("cannot tell the current folder")?,
        };
        let root = start
            .ancestors()
            .find(|folder| folder.join("Cargo.lock").exists())
            .with_context(|| {
                format!(
                    "no Cargo.lock in or above {}: run this inside the checkout",
                    start.display()
                )
            })?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// State of the local cluster.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("target/cluster")
    }

    /// The cluster's programs: kubectl, helm, promtool, amtool, …
    pub fn bin(&self) -> PathBuf {
        self.cluster().join("bin")
    }

    /// One program of the cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// Logs of the cluster's processes.
    pub fn logs(&self) -> PathBuf {
        self.cluster().join("logs")
    }

    /// The admin's kubeconfig of the local cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster().join("kubeconfig")
    }

    /// Image tars.
    pub fn images(&self) -> PathBuf {
        self.root.join("target/images")
    }

    /// Pinned Go modules and manifests of the test cluster.
    pub fn cluster_sources(&self) -> PathBuf {
        self.root.join("tests/cluster")
    }

    /// Where cargo puts its builds.
    pub fn cargo_target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |folder| self.root.join(folder))
    }
}

/// Built programs, kept between checkouts.
///
/// # Errors
/// When neither XDG_CACHE_HOME nor HOME is set.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => Path::new(&env::var_os("HOME").context("HOME is not set: set it or XDG_CACHE_HOME")?)
            .join(".cache"),
    };
    Ok(base.join("qwen-operator/cluster"))
}
