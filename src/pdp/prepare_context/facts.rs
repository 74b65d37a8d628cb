//! The record and the articles as the model may see them. Policy decides on each field and each article;
//! values in nested records and lists are identified by their path.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::bundle::Bundle;
use crate::content::Detectors;
use crate::content::normalise::Views;
use crate::content::sensitive::Located;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, EntityReference, Resource, Untrusted};
use crate::model::content::{Article, Channel, FieldVerdict, Prepared, Redaction, Segment, Shown};
use crate::model::finding::SensitiveKind;
use crate::model::refusal::Refusal;
use crate::model::roles::ContentRoles;
use crate::pdp::evaluation::Evaluator;
use crate::pdp::prepare_context::case_values::{CaseValues, REDACTIONS_MAX, Within};
use crate::pdp::prepare_context::making::{Making, Unfinished, segment};
use crate::pdp::redacted_values::From;
use crate::policy::store::is_free_text;
use crate::redact::masked;

/// Maximum numbers of different fields and of values in a record.
const FIELDS_MAX: usize = 256;
const VALUES_MAX: usize = 4096;
const ARTICLE_MAX: usize = 16 * 1024;
/// Source of the record's values.
const RECORD: &str = "record";
/// Maximum length of a value's path, in bytes.
const PATH_MAX: usize = 512;

/// Maximum length in bytes and number of words of a value that is not free text. A longer value is free text,
/// even if the bundle does not declare its field as such.
const BOUNDED_MAX: usize = 64;
const BOUNDED_WORDS_MAX: usize = 4;

/// A line of the record as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) path: String,
    pub(super) text: String,
}

/// A value of a record, with its path and the field of that path.
struct Leaf<'a> {
    path: String,
    field: String,
    value: &'a Value,
}

/// Returns the free text of a record, and the articles, to be screened: anyone who wrote them could have
/// placed an instruction to the model in them.
pub(super) fn free_texts(
    bundle: &Bundle,
    content: &ContentRoles,
    record: &Object,
    articles: &[Article],
) -> Result<Vec<Untrusted>, Refusal> {
    let free: Vec<String> =
        leaves(record)?.iter().filter(|leaf| is_free(bundle, content, leaf)).map(|leaf| written(leaf.value)).collect();
    // Screen all values as one text, because there may be many short ones.
    let record = (!free.is_empty()).then(|| Untrusted { source: RECORD.to_owned(), text: free.join("\n") });
    let articles = articles.iter().map(|article| Untrusted { source: source_of(article), text: article.text.clone() });
    Ok(record.into_iter().chain(articles).collect())
}

/// Returns whether a value is text that a person writes: its field declares free text or is not in the
/// bundle, or the value does not look like a code, a name or a number.
fn is_free(bundle: &Bundle, content: &ContentRoles, leaf: &Leaf<'_>) -> bool {
    let Value::String(text) = leaf.value else { return false };
    let field = bundle.policies.shapes.uid(&content.field, &leaf.field);
    let declared = field.and_then(|uid| bundle.policies.store.get(&uid)).is_none_or(is_free_text);
    declared
        || text.len() > BOUNDED_MAX
        || text.split_whitespace().count() > BOUNDED_WORDS_MAX
        || text.contains(char::is_control)
}

fn source_of(article: &Article) -> String {
    format!("article:{}", article.reference.id)
}

/// Returns the values of a record.
fn leaves(record: &Object) -> Result<Vec<Leaf<'_>>, Refusal> {
    let mut leaves = vec![];
    for (name, value) in record {
        collect(name.clone(), name.clone(), value, &mut leaves)?;
    }
    Ok(leaves)
}

