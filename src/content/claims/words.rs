//! The words of a text, and the language that they are in.

use super::Lexicon;

/// A word of a sentence.
#[derive(Clone, Debug)]
pub(super) struct Word {
    /// The word without accents and look-alikes.
    pub(super) text: String,
    /// The word as it is written.
    pub(super) exact: String,
    pub(super) span: (usize, usize),
    /// The sign before the word that ends a clause.
    pub(super) after: Option<char>,
    pub(super) is_quoted: bool,
}

/// Splits a sentence into words in small letters.
pub(super) fn words<'t>(text: &str, exact: impl Fn((usize, usize)) -> &'t str) -> Vec<Word> {
    let mut words: Vec<Word> = vec![];
    let (mut after, mut is_quoted, mut start) = (None, false, None);
    let is_part = |sign: char| sign.is_alphanumeric() || sign == '\'';
    for (at, sign) in text.char_indices().chain([(text.len(), ' ')]) {
        if is_part(sign) {
            start.get_or_insert(at);
            continue;
        }
        if let Some(from) = start.take() {
            let word = text.get(from..at).unwrap_or("").trim_matches('\'').to_lowercase();
            if !word.is_empty() {
                let exact = exact((from, at)).trim_matches('\'').to_lowercase();
                words.push(Word { text: word, exact, span: (from, at), after: after.take(), is_quoted });
            }
        }
        match sign {
            ',' | ';' | ':' | '(' | ')' | '–' | '—' | '\n' => after = Some(sign),
            '"' | '«' | '»' | '“' | '”' | '„' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    words
}

/// Fewest words of a text that can be told to be in none of the languages.
const TOLD_MIN: usize = 12;
/// A text is in a language if at least one word in this many is known there.
const KNOWN_SHARE: usize = 5;

/// Returns the language of a text: that of the lexicon that knows most of its words. `None` if no lexicon knows one, and an
/// empty name if the text is long enough to tell that it is in none of the languages.
pub fn language<'l>(lexicons: &'l [Lexicon], text: &str) -> Option<&'l str> {
    let lower = text.to_lowercase();
    let is_part = |sign: char| sign.is_alphabetic() || sign == '\'' || sign == '’';
    let words: Vec<&str> = lower.split(|sign: char| !is_part(sign)).filter(|word| !word.is_empty()).collect();
    let known = lexicons.iter().map(|lexicon| (lexicon.knows(words.iter().copied()), lexicon));
    let (known, lexicon) = known.max_by_key(|(known, _)| *known)?;
    match words.len() >= TOLD_MIN && known * KNOWN_SHARE < words.len() {
        true => Some(""),
        false => (known > 0).then_some(lexicon.language.as_str()),
    }
}
