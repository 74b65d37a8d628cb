//! Security events from outside: SETs (RFC 8417) of the Continuous Access Evaluation Profile (OpenID CAEP
//! 1.0), pushed by the transmitters in the settings (RFC 8935). A verified event is converted into a signal;
//! policies decide which signals a transmitter may report.

use std::collections::HashMap;
use std::time::Duration;

use crate::delegation::issuers::{Issuer, IssuerError, Issuers, SECURITY_EVENT};
use crate::jose::Algorithm;
use crate::json::{Object, Value};
use crate::model::halt::{Severity, SignalKind, SubjectKind};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;

/// Prefix of the URI of each CAEP event type.
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
/// Event by which a transmitter tests its stream (OpenID SSF 1.0).
const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";
/// Maximum age of an event, by `iat`. The state store keeps event ids for longer (30 days), so a replayed
/// event is either too old or recognized as a duplicate.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Maximum length of an id, in bytes.
const ID_MAX: usize = 128;

/// A transmitter as configured in the settings.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transmitter {
    /// `iss` of the transmitter's events.
    pub issuer: String,
    /// JWKS: a file path or an `https://` URL.
    pub keys: String,
    /// Signature algorithm; events signed with any other are rejected.
    pub algorithm: Algorithm,
    /// Tenant that the transmitter reports for.
    pub tenant: String,
    /// Tool service that the transmitter acts as; policies on it decide what may be reported.
    pub tool_service: String,
    /// `iss` of subjects, if it differs from the transmitter's own.
    #[serde(default)]
    pub subject_issuer: Option<String>,
    /// Prefix that turns a subject's `sub` or `id` into an entity id.
    #[serde(default)]
    pub subject_prefix: String,
}

/// The transmitters and their keys.
#[derive(Debug)]
pub struct Transmitters {
    issuers: Issuers,
    of: HashMap<String, Transmitter>,
}

/// A verified and parsed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub transmitter: Transmitter,
    /// Claim `jti`, which identifies the event.
    pub id: String,
    /// Name of the event type, from a closed set.
    pub name: &'static str,
    /// Content of the event; `None` if the event changes nothing.
    pub says: Option<Says>,
}

/// Content of an event, as a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Says {
    pub subject_kind: SubjectKind,
    /// Entity id of the subject.
    pub subject: String,
    pub kind: SignalKind,
    pub severity: Severity,
    /// `event_timestamp`, or `iat` if the event lacks it.
    pub at: Timestamp,
}

impl Transmitters {
    /// Reads the key files; keys from URLs are fetched by [`Transmitters::refresh`].
    ///
    /// # Errors
    /// If a key file can't be used.
    pub fn new(transmitters: Vec<Transmitter>, audience: String, leeway: Duration) -> Result<Self, IssuerError> {
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
        let issuers = Issuers::new(issuers.collect(), audience, leeway)?;
        Ok(Self {
            issuers,
            of: transmitters.into_iter().map(|transmitter| (transmitter.issuer.clone(), transmitter)).collect(),
        })
    }

    /// Rereads the key files and fetches the keys of URLs that are stale. On a failure the previous keys stay
    /// in use; faults of files are returned.
    pub async fn refresh(&self, now: Timestamp) -> Vec<IssuerError> {
        self.issuers.refresh(now).await
    }

    /// Returns the transmitters that have no keys now.
    pub fn without_keys(&self) -> Vec<String> {
        self.issuers.without_keys()
    }

    /// Verifies and parses an event.
    ///
    /// # Errors
    /// UNAUTHENTICATED if the token is not a valid one of a known transmitter, INVALID_ARGUMENT if its
    /// content is invalid or more than a day old.
    pub async fn open(&self, token: &str, now: Timestamp) -> Result<Event, Refusal> {
        let (issuer, opened) = self.issuers.open(token, now).await?;
        let transmitter = self
            .of
            .get(&issuer.issuer)
            .ok_or(Refusal::Unauthenticated("the event's issuer is not a configured transmitter"))?;
        let issued_at = opened.times().issued_at;
        let claims = opened
            .at(now, self.issuers.leeway(), Duration::MAX)
            .map_err(|fault| Refusal::Unauthenticated(fault.message()))?;
        if issued_at.plus(AGE_MAX) <= now {
            return Err(Refusal::invalid("iat", "is more than a day old"));
        }
        read(transmitter, &claims, issued_at)
    }
}

