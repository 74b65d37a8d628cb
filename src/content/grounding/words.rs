//! Words in the form in which grounding compares them, its word lists, and the words of the sources.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::LazyLock;

use regex::{Match, Regex};

use crate::content::grounding::hash::{Finished, Hash, Hashes};
use crate::content::pattern::constant;
use crate::model::finding::Span;
use crate::model::part::Part;

/// A compiled pattern; `None` if it does not compile, which tests rule out.
pub(super) type Pattern = LazyLock<Option<Regex>>;

/// One list per line, `name: entries`. An entry is a set of words separated by `|`, optionally with a meaning
/// (`meaning=words`); `_` is a space.
const LISTS: &str = include_str!("lists.txt");
/// Ordinary English words. A capital does not make one of them a name.
const ORDINARY: &str = include_str!("ordinary.txt");
/// Maximum number of words in a row that are also stored joined, as codes and telephone numbers need.
const ROW_MAX: usize = 6;
/// Maximum length of an abbreviation made of initials.
const INITIALS_MAX: usize = 6;
/// Length of the shortest and of the longest word that is compared with tolerance for a typing error, in
/// bytes.
const SLIP_MIN: usize = 7;
const SLIP_MAX: usize = 24;
/// Length of the longest word or phrase of the lists, in bytes.
const LISTED_MAX: usize = 32;

/// The name of a list, and the meaning that it gives a word.
type Entry = (&'static str, &'static str);

/// The lists that contain each word, by the word's hash.
static BY_WORD: LazyLock<HashMap<u64, Vec<Entry>, BuildHasherDefault<Finished>>> = LazyLock::new(|| {
    let mut by_word: HashMap<u64, Vec<Entry>, _> = HashMap::default();
    for (list, entries) in LISTS.lines().filter_map(|line| line.split_once(": ")) {
        for entry in entries.split(' ') {
            let (meaning, words) = entry.split_once('=').unwrap_or((entry, entry));
            words.split('|').for_each(|word| by_word.entry(hash(word)).or_default().push((list, meaning)));
        }
    }
    by_word
});
static ORDINARY_WORDS: LazyLock<Hashes> = LazyLock::new(|| ORDINARY.split_whitespace().map(hash).collect());
static ORDINARY_STEMS: LazyLock<Hashes> =
    LazyLock::new(|| ORDINARY.split_whitespace().filter(|word| word.len() > 4).map(|word| hash(&stem(word))).collect());
static SUFFIXES: LazyLock<Vec<&str>> = LazyLock::new(|| words_of("suffixes"));

/// Compiles a pattern in which `\b` recognises only ASCII words, which is much faster in other texts.
pub(super) fn pattern(written: &str) -> Option<Regex> {
    constant(&written.replace(r"\b", r"(?-u:\b)"))
}

pub(super) fn words_of(list: &str) -> Vec<&'static str> {
    let line = LISTS.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| *name == list);
    let entries = line.into_iter().flat_map(|(_, entries)| entries.split(' '));
    entries.flat_map(|entry| entry.split_once('=').map_or(entry, |(_, words)| words).split('|')).collect()
}

/// Returns the words of a list as alternatives of a pattern, the longest first.
pub(super) fn alternatives(list: &str) -> String {
    let mut words: Vec<String> = words_of(list).into_iter().map(|word| regex::escape(word).replace('_', " ")).collect();
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    words.join("|")
}

/// Returns the meanings that the entries of a list give a lower-case word.
pub(super) fn meanings(list: &str, word: &str) -> impl Iterator<Item = &'static str> {
    BY_WORD.get(&hash(word)).into_iter().flatten().filter(move |(of, _)| *of == list).map(|(_, meaning)| *meaning)
}

/// Returns the first meaning that a list gives a word, ignoring case.
pub(super) fn meaning(list: &str, word: &str) -> Option<&'static str> {
    // Most words are not listed, and the length or the first character shows that for many of them.
    if word.len() > LISTED_MAX || word.starts_with(|first: char| first.is_ascii_digit() || first.is_whitespace()) {
        return None;
    }
    let mut lower = [0; LISTED_MAX];
    let lower = lower.get_mut(..word.len())?;
    lower.copy_from_slice(word.as_bytes());
    lower.make_ascii_lowercase();
    match std::str::from_utf8(lower) {
        Ok(lower) if lower.is_ascii() => meanings(list, lower).next(),
        Ok(_) | Err(_) => meanings(list, &word.to_lowercase()).next(),
    }
}

