//! The sensitive values of a case while its context is made: which are redacted, and under which number.

use std::collections::{BTreeSet, HashSet};

use crate::content::Detectors;
use crate::content::drafts::NUMBERS_MAX;
use crate::content::normalise::{View, Views};
use crate::content::private::Located;
use crate::content::values::{Digest, ValueKey, Values, compact};
use crate::model::content::{Prepared, Redaction};
use crate::model::finding::Private;
use crate::pdp::redacted_values::{From, Redacted, Remembered};
use crate::redact::{Replaced, placeholder, redact};

type Span = (usize, usize);
/// A place of a text that is not shown; `None` for a number that is withheld for its company, and no value that is remembered.
type Withheld = (Span, Option<Private>);

/// The most values that a call redacts one by one. Behind the last of them the rest of a text is withheld as one.
pub(super) const REDACTIONS_MAX: usize = 512;

/// Where a text comes from, and what it may keep.
#[derive(Clone, Copy)]
pub(super) struct Within<'a> {
    pub(super) from: From,
    pub(super) source: &'a str,
    pub(super) path: &'a str,
}

/// The values of a case that are known while its context is made.
#[derive(Debug)]
pub(super) struct CaseValues {
    pub(super) remembered: Remembered,
    /// The record's values that policy withheld.
    hidden: Values,
    /// Those, and all that is remembered.
    pub(super) all: Values,
    /// What texts of this call added to them, in their order.
    pub(super) added: Vec<(Digest, Private)>,
    /// Numbers that the model sees anyway: no guesses.
    open: HashSet<Digest>,
    /// How many values may still be redacted one by one.
    pub(super) left: usize,
}

/// What was found in a text.
#[derive(Debug, Default)]
pub(super) struct TextRead {
    pub(super) located: Vec<Located>,
    /// Its numbers; no more than tell that they are too many.
    pub(super) numbers: BTreeSet<Digest>,
    /// From where on nothing is shown: it holds more values than are redacted one by one.
    pub(super) tail: Option<usize>,
    /// How many values were added when it had been read.
    pub(super) added: usize,
}

/// Adds a place to those before it, or to the last one if they overlap: places come in the order of where they begin, view by view.
fn join(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut().filter(|last| last.0 <= span.0 && span.0 <= last.1) {
        Some(last) => last.1 = last.1.max(span.1),
        None => spans.push(span),
    }
}

impl CaseValues {
    pub(super) fn new(key: ValueKey, remembered: Remembered) -> Self {
        let (added, open) = (vec![], HashSet::new());
        Self { all: remembered.values(key), hidden: Values::new(key), remembered, added, open, left: REDACTIONS_MAX }
    }

