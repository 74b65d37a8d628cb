//! Numbers and amounts, in digits and in words, with their units and currencies.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::content::grounding::words::{
    Pattern, Token, is_any, matches, meaning, meanings, pattern, sign_after, sign_before, word_after, word_before,
};
use crate::model::finding::Span;
use crate::model::part::Part;

/// Closed interval of values, or of factors.
type Interval = (f64, f64);

/// Relative tolerance for equal values, because floating-point fractions are inexact.
pub(super) const EXACT: (f64, f64) = (1.0 - 1e-9, 1.0 + 1e-9);
/// Number of digits in a row, without a separator, that are an identifier rather than an end of a range.
const IDENTIFIER_MIN: usize = 7;
/// Maximum number of ranges of the sources that are kept.
const RANGES_MAX: usize = 64;

static DIGITS: Pattern =
    LazyLock::new(|| pattern(r"\b(?:[0-9]{1,3}(?:[,.' ][0-9]{3})+(?:[.,][0-9]{1,2})?\b|[0-9]+(?:[.,][0-9]+)?)"));

/// The dimension of a unit, and the unit's size in the smallest unit of that dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) dimension: &'static str,
    pub(super) size: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Number {
    pub(super) span: Span,
    /// Possible values: `1.000` is 1 or 1000.
    pub(super) values: Vec<f64>,
    /// Currency of an amount; codes of dollars end with `$`.
    pub(super) currency: Option<&'static str>,
    pub(super) unit: Option<Unit>,
    /// Whether the number is an ordinal, such as `third`.
    pub(super) is_ordinal: bool,
    pub(super) is_spelled: bool,
    /// Lower end of the range, if this number is the upper end of one.
    pub(super) from: Option<f64>,
}

impl Number {
    /// Returns the largest of the possible values.
    pub(super) fn value(&self) -> f64 {
        self.values.iter().copied().fold(0.0, f64::max)
    }

    /// Reads the magnitude, currency and unit around a number; `None` if it is part of something else.
    fn read(text: &str, span: Span, values: Vec<f64>, is_ordinal: bool, is_spelled: bool) -> Option<Self> {
        let mut number = Self { span, values, currency: None, unit: None, is_ordinal, is_spelled, from: None };
        let (mut word, mut end) = word_after(text, span.1);
        let is_glued = !is_spelled && sign_after(text, span.1).is_some_and(|next| next.is_alphabetic() || next == '_');
        let unit = unit_after(text, span.1);
        if is_glued && ["st", "nd", "rd", "th"].contains(&word) {
            (number.is_ordinal, number.span.1) = (true, end);
        } else if !is_spelled && let Some(size) = meaning("magnitudes", word).and_then(|size| size.parse::<f64>().ok())
        {
            let large: Vec<f64> = number.values.iter().map(|value| value * size).collect();
            // `5m` is either five metres or five million.
            number.values.retain(|_| word.len() == 1);
            number.values.extend(large);
            number.span.1 = end;
            (word, end) = word_after(text, end);
        } else if is_glued && unit.is_none() && meaning("currencies", word).is_none() {
            return None;
        }
        let before = text.part(..span.0);
        let before = before.strip_suffix(' ').unwrap_or(before);
        if let Some((start, currency)) = currency_before(before) {
            (number.span.0, number.currency) = (start, Some(currency));
        } else if let Some(currency) = meaning("currencies", word) {
            (number.span.1, number.currency) = (end, Some(currency));
        }
        let is_percent = word == "%" || word == "percent" || word == "per" && word_after(text, end).0 == "cent";
        if number.currency.is_none() && !number.is_ordinal {
            number.unit = unit.or_else(|| unit_after(text, number.span.1));
            if is_percent {
                number.unit = Some(Unit { dimension: "%", size: 1.0 });
            }
        }
        if ["cents", "minor"].contains(&word_before(text, number.span.0).0.as_str()) {
            number.values.extend(number.values.clone().iter().map(|value| value / 100.0));
        }
        Some(number)
    }
}

