//! The sentences and words of a text, and the language that they are in.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::Lexicon;
use crate::content::normalise::View;
use crate::content::rules::sentences;
use crate::model::finding::Span;

/// Maximum number of sentences that are read; a draft has fewer, and every further one would cost as much again.
const SENTENCES_MAX: usize = 2048;

/// The words of a text, which all lexicons read.
#[derive(Clone, Debug, Default)]
pub struct Words {
    pub(super) sentences: Vec<Sentence>,
}

/// A sentence of a text.
#[derive(Clone, Debug)]
pub(super) struct Sentence {
    /// Where it begins in the text, in bytes.
    pub(super) start: usize,
    pub(super) words: Vec<Word>,
    /// Whether it ends with a question mark.
    pub(super) asks: bool,
    /// Whether it has the mark that begins a question in Spanish.
    pub(super) begins_question: bool,
}

impl Words {
    /// Reads a view of a text.
    pub fn of(text: &str, view: &View) -> Self {
        let read = |(start, end): Span| {
            let sentence = view.text().get(start..end)?;
            let begins_question = sentence.contains('¿');
            let asks = sentence.trim_end().ends_with('?') || begins_question;
            let words = words(sentence, |(from, to)| written(text, view, (start + from, start + to)));
            Some(Sentence { start, words, asks, begins_question })
        };
        Self { sentences: sentences(view.text()).into_iter().take(SENTENCES_MAX).filter_map(read).collect() }
    }
}

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

/// Returns a place of a view as it is written in the text, with its accents composed.
pub(super) fn written<'t>(text: &'t str, view: &View, span: Span) -> Cow<'t, str> {
    let (start, end) = view.original(span);
    // An accent of its own that follows the last letter belongs to it.
    let marks = text.get(end..).unwrap_or("").chars().take_while(|sign| is_combining_mark(*sign)).map(char::len_utf8);
    let written = text.get(start..end + marks.sum::<usize>()).unwrap_or("");
    if written.is_ascii() { Cow::Borrowed(written) } else { Cow::Owned(written.nfc().collect()) }
}

impl Word {
    /// Returns whether the word was written with an accent, or with another letter that is not of English.
    pub(super) fn has_accent(&self) -> bool {
        self.exact.chars().any(|sign| sign.is_alphabetic() && !sign.is_ascii())
    }

    /// Returns whether the word was written in letters, and not as the references or look-alikes of some.
    pub(super) fn is_plain(&self) -> bool {
        self.exact.chars().all(|sign| sign.is_alphanumeric() || sign == '\'')
    }

    /// Returns whether the word is a number, such as 2 or 2nd.
    pub(super) fn is_number(&self) -> bool {
        let ending = self.text.trim_start_matches(|sign: char| sign.is_ascii_digit());
        ending.len() < self.text.len() && ["", "st", "nd", "rd", "th"].contains(&ending)
    }
}

/// Splits a sentence into words in small letters.
pub(super) fn words<'t>(text: &str, exact: impl Fn(Span) -> Cow<'t, str>) -> Vec<Word> {
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
/// A text with this many letters of another script, and with at least one such letter in [`FOREIGN_SHARE`], is in none of the
/// languages, however short it is.
const FOREIGN_MIN: usize = 4;
const FOREIGN_SHARE: usize = 3;

/// Returns the language of a text: that of the lexicon that knows most of its words. `None` if no lexicon knows one, and an
/// empty name if the text is in none of the languages, as far as its length can tell.
pub fn language<'l>(lexicons: &'l [Lexicon], text: &str) -> Option<&'l str> {
    let lower = text.to_lowercase();
    let is_part = |sign: char| sign.is_alphabetic() || sign == '\'' || sign == '’';
    let words: Vec<&str> = lower.split(|sign: char| !is_part(sign)).filter(|word| !word.is_empty()).collect();
    let known = lexicons.iter().map(|lexicon| (lexicon.knows(words.iter().copied()), lexicon));
    let (known, lexicon) = known.max_by_key(|(known, _)| *known)?;
    let letters = || text.chars().filter(|sign| sign.is_alphabetic());
    let foreign = letters().filter(|sign| !is_latin(*sign)).count();
    let is_foreign = foreign >= FOREIGN_MIN && foreign * FOREIGN_SHARE > letters().count();
    match is_foreign || (words.len() >= TOLD_MIN && known * KNOWN_SHARE < words.len()) {
        true => Some(""),
        false => (known > 0).then_some(lexicon.language.as_str()),
    }
}

/// Returns whether a letter is one of the Latin script, in whatever form.
fn is_latin(letter: char) -> bool {
    matches!(letter, '\0'..='\u{24F}' | '\u{1E00}'..='\u{1EFF}' | '\u{FF21}'..='\u{FF5A}' | '\u{1D400}'..='\u{1D7FF}')
}
