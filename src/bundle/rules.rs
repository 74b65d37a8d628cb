//! `risk.yaml`, `rates.yaml` and `detectors/*.yaml`: what is remembered and what it weighs, held against the schema that reads it.

use std::time::Duration;

use crate::bundle::manifest::yaml_fault;
use crate::content::Phrases;
use crate::model::fault::Fault;
use crate::policy::Policies;
use crate::policy::shape::Shape;
use crate::policy::source::Source;
use crate::rates::Rates;
use crate::risk::RiskRules;

/// The rules by which the PDP knows how unusual a call is.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What is remembered, and what it weighs; `None` where no action reads risk.
    pub risk: Option<RiskRules>,
    /// The windows.
    pub rates: Rates,
    /// What untrusted text tries.
    pub phrases: Phrases,
}

impl Rules {
    /// The longest that anything is remembered, in microseconds.
    pub fn longest(&self) -> i64 {
        let windows = self.rates.calls.values().map(crate::rates::CallRate::room).max().unwrap_or(0);
        self.risk.as_ref().map_or(0, RiskRules::longest).max(windows)
    }

    /// How long everything counts as the worst after windows were lost.
    pub fn recovery(&self) -> Duration {
        let minutes = self.risk.as_ref().map_or(60, |risk| risk.recovery_minutes);
        Duration::from_secs(u64::from(minutes) * 60)
    }
}

/// Their files.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) risk: Option<Source>,
    pub(super) rates: Option<Source>,
    pub(super) detectors: Vec<Source>,
}

/// Reads the rules and holds them against the schema.
///
/// # Errors
/// Every fault.
pub(super) fn read(policies: &Policies, files: &Files) -> Result<Rules, Vec<Fault>> {
    let mut faults = vec![];
    let choices = |path: &[&str]| {
        let members = policies.shapes.actions.values().find_map(|action| policies.shapes.follow(&action.context, path));
        members.map(|member| member.shape.choices().to_vec()).unwrap_or_default()
    };
    let (tiers, signals) = (choices(&["risk", "tier"]), choices(&["risk", "signals"]));
    let (windows, kinds) = (choices(&["rates"]), choices(&["findings"]));
    let risk: Option<RiskRules> = parse(files.risk.as_ref(), &mut faults);
    match (&risk, &files.risk) {
        (Some(risk), Some(source)) => {
            faults.extend(placed(source, risk.faults(&tiers, &signals, &kinds)));
            faults.extend(placed(source, unasked(policies, risk)));
        }
        (None, None) if !(tiers.is_empty() && kinds.is_empty() && files.detectors.is_empty()) => {
            faults.push(Fault::whole("risk.yaml", "", "is missing: the schema's actions take `risk` or `findings`"));
        }
        (Some(_) | None, _) => {}
    }
    let nothing = Source { file: "rates.yaml".into(), text: String::new() };
    let source = files.rates.as_ref().unwrap_or(&nothing);
    let read: Option<Rates> = parse(files.rates.as_ref(), &mut faults);
    // Of a file that can't be read nothing else can be said.
    if read.is_some() || files.rates.is_none() {
        let rates = read.clone().unwrap_or_default();
        faults.extend(placed(source, rates.faults(&policies.shapes, &windows)));
        faults.extend(placed(source, unread(policies, &rates)));
    }
    let rates = read.unwrap_or_default();
    let mut phrases = Phrases::default();
    for source in &files.detectors {
        match phrases.read(&source.text, &kinds) {
            Ok(found) => faults.extend(placed(source, found)),
            Err(error) => faults.push(yaml_fault(source, &error)),
        }
    }
    if faults.is_empty() {
        let blind = kinds.iter().filter(|kind| !phrases.finds(kind));
        faults.extend(blind.map(|kind| {
            let message =
                format!("no rule of detectors/*.yaml finds `{kind}`, a kind of finding of the schema: its absence would mean nothing");
            Fault::whole("detectors", "", message)
        }));
    }
    if faults.is_empty() { Ok(Rules { risk, rates, phrases }) } else { Err(faults) }
}

fn parse<T: serde::de::DeserializeOwned>(source: Option<&Source>, faults: &mut Vec<Fault>) -> Option<T> {
    let source = source?;
    serde_saphyr::from_str(&source.text).map_err(|error| faults.push(yaml_fault(source, &error))).ok()
}

/// Puts each fault where its file first names what it is about.
fn placed(source: &Source, faults: Vec<(String, String)>) -> Vec<Fault> {
    let at = |name: &str| source.text.find(name).unwrap_or(0);
    faults.into_iter().map(|(name, message)| Fault::new(&source.file, &source.text, (at(&name), name.len()), message)).collect()
}

/// Groups of `asked` that are none.
fn unasked(policies: &Policies, risk: &RiskRules) -> Vec<(String, String)> {
    let known = |group: &String| policies.shapes.actions.values().any(|action| action.groups.contains(group));
    let unknown = risk.asked.keys().filter(|group| !known(group));
    unknown.map(|group| (group.clone(), format!("`asked`: `{group}` is no group of actions"))).collect()
}

/// Windows whose fullness no policy could see at an action that they cover: they would limit nothing.
fn unread(policies: &Policies, rates: &Rates) -> Vec<(String, String)> {
    let listed =
        rates.calls.iter().map(|(name, rate)| (name, &rate.actions)).chain(rates.sums.iter().map(|(name, rate)| (name, &rate.actions)));
    let reads = |actions: &[String]| {
        let covered = policies.shapes.actions.iter().filter(|(_, action)| crate::rates::covers(actions, action));
        covered.into_iter().any(|(id, action)| {
            let takes = action.context.get("rates").is_some_and(|member| matches!(member.shape, Shape::Set(_)));
            takes && policies.reads(id, "rates")
        })
    };
    let deaf = listed.filter(|(_, actions)| !reads(actions));
    deaf.map(|(name, _)| (name.clone(), format!("`{name}` limits nothing: no policy of the actions that it counts reads `context.rates`")))
        .collect()
}
