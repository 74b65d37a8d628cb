//! Values that are known, found again however they are written: by the letters and digits of a text alone, from the beginning of a word
//! to the end of one. They are known as they are, or, when they were seen before, by keyed digests alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::content::normalise::View;
use crate::model::finding::Private;

/// The fewest letters and digits by which a value is known again: fewer are in every text.
pub const VALUE_MIN: usize = 4;
/// The most by which it is: of a longer one its beginning.
pub const VALUE_MAX: usize = 64;

/// The letters and digits of a value, in small letters, as far as it is known by them; `None` if they are too few.
pub fn compact(folded: &View) -> Option<String> {
    let mut compact: String = folded.text().chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let end = (0..=VALUE_MAX.min(compact.len())).rev().find(|end| compact.is_char_boundary(*end)).unwrap_or(0);
    compact.truncate(end);
    (compact.len() >= VALUE_MIN).then_some(compact)
}

/// A deployment's secret, by which values are digested: SipHash-2-4, a pseudo-random function.
#[derive(Clone, Copy)]
pub struct ValueKey([u8; 16]);

impl std::fmt::Debug for ValueKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ValueKey")
    }
}

impl ValueKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The digest of a value's letters and digits.
    pub fn digest(&self, compact: &str) -> Digest {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(compact.as_bytes());
        Digest { length: u8::try_from(compact.len()).unwrap_or(u8::MAX), hash: hasher.finish() }
    }
}

/// A value, by its length and keyed digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    /// How many bytes its letters and digits have.
    pub length: u8,
    /// Their keyed hash.
    pub hash: u64,
}

/// Values to be found again.
#[derive(Clone, Debug, Default)]
pub struct Values {
    plain: BTreeMap<String, Private>,
    digests: BTreeMap<Digest, Private>,
    lengths: BTreeSet<usize>,
}

impl Values {
    /// Knows a value as it is.
    pub fn add(&mut self, value: &str, kind: Private) {
        let folded = super::normalise::Views::of(value).folded;
        if let Some(compact) = compact(&folded) {
            self.lengths.insert(compact.len());
            let known = self.plain.entry(compact).or_insert(kind);
            if kind.is_secret() {
                *known = kind;
            }
        }
    }

    /// Knows a value by its digest.
    pub fn add_digest(&mut self, digest: Digest, kind: Private) {
        self.lengths.insert(usize::from(digest.length));
        let known = self.digests.entry(digest).or_insert(kind);
        // Of two kinds, that of which nothing is told.
        if kind.is_secret() {
            *known = kind;
        }
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Where values stand in a view of a text.
    pub fn find(&self, view: &View, key: &ValueKey, mut found: impl FnMut(Private, (usize, usize))) {
        if self.is_empty() {
            return;
        }
        let text = Compact::of(view);
        for (start, at) in &text.starts {
            for length in &self.lengths {
                let Some((known, end)) = text.window(*start, *length) else { continue };
                let kind =
                    self.plain.get(known).or_else(|| if self.digests.is_empty() { None } else { self.digests.get(&key.digest(known)) });
                if let Some(kind) = kind {
                    found(*kind, (*at, end));
                }
            }
        }
    }
}

/// Where words of at least [`VALUE_MIN`] digits stand in a view.
pub(super) fn numbers(view: &View) -> Vec<(usize, usize)> {
    let mut at = 0;
    let words = view.text().split_inclusive(|sign: char| !sign.is_alphanumeric()).map(|word| {
        at += word.len();
        (at - word.len(), word.trim_end_matches(|sign: char| !sign.is_alphanumeric()))
    });
    let long = words.filter(|(_, word)| word.bytes().filter(u8::is_ascii_digit).count() >= VALUE_MIN);
    long.map(|(start, word)| (start, start + word.len())).collect()
}

/// A view's letters and digits, with where its words begin and end.
struct Compact {
    text: String,
    /// Where words begin: here, and in the view.
    starts: Vec<(usize, usize)>,
    /// Where words end: here, and in the view.
    ends: Vec<(usize, usize)>,
    /// Where characters end, for values that are known by their beginning.
    places: Vec<(usize, usize)>,
}

impl Compact {
    fn of(view: &View) -> Self {
        let mut compact = Self { text: String::with_capacity(view.text().len()), starts: vec![], ends: vec![], places: vec![] };
        let mut within = false;
        for (at, character) in view.text().char_indices() {
            let belongs = character.is_alphanumeric();
            match (within, belongs) {
                (false, true) => compact.starts.push((compact.text.len(), at)),
                (true, false) => compact.ends.push((compact.text.len(), at)),
                (true, true) | (false, false) => {}
            }
            within = belongs;
            if belongs {
                compact.text.extend(character.to_lowercase());
                compact.places.push((compact.text.len(), at + character.len_utf8()));
            }
        }
        if within {
            compact.ends.push((compact.text.len(), view.text().len()));
        }
        compact
    }

    /// The letters and digits from here, so many bytes of them, if a word ends there; and where it ends in the view.
    fn window(&self, start: usize, length: usize) -> Option<(&str, usize)> {
        let end = start.checked_add(length)?;
        // What is longer than it is known by ends anywhere.
        let (ends, known) = if length + 4 > VALUE_MAX { (&self.places, length) } else { (&self.ends, length) };
        let index = ends.binary_search_by_key(&end, |(end, _)| *end).ok()?;
        let (_, at) = ends.get(index)?;
        Some((self.text.get(start..start + known)?, *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::normalise::Views;

    fn found(values: &Values, text: &str) -> Vec<String> {
        let view = Views::of(text).folded;
        let mut found = vec![];
        values.find(&view, &ValueKey::new([7; 16]), |_, span| {
            let (start, end) = view.original(span);
            found.push(text[start..end].to_owned());
        });
        found
    }

    #[test]
    fn a_value_is_found_however_it_is_written() {
        let mut values = Values::default();
        values.add("Jane O'Doe", Private::Record);
        values.add_digest(ValueKey::new([7; 16]).digest("4215"), Private::VerificationCode);
        let long = format!("sk_live_{}", "a1b2c3d4".repeat(12));
        values.add(&long, Private::Secret);
        for (text, shown) in [
            ("Hello jane o’doe!", vec!["jane o’doe"]),
            ("it is 4215.", vec!["4215"]),
            ("it is 4-2-1-5", vec!["4-2-1-5"]),
            ("it is 42 15", vec!["42 15"]),
            ("it is ４２１５", vec!["４２１５"]),
            ("order 42150 of 14215", vec![]),
            ("Jane and O'Doe", vec![]),
        ] {
            assert_eq!(found(&values, text), shown, "{text}");
        }
        assert_eq!(found(&values, &format!("<{long}>")).len(), 1);
        assert_eq!(found(&values, "421"), Vec::<String>::new());
    }
}
