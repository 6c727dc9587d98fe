//! TLS to engine pods: their certificate is checked against the CA of its Secret, where that can be read.
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ScrapeError;

/// Whom to take a pod for.
pub struct Trust {
    roots: Option<RootCertStore>,
    host: String,
    /// Why its certificate is not checked.
    pub doubt: Option<String>,
}

impl Trust {
    /// By the CA in PEM; without one the connection is encrypted and anybody may be at its other end, as it would be
    /// without TLS.
    pub fn new(ca: Result<&[u8], String>, host: String) -> Self {
        let (roots, doubt) = match ca.and_then(roots) {
            Ok(roots) => (Some(roots), None),
            Err(why) => {
                let doubt = format!(
                    "the load of the replicas is read by TLS without a check of their certificate: {why}"
                );
                (None, Some(doubt))
            }
        };
        Self { roots, host, doubt }
    }

    /// Errors: the certificate is refused, or the pod speaks no TLS.
    pub async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, ScrapeError> {
        let refused =
            |error: &dyn std::fmt::Display| ScrapeError::Certificate(error.to_string(), self.host.clone());
        let config = self.config().map_err(|error| refused(&error))?;
        let name = ServerName::try_from(self.host.clone()).map_err(|error| refused(&error))?;
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            match cause {
                Some(cause @ Error::InvalidCertificate(_)) => refused(cause),
                _ => error.into(),
            }
        })
    }

    fn config(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let config = match &self.roots {
            Some(roots) => config.with_root_certificates(roots.clone()),
            None => {
                let anybody = Arc::new(Anybody(provider));
                config.dangerous().with_custom_certificate_verifier(anybody)
            }
        };
        Ok(config.with_no_client_auth())
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(pem).flatten();
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err("ca.crt of its Secret holds no certificate".to_owned()),
        _ => Ok(roots),
    }
}

/// Takes any certificate whose key the other end has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{Router, routing::get};
    use hyper_util::rt::TokioExecutor;
    use hyper_util::server::conn::auto::Builder;
    use hyper_util::service::TowerToHyperService;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::{TokioIo, scrape};
    use super::*;

    /// An engine with a certificate for this host by a new CA; its address, and the CA in PEM.
    async fn engine(host: &str) -> (SocketAddr, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
        let key = key.serialize_der().try_into().unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let app = Router::new().route("/metrics", get(|| async { "qwen:ready 1\n" }));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    let service = TowerToHyperService::new(app.clone());
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                }
            }
        });
        (address, ca)
    }

    #[tokio::test]
    async fn a_certificate_is_checked_by_the_ca_and_the_services_name() {
        let host = || "chat.team.svc".to_owned();
        let (address, ca) = engine("chat.team.svc").await;
        let (other, other_ca) = engine("another.team.svc").await;
        let right = Trust::new(Ok(ca.as_bytes()), host());
        assert_eq!(right.doubt, None);
        scrape(address, Some(&right), None).await.unwrap();
        for (address, ca) in [(address, &other_ca), (other, &other_ca)] {
            let wrong = Trust::new(Ok(ca.as_bytes()), host());
            let error = scrape(address, Some(&wrong), None).await.unwrap_err();
            assert!(matches!(error, ScrapeError::Certificate(..)), "{error}");
            assert!(error.to_string().contains("valid for chat.team.svc"), "{error}");
        }
    }

    #[tokio::test]
    async fn without_a_ca_nothing_is_checked_and_that_is_told() {
        let (address, _) = engine("another.team.svc").await;
        for ca in [
            Err("the operator may not read Secret x".to_owned()),
            Ok(&b"none"[..]),
        ] {
            let trust = Trust::new(ca, "chat.team.svc".to_owned());
            let doubt = trust.doubt.as_deref().unwrap();
            assert!(doubt.contains("without a check of their certificate"), "{doubt}");
            scrape(address, Some(&trust), None).await.unwrap();
        }
    }
}
