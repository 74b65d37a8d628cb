//! Replaces values with placeholders that have a kind and a number, so that the same value has the same
//! placeholder within a case. Secrets are not numbered, because no one may learn whether two of them are
//! equal.

use crate::model::finding::SensitiveKind;
use crate::model::part::Part;

/// A value to be replaced, and its placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Place in the text, in bytes.
    pub span: (usize, usize),
    pub placeholder: String,
}

/// Builds a placeholder: `[email removed #1]`, `[verification code removed]`.
pub fn placeholder(kind: SensitiveKind, number: Option<u32>) -> String {
    match number {
        Some(number) => format!("[{} removed #{number}]", kind.message()),
        None => format!("[{} removed]", kind.message()),
    }
}

/// Replaces values in a text. Square brackets around other text that looks like a placeholder become
/// parentheses.
///
/// INVARIANT: the result contains nothing of a replaced span.
pub fn redact(text: &str, replaced: &[Replaced]) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut from = 0;
    for value in replaced {
        redacted.push_str(&without_placeholders(text.part(from..value.span.0)));
        redacted.push_str(&value.placeholder);
        from = value.span.1.max(from);
    }
    redacted.push_str(&without_placeholders(text.part(from..)));
    redacted
}

/// Changes the brackets of text that looks like a placeholder. Otherwise a customer could write a placeholder
/// and pass it off as a redacted value.
fn without_placeholders(text: &str) -> String {
    let mut changed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((open, bracket)) = rest.char_indices().find(|(_, sign)| OPEN.contains(sign)) {
        let (before, bracketed) = rest.split_at(open);
        changed.push_str(before);
        let within = bracketed.part(bracket.len_utf8()..);
        // A placeholder is short, so the search for its end is bounded.
        let close = within.char_indices().take(LONGEST).find(|(_, sign)| CLOSE.contains(sign));
        match close.filter(|(close, _)| is_like_ours(within.part(..*close))) {
            Some((close, sign)) => {
                changed.push('(');
                changed.push_str(within.part(..close));
                changed.push(')');
                rest = within.part(close + sign.len_utf8()..);
            }
            None => {
                changed.push(bracket);
                rest = within;
            }
        }
    }
    changed.push_str(rest);
    changed
}

/// Brackets that look like those of a placeholder.
const OPEN: [char; 4] = ['[', '\u{FF3B}', '\u{3010}', '\u{27E6}'];
const CLOSE: [char; 4] = [']', '\u{FF3D}', '\u{3011}', '\u{27E7}'];
/// Maximum length of a placeholder, including characters that may be inserted between its words.
const LONGEST: usize = 96;

fn is_like_ours(inner: &str) -> bool {
    let spaced = inner
        .split(|sign: char| sign.is_whitespace() || crate::model::text::is_unprintable(sign))
        .filter(|word| !word.is_empty());
    let inner = spaced.collect::<Vec<_>>().join(" ");
    let words = inner.trim_end_matches(|end: char| end.is_ascii_digit()).trim_end_matches(" #");
    words
        .strip_suffix(" removed")
        .is_some_and(|words| SensitiveKind::ALL.iter().any(|kind| kind.message().eq_ignore_ascii_case(words)))
}

/// Masks a value of a record: shows only the first letter of each word, and not the word's length.
pub fn masked(value: &str) -> String {
    let words = value.split(|sign: char| !sign.is_alphanumeric());
    let mut shown = String::new();
    let mut at = 0;
    for word in words {
        // Digits and words of one or two letters are hidden completely.
        let first = word.chars().next().filter(|first| first.is_alphabetic() && word.chars().count() > 2);
        if !word.is_empty() {
            shown.extend(first);
            shown.push_str("***");
        }
        at += word.len();
        // The separator after the word is shown.
        if let Some(sign) = value.get(at..).and_then(|rest| rest.chars().next()) {
            shown.push(sign);
            at += sign.len_utf8();
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_and_nothing_else_reads_as_one() {
        let replaced = [Replaced { span: (8, 15), placeholder: placeholder(SensitiveKind::Email, Some(1)) }];
        assert_eq!(redact("Mail to a@b.com now", &replaced), "Mail to [email removed #1] now");
        assert_eq!(
            redact("[Email removed #1] and [PIN removed] and [1] [", &[]),
            "(Email removed #1) and (PIN removed) and [1] ["
        );
        assert_eq!(placeholder(SensitiveKind::VerificationCode, None), "[verification code removed]");
    }

    #[test]
    fn a_masked_value_shows_first_letters_alone() {
        assert_eq!(masked("jane.doe@example.com"), "j***.d***@e***.c***");
        assert_eq!(masked("Jane Doe"), "J*** D***");
        assert_eq!(masked("+49 30 1234567"), "+*** *** ***");
        assert_eq!(masked("ü"), "***");
        assert_eq!(masked(""), "");
    }
}
