//! Runs decision tables, `tests/*.yaml`. A case with lists of names makes a decision for each combination.

mod complete;
mod context;
mod direct;
mod expect;
pub mod explain;
mod fixtures;
mod form;
mod loaded;
mod names;
#[cfg(test)]
mod schemas;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::bundle::folder::Folder;
use crate::bundle::manifest::yaml_fault;
use crate::bundle::{Bundle, LoadError, Reading};
use crate::content::drafts::{Draft, DraftReport};
use crate::content::values::{ValueKey, Values};
use crate::model::call::{Call, Correlation, Model, Tokens};
use crate::model::chain::{Chain, Credential};
use crate::model::content::Disposition;
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::finding::SensitiveKind;
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::source::Source;
use crate::model::time::Timestamp;
use crate::model::trusted_context::REMEMBERED;
use crate::pdp::evaluation::{Evaluation, Evaluator};
use crate::pdp::prepare_context::free_texts;
use crate::pdp::scoring::{calm, trust_texts};
use crate::pdp::snapshot::Snapshot;
use crate::pdp::{draft, evaluate_output};
use crate::workbench::request::{Written, case as read_case, resource as read_resource, texts};
use crate::workbench::tables::context::Context;
use crate::workbench::tables::expect::{differences, in_draft};
use crate::workbench::tables::form::{Case, Defaults, File, Fixtures, Names};
use crate::workbench::tables::loaded::{Loaded, load};

/// Confidence of a draft's model in percent, unless the case gives one.
const CONFIDENCE: u32 = 90;
/// A decision that differs from what its case expects.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    pub file: String,
    /// Line of the case, counted from 1.
    pub line: usize,
    /// Name of the case, with the combination of names.
    pub case: String,
    /// Differences, each with the expected and the actual value.
    pub differences: Vec<String>,
}

/// Result of a bundle's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Number of decisions made.
    pub decisions: usize,
    /// Number of allows.
    pub allowed: usize,
    /// Number of denials and refusals.
    pub denied: usize,
    /// Decisions that differ from what their cases expect.
    pub failures: Vec<Failure>,
    /// Policies that did not determine any decision.
    pub unreached: Vec<String>,
    /// Policies with obligations that no case states in `obligations`.
    pub unstated: Vec<String>,
    /// Pairs of action and step with a decision.
    #[serde(skip)]
    pub decided: BTreeSet<(String, String)>,
}

/// Runs every table of a bundle's folder.
///
/// # Errors
/// If the bundle or a table can't be read.
pub fn run(folder: &Folder, reading: Reading) -> Result<Report, LoadError> {
    let Some(Loaded { snapshot, fixtures, files }) = load(folder, &sources(folder), reading)? else {
        return Ok(Report::default());
    };
    let bundle = &snapshot.bundle;
    let Some(roles) = &bundle.roles else { return Ok(Report::default()) };
    let mut report = Report::default();
    let (mut reached, mut stated) = (BTreeSet::new(), BTreeSet::new());
    for (source, file) in &files {
        for case in &file.cases {
            let runner = Runner { snapshot: &snapshot, bundle, roles, fixtures: &fixtures, file };
            let decisions = runner.case(case);
            if decisions.is_empty() {
                let line = source.find(case.written_name()).map_or(1, |(at, _)| source.position(at).0);
                let problem =
                    "decides nothing: name the action, the resource and who calls, or their defaults".to_owned();
                report.failures.push(Failure {
                    file: source.file.clone(),
                    line,
                    case: case.name.clone(),
                    differences: vec![problem],
                });
            }
            for decided in decisions {
                report.decisions += 1;
                let allowed = decided.evaluation.as_ref().is_ok_and(|evaluation| evaluation.outcome.denied.is_none());
                *(if allowed { &mut report.allowed } else { &mut report.denied }) += 1;
                report.decided.insert((decided.action.clone(), decided.step.clone()));
                if let Ok(evaluation) = &decided.evaluation {
                    let determining = evaluation.verdict.determining().into_iter().map(str::to_owned);
                    stated.extend(determining.clone().filter(|_| case.expect.obligations.is_some()));
                    reached.extend(determining);
                }
                let mut differences = differences(&case.expect, &decided.evaluation);
                differences.extend(
                    decided.draft.iter().flat_map(|(found, disposition)| in_draft(&case.expect, found, *disposition)),
                );
                differences
                    .extend(decided.context.iter().flat_map(|context| context::differences(&case.expect, context)));
                if !differences.is_empty() {
                    let line = source.find(case.written_name()).map_or(1, |(at, _)| source.position(at).0);
                    let file = source.file.clone();
                    report.failures.push(Failure { file, line, case: decided.name, differences });
                }
            }
        }
    }
    let rules = bundle.policies.rules();
    report.unreached = rules.keys().filter(|id| !reached.contains(**id)).map(|id| (*id).to_owned()).collect();
    let obliges = |id: &str| rules.get(id).is_some_and(|rule| !rule.obligations.is_empty());
    report.unstated = reached.into_iter().filter(|id| obliges(id) && !stated.contains(id)).collect();
    Ok(report)
}

