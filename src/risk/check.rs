//! Checks of the settings in `risk.yaml`.

use crate::model::number::to_u64;
use crate::model::signals::EXACT;
use crate::risk::{APPROVALS_DENIED, DENIALS, PROVOKED_DENIALS, RiskRules, UNSAFE_DRAFTS, WORST};

impl RiskRules {
    /// Checks the settings. Returns the name to locate each fault by, and a message. `tiers`, `signals` and
    /// `kinds` are the members of the schema's types.
    pub fn faults(&self, tiers: &[String], signals: &[String], kinds: &[String]) -> Vec<(String, String)> {
        let mut faults = vec![];
        let mut fault = |name: &str, problem: String| faults.push((name.to_owned(), problem));
        let own: Vec<&String> = self.tiers.iter().map(|tier| &tier.tier).collect();
        if own != tiers.iter().collect::<Vec<_>>() {
            fault(
                "tiers",
                format!(
                    "`tiers` must be the members of the schema's type of tiers, in its order: {}",
                    tiers.join(", ")
                ),
            );
        }
        let rising = self.tiers.windows(2).all(|pair| matches!(pair, [one, next] if one.from < next.from));
        if self.tiers.first().is_none_or(|first| first.from != 0)
            || !rising
            || self.tiers.last().is_some_and(|last| last.from > WORST)
        {
            fault("tiers", "`tiers` must rise, from 0 to at most 100".into());
        }
        let highest = self.tiers.last().map_or(0, |tier| tier.from);
        self.factor_faults(highest, &mut fault);
        self.probing_faults(highest, &mut fault);
        let rises = [self.reported.low, self.reported.medium, self.reported.high, self.reported.critical];
        if !rises.is_sorted() || rises.into_iter().max() > Some(WORST) || self.reported.high >= highest {
            fault(
                "reported",
                "`reported` must rise with the severity, and only `critical` may reach the highest tier".into(),
            );
        }
        if !(1..=44_640).contains(&self.screening_minutes) || !(1..=10_080).contains(&self.recovery_minutes) {
            fault("screening_minutes", "`screening_minutes` must be 1 to 44640, `recovery_minutes` 1 to 10080".into());
        }
        let mut expected = signals.to_vec();
        expected.sort();
        if expected != self.names() {
            let names = self.names();
            let missing: Vec<&str> = names.iter().filter(|name| !signals.contains(name)).map(String::as_str).collect();
            let much: Vec<&str> = signals.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
            let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            fault(
                "findings",
                format!("the schema's type of risk signals: missing {}; unknown {}", list(&missing), list(&much)),
            );
        }
        let mut kinds = kinds.to_vec();
        kinds.sort();
        if !kinds.iter().eq(self.findings.keys()) {
            fault(
                "findings",
                "`findings` must have exactly one entry for each member of the schema's type of findings".into(),
            );
        }
        faults
    }

    fn factor_faults(&self, highest: u32, fault: &mut impl FnMut(&str, String)) {
        let named = [
            (APPROVALS_DENIED, &self.approvals_denied),
            (DENIALS, &self.denials),
            (PROVOKED_DENIALS, &self.provoked_denials),
            (UNSAFE_DRAFTS, &self.unsafe_drafts),
        ];
        for (name, factor) in
            named.into_iter().chain(self.findings.iter().map(|(name, factor)| (name.as_str(), factor)))
        {
            // A finding may have no points and be only for policies.
            let is_neutral = factor.points == 0 && factor.most == 0 && self.findings.contains_key(name);
            if (factor.points == 0 && !is_neutral) || factor.points > WORST || !(1..=44_640).contains(&factor.minutes) {
                fault(name, format!("`{name}`: `points` must be 1 to 100, `minutes` 1 to 44640"));
            }
            if factor.most < factor.points || factor.most > WORST {
                fault(name, format!("`{name}`: `most` must be at least `points`, and at most 100"));
            }
            if factor.most >= highest && !factor.decisive {
                fault(
                    name,
                    format!("`{name}` could reach the highest tier by itself: lower `most`, or set `decisive: true`"),
                );
            }
        }
    }

    fn probing_faults(&self, highest: u32, fault: &mut impl FnMut(&str, String)) {
        let asked = self.asked.values().copied().max().unwrap_or(0);
        if self.probing.agent.most() + self.probing.supervisor.most() + asked >= highest {
            fault(
                "probing",
                "`probing` and `asked` must together stay below the highest tier: another caller can provoke probing"
                    .into(),
            );
        }
        let slopes = self.probing.agent.slopes().into_iter().chain(self.probing.supervisor.slopes());
        if [self.probing.agent.denied, self.probing.supervisor.denied].iter().any(|slope| slope.to > to_u64(EXACT)) {
            fault(
                "probing",
                format!("`probing`: `denied.to` must be at most {EXACT}, the highest count that is exact"),
            );
        }
        if slopes.clone().any(|slope| slope.from >= slope.to) || !(1..=10_080).contains(&self.probing.minutes) {
            fault("probing", "`probing`: each `from` must be below its `to`, `minutes` 1 to 10080".into());
        }
    }
}