/// Returns whether one of these lists contains a lower-case word.
pub(super) fn is_any(lists: &[&str], word: &str) -> bool {
    BY_WORD.get(&hash(word)).is_some_and(|entries| entries.iter().any(|(list, _)| lists.contains(list)))
}

pub(super) fn is_ordinary(word: &str) -> bool {
    let known = |words: &Hashes, word: &str| words.contains(&hash(word));
    known(&ORDINARY_WORDS, word) || known(&ORDINARY_WORDS, &singular(word)) || known(&ORDINARY_STEMS, &stem(word))
}

fn hash(word: &str) -> u64 {
    Hash::of(word).finish()
}

pub(super) fn matches<'t>(pattern: &'static Pattern, text: &'t str) -> impl Iterator<Item = Match<'t>> {
    pattern.as_ref().into_iter().flat_map(|pattern| pattern.find_iter(text))
}

/// Returns the character that ends here.
pub(super) fn sign_before(text: &str, at: usize) -> Option<char> {
    text.get(..at)?.chars().next_back()
}

/// Returns the character that begins here.
pub(super) fn sign_after(text: &str, at: usize) -> Option<char> {
    text.get(at..)?.chars().next()
}

/// Maximum number of characters that are read of the word before a place.
const WORD_MAX: usize = 64;

/// Returns the word before this place in lower case, and where it begins.
pub(super) fn word_before(text: &str, at: usize) -> (String, usize) {
    let before = text.part(..at).trim_end_matches(|sign: char| sign.is_whitespace() || "\"':=(".contains(sign));
    // Only the end of a longer word is read, because no listed word is that long.
    let length: usize =
        before.chars().rev().take(WORD_MAX).take_while(|sign| sign.is_alphanumeric()).map(char::len_utf8).sum();
    let start = before.len() - length;
    (before.part(start..).to_lowercase(), start)
}

/// Returns the word, or else the single character, after at most one space or hyphen, and where it ends.
pub(super) fn word_after(text: &str, at: usize) -> (&str, usize) {
    let rest = text.part(at..);
    let word = rest.strip_prefix([' ', '-']).unwrap_or(rest);
    let letters = word.len() - word.trim_start_matches(char::is_alphabetic).len();
    let length = if letters == 0 { word.chars().next().map_or(0, char::len_utf8) } else { letters };
    (word.part(..length), at + rest.len() - word.len() + length)
}

#[derive(Clone, Debug)]
pub(super) struct Token<'t> {
    pub(super) span: Span,
    /// The word as it is written in the text.
    pub(super) written: &'t str,
    /// The word as it is compared: in lower case, without dots, apostrophes and the genitive.
    pub(super) word: Cow<'t, str>,
    /// Hash of `word`.
    hash: Hash,
}

impl Token<'_> {
    pub(super) fn is_capital(&self) -> bool {
        self.written.chars().next().is_some_and(char::is_uppercase)
    }

    pub(super) fn is_listed(&self, lists: &[&str]) -> bool {
        BY_WORD.get(&self.hash.finish()).is_some_and(|entries| entries.iter().any(|(list, _)| lists.contains(list)))
    }
}

/// Splits a text into words: rows of letters and digits, possibly joined by an apostrophe, and abbreviations
/// such as `U.S.`.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::with_capacity(text.len() / 5);
    let mut at = 0;
    while let Some(first) = text.get(at..).and_then(|rest| rest.chars().next()) {
        if !first.is_alphanumeric() {
            at += first.len_utf8();
            continue;
        }
        let end = abbreviation(text, at).unwrap_or_else(|| word(text, at));
        let written = text.part(at..end);
        let word = compared(written);
        tokens.push(Token { span: (at, end), written, hash: Hash::of(&word), word });
        at = end.max(at + 1);
    }
    tokens
}

/// Returns the end of the abbreviation that begins here: at least two letters, each followed by a dot.
fn abbreviation(text: &str, at: usize) -> Option<usize> {
    let pairs = text
        .as_bytes()
        .get(at..)?
        .chunks_exact(2)
        .take_while(|pair| matches!(pair, [letter, b'.'] if letter.is_ascii_alphabetic()));
    let count = pairs.count();
    (count >= 2).then_some(at + 2 * count)
}

