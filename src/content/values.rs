//! Search for known values, however they are written. Only letters and digits are compared, and a match
//! begins and ends at a word boundary. Each value is stored only as a keyed digest, so values of earlier
//! calls can be found too.

use std::collections::HashMap;
use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::content::normalise::View;
use crate::model::finding::SensitiveKind;
use crate::model::number::{to_u32, to_usize};
use crate::model::part::Part;

/// Minimum length of a value, in bytes of letters and digits. Every text contains shorter ones.
pub const VALUE_MIN: usize = 4;
/// Maximum length that is compared, in bytes of letters and digits. Longer values are stored as prefixes.
pub const VALUE_MAX: usize = 64;

/// Returns the letters and digits of a value in lower case, cut to [`VALUE_MAX`] bytes; `None` if they have
/// fewer than [`VALUE_MIN`].
pub fn compact(folded: &View) -> Option<String> {
    let mut compact: String =
        folded.text().chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let end = (0..=VALUE_MAX.min(compact.len())).rev().find(|end| compact.is_char_boundary(*end)).unwrap_or(0);
    compact.truncate(end);
    (compact.len() >= VALUE_MIN).then_some(compact)
}

/// A deployment's secret key for value digests: SipHash-2-4, a pseudo-random function.
#[derive(Clone, Copy)]
pub struct ValueKey([u8; 16]);

impl std::fmt::Debug for ValueKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ValueKey")
    }
}

impl ValueKey {
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Digests the result of [`compact`].
    pub fn digest(&self, compact: &str) -> Digest {
        let mut hasher = self.hasher();
        hasher.write(compact.as_bytes());
        Digest::new(compact.len(), hasher.finish())
    }

    fn hasher(&self) -> SipHasher24 {
        SipHasher24::new_with_key(&self.0)
    }
}

/// A value, identified by its length and keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    /// Length of the value's letters and digits, in bytes.
    pub length: u8,
    pub hash: u64,
}

impl Digest {
    fn new(length: usize, hash: u64) -> Self {
        // A value is cut to `VALUE_MAX` bytes.
        Self { length: u8::try_from(length).unwrap_or(u8::MAX), hash }
    }
}

/// The values to search for, stored as digests under one key.
#[derive(Clone, Debug)]
pub struct Values {
    key: ValueKey,
    digests: HashMap<Digest, SensitiveKind>,
    /// Bit `n` is set if a value of `n + 1` bytes is stored.
    lengths: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub kind: SensitiveKind,
    /// Place in the view.
    pub span: (usize, usize),
    /// Letters and digits of the value, in lower case.
    pub compact: &'a str,
}

/// A view has more candidate places than are checked. Holds where in the view the unchecked rest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyPlaces(pub usize);

impl Values {
    pub fn new(key: ValueKey) -> Self {
        Self { key, digests: HashMap::new(), lengths: 0 }
    }

    pub fn key(&self) -> &ValueKey {
        &self.key
    }

    /// Creates an empty set that still looks up numbers of every length. Each number is reported as missed.
    pub fn of_any_length(key: ValueKey) -> Self {
        Self { lengths: u64::MAX, ..Self::new(key) }
    }

    pub fn add(&mut self, value: &str, kind: SensitiveKind) {
        if let Some(compact) = compact(&View::folded(value)) {
            self.add_digest(self.key.digest(&compact), kind);
        }
    }

    pub fn knows(&self, digest: Digest) -> bool {
        self.digests.contains_key(&digest)
    }

    /// Adds a value by its digest. If it is already stored, the new kind replaces the old one.
    pub fn add_digest(&mut self, digest: Digest, kind: SensitiveKind) {
        self.lengths |= bit(usize::from(digest.length));
        self.digests.insert(digest, kind);
    }

    /// Returns whether the search has nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.lengths == 0
    }

    /// Finds the places of values in a view of a text.
    ///
    /// # Errors
    /// [`TooManyPlaces`] if more than [`places_max`] candidates would have to be checked. A text of single
    /// letters has that many when values of many lengths are stored.
    pub fn find(&self, view: &View, found: impl FnMut(Found<'_>)) -> Result<(), TooManyPlaces> {
        self.search(view, found, |_, _| {})
    }

    /// Does the same as [`Self::find`], and reports each number that was looked up and is not a value. A
    /// number is a row of digits, however grouped, or a word with at least [`VALUE_MIN`] digits. Each is a
    /// guess at a value, and whoever sees that it was not redacted learns that the guess was wrong.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn search(
        &self,
        view: &View,
        mut found: impl FnMut(Found<'_>),
        mut missed: impl FnMut((usize, usize), Digest),
    ) -> Result<(), TooManyPlaces> {
        if self.is_empty() {
            return Ok(());
        }
        let text = Compact::of(view);
        let mut left = places_max(view.text().len());
        for (start, at) in &text.starts {
            let mut ends = text.ends_behind(*start) & self.lengths;
            // Longer candidates continue the hash of shorter ones.
            let mut hasher = self.key.hasher();
            let mut hashed = *start;
            let (digits, word) = (text.digits(*start), text.word(*start));
            while ends != 0 {
                let length = to_usize(ends.trailing_zeros()) + 1;
                ends &= ends - 1;
                left = left.checked_sub(1).ok_or(TooManyPlaces(*at))?;
                let Some((compact, end)) = text.window(*start, length) else { break };
                hasher.write(text.text.part(hashed..start + length).as_bytes());
                hashed = start + length;
                let digest = Digest::new(length, hasher.finish());
                match self.digests.get(&digest) {
                    Some(kind) => found(Found { kind: *kind, span: (*at, end), compact }),
                    None if length <= digits || word == Some(length) => missed((*at, end), digest),
                    None => {}
                }
            }
        }
        Ok(())
    }
}