    /// Knows a value of the record that policy withholds; `None` if it is too short to be known again.
    pub(super) fn withhold(&mut self, written: &str, kind: Private) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        self.hidden.add_digest(digest, kind);
        if !self.all.knows(digest) {
            self.all.add_digest(digest, kind);
        }
        Some(self.remembered.of_value(From::Record, kind, digest))
    }

    /// Knows the numbers of a value that the model sees.
    pub(super) fn show(&mut self, written: &str) {
        let any = Values::of_any_length(*self.all.key());
        // What is longer than is looked at is no value that could be guessed.
        let mut open = |_, digest| {
            self.open.insert(digest);
        };
        let _all = any.search(&View::folded(written), |_| {}, &mut open);
    }

    pub(super) fn hidden(&self) -> &Values {
        &self.hidden
    }

    pub(super) fn remember(&mut self, from: From, kind: Private, written: &str) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        if !self.all.knows(digest) {
            self.added.push((digest, kind));
        }
        self.all.add_digest(digest, kind);
        Some(self.remembered.of_value(from, kind, digest))
    }

    /// The values that were added after so many others.
    pub(super) fn added_after(&self, added: usize) -> Values {
        let mut values = Values::new(*self.all.key());
        self.added.iter().skip(added).for_each(|(digest, kind)| values.add_digest(*digest, *kind));
        values
    }

    /// Whether a number could be a guess: it was not shown before.
    pub(super) fn is_guess(&self, number: Digest) -> bool {
        !self.open.contains(&number) && !self.remembered.numbers.contains(&number)
    }

    /// Takes the numbers of texts into those that the case's texts showed; false if they would be too many. Were one of many withheld,
    /// the others would tell which one it is.
    pub(super) fn takes(&mut self, numbers: &BTreeSet<Digest>) -> bool {
        let new: Vec<Digest> = numbers.iter().copied().filter(|number| self.is_guess(*number)).collect();
        let fits = self.all.is_empty() || self.remembered.numbers.len() + new.len() <= NUMBERS_MAX;
        if fits && !self.all.is_empty() {
            self.remembered.numbers.extend(new);
        }
        fits
    }

    /// Adds a number of a text to its guesses, as far as it needs to be known that they are too many.
    pub(super) fn count(&self, guesses: &mut BTreeSet<Digest>, number: Digest) {
        if guesses.len() <= NUMBERS_MAX && self.is_guess(number) {
            guesses.insert(number);
        }
    }

    /// The guesses in a text of the record.
    pub(super) fn guesses(&self, detectors: &Detectors, text: &str, located: &[Located]) -> BTreeSet<Digest> {
        let mut guesses = BTreeSet::new();
        let count = |_, number| self.count(&mut guesses, number);
        detectors.add_known(text, &Views::of(text), &self.all, &mut located.to_vec(), count);
        guesses
    }

    /// What of a text is withheld: what was located; and, in `listed` views of it, every number that no text showed before. What is known is
    /// then withheld as those are, together with what stands beside it: otherwise one could tell it from them.
    pub(super) fn withheld(&self, detectors: &Detectors, text: &str, located: &[Located], listed: Option<&Views>) -> Vec<Withheld> {
        let Some(views) = listed else { return located.iter().map(|located| (located.span, Some(located.kind))).collect() };
        let (named, bare): (Vec<&Located>, Vec<&Located>) =
            located.iter().partition(|located| !matches!(located.kind, Private::Record | Private::Secret));
        let mut named: Vec<Located> = named.into_iter().copied().collect();
        let mut withheld: Vec<Withheld> = named.iter().map(|located| (located.span, Some(located.kind))).collect();
        let mut spans: Vec<Span> = bare.into_iter().map(|located| located.span).collect();
        let number = |span, digest| {
            if self.is_guess(digest) {
                join(&mut spans, span);
            }
        };
        detectors.add_known(text, views, &self.all, &mut named, number);
        spans.sort_unstable();
        let mut joined: Vec<Span> = vec![];
        for span in spans {
            let apart = |end: usize| text.get(end..span.0).is_some_and(|between| between.contains(char::is_alphanumeric));
            match joined.last_mut().filter(|last| !apart(last.1)) {
                Some(last) => last.1 = last.1.max(span.1),
                None => joined.push(span),
            }
        }
        withheld.extend(joined.into_iter().map(|span| (span, None)));
        withheld.sort_by_key(|(span, _)| *span);
        withheld
    }

    /// A text without what is withheld. Each value is remembered, and listed.
    pub(super) fn redact(&mut self, text: &str, withheld: Vec<Withheld>, within: Within<'_>, prepared: &mut Prepared) -> String {
        let mut replaced = vec![];
        for (span, kind) in withheld {
            // Behind the bound nothing of the text is shown, so that a text costs a bounded number of records.
            let last = self.left == 0;
            let (span, value) = if last { ((span.0, text.len()), None) } else { (span, kind) };
            self.left = self.left.saturating_sub(1);
            // What is withheld unread may hold more than is remembered.
            self.remembered.too_many |= last;
            let written = text.get(span.0..span.1).unwrap_or_default();
            let number = value.and_then(|kind| self.remember(within.from, kind, written)).map(|redacted| redacted.number);
            let kind = value.unwrap_or(Private::Secret);
            replaced.push(Replaced { span, placeholder: placeholder(kind, number.filter(|number| *number > 0)) });
            prepared.redactions.push(Redaction { kind, source: within.source.to_owned(), path: within.path.to_owned(), span });
            if last {
                break;
            }
        }
        redact(text, &replaced)
    }
}
