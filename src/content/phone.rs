//! Telephone numbers: candidates by their look, then read and held to the numbering plan of their country (`phonenumber`, a port of
//! libphonenumber). Ten digits in a row are none without a word that says so: order and policy numbers look the same.

use std::sync::LazyLock;

use phonenumber::country::Id;
use regex::Regex;

/// What may be a number: an international one, or groups of digits as national ones are written; and an extension.
static CANDIDATE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    compile(
        r#"(?:^|[^0-9A-Za-z_+#$€£./\-])(?P<value>(?:\+|00)\d{1,3}(?:[ .\-/]{0,2}\(?\d{1,5}\)?){2,6}|\(\+?\d{1,5}\)[ .\-/]{0,2}\d{2,5}(?:[ .\-/]?\d{2,5}){1,3}|(?:1[ .\-])?[2-9]\d{2}[ .\-]\d{3}[ .\-]\d{4}|0\d{1,4}[ .\-/]\d{2,8}(?:[ .\-]?\d{2,4}){0,4}|0\d{9,10}|[6-9]\d{4}[ \-]\d{5})(?:\s?(?:x|ext\.?|#)\s?\d{1,6})?(?:[\s,;:!?)"'\\]|[.\-](?:\D|$)|$)"#,
    )
});

/// Groups of digits that are a number only beside a word that says so.
static LOCAL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    compile(r#"(?:^|[^0-9A-Za-z_+#$€£./\-])(?P<value>\d{2,4}[ \-]\d{2,4}(?:[ \-]\d{2,4}){0,3})(?:[\s,;:!?)"']|[.\-](?:\D|$)|$)"#)
});

/// Words before a number that say that it is one.
static SAYS_SO: LazyLock<Option<Regex>> = LazyLock::new(|| {
    compile(
        r"(?i)\b(?:phone|mobile|mob|cell|tel|telephone|contact|whats ?app|landline|fax|ph|call|calling|text me|ring|dial|reach|answer(?:ing)?|sms|number)\b[^\n]{0,40}$",
    )
});

/// Words and signs before digits that say that they are something else.
static SAYS_OTHER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    compile(
        r"(?i)(?:\b(?:order|booking|claim|policy|invoice|ticket|tracking|reference|ref|item|product|model|serial|account|acct|card|credit|debit|iban|ssn|social|zip|isbn|case|flight|confirmation|transaction|code|pin|password|otp|id)s?\b\W{0,3}(?:(?:number|no|num|is|was|id|#|:)\W{0,2}){0,3}|[#$€£]|\d[ \-]|[A-Z]{1,3}\d{1,3} ?)$",
    )
});

/// Digits that are a date.
static DATE: LazyLock<Option<Regex>> =
    LazyLock::new(|| compile(r"^(?:\d{1,2}[ ./\-]\d{1,2}[ ./\-](?:19|20)\d\d|(?:19|20)\d\d[ ./\-]\d{1,2}[ ./\-]\d{1,2})(?:\D|$)"));

/// The countries whose plans a number without a country code is held to.
const HOME: [Id; 14] = [Id::US, Id::GB, Id::DE, Id::FR, Id::IN, Id::AU, Id::NL, Id::ES, Id::IT, Id::SE, Id::CH, Id::AT, Id::BE, Id::IE];
/// How far before a number words are looked at, in bytes.
const BEFORE: usize = 45;

fn compile(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

/// Where numbers stand in a text.
pub(super) fn find(text: &str, mut found: impl FnMut((usize, usize))) {
    for (pattern, local) in [(&CANDIDATE, false), (&LOCAL, true)] {
        let Some(pattern) = pattern.as_ref() else { continue };
        let mut from = 0;
        // From the end of each value, since the sign after it may stand before the next one.
        while let Some(value) = pattern.captures_at(text, from).and_then(|captures| captures.name("value")) {
            from = value.end();
            if is_number(text, (value.start(), value.end()), local) {
                found((value.start(), value.end()));
            }
        }
    }
}

fn is_number(text: &str, (start, end): (usize, usize), local: bool) -> bool {
    let written = text.get(start..end).unwrap_or_default();
    let from = (start.saturating_sub(BEFORE)..=start).find(|at| text.is_char_boundary(*at)).unwrap_or(start);
    let before = text.get(from..start).unwrap_or_default();
    let says = |pattern: &LazyLock<Option<Regex>>, text: &str| pattern.as_ref().is_some_and(|pattern| pattern.is_match(text));
    let digits = written.bytes().filter(u8::is_ascii_digit).count();
    let plain = !written.starts_with(['+', '(']);
    let named = says(&SAYS_SO, before);
    if !(7..=15).contains(&digits) || says(&DATE, written) || (plain && says(&SAYS_OTHER, before)) || (local && !named) {
        return false;
    }
    let abroad = written.strip_prefix("00").map(|rest| format!("+{rest}"));
    let number = abroad.as_deref().unwrap_or(written);
    let valid = |country: Option<Id>| phonenumber::parse(country, number).is_ok_and(|number| number.is_valid());
    // A word or a country code says so: its length alone is enough, since many are mistyped.
    named || (number.starts_with('+') && (valid(None) || digits >= 9)) || HOME.iter().any(|home| valid(Some(*home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<&str> {
        let mut found = vec![];
        find(text, |(start, end)| found.push(&text[start..end]));
        found
    }

    #[test]
    fn numbers_are_found_as_people_write_them() {
        for number in
            ["+49 30 1234567", "(555) 123-4567", "0049 30 1234567", "212.555.0123", "020 7946 0018", "+91-98765 43210", "+33 1 23 45 67 89"]
        {
            let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
            let text = format!("call me at {number}, please");
            assert_eq!(all(&text).first().map(|found| digits(found)), Some(digits(number)), "{text}");
        }
        assert_eq!(all("my phone number is 9469 9966."), ["9469 9966"]);
    }

    #[test]
    fn other_digits_are_none() {
        for text in [
            "order 4215 8891",
            "my order number is 212-555-0123",
            "on 02.05.2026",
            "it cost 1,200.50",
            "9876543210",
            "2026-05-02 10:00",
            "card 4111 1111 1111 1111",
        ] {
            assert!(all(text).is_empty(), "{text}: {:?}", all(text));
        }
    }
}