/// Returns the end of the word that begins here.
fn word(text: &str, at: usize) -> usize {
    let mut end = at;
    let mut rest = text.part(at..).chars().peekable();
    while let Some(sign) = rest.next() {
        let joins = sign == '\'' && rest.peek().is_some_and(|next| next.is_alphanumeric());
        if !sign.is_alphanumeric() && !joins {
            break;
        }
        end += sign.len_utf8();
    }
    end
}

fn compared(written: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if written.bytes().all(plain) {
        return Cow::Borrowed(written);
    }
    let mut word = written.to_lowercase();
    if word.contains(['.', '\'']) {
        word = word.strip_suffix("'s").unwrap_or(&word).replace(['.', '\''], "");
    }
    Cow::Owned(word)
}

/// Removes the ending of the plural.
pub(super) fn singular(word: &str) -> Cow<'_, str> {
    let ends = |endings: &[&str]| endings.iter().any(|ending| word.ends_with(ending));
    match word.len() {
        5.. if ends(&["ies"]) => Cow::Owned(format!("{}y", word.strip_suffix("ies").unwrap_or(word))),
        5.. if ends(&["ses", "xes", "zes", "ches", "shes"]) => Cow::Borrowed(word.strip_suffix("es").unwrap_or(word)),
        4.. if !ends(&["ss", "us", "is"]) => Cow::Borrowed(word.strip_suffix('s').unwrap_or(word)),
        _ => Cow::Borrowed(word),
    }
}

/// Returns an approximate stem that related words have in common.
pub(super) fn stem(word: &str) -> String {
    let word = singular(word);
    let cut = SUFFIXES.iter().find_map(|suffix| word.strip_suffix(suffix).filter(|rest| rest.len() >= 4));
    let mut stem = cut.unwrap_or(&word).to_owned();
    let mut last = stem.chars().rev();
    if stem.len() > 4 && last.next().is_some_and(|sign| !"aeiou".contains(sign) && last.next() == Some(sign)) {
        stem.pop();
    }
    if stem.len() > 4 { stem.trim_end_matches('e').to_owned() } else { stem }
}

/// The words of the sources, stored as hashes because only membership is queried.
#[derive(Debug, Default)]
pub(super) struct Words {
    words: Hashes,
    /// Joined words, abbreviations made of initials, singulars, and the numbers of ordinals.
    rows: Hashes,
    stems: Hashes,
    beginnings: Hashes,
    /// Long words without one of their letters: two words that differ by one typing error share such a form.
    slips: Hashes,
}

