//! Features of the linear model: hashes of one to three words in a row and of three to five characters in a
//! row, chunk by chunk. Training and scoring share this code, so that a feature means the same to both.

use crate::model::finding::Span;
use crate::model::number::to_u64;
use crate::model::part::Part;

/// Number of features. Those of words are in the first half, those of characters in the second.
pub const FEATURES: usize = 2 << 16;
/// Number of characters after which a chunk ends at the next space, or at the latest after half as many more.
const CHUNK: usize = 96;
const HASH_START: u64 = 0xCBF2_9CE4_8422_2325;
const HASH_PRIME: u64 = 0x0100_0000_01B3;
const SEED_WORDS: u64 = 0x776F_7264;
const SEED_CHARACTERS: u64 = 0x6368_6172;

/// A text as the model reads it: in lower case, every number as 0, one space between words. Keeps the
/// original place of each character.
#[derive(Clone, Debug, Default)]
pub struct Canonical {
    characters: Vec<char>,
    places: Vec<usize>,
    end: usize,
}

impl Canonical {
    /// Reads a folded text.
    pub fn of(text: &str) -> Self {
        let mut read = Self {
            characters: Vec::with_capacity(text.len()),
            places: Vec::with_capacity(text.len()),
            end: text.len(),
        };
        let mut push = |character, at| {
            let last = read.characters.last().copied();
            let repeats =
                (character == ' ' && last.is_none_or(|last| last == ' ')) || (character == '0' && last == Some('0'));
            if !repeats {
                read.characters.push(character);
                read.places.push(at);
            }
        };
        for (at, character) in text.char_indices() {
            match character {
                '0'..='9' => push('0', at),
                ascii if ascii.is_ascii_graphic() => push(ascii.to_ascii_lowercase(), at),
                white if white.is_whitespace() => push(' ', at),
                character => character.to_lowercase().for_each(|lower| push(lower, at)),
            }
        }
        if read.characters.last() == Some(&' ') {
            read.characters.pop();
            read.places.pop();
        }
        read
    }

    /// Maps characters to bytes of the text.
    pub fn place(&self, span: Span) -> (usize, usize) {
        let (from, to) = span;
        let start = self.places.get(from).copied().unwrap_or(self.end);
        (start, self.places.get(to).copied().unwrap_or(self.end).max(start))
    }

    pub fn text(&self, span: Span) -> String {
        let (from, to) = span;
        self.characters.part(from..to.min(self.characters.len())).iter().collect()
    }

    /// Splits the text into adjacent chunks of about `CHUNK` characters. Chunks are scored separately, so
    /// that a long benign text can't hide a short injection.
    pub fn chunks(&self) -> Vec<(usize, usize)> {
        let length = self.characters.len();
        let (mut chunks, mut start) = (vec![], 0);
        while start < length {
            let mut end = (start + CHUNK).min(length);
            if end < length {
                let latest = (start + CHUNK + CHUNK / 2).min(length);
                let space = self.characters.part(end..latest).iter().position(|character| *character == ' ');
                end = space.map_or(latest, |space| end + space + 1);
            }
            if length - end < CHUNK / 4 {
                end = length;
            }
            chunks.push((start, end));
            start = end;
        }
        if chunks.is_empty() { vec![(0, 0)] } else { chunks }
    }

    /// Calls `each` for every feature, with the chunk that the feature begins in, its index and its
    /// characters.
    pub fn features(&self, chunks: &[(usize, usize)], mut each: impl FnMut(usize, u32, (usize, usize))) {
        self.rows_of_characters(Chunks::of(chunks), &mut each);
        self.rows_of_words(Chunks::of(chunks), &mut each);
    }

    fn rows_of_characters(&self, mut chunks: Chunks<'_>, each: &mut impl FnMut(usize, u32, (usize, usize))) {
        // One space is added before the first character and one after the last; zeros fill up the last rows.
        let length = self.characters.len();
        let characters = self.characters.iter().map(|character| u64::from(u32::from(*character)));
        let mut padded: Vec<u64> = Vec::with_capacity(length + 6);
        padded.push(u64::from(b' '));
        padded.extend(characters);
        padded.push(u64::from(b' '));
        padded.extend([0; 4]);
        for (first, row) in padded.windows(5).enumerate() {
            let [one, two, three, four, five] = row else { continue };
            let start = first.saturating_sub(1);
            let chunk = chunks.at(start);
            let add = |hash: u64, character: &u64| (hash ^ character).wrapping_mul(HASH_PRIME);
            let of_three = add(add(add(HASH_START ^ SEED_CHARACTERS, one), two), three);
            let of_four = add(of_three, four);
            let of_five = add(of_four, five);
            for (hash, of) in [(of_three, 3), (of_four, 4), (of_five, 5)] {
                // Rows that reach into the zeros are not features.
                if first + of <= length + 2 {
                    each(chunk, slot(hash, of) + (1 << 16), (start, (first + of - 1).min(length)));
                }
            }
        }
    }

    fn rows_of_words(&self, mut chunks: Chunks<'_>, each: &mut impl FnMut(usize, u32, (usize, usize))) {
        let words = self.words();
        for (first, (start, ..)) in words.iter().enumerate() {
            let chunk = chunks.at(*start);
            let mut hash = HASH_START ^ SEED_WORDS;
            for (before, (_, end, word)) in words.iter().skip(first).take(3).enumerate() {
                hash = (hash ^ word).wrapping_mul(HASH_PRIME);
                hash ^= hash >> 29;
                each(chunk, slot(hash, before + 1), (*start, *end));
            }
        }
    }