/// Reads every table, so that `countersign check` reports their faults.
///
/// # Errors
/// All faults found.
pub fn check(folder: &Folder) -> Result<(), Vec<Fault>> {
    read(&sources(folder)).map(|_| ())
}

fn sources(folder: &Folder) -> Vec<Source> {
    let tables = folder.files().iter().filter(|(name, _)| name.starts_with("tests/") && name.ends_with(".yaml"));
    tables.map(|(name, bytes)| Source::new(name.clone(), String::from_utf8_lossy(bytes).into_owned())).collect()
}

fn read(sources: &[Source]) -> Result<Vec<(Source, File)>, Vec<Fault>> {
    let mut faults = vec![];
    let mut files = vec![];
    for source in sources {
        match serde_saphyr::from_str::<File>(&source.text) {
            Ok(file) if Timestamp::parse(&file.now).is_some() => match complete::complete(source, file) {
                Ok(file) => files.push((source.clone(), file)),
                Err(found) => faults.extend(found),
            },
            Ok(_) => {
                let at = source.find("now").unwrap_or((0, 0));
                faults.push(Fault::new(Code::TestsInvalid, source, at, "`now` is not an RFC 3339 time"));
            }
            Err(error) => faults.push(yaml_fault(source, &error)),
        }
    }
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}

struct Runner<'a> {
    snapshot: &'a Arc<Snapshot>,
    bundle: &'a Bundle,
    roles: &'a Roles,
    fixtures: &'a Fixtures,
    file: &'a File,
}

struct Decided {
    name: String,
    action: String,
    step: String,
    evaluation: Result<Evaluation, Refusal>,
    /// Findings in a draft, and its disposition.
    draft: Option<(DraftReport, Disposition)>,
    /// Context that the model would see.
    context: Option<Context>,
}

/// Result of one call.
struct Made {
    evaluation: Evaluation,
    draft: Option<(DraftReport, Disposition)>,
    context: Option<Context>,
}

