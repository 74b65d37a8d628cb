//! Bounds the cost of the search for seed phrases. A seed phrase is 12 to 24 words of the BIP39 list, and in
//! longer rows of such words the library computes, for each word, one hash per possible phrase length.

use cerberust::scanner::detect::seed_phrase_hold_floor;

use crate::model::part::Part;

/// Lengths of the shortest and longest word of the BIP39 list, in letters.
const WORD_MIN: usize = 3;
const WORD_MAX: usize = 8;
/// Length of the shortest seed phrase, in words.
const PHRASE_MIN: usize = 12;
/// Maximum number of listed words that are checked per text; only rows of at least [`PHRASE_MIN`] words
/// count. People who write no seed phrase write no such row.
const WORDS_MAX: usize = 128;

/// A row of words with only separators between them.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    start: usize,
    end: usize,
    words: usize,
}

/// Returns the rows of BIP39 words beyond the bound, any of which may hold a seed phrase.
pub(super) fn unchecked(text: &str) -> Vec<(usize, usize)> {
    let mut left = WORDS_MAX;
    let mut found = vec![];
    let mut close = |row: Row| {
        if row.words >= PHRASE_MIN {
            match left.checked_sub(row.words) {
                Some(rest) => left = rest,
                None => found.push((row.start, row.end)),
            }
        }
    };
    // Most rows of short words contain unlisted words, so only long rows are looked up in the list.
    for row in
        rows(text, |word| (WORD_MIN..=WORD_MAX).contains(&word.len())).into_iter().filter(|row| row.words >= PHRASE_MIN)
    {
        let part = text.part(row.start..row.end);
        for listed in rows(part, is_listed) {
            close(Row { start: row.start + listed.start, end: row.start + listed.end, ..listed });
        }
    }
    found
}

/// Splits a text into rows of words for which `counts` is true.
fn rows(text: &str, counts: impl Fn(&[u8]) -> bool) -> Vec<Row> {
    let bytes = text.as_bytes();
    let mut rows = vec![];
    let mut row = Row::default();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..)
        && let Some(gap) = rest.iter().position(u8::is_ascii_alphabetic)
    {
        let start = at + gap;
        let length = rest.iter().skip(gap).take_while(|byte| byte.is_ascii_alphabetic()).count();
        let goes_on = bytes.part(at..start).iter().all(separates);
        at = start + length;
        let is_word = counts(bytes.part(start..at));
        if !(is_word && goes_on) {
            rows.push(std::mem::take(&mut row));
        }
        if is_word {
            row = Row { start: if row.words == 0 { start } else { row.start }, end: at, words: row.words + 1 };
        }
    }
    rows.push(row);
    rows
}

/// Returns whether a byte separates or numbers the words of a phrase.
fn separates(byte: &u8) -> bool {
    byte.is_ascii_whitespace() || byte.is_ascii_digit() || b",.):;-\"'`[]".contains(byte)
}

/// Returns whether the BIP39 list contains a word. Only the library has the list, so this asks it indirectly:
/// for a text whose last word may still grow, the library returns where the row of listed words before that
/// word begins.
fn is_listed(word: &[u8]) -> bool {
    let mut text = [b' '; WORD_MAX + 2];
    let Some(place) = text.get_mut(..word.len()).filter(|place| place.len() <= WORD_MAX) else { return false };
    place.copy_from_slice(word);
    if let Some(last) = text.get_mut(word.len() + 1) {
        *last = b'x';
    }
    text.get(..word.len() + 2).is_some_and(|text| seed_phrase_hold_floor(text) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_library_s() {
        for word in ["abandon", "zoo", "Token", "ability"] {
            assert!(is_listed(word.as_bytes()), "{word}");
        }
        for word in ["", "a", "the", "abandoned", "refunded", "abandonabandon"] {
            assert!(!is_listed(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn rows_are_looked_at_up_to_the_bound_and_the_rest_is_named() {
        let phrase = "abandon ability able about above absent absorb abstract absurd abuse access accident. The end! ";
        assert_eq!(unchecked(&phrase.repeat(WORDS_MAX / PHRASE_MIN)), []);
        let text = phrase.repeat(WORDS_MAX / PHRASE_MIN + 2);
        let found: Vec<&str> = unchecked(&text).into_iter().map(|(start, end)| &text[start..end]).collect();
        assert_eq!(found, [phrase.split('.').next().unwrap(); 2]);
        let row = "1. token, 2) token; ".repeat(WORDS_MAX);
        assert_eq!(unchecked(&row), [(3, row.len() - 2)]);
        let calm =
            "My order has not come yet, and I would like to know where it is. Please check it soon! ".repeat(700);
        assert_eq!(unchecked(&calm), []);
    }
}