/// Returns the currency sign or word at the end of a text, and where it begins.
fn currency_before(before: &str) -> Option<(usize, &'static str)> {
    // A currency ends with a letter, its sign, or a dot.
    let last = before.chars().next_back()?;
    if last.is_whitespace() || last.is_ascii_digit() || last.is_ascii_punctuation() && !matches!(last, '$' | '.') {
        return None;
    }
    let starts = before.char_indices().rev().take(6).map(|(at, _)| at);
    let known = |start: usize| {
        let written = before.get(start..)?;
        let is_word = written.starts_with(char::is_alphabetic);
        let is_part = is_word && sign_before(before, start).is_some_and(char::is_alphanumeric);
        meaning("currencies", written.trim_end_matches('.'))
            .filter(|_| !is_part && !written.starts_with('.'))
            .map(|currency| (start, currency))
    };
    starts.filter_map(known).last()
}

/// Returns the unit that follows here; fillers are skipped, so `business days` are days.
pub(super) fn unit_after(text: &str, at: usize) -> Option<Unit> {
    let (word, end) = word_after(text, at);
    let word = if is_any(&["fillers"], &word.to_lowercase()) { word_after(text, end).0 } else { word };
    let (dimension, size) = meaning("units", word)?.split_once('*')?;
    Some(Unit { dimension, size: size.parse().ok()? })
}

/// Parses digits with the given separator of thousands and decimal separator.
fn reading(written: &str, grouping: char, point: char) -> Option<f64> {
    if written.bytes().all(|byte| byte.is_ascii_digit()) {
        return written.parse().ok();
    }
    let (whole, fraction) = written.split_once(point).unwrap_or((written, "0"));
    let mut groups = whole.split([grouping, ' ', '\'']);
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let is_grouped = rest.is_empty() || first.len() <= 3 && rest.iter().all(|group| group.len() == 3);
    let is_fraction = point == '.' || fraction.len() != 3;
    if is_grouped && is_fraction { format!("{first}{}.{fraction}", rest.concat()).parse().ok() } else { None }
}

