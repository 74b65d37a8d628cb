//! The PDP's own members of a call's Cedar context: approval, risk, rates, sums, findings and screening, from what is known of the call.
//! Pure functions; `risk_signals.rs` gathers the input.

use crate::bundle::Bundle;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, Untrusted};
use crate::model::signals::{Risk, Screening, Signals};
use crate::model::time::Timestamp;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::risk_keys::VersionNames;
use crate::policy::Policies;
use crate::policy::shape::{Shape, Shapes};
use crate::risk::{Known, RiskRules};
use crate::risk_store::BatchResult;

/// The largest sum that policies see: the largest integer of JSON.
const SUM_MAX: i64 = (1 << 53) - 1;

/// What is trusted for when nothing is remembered.
pub fn calm(shapes: &Shapes) -> TrustedContext {
    let lowest = members(shapes, &["risk", "tier"]).first().cloned().unwrap_or_default();
    TrustedContext::nothing(risk(shapes, &Risk { tier: lowest, ..Risk::default() }))
}

/// `context.risk` of a score: those of its members that the schema declares.
pub(super) fn risk(shapes: &Shapes, risk: &Risk) -> Value {
    let signals = risk.parts.iter().map(|part| Value::from(part.name.as_str())).collect();
    let all =
        [("score", Value::Integer(i64::from(risk.score))), ("signals", Value::Array(signals)), ("tier", Value::from(risk.tier.as_str()))];
    let declared = |name: &str| shapes.actions.values().any(|action| shapes.follow(&action.context, &["risk", name]).is_some());
    all.into_iter().filter(|(name, _)| declared(name)).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// `context.approval` of an approval; the one place that gives it its form.
pub fn approval(template: &str, approvers: u32, expires: Value, limits: Value) -> Value {
    json::object([
        ("approvers", Value::Integer(i64::from(approvers))),
        ("expires", expires),
        ("limits", limits),
        ("template", Value::from(template)),
    ])
}

/// The arguments that an approval bounds: those that `context.approval.limits` declares.
pub(super) fn limits(shapes: &Shapes, arguments: &Object) -> Value {
    let declared = shapes.actions.values().find_map(|action| shapes.follow(&action.context, &["approval", "limits"]));
    match declared.map(|member| &member.shape) {
        Some(Shape::Record(limits)) => {
            arguments.iter().filter(|(name, _)| limits.contains_key(*name)).map(|(name, value)| (name.clone(), value.clone())).collect()
        }
        _ => Value::Object(Object::new()),
    }
}

/// The members of the enumerated type that stands at this path of `context`, in the order of their declaration; risk tiers rise.
pub fn members<'a>(shapes: &'a Shapes, path: &[&str]) -> &'a [String] {
    shapes.actions.values().find_map(|action| shapes.follow(&action.context, path)).map(|member| member.shape.choices()).unwrap_or_default()
}

/// Vouches for what the texts of a call try, as if nothing else were remembered; for tables, and for requests without a server.
/// `more` are further texts of the case. Returns the kinds that were found.
pub fn trust_texts(bundle: &Bundle, call: &Call, more: &[Untrusted], trusted: &mut TrustedContext) -> Vec<String> {
    if call.untrusted.is_empty() && more.is_empty() {
        return vec![];
    }
    let signals = alone(bundle, call, more);
    set_signals(trusted, &bundle.policies, &signals);
    signals.kinds
}

/// The score of what was remembered, and what it says of the case's text.
pub(super) fn score(
    signals: &mut Signals,
    risk: &RiskRules,
    (result, version): (&BatchResult, &VersionNames),
    now: Timestamp,
    mut known: Known,
) {
    let [case, pair, customer] = [0, 1, 2].map(|index| result.memories.get(index).map(Vec::as_slice).unwrap_or_default());
    for (name, until) in case.iter().chain(pair).chain(customer) {
        if let Some(factor) = risk.factor(name) {
            *known.events.entry(name.to_string()).or_default() += factor.count(*until, now.micros());
        }
    }
    for kind in signals.screened.kinds() {
        *known.events.entry(kind).or_default() += 1;
    }
    let count = |index: usize| result.counts.get(index).copied().unwrap_or_default();
    known.agent = [count(0), count(1), count(2)];
    known.supervisor = [count(3), count(4), count(5)];
    signals.kinds = risk.findings.keys().filter(|kind| known.events.contains_key(*kind)).cloned().collect();
    signals.hostile = !signals.kinds.is_empty();
    let before = |name: &str| case.iter().any(|(known, _)| known == name);
    let was_screened = signals.screened.screened || before(&version.screened);
    let unscreened = signals.screened.unscreened || before(&version.unscreened);
    signals.screening = (was_screened || unscreened).then_some(Screening { tainted: signals.hostile, unscreened });
    signals.risk = Some(risk.score(&known));
}

/// What is known of a call of which nothing is remembered, and of further texts of its case.
pub(super) fn alone(bundle: &Bundle, call: &Call, more: &[Untrusted]) -> Signals {
    let mut signals = Signals { screened: bundle.rules.detectors.screen(&call.untrusted), ..Signals::default() };
    let further = bundle.rules.detectors.screen(more);
    signals.screened.unscreened |= further.unscreened;
    signals.screened.findings.extend(further.findings);
    let groups = bundle.policies.shapes.actions.get(&call.action).map(|action| action.groups.clone()).unwrap_or_default();
    if let Some(risk) = &bundle.rules.risk {
        score(
            &mut signals,
            risk,
            (&BatchResult::default(), &VersionNames::default()),
            Timestamp::default(),
            Known { groups, ..Known::default() },
        );
    }
    signals
}

/// Vouches for what is known of a call.
pub(super) fn set_signals(trusted: &mut TrustedContext, policies: &Policies, signals: &Signals) {
    if let Some(score) = &signals.risk {
        trusted.set("risk", risk(&policies.shapes, score));
    }
    let list = |names: &[String]| Value::Array(names.iter().map(|name| Value::from(name.as_str())).collect());
    if signals.counted {
        trusted.set("rates", list(&signals.full));
    }
    let declared =
        |name: &str| policies.shapes.actions.values().any(|action| policies.shapes.follow(&action.context, &["sums", name]).is_some());
    let sums = signals.sums.iter().filter(|(name, _)| declared(name));
    let sums = sums.map(|(name, total)| (name.clone(), Value::Integer((*total).min(SUM_MAX))));
    trusted.set("sums", Value::Object(sums.collect()));
    trusted.set("findings", list(&signals.kinds));
    if let Some(Screening { tainted, unscreened }) = signals.screening {
        trusted.set("screening", json::object([("tainted", Value::Bool(tainted)), ("unscreened", Value::Bool(unscreened))]));
    }
}