/// Returns what may be seen of a record: a line for each value, and a segment for each free text. Withheld
/// values are stored as redacted ones.
pub(super) fn facts(making: &Making, context: &mut Unfinished) -> Result<(Vec<Line>, Vec<Segment>), Refusal> {
    let Unfinished { values, prepared, .. } = context;
    let leaves = leaves(&making.asked.record)?;
    let fields: BTreeSet<&str> = leaves.iter().map(|leaf| leaf.field.as_str()).collect();
    if fields.len() > FIELDS_MAX {
        return Err(Refusal::invalid("record_json", "has more than 256 different fields"));
    }
    let known = shown_fields(making, fields.into_iter().collect())?;
    let shown = |leaf: &Leaf<'_>| known.get(leaf.field.as_str()).map_or(Shown::Excluded, |(shown, _)| *shown);
    // Collect the withheld values before building any line, because a note that may be seen could contain
    // one.
    let included = leaves.iter().filter(|leaf| shown(leaf) == Shown::Included).map(|leaf| written(leaf.value));
    let case = making.reading.case.attributes.values().filter_map(Value::as_str).map(str::to_owned);
    let open: HashSet<String> = included.chain(case).collect();
    let (_, content) = making.moment.snapshot.content_roles()?;
    let bounded =
        |leaf: &&Leaf<'_>| shown(leaf) == Shown::Included && !is_free(&making.moment.snapshot.bundle, content, leaf);
    leaves.iter().filter(bounded).for_each(|leaf| values.show(&written(leaf.value)));
    making.reading.case.attributes.values().filter_map(Value::as_str).for_each(|attribute| values.show(attribute));
    for leaf in &leaves {
        let rule = known.get(leaf.field.as_str()).map_or("none", |(_, rule)| *rule).to_owned();
        let shown = shown(leaf);
        prepared.fields.push(FieldVerdict { path: leaf.path.clone(), shown, rule });
        let telling = matches!(leaf.value, Value::Float(_) | Value::Integer(_) | Value::String(_));
        let written = written(leaf.value);
        let kind = if shown == Shown::Excluded { SensitiveKind::Secret } else { SensitiveKind::Record };
        let is_withheld = shown != Shown::Included
            && telling
            && !open.contains(&written)
            && values.withhold(&written, kind).is_some();
        // A record lists no more redactions than a text. Values after the limit still count as `excluded` or
        // `masked`.
        if is_withheld && prepared.redactions.len() < REDACTIONS_MAX {
            let span = (0, written.len());
            prepared.redactions.push(Redaction { kind, source: RECORD.to_owned(), path: leaf.path.clone(), span });
        }
    }
    lines(making, &leaves, shown, values, prepared)
}

