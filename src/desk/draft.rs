//! The draft that a reply would send, with what was found in it marked.

use std::ops::Range;

use maud::{Markup, html};

use crate::model::approval::State;
use crate::model::text::visible;
use crate::pdp::approval_access::Seen;

/// Piece of a draft: its text, and what was found there.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'d> {
    text: &'d str,
    findings: Vec<&'d str>,
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
                        @if piece.findings.is_empty() { (shown(piece.text)) } @else {
                            mark { (shown(piece.text)) }
                            span class="mark" { " [" (piece.findings.join(", ")) "] " }
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

/// Cuts a draft where findings begin and end. There are at most 64 findings.
fn pieces<'d>(draft: &'d str, findings: &'d [String]) -> Vec<Piece<'d>> {
    let marks: Vec<(Range<usize>, &str)> = findings.iter().filter_map(|finding| place(finding)).collect();
    let ends = marks.iter().flat_map(|(range, _)| [range.start, range.end]);
    let mut cuts: Vec<usize> = ends.filter(|at| draft.is_char_boundary(*at)).chain([0, draft.len()]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let piece = |[from, to]: &[usize; 2]| {
        let covers = |range: &Range<usize>| range.start <= *from && *to <= range.end;
        let findings = marks.iter().filter(|(range, _)| covers(range)).map(|(_, finding)| *finding).collect();
        Some(Piece { text: draft.get(*from..*to)?, findings })
    };
    cuts.array_windows().filter_map(piece).collect()
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
            "injection/model low 9..36",
        ]);
        let found = pieces(draft, &all);
        let marked: Vec<_> = found
            .iter()
            .filter(|piece| !piece.findings.is_empty())
            .map(|piece| (piece.text, piece.findings.join(" ")))
            .collect();
        let expected = [
            ("we have refunded you", "claim/refund_issued high injection/model low"),
            (" ", "injection/model low"),
            ("20 EUR", "ungrounded/amount high injection/model low"),
        ];
        assert_eq!(marked, expected.map(|(text, findings)| (text, findings.to_owned())));
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
