//! E-mail addresses, links and telephone numbers of drafts and sources.

use std::sync::LazyLock;

use crate::content::grounding::places::Places;
use crate::content::grounding::words::{Pattern, alternatives, matches, pattern, sign_after, sign_before};
use crate::model::finding::Span;
use crate::model::part::Part;

static MAIL: Pattern = LazyLock::new(|| pattern(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"));
static LINK: Pattern = LazyLock::new(|| {
    let path = r#"[^\s<>"')\]]"#;
    pattern(&format!(
        r"(?i:https?://|\bwww\.){path}+|\b(?:[A-Za-z0-9-]+\.)+(?:{})\b(?:[/?]{path}*)?",
        alternatives("domains")
    ))
});
static PHONE: Pattern = LazyLock::new(|| pattern(r"\+?\(?[0-9][0-9() ./-]{5,18}[0-9]\b"));

/// Returns the e-mail addresses, links and telephone numbers of a text, each in the form in which it is
/// compared.
pub(super) fn links(text: &str) -> Vec<(Span, String)> {
    let mut found: Vec<(Span, String)> = vec![];
    let mut taken = Places::of(text);
    let mut add = |span: Span, link: String| {
        if !taken.any(span) {
            taken.mark(span);
            found.push((span, link));
        }
    };
    for mail in matches(&MAIL, text) {
        let trimmed = mail.as_str().trim_end_matches(['.', '-']);
        add((mail.start(), mail.start() + trimmed.len()), trimmed.to_lowercase());
    }
    for link in matches(&LINK, text) {
        let trimmed = link.as_str().trim_end_matches(['.', ',', ':', ';', '!', '?', '*', '_']);
        let lower = trimmed.to_lowercase();
        let bare = lower.split_once("://").map_or(lower.as_str(), |(_, rest)| rest);
        let bare = bare.strip_prefix("www.").unwrap_or(bare);
        let bare = bare.split_once('#').map_or(bare, |(page, _)| page).trim_end_matches('/');
        if sign_before(text, link.start()).is_none_or(|before| !"@.-_".contains(before)) {
            add((link.start(), link.start() + trimmed.len()), bare.to_owned());
        }
    }
    for phone in matches(&PHONE, text).filter(|phone| is_phone(text, (phone.start(), phone.end()))) {
        let digits: String = phone.as_str().chars().filter(char::is_ascii_digit).collect();
        add((phone.start(), phone.end()), digits.trim_start_matches('0').to_owned());
    }
    found
}

/// Returns the last eight digits of a long telephone number, which identify it without its country code.
pub(super) fn local(digits: &str) -> Option<&str> {
    let is_long = digits.len() > 8 && digits.bytes().all(|sign| sign.is_ascii_digit());
    digits.get(digits.len().checked_sub(8)?..).filter(|_| is_long)
}

/// Returns whether digits are written as a telephone number, unlike a date, a range or an amount.
fn is_phone(text: &str, span: Span) -> bool {
    let (start, end) = span;
    let written = text.part(start..end);
    let lengths: Vec<usize> =
        written.split(|sign: char| !sign.is_ascii_digit()).map(str::len).filter(|length| *length > 0).collect();
    let has_plus = written.starts_with('+');
    let is_date = matches!(lengths.as_slice(), [4, 1 | 2, 1 | 2, ..] | [1 | 2, 1 | 2, 2 | 4]);
    let is_grouped = !written.contains('-') && lengths.iter().skip(1).all(|length| *length == 3);
    let is_formed = match lengths.as_slice() {
        [3, 4] => true,
        [_, _, _, ..] => !is_date && (!is_grouped || written.starts_with('0')),
        _ => false,
    };
    let is_part = sign_before(text, start)
        .is_some_and(|before| before.is_alphanumeric() || "_.,/#-$€£".contains(before))
        || sign_after(text, end).is_some_and(|next| "%-".contains(next));
    !is_part && (7..=15).contains(&lengths.iter().sum::<usize>()) && (has_plus || is_formed || written.contains('('))
}
