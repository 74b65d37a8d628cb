//! The PDP's own members of a call's Cedar context: approval, risk, rates, sums, findings and screening. The
//! functions are pure; `risk_signals.rs` gathers their input.

use crate::bundle::Bundle;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, Untrusted};
use crate::model::signals::{Risk, Screening, Signals};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::risk_state::risk_keys::VersionNames;
use crate::policy::Policies;
use crate::policy::shape::{Shape, Shapes};
use crate::risk::{Known, RiskRules};
use crate::risk_store::BatchResult;

/// Maximum sum that policies see, which is the largest integer of JSON.
const SUM_MAX: i64 = (1 << 53) - 1;

/// Returns the trusted context of a case without history.
pub fn calm(shapes: &Shapes) -> TrustedContext {
    let lowest = members(shapes, &["risk", "tier"]).first().map_or_else(String::new, String::clone);
    TrustedContext::nothing(risk(shapes, &Risk { tier: lowest, ..Risk::default() }))
}

/// Returns `context.risk` for a score, with only those members that the schema declares.
pub(super) fn risk(shapes: &Shapes, risk: &Risk) -> Value {
    let signals = risk.parts.iter().map(|part| Value::from(part.name.as_str())).collect();
    let all = [
        ("score", Value::Integer(i64::from(risk.score))),
        ("signals", Value::Array(signals)),
        ("tier", Value::from(risk.tier.as_str())),
    ];
    let declared =
        |name: &str| shapes.actions.values().any(|action| shapes.follow(&action.context, &["risk", name]).is_some());
    all.into_iter().filter(|(name, _)| declared(name)).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns `context.approval` for an approval. No other code builds it.
pub fn approval(template: &str, approvers: u32, expires: Value, limits: Value) -> Value {
    json::object([
        ("approvers", Value::Integer(i64::from(approvers))),
        ("expires", expires),
        ("limits", limits),
        ("template", Value::from(template)),
    ])
}

/// Returns `context.consent` for a consent. No other code builds it.
pub fn consent(template: &str, expires: Value) -> Value {
    json::object([("expires", expires), ("template", Value::from(template))])
}

/// Returns the arguments that an approval bounds, which are those that `context.approval.limits` declares.
pub(super) fn limits(shapes: &Shapes, arguments: &Object) -> Value {
    let declared = shapes.actions.values().find_map(|action| shapes.follow(&action.context, &["approval", "limits"]));
    match declared.map(|member| &member.shape) {
        Some(Shape::Record(limits)) => arguments
            .iter()
            .filter(|(name, _)| limits.contains_key(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        _ => Value::Object(Object::new()),
    }
}

/// Returns the members of the enumerated type at this path of `context`, in the order of their declaration.
/// Risk tiers are declared in rising order.
pub fn members<'a>(shapes: &'a Shapes, path: &[&str]) -> &'a [String] {
    shapes
        .actions
        .values()
        .find_map(|action| shapes.follow(&action.context, path))
        .map_or(&[], |member| member.shape.choices())
}

/// Sets the trusted members that follow from the texts of a call, as if nothing else were stored. Tables and
/// requests without a server use this. `more` are further texts of the case. Returns the kinds that were
/// found.
pub fn trust_texts(bundle: &Bundle, call: &Call, more: &[Untrusted], trusted: &mut TrustedContext) -> Vec<String> {
    if call.untrusted.is_empty() && more.is_empty() {
        return vec![];
    }
    let signals = alone(bundle, call, more);
    set_signals(trusted, &bundle.policies, &signals);
    signals.kinds
}

/// Results of the risk store for a call.
pub(super) struct Recalled<'a> {
    pub(super) result: &'a BatchResult,
    /// Names that mark the version of the case in the case's memory.
    pub(super) version: &'a VersionNames,
}

/// Computes the score from the stored history, and the screening result of the case's texts.
pub(super) fn score(
    signals: &mut Signals,
    risk: &RiskRules,
    Recalled { result, version }: Recalled<'_>,
    now: Timestamp,
    mut known: Known,
) {
    let [case, pair, customer] = [0, 1, 2].map(|index| result.memories.get(index).map_or([].as_slice(), Vec::as_slice));
    for (name, until) in case.iter().chain(pair).chain(customer) {
        if let Some(factor) = risk.factor(name) {
            *known.events.entry(name.to_string()).or_default() += factor.count(*until, now.micros());
        }
    }
    for kind in signals.screened.kinds() {
        *known.events.entry(kind).or_default() += 1;
    }
    let count = |index: usize| result.counts.get(index).copied().unwrap_or(0);
    known.agent = [count(0), count(1), count(2)];
    known.supervisor = [count(3), count(4), count(5)];
    signals.kinds = risk.findings.keys().filter(|kind| known.events.contains_key(*kind)).cloned().collect();
    signals.hostile = signals.kinds.iter().any(|kind| risk.is_hostile(kind));
    let before = |name: &str| case.iter().any(|(known, _)| known == name);
    let was_screened = signals.screened.screened || before(&version.screened);
    let unscreened = signals.screened.unscreened || before(&version.unscreened);
    signals.screening = (was_screened || unscreened).then_some(Screening { tainted: signals.hostile, unscreened });
    signals.risk = Some(risk.score(&known));
}

/// Returns the signals of a call without history, given further texts of its case.
pub(super) fn alone(bundle: &Bundle, call: &Call, more: &[Untrusted]) -> Signals {
    let mut signals = Signals { screened: bundle.rules.detectors.screen(&call.untrusted), ..Signals::default() };
    let further = bundle.rules.detectors.screen(more);
    signals.screened.unscreened |= further.unscreened;
    signals.screened.findings.extend(further.findings);
    let groups = bundle.policies.shapes.actions.get(&call.action).map_or_else(Vec::new, |action| action.groups.clone());
    if let Some(risk) = &bundle.rules.risk {
        score(
            &mut signals,
            risk,
            Recalled { result: &BatchResult::default(), version: &VersionNames::default() },
            Timestamp::default(),
            Known { groups, ..Known::default() },
        );
    }
    signals
}

/// Sets the trusted members that follow from the signals of a call.
pub(super) fn set_signals(trusted: &mut TrustedContext, policies: &Policies, signals: &Signals) {
    if let Some(score) = &signals.risk {
        trusted.set("risk", risk(&policies.shapes, score));
    }
    let list = |names: &[String]| Value::Array(names.iter().map(|name| Value::from(name.as_str())).collect());
    if signals.counted {
        trusted.set("rates", list(&signals.full));
    }
    let declared = |name: &str| {
        policies
            .shapes
            .actions
            .values()
            .any(|action| policies.shapes.follow(&action.context, &["sums", name]).is_some())
    };
    let sums = signals.sums.iter().filter(|(name, _)| declared(name));
    let sums = sums.map(|(name, total)| (name.clone(), Value::Integer((*total).min(SUM_MAX))));
    trusted.set("sums", Value::Object(sums.collect()));
    trusted.set("findings", list(&signals.kinds));
    if let Some(Screening { tainted, unscreened }) = signals.screening {
        trusted.set(
            "screening",
            json::object([("tainted", Value::Bool(tainted)), ("unscreened", Value::Bool(unscreened))]),
        );
    }
}
