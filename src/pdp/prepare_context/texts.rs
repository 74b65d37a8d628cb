//! Reads untrusted texts for sensitive values, and turns each into a segment in which they are redacted.

use std::collections::BTreeSet;

use crate::content::TEXT_MAX;
use crate::content::normalise::Views;
use crate::content::sensitive::Located;
use crate::model::content::{Channel, Segment};
use crate::model::part::Part;
use crate::pdp::prepare_context::case_values::{REDACTIONS_MAX, TextRead, Within};
use crate::pdp::prepare_context::making::{Making, Unfinished, segment};
use crate::pdp::redacted_values::From;

/// Replacement for a text that is too long to be screened.
const TOO_LONG: &str = "[text too long: not shown]";

/// Finds the sensitive values of one untrusted text. A value that is found in one text is withheld in all.
pub(super) fn read(making: &Making, index: usize, context: &mut Unfinished) {
    let untrusted = making.asked.untrusted.get(index).filter(|untrusted| untrusted.text.len() <= TEXT_MAX);
    let Some(text) = untrusted.map(|untrusted| untrusted.text.as_str()) else {
        return context.read.push(TextRead::default());
    };
    let values = &mut context.values;
    let detectors = &making.moment.snapshot.bundle.rules.detectors;
    let (views, before) = (Views::of(text), values.added.len());
    let mut numbers = BTreeSet::new();
    let count = |_, number| values.count(&mut numbers, number);
    let mut located = detectors.private_in(text, &views, &making.asked.previous_turn, &values.all, count);
    let tail = located.get(REDACTIONS_MAX).map(|located| located.span.0);
    located.truncate(REDACTIONS_MAX);
    for Located { span, kind } in &located {
        values.remember(From::Text, *kind, text.part(span.0..span.1));
    }
    let own = values.added_after(before);
    detectors.add_known(text, &views, &own, &mut located, |_, _| {});
    let added = values.added.len();
    context.read.push(TextRead { located, numbers, tail, added });
}

/// Returns one untrusted text as a redacted segment. All texts must have been read before.
pub(super) fn text(making: &Making, index: usize, context: &mut Unfinished) -> Option<Segment> {
    let untrusted = making.asked.untrusted.get(index)?;
    let text = untrusted.text.as_str();
    if index == 0 {
        let numbers = context.read.iter().flat_map(|read| &read.numbers).copied().collect();
        context.numbers_fit = context.values.takes(&numbers);
    }
    let segment = |text| Some(segment(Channel::Untrusted, untrusted.source.clone(), text));
    if text.len() > TEXT_MAX {
        return segment(TOO_LONG.to_owned());
    }
    // A text that was not read is not shown.
    let TextRead { mut located, tail, added, .. } = std::mem::take(context.read.get_mut(index)?);
    let values = &mut context.values;
    let later = values.added_after(added);
    let views = if later.is_empty() && context.numbers_fit { Views::default() } else { Views::of(text) };
    let detectors = &making.moment.snapshot.bundle.rules.detectors;
    detectors.add_known(text, &views, &later, &mut located, |_, _| {});
    let mut withheld = values.withheld(detectors, text, &located, (!context.numbers_fit).then_some(&views));
    if let Some(tail) = tail {
        withheld.retain(|(span, _)| span.0 < tail);
        withheld.iter_mut().for_each(|(span, _)| span.1 = span.1.min(tail));
        withheld.push(((tail, text.len()), None));
        // The tail may contain values that are not stored.
        values.remembered.too_many = true;
    }
    let within = Within { from: From::Text, source: &untrusted.source, path: "" };
    segment(values.redact(text, withheld, within, &mut context.prepared))
}
