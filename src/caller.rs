//! Peer → caller: who calls, by X.509-SVID, Unix peer credentials, JWT-SVID, or not at all in development mode.
//!
//! The tool service and its tenants follow from what was proven, never from the request.

pub mod svid;
pub mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::caller::svid::{SpiffeId, Svid};
use crate::caller::tls::{Trust, TrustError};
use crate::jose::{self, Algorithm, Expected, TokenFault};
use crate::model::chain::{Authentication, Caller, DevelopmentDefaults};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// How long a JWT-SVID may live: it is a bearer token.
const JWT_SVID_MAX: Duration = Duration::from_secs(3600);

/// The other end of a connection, and the bearer token that came with the request.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address, if the transport has one.
    pub address: Option<SocketAddr>,
    /// The operating system's user at the other end of a Unix socket.
    pub user: Option<u32>,
    /// The certificate that it proved to hold.
    pub svid: Option<Arc<Svid>>,
    /// What makes the certificate that it showed no identity.
    pub fault: Option<&'static str>,
    /// The `authorization: Bearer` token of the request; verified by whoever uses it.
    pub bearer: Option<String>,
    /// Whether a request of the connection was identified: what is bounded for unknown peers is not bounded for it any more.
    pub known: Arc<AtomicBool>,
}

impl Peer {
    /// The address without the port, as records name a peer.
    pub fn host(&self) -> String {
        match (self.address, self.user) {
            (Some(address), _) => address.ip().to_string(),
            (None, Some(user)) => format!("uid:{user}"),
            (None, None) => "unknown".to_owned(),
        }
    }

    /// True for a peer on this machine's loopback interface.
    fn is_loopback(&self) -> bool {
        self.address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// A trust domain, as the settings name it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustDomain {
    /// Its name, e.g. `acme.example`.
    pub name: String,
    /// PEM file of its certificate authorities; reloaded.
    pub bundle: PathBuf,
    /// The tenants that its identities may speak for.
    pub tenants: Vec<String>,
    /// JWKS file of its JWT-SVID keys; reloaded. Without it, no JWT-SVID of the domain is accepted.
    #[serde(default)]
    pub jwt_keys: Option<PathBuf>,
}

/// Who is trusted, as the settings say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Trust every process on the loopback interface.
    pub development: bool,
    /// Trust domains.
    pub trust_domains: Vec<TrustDomain>,
    /// SPIFFE ids and the tool services that they are.
    pub identities: HashMap<String, String>,
    /// Operating system users and the tool services that they are.
    pub users: HashMap<u32, String>,
    /// Accept JWT-SVIDs for this audience.
    pub jwt_audience: Option<String>,
    /// PEM files of the server's certificate chain and key.
    pub server: Option<(PathBuf, PathBuf)>,
}

/// Says who calls. What it trusts is reloaded live.
#[derive(Debug)]
pub struct Callers {
    options: Options,
    trust: ArcSwap<Trust>,
}

/// The caller where the bundle names none for development: a conformance bundle has no tool services.
const NAMELESS: &str = "development";

impl Callers {
    /// Reads what is trusted.
    ///
    /// # Errors
    /// When a certificate, key or key set can't be used.
    pub fn new(options: Options) -> Result<Self, TrustError> {
        let trust = ArcSwap::from_pointee(Trust::read(&options, 0)?);
        Ok(Self { options, trust })
    }

    /// Reads certificates, authorities and keys again; true when they changed. A fault keeps what was trusted before.
    ///
    /// # Errors
    /// When a certificate, key or key set can't be used.
    pub fn reload(&self) -> Result<bool, TrustError> {
        let current = self.trust.load();
        let read = Trust::read(&self.options, current.generation + 1)?;
        let changed = read.digest != current.digest;
        if changed {
            self.trust.store(Arc::new(read));
        }
        Ok(changed)
    }

    /// What is trusted now.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// True when bearer tokens may be JWT-SVIDs.
    pub fn takes_jwt_svids(&self) -> bool {
        self.options.jwt_audience.is_some()
    }

    /// Whose a connection is, as far as its transport proves it: a certificate of a trusted authority that is listed, a listed user of
    /// a Unix socket, or anybody on the loopback interface in development mode.
    pub fn owner(&self, peer: &Peer) -> Option<&str> {
        match (&peer.svid, peer.user) {
            (Some(svid), _) => self.options.identities.get(svid.id.as_str()).map(String::as_str),
            (None, Some(user)) => self.options.users.get(&user).map(String::as_str),
            (None, None) => (self.options.development && peer.is_loopback()).then_some(NAMELESS),
        }
    }

    /// Says who calls, at this instant: a certificate that was good in the handshake may be over, or its authority revoked.
    ///
    /// # Errors
    /// UNAUTHENTICATED, when nothing proves it.
    pub fn identify(&self, peer: &Peer, development: Option<&DevelopmentDefaults>, now: Timestamp) -> Result<Caller, Refusal> {
        let identified = self.identified(peer, development, now);
        peer.known.fetch_or(identified.is_ok(), Ordering::AcqRel);
        identified
    }

