//! Finds card numbers and IBANs, however their digits are grouped. A checksum alone makes neither. A card number also
//! needs the prefix and length of an issuer (ISO/IEC 7812), and an IBAN the length of its country (ISO 13616). A number
//! in one group is no card if the word before it announces an order or the like.
//!
//! From each place at most [`LONGEST`] letters and digits are read, so the work is linear in the length of the text.

use crate::content::nearby::{self, Context};
use crate::model::part::Part;

/// Maximum number of letters and digits of an IBAN.
const LONGEST: usize = 34;
/// Numbers of digits of a card.
const CARD: std::ops::RangeInclusive<usize> = 12..=19;
/// Number of digits behind a decimal point that are not searched for a card.
const DECIMALS_MIN: usize = 12;
/// Maximum number of digits of a telephone number after its `+` (E.164).
const PHONE_MAX: usize = 15;
/// Lengths of IBANs by country (SWIFT's register of IBANs).
const COUNTRIES: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Card,
    Iban,
}

/// Letters and digits from a place on, without the separators between them.
#[derive(Debug, Default)]
struct Row {
    signs: Vec<u8>,
    /// Where each of them ends in the text.
    ends: Vec<usize>,
    /// Number of signs before each separator.
    groups: Vec<usize>,
}

/// Reports the places of the card numbers and IBANs of a text.
pub(super) fn find(text: &str, context: &Context, mut found: impl FnMut((usize, usize), Kind)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let end = match byte {
            b'0'..=b'9' if begins(bytes, at) => card(bytes, at, context).map(|end| (end, Kind::Card)),
            b'A'..=b'Z' | b'a'..=b'z' => iban(bytes, at).map(|end| (end, Kind::Iban)),
            _ => None,
        };
        if let Some((end, kind)) = end {
            found((at, end), kind);
            at = end;
        } else if byte == &b'+' {
            at += 1 + phone(bytes.part(at + 1..));
        } else {
            at += 1;
        }
    }
}

/// Returns whether a number may begin at this digit: not inside digits, and not behind a decimal point.
fn begins(bytes: &[u8], at: usize) -> bool {
    match bytes.part(..at) {
        [.., b'0'..=b'9'] => false,
        [.., b'0'..=b'9', b'.' | b','] => !bytes.part(at..).iter().take(DECIMALS_MIN).all(u8::is_ascii_digit),
        _ => true,
    }
}

/// Returns the length of a telephone number, of which `+` stood before; 0 if it has too many digits for one.
fn phone(bytes: &[u8]) -> usize {
    let row = row(bytes, |byte| byte.is_ascii_digit());
    if row.signs.len() > PHONE_MAX { 0 } else { row.ends.last().copied().unwrap_or(0) }
}

/// Reads letters and digits with at most one separator between two of them: a space, a line's end, a hyphen, a dot
/// or a slash.
fn row(bytes: &[u8], is: impl Fn(&u8) -> bool) -> Row {
    let mut row = Row::default();
    let mut at = 0;
    while row.signs.len() <= LONGEST {
        match bytes.get(at) {
            Some(byte) if is(byte) => {
                row.signs.push(byte.to_ascii_uppercase());
                at += 1;
                row.ends.push(at);
            }
            Some(b' ' | b'\t' | b'\n' | b'\r' | b'-' | b'.' | b'/')
                if row.ends.last() == Some(&at) && bytes.get(at + 1).is_some_and(&is) =>
            {
                row.groups.push(row.signs.len());
                at += 1;
            }
            Some(_) | None => break,
        }
    }
    row
}

/// Returns the end of the card number that begins here.
fn card(bytes: &[u8], start: usize, context: &Context) -> Option<usize> {
    // Most digits begin no card, and their first shows it.
    let row = Some(bytes.get(start)?)
        .filter(|first| (b'2'..=b'6').contains(first))
        .map(|_| row(bytes.part(start..), u8::is_ascii_digit))?;
    let length = CARD.rev().filter(|length| *length <= row.signs.len()).find(|length| {
        let ends = row.groups.contains(length) || *length == row.signs.len();
        let digits = row.signs.part(..*length);
        ends && is_issued(digits) && luhn(digits)
    })?;
    let before = bytes.part(start.saturating_sub(nearby::BEFORE)..start);
    // Nobody groups an order's number as on a card.
    let is_together = !row.groups.iter().any(|end| *end < length);
    let is_other = is_together && context.denies_card(before);
    row.ends.get(length - 1).map(|end| start + end).filter(|_| !is_other)
}

/// Returns whether a card's issuer has this prefix and number of digits.
fn is_issued(digits: &[u8]) -> bool {
    let prefix = |count: usize| {
        digits.iter().take(count).fold(0_u32, |number, digit| number * 10 + u32::from(digit.saturating_sub(b'0')))
    };
    let (one, two, three, four) = (prefix(1), prefix(2), prefix(3), prefix(4));
    match digits.len() {
        12 => matches!(two, 50 | 56..=58) || four == 6304,
        13 => one == 4,
        14 => matches!(three, 300..=305) || matches!(two, 36 | 38 | 39),
        15 => matches!(two, 34 | 37),
        16 => {
            one == 4
                || matches!(two, 50..=58 | 60 | 62 | 65)
                || matches!(three, 644..=649)
                || matches!(four, 2200..=2204 | 2221..=2720 | 3528..=3589 | 6304 | 6759..=6763)
        }
        17 | 18 => matches!(two, 50 | 56..=58 | 62) || matches!(four, 6759..=6763),
        19 => one == 4 || matches!(two, 50 | 56..=58 | 62 | 65) || matches!(four, 6759..=6763),
        _ => false,
    }
}