pub(super) fn numbers(text: &str, tokens: &[Token<'_>]) -> Vec<Number> {
    let mut found = spelled(text, tokens);
    for digits in matches(&DIGITS, text) {
        let values: Vec<f64> = [(',', '.'), ('.', ',')]
            .iter()
            .filter_map(|(grouping, point)| reading(digits.as_str(), *grouping, *point))
            .collect();
        if sign_before(text, digits.start()) != Some('.') {
            found.extend(Number::read(text, (digits.start(), digits.end()), values, false, false));
        }
    }
    found.sort_by_key(|number| number.span);
    let mut paired: Vec<Number> = vec![];
    for mut number in found {
        if let Some(last) = paired.last_mut()
            && let Some(between) = text.get(last.span.1..number.span.0).map(|between| between.trim_matches(' '))
            && ["-", "to", "through", "and", "or"].contains(&between)
            && !is_identifier(text, last.span)
        {
            // Both ends of a range have the same unit or currency.
            if last.unit.is_none() && last.currency.is_none() && !last.is_ordinal {
                (last.unit, last.currency) = (number.unit, number.currency);
            } else if number.unit.is_none() && number.currency.is_none() {
                number.currency = last.currency;
            }
            number.from = last.values.iter().copied().reduce(f64::min).filter(|_| !["and", "or"].contains(&between));
        }
        paired.push(number);
    }
    paired
}

/// Returns whether these are too many digits in a row for an end of a range: `gift card 7359776 and $160`.
fn is_identifier(text: &str, (start, end): Span) -> bool {
    end - start >= IDENTIFIER_MIN && text.part(start..end).bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the numbers that are written in words: `two hundred and five`, `a million`, `twentieth`.
fn spelled(text: &str, tokens: &[Token<'_>]) -> Vec<Number> {
    let mut found = vec![];
    let mut rest = tokens;
    while let Some((first, following)) = rest.split_first() {
        let (mut sum, mut part, mut end, mut is_ordinal) = (0.0, 0.0, None, false);
        let mut last = first.span.0;
        for token in rest {
            let word = meanings("numbers", &token.word).next();
            let is_near =
                text.get(last..token.span.0).is_some_and(|between| between.chars().all(|sign| " -".contains(sign)));
            let goes_on = word.is_some() || token.word == "and" && part >= 100.0;
            if !is_near || !goes_on || is_ordinal {
                break;
            }
            last = token.span.1;
            let Some(word) = word else { continue };
            let size = word.strip_prefix('*').and_then(|size| size.parse::<f64>().ok());
            // Each meaning in this list is a number.
            let Ok(value) = word.trim_start_matches('*').trim_end_matches("th").parse::<f64>() else { break };
            let fits = part == 0.0 || part % 100.0 == 0.0 || part % 10.0 == 0.0 && part % 100.0 >= 20.0 && value < 10.0;
            match size {
                Some(size) if size < 1000.0 => part = f64::max(part, 1.0) * size,
                Some(size) => (sum, part) = (sum + f64::max(part, 1.0) * size, 0.0),
                None if fits => part += value,
                None => break,
            }
            is_ordinal = word.ends_with("th");
            end = Some(token.span.1);
        }
        let is_bare = meanings("numbers", &first.word).any(|word| word.starts_with('*'));
        let counts = !is_bare || ["a", "per"].contains(&word_before(text, first.span.0).0.as_str());
        rest = following;
        if let Some(end) = end {
            rest = rest.part(rest.partition_point(|token| token.span.0 < end)..);
            found
                .extend(Number::read(text, (first.span.0, end), vec![sum + part], is_ordinal, true).filter(|_| counts));
        }
    }
    found
}

/// Values in ascending order.
#[derive(Debug, Default)]
struct Sorted(Vec<f64>);

impl Sorted {
    fn sort(&mut self) {
        self.0.sort_by(f64::total_cmp);
    }

    /// Returns whether a value lies in this closed interval.
    fn any(&self, interval: Interval) -> bool {
        let (low, high) = interval;
        self.0.get(self.0.partition_point(|value| *value < low)).is_some_and(|value| *value <= high)
    }
}

/// The numbers of the sources by unit and currency, so that one look-up finds a number.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    all: Sorted,
    /// Numbers without currency and unit, which may be of any.
    plain: Sorted,
    /// Amounts of each currency; `dollars` has those of all dollar currencies.
    by_currency: HashMap<&'static str, Sorted>,
    dollars: Sorted,
    /// Values in the smallest unit of each dimension.
    by_dimension: HashMap<&'static str, Sorted>,
    ranges: Vec<(f64, f64)>,
}

impl Numbers {
    pub(super) fn of(numbers: &[Number]) -> Self {
        let mut known = Self::default();
        for number in numbers {
            for value in &number.values {
                known.all.0.push(*value);
                if let Some(currency) = number.currency {
                    known.by_currency.entry(currency).or_default().0.push(*value);
                    if currency.ends_with('$') {
                        known.dollars.0.push(*value);
                    }
                } else if number.unit.is_none() {
                    known.plain.0.push(*value);
                }
                if let Some(unit) = number.unit {
                    known.by_dimension.entry(unit.dimension).or_default().0.push(value * unit.size);
                }
            }
        }
        let lists = [&mut known.all, &mut known.plain, &mut known.dollars];
        lists
            .into_iter()
            .chain(known.by_currency.values_mut())
            .chain(known.by_dimension.values_mut())
            .for_each(Sorted::sort);
        known.ranges =
            numbers.iter().filter_map(|number| Some((number.from?, number.value()))).take(RANGES_MAX).collect();
        known
    }

    /// Returns whether a source has a number, in its own unit or in another of the same dimension.
    pub(super) fn has(&self, number: &Number, tolerance: Interval) -> bool {
        let (lowest, highest) = tolerance;
        number.values.iter().any(|value| {
            let scaled = |scale: f64| (value * scale * lowest * EXACT.0, value * scale * highest * EXACT.1);
            let in_unit = |unit: Unit| {
                let share = scaled(0.01);
                self.by_dimension.get(unit.dimension).is_some_and(|known| known.any(scaled(unit.size)))
                    || unit.dimension == "%"
                        && share.0 < 1.0
                        && self.plain.any((share.0, share.1.min(1.0 - f64::EPSILON)))
            };
            self.has_amount(number, scaled(1.0)) || number.unit.is_some_and(in_unit)
        })
    }

    /// Returns whether a source has such a value in the same currency, or without currency and unit. A number
    /// without both matches any value.
    fn has_amount(&self, number: &Number, range: Interval) -> bool {
        match (number.currency, number.unit) {
            (Some("$"), _) => self.dollars.any(range) || self.plain.any(range),
            (Some(currency), _) => {
                let any_dollar =
                    currency.ends_with('$') && self.by_currency.get("$").is_some_and(|known| known.any(range));
                any_dollar
                    || self.by_currency.get(currency).is_some_and(|known| known.any(range))
                    || self.plain.any(range)
            }
            (None, Some(_)) => self.plain.any(range),
            (None, None) => self.all.any(range),
        }
    }

    /// Returns whether a source has this value, in whatever unit.
    pub(super) fn has_value(&self, value: u32) -> bool {
        let value = f64::from(value);
        self.all.any((value * EXACT.0, value * EXACT.1))
    }

    pub(super) fn is_within(&self, value: f64) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&value))
    }
}

