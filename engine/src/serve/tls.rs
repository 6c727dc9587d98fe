//! TLS with a certificate out of files, read again as they change: a rotated Secret needs no restart.
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tracing::{info, warn};

use crate::config::TlsFiles;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {flag} {path}: {reason}; mount a readable file", path = path.display())]
    Unreadable {
        flag: &'static str,
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("{flag} {path} holds no {what} in PEM: {reason}", path = path.display())]
    Pem {
        flag: &'static str,
        path: PathBuf,
        what: &'static str,
        reason: String,
    },
    #[error(
        "the key of --ssl-keyfile and the certificate of --ssl-certfile cannot be used: {0}; give a pair"
    )]
    Pair(#[from] rustls::Error),
}

/// Certificate and key as they were last read.
pub(super) struct Tls {
    files: TlsFiles,
    state: Mutex<Known>,
}

struct Known {
    read: [Vec<u8>; 2],
    config: Arc<ServerConfig>,
    /// Whether the last look failed, which is logged once.
    failing: bool,
}

impl Tls {
    /// Errors: the files are no certificate and its key.
    pub(super) fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = read(files)?;
        let known = Known {
            config: config(files, &read)?,
            read,
            failing: false,
        };
        Ok(Self {
            files: files.clone(),
            state: Mutex::new(known),
        })
    }

    /// What the next connection is served with. The files are looked at each time: reading two of some kilobytes is
    /// little beside a handshake. Half a rotation, or a broken one, leaves the last good pair in force.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let mut known = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new = read(&self.files).and_then(|read| {
            let changed = read != known.read;
            let config = changed.then(|| config(&self.files, &read)).transpose()?;
            Ok((read, config))
        });
        match new {
            Ok((read, Some(config))) => {
                info!(file = %self.files.certificate.display(), "the certificate was read again");
                *known = Known {
                    read,
                    config,
                    failing: false,
                };
            }
            Ok((_, None)) => known.failing = false,
            Err(error) => {
                if !known.failing {
                    warn!("{error}; the certificate read before stays in force");
                }
                known.failing = true;
            }
        }
        known.config.clone()
    }
}

fn read(files: &TlsFiles) -> Result<[Vec<u8>; 2], TlsError> {
    let one = |flag, path: &Path| {
        std::fs::read(path).map_err(|reason| TlsError::Unreadable {
            flag,
            path: path.to_owned(),
            reason,
        })
    };
    Ok([
        one("--ssl-certfile", &files.certificate)?,
        one("--ssl-keyfile", &files.key)?,
    ])
}

fn config(files: &TlsFiles, [certificate, key]: &[Vec<u8>; 2]) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |flag, path: &Path, what| {
        let path = path.to_owned();
        move |reason: String| TlsError::Pem {
            flag,
            path,
            what,
            reason,
        }
    };
    let no_chain = pem("--ssl-certfile", &files.certificate, "certificate");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = match chain {
        Ok(chain) if chain.is_empty() => return Err(no_chain("there is none".to_owned())),
        Ok(chain) => chain,
        Err(error) => return Err(no_chain(error.to_string())),
    };
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| pem("--ssl-keyfile", &files.key, "private key")(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// A certificate for localhost by a new CA, written to `dir`; gives the CA's certificate in PEM.
    pub(crate) fn issue(dir: &Path) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        std::fs::write(dir.join("tls.crt"), leaf).unwrap();
        std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        ca
    }

    pub(crate) fn files(dir: &Path) -> TlsFiles {
        TlsFiles {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
        }
    }

    #[test]
    fn half_a_rotation_and_a_broken_file_leave_the_last_pair_in_force() {
        let [dir, next] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        issue(dir.path());
        issue(next.path());
        let tls = Tls::open(&files(dir.path())).unwrap();
        let first = tls.config();
        assert!(Arc::ptr_eq(&first, &tls.config()));
        let copy = |name: &str| std::fs::copy(next.path().join(name), dir.path().join(name)).unwrap();
        copy("tls.crt");
        assert!(Arc::ptr_eq(&first, &tls.config()));
        copy("tls.key");
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(dir.path().join("tls.crt"), "nothing").unwrap();
        assert!(Arc::ptr_eq(&second, &tls.config()));
        std::fs::remove_file(dir.path().join("tls.key")).unwrap();
        assert!(Arc::ptr_eq(&second, &tls.config()));
    }

    #[test]
    fn what_is_no_pair_is_told_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = || Tls::open(&files(dir.path())).err().unwrap().to_string();
        assert!(error().starts_with("cannot read --ssl-certfile"), "{}", error());
        issue(dir.path());
        std::fs::write(
            dir.path().join("tls.key"),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        assert!(error().contains("give a pair"), "{}", error());
        std::fs::write(dir.path().join("tls.key"), "").unwrap();
        assert!(error().contains("holds no private key"), "{}", error());
        std::fs::write(dir.path().join("tls.crt"), "").unwrap();
        assert!(error().contains("holds no certificate"), "{}", error());
    }
}
