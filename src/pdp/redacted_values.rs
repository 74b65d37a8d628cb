//! The redacted values of a case, as the risk store and the log have them: origin, kind, number, length and
//! keyed hash of each. No store and no record contains a value. Also the contexts that were prepared, and the
//! drafts that repeated a value.

use std::collections::{BTreeSet, HashMap};

use smol_str::SmolStr;

use crate::content::values::{Digest, ValueKey, Values};
use crate::model::finding::SensitiveKind;
use crate::risk_store::{Change, Key, Tenant, Update};

/// Maximum number of values that are stored for a case. Beyond it, a draft may repeat a value unnoticed.
pub(super) const VALUES_MAX: usize = 512;
/// Number of drafts with a repeated value after which answers about drafts of the case give no details.
pub(super) const REPEATS_MAX: usize = 3;

/// Origin of a value. Text and record never share a number; otherwise a customer could learn that a text
/// contains a value of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum From {
    Record,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Redacted {
    pub(super) from: From,
    pub(super) kind: SensitiveKind,
    /// Number of the value within its kind; 0 for secrets, and for values after [`VALUES_MAX`].
    pub(super) number: u32,
    pub(super) digest: Digest,
}

impl Redacted {
    /// Returns the name of the value in the risk store and the log.
    pub(super) fn name(&self) -> String {
        let from = if self.from == From::Record { 'r' } else { 't' };
        format!("{from}{}.{}.{}.{:016x}", self.kind.name(), self.number, self.digest.length, self.digest.hash)
    }

    /// Parses the name of a value.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let from = match name.get(..1)? {
            "r" => From::Record,
            "t" => From::Text,
            _ => return None,
        };
        let mut parts = name.get(1..)?.split('.');
        let kind = SensitiveKind::from_name(parts.next()?)?;
        let number = parts.next()?.parse().ok()?;
        let length = parts.next()?.parse().ok()?;
        let hash = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { from, kind, number, digest: Digest { length, hash } })
    }
}

/// Returns the name, in the risk store and the log, of a number that a text showed.
fn number_name(Digest { length, hash }: Digest) -> String {
    format!("n{length}.{hash:016x}")
}

fn number_named(name: &str) -> Option<Digest> {
    let (length, hash) = name.strip_prefix('n')?.split_once('.')?;
    Some(Digest { length: length.parse().ok()?, hash: u64::from_str_radix(hash, 16).ok()? })
}

/// Returns the key of a case's redacted values.
pub(super) fn values_key(tenant: Tenant, case: &str) -> Key {
    tenant.key("case-values", &[case])
}

/// Returns the key of the drafts of a case that repeated a value. A human may clear this entry.
pub(super) fn repeats_key(tenant: Tenant, case: &str) -> Key {
    tenant.key("case-repeats", &[case])
}

/// Returns the key of a prepared context. It includes the id of the digest key (`secret`): after a change of
/// that key, the context's values are no longer recognized, so the context must not be found either.
pub(super) fn context_key(tenant: Tenant, case: &str, evaluation_id: &str, secret: &str) -> Key {
    tenant.key("context", &[case, evaluation_id, secret])
}

/// The name under [`context_key`].
pub(super) const PREPARED: &str = "prepared";
/// Name that marks a case with more values than are stored.
pub(super) const TOO_MANY: &str = "too_many";

/// Returns the update by which a draft of this evaluation counts as having repeated a value.
pub(super) fn repeat(key: Key, evaluation_id: &str, micros: i64) -> Update {
    Update { key, name: SmolStr::new(evaluation_id), change: Change::For(micros) }
}

/// The stored values of a case.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    pub(super) values: Vec<Redacted>,
    /// Index of each value in `values`, and the highest number of each kind. A text may contain thousands of
    /// values.
    places: HashMap<(From, SensitiveKind, Digest), usize>,
    highest: HashMap<SensitiveKind, u32>,
    /// Numbers that the case's texts showed. Each could be a guess at a value.
    pub(super) numbers: BTreeSet<Digest>,
    /// Number of `values`, and the `numbers`, that were read from the store.
    read: (usize, BTreeSet<Digest>),
    /// Whether the case has more values than are stored.
    pub(super) too_many: bool,
    /// Time until which every stored value counts, in microseconds.
    pub(super) until: i64,
}

