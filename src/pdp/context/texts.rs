//! Untrusted texts as the model may see them: without what must not be passed on.

use crate::content::TEXT_MAX;
use crate::content::normalise::View;
use crate::content::private::Located;
use crate::content::values::{ValueKey, Values, compact};
use crate::model::content::{Channel, Redaction, Segment};
use crate::model::finding::Private;
use crate::pdp::context::{Making, Prepared, Unfinished, segment};
use crate::pdp::memory::redacted::{From, Redacted, Remembered};
use crate::redact::{Replaced, placeholder, redact};

/// What stands for a text that is too long to be screened.
const TOO_LONG: &str = "[text too long: not shown]";
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
    all: Values,
    /// How many values may still be redacted one by one.
    left: usize,
}

impl CaseValues {
    pub(super) fn new(key: ValueKey, remembered: Remembered) -> Self {
        Self { all: remembered.values(key), hidden: Values::new(key), remembered, left: REDACTIONS_MAX }
    }

    /// Knows a value of the record that policy withholds; `None` if it is too short to be known again.
    pub(super) fn withhold(&mut self, written: &str, kind: Private) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        self.hidden.add_digest(digest, kind);
        self.all.add_digest(digest, kind);
        Some(self.remembered.of_value(From::Record, kind, digest))
    }

    pub(super) fn hidden(&self) -> &Values {
        &self.hidden
    }

    fn remember(&mut self, from: From, kind: Private, written: &str) -> Option<Redacted> {
        let compact = compact(&View::folded(written))?;
        let digest = self.all.key().digest(&compact);
        self.all.add_digest(digest, kind);
        Some(self.remembered.of_value(from, kind, digest))
    }

    /// A text without what was located in it. Each value is remembered, and listed.
    pub(super) fn redact(&mut self, text: &str, located: Vec<Located>, within: Within<'_>, prepared: &mut Prepared) -> String {
        let mut replaced = vec![];
        for Located { span, kind } in located {
            // Behind the bound nothing of the text is shown, so that a text costs a bounded number of records.
            let last = self.left == 0;
            let (span, kind) = if last { ((span.0, text.len()), Private::Secret) } else { (span, kind) };
            self.left = self.left.saturating_sub(1);
            let value = text.get(span.0..span.1).unwrap_or_default();
            // What is withheld unread may hold more than is remembered.
            self.remembered.too_many |= last;
            let number = if last { None } else { self.remember(within.from, kind, value).map(|redacted| redacted.number) };
            replaced.push(Replaced { span, placeholder: placeholder(kind, number.filter(|number| *number > 0)) });
            prepared.redactions.push(Redaction { kind, source: within.source.to_owned(), path: within.path.to_owned(), span });
            if last {
                break;
            }
        }
        redact(text, &replaced)
    }
}

/// One of the untrusted texts, redacted.
pub(super) fn text(making: &Making, index: usize, context: &mut Unfinished) -> Option<Segment> {
    let untrusted = making.asked.untrusted.get(index)?;
    let text = match untrusted.text.len() > TEXT_MAX {
        true => TOO_LONG.to_owned(),
        false => {
            let within = Within { from: From::Text, source: &untrusted.source, path: "" };
            redacted(making, &untrusted.text, &making.asked.previous_turn, within, context)
        }
    };
    Some(segment(Channel::Untrusted, untrusted.source.clone(), text))
}

/// A text without what must not be passed on.
pub(super) fn redacted(making: &Making, text: &str, turn: &str, within: Within<'_>, context: &mut Unfinished) -> String {
    let found = making.moment.snapshot.bundle.rules.detectors.private(text, turn, &context.values.all);
    context.values.redact(text, found, within, &mut context.prepared)
}