/// Builds the lines of what may be seen, without secrets that someone wrote into it and without withheld
/// values.
fn lines(
    making: &Making,
    leaves: &[Leaf<'_>],
    shown: impl Fn(&Leaf<'_>) -> Shown,
    values: &mut CaseValues,
    prepared: &mut Prepared,
) -> Result<(Vec<Line>, Vec<Segment>), Refusal> {
    let (_, content) = making.moment.snapshot.content_roles()?;
    let included: Vec<(&Leaf<'_>, String)> =
        leaves.iter().filter(|leaf| shown(leaf) == Shown::Included).map(|leaf| (leaf, written(leaf.value))).collect();
    let texts: Vec<&str> = included.iter().map(|(_, text)| text.as_str()).collect();
    let detectors = &making.moment.snapshot.bundle.rules.detectors;
    // Policy permits these fields, so personal data in them may stay.
    let stays = |located: &Located| !located.kind.is_secret() && located.kind != SensitiveKind::Record;
    let mut located = detectors.private_parts(&texts, values.hidden());
    located.iter_mut().for_each(|located| located.retain(|located| !stays(located)));
    let bundle = &making.moment.snapshot.bundle;
    let fits = numbers_fit(detectors, &included, |leaf| is_free(bundle, content, leaf), &located, values);
    let mut located = located.into_iter();
    let (mut lines, mut texts) = (vec![], vec![]);
    for leaf in leaves {
        let is_free = is_free(bundle, content, leaf);
        let text = match shown(leaf) {
            Shown::Excluded => continue,
            Shown::Included => {
                let written = written(leaf.value);
                // A value that was not searched is not shown.
                let located = located.next().ok_or(Refusal::Unavailable("the record could not be searched"))?;
                let within = Within { from: From::Record, source: RECORD, path: &leaf.path };
                let listed = (is_free && !fits).then(|| Views::of(&written));
                let withheld = values.withheld(detectors, &written, &located, listed.as_ref());
                let redacted = values.redact(&written, withheld, within, prepared);
                if is_free {
                    texts.push(segment(Channel::Untrusted, format!("{RECORD}:{}", leaf.path), redacted));
                    continue;
                }
                // A JSON number may be a card number, so numbers are redacted, too.
                match redacted {
                    same if same == written => leaf.value.clone(),
                    redacted => Value::String(redacted),
                }
            }
            Shown::Masked => Value::String(masked(&written(leaf.value))),
        };
        let text = format!("{}: {}", leaf.path, String::from_utf8_lossy(&json::canonical(&text)));
        lines.push(Line { path: leaf.path.clone(), text });
    }
    Ok((lines, texts))
}

/// Returns whether the numbers in the record's free text are few enough to be shown.
fn numbers_fit(
    detectors: &Detectors,
    included: &[(&Leaf<'_>, String)],
    is_free: impl Fn(&Leaf<'_>) -> bool,
    located: &[Vec<Located>],
    values: &mut CaseValues,
) -> bool {
    let mut numbers = BTreeSet::new();
    for ((_, text), located) in included.iter().zip(located).filter(|((leaf, _), _)| is_free(leaf)) {
        numbers.extend(values.guesses(detectors, text, located));
    }
    values.takes(&numbers)
}

/// Returns the visibility of each field that may be seen, and the action that was permitted.
fn shown_fields<'m>(
    making: &'m Making,
    mut fields: Vec<&'m str>,
) -> Result<HashMap<&'m str, (Shown, &'m str)>, Refusal> {
    let (roles, content) = making.moment.snapshot.content_roles()?;
    let evaluator = Evaluator { bundle: &making.moment.snapshot.bundle, roles, now: making.moment.now };
    let mut known = HashMap::new();
    for (action, shown) in [(&content.field_read, Shown::Included), (&content.field_read_masked, Shown::Masked)] {
        let reference = EntityReference { kind: content.field.clone(), id: String::new() };
        let resource = Resource { reference, version: String::new(), attributes: None };
        let call = Call { action: action.clone(), resource, ..making.reading.clone() };
        let permitted = evaluator.permitted_on(&making.chain, &call, &fields, &making.trusted)?;
        fields.retain(|field| !permitted.contains(field));
        known.extend(permitted.into_iter().map(|field| (field, (shown, action.as_str()))));
    }
    Ok(known)
}

fn permits(making: &Making, call: &Call) -> Result<bool, Refusal> {
    let (roles, _) = making.moment.snapshot.content_roles()?;
    Evaluator { bundle: &making.moment.snapshot.bundle, roles, now: making.moment.now }.permits(
        &making.chain,
        call,
        &making.trusted,
    )
}

/// Returns one of the articles, redacted; `None` if the chain may not see it.
pub(super) fn article(making: &Making, index: usize, context: &mut Unfinished) -> Result<Option<Segment>, Refusal> {
    let Some(article) = making.asked.articles.get(index) else { return Ok(None) };
    if article.text.len() > ARTICLE_MAX {
        return Err(Refusal::invalid(format!("articles[{index}].text"), "is longer than 16 KiB"));
    }
    let (_, content) = making.moment.snapshot.content_roles()?;
    let resource = Resource {
        reference: article.reference.clone(),
        version: String::new(),
        attributes: article.attributes.clone(),
    };
    let call = Call { action: content.article_read.clone(), resource, ..making.reading.clone() };
    if !permits(making, &call).map_err(|refusal| refusal.below("resource", &format!("articles[{index}]")))? {
        return Ok(None);
    }
    let source = source_of(article);
    let within = Within { from: From::Record, source: &source, path: "" };
    let detectors = &making.moment.snapshot.bundle.rules.detectors;
    let views = Views::of(&article.text);
    let located = detectors.private_in(&article.text, &views, "", &context.values.all, |_, _| {});
    let withheld = context.values.withheld(detectors, &article.text, &located, None);
    let text = context.values.redact(&article.text, withheld, within, &mut context.prepared);
    Ok(Some(segment(Channel::Article, source, text)))
}

fn collect<'a>(path: String, field: String, value: &'a Value, leaves: &mut Vec<Leaf<'a>>) -> Result<(), Refusal> {
    if path.len() > PATH_MAX {
        return Err(Refusal::invalid("record_json", "has a path of more than 512 bytes"));
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                collect(format!("{path}.{name}"), format!("{field}.{name}"), member, leaves)?;
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(format!("{path}[{index}]"), field.clone(), item, leaves)?;
            }
        }
        Value::Bool(_) | Value::Float(_) | Value::Integer(_) | Value::Null | Value::String(_) => {
            if leaves.len() >= VALUES_MAX {
                return Err(Refusal::invalid("record_json", "has more than 4096 values"));
            }
            leaves.push(Leaf { path, field, value });
        }
    }
    Ok(())
}

fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => String::from_utf8_lossy(&json::canonical(value)).into_owned(),
    }
}
