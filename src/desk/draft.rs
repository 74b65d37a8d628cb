//! The draft that a reply would send, with what was found in it marked.

use std::ops::Range;

use maud::{Markup, html};

use crate::model::approval::State;
use crate::model::text::visible;
use crate::pdp::approval_access::Seen;

/// Piece of a draft: its text, and what was found there, if anything was.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'d> {
    text: &'d str,
    finding: Option<&'d str>,
}

/// Shows the draft, or says where it can be read.
pub(super) fn draft(seen: &Seen) -> Markup {
    let is_open = matches!(seen.state, State::Pending | State::Approved);
    if !is_open || seen.approval.binding.call.draft_digest().is_empty() {
        return html! {};
    }
    let findings = seen.approval.binding.findings.as_deref().unwrap_or_default();
    html! {
        section class="panel" aria-label="The draft that would be sent" {
            h2 { "The draft that would be sent" }
            @if seen.draft.is_empty() {
                p { "The tool service did not pass the draft with its request: read it there." }
            } @else {
                p class="draft" {
                    @for piece in pieces(&seen.draft, findings) {
                        @match piece.finding {
                            Some(finding) => {
                                mark { (shown(piece.text)) }
                                span class="mark" { " [" (finding) "] " }
                            }
                            None => (shown(piece.text)),
                        }
                    }
                }
            }
        }
    }
}

/// Returns a text with its line breaks; every other character that could mislead is written out.
fn shown(text: &str) -> String {
    text.replace("\r\n", "\n").split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Cuts a draft where findings begin and end. Of two findings that overlap, the later one is marked behind the earlier one.
fn pieces<'d>(draft: &'d str, findings: &'d [String]) -> Vec<Piece<'d>> {
    let mut marks: Vec<(Range<usize>, &str)> = findings.iter().filter_map(|finding| place(finding)).collect();
    marks.sort_by_key(|(range, _)| (range.start, range.end));
    let (mut pieces, mut from) = (vec![], 0);
    let mut add = |range: Range<usize>, finding| {
        let text = draft.get(range).filter(|text| !text.is_empty());
        pieces.extend(text.map(|text| Piece { text, finding }));
    };
    for (range, finding) in marks {
        let start = range.start.max(from);
        if start < range.end && draft.get(start..range.end).is_some() {
            add(from..start, None);
            add(start..range.end, Some(finding));
            from = range.end;
        }
    }
    add(from..draft.len(), None);
    pieces
}

/// Returns the place in bytes of a finding, and its kind, code and severity.
fn place(finding: &str) -> Option<(Range<usize>, &str)> {
    let (what, place) = finding.rsplit_once(' ')?;
    let (start, end) = place.split_once("..")?;
    Some((start.parse().ok()?..end.parse().ok()?, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_marked_where_they_are_and_no_text_is_lost() {
        let findings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let draft = "Grüße, we have refunded you 20 EUR.";
        let all = findings(&[
            "ungrounded/amount high 30..36",
            "claim/refund_issued high 9..29",
            "tone/rude low",
            "x/y low 3..5",
        ]);
        let found = pieces(draft, &all);
        let marked: Vec<_> = found.iter().filter_map(|piece| Some((piece.text, piece.finding?))).collect();
        assert_eq!(
            marked,
            [("we have refunded you", "claim/refund_issued high"), ("20 EUR", "ungrounded/amount high")]
        );
        for all in [
            vec![],
            findings(&["a/b low 0..5", "a/c low 2..9", "a/d low 4..7", "a/e low 90..99", "a/f low 7..3"]),
            findings(&["a/b low 4..6", "a/c low 2..3"]),
        ] {
            let whole: String = pieces(draft, &all).iter().map(|piece| piece.text).collect();
            assert_eq!(whole, draft, "{all:?}");
        }
        assert_eq!(pieces("", &[]), []);
        assert_eq!(shown("a\r\nb\u{202e}c\td"), "a\nb\\u{202e}c\\u{9}d");
    }
}
