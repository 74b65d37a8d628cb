//! Trust domains for tests: authorities, X.509-SVIDs, and connections to servers that trust them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key in PEM, and the SHA-256 digest of the certificate's DER.
#[derive(Clone)]
pub(crate) struct Svid {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) digest: Vec<u8>,
}

/// Returns the parameters of a valid X.509-SVID, which tests can break before it is signed.
pub(crate) fn svid(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2036, 1, 1);
    params
}

/// Returns the parameters of a server certificate for the loopback address.
pub(crate) fn server() -> CertificateParams {
    let mut params = svid("spiffe://acme.example/countersign");
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Svid {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let digest = <sha2::Sha256 as sha2::Digest>::digest(certificate.der()).to_vec();
        Svid { certificate: certificate.pem(), key: key.serialize_pem(), digest }
    }
}

/// Writes a file that every user may read, and returns its path.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Connects over TLS, with or without a client certificate.
pub(crate) async fn connect(
    address: std::net::SocketAddr,
    authority: &str,
    svid: Option<&Svid>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    let tls = match svid {
        Some(svid) => tls.identity(Identity::from_pem(&svid.certificate, &svid.key)),
        None => tls,
    };
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    endpoint.connect_timeout(Duration::from_secs(5)).connect().await
}
