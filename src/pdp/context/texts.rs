//! Untrusted texts as the model may see them: without what must not be passed on.

use crate::content::TEXT_MAX;
use crate::content::normalise::Views;
use crate::content::private::Located;
use crate::content::values::{ValueKey, Values, compact};
use crate::model::content::{Channel, Redaction, Segment};
use crate::model::finding::Private;
use crate::pdp::Pdp;
use crate::pdp::context::{Making, Prepared, ToPrepare, segment};
use crate::pdp::memory::redacted::{From, Remembered};
use crate::redact::{Replaced, placeholder, redact};

/// What stands for a text that is too long to be screened.
const TOO_LONG: &str = "[text too long: not shown]";

/// The text that is redacted, and by what.
pub(super) struct Within<'a> {
    pub(super) from: From,
    pub(super) source: &'a str,
    pub(super) path: &'a str,
    /// Whether personal data may stay: policy said that the field may be seen.
    pub(super) secrets_alone: bool,
}

impl Pdp {
    /// The untrusted texts, redacted. `hidden` are the record's values that policy kept back.
    pub(super) fn texts(
        &self,
        making: &Making<'_>,
        asked: &ToPrepare,
        hidden: &[(String, Private)],
        remembered: &mut Remembered,
        prepared: &mut Prepared,
    ) -> Vec<Segment> {
        let mut segments = vec![];
        for untrusted in &asked.untrusted {
            let source = untrusted.source.clone();
            if untrusted.text.len() > TEXT_MAX {
                segments.push(segment(Channel::Untrusted, source, TOO_LONG.to_owned()));
                continue;
            }
            let within = Within { from: From::Text, source: &untrusted.source, path: "", secrets_alone: false };
            let text = self.redacted(making, &untrusted.text, (&asked.previous_turn, hidden), &within, (remembered, prepared));
            segments.push(segment(Channel::Untrusted, source, text));
        }
        segments
    }

    /// By what values of the case are known again.
    pub(super) fn key_of(&self, making: &Making<'_>) -> ValueKey {
        self.keys.load().of_case(&making.reading.case.tenant, &making.reading.case.id)
    }

    /// A text without what must not be passed on. Each value is remembered, and listed.
    pub(super) fn redacted(
        &self,
        making: &Making<'_>,
        text: &str,
        (turn, hidden): (&str, &[(String, Private)]),
        within: &Within<'_>,
        (remembered, prepared): (&mut Remembered, &mut Prepared),
    ) -> String {
        let detectors = &making.moment.snapshot.bundle.rules.detectors;
        let key = self.key_of(making);
        let mut values = if within.secrets_alone { Values::default() } else { remembered.values() };
        hidden.iter().for_each(|(value, kind)| values.add(value, *kind));
        let found = detectors.private(text, turn, (&values, &key));
        let kept_back = |kind: Private| kind.is_secret() || kind == Private::Record;
        let wanted = found.into_iter().filter(|located| kept_back(located.kind) || !within.secrets_alone);
        let mut replaced = vec![];
        for Located { span, kind } in wanted {
            let value = text.get(span.0..span.1).unwrap_or_default();
            let compact = compact(&Views::of(value).folded);
            let number = compact.map(|compact| remembered.of_value(&key, within.from, kind, &compact).number);
            replaced.push(Replaced { span, placeholder: placeholder(kind, number.filter(|number| *number > 0)) });
            prepared.redactions.push(Redaction { kind, source: within.source.to_owned(), path: within.path.to_owned(), span });
        }
        redact(text, &replaced)
    }
}
