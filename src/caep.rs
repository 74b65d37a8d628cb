//! Security events from outside: SETs (RFC 8417) of the Continuous Access Evaluation Profile (OpenID CAEP 1.0), pushed by the
//! transmitters that the settings name (RFC 8935). A signed event is read into a signal; what it may do is policy.

use std::collections::HashMap;
use std::time::Duration;

use crate::delegation::issuers::{Issuer, IssuerError, Issuers, SECURITY_EVENT};
use crate::jose::{self, Algorithm};
use crate::json::{Object, Value};
use crate::model::halt::{Severity, SignalKind, SubjectKind};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// Before the name of each CAEP event.
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
/// The event by which a transmitter tries its stream (OpenID SSF 1.0).
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";
/// How old an event may be: after it, its `jti` is no longer remembered.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest id.
const ID_MAX: usize = 128;

/// A transmitter, as the settings name it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transmitter {
    /// `iss` of its events.
    pub issuer: String,
    /// JWKS: a file, or an `https://` URL.
    pub keys: String,
    /// The one algorithm of its events.
    pub algorithm: Algorithm,
    /// The tenant that it speaks for.
    pub tenant: String,
    /// The tool service that it is: policies say what it may report.
    pub tool_service: String,
    /// `iss` of its subjects, if it is another than its own.
    #[serde(default)]
    pub subject_issuer: Option<String>,
    /// Put before a subject's `sub` or `id` to make the id of the entity.
    #[serde(default)]
    pub subject_prefix: String,
}

/// The transmitters and their keys.
#[derive(Debug)]
pub struct Transmitters {
    issuers: Issuers,
    of: HashMap<String, Transmitter>,
}

/// An event, verified and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who sent it.
    pub transmitter: Transmitter,
    /// Its id: `jti`.
    pub id: String,
    /// The event's name, of a closed set.
    pub name: &'static str,
    /// What it says; `None`: nothing that changes anything.
    pub says: Option<Says>,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Says {
    /// Of what kind of subject.
    pub subject_kind: SubjectKind,
    /// Its entity's id.
    pub subject: String,
    /// What happened.
    pub kind: SignalKind,
    /// How bad.
    pub severity: Severity,
    /// When.
    pub at: Timestamp,
}

impl Transmitters {
    /// Reads the key files; URLs are asked by [`Transmitters::refresh`].
    ///
    /// # Errors
    /// When a key file can't be used.
    pub fn new(transmitters: Vec<Transmitter>, audience: String) -> Result<Self, IssuerError> {
        let issuers = transmitters.iter().map(|transmitter| Issuer {
            issuer: transmitter.issuer.clone(),
            tenant: transmitter.tenant.clone(),
            keys: transmitter.keys.clone(),
            algorithm: transmitter.algorithm,
            typ: SECURITY_EVENT.to_owned(),
            person_claim: None,
            actor_issuers: vec![],
            subject_prefix: transmitter.subject_prefix.clone(),
            bound: false,
        });
        let issuers = Issuers::new(issuers.collect(), audience)?;
        Ok(Self { issuers, of: transmitters.into_iter().map(|transmitter| (transmitter.issuer.clone(), transmitter)).collect() })
    }

    /// Reads key files again, and asks the URLs whose keys are old.
    pub async fn refresh(&self, now: Timestamp) -> Vec<IssuerError> {
        self.issuers.refresh(now).await
    }

    /// Verifies an event and reads it.
    ///
    /// # Errors
    /// UNAUTHENTICATED when it is not of a transmitter, INVALID_ARGUMENT when it can't be read.
    pub async fn open(&self, token: &str, now: Timestamp) -> Result<Event, Refusal> {
        let (issuer, opened) = self.issuers.open(token, now).await?;
        let transmitter = self.of.get(&issuer.issuer).ok_or(Refusal::Unauthenticated("the event is of no transmitter that is trusted"))?;
        let issued_at = opened.times().issued_at;
        let claims = opened.at(now, jose::LEEWAY_ISSUERS, Duration::MAX).map_err(|fault| Refusal::Unauthenticated(fault.words()))?;
        if issued_at.plus(AGE_MAX) <= now {
            return Err(Refusal::invalid("iat", "is more than a day ago"));
        }
        read(transmitter, &claims, issued_at)
    }
}

