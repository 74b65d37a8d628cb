//! What of a record and of articles the model may see: each field and each article by policy, in nested records and lists by path.

use std::collections::{HashMap, HashSet};

use crate::content::normalise::Views;
use crate::content::values::compact;
use crate::json::{self, Object, Value};
use crate::model::call::{Call, EntityReference, Resource};
use crate::model::content::{Article, Channel, FieldVerdict, Redaction, Segment, Shown};
use crate::model::finding::Private;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::context::{Making, Prepared, segment};
use crate::pdp::judge;
use crate::pdp::memory::redacted::{From, Remembered};
use crate::redact::masked;

/// The most different fields of a record, and the most values.
const FIELDS_MAX: usize = 256;
const VALUES_MAX: usize = 4096;
const ARTICLE_MAX: usize = 16 * 1024;
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

impl Pdp {
    /// The lines of a record that may be seen. What is kept back is remembered as redacted, and stands in `hidden`.
    pub(super) fn facts(
        &self,
        making: &Making<'_>,
        record: &Object,
        remembered: &mut Remembered,
        prepared: &mut Prepared,
        hidden: &mut Vec<(String, Private)>,
    ) -> Result<Vec<Line>, Refusal> {
        let mut leaves = vec![];
        for (name, value) in record {
            collect((name.clone(), name.clone()), value, &mut leaves)?;
        }
        let mut known: HashMap<String, (Shown, String)> = HashMap::new();
        for leaf in &leaves {
            if !known.contains_key(&leaf.field) {
                if known.len() >= FIELDS_MAX {
                    return Err(Refusal::invalid("record_json", "has more than 256 different fields"));
                }
                known.insert(leaf.field.clone(), self.shown(making, &leaf.field)?);
            }
        }
        let shown = |leaf: &Leaf<'_>| known.get(&leaf.field).cloned().unwrap_or((Shown::Excluded, "none".into()));
        // What is kept back is known first: a note that may be seen could name it.
        let open: HashSet<String> = leaves.iter().filter(|leaf| shown(leaf).0 == Shown::Included).map(|leaf| written(leaf.value)).collect();
        for leaf in &leaves {
            let (shown, rule) = shown(leaf);
            prepared.fields.push(FieldVerdict { path: leaf.path.clone(), shown, rule });
            let telling = matches!(leaf.value, Value::Float(_) | Value::Integer(_) | Value::String(_));
            let written = written(leaf.value);
            let elsewhere =
                open.contains(&written) || making.reading.case.attributes.values().any(|value| value.as_str() == Some(&written));
            if shown != Shown::Included && telling && !elsewhere {
                let kind = if shown == Shown::Excluded { Private::Secret } else { Private::Record };
                self.keep_back(making, (&leaf.path, &written, kind), remembered, prepared);
                hidden.push((written, kind));
            }
        }
        let mut lines = vec![];
        for leaf in &leaves {
            let written = written(leaf.value);
            let text = match shown(leaf).0 {
                Shown::Excluded => continue,
                // A card number may come as a number.
                Shown::Included => match self.without_secrets(making, (&leaf.path, &written), hidden, remembered, prepared) {
                    same if same == written => leaf.value.clone(),
                    redacted => Value::String(redacted),
                },
                Shown::Masked => Value::String(masked(&written)),
            };
            let text = format!("{}: {}", leaf.path, String::from_utf8_lossy(&json::canonical(&text)));
            lines.push(Line { path: leaf.path.clone(), text });
        }
        Ok(lines)
    }

    /// What may be seen of a field.
    fn shown(&self, making: &Making<'_>, field: &str) -> Result<(Shown, String), Refusal> {
        let content = making.content;
        let reference = || EntityReference { kind: content.field.clone(), id: field.to_owned() };
        for (action, shown) in [(&content.field_read, Shown::Included), (&content.field_read_masked, Shown::Masked)] {
            let resource = Resource { reference: reference(), version: String::new(), attributes: None };
            let call = Call { action: action.clone(), resource, ..making.reading.clone() };
            if self.permits(making, &call)? {
                return Ok((shown, action.clone()));
            }
        }
        Ok((Shown::Excluded, "none".to_owned()))
    }

    fn permits(&self, making: &Making<'_>, call: &Call) -> Result<bool, Refusal> {
        judge::permits(&making.moment.snapshot.bundle, making.roles, making.chain, call, &making.vouched, making.moment.now)
    }

    /// Remembers a value that is kept back.
    fn keep_back(
        &self,
        making: &Making<'_>,
        (path, written, kind): (&str, &str, Private),
        remembered: &mut Remembered,
        prepared: &mut Prepared,
    ) {
        let Some(compact) = compact(&Views::of(written).folded) else { return };
        remembered.of_value(&self.key_of(making), From::Record, kind, &compact);
        let span = (0, written.len());
        prepared.redactions.push(Redaction { kind, source: "record".into(), path: path.to_owned(), span });
    }

    /// A field that may be seen, without the secrets that somebody wrote into it, and without what is kept back.
    fn without_secrets(
        &self,
        making: &Making<'_>,
        (path, text): (&str, &str),
        hidden: &[(String, Private)],
        remembered: &mut Remembered,
        prepared: &mut Prepared,
    ) -> String {
        let within = super::texts::Within { from: From::Record, source: "record", path, secrets_alone: true };
        self.redacted(making, text, ("", hidden), &within, (remembered, prepared))
    }

    /// The articles that may be seen, redacted.
    pub(super) fn articles(
        &self,
        making: &Making<'_>,
        articles: &[Article],
        remembered: &mut Remembered,
        prepared: &mut Prepared,
    ) -> Result<Vec<Segment>, Refusal> {
        let mut segments = vec![];
        for (index, article) in articles.iter().enumerate() {
            if article.text.len() > ARTICLE_MAX {
                return Err(Refusal::invalid(format!("articles[{index}].text"), "is longer than 16 KiB"));
            }
            let resource =
                Resource { reference: article.reference.clone(), version: String::new(), attributes: article.attributes.clone() };
            let call = Call { action: making.content.article_read.clone(), resource, ..making.reading.clone() };
            let permitted = self.permits(making, &call).map_err(|refusal| refusal.below("resource", &format!("articles[{index}]")))?;
            if !permitted {
                continue;
            }
            let source = format!("article:{}", article.reference.id);
            let within = super::texts::Within { from: From::Record, source: &source, path: "", secrets_alone: false };
            let text = self.redacted(making, &article.text, ("", &[]), &within, (remembered, prepared));
            segments.push(segment(Channel::Fact, source, text));
        }
        Ok(segments)
    }
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
