//! Explains a draft: what each form of a verb says, and what the policies make of it for a case of the tables.

use super::loaded::{Loaded, load};
use super::{Runner, sources};
use crate::bundle::folder::Folder;
use crate::bundle::{LoadError, Reading};
use crate::content::Detectors;
use crate::content::claims::{self, Said, Words};
use crate::content::drafts::{CLAIM, UNPLACED};
use crate::content::normalise::View;
use crate::json::Object;
use crate::model::content::Disposition;
use crate::model::source::Source;

/// Name of the table that is made for the draft.
const TABLE: &str = "tests/explained.yaml";

/// A draft to explain, for a case of the tables.
#[derive(Clone, Debug)]
pub struct Explained<'a> {
    /// Time of the decision, RFC 3339; the tables' contexts refer to it.
    pub now: &'a str,
    pub draft: &'a str,
    /// Fixture of the case.
    pub case: &'a str,
    /// Attributes that differ from those of the fixture.
    pub attributes: Object,
    /// Fixtures of contexts.
    pub context: &'a [String],
}

/// What follows from a draft.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub disposition: Disposition,
    /// Ids of the policies that determined it.
    pub policies: Vec<String>,
    /// Attributes of the case, as the draft is compared with them.
    pub facts: String,
}

/// Evaluates a draft for a case.
///
/// # Errors
/// If the bundle or its tables can't be read, or have no such case or context.
pub fn explain(folder: &Folder, reading: Reading, asked: &Explained<'_>) -> Result<Option<Explanation>, LoadError> {
    let Explained { now, draft, case, attributes, context } = asked;
    let row = serde_json::json!({"name": "draft", "draft": draft, "case": case, "attributes": attributes, "context": context, "expect": {"findings": []}});
    let table = serde_json::json!({"now": now, "cases": [row]}).to_string();
    let mut all = sources(folder);
    all.push(Source::new(TABLE, table));
    let Some(Loaded { snapshot, fixtures, files }) = load(folder, &all, reading)? else { return Ok(None) };
    let bundle = &snapshot.bundle;
    let Some((roles, (_, file))) = bundle.roles.as_ref().zip(files.last()) else { return Ok(None) };
    let runner = Runner { snapshot: &snapshot, bundle, roles, fixtures: &fixtures, file };
    let decided = file.cases.iter().flat_map(|case| runner.case(case)).next();
    Ok(decided.and_then(|decided| {
        let (_, disposition) = decided.draft?;
        let verdict = decided.evaluation.ok()?.verdict;
        let facts = fixtures.resources.get(*case).map(|case| {
            let mut case = crate::workbench::request::case(case.clone());
            case.attributes.extend(attributes.clone());
            crate::pdp::draft::case_facts(&case)
        });
        Some(Explanation {
            disposition,
            policies: verdict.determining().into_iter().map(str::to_owned).collect(),
            facts: facts.unwrap_or_default(),
        })
    }))
}

/// Returns what each form of a verb of a claim says: `<kind>/<code>: "<words>": <what they say>`.
pub fn readings(detectors: &Detectors, text: &str) -> Vec<String> {
    let view = View::folded(text);
    let exact = |span| text.get(view.original(span).0..view.original(span).1).unwrap_or("");
    let words = Words::of(text, &view);
    let language = claims::language(&detectors.claims, text);
    let mut lines = vec![];
    for lexicon in &detectors.claims {
        let is_spoken = language.is_none_or(|language| language == lexicon.language);
        lexicon.find(&words, |reading| {
            let (kind, said) = match reading.said {
                Said::Claim => (CLAIM, "says that it happened"),
                Said::Other(why) if is_spoken => ("no claim", why),
                Said::Unplaced if is_spoken => (UNPLACED, "nothing tells what is said of it"),
                Said::Other(_) | Said::Unplaced => return,
            };
            lines.push(format!("{kind}/{}: \"{}\": {said}", reading.frame.code, exact(reading.span)));
        });
    }
    lines.sort();
    lines.dedup();
    lines
}