impl Remembered {
    /// Parses the memory of a case's values.
    pub(super) fn of(times: &[(SmolStr, i64)]) -> Self {
        let mut remembered = Self { until: i64::MAX, ..Self::default() };
        for (name, until) in times {
            if let Some(redacted) = Redacted::from_name(name) {
                remembered.push(redacted);
                remembered.until = remembered.until.min(*until);
            }
            remembered.numbers.extend(number_named(name));
            remembered.too_many |= name == TOO_MANY;
        }
        remembered.read = (remembered.values.len(), remembered.numbers.clone());
        remembered
    }

    /// Returns the values to search texts for.
    pub(super) fn values(&self, key: ValueKey) -> Values {
        let mut values = Values::new(key);
        // If the same value came from the record and from a text, the text's kind replaces the record's.
        // Otherwise the customer would learn from the kind that the value is on record.
        for from in [From::Record, From::Text] {
            let these = self.values.iter().filter(|redacted| redacted.from == from);
            these.for_each(|redacted| values.add_digest(redacted.digest, redacted.kind));
        }
        values
    }

    /// Returns the stored value with this digest, or adds it with the next number of its kind.
    pub(super) fn of_value(&mut self, from: From, kind: SensitiveKind, digest: Digest) -> Redacted {
        if let Some(known) = self.places.get(&(from, kind, digest)).and_then(|place| self.values.get(*place)) {
            return *known;
        }
        let highest = self.highest.get(&kind).copied().unwrap_or(0);
        let full = self.values.len() >= VALUES_MAX;
        let number = if kind.is_secret() || full { 0 } else { highest + 1 };
        let redacted = Redacted { from, kind, number, digest };
        if full {
            self.too_many = true;
        } else {
            self.push(redacted);
        }
        redacted
    }

    fn push(&mut self, redacted: Redacted) {
        self.places.insert((redacted.from, redacted.kind, redacted.digest), self.values.len());
        let highest = self.highest.entry(redacted.kind).or_default();
        *highest = redacted.number.max(*highest);
        self.values.push(redacted);
    }

    /// Returns updates that store what was added since the memory was read, or all of it, for these
    /// microseconds.
    pub(super) fn updates(&self, key: Key, micros: i64, all: bool) -> Vec<Update> {
        let (values, numbers) = &self.read;
        let values =
            self.values.iter().skip(if all { 0 } else { *values }).map(|redacted| SmolStr::new(redacted.name()));
        let numbers = self
            .numbers
            .iter()
            .filter(|number| all || !numbers.contains(number))
            .map(|number| SmolStr::new(number_name(*number)));
        let too_many = self.too_many.then(|| SmolStr::new(TOO_MANY));
        values.chain(numbers).chain(too_many).map(|name| Update { key, name, change: Change::For(micros) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_keeps_its_number_and_text_and_record_share_none() {
        let (key, mut remembered) = (ValueKey::new([1; 16]), Remembered::default());
        let mut number = |from, kind, value| remembered.of_value(from, kind, key.digest(value)).number;
        assert_eq!(number(From::Text, SensitiveKind::Email, "ab@c"), 1);
        assert_eq!(number(From::Text, SensitiveKind::Email, "de@f"), 2);
        assert_eq!(number(From::Record, SensitiveKind::Email, "ab@c"), 3);
        assert_eq!(number(From::Text, SensitiveKind::Email, "ab@c"), 1);
        assert_eq!(number(From::Text, SensitiveKind::Phone, "4930123"), 1);
        assert_eq!(number(From::Text, SensitiveKind::Pin, "4215"), 0);
        remembered.numbers.insert(key.digest("4217"));
        let updates = remembered.updates(Key::of(&["k"]), 60, false);
        let times: Vec<(SmolStr, i64)> = updates.into_iter().map(|update| (update.name, 1)).collect();
        let mut again = Remembered::of(&times);
        assert_eq!((&again.values, &again.numbers), (&remembered.values, &remembered.numbers));
        again.numbers.insert(key.digest("4218"));
        assert_eq!(again.updates(Key::of(&["k"]), 60, false).len(), 1);
        assert_eq!(again.updates(Key::of(&["k"]), 60, true).len(), times.len() + 1);
    }
}