    fn identified(&self, peer: &Peer, development: Option<&DevelopmentDefaults>, now: Timestamp) -> Result<Caller, Refusal> {
        let trust = self.trust.load();
        if let Some(svid) = &peer.svid {
            let domain = trust.judge(svid, now).map_err(Refusal::Unauthenticated)?;
            return self.known(&svid.id, Authentication::Mtls, &domain.tenants, Some(svid.digest));
        }
        if let Some(fault) = peer.fault {
            return Err(Refusal::Unauthenticated(fault));
        }
        if let Some(user) = peer.user {
            let tool_service = self.options.users.get(&user);
            let tool_service = tool_service.ok_or(Refusal::Unauthenticated("the user of this Unix socket is no tool service"))?;
            return Ok(Caller { tool_service: tool_service.clone(), by: Authentication::UnixPeer, tenants: None, certificate: None });
        }
        if let (Some(audience), Some(token)) = (&self.options.jwt_audience, &peer.bearer) {
            let (id, tenants) = jwt_svid(&trust, token, audience, now).map_err(|fault| Refusal::Unauthenticated(fault.words()))?;
            return self.known(&id, Authentication::JwtSvid, &tenants, None);
        }
        if !self.options.development {
            return Err(Refusal::Unauthenticated("the caller proves no identity: connect with an X.509-SVID"));
        }
        if !peer.is_loopback() {
            return Err(Refusal::Unauthenticated("development mode takes callers on the loopback interface alone"));
        }
        let tool_service = development.map_or_else(|| NAMELESS.to_owned(), |defaults| defaults.tool_service.clone());
        Ok(Caller { tool_service, by: Authentication::Development, tenants: None, certificate: None })
    }

    fn known(&self, id: &SpiffeId, by: Authentication, tenants: &[String], certificate: Option<[u8; 32]>) -> Result<Caller, Refusal> {
        let tool_service = self.options.identities.get(id.as_str());
        let tool_service = tool_service.ok_or(Refusal::Unauthenticated("the caller's identity is no tool service of the settings"))?;
        Ok(Caller { tool_service: tool_service.clone(), by, tenants: Some(tenants.to_vec()), certificate })
    }
}

/// A JWT-SVID (SPIFFE): `sub` is the identity, `aud` ours alone, `exp` near.
fn jwt_svid(trust: &Trust, token: &str, audience: &str, now: Timestamp) -> Result<(SpiffeId, Vec<String>), TokenFault> {
    #[derive(serde::Deserialize)]
    struct Claims {
        sub: String,
    }
    let typ = ["JWT", "JOSE"];
    for algorithm in [Algorithm::Es256, Algorithm::Rs256, Algorithm::Ps256] {
        let expected = Expected { typ: &typ, typ_optional: true, bare_header: true, algorithm, issuer: None, audience, event: false };
        for domain in trust.domains.iter() {
            let Some(keys) = &domain.jwt_keys else { continue };
            let opened = match jose::open::<Claims>(token, keys, &expected) {
                Ok(opened) => opened,
                // Another domain's key, or another of the algorithms.
                Err(TokenFault::Key | TokenFault::Algorithm) => continue,
                Err(fault) => return Err(fault),
            };
            let times = opened.times();
            if times.expires_at > now.plus(JWT_SVID_MAX) {
                return Err(TokenFault::Life);
            }
            // `iat` may be absent, so the life is measured from now.
            let claims = opened.at(now, jose::LEEWAY_ISSUERS, Duration::from_secs(u64::from(u32::MAX)))?;
            let id = SpiffeId::parse(&claims.sub).filter(|id| id.domain() == domain.name).ok_or(TokenFault::Issuer)?;
            return Ok((id, domain.tenants.clone()));
        }
    }
    Err(TokenFault::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_peers_are_trusted_and_only_in_development_mode() {
        let defaults = DevelopmentDefaults { tool_service: "crm".into(), agent: "a".into(), supervisor: "s".into(), step: "intake".into() };
        let callers = |development| Callers::new(Options { development, ..Options::default() }).expect("no files");
        let (open, closed) = (callers(true), callers(false));
        let peer = |address: &str| Peer { address: address.parse().ok(), ..Peer::default() };
        let by = |callers: &Callers, address: &str| callers.identify(&peer(address), Some(&defaults), Timestamp::default());
        for trusted in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(by(&open, trusted).map(|caller| caller.tool_service), Ok("crm".into()), "{trusted}");
            assert!(matches!(by(&closed, trusted), Err(Refusal::Unauthenticated(_))), "{trusted}");
        }
        for refused in ["192.0.2.1:1", "0.0.0.0:1", "[::]:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1", "no address"] {
            assert!(matches!(by(&open, refused), Err(Refusal::Unauthenticated(_))), "{refused}");
        }
    }
}
