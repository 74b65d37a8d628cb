//! Reads `risk.yaml`, `rates.yaml`, `constraints.yaml` and `detectors/`, and checks them against the schema.

use std::time::Duration;

use crate::bundle::constraints::{self, Constraint};
use crate::content::claims::{ClaimFile, Lexicon};
use crate::content::linear::Linear;
use crate::content::rules::{File, Judges};
use crate::content::{Detectors, INJECTION, ModelSettings, Settings, drafts};
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::finding::SensitiveKind;
use crate::model::roles::Roles;
use crate::model::source::Source;
use crate::policy::Policies;
use crate::policy::shape::Shape;
use crate::rates::Rates;
use crate::risk::RiskRules;

/// Rules for risk, rates, text detection and model instructions.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Risk rules; `None` if the bundle has no `risk.yaml`.
    pub risk: Option<RiskRules>,
    /// Rate windows and sums.
    pub rates: Rates,
    pub detectors: Detectors,
    /// Instructions that prepared contexts begin with.
    pub constraints: Vec<Constraint>,
}

impl Rules {
    /// Returns the longest time that an entry of the risk store counts, in microseconds. Sums are not
    /// included, because the state store holds them.
    pub fn longest(&self) -> i64 {
        let calls = self.rates.calls.values().map(crate::rates::CallRate::room);
        let windows =
            calls.chain(self.rates.distinct.values().map(crate::rates::DistinctRate::micros)).max().unwrap_or(0);
        self.risk.as_ref().map_or(0, RiskRules::longest).max(windows)
    }

    /// Returns how long risk counts as the worst after the risk store lost data.
    pub fn recovery(&self) -> Duration {
        let minutes = self.risk.as_ref().map_or(60, |risk| risk.recovery_minutes);
        Duration::from_secs(u64::from(minutes) * 60)
    }
}

/// The rule files as they were read.
#[derive(Default)]
pub(super) struct Files {
    pub(super) risk: Option<(Source, RiskRules)>,
    pub(super) rates: Option<(Source, Rates)>,
    pub(super) detectors: Vec<(Source, File)>,
    pub(super) claims: Vec<(Source, ClaimFile)>,
    pub(super) models: Vec<Source>,
    pub(super) settings: Option<(Source, Settings)>,
    pub(super) constraints: Option<(Source, Vec<Constraint>)>,
}

/// Checks all rule files against the schema.
///
/// # Errors
/// All faults found.
pub(super) fn read(policies: &Policies, roles: &Roles, files: Files) -> Result<Rules, Vec<Fault>> {
    let Files { risk, rates, detectors: detector_files, claims, models, settings, constraints } = files;
    let mut faults = vec![];
    let choices = |path: &[&str]| choices(policies, path);
    let (tiers, signals) = (choices(&["risk", "tier"]), choices(&["risk", "signals"]));
    let (windows, kinds) = (choices(&["rates"]), choices(&["findings"]));
    match &risk {
        Some((source, risk)) => {
            faults.extend(placed(Code::RiskInvalid, source, risk.faults(&tiers, &signals, &kinds)));
            faults.extend(placed(Code::RiskInvalid, source, unasked(policies, risk)));
            let drafted = choices(&["draft"]);
            let unknown = risk.unsafe_findings.iter().filter(|kind| !drafted.is_empty() && !drafted.contains(kind));
            let problem = |kind: &String| {
                format!("`unsafe_findings`: the schema declares no kind `{kind}` for findings in drafts")
            };
            let unknown = unknown.map(|kind| (kind.clone(), problem(kind))).collect();
            faults.extend(placed(Code::RiskInvalid, source, unknown));
        }
        None if !(tiers.is_empty() && kinds.is_empty() && detector_files.is_empty()) => {
            let message = "is missing, but the schema's actions read `risk` or `findings`";
            faults.push(Fault::missing(Code::FileMissing, "risk.yaml", message));
        }
        None => {}
    }
    // A bundle without the file has no rates.
    let (source, rates) = rates.unwrap_or_else(|| (Source::new("rates.yaml", ""), Rates::default()));
    faults.extend(placed(Code::RatesInvalid, &source, rates.faults(&policies.shapes, &windows)));
    faults.extend(placed(Code::RatesInvalid, &source, unread(policies, &rates)));
    if !roles.owners.contains_key(&roles.case) {
        let pooled = |name: &String| {
            let problem = "counts by `customer`, but the case has no owner (`owners` in bundle.yaml), so all cases would count together";
            (name.clone(), format!("`{name}` {problem}"))
        };
        faults.extend(placed(Code::RatesInvalid, &source, rates.per_customer().map(pooled).collect()));
    }
    faults.extend(placed(Code::RatesInvalid, &source, unsummed(policies, &rates)));
    let detectors = detectors(policies, roles, (detector_files, claims, models, settings), &mut faults);
    let constraints = constraints::check(policies, roles, constraints).unwrap_or_else(|found| {
        faults.extend(found);
        vec![]
    });
    if faults.is_empty() {
        Ok(Rules { risk: risk.map(|(_, risk)| risk), rates, detectors, constraints })
    } else {
        Err(faults)
    }
}

