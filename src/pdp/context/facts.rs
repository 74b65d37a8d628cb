//! What of a record and of articles the model may see: each field and each article by policy, in nested records and lists by path.

use std::collections::{HashMap, HashSet};

use crate::content::private::Located;
use crate::json::{self, Value};
use crate::model::call::{Call, EntityReference, Resource};
use crate::model::content::{Channel, FieldVerdict, Redaction, Segment, Shown};
use crate::model::finding::Private;
use crate::model::refusal::Refusal;
use crate::pdp::context::texts::{CaseValues, Within, redacted};
use crate::pdp::context::{Making, Prepared, Unfinished, content_roles, segment};
use crate::pdp::judge;
use crate::pdp::memory::redacted::From;
use crate::redact::masked;

/// The most different fields of a record, and the most values.
const FIELDS_MAX: usize = 256;
const VALUES_MAX: usize = 4096;
const ARTICLE_MAX: usize = 16 * 1024;
/// The source of the record's values.
const RECORD: &str = "record";
/// The longest path of a value.
const PATH_MAX: usize = 512;

/// A line of the record as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) path: String,
    pub(super) text: String,
}

/// A value of a record: its path, the field that the path is of, and the value.
struct Leaf<'a> {
    path: String,
    field: String,
    value: &'a Value,
}

/// The lines of a record that may be seen. What is withheld is remembered as redacted.
pub(super) fn facts(making: &Making, context: &mut Unfinished) -> Result<Vec<Line>, Refusal> {
    let Unfinished { values, prepared } = context;
    let mut leaves = vec![];
    for (name, value) in &making.asked.record {
        collect((name.clone(), name.clone()), value, &mut leaves)?;
    }
    let mut known: HashMap<&str, (Shown, String)> = HashMap::new();
    for leaf in &leaves {
        if !known.contains_key(leaf.field.as_str()) {
            if known.len() >= FIELDS_MAX {
                return Err(Refusal::invalid("record_json", "has more than 256 different fields"));
            }
            known.insert(&leaf.field, shown(making, &leaf.field)?);
        }
    }
    let shown = |leaf: &Leaf<'_>| known.get(leaf.field.as_str()).map_or(Shown::Excluded, |(shown, _)| *shown);
    // What is withheld is known first: a note that may be seen could name it.
    let included = leaves.iter().filter(|leaf| shown(leaf) == Shown::Included).map(|leaf| written(leaf.value));
    let case = making.reading.case.attributes.values().filter_map(Value::as_str).map(str::to_owned);
    let open: HashSet<String> = included.chain(case).collect();
    for leaf in &leaves {
        let rule = known.get(leaf.field.as_str()).map_or("none", |(_, rule)| rule).to_owned();
        let shown = shown(leaf);
        prepared.fields.push(FieldVerdict { path: leaf.path.clone(), shown, rule });
        let telling = matches!(leaf.value, Value::Float(_) | Value::Integer(_) | Value::String(_));
        let written = written(leaf.value);
        let kind = if shown == Shown::Excluded { Private::Secret } else { Private::Record };
        if shown != Shown::Included && telling && !open.contains(&written) && values.withhold(&written, kind).is_some() {
            let span = (0, written.len());
            prepared.redactions.push(Redaction { kind, source: RECORD.to_owned(), path: leaf.path.clone(), span });
        }
    }
    Ok(lines(making, &leaves, shown, values, prepared))
}

/// The lines of what may be seen, without the secrets that somebody wrote into it, and without what is withheld.
fn lines(
    making: &Making,
    leaves: &[Leaf<'_>],
    shown: impl Fn(&Leaf<'_>) -> Shown,
    values: &mut CaseValues,
    prepared: &mut Prepared,
) -> Vec<Line> {
    let included: Vec<(&Leaf<'_>, String)> =
        leaves.iter().filter(|leaf| shown(leaf) == Shown::Included).map(|leaf| (leaf, written(leaf.value))).collect();
    let texts: Vec<&str> = included.iter().map(|(_, text)| text.as_str()).collect();
    let detectors = &making.moment.snapshot.bundle.rules.detectors;
    let mut located = detectors.private_parts(&texts, values.hidden()).into_iter();
    let mut lines = vec![];
    for leaf in leaves {
        let text = match shown(leaf) {
            Shown::Excluded => continue,
            Shown::Included => {
                let written = written(leaf.value);
                // Policy said that the field may be seen: personal data may stay.
                let withheld = |located: &Located| located.kind.is_secret() || located.kind == Private::Record;
                let found = located.next().unwrap_or_default().into_iter().filter(withheld).collect();
                let within = Within { from: From::Record, source: RECORD, path: &leaf.path };
                // A card number may come as a number.
                match values.redact(&written, found, within, prepared) {
                    same if same == written => leaf.value.clone(),
                    redacted => Value::String(redacted),
                }
            }
            Shown::Masked => Value::String(masked(&written(leaf.value))),
        };
        let text = format!("{}: {}", leaf.path, String::from_utf8_lossy(&json::canonical(&text)));
        lines.push(Line { path: leaf.path.clone(), text });
    }
    lines
}

/// What may be seen of a field.
fn shown(making: &Making, field: &str) -> Result<(Shown, String), Refusal> {
    let (_, content) = content_roles(&making.moment)?;
    let reference = || EntityReference { kind: content.field.clone(), id: field.to_owned() };
    for (action, shown) in [(&content.field_read, Shown::Included), (&content.field_read_masked, Shown::Masked)] {
        let resource = Resource { reference: reference(), version: String::new(), attributes: None };
        let call = Call { action: action.clone(), resource, ..making.reading.clone() };
        if permits(making, &call)? {
            return Ok((shown, action.clone()));
        }
    }
    Ok((Shown::Excluded, "none".to_owned()))
}

fn permits(making: &Making, call: &Call) -> Result<bool, Refusal> {
    let (roles, _) = content_roles(&making.moment)?;
    judge::permits(&making.moment.snapshot.bundle, roles, &making.chain, call, &making.vouched, making.moment.now)
}

/// One of the articles, redacted; `None` if the chain may not see it.
pub(super) fn article(making: &Making, index: usize, context: &mut Unfinished) -> Result<Option<Segment>, Refusal> {
    let Some(article) = making.asked.articles.get(index) else { return Ok(None) };
    if article.text.len() > ARTICLE_MAX {
        return Err(Refusal::invalid(format!("articles[{index}].text"), "is longer than 16 KiB"));
    }
    let (_, content) = content_roles(&making.moment)?;
    let resource = Resource { reference: article.reference.clone(), version: String::new(), attributes: article.attributes.clone() };
    let call = Call { action: content.article_read.clone(), resource, ..making.reading.clone() };
    if !permits(making, &call).map_err(|refusal| refusal.below("resource", &format!("articles[{index}]")))? {
        return Ok(None);
    }
    let source = format!("article:{}", article.reference.id);
    let within = Within { from: From::Record, source: &source, path: "" };
    let text = redacted(making, &article.text, "", within, context);
    Ok(Some(segment(Channel::Fact, source, text)))
}

fn collect<'a>((path, field): (String, String), value: &'a Value, leaves: &mut Vec<Leaf<'a>>) -> Result<(), Refusal> {
    if path.len() > PATH_MAX {
        return Err(Refusal::invalid("record_json", "has a path of more than 512 bytes"));
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                collect((format!("{path}.{name}"), format!("{field}.{name}")), member, leaves)?;
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect((format!("{path}[{index}]"), field.clone()), item, leaves)?;
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