fn read(transmitter: &Transmitter, claims: &Object, issued_at: Timestamp) -> Result<Event, Refusal> {
    let id = text(claims, "jti").filter(|id| is_id(id)).ok_or_else(|| Refusal::invalid("jti", "is no id"))?.to_owned();
    let events = claims.get("events").and_then(Value::as_object).ok_or_else(|| Refusal::invalid("events", "is missing"))?;
    let mut each = events.iter();
    let (Some((uri, payload)), None) = (each.next(), each.next()) else {
        return Err(Refusal::invalid("events", "must hold one event"));
    };
    let event = |name, says| Ok(Event { transmitter: transmitter.clone(), id: id.clone(), name, says });
    if uri == VERIFICATION {
        return event("verification", None);
    }
    // What is not understood is acknowledged, and changes nothing (SSF 1.0).
    let Some((name, kind)) = uri.strip_prefix(CAEP).and_then(known) else { return event("unknown", None) };
    let payload = payload.as_object().ok_or_else(|| Refusal::invalid("events", "holds an event that is no object"))?;
    let Some(kind) = kind else { return event(name, None) };
    let at = match payload.get("event_timestamp") {
        None => issued_at,
        Some(Value::Integer(seconds)) if *seconds > 0 => Timestamp::from_seconds(*seconds),
        Some(_) => return Err(Refusal::invalid("events.event_timestamp", "is no time in whole seconds")),
    };
    let severity = severity(kind, payload)?;
    let (subject_kind, subject) = subject(transmitter, claims, payload)?;
    event(name, Some(Says { subject_kind, subject, kind, severity, at }))
}

/// The events of CAEP 1.0, and what they are to us.
fn known(name: &str) -> Option<(&'static str, Option<SignalKind>)> {
    match name {
        "assurance-level-change" => Some(("assurance_level_change", Some(SignalKind::AssuranceLevelChange))),
        "credential-change" => Some(("credential_change", Some(SignalKind::CredentialChange))),
        "device-compliance-change" => Some(("device_compliance_change", Some(SignalKind::DeviceComplianceChange))),
        "risk-level-change" => Some(("risk_level_change", Some(SignalKind::RiskLevelChange))),
        "session-established" => Some(("session_established", None)),
        "session-presented" => Some(("session_presented", None)),
        "session-revoked" => Some(("session_revoked", Some(SignalKind::SessionRevoked))),
        "token-claims-change" => Some(("token_claims_change", Some(SignalKind::TokenClaimsChange))),
        _ => None,
    }
}

/// How bad an event is. A change for the better is for the record: a signal lowers permission, or nothing.
fn severity(kind: SignalKind, payload: &Object) -> Result<Severity, Refusal> {
    let unreadable = |field: &'static str| Err(Refusal::invalid(field, "is missing, or none of the profile's values"));
    match kind {
        SignalKind::AssuranceLevelChange => match text(payload, "change_direction") {
            Some("increase") => Ok(Severity::Info),
            Some("decrease") | None => Ok(Severity::Medium),
            Some(_) => unreadable("events.change_direction"),
        },
        SignalKind::DeviceComplianceChange => match text(payload, "current_status") {
            Some("compliant") => Ok(Severity::Info),
            Some("not-compliant") => Ok(Severity::Medium),
            Some(_) | None => unreadable("events.current_status"),
        },
        SignalKind::RiskLevelChange => match text(payload, "current_level") {
            Some("HIGH") => Ok(Severity::High),
            Some("MEDIUM") => Ok(Severity::Medium),
            Some("LOW") => Ok(Severity::Low),
            Some(_) | None => unreadable("events.current_level"),
        },
        SignalKind::CredentialChange
        | SignalKind::FraudSuspected
        | SignalKind::KillSwitch
        | SignalKind::SessionRevoked
        | SignalKind::TokenClaimsChange => Ok(Severity::High),
    }
}

/// Whom an event is about (RFC 9493): a user is a human, an application an agent. Older transmitters put the subject into the event.
fn subject(transmitter: &Transmitter, claims: &Object, payload: &Object) -> Result<(SubjectKind, String), Refusal> {
    let given = claims.get("sub_id").or_else(|| payload.get("subject")).and_then(Value::as_object);
    let given = given.ok_or_else(|| Refusal::invalid("sub_id", "is missing"))?;
    if text(given, "format") != Some("complex") {
        return Ok((SubjectKind::Supervisor, simple(transmitter, given)?));
    }
    let member = |name: &str| given.get(name).and_then(Value::as_object);
    if member("tenant").is_some_and(|tenant| text(tenant, "id") != Some(transmitter.tenant.as_str())) {
        return Err(Refusal::invalid("sub_id.tenant", "is not the transmitter's"));
    }
    match (member("user"), member("application"), member("tenant")) {
        (Some(user), None, _) => Ok((SubjectKind::Supervisor, simple(transmitter, user)?)),
        (None, Some(application), _) => Ok((SubjectKind::Agent, simple(transmitter, application)?)),
        (None, None, Some(_)) => Ok((SubjectKind::Tenant, transmitter.tenant.clone())),
        (Some(_), Some(_), _) | (None, None, None) => {
            Err(Refusal::invalid("sub_id", "must name one of `user`, `application` and `tenant`"))
        }
    }
}