    /// Returns words and rows of signs, each with its place and hash.
    fn words(&self) -> Vec<(usize, usize, u64)> {
        let class = |character: char| match character {
            'a'..='z' | '0' => 1,
            ' ' => 0,
            '_' => 2,
            character if character.is_alphanumeric() => 1,
            character if character.is_whitespace() => 0,
            _ => 3,
        };
        let mut words = vec![];
        let mut start = 0;
        while let Some(first) = self.characters.get(start) {
            let kind = class(*first);
            let mut end = start + 1;
            let run = |from: usize| {
                self.characters.iter().skip(from).take_while(|character| class(**character) == kind).count()
            };
            end += run(end);
            // One apostrophe within a word belongs to the word.
            if kind == 1 && self.characters.get(end) == Some(&'\'') {
                let after = run(end + 1);
                end += if after > 0 { after + 1 } else { 0 };
            }
            if kind != 0 {
                let longest = if kind == 1 { 24 } else { 3 };
                let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(HASH_PRIME);
                let word = self.characters.part(start..end.min(start + longest));
                let hash = word.iter().fold(HASH_START, |hash, character| match u8::try_from(*character) {
                    Ok(byte) if byte.is_ascii() => add(hash, byte),
                    Ok(_) | Err(_) => character.encode_utf8(&mut [0; 4]).bytes().fold(hash, add),
                });
                words.push((start, end, hash));
            }
            start = end;
        }
        words
    }
}

/// The features of a text, in the form in which several models can score it without reading it again.
#[derive(Debug)]
pub struct Features {
    pub(super) canonical: Canonical,
    pub(super) chunks: Vec<Span>,
    indices: Vec<u32>,
    /// Adjacent ranges of `indices`: the chunk that their features begin in, and the end of the range.
    ends: Vec<(usize, usize)>,
}

impl Features {
    /// Reads a folded text.
    pub fn of(text: &str) -> Self {
        let canonical = Canonical::of(text);
        let chunks = canonical.chunks();
        // Each character begins three rows of characters, and about every sixth one a word with three rows of words.
        let mut indices = Vec::with_capacity(4 * canonical.characters.len());
        let mut ends: Vec<(usize, usize)> = Vec::with_capacity(2 * chunks.len());
        canonical.features(&chunks, |chunk, index, _| {
            indices.push(index);
            match ends.last_mut() {
                Some((last, end)) if *last == chunk => *end = indices.len(),
                _ => ends.push((chunk, indices.len())),
            }
        });
        Self { canonical, chunks, indices, ends }
    }

    /// Returns chunks with the indices of features that begin in them. A chunk may come more than once.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        self.ends.iter().zip(starts).map(|((chunk, end), start)| (*chunk, self.indices.part(start..*end)))
    }
}

/// Finds the chunk of a place; places must be queried in ascending order.
struct Chunks<'a> {
    chunks: &'a [(usize, usize)],
    now: usize,
}

impl<'a> Chunks<'a> {
    fn of(chunks: &'a [(usize, usize)]) -> Self {
        Self { chunks, now: 0 }
    }

    fn at(&mut self, place: usize) -> usize {
        while self.now + 1 < self.chunks.len() && self.chunks.get(self.now).is_some_and(|(_, end)| *end <= place) {
            self.now += 1;
        }
        self.now
    }
}

/// Returns the feature index for the hash of a row of `row` words or characters.
fn slot(hash: u64, row: usize) -> u32 {
    let mut mixed = hash.wrapping_add(to_u64(row));
    mixed ^= mixed >> 32;
    mixed = mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^= mixed >> 32;
    let [_, _, low, high, ..] = mixed.to_le_bytes();
    u32::from(u16::from_le_bytes([low, high]))
}

/// Returns the windows, as ranges of chunks: each chunk separately, and each pair of neighbours.
pub fn windows(chunks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..chunks).map(|chunk| (chunk, chunk + 1)).chain((1..chunks).map(|chunk| (chunk - 1, chunk + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_its_chunks_and_places_point_back() {
        let text = "Please  IGNORE 123 ".repeat(20);
        let read = Canonical::of(&text);
        let chunks = read.chunks();
        assert!(chunks.len() > 2 && chunks.iter().all(|(start, end)| end - start <= CHUNK * 2));
        assert_eq!(
            chunks.iter().map(|chunk| read.text(*chunk)).collect::<String>(),
            "please ignore 0 ".repeat(20).trim_end()
        );
        let (start, end) = read.place((7, 13));
        assert_eq!(&text[start..end], "IGNORE");
        assert_eq!(Canonical::of("").chunks(), [(0, 0)]);
    }

    /// Compares the features with those of an independent implementation. If features move, trained weights
    /// are useless.
    #[test]
    fn features_are_what_they_were() {
        let read = Canonical::of("a_b's");
        let mut indices = vec![];
        read.features(&read.chunks(), |_, index, _| indices.push(index));
        indices.sort_unstable();
        let known = [
            6827, 10180, 30471, 34511, 47116, 62518, 66340, 73775, 75337, 80539, 92308, 93757, 101_017, 110_167,
            110_231, 110_669, 113_715, 117_266,
        ];
        assert_eq!(indices, known);
    }

    #[test]
    fn features_stay_in_their_tables() {
        let read = Canonical::of("Don't stop: ignore_all 42!");
        let mut count = 0;
        read.features(&read.chunks(), |chunk, index, (start, end)| {
            assert!(chunk == 0 && (index as usize) < FEATURES && start <= end);
            count += 1;
        });
        assert!(count > 60);
    }
}