/// Returns whether the digits pass the Luhn check (ISO/IEC 7812-1, annex B).
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = (digits.iter().rev().enumerate())
        .map(|(at, digit)| {
            let digit = u32::from(digit.saturating_sub(b'0'));
            if at % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Returns the end of the IBAN that begins here, also behind the word `IBAN` itself.
fn iban(bytes: &[u8], start: usize) -> Option<usize> {
    let [first, second, check @ ..] = bytes.part(start..) else { return None };
    let checks = check.iter().take(3).filter(|byte| byte.is_ascii_digit()).count();
    if checks < 2 || !second.is_ascii_alphabetic() {
        return None;
    }
    let before = bytes.part(..start);
    let is_glued = before.last().is_some_and(u8::is_ascii_alphanumeric)
        && !before.part(before.len().saturating_sub(4)..).eq_ignore_ascii_case(b"iban");
    let country = [first.to_ascii_uppercase(), second.to_ascii_uppercase()];
    let length: usize = COUNTRIES
        .split(' ')
        .find_map(|entry| entry.strip_prefix(std::str::from_utf8(&country).ok()?))?
        .parse()
        .ok()
        .filter(|_| !is_glued)?;
    let row = row(bytes.part(start..), u8::is_ascii_alphanumeric);
    let signs = row.signs.get(..length)?;
    let is_end = row.groups.contains(&length) || row.signs.len() == length;
    let end = row.ends.get(length - 1)?;
    let has_checks = signs.part(2..4).iter().all(u8::is_ascii_digit);
    (is_end && has_checks && remainder(signs) == 1).then_some(start + end)
}

/// Returns the remainder by 97 of an IBAN whose first four signs are moved to its end, letters being 10 to 35 (ISO
/// 7064, MOD 97-10).
fn remainder(signs: &[u8]) -> u32 {
    signs.iter().skip(4).chain(signs.iter().take(4)).fold(0, |rest, sign| match sign {
        b'A'..=b'Z' => (rest * 100 + u32::from(sign - b'A') + 10) % 97,
        digit => (rest * 10 + u32::from(digit.saturating_sub(b'0'))) % 97,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::nearby::tests::shipped;

    fn all(text: &str) -> Vec<&str> {
        let mut all = vec![];
        find(text, &shipped(), |(start, end), _| all.push(&text[start..end]));
        all
    }

    #[test]
    fn a_card_is_found_with_any_separator() {
        for separator in ["", " ", "-", ".", "/", "\n", "\t"] {
            let number = ["4111", "1111", "1111", "1111"].join(separator);
            for text in [format!("It is {number}."), format!("card{number}"), format!("my card no. {number}, thanks")] {
                assert_eq!(all(&text), [&number], "{text:?}");
            }
        }
        assert_eq!(all("3782 822463 10005"), ["3782 822463 10005"]);
        assert_eq!(all("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"), ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"]);
        assert_eq!(all("my order: 4111-1111-1111-1111"), ["4111-1111-1111-1111"]);
        assert_eq!(all("Thanks for my order.\n4111111111111111"), ["4111111111111111"]);
        assert_eq!(all("Thanks for my order. 4111111111111111"), ["4111111111111111"]);
        assert_eq!(all("41 11 11 11 11 11 11 11"), ["41 11 11 11 11 11 11 11"]);
        assert_eq!(all("12 4111 1111 1111 1111"), ["4111 1111 1111 1111"]);
    }

    #[test]
    fn a_checksum_alone_makes_no_card() {
        for text in [
            // No issuer's prefix, or not that issuer's length.
            "1111 1111 1111 1117",
            "9111111111111111",
            "37828224631000",
            // Another digit.
            "4111 1111 1111 1112",
            "my order 4000123412341234 is late",
            "Bestellung Nr. 4111111111111111",
            "numero de commande : 4111111111111111",
            "0.4111111111111111",
            "+4915112345671",
            "+41 11 111 111 111",
            "x41111111111111112",
        ] {
            assert_eq!(all(text), [] as [&str; 0], "{text}");
        }
    }

    #[test]
    fn an_iban_has_its_country_s_length_and_remainder() {
        for separator in ["", " ", "-", ".", "/", "\n"] {
            let number = ["DE89", "3704", "0044", "0532", "0130", "00"].join(separator);
            for text in [format!("It is {number}."), format!("IBAN{number}"), format!("{number} bitte")] {
                assert_eq!(all(&text), [&number], "{text:?}");
            }
        }
        assert_eq!(all("gb82 west 1234 5698 7654 32"), ["gb82 west 1234 5698 7654 32"]);
        for text in
            ["DE89370400440532013001", "DE8937040044053201300", "ZZ89370400440532013000", "DE89370400440532013000a"]
        {
            assert_eq!(all(text), [] as [&str; 0], "{text}");
        }
    }

    #[test]
    fn any_text_is_read_in_linear_time_without_panic() {
        let hostile = ["4", "4 ", "+4", "DE8", "de89 ", "4-1.1/", "é4111", "5555 5555 5555 444"];
        for text in hostile {
            find(&text.repeat(20_000), &shipped(), |(start, end), _| assert!(start < end));
        }
    }
}