/// Returns the factors between which a source's number matches a number of a draft, depending on words such
/// as `about`, `more than` and `up to`.
pub(super) fn tolerance(text: &str, number: &Number) -> (f64, f64) {
    let (word, start) = word_before(text, number.span.0);
    let (before, _) = word_before(text, start);
    match (before.as_str(), word.as_str()) {
        (_, "about" | "around" | "approximately" | "roughly" | "nearly" | "almost" | "approx" | "some" | "circa") => {
            (0.95, 1.05)
        }
        (_, "over" | "above" | "exceeding") | ("more", "than") | ("at", "least") => (1.0, 1.1),
        (_, "under" | "below") | ("less" | "fewer", "than") | ("up", "to") => (0.9, 1.0),
        _ if sign_after(text, number.span.1) == Some('+') => (1.0, 1.1),
        _ => (1.0, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::grounding::words::tokens;

    fn all(text: &str) -> Vec<Number> {
        numbers(text, &tokens(text))
    }

    #[test]
    fn numbers_are_read_with_what_they_count() {
        let shown = |text: &str| {
            let unit = |number: &Number| number.unit.map(|unit| unit.dimension).or(number.currency).unwrap_or("-");
            all(text).iter().map(|number| format!("{} {}", number.value(), unit(number))).collect::<Vec<_>>()
        };
        for (text, expected) in [
            ("$1,234.50 or 1.234,50 EUR", vec!["1234.5 $", "1234.5 EUR"]),
            ("US$5 million, €3k", vec!["5000000 USD$", "3000 EUR"]),
            ("5-7 business days", vec!["5 time", "7 time"]),
            ("two hundred and five items, a dozen, the twentieth", vec!["205 -", "12 -", "20 -"]),
            ("twenty-five percent, 10GB, 3rd", vec!["25 %", "10 data", "3 -"]),
            ("v2, 4215A, x.5", vec![]),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_the_same_in_other_units() {
        for (draft, source, known) in [
            ("14 days", "2 weeks", true),
            ("a two-year warranty", "24 months", true),
            ("10,240 MB", "10 GB", true),
            ("20%", "a rate of 0.2", true),
            ("$15", "15 AUD", true),
            ("$15", "15 EUR", false),
            ("5 days", "5 hours", false),
            ("€5", "5 days", false),
            ("about 95 km", "97.5 kilometres", true),
            ("more than 100 people", "104 people", true),
            ("more than 100 people", "150 people", false),
            ("$19.99", "amount_cents: 1999", true),
        ] {
            let held = Numbers::of(&all(source));
            assert_eq!(
                all(draft).iter().all(|number| held.has(number, tolerance(draft, number))),
                known,
                "{draft} in {source}"
            );
        }
        assert!(Numbers::of(&all("rows 1 to 5")).is_within(4.0));
    }
}
