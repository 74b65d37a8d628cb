//! What was redacted on a case, as it is remembered: kind, number, length and keyed hash of each value; and which contexts were prepared.
//! Values are in no store and no record.

use std::collections::{BTreeSet, HashMap};

use smol_str::SmolStr;

use crate::content::values::{Digest, ValueKey, Values};
use crate::model::finding::Private;
use crate::risk_store::{Change, Key, Tenant, Update};

/// The most values of a case that are remembered: past it, not all that a draft repeats could be told.
pub(super) const VALUES_MAX: usize = 512;
/// How many repeats of a redacted value a case may have before nothing more is said of its drafts.
pub(super) const REPEATS_MAX: usize = 3;

/// Where a value came from: text and record never share a number, so that nobody learns that a text names a value of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum From {
    Record,
    Text,
}

/// A value that was redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Redacted {
    pub(super) from: From,
    pub(super) kind: Private,
    /// 0 for secrets, which have none.
    pub(super) number: u32,
    pub(super) digest: Digest,
}

impl Redacted {
    /// As a memory and the log name it.
    pub(super) fn name(&self) -> String {
        let from = if self.from == From::Record { 'r' } else { 't' };
        format!("{from}{}.{}.{}.{:016x}", self.kind.name(), self.number, self.digest.length, self.digest.hash)
    }

    /// What a name stands for.
    pub(super) fn named(name: &str) -> Option<Self> {
        let from = match name.get(..1)? {
            "r" => From::Record,
            "t" => From::Text,
            _ => return None,
        };
        let mut parts = name.get(1..)?.split('.');
        let kind = Private::named(parts.next()?)?;
        let number = parts.next()?.parse().ok()?;
        let length = parts.next()?.parse().ok()?;
        let hash = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { from, kind, number, digest: Digest { length, hash } })
    }
}

/// As a memory and the log name a number that a text showed.
fn number_name(Digest { length, hash }: Digest) -> String {
    format!("n{length}.{hash:016x}")
}

fn number_named(name: &str) -> Option<Digest> {
    let (length, hash) = name.strip_prefix('n')?.split_once('.')?;
    Some(Digest { length: length.parse().ok()?, hash: u64::from_str_radix(hash, 16).ok()? })
}

/// Where a case's redacted values are remembered.
pub(super) fn values_key(tenant: Tenant, case: &str) -> Key {
    tenant.key("case-values", &[case])
}

/// Where it is remembered which drafts of a case repeated a value. A human may clear it.
pub(super) fn repeats_key(tenant: Tenant, case: &str) -> Key {
    tenant.key("case-repeats", &[case])
}

/// Where it is remembered that a context was prepared. By another secret (`secret` is its id) its values are not known again, nor is it.
pub(super) fn context_key(tenant: Tenant, case: &str, evaluation_id: &str, secret: &str) -> Key {
    tenant.key("context", &[case, evaluation_id, secret])
}

/// The name under [`context_key`].
pub(super) const PREPARED: &str = "prepared";
/// The name of a case whose values are too many.
pub(super) const TOO_MANY: &str = "too_many";

/// The update that a draft of this evaluation repeated a value.
pub(super) fn repeat(key: Key, evaluation_id: &str, micros: i64) -> Update {
    Update { key, name: SmolStr::new(evaluation_id), change: Change::For(micros) }
}

/// What is remembered of a case's values.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    pub(super) values: Vec<Redacted>,
    /// Where a value is in the list, and the highest number of each kind: a text may hold thousands.
    places: HashMap<(From, Private, Digest), usize>,
    highest: HashMap<Private, u32>,
    /// Numbers that the case's texts showed: each could be a guess of a value.
    pub(super) numbers: BTreeSet<Digest>,
    /// What of both was read, and not added since.
    read: (usize, BTreeSet<Digest>),
    /// Whether there are more values than are remembered.
    pub(super) too_many: bool,
    /// Until when each counts.
    pub(super) until: i64,
}

impl Remembered {
    /// Reads a memory.
    pub(super) fn of(times: &[(SmolStr, i64)]) -> Self {
        let mut remembered = Self { until: i64::MAX, ..Self::default() };
        for (name, until) in times {
            if let Some(redacted) = Redacted::named(name) {
                remembered.push(redacted);
                remembered.until = remembered.until.min(*until);
            }
            remembered.numbers.extend(number_named(name));
            remembered.too_many |= name == TOO_MANY;
        }
        remembered.read = (remembered.values.len(), remembered.numbers.clone());
        remembered
    }

    /// The values, to be found again.
    pub(super) fn values(&self, key: ValueKey) -> Values {
        let mut values = Values::new(key);
        // A text that names a value of the record by its own words must not learn it by another kind: the text's kind names both.
        for from in [From::Record, From::Text] {
            let these = self.values.iter().filter(|redacted| redacted.from == from);
            these.for_each(|redacted| values.add_digest(redacted.digest, redacted.kind));
        }
        values
    }

    /// The value of this digest: the one that is remembered, or a new one with the next number of its kind.
    pub(super) fn of_value(&mut self, from: From, kind: Private, digest: Digest) -> Redacted {
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

    /// What was added since it was read, or all of it, as updates that count for so long.
    pub(super) fn updates(&self, key: Key, micros: i64, all: bool) -> Vec<Update> {
        let (values, numbers) = &self.read;
        let values = self.values.iter().skip(if all { 0 } else { *values }).map(|redacted| SmolStr::new(redacted.name()));
        let numbers =
            self.numbers.iter().filter(|number| all || !numbers.contains(number)).map(|number| SmolStr::new(number_name(*number)));
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
        assert_eq!(number(From::Text, Private::Email, "ab@c"), 1);
        assert_eq!(number(From::Text, Private::Email, "de@f"), 2);
        assert_eq!(number(From::Record, Private::Email, "ab@c"), 3);
        assert_eq!(number(From::Text, Private::Email, "ab@c"), 1);
        assert_eq!(number(From::Text, Private::Phone, "4930123"), 1);
        assert_eq!(number(From::Text, Private::Pin, "4215"), 0);
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
