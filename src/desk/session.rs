//! Sessions of signed-in humans. A session is a cookie with a MAC that only this deployment can make, so the server keeps nothing
//! about it but the ids of sessions that were ended early.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use crate::desk::Options;
use crate::entropy::{Entropy, NoEntropy, SystemEntropy, nonce};
use crate::jose;
use crate::jose::mac::MacKey;
use crate::model::chain::Human;
use crate::model::time::Timestamp;

/// Maximum number of ended sessions that are remembered. Humans end fewer of them within an hour.
const ENDED_MAX: usize = 100_000;

/// Contents of a session's cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    pub(super) id: String,
    /// Token that every form of the session repeats.
    pub(super) form: String,
    expires: i64,
    issuer: String,
    subject: String,
    pub(super) human: String,
    person: Option<String>,
    tenant: String,
    amr: Vec<String>,
    acr: String,
    signed_in: i64,
}

impl Session {
    /// Returns the human as the PDP knows her.
    pub(super) fn human(&self) -> Human {
        Human {
            issuer: self.issuer.clone(),
            subject: self.subject.clone(),
            id: self.human.clone(),
            person: self.person.clone(),
            tenant: self.tenant.clone(),
            amr: self.amr.clone(),
            acr: self.acr.clone(),
            issued_at: Timestamp::from_seconds(self.signed_in),
        }
    }

    /// Returns whether a form was rendered for this session.
    pub(super) fn made(&self, form: &str) -> bool {
        jose::same(&self.form, form)
    }
}

/// Makes, reads and ends sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    key: MacKey,
    name: &'static str,
    is_secure: bool,
    length: Duration,
    /// Ends of sessions that were ended early, by their ids.
    ended: Mutex<HashMap<String, i64>>,
}

impl Sessions {
    pub(super) fn new(key: &[u8; 32], options: &Options) -> Self {
        let is_secure = options.url.starts_with("https://");
        Self {
            key: MacKey::new(key),
            // Browsers accept the prefix only over TLS, and only from this host.
            name: if is_secure { "__Host-countersign" } else { "countersign-desk" },
            is_secure,
            length: options.session,
            ended: Mutex::default(),
        }
    }

    /// Returns the cookie of a new session.
    pub(super) fn begin(&self, human: &Human, now: Timestamp) -> Result<String, NoEntropy> {
        let random = || nonce(&SystemEntropy as &dyn Entropy);
        let session = Session {
            id: random()?,
            form: random()?,
            expires: now.plus(self.length).seconds(),
            issuer: human.issuer.clone(),
            subject: human.subject.clone(),
            human: human.id.clone(),
            person: human.person.clone(),
            tenant: human.tenant.clone(),
            amr: human.amr.clone(),
            acr: human.acr.clone(),
            signed_in: now.seconds(),
        };
        let sealed = self.key.seal(&session).map_err(|_| NoEntropy)?;
        Ok(self.cookie(self.name, &sealed, self.length))
    }

    /// Returns a cookie of this desk.
    pub(super) fn cookie(&self, name: &str, value: &str, life: Duration) -> String {
        let secure = if self.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={}{secure}", life.as_secs())
    }

    /// Returns the session of a request's cookie, if it is still valid.
    pub(super) fn read(&self, headers: &HeaderMap, now: Timestamp) -> Option<Session> {
        let session: Session = self.key.open(cookie(headers, self.name)?).ok()?;
        self.lasts(&session, now).then_some(session)
    }

    /// Returns whether a session has neither expired nor been ended.
    pub(super) fn lasts(&self, session: &Session, now: Timestamp) -> bool {
        now.seconds() < session.expires && !self.ended().contains_key(&session.id)
    }

    /// Ends a session on this server, and returns the cookie that removes it from the browser.
    pub(super) fn end(&self, session: &Session, now: Timestamp) -> String {
        let mut ended = self.ended();
        ended.retain(|_, expires| now.seconds() < *expires);
        if ended.len() < ENDED_MAX {
            ended.insert(session.id.clone(), session.expires);
        }
        self.cookie(self.name, "", Duration::ZERO)
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, HashMap<String, i64>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the value of a cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().split_once('=').filter(|(found, _)| *found == name))
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(key: u8, url: &str) -> Sessions {
        let options = Options {
            environment: String::new(),
            url: url.to_owned(),
            provider: None,
            link: std::path::PathBuf::new(),
            session: Duration::from_secs(600),
            webhooks: vec![],
            trace_url: String::new(),
            case_url: String::new(),
        };
        Sessions::new(&[key; 32], &options)
    }

    fn sent(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().expect("a pair");
        HeaderMap::from_iter([(header::COOKIE, format!("other=1; {pair}").parse().expect("a header"))])
    }

    #[test]
    fn a_session_is_this_deployment_s_ends_in_time_and_when_it_is_ended() {
        let own = sessions(1, "https://desk.example");
        let now = Timestamp::from_seconds(1_700_000_000);
        let human = Human { id: "lead-1".into(), amr: vec!["mfa".into()], ..Human::default() };
        let cookie = own.begin(&human, now).expect("a cookie");
        assert!(cookie.starts_with("__Host-countersign=") && cookie.contains("; Secure"), "{cookie}");
        assert!(cookie.contains("; HttpOnly; SameSite=Lax; Max-Age=600"), "{cookie}");
        let read = own.read(&sent(&cookie), now).expect("a session");
        assert_eq!(read.human(), Human { issued_at: now, ..human.clone() });
        assert!(read.made(&read.form) && !read.made("") && !read.made(&read.id));
        assert_eq!(own.read(&sent(&cookie), now.plus(Duration::from_secs(600))), None, "it has ended");
        assert_eq!(sessions(2, "https://desk.example").read(&sent(&cookie), now), None, "another key");
        let changed = cookie.replacen("=ey", "=fy", 1);
        assert_ne!(changed, cookie);
        assert_eq!(own.read(&sent(&changed), now), None);
        let next = own.begin(&human, now).expect("a cookie");
        let next = own.read(&sent(&next), now).expect("a session");
        assert!(next.id != read.id && next.form != read.form, "no session is like another");
        assert!(own.end(&read, now).contains("Max-Age=0"));
        assert_eq!(own.read(&sent(&cookie), now), None, "it was ended");
        assert!(!sessions(1, "http://127.0.0.1:7072").begin(&human, now).expect("a cookie").contains("Secure"));
    }
}
