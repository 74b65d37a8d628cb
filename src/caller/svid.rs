//! X.509-SVIDs (SPIFFE): certificates that name exactly one workload.

use std::sync::atomic::AtomicU64;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::time::Timestamp;

/// A SPIFFE id, `spiffe://<trust domain>/<path>`, within the limits of the SPIFFE standard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// Parses an id. Its trust domain must be lower-case, its path must not be the root or have empty or dot
    /// segments, and its length is at most 2,048 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("spiffe://").filter(|_| text.len() <= 2048)?;
        let (domain, path) = rest.split_once('/')?;
        let domain_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        let path_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let segment =
            |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(path_byte);
        let valid =
            (1..=255).contains(&domain.len()) && domain.bytes().all(domain_byte) && path.split('/').all(segment);
        valid.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn domain(&self) -> &str {
        let rest = self.0.trim_start_matches("spiffe://");
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }
}

/// A certificate that names one workload, with the chain that came with it.
#[derive(Debug)]
pub struct Svid {
    /// Id of the workload.
    pub id: SpiffeId,
    /// SHA-256 of the certificate.
    pub digest: [u8; 32],
    /// Start of the certificate's validity.
    pub not_before: Timestamp,
    /// End of the certificate's validity, inclusive.
    pub not_after: Timestamp,
    /// The certificate and its intermediates.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Generation of trust that the chain was last verified against, plus one; 0 if it was never verified.
    pub(super) checked: AtomicU64,
}

impl Svid {
    /// Reads a certificate chain that begins with the peer's own certificate.
    ///
    /// # Errors
    /// Returns, in constant words, why the certificate is not an X.509-SVID.
    pub fn read(chain: &[CertificateDer<'_>]) -> Result<Self, &'static str> {
        let leaf = chain.first().ok_or("the certificate chain is empty")?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| "the certificate can't be read")?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| "the certificate has two subject alternative name extensions")?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let uris: Vec<&str> = uris.collect();
        let [uri] = uris.as_slice() else { return Err("the certificate must have exactly one URI name") };
        let id = SpiffeId::parse(uri).ok_or("the certificate's URI name is not a SPIFFE id")?;
        if certificate.is_ca() {
            return Err("the certificate is a CA certificate");
        }
        let usage = certificate.key_usage().map_err(|_| "the certificate's key usage can't be read")?;
        let usage = usage.ok_or("the certificate has no key usage")?.value;
        if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
            return Err(
                "the certificate's key usage must allow digital signatures and no signing of certificates or CRLs",
            );
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
        Ok(Self {
            id,
            digest: digest.as_ref().try_into().map_err(|_| "the certificate has no digest")?,
            not_before: Timestamp::from_seconds(certificate.validity().not_before.timestamp()),
            not_after: Timestamp::from_seconds(certificate.validity().not_after.timestamp()),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            checked: AtomicU64::new(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_the_standard_says() {
        assert_eq!(
            SpiffeId::parse("spiffe://acme.example/tool/refunds").map(|id| id.domain().to_owned()),
            Some("acme.example".into())
        );
        for refused in [
            "spiffe://acme.example",
            "spiffe://acme.example/",
            "spiffe:///tool",
            "spiffe://Acme.example/tool",
            "spiffe://acme.example:8443/tool",
            "spiffe://user@acme.example/tool",
            "spiffe://acme.example//tool",
            "spiffe://acme.example/tool/",
            "spiffe://acme.example/../tool",
            "spiffe://acme.example/tool?x=1",
            "spiffe://acme.example/tool#x",
            "spiffe://acme.example/t%6Fol",
            "https://acme.example/tool",
            "SPIFFE://acme.example/tool",
            "",
        ] {
            assert_eq!(SpiffeId::parse(refused), None, "{refused}");
        }
    }
}
