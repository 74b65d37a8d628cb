//! Cuts a context to its maximum length. The least necessary parts are cut first; constraints are never cut.

use std::collections::HashSet;

use crate::model::content::{Channel, Prepared, Segment, Shown};
use crate::pdp::prepare_context::facts::Line;
use crate::pdp::prepare_context::making::segment;

/// Source of the record's segment, and prefix of the sources of its free texts.
const RECORD: &str = "record";
const FREE_TEXT: &str = "record:";

/// Assembles the context within this number of bytes; 0 means no limit. Articles are cut first, then lines of
/// the record, then untrusted texts, and in each group the last one first.
pub(super) fn fit(
    max_bytes: usize,
    constraints: &[Segment],
    (lines, mut articles, mut texts): (&mut Vec<Line>, Vec<Segment>, Vec<Segment>),
    prepared: &mut Prepared,
) {
    let length = |segments: &[Segment]| segments.iter().map(|segment| segment.text.len()).sum::<usize>();
    let record = |lines: &[Line]| lines.iter().map(|line| line.text.len() + 1).sum::<usize>().saturating_sub(1);
    let most = if max_bytes == 0 { usize::MAX } else { max_bytes };
    let mut total = length(constraints) + record(lines) + length(&articles) + length(&texts);
    let mut cut = HashSet::new();
    while total > most {
        prepared.truncated = true;
        if let Some(article) = articles.pop() {
            total -= article.text.len();
        } else if let Some(line) = lines.pop() {
            // Include the line break between this line and the one before, if there is one.
            total -= line.text.len() + usize::from(!lines.is_empty());
            cut.insert(line.path);
        } else if let Some(text) = texts.pop() {
            total -= text.text.len();
            cut.extend(text.source.strip_prefix(FREE_TEXT).map(str::to_owned));
        } else {
            break;
        }
    }
    for verdict in prepared.fields.iter_mut().filter(|verdict| cut.contains(&verdict.path)) {
        verdict.shown = Shown::Excluded;
        "max_bytes".clone_into(&mut verdict.rule);
    }
    prepared.segments = constraints.to_vec();
    if !lines.is_empty() {
        let text = lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
        prepared.segments.push(segment(Channel::Fact, RECORD.to_owned(), text));
    }
    prepared.segments.append(&mut articles);
    prepared.segments.append(&mut texts);
}
