//! The sensitive values of a case while its context is built: the known ones, those that texts add, and the
//! redaction of texts with them.

use std::collections::{BTreeSet, HashSet};

use crate::content::Detectors;
use crate::content::drafts::NUMBERS_MAX;
use crate::content::normalise::{View, Views};
use crate::content::sensitive::Located;
use crate::content::values::{Digest, ValueKey, Values, compact};
use crate::model::content::{Prepared, Redaction};
use crate::model::finding::{SensitiveKind, Span};
use crate::model::part::Part;
use crate::pdp::redacted_values::{From, Redacted, Remembered};
use crate::redact::{Replaced, placeholder, redact};

/// A place of a text that is not shown, and the kind of its value. The kind is `None` for numbers that are
/// withheld because of a value among them, and for a tail that was not read; these are not stored as values.
type Withheld = (Span, Option<SensitiveKind>);

/// Maximum number of values that a call redacts one by one. After the last of them, the rest of a text is
/// withheld as a whole.
pub(super) const REDACTIONS_MAX: usize = 512;

/// Origin of a text, for the redactions in it.
#[derive(Clone, Copy)]
pub(super) struct Within<'a> {
    pub(super) from: From,
    pub(super) source: &'a str,
    pub(super) path: &'a str,
}

/// The values of a case that are known while its context is built.
#[derive(Debug)]
pub(super) struct CaseValues {
    pub(super) remembered: Remembered,
    /// Values of the record that policy withholds.
    hidden: Values,
    /// All known values: those of `hidden`, the stored ones, and those that texts added.
    pub(super) all: Values,
    /// Values that texts of this call added to `all`, in order.
    pub(super) added: Vec<(Digest, SensitiveKind)>,
    /// Numbers that the model sees anyway, so they are not guesses.
    open: HashSet<Digest>,
    /// Number of values that may still be redacted one by one.
    pub(super) left: usize,
}

/// Result of reading a text.
#[derive(Debug, Default)]
pub(super) struct TextRead {
    pub(super) located: Vec<Located>,
    /// Numbers of the text that could be guesses, collected until they are too many.
    pub(super) numbers: BTreeSet<Digest>,
    /// Place from which on nothing is shown, because the text has more values than are redacted one by one.
    pub(super) tail: Option<usize>,
    /// Number of added values when the text had been read.
    pub(super) added: usize,
}

