//! What a decision's line says of how unusual the call was: kinds, places, points. Never a text.

use serde::Serialize;

use crate::model::signals::Signals;

/// The most findings that stand in a line.
const FINDINGS_MAX: usize = 64;

/// How unusual the call was.
#[derive(Debug, Default, Serialize)]
pub(super) struct SignalsRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    risk: Option<RiskRecord>,
    /// Full windows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    full: Vec<String>,
    /// `window:total` of the sums that cover the call, as they would be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sums: Vec<String>,
    /// Kinds that were found in this call's texts; their places stand in `findings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    found: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
    screened: bool,
    unscreened: bool,
    /// Whether text of this version of the case, now or before, could not be screened.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    case_unscreened: bool,
    hostile: bool,
    unknown: bool,
    counted: bool,
    remembered: bool,
    reads_case: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unsafe_draft: bool,
}

#[derive(Debug, Serialize)]
struct RiskRecord {
    score: u32,
    tier: String,
    /// `factor:points`.
    factors: Vec<String>,
}

impl SignalsRecord {
    /// The record of signals; none of a call of which there are none.
    pub(super) fn of(signals: &Signals) -> Option<Self> {
        let findings = signals.screened.findings.iter().take(FINDINGS_MAX);
        (*signals != Signals::default()).then(|| SignalsRecord {
            // Where nothing could be known, the worst was put in its place: that is no finding of ours.
            risk: signals.risk.as_ref().filter(|_| !signals.unknown).map(|risk| RiskRecord {
                score: risk.score,
                tier: risk.tier.clone(),
                factors: risk.parts.iter().map(|part| format!("{}:{}", part.name, part.points)).collect(),
            }),
            full: if signals.unknown { vec![] } else { signals.full.clone() },
            sums: signals.sums.iter().map(|(name, total)| format!("{name}:{total}")).collect(),
            found: signals.screened.kinds(),
            findings: findings
                .map(|found| {
                    let (start, end) = found.span.unwrap_or_default();
                    format!("{}/{} {} {start}..{end}", found.kind, found.code, found.source)
                })
                .collect(),
            screened: signals.screened.screened,
            unscreened: signals.screened.unscreened,
            case_unscreened: signals.screening.is_some_and(|screening| screening.unscreened),
            hostile: signals.hostile,
            unknown: signals.unknown,
            counted: signals.counted,
            remembered: signals.remembered,
            reads_case: signals.reads_case,
            unsafe_draft: signals.unsafe_draft,
        })
    }
}
