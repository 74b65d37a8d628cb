//! Finds the sensitive values of a text: secrets by their shape, secrets in conversation by the bundle's
//! rules and the previous turn, personal data, and values that are already known.

use std::borrow::Cow;

use cerberust::scanner::detect::{detect_secrets, detect_structured};

use crate::content::normalise::{View, Views};
use crate::content::rules::Rules;
use crate::content::values::{Digest, TooManyPlaces, Values};
use crate::content::{cards, nearby, phone, phrases};
use crate::model::finding::{SensitiveKind, Span};
use crate::model::part::Part;

/// A sensitive value in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Place in the text, in bytes.
    pub span: Span,
    pub kind: SensitiveKind,
}

/// Separator for parts of a text that are searched together. No rule matches across it: it is neither white
/// space nor punctuation that may come between a keyword and a value.
const BETWEEN_PARTS: &str = "\n;;\n";

/// Finds sensitive values, sorted and without overlaps. `turn` is the previous turn, folded.
pub(super) fn find(
    rules: &Rules,
    text: &str,
    views: &Views,
    turn: &str,
    known: &Values,
    missed: impl FnMut((usize, usize), Digest),
) -> Vec<Located> {
    let mut all = located(rules, text, views);
    let folded = &views.folded;
    if !turn.is_empty() {
        let shown = masked(folded.text());
        rules.replied(turn, &shown, |(rule, span)| all.extend(place(text, folded, kind(&rule.kind), span)));
    }
    without_placeholders(text, &mut all);
    resolve(&mut all);
    add_known(text, views, known, &mut all, missed);
    all
}

/// Finds sensitive values in each of many short texts. They are searched as one text, so that the detectors'
/// fixed costs arise once. Only secrets and known values are reported: personal data may stay in these texts,
/// and must not give its kind to a known value that it overlaps.
pub(super) fn find_in_parts(rules: &Rules, parts: &[&str], known: &Values) -> Vec<Vec<Located>> {
    let text = parts.join(BETWEEN_PARTS);
    let views = Views::of(&text);
    let mut all = located(rules, &text, &views);
    without_placeholders(&text, &mut all);
    all.retain(|located| located.kind.is_secret());
    resolve(&mut all);
    add_known(&text, &views, known, &mut all, |_, _| {});
    let mut start = 0;
    let mut following = all.as_slice();
    let mut found = Vec::with_capacity(parts.len());
    for part in parts {
        let end = start + part.len();
        let first = following.partition_point(|located| located.span.1 <= start);
        following = following.part(first..);
        let within = following.iter().take_while(|located| located.span.0 < end);
        let clipped = |located: &Located| Located {
            span: (located.span.0.max(start) - start, located.span.1.min(end) - start),
            ..*located
        };
        found.push(within.map(clipped).collect());
        start = end + BETWEEN_PARTS.len();
    }
    found
}

fn kind(code: &str) -> SensitiveKind {
    SensitiveKind::from_name(code).unwrap_or(SensitiveKind::Secret)
}

/// Maps a place of a view to whole characters of its text.
fn place(text: &str, view: &View, kind: SensitiveKind, span: Span) -> Option<Located> {
    let (start, end) = view.original(span);
    (start < end && text.is_char_boundary(start) && text.is_char_boundary(end))
        .then_some(Located { span: (start, end), kind })
}

