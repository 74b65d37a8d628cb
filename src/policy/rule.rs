//! Reads a policy's annotations: the reason for a denial, the requirement that lifts it, and the obligations.

use std::collections::BTreeMap;

use cedar_policy_core::ast::{Effect, Policy};

use crate::model::answer::{Obligation, Reason};
use crate::model::content::Disposition;
use crate::model::fault::code::Code;
use crate::model::text::{is_unprintable, known};
use crate::policy::engine::id_text;

/// Annotations that a policy may have.
pub const ANNOTATIONS: [&str; 10] =
    ["advice", "disposition", "doc", "id", "obligation", "owner", "quorum", "reason", "requires", "user"];

/// Maximum length of the text of `@user`, in bytes.
const USER_MAX: usize = 300;

/// Reasons that a policy gives only by its `@requires`.
const REQUESTED: [Reason; 3] = [Reason::ApprovalRequired, Reason::CheckRequired, Reason::ConsentRequired];

const REQUIRES_FORM: &str = "`@requires` must be `approval:<template>`, `check:<name>` or `consent:<template>`";

const DISPOSITION_FORM: &str = "`@disposition` must be `block`, `human_review` or `revise`, on a `forbid`";

/// A requirement that lifts a `forbid`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// An approval with this template.
    Approval(String),
    /// A check with this name.
    Check(String),
    /// The customer's consent with this template.
    Consent(String),
}

impl Requirement {
    /// Parses `approval:<template>`, `check:<name>` or `consent:<template>`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("approval", template) if !template.is_empty() => Some(Self::Approval(template.to_owned())),
            ("check", name) if !name.is_empty() => Some(Self::Check(name.to_owned())),
            ("consent", template) if !template.is_empty() => Some(Self::Consent(template.to_owned())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Approval(template) => write!(formatter, "approval:{template}"),
            Self::Check(name) => write!(formatter, "check:{name}"),
            Self::Consent(template) => write!(formatter, "consent:{template}"),
        }
    }
}

/// Fault of an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationFault {
    pub code: Code,
    /// Name of the annotation, without `@`.
    pub annotation: String,
    pub message: String,
}

/// A policy as described by its annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub id: String,
    /// Whether the policy is a `forbid`.
    pub forbids: bool,
    /// Reason of a denial by the policy; `NotPermitted` can't be lifted.
    pub class: Reason,
    pub requires: Option<Requirement>,
    /// Number of humans who must approve to lift the policy.
    pub quorum: u32,
    /// Disposition of a draft that the policy forbids.
    pub disposition: Disposition,
    /// Obligations that apply when the policy is determining.
    pub obligations: Vec<Obligation>,
    /// Advice that applies when the policy is determining.
    pub advice: Vec<Obligation>,
    /// Text by which the agent and the customer may be told of a denial by the policy; empty if they may not.
    pub user: String,
    /// Explanation of the policy for people.
    pub doc: String,
    /// Position as `file:line`.
    pub place: String,
    /// The policy as it is written, for people.
    pub source: String,
}

fn is_user_text(text: &str) -> bool {
    (1..=USER_MAX).contains(&text.len()) && !text.chars().any(is_unprintable)
}