impl Runner<'_> {
    /// Returns every decision of a case.
    fn case(&self, case: &Case) -> Vec<Decided> {
        if !case.action.0.is_empty() && case.action.0.iter().all(|action| self.roles.is_direct(action)) {
            return self.direct(case);
        }
        if case.case.0.is_empty() {
            let evaluation = Err(Refusal::invalid("case", "is missing"));
            return vec![Decided {
                name: case.name.clone(),
                action: String::new(),
                step: String::new(),
                evaluation,
                draft: None,
                context: None,
            }];
        }
        let defaults = self.bundle.manifest.development.as_ref();
        let or = |names: &Option<Names>, default: Option<&String>| match names {
            Some(names) => names.0.clone(),
            None => default.cloned().into_iter().collect(),
        };
        // Unless the case names a step, a draft is evaluated in one that covers the release action.
        let drafting = case.draft.as_ref().and_then(|_| self.drafting());
        let mut decided = vec![];
        for caller in or(&case.caller, defaults.map(|defaults| &defaults.tool_service)) {
            for agent in or(&case.agent, defaults.map(|defaults| &defaults.agent)) {
                for supervisor in or(&case.supervisor, defaults.map(|defaults| &defaults.supervisor)) {
                    for step in or(&case.step, drafting.as_ref().or(defaults.map(|defaults| &defaults.step))) {
                        let chain = Chain {
                            tool_service: caller.clone(),
                            agent: agent.clone(),
                            supervisor: supervisor.clone(),
                            step,
                            scopes: (!case.scopes.is_empty()).then(|| case.scopes.clone()),
                            asserted: true,
                            ..Chain::default()
                        };
                        decided.extend(self.calls(case, &chain));
                    }
                }
            }
        }
        decided
    }

    fn drafting(&self) -> Option<String> {
        let shapes = &self.bundle.policies.shapes;
        let release = shapes.actions.get(&self.roles.content.as_ref()?.release)?;
        let covers = |step: &&String| release.is_in_step(step);
        shapes.choices(&self.roles.step).iter().find(covers).cloned()
    }

    fn calls(&self, case: &Case, chain: &Chain) -> Vec<Decided> {
        let mut decided = vec![];
        let prepares = case.record.is_some() || !case.articles.is_empty();
        let release = self.roles.content.as_ref().map(|content| content.release.clone());
        let actions = match case.action.0.is_empty() {
            true if prepares => vec![self.roles.case_read.clone()],
            true => release.into_iter().collect(),
            false => case.action.0.clone(),
        };
        for action in &actions {
            let defaults = self.fixtures.calls.get(action).cloned().unwrap_or_default();
            let own = Names(defaults.resource.clone().into_iter().collect());
            for resource in &case.resource.as_ref().unwrap_or(&own).0 {
                for of in &case.case.0 {
                    let name = format!(
                        "{} [{} {} {} {} {action} {resource} {of}]",
                        case.name, chain.tool_service, chain.agent, chain.supervisor, chain.step
                    );
                    let (evaluation, draft, context) =
                        match self.evaluate(case, chain, (action, resource, of), &defaults) {
                            Ok(Made { evaluation, draft, context }) => (Ok(evaluation), draft, context),
                            Err(refusal) => (Err(refusal), None, None),
                        };
                    decided.push(Decided {
                        name,
                        action: action.clone(),
                        step: chain.step.clone(),
                        evaluation,
                        draft,
                        context,
                    });
                }
            }
        }
        decided
    }

    fn evaluate(
        &self,
        case: &Case,
        chain: &Chain,
        (action, resource, of): (&str, &str, &str),
        defaults: &Defaults,
    ) -> Result<Made, Refusal> {
        let mut target = self.fixture(resource, "resource")?;
        if target.kind == self.roles.case {
            // A resource that is a case takes its attributes from the call's case.
            target.attributes = None;
        }
        let mut of = read_case(self.fixture(of, "case")?);
        of.attributes.extend(case.attributes.clone());
        let call = Call {
            credential: Credential::None,
            action: action.to_owned(),
            resource: read_resource(target),
            case: of,
            arguments: complete::merged(&defaults.arguments, &case.arguments).unwrap_or_default(),
            facts: complete::merged(&defaults.facts, &case.facts),
            untrusted: texts(case.untrusted.clone()),
            tokens: Tokens::default(),
            model: (!case.without_model).then(|| Model { name: "test".into(), ..Model::default() }),
            correlation: Correlation::default(),
            dry_run: false,
        };
        let now = case.now.as_ref().unwrap_or(&self.file.now);
        let now = Timestamp::parse(now).ok_or_else(|| Refusal::invalid("now", "is not an RFC 3339 time"))?;
        let mut trusted = calm(&self.bundle.policies.shapes);
        for name in self.file.context.iter().chain(&case.context) {
            let context = self.fixtures.contexts.get(name).ok_or_else(|| Refusal::Invalid {
                field: "context".to_owned(),
                below: String::new(),
                problem: "refers to an undefined fixture",
                unknown: Some(name.clone()),
            })?;
            for (member, value) in context {
                if !REMEMBERED.contains(&member.as_str()) {
                    return Err(Refusal::invalid(format!("context.{member}"), "is not a member that the PDP supplies"));
                }
                trusted.set(member, value.clone());
            }
        }
        let asked = self.to_prepare(case, &call)?;
        let more = match &asked {
            Some(asked) => free_texts(self.bundle, &asked.record, &asked.articles)?,
            None => vec![],
        };
        let kinds = trust_texts(self.bundle, &call, &more, &mut trusted);
        let found = case.draft.as_ref().map(|text| self.found(case, text, &call));
        if let Some(found) = &found {
            let (sources, confidence) = (case.sources.len(), case.confidence.unwrap_or(CONFIDENCE));
            draft::draft_members(found, sources, !case.unprepared, confidence)
                .into_iter()
                .for_each(|(name, value)| trusted.set(name, value));
        }
        let evaluator = Evaluator { bundle: self.bundle, roles: self.roles, now };
        let evaluate = if case.policy_alone { Evaluator::evaluate_policies_only } else { Evaluator::evaluate };
        let evaluation = evaluate(evaluator, chain, &call, &trusted)?;
        let draft =
            found.map(|found| (found, evaluate_output::verdict(&self.bundle.policies, &evaluation, !case.unprepared)));
        let context = match asked {
            Some(asked) if evaluation.outcome.denied.is_none() => {
                Some(Context { prepared: self.context(chain, &call, trusted, asked, now)?, kinds })
            }
            Some(_) | None => None,
        };
        Ok(Made { evaluation, draft, context })
    }

    fn fixture(&self, name: &str, field: &'static str) -> Result<Written, Refusal> {
        self.fixtures.resources.get(name).cloned().ok_or(Refusal::Invalid {
            field: field.to_owned(),
            below: String::new(),
            problem: "is not a defined fixture",
            unknown: Some(name.to_owned()),
        })
    }

    /// Checks a draft against the sources that the case lists and the facts of the call's case.
    fn found(&self, case: &Case, text: &str, call: &Call) -> DraftReport {
        let mut values = Values::new(ValueKey::new([0; 16]));
        case.redacted.iter().for_each(|value| values.add(value, SensitiveKind::Record));
        let facts = draft::case_facts(&call.case);
        let draft = Draft {
            text,
            sources: case.sources.iter().map(String::as_str).chain([facts.as_str()]).collect(),
            customer: vec![],
            has_sources: !case.sources.is_empty(),
            unknown_source: false,
            confidence: case.confidence.unwrap_or(CONFIDENCE),
            locale: &case.locale,
            redacted: &values,
        };
        self.bundle.rules.detectors.draft(&draft)
    }
}