/// Adds the places of known values. A place that a detector found keeps the detector's kind: otherwise known
/// and unknown values would get different placeholders, and a list of guesses would reveal which of them is
/// known. `missed` is called for each number that is not a value, unless a detector found it.
pub(super) fn add_known(
    text: &str,
    views: &Views,
    known: &Values,
    located: &mut Vec<Located>,
    mut missed: impl FnMut((usize, usize), Digest),
) {
    let shape = |span: Span| {
        let next = located.partition_point(|located| located.span.1 <= span.0);
        located.get(next).filter(|shape| shape.span.0 < span.1)
    };
    let mut all = vec![];
    for view in views.all() {
        let looked_at = known.search(
            view,
            |found| all.extend(place(text, view, found.kind, found.span)),
            |span, digest| {
                let outside = |span: &(usize, usize)| {
                    shape(*span).is_none_or(|shape| span.0 < shape.span.0 || shape.span.1 < span.1)
                };
                if let Some(span) =
                    place(text, view, SensitiveKind::Secret, span).map(|located| located.span).filter(outside)
                {
                    missed(span, digest);
                }
            },
        );
        if let Err(TooManyPlaces(rest)) = looked_at {
            // The rest was not checked and may contain a known value, so all of it is withheld.
            all.extend(place(text, view, SensitiveKind::Secret, (rest, view.text().len())));
        }
    }
    without_placeholders(text, &mut all);
    for found in &mut all {
        found.kind = shape(found.span).map_or(found.kind, |shape| shape.kind);
    }
    located.extend(all);
    resolve(located);
}

/// Runs the detectors. The result is unsorted, and values may overlap.
fn located(rules: &Rules, text: &str, views: &Views) -> Vec<Located> {
    let mut all = vec![];
    let mut add = |view: &View, kind: SensitiveKind, span: Span| all.extend(place(text, view, kind, span));
    let folded = &views.folded;
    let context = rules.context();
    let before = |at: usize| folded.text().as_bytes().part(at.saturating_sub(nearby::BEFORE)..at);
    let ascii = ascii(folded.text());
    for found in detect_structured(&ascii) {
        let kind = match found.ty.as_str() {
            "EMAIL" => SensitiveKind::Email,
            "IP_ADDRESS" if !context.is_version(before(found.start)) => SensitiveKind::IpAddress,
            "US_SSN" => SensitiveKind::Ssn,
            // The library judges cards by their checksum alone, knows few separators, and telephone numbers of one
            // country: `cards` and `phone` find these instead.
            _ => continue,
        };
        add(folded, kind, (found.start, found.end));
    }
    let phrases = phrases::unchecked(&ascii);
    phrases.iter().for_each(|span| add(folded, SensitiveKind::Secret, *span));
    for found in detect_secrets(&without(ascii, &phrases)) {
        let is_hexadecimal = folded.text().part(found.start..found.end).bytes().all(|byte| byte.is_ascii_hexdigit());
        if !(is_hexadecimal && context.is_checksum(before(found.start))) {
            add(folded, SensitiveKind::Secret, (found.start, found.end));
        }
    }
    cards::find(folded.text(), context, |span, kind| {
        let kind = match kind {
            cards::Kind::Card => SensitiveKind::CardNumber,
            cards::Kind::Iban => SensitiveKind::Iban,
        };
        add(folded, kind, span);
    });
    phone::find(folded.text(), context, |span| add(folded, SensitiveKind::Phone, span));
    for view in views.all() {
        rules.find(&masked(view.text()), |(rule, span)| add(view, kind(&rule.kind), span));
    }
    all
}

/// Blanks placeholders that end a line for the rules: their words announce no value in the next line. Anybody can write a placeholder, so one before a
/// value in the same line still announces it.
fn masked(text: &str) -> Cow<'_, str> {
    let ends_line = |(_, end): &(usize, usize)| {
        let rest = text.get(*end..).unwrap_or("").trim_start_matches([' ', '\t', '.', ',', ';', ':', '!']);
        rest.is_empty() || rest.starts_with(['\n', '\r'])
    };
    let ending: Vec<_> = placeholders(text).into_iter().filter(ends_line).collect();
    without(Cow::Borrowed(text), &ending)
}

/// Converts a text to ASCII of the same length, for detectors of ASCII values. Their patterns are
/// Unicode-aware, which makes them a hundred times slower in non-ASCII text. Letters become `_`, which no
/// value contains, and other characters `|`, which separates values.
fn ascii(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        let shown = match character {
            character if character.is_ascii() => character,
            character if character.is_alphanumeric() => '_',
            _ => '|',
        };
        (0..character.len_utf8()).for_each(|_| ascii.push(shown));
    }
    Cow::Owned(ascii)
}