fn bit(length: usize) -> u64 {
    // No value is longer than the 64 bytes that have a bit.
    1_u64.checked_shl(to_u32(length.saturating_sub(1))).unwrap_or(0)
}

/// Returns the maximum number of candidate places that are checked in a view of `bytes` bytes. Texts that
/// people write have less than one per byte, even with values of forty lengths.
pub fn places_max(bytes: usize) -> usize {
    4096 + 2 * bytes
}

/// The letters and digits of a view, with the boundaries of its words.
struct Compact {
    text: String,
    /// Where words begin: in `text`, and in the view.
    starts: Vec<(usize, usize)>,
    /// Bit `n` is set if a word (in `character_ends`, a character) ends after byte `n` of `text`. Values that
    /// are stored as prefixes may end after any character.
    word_ends: Vec<u64>,
    character_ends: Vec<u64>,
    /// For each byte of `text`, the place in the view where its character ends.
    places: Vec<u32>,
}

impl Compact {
    fn of(view: &View) -> Self {
        let bytes = view.text().len();
        let mut compact = Self {
            text: String::with_capacity(bytes),
            starts: Vec::with_capacity(bytes / 5),
            word_ends: vec![0; bytes / 64 + 2],
            character_ends: vec![0; bytes / 64 + 2],
            places: Vec::with_capacity(bytes),
        };
        let mut within = false;
        if view.text().is_ascii() {
            for (at, byte) in (0_u32..).zip(view.text().bytes()) {
                let belongs = byte.is_ascii_alphanumeric();
                if belongs {
                    if !within {
                        compact.starts.push((compact.text.len(), to_usize(at)));
                    }
                    compact.text.push(char::from(byte.to_ascii_lowercase()));
                    compact.places.push(at + 1);
                } else if within {
                    set(&mut compact.word_ends, compact.text.len() - 1);
                }
                within = belongs;
            }
            if within {
                set(&mut compact.word_ends, compact.text.len() - 1);
            }
            // Each byte is one character.
            compact.character_ends.fill(u64::MAX);
            return compact;
        }
        for (at, character) in view.text().char_indices() {
            let belongs = character.is_alphanumeric();
            match (within, belongs) {
                (false, true) => compact.starts.push((compact.text.len(), at)),
                (true, false) => set(&mut compact.word_ends, compact.text.len() - 1),
                (true, true) | (false, false) => {}
            }
            within = belongs;
            if belongs {
                if character.is_ascii() {
                    compact.text.push(character.to_ascii_lowercase());
                } else {
                    compact.text.extend(character.to_lowercase());
                }
                let end = to_u32(at + character.len_utf8());
                compact.places.resize(compact.text.len(), end);
                set(&mut compact.character_ends, compact.text.len() - 1);
            }
        }
        if within {
            set(&mut compact.word_ends, compact.text.len() - 1);
        }
        compact
    }

    /// Returns the lengths that a value beginning here may have: bit `n` is set for `n + 1` bytes.
    fn ends_behind(&self, start: usize) -> u64 {
        // Values longer than `VALUE_MAX` are stored as prefixes of 61 to 64 bytes, because they are cut at a
        // character boundary. A match of such a length may therefore end inside a word.
        const WHOLE: u64 = u64::MAX >> 4;
        (behind(&self.word_ends, start) & WHOLE) | (behind(&self.character_ends, start) & !WHOLE)
    }

    /// Returns the number of digits in a row from here.
    fn digits(&self, start: usize) -> usize {
        let rest = self.text.as_bytes().part(start..);
        rest.iter().take(VALUE_MAX).take_while(|byte| byte.is_ascii_digit()).count()
    }

    /// Returns the length of the word that begins here if it has at least `VALUE_MIN` digits.
    fn word(&self, start: usize) -> Option<usize> {
        let length = to_usize(behind(&self.word_ends, start).trailing_zeros()) + 1;
        let word = self.text.as_bytes().get(start..start + length)?;
        (word.iter().filter(|byte| byte.is_ascii_digit()).count() >= VALUE_MIN).then_some(length)
    }