fn simple(transmitter: &Transmitter, subject: &Object) -> Result<String, Refusal> {
    let issuer = transmitter.subject_issuer.as_ref().unwrap_or(&transmitter.issuer);
    let id = match text(subject, "format") {
        Some("iss_sub") if text(subject, "iss") == Some(issuer) => text(subject, "sub"),
        Some("iss_sub") => return Err(Refusal::invalid("sub_id.iss", "is not the issuer of the transmitter's subjects")),
        Some("opaque") => text(subject, "id"),
        Some(_) | None => return Err(Refusal::invalid("sub_id.format", "must be `iss_sub`, `opaque` or `complex`")),
    };
    let id = id.filter(|id| !id.is_empty()).map(|id| format!("{}{id}", transmitter.subject_prefix)).filter(|id| is_id(id));
    id.ok_or_else(|| Refusal::invalid("sub_id", "names no id"))
}

fn is_id(id: &str) -> bool {
    (1..=ID_MAX).contains(&id.len()) && !id.chars().any(crate::model::text::is_unprintable)
}

fn text<'a>(members: &'a Object, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transmitter() -> Transmitter {
        Transmitter {
            issuer: "https://idp.example".into(),
            keys: String::new(),
            algorithm: Algorithm::Es256,
            tenant: "acme".into(),
            tool_service: "session-manager".into(),
            subject_issuer: None,
            subject_prefix: "idp-".into(),
        }
    }

    fn event(name: &str, payload: &str, subject: &str) -> Result<Event, Refusal> {
        let claims = format!(r#"{{"jti":"1","sub_id":{subject},"events":{{"{CAEP}{name}":{payload}}}}}"#);
        read(&transmitter(), &crate::json::read_object(claims.as_bytes()).expect("JSON"), Timestamp::from_seconds(100))
    }

    #[test]
    fn a_change_for_the_better_is_for_the_record_and_what_is_not_of_the_profile_is_refused() {
        let user = r#"{"format":"opaque","id":"7"}"#;
        let severity = |name: &str, payload: &str| event(name, payload, user).map(|event| event.says.map(|says| says.severity));
        assert_eq!(severity("assurance-level-change", r#"{"change_direction":"increase"}"#), Ok(Some(Severity::Info)));
        assert_eq!(severity("assurance-level-change", r#"{"change_direction":"decrease"}"#), Ok(Some(Severity::Medium)));
        assert_eq!(severity("device-compliance-change", r#"{"current_status":"compliant"}"#), Ok(Some(Severity::Info)));
        assert_eq!(severity("risk-level-change", r#"{"current_level":"LOW"}"#), Ok(Some(Severity::Low)));
        assert_eq!(severity("session-presented", "{}"), Ok(None));
        assert!(severity("risk-level-change", "{}").is_err());
        assert!(severity("device-compliance-change", r#"{"current_status":"unsure"}"#).is_err());
        assert!(severity("session-revoked", r#"{"event_timestamp":-1}"#).is_err());
    }

    #[test]
    fn subjects_are_whom_the_transmitter_may_name() {
        let of =
            |subject: &str| event("session-revoked", "{}", subject).map(|event| event.says.map(|says| (says.subject_kind, says.subject)));
        let human = |id: &str| Ok(Some((SubjectKind::Supervisor, id.to_owned())));
        assert_eq!(of(r#"{"format":"opaque","id":"7"}"#), human("idp-7"));
        assert_eq!(of(r#"{"format":"iss_sub","iss":"https://idp.example","sub":"7"}"#), human("idp-7"));
        let application = r#"{"format":"complex","application":{"format":"opaque","id":"bot"}}"#;
        assert_eq!(of(application), Ok(Some((SubjectKind::Agent, "idp-bot".to_owned()))));
        for wrong in [
            r#"{"format":"iss_sub","iss":"https://other.example","sub":"7"}"#,
            r#"{"format":"email","email":"a@example.com"}"#,
            r#"{"format":"opaque","id":""}"#,
            r#"{"format":"complex","user":{"format":"opaque","id":"7"},"tenant":{"format":"opaque","id":"globex"}}"#,
            r#"{"format":"complex"}"#,
            r#""7""#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_claims_never_panic(text in "[\\PC]{0,200}", name in "[a-z-]{0,30}") {
            let quoted = serde_json::Value::from(text.as_str()).to_string();
            for claims in [text.clone(), format!(r#"{{"jti":{quoted},"events":{{"{CAEP}{name}":{{"current_level":{quoted}}}}},"sub_id":{{"format":"opaque","id":{quoted}}}}}"#)] {
                if let Ok(claims) = crate::json::read_object(claims.as_bytes()) {
                    let _read = read(&transmitter(), &claims, Timestamp::default());
                }
            }
        }
    }
}
