//! Words as the grounding check compares them, its word lists, and the words of the sources.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::LazyLock;

use regex::{Match, Regex};

use crate::content::grounding::hash::{Finished, Hash, Hashes};

/// Bytes of a text, from and to.
pub(super) type Span = (usize, usize);
/// A pattern; `None` if it were none, which tests rule out.
pub(super) type Pattern = LazyLock<Option<Regex>>;

/// One list a line, `name: entries`. An entry is words parted by `|`, which may have a meaning, `meaning=words`; `_` stands for a space.
const LISTS: &str = include_str!("lists.txt");
/// Words that are ordinary English: with a capital they need not be a name.
const ORDINARY: &str = include_str!("ordinary.txt");
/// The most words in a row that are also known run together, as codes and telephone numbers are.
const ROW_MAX: usize = 6;
/// The most letters of an abbreviation by initials.
const INITIALS_MAX: usize = 6;
/// The shortest and the longest word that may be another one but for a slip of the pen, in bytes.
const SLIP_MIN: usize = 7;
const SLIP_MAX: usize = 24;
/// The longest word or phrase of the lists, in bytes.
const LISTED_MAX: usize = 32;

/// A list's name, and what it says a word means.
type Entry = (&'static str, &'static str);

/// The lists that each word is in. The key is the word's hash.
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

/// A pattern in which `\b` knows the words of ASCII alone, which is much faster in other texts.
pub(super) fn pattern(written: &str) -> Option<Regex> {
    Regex::new(&written.replace(r"\b", r"(?-u:\b)")).ok()
}

/// All words of a list, in its order.
pub(super) fn words_of(list: &str) -> Vec<&'static str> {
    let line = LISTS.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| *name == list);
    let entries = line.into_iter().flat_map(|(_, entries)| entries.split(' '));
    entries.flat_map(|entry| entry.split_once('=').map_or(entry, |(_, words)| words).split('|')).collect()
}

/// The words of a list as alternatives of a pattern, the longest first.
pub(super) fn alternatives(list: &str) -> String {
    let mut words: Vec<String> = words_of(list).into_iter().map(|word| regex::escape(word).replace('_', " ")).collect();
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    words.join("|")
}

/// What a list says a word in small letters means, in any of its entries.
pub(super) fn meanings(list: &str, word: &str) -> impl Iterator<Item = &'static str> {
    BY_WORD.get(&hash(word)).into_iter().flatten().filter(move |(of, _)| *of == list).map(|(_, meaning)| *meaning)
}

/// What a list says a word means first, whatever its letters' case.
pub(super) fn meaning(list: &str, word: &str) -> Option<&'static str> {
    // Most words are not listed, and most of those show it by their length or first sign.
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

/// Whether a word in small letters is in one of these lists.
pub(super) fn is_any(lists: &[&str], word: &str) -> bool {
    BY_WORD.get(&hash(word)).is_some_and(|entries| entries.iter().any(|(list, _)| lists.contains(list)))
}

/// Whether a word is ordinary English.
pub(super) fn is_ordinary(word: &str) -> bool {
    let known = |words: &Hashes, word: &str| words.contains(&hash(word));
    known(&ORDINARY_WORDS, word) || known(&ORDINARY_WORDS, &singular(word)) || known(&ORDINARY_STEMS, &stem(word))
}

/// A word's hash as it stands in sets.
fn hash(word: &str) -> u64 {
    Hash::of(word).finish()
}

/// Where a pattern matches.
pub(super) fn matches<'t>(pattern: &'static Pattern, text: &'t str) -> impl Iterator<Item = Match<'t>> {
    pattern.as_ref().into_iter().flat_map(|pattern| pattern.find_iter(text))
}

/// The character that ends here.
pub(super) fn sign_before(text: &str, at: usize) -> Option<char> {
    text.get(..at)?.chars().next_back()
}

/// The character that begins here.
pub(super) fn sign_after(text: &str, at: usize) -> Option<char> {
    text.get(at..)?.chars().next()
}

/// How far back the word before a number is read, in characters.
const WORD_MAX: usize = 64;

/// The word before this place in small letters, and where it begins.
pub(super) fn word_before(text: &str, at: usize) -> (String, usize) {
    let before = text.get(..at).unwrap_or_default().trim_end_matches(|sign: char| sign.is_whitespace() || "\"':=(".contains(sign));
    // Of a longer one its end: it is none of the words that are looked for.
    let length: usize = before.chars().rev().take(WORD_MAX).take_while(|sign| sign.is_alphanumeric()).map(char::len_utf8).sum();
    let start = before.len() - length;
    (before.get(start..).unwrap_or_default().to_lowercase(), start)
}

/// The word, or else the one sign, that follows here after at most one space or hyphen; and where it ends.
pub(super) fn word_after(text: &str, at: usize) -> (&str, usize) {
    let rest = text.get(at..).unwrap_or_default();
    let word = rest.strip_prefix([' ', '-']).unwrap_or(rest);
    let letters = word.len() - word.trim_start_matches(char::is_alphabetic).len();
    let length = if letters == 0 { word.chars().next().map_or(0, char::len_utf8) } else { letters };
    (word.get(..length).unwrap_or_default(), at + rest.len() - word.len() + length)
}

/// A word of a text.
#[derive(Clone, Debug)]
pub(super) struct Token<'t> {
    /// Where it stands.
    pub(super) span: Span,
    /// As it stands there.
    pub(super) written: &'t str,
    /// As it is compared: in small letters, without dots, apostrophes and the genitive.
    pub(super) word: Cow<'t, str>,
    /// The hash of that.
    hash: Hash,
}