fn read(transmitter: &Transmitter, claims: &Object, issued_at: Timestamp) -> Result<Event, Refusal> {
    let id = text(claims, "jti")
        .filter(|id| is_id(id))
        .ok_or_else(|| Refusal::invalid("jti", "is not a valid id"))?
        .to_owned();
    let events =
        claims.get("events").and_then(Value::as_object).ok_or_else(|| Refusal::invalid("events", "is missing"))?;
    let mut each = events.iter();
    let (Some((uri, payload)), None) = (each.next(), each.next()) else {
        return Err(Refusal::invalid("events", "must contain exactly one event"));
    };
    let event = |name, says| Ok(Event { transmitter: transmitter.clone(), id: id.clone(), name, says });
    if uri == VERIFICATION {
        return event("verification", None);
    }
    // Unknown event types are acknowledged but change nothing (SSF 1.0).
    let Some((name, kind)) = uri.strip_prefix(CAEP).and_then(known) else { return event("unknown", None) };
    let payload =
        payload.as_object().ok_or_else(|| Refusal::invalid("events", "contains an event that is not an object"))?;
    let Some(kind) = kind else { return event(name, None) };
    let at = match payload.get("event_timestamp") {
        None => issued_at,
        Some(Value::Integer(seconds)) if *seconds > 0 => Timestamp::from_seconds(*seconds),
        Some(_) => return Err(Refusal::invalid("events.event_timestamp", "must be a time in whole seconds")),
    };
    let severity = severity(kind, payload)?;
    let (subject_kind, subject) = subject(transmitter, claims, payload)?;
    event(name, Some(Says { subject_kind, subject, kind, severity, at }))
}

/// Maps a CAEP 1.0 event type to its name and to the signal that the event becomes, if any.
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

/// Returns the severity of an event. A higher assurance level or a compliant device is `Info`, which is only
/// recorded: a signal may reduce permissions but never extend them.
fn severity(kind: SignalKind, payload: &Object) -> Result<Severity, Refusal> {
    let unreadable =
        |field: &'static str| Err(Refusal::invalid(field, "is missing or not a value of the CAEP profile"));
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

/// Returns the subject that an event is about (RFC 9493): a user is a supervisor, an application is an agent.
/// Older transmitters put the subject into the event's payload.
fn subject(transmitter: &Transmitter, claims: &Object, payload: &Object) -> Result<(SubjectKind, String), Refusal> {
    let given = claims.get("sub_id").or_else(|| payload.get("subject")).and_then(Value::as_object);
    let given = given.ok_or_else(|| Refusal::invalid("sub_id", "is missing"))?;
    if text(given, "format") != Some("complex") {
        return Ok((SubjectKind::Supervisor, simple(transmitter, given)?));
    }
    let member = |name: &str| given.get(name).and_then(Value::as_object);
    if member("tenant").is_some_and(|tenant| text(tenant, "id") != Some(transmitter.tenant.as_str())) {
        return Err(Refusal::invalid("sub_id.tenant", "is not the transmitter's tenant"));
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
        Some("iss_sub") => {
            return Err(Refusal::invalid("sub_id.iss", "is not the issuer configured for the transmitter's subjects"));
        }
        Some("opaque") => text(subject, "id"),
        Some(_) | None => return Err(Refusal::invalid("sub_id.format", "must be `iss_sub`, `opaque` or `complex`")),
    };
    let id =
        id.filter(|id| !id.is_empty()).map(|id| format!("{}{id}", transmitter.subject_prefix)).filter(|id| is_id(id));
    id.ok_or_else(|| Refusal::invalid("sub_id", "contains no valid id"))
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
        let severity =
            |name: &str, payload: &str| event(name, payload, user).map(|event| event.says.map(|says| says.severity));
        assert_eq!(severity("assurance-level-change", r#"{"change_direction":"increase"}"#), Ok(Some(Severity::Info)));
        assert_eq!(
            severity("assurance-level-change", r#"{"change_direction":"decrease"}"#),
            Ok(Some(Severity::Medium))
        );
        assert_eq!(severity("device-compliance-change", r#"{"current_status":"compliant"}"#), Ok(Some(Severity::Info)));
        assert_eq!(severity("risk-level-change", r#"{"current_level":"LOW"}"#), Ok(Some(Severity::Low)));
        assert_eq!(severity("session-presented", "{}"), Ok(None));
        assert!(severity("risk-level-change", "{}").is_err());
        assert!(severity("device-compliance-change", r#"{"current_status":"unsure"}"#).is_err());
        assert!(severity("session-revoked", r#"{"event_timestamp":-1}"#).is_err());
    }

    #[test]
    fn subjects_are_whom_the_transmitter_may_name() {
        let of = |subject: &str| {
            event("session-revoked", "{}", subject)
                .map(|event| event.says.map(|says| (says.subject_kind, says.subject)))
        };
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
