//! Telephone numbers, as people write them: groups of digits that fit a numbering plan. International numbers
//! follow ITU-T E.164. National numbers are those of plans in which a leading zero, or groups of 3, 3 and 4
//! digits, mark a number. The words nearby decide the remaining cases, because order and policy numbers look
//! the same.
//!
//! One pass over the bytes finds the groups. From each group at most [`GROUPS_MAX`] groups and the [`nearby::BEFORE`]
//! bytes before it are read, so the work is linear in the length of the text.

use crate::content::nearby::{self, Context};
use crate::model::part::Part;

/// Maximum number of groups in a number.
const GROUPS_MAX: usize = 8;
/// Minimum and maximum number of digits (E.164).
const DIGITS_MIN: usize = 7;
const DIGITS_MAX: usize = 15;
/// An international number with fewer digits needs a calling code of [`SHORT_PLANS`].
const INTERNATIONAL_MIN: usize = 9;
/// Calling codes of countries whose numbers have four or five digits.
const SHORT_PLANS: [&[u8]; 9] = [b"247", b"290", b"500", b"677", b"682", b"683", b"685", b"686", b"690"];
/// Number of digits of a national number, including its leading zero.
const WITH_ZERO: std::ops::RangeInclusive<usize> = 9..=12;

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    start: usize,
    end: usize,
    bracketed: bool,
    /// Number of separators after the previous group, without brackets, and the first of them.
    gap: usize,
    sign: u8,
}

impl Group {
    fn length(&self) -> usize {
        self.end - self.start
    }
}

/// Reports the places of the telephone numbers of a text.
pub(super) fn find(text: &str, context: &Context, mut found: impl FnMut((usize, usize))) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let opens = matches!(byte, b'+' | b'(') && bytes.get(at + 1).is_some_and(|next| b"+0123456789".contains(next));
        if !opens && !byte.is_ascii_digit() {
            at += 1;
            continue;
        }
        match may_begin(bytes, at).then(|| number(bytes, at, context)).flatten() {
            Some(end) => {
                found((at, end));
                at = end;
            }
            None if opens => at += 1,
            // Digits that begin no number are skipped as a whole.
            None => at += run(bytes, at, bytes.len()),
        }
    }
}

/// Returns the number of digits in a row from here, at most `most`.
fn run(bytes: &[u8], at: usize, most: usize) -> usize {
    bytes.part(at..).iter().take(most).take_while(|byte| byte.is_ascii_digit()).count()
}

/// Returns whether the preceding character lets a number begin here.
fn may_begin(bytes: &[u8], at: usize) -> bool {
    let before = bytes.part(..at);
    let joined = before.last().is_some_and(|last| last.is_ascii_alphanumeric() || b"_+#$./-".contains(last));
    !joined && !before.ends_with("€".as_bytes()) && !before.ends_with("£".as_bytes())
}

/// Returns the end of the number that begins here.
fn number(bytes: &[u8], start: usize, context: &Context) -> Option<usize> {
    let mut all = [Group::default(); GROUPS_MAX];
    let count = read_groups(bytes, start, &mut all);
    // Most groups have too few digits, and counting these is cheaper than reading words.
    let groups = all.get(..count).filter(|groups| digits(groups) >= DIGITS_MIN)?;
    let first = groups.first()?;
    let plus = bytes.get(start..first.start).is_some_and(|signs| signs.contains(&b'+'));
    let zeros = bytes.get(first.start..first.start + 2) == Some(b"00");
    let before = bytes.part(start.saturating_sub(nearby::BEFORE)..start);
    let is_plain = !plus && !first.bracketed;
    if is_plain && says_other(before, context) {
        return None;
    }
    let named = context.is_phone(before);
    let taken = longest(groups, bytes, |groups| match (plus || zeros, first.bracketed) {
        (true, _) => named || is_international(groups, bytes, zeros),
        (false, true) => is_bracketed(groups) && (named || has_plan(groups, bytes)),
        (false, false) => {
            (is_national(groups, bytes) && (named || has_plan(groups, bytes))) || (named && is_local(groups))
        }
    });
    taken.map(|last| last.end + usize::from(last.bracketed))
}

