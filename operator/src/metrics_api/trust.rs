//! Who calls: client certificates and front-proxy headers, judged by the cluster's authentication ConfigMap.
use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Every authenticated caller is in this group, as behind the API server itself.
const AUTHENTICATED: &str = "system:authenticated";

/// A caller, in the words of a SubjectAccessReview.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Caller {
    /// User name.
    pub user: String,
    /// Unique id, empty when none was given.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further attributes, keys in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What the certificate of a connection proves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// It is the API server's front proxy: its X-Remote-* headers are believed.
    front_proxy: bool,
    /// The cluster user that the certificate itself names.
    user: Option<Caller>,
}

/// Why the ConfigMap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A key is missing.
    #[error(
        "ConfigMap kube-system/extension-apiserver-authentication lacks {0:?}; the API server's aggregation layer must be configured (--requestheader-client-ca-file)"
    )]
    Missing(&'static str),
    /// A list is not a JSON array of strings.
    #[error("{key:?} of the authentication ConfigMap is not a JSON list of strings: {source}")]
    List {
        /// Key of the ConfigMap.
        key: &'static str,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
    /// A CA bundle is not PEM.
    #[error("{key:?} of the authentication ConfigMap is not a PEM bundle: {source}")]
    Pem {
        /// Key of the ConfigMap.
        key: &'static str,
        /// What the PEM reader says.
        source: rustls::pki_types::pem::Error,
    },
    /// A CA is not usable as a trust anchor.
    #[error("the CA in {key:?} of the authentication ConfigMap cannot be a trust anchor: {source}")]
    Anchor {
        /// Key of the ConfigMap.
        key: &'static str,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The verifier could not be built.
    #[error("building the client certificate verifier failed: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The rules of one version of the ConfigMap.
#[derive(Debug)]
pub struct Trust {
    /// For the handshake: a certificate of either CA, or none.
    handshake: Arc<dyn ClientCertVerifier>,
    /// Only the front proxy's CA. Separate, so that a user's certificate can never pass as the proxy's.
    proxy: Arc<dyn ClientCertVerifier>,
    /// Only the CA of cluster users.
    users: Option<Arc<dyn ClientCertVerifier>>,
    allowed_names: Vec<String>,
    user_headers: Vec<String>,
    uid_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
}

impl Trust {
    /// Reads the data of `kube-system/extension-apiserver-authentication`.
    ///
    /// # Errors
    /// Names the key that is missing or malformed.
    pub fn from_config(
        data: &BTreeMap<String, String>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        let proxy_roots = certificates(data, "requestheader-client-ca-file")?;
        if proxy_roots.is_empty() {
            return Err(TrustError::Missing("requestheader-client-ca-file"));
        }
        let user_roots = certificates(data, "client-ca-file")?;
        let verifier = |key: &'static str, roots: &[CertificateDer<'static>]| -> Result<_, TrustError> {
            let mut store = RootCertStore::empty();
            for root in roots {
                store
                    .add(root.clone())
                    .map_err(|source| TrustError::Anchor { key, source })?;
            }
            Ok(
                WebPkiClientVerifier::builder_with_provider(store.into(), provider.clone())
                    .allow_unauthenticated()
                    .build()?,
            )
        };
        Ok(Self {
            handshake: verifier("client-ca-file", &[proxy_roots.as_slice(), &user_roots].concat())?,
            proxy: verifier("requestheader-client-ca-file", &proxy_roots)?,
            users: (!user_roots.is_empty())
                .then(|| verifier("client-ca-file", &user_roots))
                .transpose()?,
            allowed_names: list(data, "requestheader-allowed-names")?,
            user_headers: list(data, "requestheader-username-headers")?,
            uid_headers: list(data, "requestheader-uid-headers")?,
            group_headers: list(data, "requestheader-group-headers")?,
            extra_prefixes: list(data, "requestheader-extra-headers-prefix")?,
        })
    }

    /// The verifier for rustls; health paths need no certificate, so none is demanded here.
    #[must_use]
    pub fn handshake(&self) -> Arc<dyn ClientCertVerifier> {
        self.handshake.clone()
    }

    /// Judges the certificate chain of a connection, leaf first.
    #[must_use]
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Peer::default();
        };
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return Peer::default();
        };
        let signed_by = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier
                .verify_client_cert(leaf, intermediates, UnixTime::now())
                .is_ok()
        };
        let name = certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .unwrap_or("");
        // An empty list allows every name, as the API server documents it.
        let allowed =
            self.allowed_names.is_empty() || self.allowed_names.iter().any(|allowed| allowed == name);
        let groups = certificate
            .subject()
            .iter_organization()
            .filter_map(|group| group.as_str().ok());
        Peer {
            front_proxy: allowed && signed_by(&self.proxy),
            user: self
                .users
                .as_ref()
                .filter(|users| !name.is_empty() && signed_by(users))
                .map(|_| {
                    let groups = groups.map(str::to_owned).collect();
                    authenticated(Caller {
                        user: name.to_owned(),
                        groups,
                        ..Caller::default()
                    })
                }),
        }
    }

    /// The caller of one request; `None` means 401.
    #[must_use]
    pub fn caller(&self, peer: &Peer, headers: &HeaderMap) -> Option<Caller> {
        let proxied = if peer.front_proxy {
            self.remote(headers)
        } else {
            None
        };
        proxied.or_else(|| peer.user.clone())
    }

    fn remote(&self, headers: &HeaderMap) -> Option<Caller> {
        let all = |names: &[String]| -> Vec<String> {
            names
                .iter()
                .flat_map(|name| headers.get_all(name.as_str()))
                .filter_map(|value| value.to_str().ok())
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let user = all(&self.user_headers).into_iter().next()?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let prefix = self
                .extra_prefixes
                .iter()
                .map(|prefix| prefix.to_ascii_lowercase());
            let Some(key) = prefix
                .into_iter()
                .find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()))
            else {
                continue;
            };
            if let Ok(value) = value.to_str() {
                let key = percent_encoding::percent_decode_str(key)
                    .decode_utf8_lossy()
                    .to_lowercase();
                extra.entry(key).or_default().push(value.to_owned());
            }
        }
        let uid = all(&self.uid_headers).into_iter().next().unwrap_or_default();
        Some(authenticated(Caller {
            user,
            uid,
            groups: all(&self.group_headers),
            extra,
        }))
    }
}

fn authenticated(mut caller: Caller) -> Caller {
    let known = |group: &String| group == AUTHENTICATED || group == "system:unauthenticated";
    if caller.user != "system:anonymous" && !caller.groups.iter().any(known) {
        caller.groups.push(AUTHENTICATED.to_owned());
    }
    caller
}

fn certificates(
    data: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let Some(pem) = data.get(key) else {
        return Ok(Vec::new());
    };
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TrustError::Pem { key, source })
}

fn list(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, TrustError> {
    let Some(text) = data.get(key).filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    serde_json::from_str(text).map_err(|source| TrustError::List { key, source })
}