impl Words {
    /// Adds the words of a text: singly, joined with the next one, joined in longer rows if these contain
    /// digits, and as initials.
    pub(super) fn add(&mut self, tokens: &[Token<'_>]) {
        let mut initials: VecDeque<Hash> = VecDeque::with_capacity(INITIALS_MAX);
        let has_digit = |token: &Token<'_>| token.word.bytes().any(|sign| sign.is_ascii_digit());
        // Number of words with digits among the `ROW_MAX` words from here on.
        let mut digits = tokens.iter().take(ROW_MAX).filter(|token| has_digit(token)).count();
        for (position, token) in tokens.iter().enumerate() {
            self.add_word(token);
            let most = if digits > 0 { ROW_MAX } else { 2 };
            digits -= usize::from(has_digit(token));
            digits += usize::from(tokens.get(position + ROW_MAX).is_some_and(has_digit));
            let mut row = token.hash;
            for next in tokens.iter().skip(position + 1).take(most - 1) {
                row = row.then(next.hash);
                self.rows.insert(row.finish());
            }
            if token.is_capital() {
                if initials.len() == INITIALS_MAX {
                    initials.pop_front();
                }
                initials.extend(token.word.chars().next().map(|first| Hash::of(first.encode_utf8(&mut [0; 4]))));
            } else if !["of", "and", "for", "the", "de", "in"].contains(&&*token.word) {
                initials.clear();
            }
            let mut latest = initials.iter().rev();
            if let Some(last) = latest.next() {
                let mut abbreviation = *last;
                for earlier in latest {
                    abbreviation = earlier.then(abbreviation);
                    self.rows.insert(abbreviation.finish());
                }
            }
        }
    }

    fn add_word(&mut self, token: &Token<'_>) {
        let word = &*token.word;
        if !self.words.insert(token.hash.finish()) {
            return;
        }
        self.stems.insert(hash(&stem(word)));
        let one = singular(word);
        if one != word {
            self.rows.insert(hash(&one));
        }
        if word.starts_with(|first: char| first.is_ascii_digit()) {
            self.rows.insert(Hash::of(word.trim_end_matches(char::is_alphabetic)).finish());
        }
        self.beginnings.extend(beginning(word).map(hash));
        if (SLIP_MIN - 1..=SLIP_MAX).contains(&word.len()) {
            self.slips.extend(without_one_letter(word));
        }
    }

    /// Returns whether a source has this word literally, or as a joined form.
    pub(super) fn contains(&self, word: &str) -> bool {
        let hash = hash(word);
        self.words.contains(&hash) || self.rows.contains(&hash)
    }

    /// Returns whether a source has a word in singular or plural, as an equivalent, as initials, or with a
    /// typing error.
    pub(super) fn has(&self, word: &str) -> bool {
        let equivalent =
            || meanings("equivalents", word).flat_map(|group| group.split('|')).any(|other| self.contains(other));
        self.contains(word) || self.contains(&singular(word)) || equivalent() || self.has_slip(word)
    }

    fn has_slip(&self, word: &str) -> bool {
        (SLIP_MIN..=SLIP_MAX).contains(&word.len())
            && word.chars().all(char::is_alphabetic)
            && without_one_letter(word).any(|form| self.slips.contains(&form))
    }

    /// Returns whether a source has a word or a related one.
    pub(super) fn has_like(&self, word: &str) -> bool {
        let is = |set: &Hashes, form: &str| set.contains(&hash(form));
        self.has(word)
            || is(&self.stems, &stem(word))
            || beginning(word).is_some_and(|start| is(&self.beginnings, start))
    }
}

/// Returns the hashes of a word and of the word without each of its letters except the first.
fn without_one_letter(word: &str) -> impl Iterator<Item = u64> {
    let letters = word.char_indices().skip(1).map(|(at, letter)| (at, at + letter.len_utf8()));
    let without =
        letters.filter_map(|(from, to)| Some(Hash::of(word.get(..from)?).then(Hash::of(word.get(to..)?)).finish()));
    std::iter::once(hash(word)).chain(without)
}

/// Returns the first five letters, which related words have in common; `None` for a shorter word.
fn beginning(word: &str) -> Option<&str> {
    word.char_indices().nth(4).and_then(|(at, last)| word.get(..at + last.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        for list in [
            "equivalents",
            "greetings",
            "months",
            "units",
            "endings",
            "suffixes",
            "domains",
            "person",
            "verbs",
            "attribute",
            "fillers",
            "codes",
        ] {
            assert!(words_of(list).len() > 8, "{list}");
        }
        assert_eq!(meaning("currencies", "Euros"), Some("EUR"));
        assert_eq!(meanings("equivalents", "british").count(), 2);
        assert!(is_ordinary("deliveries") && !is_ordinary("swiftship"));
        assert!(LISTS.lines().all(|line| line.contains(": ") && !line.contains("  ") && !line.ends_with(' ')));
    }

    #[test]
    fn the_word_before_a_place_is_read_only_so_far_back() {
        assert_eq!(word_before("wait for: ", 10), ("for".into(), 5));
        let long = "w".repeat(10 * WORD_MAX);
        assert_eq!(word_before(&long, long.len()), ("w".repeat(WORD_MAX), 9 * WORD_MAX));
    }

    #[test]
    fn words_have_one_form() {
        let words = |text: &'static str| tokens(text).into_iter().map(|token| token.word).collect::<Vec<_>>();
        assert_eq!(
            words("The U.S. store's staff don't re-use O'Hara_2"),
            ["the", "us", "store", "staff", "dont", "re", "use", "ohara", "2"]
        );
        for (word, one) in
            [("policies", "policy"), ("boxes", "box"), ("shoes", "shoe"), ("address", "address"), ("status", "status")]
        {
            assert_eq!(singular(word), one);
        }
        assert_eq!(stem("shipping"), stem("shipped"));
    }

    #[test]
    fn a_source_has_words_in_other_forms() {
        let mut held = Words::default();
        held.add(&tokens("Bill ordered the order AB-12-34 from Harbour Freight Union in the United States."));
        for word in ["william", "orders", "ab1234", "hfu", "american", "harbuor", "freigth"] {
            assert!(held.has(word), "{word}");
        }
        assert!(!held.has("robert") && !held.has("harbinger") && !held.has("german"));
        assert!(held.has_like("unions") && held.has_like("ordering") && !held.has_like("shipping"));
    }
}
