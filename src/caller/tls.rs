//! The server's own certificate and the authorities of each trust domain. All files are read together, and a
//! running server replaces either all of them at once or none.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::caller::svid::Svid;
use crate::jose::keyset::{KeySet, KeySetFault};
use crate::model::number::to_u64;
use crate::model::time::Timestamp;

/// A trust domain of the settings.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustDomain {
    /// Name of the domain, e.g. `acme.example`.
    pub name: String,
    /// PEM file of its certificate authorities, which is reloaded while the server runs.
    pub bundle: PathBuf,
    /// Tenants that its identities may speak for.
    pub tenants: Vec<String>,
    /// JWKS file of its JWT-SVID keys, which is reloaded while the server runs. Without it, no JWT-SVID of
    /// the domain is accepted.
    #[serde(default)]
    pub jwt_keys: Option<PathBuf>,
}

/// Options of caller authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether every process on the loopback interface is trusted.
    pub development: bool,
    pub trust_domains: Vec<TrustDomain>,
    /// Tool services by SPIFFE id.
    pub identities: HashMap<String, String>,
    /// Tool services by operating system user.
    pub users: HashMap<u32, String>,
    /// Audience of the JWT-SVIDs that are accepted; if absent, none are.
    pub jwt_audience: Option<String>,
    /// Maximum difference between the server's clock and those of JWT-SVID issuers.
    pub leeway: Duration,
    /// PEM files of the server's certificate chain and key.
    pub server: Option<(PathBuf, PathBuf)>,
}

/// Reason why certificates, keys or authorities can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("`{0}` can't be read: {1}: see `tls` and `callers.trust_domains` in the settings")]
    Unreadable(PathBuf, io::Error),
    #[error("`{0}` contains no certificate in PEM form: see `tls` and `callers.trust_domains` in the settings")]
    NoCertificate(PathBuf),
    #[error("`{0}` contains no private key in PEM form: see `tls.key` in the settings")]
    NoKey(PathBuf),
    /// Certificate and key don't match, or can't be used.
    #[error("the server's certificate and key can't be used: {0}: see `tls` in the settings")]
    Server(rustls::Error),
    #[error("the authorities in `{0}` can't be used: {1}")]
    Authorities(PathBuf, String),
    #[error("the key set `{0}` {1}")]
    Keys(PathBuf, KeySetFault),
}

/// A trust domain with its authorities and keys.
#[derive(Debug)]
pub struct Domain {
    pub name: String,
    /// Tenants that its identities may speak for.
    pub tenants: Vec<String>,
    /// Keys that sign its JWT-SVIDs.
    pub jwt_keys: Option<KeySet>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Everything that is trusted at one time.
#[derive(Debug)]
pub struct Trust {
    /// Number that increases with every change.
    pub generation: u64,
    pub domains: Vec<Domain>,
    /// TLS configuration of the gRPC port; `None` if it is in plaintext.
    pub server: Option<Arc<ServerConfig>>,
    /// TLS configuration of the events port: HTTP/1.1, without client certificates.
    pub events: Option<Arc<ServerConfig>>,
    /// SHA-256 of all files that were read.
    pub digest: Vec<u8>,
}

/// Returns the only cryptographic backend of the program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl Trust {
    /// Reads every file that the settings name.
    ///
    /// # Errors
    /// Returns an error if one of them can't be used.
    pub fn read(options: &Options, generation: u64) -> Result<Self, TrustError> {
        let mut hash = ::aws_lc_rs::digest::Context::new(&::aws_lc_rs::digest::SHA256);
        let mut read = |path: &Path| {
            let bytes = std::fs::read(path).map_err(|error| TrustError::Unreadable(path.to_owned(), error))?;
            hash.update(&to_u64(bytes.len()).to_be_bytes());
            hash.update(&bytes);
            Ok(bytes)
        };
        let mut all = RootCertStore::empty();
        let mut domains = vec![];
        for domain in &options.trust_domains {
            let refused = |error: String| TrustError::Authorities(domain.bundle.clone(), error);
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&domain.bundle, &read(&domain.bundle)?)? {
                all.add(certificate.clone()).map_err(|error| refused(error.to_string()))?;
                roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
            let verifier = verifier.map_err(|error| refused(error.to_string()))?;
            let jwt_keys = match &domain.jwt_keys {
                Some(path) => Some(KeySet::read(&read(path)?).map_err(|fault| TrustError::Keys(path.clone(), fault))?),
                None => None,
            };
            domains.push(Domain { name: domain.name.clone(), tenants: domain.tenants.clone(), jwt_keys, verifier });
        }
        let (server, events) = match &options.server {
            Some((certificate, key)) => {
                let chain = certificates(certificate, &read(certificate)?)?;
                let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| TrustError::NoKey(key.clone()))?;
                let mut events = server_config(chain.clone(), key.clone_key(), RootCertStore::empty())
                    .map_err(TrustError::Server)?;
                events.alpn_protocols = vec![b"http/1.1".to_vec()];
                let server = server_config(chain, key, all).map_err(TrustError::Server)?;
                (Some(Arc::new(server)), Some(Arc::new(events)))
            }
            None => (None, None),
        };
        Ok(Self { generation, domains, server, events, digest: hash.finish().as_ref().to_vec() })
    }

    /// Verifies a peer's certificate at this instant. The handshake accepts the authorities of all trust
    /// domains, so this checks that the chain leads to those of the peer's own domain.
    ///
    /// # Errors
    /// Returns, in constant words, why the certificate is not accepted.
    pub fn judge(&self, svid: &Svid, now: Timestamp) -> Result<&Domain, &'static str> {
        if now < svid.not_before || svid.not_after.plus(Duration::from_secs(1)) <= now {
            return Err("the caller's certificate has expired, or is not valid yet");
        }
        let domain = self.domains.iter().find(|domain| domain.name == svid.id.domain());
        let domain = domain.ok_or("the caller's trust domain is not trusted")?;
        if svid.checked.load(Ordering::Acquire) != self.generation + 1 {
            let (leaf, intermediates) = svid.chain.split_first().ok_or("the certificate chain is empty")?;
            let time = UnixTime::since_unix_epoch(Duration::from_secs(now.seconds().unsigned_abs()));
            let verified = domain.verifier.verify_client_cert(leaf, intermediates, time);
            verified.map_err(|_| "the caller's certificate was not issued by an authority of its trust domain")?;
            svid.checked.store(self.generation + 1, Ordering::Release);
        }
        Ok(domain)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(TrustError::NoCertificate(path.to_owned())),
    }
}

/// Builds a TLS configuration in which client certificates are optional, because humans authenticate by
/// token. The pipelines decide which proof a request needs.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: RootCertStore,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if authorities.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider())
            .allow_unauthenticated()
            .build();
        builder.with_client_cert_verifier(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
