//! Authenticates callers by X.509-SVID, Unix peer credentials or JWT-SVID. In development mode, peers on the
//! loopback interface are trusted without proof.
//!
//! A caller's tool service and its tenants follow from the proven identity, never from the request.

pub mod svid;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::caller::svid::{SpiffeId, Svid};
pub use crate::caller::tls::{Options, TrustDomain};
use crate::caller::tls::{Trust, TrustError};
use crate::jose::{self, Algorithm, Expected, TokenFault};
use crate::model::chain::{Authentication, Caller, DevelopmentDefaults, Human};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// Maximum life of a JWT-SVID, which is short because anyone who obtains a bearer token can use it.
const JWT_SVID_MAX: Duration = Duration::from_secs(3600);

/// The other end of a connection, and the bearer token that came with the request.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Address of the peer, if the transport has one.
    pub address: Option<SocketAddr>,
    /// Operating system user at the other end of a Unix socket.
    pub user: Option<u32>,
    /// Certificate whose private key the peer proved to have.
    pub svid: Option<Arc<Svid>>,
    /// Reason why the peer's certificate is not an X.509-SVID.
    pub fault: Option<&'static str>,
    /// The request's `authorization: Bearer` token, which is not verified yet.
    pub bearer: Option<String>,
    /// Human whom the desk has authenticated. It signed her in itself, so the request has no token.
    pub human: Option<Arc<Human>>,
    /// Whether a request on the connection was authenticated. If so, the limits on unauthenticated peers no
    /// longer apply.
    pub known: Arc<AtomicBool>,
}

impl Peer {
    /// Returns the name of the peer in records: its address without the port, or its user.
    pub fn host(&self) -> String {
        match (self.address, self.user) {
            (Some(address), _) => address.ip().to_string(),
            (None, Some(user)) => format!("uid:{user}"),
            (None, None) => "unknown".to_owned(),
        }
    }

    /// Returns the id that the peer claims, which is not proven: of its certificate, its user, or its bearer token.
    /// Empty if it claims none.
    pub fn claimed_id(&self) -> String {
        let of_token = || Some(jose::claimed_subject(self.bearer.as_ref()?)?.1);
        match (&self.svid, self.user) {
            (Some(svid), _) => svid.id.as_str().to_owned(),
            (None, Some(user)) => format!("uid:{user}"),
            (None, None) => of_token().unwrap_or_default(),
        }
    }

