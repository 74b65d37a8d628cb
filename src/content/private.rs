//! What must not be passed on, found in a text: secrets by their shape, secrets in conversation by the bundle's rules and the turn before,
//! data by which a person is known, and values that are known already.

use cerberust::scanner::detect::{detect_secrets, detect_structured};

use crate::content::drafts::NUMBERS_MAX;
use crate::content::normalise::{View, Views};
use crate::content::phone;
use crate::content::rules::Rules;
use crate::content::values::{self, ValueKey, Values};
use crate::model::finding::Private;

/// A value in a text that must not be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Where it stands, in bytes of the text.
    pub span: (usize, usize),
    /// What it is.
    pub kind: Private,
}

/// Finds what must not be passed on; sorted, and none within another. `turn` is the folded turn before.
pub(super) fn find(rules: &Rules, text: &str, views: &Views, turn: &str, known: (&Values, &ValueKey)) -> Vec<Located> {
    let mut all = vec![];
    let mut add = |view: &View, kind: Private, span: (usize, usize)| {
        let (start, end) = view.original(span);
        // Of a view's character, all that it stands for.
        if start < end && text.is_char_boundary(start) && text.is_char_boundary(end) {
            all.push(Located { span: (start, end), kind });
        }
    };
    let folded = &views.folded;
    for found in detect_structured(folded.text()) {
        let kind = match found.ty.as_str() {
            "CREDIT_CARD" => Private::CardNumber,
            "EMAIL" => Private::Email,
            "IBAN" => Private::Iban,
            "IP_ADDRESS" => Private::IpAddress,
            "US_SSN" => Private::Ssn,
            // Its telephone numbers are those of one country; ours follow.
            _ => continue,
        };
        add(folded, kind, (found.start, found.end));
    }
    for found in detect_secrets(folded.text()) {
        add(folded, Private::Secret, (found.start, found.end));
    }
    phone::find(folded.text(), |span| add(folded, Private::Phone, span));
    let kind = |code: &str| Private::named(code).unwrap_or(Private::Secret);
    for view in views.all() {
        rules.find(view.text(), |(rule, span)| add(view, kind(&rule.kind), span));
        known.0.find(view, known.1, |kind, span| add(view, kind, span));
    }
    let numbers = values::numbers(folded);
    if !known.0.is_empty() && numbers.len() > NUMBERS_MAX {
        // A list in which one number is missing would tell which one it is.
        numbers.into_iter().for_each(|span| add(folded, Private::Secret, span));
    }
    if !turn.is_empty() {
        rules.replied(turn, folded.text(), |(rule, span)| add(folded, kind(&rule.kind), span));
    }
    let placeholders = placeholders(text);
    all.retain(|located| !placeholders.iter().any(|(from, to)| *from <= located.span.0 && located.span.1 <= *to));
    resolved(all)
}

/// Where placeholders of ours stand: in a text that was redacted before, they are no values.
fn placeholders(text: &str) -> Vec<(usize, usize)> {
    let length = |rest: &str| {
        let words = Private::ALL.iter().map(|kind| kind.words()).find(|words| rest.starts_with(*words))?;
        let after = rest.get(words.len()..)?.strip_prefix(" removed")?;
        let number = after.strip_prefix(" #").map_or(after, |number| number.trim_start_matches(|sign: char| sign.is_ascii_digit()));
        number.starts_with(']').then_some(rest.len() - number.len() + 1)
    };
    let brackets = text.match_indices('[');
    brackets.filter_map(|(open, _)| Some((open, open + 1 + length(text.get(open + 1..)?)?))).collect()
}

/// What is left when each byte is of one value: what begins first and is longest, then secrets before others; all that was found stays
/// covered.
fn resolved(mut all: Vec<Located>) -> Vec<Located> {
    all.sort_by_key(|located| (located.span.0, std::cmp::Reverse(located.span.1), !located.kind.is_secret(), located.kind));
    let mut kept: Vec<Located> = vec![];
    for located in all {
        match kept.last_mut() {
            Some(last) if located.span.0 < last.span.1 => {
                // One value, told apart by none: the secret gives it its name.
                last.span.1 = last.span.1.max(located.span.1);
                if located.kind.is_secret() && !last.kind.is_secret() {
                    last.kind = located.kind;
                }
            }
            Some(_) | None => kept.push(located),
        }
    }
    kept
}