/// Returns the members of the enumerated type at a path of `context`; empty if no action has such a member.
fn choices(policies: &Policies, path: &[&str]) -> Vec<String> {
    let member = policies.shapes.actions.values().find_map(|action| policies.shapes.follow(&action.context, path));
    member.map_or_else(Vec::new, |member| member.shape.choices().to_vec())
}

type DetectorFiles = (Vec<(Source, File)>, Vec<(Source, ClaimFile)>, Vec<Source>, Option<(Source, Settings)>);

/// Reads detector rules, settings and models. Every kind of finding that the schema declares
/// must have a rule, unless the server itself finds it; otherwise its absence would mean nothing.
fn detectors(
    policies: &Policies,
    roles: &Roles,
    (files, claim_files, models_files, settings): DetectorFiles,
    faults: &mut Vec<Fault>,
) -> Detectors {
    let choices = |member: &str| choices(policies, &[member]);
    let (incoming, drafted, claims) = (choices("findings"), choices("draft"), choices("claims"));
    let mut detectors = Detectors::default();
    for (source, file) in files {
        let found = match file.judges {
            Judges::Draft => {
                detectors.languages.insert(primary_subtag(&file.language));
                detectors.draft.read(file, |kind, code| match kind {
                    drafts::CLAIM => (!claims.iter().any(|claim| claim == code))
                        .then(|| format!("`{code}` is not a claim of the schema")),
                    kind => no_kind(&drafted, kind).or_else(|| {
                        drafts::OWN_KINDS.contains(&kind).then(|| format!("the server finds `{kind}`: remove the rule"))
                    }),
                })
            }
            Judges::Incoming => detectors.incoming.read(file, |kind, _| no_kind(&incoming, kind)),
            Judges::Private => detectors.private.read(file, |kind, _| {
                SensitiveKind::from_name(kind).is_none().then(|| {
                    let names: Vec<&str> = SensitiveKind::ALL.iter().map(|kind| kind.name()).collect();
                    format!("`{kind}` is not a kind of sensitive value: use one of {}", names.join(", "))
                })
            }),
        };
        faults.extend(placed(Code::DetectorsRule, &source, found));
    }
    for (source, file) in claim_files {
        let (lexicon, found) = Lexicon::read(file, |code| claims.iter().any(|claim| claim == code));
        faults.extend(placed(Code::DetectorsRule, &source, found));
        detectors.languages.insert(primary_subtag(&lexicon.language));
        detectors.claims.push(lexicon);
    }
    for rules in [&mut detectors.draft, &mut detectors.incoming, &mut detectors.private] {
        faults.extend(rules.compile().err().map(|problem| Fault::missing(Code::DetectorsRule, "detectors", problem)));
    }
    let governs = roles.content.is_some();
    if governs && settings.as_ref().is_none_or(|(_, settings)| settings.channels.is_empty()) {
        let message = "is missing or lists no channel: without a threshold the injection model finds nothing";
        faults.push(Fault::missing(Code::FileMissing, "detectors/settings.yaml", message));
    }
    let wanted: Vec<String> =
        settings.iter().flat_map(|(_, settings)| &settings.models).map(|model| model.kind.clone()).collect();
    for (source, kinds) in settings.iter().map(|(source, settings)| (source, &settings.models)) {
        let fault = |model: &ModelSettings| match model.threshold {
            _ if model.kind == INJECTION => Some("`injection` has its thresholds in `channels`".to_owned()),
            1..=1000 => no_kind(&incoming, &model.kind),
            _ => Some("`threshold` must be 1 to 1000".to_owned()),
        };
        let unknown = kinds.iter().filter_map(|model| Some((model.kind.clone(), fault(model)?)));
        faults.extend(placed(Code::DetectorsRule, source, unknown.collect()));
    }
    faults.extend(models(&mut detectors, models_files, &wanted, governs));
    // Without settings there is no threshold and no public value, as in `Detectors::default`.
    if let Some((source, settings)) = settings {
        faults.extend(placed(Code::DetectorsRule, &source, detectors.set(settings)));
    }
    if faults.is_empty() {
        faults.extend(blind_spots(&detectors, &incoming, &drafted, &claims));
    }
    detectors
}

