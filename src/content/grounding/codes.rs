//! Codes of letters and digits, such as order numbers.

use crate::content::grounding::words::is_any;
use crate::model::finding::Span;
use crate::model::part::Part;

/// Finds rows of letters, digits and single hyphens that contain a digit. A `#` directly before a row belongs
/// to it.
pub(super) fn rows_with_digits(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let belongs = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'-';
    let mut found = vec![];
    let mut at = 0;
    while let Some(rest) = bytes.get(at..)
        && let Some(digit) = rest.iter().position(u8::is_ascii_digit)
    {
        let (before, behind) = rest.split_at(digit);
        let start = at + digit - before.iter().rev().take_while(belongs).count();
        at += digit + behind.iter().take_while(belongs).count();
        let mut from = start;
        for row in text.part(start..at).split("--") {
            let trimmed = row.trim_matches('-');
            let begin = from + row.len() - row.trim_start_matches('-').len();
            let is_marked = begin.checked_sub(1).is_some_and(|sign| bytes.get(sign) == Some(&b'#'));
            if trimmed.bytes().any(|byte| byte.is_ascii_digit()) {
                found.push((begin - usize::from(is_marked), begin + trimmed.len()));
            }
            from += row.len() + 2;
        }
    }
    found
}

/// Returns whether letters and digits are a code, unlike `5th`, `30-day`, `covid-19` or `10GB`.
pub(super) fn is_code(written: &str) -> bool {
    let lower = written.trim_start_matches('#').to_lowercase();
    let has = |part: &str, is: fn(&u8) -> bool| part.bytes().any(|sign| is(&sign));
    let is_mixed = |part: &str| {
        let letters = part.trim_start_matches(|sign: char| sign.is_ascii_digit());
        let is_count = letters.len() < part.len() && !has(letters, u8::is_ascii_digit);
        let is_unit =
            is_any(&["units", "magnitudes", "currencies"], letters) || ["st", "nd", "rd", "th", "s"].contains(&letters);
        has(part, u8::is_ascii_digit) && has(part, u8::is_ascii_alphabetic) && !(is_count && is_unit)
    };
    let parts: Vec<&str> = lower.split('-').collect();
    let is_numbered = parts.windows(2).any(|pair| matches!(pair, [name, number] if has(name, u8::is_ascii_alphabetic) && number.len() > 2 && !has(number, u8::is_ascii_alphabetic)));
    let is_numeral = written.starts_with('#') && has(&lower, u8::is_ascii_digit);
    !is_any(&["codes"], &lower) && (is_numeral || is_numbered || parts.into_iter().any(is_mixed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_letters_and_digits_are_read_whole() {
        let rows = |text: &'static str| {
            rows_with_digits(text).into_iter().map(|(start, end)| &text[start..end]).collect::<Vec<_>>()
        };
        assert_eq!(rows("ORD-7731, #42. a-b c3--4d- -e5 é6"), ["ORD-7731", "#42", "c3", "4d", "e5", "6"]);
        assert_eq!(rows("no digits - at all"), Vec::<&str>::new());
        assert_eq!(rows("7"), ["7"]);
    }
}
