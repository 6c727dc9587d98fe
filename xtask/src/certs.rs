//! Certificates of the local cluster: two authorities (cluster, front proxy), every client and server, X.509 v3.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

/// A certificate to issue.
#[derive(Debug)]
pub struct Subject<'a> {
    /// File name without ending: NAME.crt and NAME.key.
    pub name: &'a str,
    /// Kubernetes reads it as the user's name.
    pub common_name: &'a str,
    /// Kubernetes reads it as the user's group; empty for none.
    pub organization: &'a str,
    /// DNS names and addresses of a server; empty for a client only.
    pub hosts: &'a [&'a str],
}

/// A certificate authority that writes what it issues into one folder.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes the authority and writes NAME.crt into the folder. Its key stays in memory: a new cluster makes a new one.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let mut params = params(name, "", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write(&folder.join(format!("{name}.crt")), &issuer.pem(), 0o644)?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
        })
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate and writes it with its key; returns both as PEM.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<(String, String)> {
        let mut params = params(subject.common_name, subject.organization, subject.hosts)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.hosts.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        write(
            &self.folder.join(format!("{}.crt", subject.name)),
            &certificate,
            0o644,
        )?;
        write(
            &self.folder.join(format!("{}.key", subject.name)),
            &key.serialize_pem(),
            0o600,
        )?;
        Ok((certificate, key.serialize_pem()))
    }
}

/// Writes NAME.key and NAME.pub, with which service account tokens are signed and checked.
pub fn signing_keys(folder: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate()?;
    write(&folder.join(format!("{name}.key")), &key.serialize_pem(), 0o600)?;
    write(&folder.join(format!("{name}.pub")), &key.public_key_pem(), 0o644)
}

fn params(common_name: &str, organization: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if !organization.is_empty() {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    Ok(params)
}

/// Writes a file with its final mode from the start: a key is never readable by others, not even briefly.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let _absent = fs::remove_file(path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn certificates_are_version_3_with_names_groups_and_private_keys() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), "ca").unwrap();
        let subject = Subject {
            name: "admin",
            common_name: "admin",
            organization: "system:masters",
            hosts: &["127.0.0.1", "a.b"],
        };
        let (pem, _) = authority.issue(&subject).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.version(), x509_parser::x509::X509Version::V3);
        let name = certificate.subject().to_string();
        assert!(
            name.contains("CN=admin") && name.contains("O=system:masters"),
            "{name}"
        );
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        let mode = fs::metadata(folder.path().join("admin.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
