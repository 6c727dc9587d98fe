//! `kubectl proxy` on 127.0.0.1: the way from the host to services and pods.
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::kube::Kube;

/// A running `kubectl proxy`; it ends with the value.
pub struct Proxy {
    base: String,
    child: Child,
}

impl Proxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// When kubectl does not start or does not say where it serves.
    pub fn start(kube: &Kube) -> Result<Self> {
        let mut command = kube.command();
        command
            .args(["proxy", "--port=0", "--address=127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl proxy")?;
        let stdout = child.stdout.take().context("kubectl proxy has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let mut proxy = Self {
            base: String::new(),
            child,
        };
        match line.trim().strip_prefix("Starting to serve on ") {
            Some(address) => proxy.base = format!("http://{address}"),
            None => bail!("kubectl proxy said `{}` instead of where it serves", line.trim()),
        }
        Ok(proxy)
    }

    /// URL of a Service's port; the apiserver picks one of its ready pods for each connection.
    pub fn service(&self, namespace: &str, name: &str, port: &str) -> String {
        format!(
            "{}/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy",
            self.base
        )
    }

    /// URL of one pod's port.
    pub fn pod(&self, namespace: &str, name: &str, port: u16) -> String {
        format!(
            "{}/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy",
            self.base
        )
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