/// Blanks these places of a text, so that no word remains there. The text keeps its length.
fn without<'t>(text: Cow<'t, str>, places: &[(usize, usize)]) -> Cow<'t, str> {
    if places.is_empty() {
        return text;
    }
    let mut rest = String::with_capacity(text.len());
    let mut last = 0;
    for (start, end) in places {
        rest.push_str(text.part(last..*start));
        (*start..*end).for_each(|_| rest.push('|'));
        last = *end;
    }
    rest.push_str(text.part(last..));
    Cow::Owned(rest)
}

/// Maximum number of digits in a placeholder. No case has more values than three digits can number, and every
/// value that is searched for is longer.
const PLACEHOLDER_DIGITS: usize = 3;

/// Drops values within placeholders: a text that was redacted before contains placeholders, which are not
/// values.
fn without_placeholders(text: &str, all: &mut Vec<Located>) {
    let placeholders = placeholders(text);
    all.retain(|located| {
        // Placeholders do not overlap, so only the last one that begins before a value can contain it.
        let next = placeholders.partition_point(|(from, _)| *from <= located.span.0);
        let before = next.checked_sub(1).and_then(|last| placeholders.get(last));
        before.is_none_or(|(_, to)| located.span.1 > *to)
    });
}

fn placeholders(text: &str) -> Vec<(usize, usize)> {
    let length = |rest: &str| {
        let begins = |words: &&str| rest.get(..words.len()).is_some_and(|start| start.eq_ignore_ascii_case(words));
        let words = SensitiveKind::ALL.iter().map(|kind| kind.message()).find(begins)?;
        let after = rest.get(words.len()..)?.strip_prefix(" removed")?;
        let number = after.strip_prefix(" #").unwrap_or(after);
        let digits = number.bytes().take_while(u8::is_ascii_digit).count();
        // More digits than a placeholder's number has may be the value itself.
        let end = number.get(digits..).filter(|end| digits <= PLACEHOLDER_DIGITS && end.starts_with(']'))?;
        Some(rest.len() - end.len() + 1)
    };
    let brackets = text.match_indices('[');
    brackets.filter_map(|(open, _)| Some((open, open + 1 + length(text.get(open + 1..)?)?))).collect()
}

/// Merges overlapping values, so that each byte belongs to at most one and every byte that was found stays
/// covered. A merged value has the kind of the one that begins first (of these, the longest) or, if that is
/// not a secret, of the first secret.
pub(super) fn resolve(all: &mut Vec<Located>) {
    all.sort_by_key(|located| {
        (located.span.0, std::cmp::Reverse(located.span.1), !located.kind.is_secret(), located.kind)
    });
    let mut kept: Vec<Located> = vec![];
    for located in std::mem::take(all) {
        match kept.last_mut() {
            Some(last) if located.span.0 < last.span.1 => {
                // The parts of a merged value can't be told apart, so a secret among them determines the
                // kind.
                last.span.1 = last.span.1.max(located.span.1);
                if located.kind.is_secret() && !last.kind.is_secret() {
                    last.kind = located.kind;
                }
            }
            Some(_) | None => kept.push(located),
        }
    }
    *all = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_masked_in_any_case_and_the_text_keeps_its_length() {
        for (text, shown) in [
            ("code:[verification code removed]\n00000", "code:|||||||||||||||||||||||||||\n00000"),
            ("é [iban removed #12] .\ré", "é |||||||||||||||||| .\ré"),
            ("Your [verification code removed] 482913", "Your [verification code removed] 482913"),
            ("[pin removed #1234] [nothing removed] [", "[pin removed #1234] [nothing removed] ["),
        ] {
            assert_eq!(masked(text), shown);
        }
    }
}
