//! Bounds what the search for seed phrases costs: a seed phrase is 12 to 24 words of BIP39's list, and each word of a longer row of
//! such words costs as many hashes as there are lengths of phrases.

use cerberust::scanner::detect::seed_phrase_hold_floor;

/// The shortest and the longest word of BIP39's list, in letters.
const WORD_MIN: usize = 3;
const WORD_MAX: usize = 8;
/// The shortest seed phrase, in words.
const PHRASE_MIN: usize = 12;
/// How many words of the list, in rows as long as a phrase, are looked at in a text. People who write no seed phrase write no such row.
const WORDS_MAX: usize = 128;

/// A row of words that only separators part.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    start: usize,
    end: usize,
    words: usize,
}

/// Rows of words of BIP39's list that are too many to be looked at; any of them may hold a seed phrase.
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
    // Most rows of short words have others than the list's among them, and the list is asked only of long rows.
    for row in rows(text, |word| (WORD_MIN..=WORD_MAX).contains(&word.len())).into_iter().filter(|row| row.words >= PHRASE_MIN) {
        let part = text.get(row.start..row.end).unwrap_or_default();
        for listed in rows(part, is_listed) {
            close(Row { start: row.start + listed.start, end: row.start + listed.end, ..listed });
        }
    }
    found
}

/// The rows of words that count.
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
        let goes_on = bytes.get(at..start).unwrap_or_default().iter().all(separates);
        at = start + length;
        let is_word = counts(bytes.get(start..at).unwrap_or_default());
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

/// Whether a byte only parts words of a phrase, or numbers them.
fn separates(byte: &u8) -> bool {
    byte.is_ascii_whitespace() || byte.is_ascii_digit() || b",.):;-\"'`[]".contains(byte)
}

/// Whether BIP39's list has a word. The list is the library's own: of a text whose last word may still grow, it says where the row of
/// listed words before that begins.
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
        let calm = "My order has not come yet, and I would like to know where it is. Please check it soon! ".repeat(700);
        assert_eq!(unchecked(&calm), []);
    }
}