/// Reads the model of injections and those of the kinds that the settings list.
fn models(detectors: &mut Detectors, files: Vec<Source>, wanted: &[String], governs: bool) -> Vec<Fault> {
    let mut faults = vec![];
    for source in files {
        let name = source.file.rsplit_once('/').map_or(source.file.as_str(), |(_, name)| name);
        let kind = name.strip_suffix(".model").unwrap_or(name).to_owned();
        match Linear::read(&source.text) {
            Ok(model) if kind == INJECTION => detectors.injection = Some(model),
            Ok(model) if wanted.contains(&kind) => drop(detectors.models.insert(kind, model)),
            Ok(_) => faults.push(Fault::whole(
                Code::DetectorsModel,
                &source,
                "is not in `models` of detectors/settings.yaml",
            )),
            Err(problem) => faults.push(Fault::whole(Code::DetectorsModel, &source, problem)),
        }
    }
    let injection = (governs && detectors.injection.is_none()).then_some(INJECTION);
    let missing =
        wanted.iter().map(String::as_str).filter(|kind| !detectors.models.contains_key(*kind)).chain(injection);
    let message = "is missing or can't be read: create it with `countersign detectors train`";
    let missing = missing.map(|kind| Fault::missing(Code::FileMissing, &format!("detectors/{kind}.model"), message));
    faults.extend(missing.collect::<Vec<_>>());
    faults
}

/// Checks that each kind of the schema has something that finds it, and that the schema has each kind that the server finds.
fn blind_spots(detectors: &Detectors, incoming: &[String], drafted: &[String], claims: &[String]) -> Vec<Fault> {
    let mut faults = vec![];
    let blind = |kind: &String, what: &str| {
        let message = format!(
            "no rule in detectors/*.yaml finds `{kind}`, {what} of the schema, so its absence would mean nothing"
        );
        Fault::missing(Code::DetectorsBlind, "detectors", message)
    };
    faults.extend(
        incoming.iter().filter(|kind| !detectors.incoming.finds(kind)).map(|kind| blind(kind, "a kind of finding")),
    );
    let own = |kind: &str| drafts::OWN_KINDS.contains(&kind);
    faults.extend(
        drafted
            .iter()
            .filter(|kind| !own(kind) && !detectors.draft.finds(kind))
            .map(|kind| blind(kind, "a kind of finding in drafts")),
    );
    let framed = detectors.claims.iter().flat_map(|lexicon| &lexicon.frames).map(|frame| frame.code.as_str());
    let claimed: Vec<&str> = detectors.draft.codes(drafts::CLAIM).chain(framed).collect();
    faults
        .extend(claims.iter().filter(|claim| !claimed.contains(&claim.as_str())).map(|claim| blind(claim, "a claim")));
    let missing =
        drafts::OWN_KINDS.iter().filter(|own| !drafted.is_empty() && !drafted.iter().any(|kind| kind == *own));
    faults.extend(missing.map(|kind| {
        let message = format!("the type of draft findings must have `{kind}`");
        Fault::missing(Code::SchemaContext, "schema.cedarschema", message)
    }));
    faults
}

