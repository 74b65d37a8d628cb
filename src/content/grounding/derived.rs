//! What a draft may work out: amounts from amounts and counts that it shows, and the days between two dates.

use std::collections::HashSet;

use crate::content::grounding::numbers::{EXACT, Number, Numbers};
use crate::model::finding::Span;
use crate::model::part::Part;

/// Maximum number of amounts of a draft that are tried as terms, and of counts that are tried as factors.
const TERMS_MAX: usize = 16;
/// Largest count that multiplies an amount.
const COUNT_MAX: f64 = 20.0;
/// Maximum distance, in bytes, between a count and the amount for so many of what has its price in a source.
const COUNT_NEAR: usize = 160;
/// Number of times that worked-out amounts are tried as terms of further ones: a total, what it leaves to pay,
/// and that for each person.
const ROUNDS: usize = 3;
/// Maximum number of full dates of the sources between which the days are counted, since among many dates any
/// number of days lies.
const SPAN_DATES_MAX: usize = 4;

/// Returns the places of the amounts that follow from others: sums of two or of a row of amounts of the draft,
/// their differences, and their multiples by a count of the draft; and multiples of a source's amount by a count
/// nearby. Each term is held by a source (`is_held`) or follows itself.
pub(super) fn amounts(numbers: &[Number], sources: &Numbers, is_held: impl Fn(&Number) -> bool) -> HashSet<Span> {
    let amounts: Vec<&Number> = numbers.iter().filter(|number| number.currency.is_some()).take(TERMS_MAX).collect();
    let is_count = |number: &&Number| {
        number.currency.is_none()
            && number.unit.is_none()
            && number.value().fract() == 0.0
            && (2.0..=COUNT_MAX).contains(&number.value())
    };
    let counts: Vec<&Number> = numbers.iter().filter(is_count).take(TERMS_MAX).collect();
    let mut known: Vec<bool> = amounts.iter().map(|amount| is_held(amount)).collect();
    let mut derived = HashSet::new();
    for _ in 0..ROUNDS {
        for at in 0..amounts.len() {
            let Some(amount) = amounts.get(at).filter(|_| known.get(at) == Some(&false)) else { continue };
            let terms: Vec<f64> = amounts
                .iter()
                .zip(&known)
                .filter(|(other, is_known)| **is_known && has_same_currency(other, amount))
                .map(|(other, _)| other.value())
                .collect();
            if follows(amount.value(), &terms, &counts) || is_multiple(amount, &counts, sources) {
                derived.insert(amount.span);
                if let Some(is_known) = known.get_mut(at) {
                    *is_known = true;
                }
            }
        }
    }
    derived
}

fn has_same_currency(one: &Number, other: &Number) -> bool {
    let is_dollar = |number: &Number| number.currency.is_some_and(|currency| currency.ends_with('$'));
    one.currency == other.currency || is_dollar(one) && is_dollar(other)
}

fn follows(value: f64, terms: &[f64], counts: &[&Number]) -> bool {
    let is = |other: f64| (other * EXACT.0..=other * EXACT.1).contains(&value);
    let pair =
        |(at, one): (usize, &f64)| terms.iter().skip(at + 1).any(|other| is(one + other) || is((one - other).abs()));
    let row = |at: usize| {
        let mut sum = 0.0;
        terms.iter().skip(at).any(|term| {
            sum += term;
            sum > *term && is(sum)
        })
    };
    let product = |term: &f64| counts.iter().any(|count| is(term * count.value()));
    terms.iter().enumerate().any(pair) || (0..terms.len()).any(row) || terms.iter().any(product)
}

/// Returns whether a source has the amount for one of what a count near the amount counts.
fn is_multiple(amount: &Number, counts: &[&Number], sources: &Numbers) -> bool {
    let is_near = |count: &&&Number| {
        let apart = amount.span.0.checked_sub(count.span.1).or_else(|| count.span.0.checked_sub(amount.span.1));
        apart.is_some_and(|apart| apart <= COUNT_NEAR)
    };
    counts.iter().filter(is_near).any(|count| {
        let values = amount.values.iter().map(|value| value / count.value()).collect();
        sources.has(&Number { values, ..(*amount).clone() }, (1.0, 1.0))
    })
}

/// Returns whether two of these days are so many days apart.
pub(super) fn are_apart(draft: &[i32], sources: &HashSet<i32>, days: f64) -> bool {
    let sources = sources.iter().take(if sources.len() <= SPAN_DATES_MAX { SPAN_DATES_MAX } else { 0 });
    let all: Vec<i32> = draft.iter().take(TERMS_MAX).chain(sources).copied().collect();
    all.iter().enumerate().any(|(at, one)| all.part(at..).iter().any(|other| f64::from((one - other).abs()) == days))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::grounding::dates::{dates, day};

    #[test]
    fn days_between_dates_are_counted_across_months() {
        let read = |text: &str| -> Vec<i32> {
            dates(text).iter().flat_map(|(_, readings)| readings.iter().filter_map(day)).collect()
        };
        let days = read("from 27 February 2026 to 2 March 2026");
        assert!(are_apart(&days, &HashSet::new(), 3.0));
        assert!(!are_apart(&days, &HashSet::new(), 4.0));
        assert!(are_apart(&days[..1], &days[1..].iter().copied().collect(), 3.0));
        assert_eq!(read("30 February 2026"), [] as [i32; 0]);
    }
}