impl Rule {
    /// Reads a policy's annotations.
    ///
    /// # Errors
    /// All faults found.
    pub fn read(policy: &Policy, place: String) -> Result<Self, Vec<AnnotationFault>> {
        let annotations: BTreeMap<&str, &str> =
            policy.annotations().map(|(name, value)| (AsRef::<str>::as_ref(name), value.val.as_str())).collect();
        let mut faults: Vec<AnnotationFault> = annotations.keys().filter_map(|name| unknown(name)).collect();
        let mut fault = |annotation: &str, message: String| {
            let annotation = annotation.to_owned();
            faults.push(AnnotationFault { code: Code::AnnotationInvalid, annotation, message });
        };
        let annotation = |name: &str| annotations.get(name).copied();
        let forbids = policy.effect() == Effect::Forbid;
        let text = |name| annotation(name).unwrap_or("").to_owned();
        let requires = annotation("requires").and_then(Requirement::parse);
        if annotation("requires").is_some() && requires.is_none() {
            fault("requires", REQUIRES_FORM.to_owned());
        }
        let reason = annotation("reason").map(|name| Reason::from_name(name).filter(may_say));
        if reason == Some(None) {
            fault("reason", format!("`@reason` must be one of {}", names_to_say()));
        }
        if !forbids && (reason.is_some() || requires.is_some()) {
            fault(
                if reason.is_some() { "reason" } else { "requires" },
                "`@reason` and `@requires` are only allowed on a `forbid`, because a default denial names no policy"
                    .to_owned(),
            );
        }
        let class = match (&requires, reason.flatten()) {
            (Some(Requirement::Approval(_)), None | Some(Reason::ApprovalRequired)) => Reason::ApprovalRequired,
            (Some(Requirement::Check(_)), None | Some(Reason::CheckRequired)) => Reason::CheckRequired,
            (Some(Requirement::Consent(_)), None | Some(Reason::ConsentRequired)) => Reason::ConsentRequired,
            (None, None) => Reason::NotPermitted,
            (None, Some(reason)) if !REQUESTED.contains(&reason) => reason,
            (_, Some(reason)) => {
                fault("reason", format!("`@reason(\"{}\")` does not match its `@requires`", reason.name()));
                reason
            }
        };
        let quorum = annotation("quorum").map_or(Ok(1), str::parse);
        let readable = annotation("requires").is_some() == requires.is_some();
        if !matches!(quorum, Ok(1..=9))
            || (readable && annotation("quorum").is_some() && class != Reason::ApprovalRequired)
        {
            fault("quorum", "`@quorum` must be a number from 1 to 9 beside `@requires(\"approval:…\")`".to_owned());
        }
        let disposition = annotation("disposition").map_or(Some(Disposition::Block), Disposition::from_name);
        let forbidding = disposition.filter(|disposition| *disposition != Disposition::Release);
        if forbidding.is_none() || (annotation("disposition").is_some() && !forbids) {
            fault("disposition", DISPOSITION_FORM.to_owned());
        }
        if annotation("user").is_some_and(|text| !forbids || !is_user_text(text)) {
            fault("user", format!("`@user` must have 1 to {USER_MAX} bytes without control characters, on a `forbid`"));
        }
        // A value that can't be read is one of the faults.
        let (Ok(quorum), Some(disposition), true) = (quorum, forbidding, faults.is_empty()) else { return Err(faults) };
        Ok(Self {
            id: id_text(policy),
            forbids,
            class,
            requires,
            quorum,
            disposition,
            obligations: obligations(&text("obligation")),
            advice: obligations(&text("advice")),
            user: text("user"),
            doc: text("doc"),
            place,
            source: policy.to_string(),
        })
    }
}

/// Returns the names of the reasons that a policy may give.
fn names_to_say() -> String {
    let names = Reason::ALL.iter().filter(|reason| may_say(reason));
    names.map(|reason| format!("`{}`", reason.name())).collect::<Vec<_>>().join(", ")
}

/// Returns whether a policy may give this reason.
fn may_say(reason: &Reason) -> bool {
    *reason == Reason::NotPermitted || Reason::LIFTABLE.contains(reason)
}

/// Returns the fault of an annotation that does not exist.
fn unknown(name: &str) -> Option<AnnotationFault> {
    let message = || format!("has the unknown annotation `@{name}`{}", known(name, ANNOTATIONS));
    let annotation = name.to_owned();
    (!ANNOTATIONS.contains(&name)).then(|| AnnotationFault {
        code: Code::AnnotationUnknown,
        annotation,
        message: message(),
    })
}

/// Parses a list of the form `type:value; type:value`.
fn obligations(text: &str) -> Vec<Obligation> {
    text.split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (kind, value) = part.split_once(':').unwrap_or((part, ""));
            Obligation { kind: kind.trim().to_owned(), value: value.trim().to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rule, Vec<AnnotationFault>> {
        let policy: Policy = cedar_policy_core::parser::parse_policy(None, text).expect("a policy").into();
        Rule::read(&policy, "p.cedar:1".into())
    }

    #[test]
    fn annotations_become_class_requirement_and_obligations() {
        let rule = read(r#"@requires("approval:refund") @quorum("2") @obligation("route:fraud; return_only:a,b") forbid (principal, action, resource);"#)
            .expect("valid");
        assert_eq!((rule.class, rule.quorum), (Reason::ApprovalRequired, 2));
        assert_eq!(rule.requires, Some(Requirement::Approval("refund".into())));
        assert_eq!(rule.obligations[1], Obligation { kind: "return_only".into(), value: "a,b".into() });
    }

    #[test]
    fn annotations_that_would_mislead_are_refused() {
        for text in [
            r#"@reasn("x") forbid (principal, action, resource);"#,
            r#"@requires("refund") forbid (principal, action, resource);"#,
            r#"@requires("approval:refund") permit (principal, action, resource);"#,
            r#"@reason("approval_required") forbid (principal, action, resource);"#,
            r#"@reason("policy_error") forbid (principal, action, resource);"#,
            r#"@reason("because") forbid (principal, action, resource);"#,
            r#"@requires("check:x") @quorum("2") forbid (principal, action, resource);"#,
            r#"@requires("consent:x") @quorum("2") forbid (principal, action, resource);"#,
            r#"@requires("consent:") forbid (principal, action, resource);"#,
            r#"@reason("consent_required") forbid (principal, action, resource);"#,
            r#"@requires("approval:x") @quorum("0") forbid (principal, action, resource);"#,
            r#"@disposition("allow") forbid (principal, action, resource);"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
