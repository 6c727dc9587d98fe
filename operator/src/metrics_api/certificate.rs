//! The serving certificate: made by a CA of our own, kept in a Secret that all replicas share.
//!
//! The CA's key is thrown away after its one signature, so nobody can sign a second certificate; a rotation makes
//! a new CA and lists the old one behind it in the bundle until all replicas have moved on.
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Renewed when less than this is left: months for a broken rotation to be noticed.
const RENEW_BEFORE: Duration = Duration::from_secs(120 * 24 * 60 * 60);
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Generation failed.
    #[error("making the serving certificate failed: {0}")]
    Generate(#[from] rcgen::Error),
    /// A key of the Secret is missing or no UTF-8.
    #[error("the Secret of the serving certificate lacks {0:?}")]
    Missing(&'static str),
    /// Not PEM.
    #[error("reading the serving certificate's PEM failed: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Not X.509.
    #[error("the serving certificate is not X.509: {0}")]
    Parse(String),
}

/// Certificate, key and CA bundle as PEM, as they stand in the Secret.
#[derive(Clone)]
pub struct Material {
    /// The CA, and behind it the one before.
    pub ca_bundle: String,
    certificate: String,
    key: String,
}

impl Material {
    /// Makes a CA and a certificate for the Service `service` in `namespace`.
    ///
    /// # Errors
    /// When a name is no DNS name or there is no randomness.
    pub fn generate(
        service: &str,
        namespace: &str,
        old_bundle: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let mut ca = params(Vec::new(), "qwen-operator metrics API CA", now)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate()?;
        let root = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);

        let host = format!("{service}.{namespace}.svc");
        let mut leaf = params(vec![host.clone()], &host, now)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &issuer)?.pem();

        let ca_bundle = root + old_bundle.and_then(first_certificate).unwrap_or_default();
        Ok(Self {
            ca_bundle,
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// The Secret that holds it.
    #[must_use]
    pub fn secret(&self, name: &str, namespace: &str, owner: Option<OwnerReference>) -> Secret {
        let data = [
            (CA, &self.ca_bundle),
            (CERTIFICATE, &self.certificate),
            (KEY, &self.key),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(super::labels()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(
                data.into_iter()
                    .map(|(k, v)| (k.to_owned(), ByteString(v.clone().into_bytes())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }
}

fn params(names: Vec<String>, common_name: &str, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    // rcgen speaks the `time` crate's dates; counting from the epoch spares that dependency.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A day back, for nodes whose clocks differ.
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + LIFETIME;
    Ok(params)
}

fn first_certificate(bundle: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = bundle.find(END)? + END.len();
    Some(bundle.get(..end + 1).unwrap_or(bundle))
}

/// A usable certificate, as read from the Secret.
#[derive(Debug)]
pub struct ServingCertificate {
    /// PEM for `caBundle` of the APIServices.
    pub ca_bundle: String,
    /// The chain to show.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    not_after: Timestamp,
}

impl ServingCertificate {
    /// Reads the Secret.
    ///
    /// # Errors
    /// Names what is missing or malformed.
    pub fn read(secret: &Secret) -> Result<Self, CertificateError> {
        let text = |key: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            bytes
                .and_then(|bytes| std::str::from_utf8(&bytes.0).ok())
                .ok_or(CertificateError::Missing(key))
        };
        let chain =
            CertificateDer::pem_slice_iter(text(CERTIFICATE)?.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let leaf = chain.first().ok_or(CertificateError::Missing(CERTIFICATE))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| CertificateError::Parse(error.to_string()))?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp())
            .map_err(|error| CertificateError::Parse(error.to_string()))?;
        Ok(Self {
            ca_bundle: text(CA)?.to_owned(),
            key: PrivateKeyDer::from_pem_slice(text(KEY)?.as_bytes())?,
            chain,
            not_after,
        })
    }

    /// Whether it is time for a new one.
    #[must_use]
    pub fn stale(&self, now: Timestamp) -> bool {
        self.not_after.duration_since(now)
            < SignedDuration::try_from(RENEW_BEFORE).unwrap_or(SignedDuration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(old: Option<&str>) -> (Material, ServingCertificate) {
        let material = Material::generate("metrics", "qwen-system", old, Timestamp::now()).unwrap();
        let read = ServingCertificate::read(&material.secret("s", "qwen-system", None)).unwrap();
        (material, read)
    }

    #[test]
    fn the_certificate_is_v3_for_the_service_and_fresh_until_months_before_its_end() {
        let (_, certificate) = made(None);
        let (_, leaf) = X509Certificate::from_der(&certificate.chain[0]).unwrap();
        assert_eq!(leaf.version(), x509_parser::x509::X509Version::V3);
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(format!("{:?}", names.value.general_names).contains("metrics.qwen-system.svc"));
        assert!(!certificate.stale(Timestamp::now()));
        assert!(certificate.stale(Timestamp::now() + LIFETIME - RENEW_BEFORE + DAY));
    }

    #[test]
    fn a_rotation_keeps_exactly_one_old_ca() {
        let (first, _) = made(None);
        let (second, _) = made(Some(&first.ca_bundle));
        let (third, read) = made(Some(&second.ca_bundle));
        assert!(second.ca_bundle.ends_with(&first.ca_bundle));
        let count = CertificateDer::pem_slice_iter(third.ca_bundle.as_bytes())
            .map(Result::unwrap)
            .count();
        assert_eq!((count, read.ca_bundle == third.ca_bundle), (2, true));
    }

    #[test]
    fn a_damaged_secret_is_named() {
        let (material, _) = made(None);
        let mut secret = material.secret("s", "qwen-system", None);
        secret.data.as_mut().unwrap().remove(KEY);
        let error = ServingCertificate::read(&secret).unwrap_err().to_string();
        assert_eq!(error, "the Secret of the serving certificate lacks \"tls.key\"");
    }
}