/// Appends a place, or merges it with the last one if they overlap. Within each view, places arrive in the
/// order in which they begin.
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

    /// Adds a value of the record that policy withholds. Returns `None` if it is too short to be recognized
    /// again.
    pub(super) fn withhold(&mut self, written: &str, kind: SensitiveKind) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        self.hidden.add_digest(digest, kind);
        if !self.all.knows(digest) {
            self.all.add_digest(digest, kind);
        }
        Some(self.remembered.of_value(From::Record, kind, digest))
    }

    /// Adds the numbers of a value that the model sees.
    pub(super) fn show(&mut self, written: &str) {
        let any = Values::of_any_length(*self.all.key());
        // A value with too many candidate places is searched only in part. The numbers in the rest count as
        // guesses, which is the safe side.
        let mut open = |_, digest| {
            self.open.insert(digest);
        };
        let _all = any.search(&View::folded(written), |_| {}, &mut open);
    }

    pub(super) fn hidden(&self) -> &Values {
        &self.hidden
    }

    pub(super) fn remember(&mut self, from: From, kind: SensitiveKind, written: &str) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        if !self.all.knows(digest) {
            self.added.push((digest, kind));
        }
        self.all.add_digest(digest, kind);
        Some(self.remembered.of_value(from, kind, digest))
    }

    /// Returns the values that were added after the first `added` ones.
    pub(super) fn added_after(&self, added: usize) -> Values {
        let mut values = Values::new(*self.all.key());
        self.added.iter().skip(added).for_each(|(digest, kind)| values.add_digest(*digest, *kind));
        values
    }

    /// Returns whether a number could be a guess at a value: it was not shown before.
    pub(super) fn is_guess(&self, number: Digest) -> bool {
        !self.open.contains(&number) && !self.remembered.numbers.contains(&number)
    }

    /// Adds the numbers of texts to those that the case's texts have shown. Returns false if they would be
    /// too many; then all of them must be withheld, because if only one were missing, the others would reveal
    /// which one it is.
    pub(super) fn takes(&mut self, numbers: &BTreeSet<Digest>) -> bool {
        let new: Vec<Digest> = numbers.iter().copied().filter(|number| self.is_guess(*number)).collect();
        let fits = self.all.is_empty() || self.remembered.numbers.len() + new.len() <= NUMBERS_MAX;
        if fits && !self.all.is_empty() {
            self.remembered.numbers.extend(new);
        }
        fits
    }

    /// Adds a number of a text to its guesses, unless there are already too many.
    pub(super) fn count(&self, guesses: &mut BTreeSet<Digest>, number: Digest) {
        if guesses.len() <= NUMBERS_MAX && self.is_guess(number) {
            guesses.insert(number);
        }
    }

    /// Returns the guesses in a text of the record.
    pub(super) fn guesses(&self, detectors: &Detectors, text: &str, located: &[Located]) -> BTreeSet<Digest> {
        let mut guesses = BTreeSet::new();
        let count = |_, number| self.count(&mut guesses, number);
        detectors.add_known(text, &Views::of(text), &self.all, &mut located.to_vec(), count);
        guesses
    }

    /// Returns the places of a text that are withheld: what was located and, in the views `listed`, every
    /// number that no text showed before. Known values are then withheld in the same way as those numbers,
    /// and merged with what is beside them, because otherwise a reader could tell the values from the other
    /// numbers.
    pub(super) fn withheld(
        &self,
        detectors: &Detectors,
        text: &str,
        located: &[Located],
        listed: Option<&Views>,
    ) -> Vec<Withheld> {
        let Some(views) = listed else {
            return located.iter().map(|located| (located.span, Some(located.kind))).collect();
        };
        let (named, bare): (Vec<&Located>, Vec<&Located>) =
            located.iter().partition(|located| !matches!(located.kind, SensitiveKind::Record | SensitiveKind::Secret));
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
            let apart =
                |end: usize| text.get(end..span.0).is_some_and(|between| between.contains(char::is_alphanumeric));
            match joined.last_mut().filter(|last| !apart(last.1)) {
                Some(last) => last.1 = last.1.max(span.1),
                None => joined.push(span),
            }
        }
        withheld.extend(joined.into_iter().map(|span| (span, None)));
        withheld.sort_by_key(|(span, _)| *span);
        withheld
    }

    /// Replaces the withheld places of a text. Each value is stored and listed in `prepared`.
    pub(super) fn redact(
        &mut self,
        text: &str,
        withheld: Vec<Withheld>,
        within: Within<'_>,
        prepared: &mut Prepared,
    ) -> String {
        let mut replaced = vec![];
        for (span, kind) in withheld {
            // After the limit the rest of the text is withheld as a whole, so that a text causes a bounded
            // number of records.
            let last = self.left == 0;
            let (span, value) = if last { ((span.0, text.len()), None) } else { (span, kind) };
            self.left = self.left.saturating_sub(1);
            // The rest may contain values that are not stored.
            self.remembered.too_many |= last;
            let written = text.part(span.0..span.1);
            let number =
                value.and_then(|kind| self.remember(within.from, kind, written)).map(|redacted| redacted.number);
            let kind = value.unwrap_or(SensitiveKind::Secret);
            replaced.push(Replaced { span, placeholder: placeholder(kind, number.filter(|number| *number > 0)) });
            prepared.redactions.push(Redaction {
                kind,
                source: within.source.to_owned(),
                path: within.path.to_owned(),
                span,
            });
            if last {
                break;
            }
        }
        redact(text, &replaced)
    }
}