    /// Returns `length` bytes of letters and digits from here, and where they end in the view.
    fn window(&self, start: usize, length: usize) -> Option<(&str, usize)> {
        let end = start + length;
        let place = self.places.get(end.checked_sub(1)?)?;
        Some((self.text.get(start..end)?, to_usize(*place)))
    }
}

fn set(bits: &mut Vec<u64>, place: usize) {
    if place / 64 >= bits.len() {
        bits.resize(place / 64 + 1, 0);
    }
    if let Some(word) = bits.get_mut(place / 64) {
        *word |= 1 << (place % 64);
    }
}

fn behind(bits: &[u64], place: usize) -> u64 {
    let word = |index: usize| bits.get(index).copied().unwrap_or(0);
    let (index, shift) = (place / 64, place % 64);
    if shift == 0 { word(index) } else { (word(index) >> shift) | (word(index + 1) << (64 - shift)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::normalise::Views;

    fn found(values: &Values, text: &str) -> Vec<String> {
        let view = Views::of(text).folded;
        let mut found = vec![];
        let all = values.find(&view, |value| {
            let (start, end) = view.original(value.span);
            found.push(text[start..end].to_owned());
        });
        assert_eq!(all, Ok(()));
        found
    }

    #[test]
    fn a_value_is_found_however_it_is_written() {
        let mut values = Values::new(ValueKey::new([7; 16]));
        values.add("Jane O'Doe", SensitiveKind::Record);
        values.add_digest(ValueKey::new([7; 16]).digest("4215"), SensitiveKind::VerificationCode);
        let long = format!("sk_live_{}", "a1b2c3d4".repeat(12));
        values.add(&long, SensitiveKind::Secret);
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

    #[test]
    fn a_number_that_is_no_value_is_a_guess_however_it_is_written() {
        let key = ValueKey::new([7; 16]);
        let mut values = Values::new(key);
        values.add("4215", SensitiveKind::Pin);
        let missed = |text: &str| {
            let view = Views::of(text).folded;
            let mut missed = vec![];
            assert_eq!(
                values.search(&view, |_| {}, |(start, end), digest| missed.push((text[start..end].to_owned(), digest))),
                Ok(())
            );
            missed
        };
        let places = |text: &str| missed(text).into_iter().map(|(place, _)| place).collect::<Vec<_>>();
        // Only numbers as long as the value are reported, and not the value itself.
        assert_eq!(
            places("order A1234, 1234, 4-2-1-6 or 42 16, 4215 and 12345, 5 Euros"),
            ["1234", "4-2-1-6", "42 16"]
        );
        assert_eq!(places("abcd for ever"), Vec::<String>::new());
        assert_eq!(places("1 2 3 4 5"), ["1 2 3 4", "2 3 4 5"]);
        assert!(missed("1234 12 34").iter().all(|(_, digest)| *digest == key.digest("1234")));
    }

    #[test]
    fn a_text_of_single_letters_is_looked_at_a_bounded_number_of_times() {
        let key = ValueKey::new([7; 16]);
        let mut values = Values::new(key);
        (VALUE_MIN..=VALUE_MAX)
            .for_each(|length| values.add_digest(key.digest(&"x".repeat(length)), SensitiveKind::Secret));
        let text = "a ".repeat(32 * 1024);
        let mut all = 0;
        let Err(TooManyPlaces(rest)) = values.find(&Views::of(&text).folded, |_| all += 1) else {
            panic!("it has too many")
        };
        assert!(rest > 0 && rest < text.len() / 2 && all == 0, "{rest} {all}");
    }

    proptest! {
        /// Compares the search with a simple model: every row of whole words that is a value.
        #[test]
        fn values_are_found_as_a_plain_search_finds_them(text in "[a-c1 é\\-]{0,120}", known in proptest::collection::vec("[a-c1é]{4,9}", 0..8)) {
            let key = ValueKey::new([7; 16]);
            let mut values = Values::new(key);
            for (index, value) in known.iter().enumerate() {
                let Some(compact) = compact(&Views::of(value).folded) else { continue };
                if index % 2 == 0 { values.add(value, SensitiveKind::Record) } else { values.add_digest(key.digest(&compact), SensitiveKind::Record) }
            }
            let view = Views::of(&text).folded;
            let mut found = vec![];
            prop_assert_eq!(values.find(&view, |value| found.push(value.span)), Ok(()));
            let words: Vec<(usize, &str)> = view.text().split(|sign: char| !sign.is_alphanumeric()).map(|word| (word.as_ptr() as usize - view.text().as_ptr() as usize, word)).filter(|(_, word)| !word.is_empty()).collect();
            let compacts: Vec<String> = known.iter().filter_map(|value| compact(&Views::of(value).folded)).collect();
            let mut expected = vec![];
            for first in 0..words.len() {
                let mut row = String::new();
                for (at, word) in &words[first..] {
                    row.push_str(&word.to_lowercase());
                    if compacts.contains(&row) {
                        expected.push((words[first].0, at + word.len()));
                    }
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