/// Returns the language of a BCP 47 tag, in lower case.
fn primary_subtag(tag: &str) -> String {
    tag.split_once('-').map_or(tag, |(language, _)| language).to_ascii_lowercase()
}

fn no_kind(kinds: &[String], kind: &str) -> Option<String> {
    (!kinds.iter().any(|known| known == kind))
        .then(|| format!("`{kind}` is not a kind of finding that the schema declares"))
}

/// Locates each fault at the first occurrence of its subject in the file.
fn placed(code: Code, source: &Source, faults: Vec<(String, String)>) -> Vec<Fault> {
    let at = |name: &str| source.find(name).unwrap_or((0, 0));
    faults.into_iter().map(|(name, message)| Fault::new(code, source, at(&name), message)).collect()
}

/// Returns a fault for each key of `asked` that is not a group of actions.
fn unasked(policies: &Policies, risk: &RiskRules) -> Vec<(String, String)> {
    let known = |group: &String| policies.shapes.actions.values().any(|action| action.groups.contains(group));
    let unknown = risk.asked.keys().filter(|group| !known(group));
    unknown.map(|group| (group.clone(), format!("`asked`: `{group}` is not a group of actions"))).collect()
}

/// Returns faults for actions whose context declares `sums` although no sum covers them, and for declared
/// sums that `rates.yaml` lacks: policies would never see a value.
fn unsummed(policies: &Policies, rates: &Rates) -> Vec<(String, String)> {
    let mut faults = vec![];
    for (id, action) in &policies.shapes.actions {
        let Some(Shape::Record(sums)) = action.context.get("sums").map(|member| &member.shape) else { continue };
        let covers = |listed: &[String]| crate::rates::covers(listed, action);
        let covered = rates.sums.values().any(|rate| covers(&rate.actions) || covers(&rate.seen_by));
        if !covered {
            faults.push(("sums".to_owned(), format!("no sum covers action `{id}`, whose context declares `sums`")));
        }
        for name in sums.keys().filter(|name| !rates.sums.contains_key(*name)) {
            let message = format!("`context.sums` declares `{name}`, but rates.yaml has no such sum");
            faults.push(("sums".to_owned(), message));
        }
    }
    faults
}

/// Returns a fault for each window that limits nothing, because no policy of its counted actions reads
/// `context.rates`.
fn unread(policies: &Policies, rates: &Rates) -> Vec<(String, String)> {
    let reads = |actions: &[String]| {
        let covered = policies.shapes.actions.iter().filter(|(_, action)| crate::rates::covers(actions, action));
        covered.into_iter().any(|(id, action)| {
            let takes = action.context.get("rates").is_some_and(|member| matches!(member.shape, Shape::Set(_)));
            takes && policies.reads(id, "rates")
        })
    };
    let deaf = rates.actions().filter(|(_, actions)| !reads(actions));
    deaf.map(|(name, _)| {
        (
            name.clone(),
            format!("`{name}` has no effect: no policy for the actions that it counts reads `context.rates`"),
        )
    })
    .collect()
}