/// Reads the groups from here on, with or without brackets and with at most two separators between them.
/// Returns their number.
fn read_groups(bytes: &[u8], start: usize, groups: &mut [Group; GROUPS_MAX]) -> usize {
    let (mut at, mut gap, mut sign) = (start, 0, b' ');
    let mut count = 0;
    for group in groups.iter_mut() {
        let signs = if count == 0 { b"(+".as_slice() } else { b"(" };
        let opening = bytes.part(at..).iter().take(2).take_while(|byte| signs.contains(byte)).count();
        let opened = bytes.get(at..at + opening).is_some_and(|signs| signs.contains(&b'('));
        let from = at + opening;
        let end = from + run(bytes, from, DIGITS_MAX + 1);
        let bracketed = opened && bytes.get(end) == Some(&b')');
        if end == from || opened != bracketed {
            break;
        }
        *group = Group { start: from, end, bracketed, gap, sign };
        count += 1;
        at = end + usize::from(bracketed);
        gap = bytes.part(at..).iter().take(3).take_while(|byte| b" .-/".contains(byte)).count();
        sign = bytes.get(at).copied().unwrap_or(b' ');
        at += gap;
        if gap > 2 {
            break;
        }
    }
    count
}

/// Returns the last group of the longest prefix of these groups that is a number and may end there.
fn longest<'g>(groups: &'g [Group], bytes: &[u8], is: impl Fn(&[Group]) -> bool) -> Option<&'g Group> {
    (1..=groups.len()).rev().find_map(|count| {
        let taken = groups.get(..count)?;
        let last = taken.last()?;
        let counts = (DIGITS_MIN..=DIGITS_MAX).contains(&digits(taken)) && ends(bytes, last) && !is_date(taken, bytes);
        (counts && is(taken)).then_some(last)
    })
}

fn digits(groups: &[Group]) -> usize {
    groups.iter().map(Group::length).sum()
}

/// Returns whether a number may end with this group: before white space, punctuation or an extension (`x12`,
/// `#12`).
fn ends(bytes: &[u8], last: &Group) -> bool {
    let rest = bytes.part(last.end + usize::from(last.bracketed)..);
    match rest {
        [] => true,
        [sign, ..] if sign.is_ascii_whitespace() || b",;:!?)\"'\\".contains(sign) => true,
        [b'.' | b'-', next @ ..] => next.first().is_none_or(|next| !next.is_ascii_digit()),
        [b'x' | b'#', next @ ..] => next.first().is_some_and(u8::is_ascii_digit),
        _ => false,
    }
}

/// Returns whether digits are written as a date: `2.5.2026`, `2026-05-02`.
fn is_date(groups: &[Group], bytes: &[u8]) -> bool {
    let century = |group: &Group| bytes.part(group.start..group.start + 2);
    let year = |group: &Group| group.length() == 4 && matches!(century(group), b"19" | b"20");
    let short = |group: &Group| group.length() <= 2;
    match groups {
        [day, month, last] if short(day) && short(month) => year(last),
        [first, month, day, ..] if short(month) && short(day) => year(first),
        _ => false,
    }
}

fn is_international(groups: &[Group], bytes: &[u8], zeros: bool) -> bool {
    let digits = digits(groups) - if zeros { 2 } else { 0 };
    let first = groups.first().map_or(0, |first| first.start) + if zeros { 2 } else { 0 };
    let code = bytes.part(first..);
    // Calling codes do not begin with a zero.
    code.first() != Some(&b'0')
        && (digits >= INTERNATIONAL_MIN || SHORT_PLANS.iter().any(|plan| code.starts_with(plan)))
}

/// Returns whether the groups look like a national number with its area code in brackets.
fn is_bracketed(groups: &[Group]) -> bool {
    (2..=5).contains(&groups.len())
        && groups.first().is_some_and(|first| first.length() <= 5)
        && groups.iter().skip(1).all(|group| group.gap <= 2 && (2..=8).contains(&group.length()))
}