    /// Returns whether the peer is on this machine's loopback interface.
    fn is_loopback(&self) -> bool {
        self.address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// Authenticates callers by certificates, authorities and keys, which can be reloaded while the server runs.
#[derive(Debug)]
pub struct Callers {
    options: Options,
    trust: ArcSwap<Trust>,
}

/// Name of the caller in development mode if the bundle names none; a conformance bundle has no tool
/// services.
const NAMELESS: &str = "development";

impl Callers {
    /// Reads the certificates, authorities and keys that the options name.
    ///
    /// # Errors
    /// Returns an error if one of them can't be used.
    pub fn new(options: Options) -> Result<Self, TrustError> {
        let trust = ArcSwap::from_pointee(Trust::read(&options, 0)?);
        Ok(Self { options, trust })
    }

    /// Reads certificates, authorities and keys again; returns whether they changed. After an error the
    /// previous ones stay in force.
    ///
    /// # Errors
    /// Returns an error if one of them can't be used.
    pub fn reload(&self) -> Result<bool, TrustError> {
        let current = self.trust.load();
        let read = Trust::read(&self.options, current.generation + 1)?;
        let changed = read.digest != current.digest;
        if changed {
            self.trust.store(Arc::new(read));
        }
        Ok(changed)
    }

    /// Returns the certificates, authorities and keys in force.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Returns whether bearer tokens may be JWT-SVIDs.
    pub fn takes_jwt_svids(&self) -> bool {
        self.options.jwt_audience.is_some()
    }

    /// Returns the caller that a connection belongs to, as far as its transport proves one: a listed identity
    /// with a certificate of a trusted authority, a listed user of a Unix socket, or any peer on the loopback
    /// interface in development mode.
    pub fn owner(&self, peer: &Peer) -> Option<&str> {
        match (&peer.svid, peer.user) {
            (Some(svid), _) => self.options.identities.get(svid.id.as_str()).map(String::as_str),
            (None, Some(user)) => self.options.users.get(&user).map(String::as_str),
            (None, None) => (self.options.development && peer.is_loopback()).then_some(NAMELESS),
        }
    }

    /// Authenticates the peer at this instant. Since the handshake its certificate may have expired, or its
    /// authority may have been removed.
    ///
    /// # Errors
    /// Returns UNAUTHENTICATED if nothing proves the peer's identity.
    pub fn identify(
        &self,
        peer: &Peer,
        development: Option<&DevelopmentDefaults>,
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
        let identified = self.identified(peer, development, now);
        peer.known.fetch_or(identified.is_ok(), Ordering::AcqRel);
        identified
    }

    fn identified(
        &self,
        peer: &Peer,
        development: Option<&DevelopmentDefaults>,
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
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
            let tool_service = tool_service.ok_or(Refusal::Unauthenticated(
                "the user of this Unix socket is not a tool service of the settings",
            ))?;
            return Ok(Caller {
                tool_service: tool_service.clone(),
                by: Authentication::UnixPeer,
                tenants: None,
                certificate: None,
            });
        }
        if let (Some(audience), Some(token)) = (&self.options.jwt_audience, &peer.bearer) {
            let (id, tenants) = self
                .jwt_svid(&trust, token, audience, now)
                .map_err(|fault| Refusal::Unauthenticated(fault.message()))?;
            return self.known(&id, Authentication::JwtSvid, &tenants, None);
        }
        if !self.options.development {
            return Err(Refusal::Unauthenticated("the caller is not authenticated: connect with an X.509-SVID"));
        }
        if !peer.is_loopback() {
            return Err(Refusal::Unauthenticated("development mode accepts only callers on the loopback interface"));
        }
        let tool_service = development.map_or_else(|| NAMELESS.to_owned(), |defaults| defaults.tool_service.clone());
        Ok(Caller { tool_service, by: Authentication::Development, tenants: None, certificate: None })
    }

    /// Verifies a JWT-SVID (SPIFFE). Its `sub` is the identity, its `aud` must be this server only, and its `exp`
    /// must be at most an hour ahead.
    fn jwt_svid(
        &self,
        trust: &Trust,
        token: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<(SpiffeId, Vec<String>), TokenFault> {
        #[derive(serde::Deserialize)]
        struct Claims {
            sub: String,
        }
        let typ = ["JWT", "JOSE"];
        for algorithm in [Algorithm::Es256, Algorithm::Rs256, Algorithm::Ps256] {
            let expected = Expected {
                typ: &typ,
                typ_optional: true,
                bare_header: true,
                algorithm,
                issuer: None,
                audience,
                event: false,
            };
            for domain in trust.domains.iter() {
                let Some(keys) = &domain.jwt_keys else { continue };
                let opened = match jose::open::<Claims>(token, keys, &expected) {
                    Ok(opened) => opened,
                    // The key may be another domain's, or the algorithm another one of the three.
                    Err(TokenFault::Key | TokenFault::Algorithm) => continue,
                    Err(fault) => return Err(fault),
                };
                let times = opened.times();
                if times.expires_at > now.plus(JWT_SVID_MAX) {
                    return Err(TokenFault::Life);
                }
                // `iat` may be absent, so the life is measured from now.
                let claims = opened.at(now, self.options.leeway, Duration::from_secs(u64::from(u32::MAX)))?;
                let id =
                    SpiffeId::parse(&claims.sub).filter(|id| id.domain() == domain.name).ok_or(TokenFault::Issuer)?;
                return Ok((id, domain.tenants.clone()));
            }
        }
        Err(TokenFault::Key)
    }

    fn known(
        &self,
        id: &SpiffeId,
        by: Authentication,
        tenants: &[String],
        certificate: Option<[u8; 32]>,
    ) -> Result<Caller, Refusal> {
        let tool_service = self.options.identities.get(id.as_str());
        let tool_service = tool_service
            .ok_or(Refusal::Unauthenticated("the caller's identity is not a tool service of the settings"))?;
        Ok(Caller { tool_service: tool_service.clone(), by, tenants: Some(tenants.to_vec()), certificate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_peers_are_trusted_and_only_in_development_mode() {
        let defaults = DevelopmentDefaults {
            tool_service: "crm".into(),
            agent: "a".into(),
            supervisor: "s".into(),
            step: "intake".into(),
        };
        let callers = |development| Callers::new(Options { development, ..Options::default() }).expect("no files");
        let (open, closed) = (callers(true), callers(false));
        let peer = |address: &str| Peer { address: address.parse().ok(), ..Peer::default() };
        let by =
            |callers: &Callers, address: &str| callers.identify(&peer(address), Some(&defaults), Timestamp::default());
        for trusted in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(by(&open, trusted).map(|caller| caller.tool_service), Ok("crm".into()), "{trusted}");
            assert!(matches!(by(&closed, trusted), Err(Refusal::Unauthenticated(_))), "{trusted}");
        }
        for refused in ["192.0.2.1:1", "0.0.0.0:1", "[::]:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1", "no address"] {
            assert!(matches!(by(&open, refused), Err(Refusal::Unauthenticated(_))), "{refused}");
        }
    }
}