impl Token<'_> {
    /// Whether it begins with a capital.
    pub(super) fn is_capital(&self) -> bool {
        self.written.chars().next().is_some_and(char::is_uppercase)
    }

    /// Whether it is in one of these lists.
    pub(super) fn is_listed(&self, lists: &[&str]) -> bool {
        BY_WORD.get(&self.hash.finish()).is_some_and(|entries| entries.iter().any(|(list, _)| lists.contains(list)))
    }
}

/// The words of a text: rows of letters and digits, which an apostrophe may join, and abbreviations such as `U.S.`.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::with_capacity(text.len() / 5);
    let mut at = 0;
    while let Some(first) = text.get(at..).and_then(|rest| rest.chars().next()) {
        if !first.is_alphanumeric() {
            at += first.len_utf8();
            continue;
        }
        let end = abbreviation(text, at).unwrap_or_else(|| word(text, at));
        let written = text.get(at..end).unwrap_or_default();
        let word = compared(written);
        tokens.push(Token { span: (at, end), written, hash: Hash::of(&word), word });
        at = end.max(at + 1);
    }
    tokens
}

/// Where an abbreviation ends that begins here: at least two letters, each with a dot.
fn abbreviation(text: &str, at: usize) -> Option<usize> {
    let pairs =
        text.as_bytes().get(at..)?.chunks_exact(2).take_while(|pair| matches!(pair, [letter, b'.'] if letter.is_ascii_alphabetic()));
    let count = pairs.count();
    (count >= 2).then_some(at + 2 * count)
}

/// Where a word ends that begins here.
fn word(text: &str, at: usize) -> usize {
    let mut end = at;
    let mut rest = text.get(at..).unwrap_or_default().chars().peekable();
    while let Some(sign) = rest.next() {
        let joins = sign == '\'' && rest.peek().is_some_and(|next| next.is_alphanumeric());
        if !sign.is_alphanumeric() && !joins {
            break;
        }
        end += sign.len_utf8();
    }
    end
}

/// A word in the form in which words are compared.
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

/// A word without the plural's ending.
pub(super) fn singular(word: &str) -> Cow<'_, str> {
    let ends = |endings: &[&str]| endings.iter().any(|ending| word.ends_with(ending));
    match word.len() {
        5.. if ends(&["ies"]) => Cow::Owned(format!("{}y", word.strip_suffix("ies").unwrap_or(word))),
        5.. if ends(&["ses", "xes", "zes", "ches", "shes"]) => Cow::Borrowed(word.strip_suffix("es").unwrap_or(word)),
        4.. if !ends(&["ss", "us", "is"]) => Cow::Borrowed(word.strip_suffix('s').unwrap_or(word)),
        _ => Cow::Borrowed(word),
    }
}

/// What a word and those made of it have in common, roughly.
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

/// The words of the sources, each by a hash: only whether one is there is ever asked.
#[derive(Debug, Default)]
pub(super) struct Words {
    words: Hashes,
    /// Words in a row run together, initials, singulars, the numbers of ordinals.
    rows: Hashes,
    stems: Hashes,
    beginnings: Hashes,
    /// Long words without one of their letters: two words that differ by one slip have such a form in common.
    slips: Hashes,
}

impl Words {
    /// Adds those of a text: each by itself, run together with the next, in a row with digits, and as initials.
    pub(super) fn add(&mut self, tokens: &[Token<'_>]) {
        let mut initials: VecDeque<Hash> = VecDeque::with_capacity(INITIALS_MAX);
        let has_digit = |token: &Token<'_>| token.word.bytes().any(|sign| sign.is_ascii_digit());
        // How many words with digits are among those from here on that a row may hold.
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

    /// Whether this stands in a source as it is.
    pub(super) fn contains(&self, word: &str) -> bool {
        let hash = hash(word);
        self.words.contains(&hash) || self.rows.contains(&hash)
    }

    /// Whether a source has a word: in the plural or not, by an equivalent, by its initials, or but for a slip of the pen.
    pub(super) fn has(&self, word: &str) -> bool {
        let equivalent = || meanings("equivalents", word).flat_map(|group| group.split('|')).any(|other| self.contains(other));
        self.contains(word) || self.contains(&singular(word)) || equivalent() || self.has_slip(word)
    }

    fn has_slip(&self, word: &str) -> bool {
        (SLIP_MIN..=SLIP_MAX).contains(&word.len())
            && word.chars().all(char::is_alphabetic)
            && without_one_letter(word).any(|form| self.slips.contains(&form))
    }

    /// Whether a source has a word, or one made of the same.
    pub(super) fn has_like(&self, word: &str) -> bool {
        let is = |set: &Hashes, form: &str| set.contains(&hash(form));
        self.has(word) || is(&self.stems, &stem(word)) || beginning(word).is_some_and(|start| is(&self.beginnings, start))
    }
}

/// Hashes of a word itself, and of it without each of its letters but the first.
fn without_one_letter(word: &str) -> impl Iterator<Item = u64> {
    let letters = word.char_indices().skip(1).map(|(at, letter)| (at, at + letter.len_utf8()));
    let without = letters.filter_map(|(from, to)| Some(Hash::of(word.get(..from)?).then(Hash::of(word.get(to..)?)).finish()));
    std::iter::once(hash(word)).chain(without)
}

/// The five letters that words made of the same begin with.
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
        for (word, one) in [("policies", "policy"), ("boxes", "box"), ("shoes", "shoe"), ("address", "address"), ("status", "status")] {
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
