//! Risk signals in the line of a decision or refusal: kinds, places and points, never a text.

use serde::Serialize;

use crate::model::signals::Signals;

/// Maximum number of findings in a line.
const FINDINGS_MAX: usize = 64;

/// Risk signals of one call.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SignalsRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    risk: Option<RiskRecord>,
    /// Names of full windows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    full: Vec<String>,
    /// `window:total` of the sums that cover the call; the totals include the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sums: Vec<String>,
    /// Kinds of findings in this call's texts; `findings` has their places.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    found: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
    screened: bool,
    unscreened: bool,
    /// Whether any text of this version of the case, in this call or before, could not be screened.
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

#[derive(Clone, Debug, Serialize)]
struct RiskRecord {
    score: u32,
    tier: String,
    /// Factors as `factor:points`.
    factors: Vec<String>,
}

impl SignalsRecord {
    /// Creates the record of signals; `None` if no signals were collected.
    pub(super) fn new(signals: &Signals) -> Option<Self> {
        let findings = signals.screened.findings.iter().take(FINDINGS_MAX);
        (*signals != Signals::default()).then(|| SignalsRecord {
            // If the risk store could not be read, `risk` and `full` are worst-case values, not observations.
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
                    // A finding in the name of a source has no place in the text.
                    let place = found.span.map_or_else(String::new, |(start, end)| format!(" {start}..{end}"));
                    format!("{}/{} {}{place}", found.kind, found.code, found.source)
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
