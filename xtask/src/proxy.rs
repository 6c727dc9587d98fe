//! `kubectl proxy` on 127.0.0.1: the way from the host to services and pods.
use anyhow::{Result, bail};

use crate::kube::Kube;
use crate::shell::{self, Beside};

/// A running `kubectl proxy`; it ends with the value.
pub struct Proxy {
    base: String,
    _program: Beside,
}

impl Proxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// When kubectl does not start or does not say where it serves.
    pub fn start(kube: &Kube) -> Result<Self> {
        let (program, said) =
            shell::beside(kube.command().args(["proxy", "--port=0", "--address=127.0.0.1"]))?;
        match said.strip_prefix("Starting to serve on ") {
            Some(address) => Ok(Self {
                base: format!("http://{address}"),
                _program: program,
            }),
            None => bail!("kubectl proxy said `{said}` instead of where it serves"),
        }
    }

    /// URL of a path of the API.
    pub fn api(&self, path: &str) -> String {
        format!("{}{path}", self.base)
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