/// Returns whether the groups look like a national number without brackets.
fn is_national(groups: &[Group], bytes: &[u8]) -> bool {
    let zero = groups.first().is_some_and(|first| bytes.get(first.start) == Some(&b'0'));
    let single = groups.iter().skip(1).all(|group| group.gap == 1 && !group.bracketed);
    let lengths = |expected: &[usize]| groups.iter().map(Group::length).eq(expected.iter().copied());
    // A slash may only follow the area code.
    let single = single && groups.iter().skip(2).all(|group| group.sign != b'/');
    if zero {
        return single
            && groups.iter().skip(1).all(|group| group.length() >= 2)
            && (groups.len() > 1 || matches!(digits(groups), 10 | 11));
    }
    single && (lengths(&[3, 3, 4]) || lengths(&[1, 3, 3, 4]) || lengths(&[5, 5]))
}

/// Returns whether the groups look like a number, but only if a word announces it.
fn is_local(groups: &[Group]) -> bool {
    (2..=5).contains(&groups.len())
        && groups.iter().all(|group| !group.bracketed && (2..=4).contains(&group.length()))
        && groups.iter().skip(1).all(|group| group.gap == 1 && b" -".contains(&group.sign))
}

/// Returns whether a national number fits the numbering plan of its form.
fn has_plan(groups: &[Group], bytes: &[u8]) -> bool {
    let first = groups.iter().find(|group| !(group.length() == 1 && bytes.get(group.start) == Some(&b'1')));
    let Some(first) = first else { return false };
    let sign = |at: usize| bytes.get(at).copied().unwrap_or(b' ');
    match (sign(first.start), groups.len()) {
        // The number has a trunk prefix and an area code that does not begin with another zero.
        (b'0', _) => WITH_ZERO.contains(&digits(groups)) && (first.length() == 1 || sign(first.start + 1) != b'0'),
        // Two groups of five digits are an Indian mobile number.
        (b'6'..=b'9', 2) if first.length() == 5 => true,
        // In North America neither area code nor exchange begins with 0 or 1, and neither is a service code
        // such as 911.
        (b'2'..=b'9', _) => {
            let exchange = groups.iter().skip_while(|group| group.start != first.start).nth(1);
            let is_code = |group: &Group| {
                group.length() == 3
                    && (b'2'..=b'9').contains(&sign(group.start))
                    && bytes.get(group.start + 1..group.end) != Some(b"11")
            };
            is_code(first) && sign(first.start + 1) != b'9' && exchange.is_some_and(is_code)
        }
        _ => false,
    }
}

/// Returns whether the words and signs directly before digits mark them as something else.
fn says_other(before: &[u8], context: &Context) -> bool {
    matches!(before, [.., b'#' | b'$'] | [.., b'0'..=b'9', b' ' | b'-'])
        || context.denies_phone(before)
        || nearby::ends_with_code(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::nearby::tests::shipped;

    fn all(text: &str) -> Vec<&str> {
        let mut found = vec![];
        find(text, &shipped(), |(start, end)| found.push(&text[start..end]));
        found
    }

    #[test]
    fn numbers_are_found_as_people_write_them() {
        for number in [
            "+49 30 1234567",
            "(555) 223-4567",
            "0049 30 1234567",
            "212.555.0123",
            "020 7946 0018",
            "+91-98765 43210",
            "+33 1 23 45 67 89",
            "+44 (0)20 7946 0018",
            "01 23 45 67 89",
            "(030) 1234567",
            "1-800-555-0199",
        ] {
            let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
            for text in [format!("call me at {number}, please"), format!("{number} is mine"), format!("({number})")] {
                assert_eq!(all(&text).first().map(|found| digits(found)), Some(digits(number)), "{text}");
            }
        }
        assert_eq!(all("my phone number is 9469 9966."), ["9469 9966"]);
        assert_eq!(all("212-555-0123, 212-555-0124 and 212-555-0125 ext 3").len(), 3);
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
            "tickets: 020 7946 0018",
            "from 100-200-3000 to 111-222-3333",
            "+12 34",
            "form 0736/19/71892",
        ] {
            assert!(all(text).is_empty(), "{text}: {:?}", all(text));
        }
    }
}
