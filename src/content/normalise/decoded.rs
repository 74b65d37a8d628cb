//! The text that encodings hide: base64, base32, hexadecimal digits, escapes, ROT13 and reversal.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use data_encoding::{BASE32_NOPAD, HEXLOWER_PERMISSIVE};

use super::{View, fold, span};
use crate::model::finding::Span;
use crate::model::part::Part;

/// Length of the shortest run that is tried as base64, base32 or hexadecimal digits.
const ENCODED_MIN: usize = 24;
/// Minimum number of escaped characters in a row.
const ESCAPED_MIN: usize = 4;
/// Minimum number of words of [`TURNED`] that show that a text was turned.
const TURNED_MIN: usize = 2;
/// Words of orders to a model, and those around them, of which a turned text has some. None of them is another word
/// when it is turned.
const TURNED: [&str; 49] = [
    "about",
    "above",
    "all",
    "and",
    "answer",
    "approve",
    "can",
    "disregard",
    "everything",
    "following",
    "for",
    "forget",
    "from",
    "give",
    "have",
    "how",
    "ignore",
    "instruction",
    "instructions",
    "like",
    "message",
    "must",
    "override",
    "please",
    "policy",
    "previous",
    "prior",
    "prompt",
    "refund",
    "respond",
    "reveal",
    "rules",
    "send",
    "should",
    "system",
    "tell",
    "that",
    "the",
    "this",
    "user",
    "what",
    "when",
    "who",
    "will",
    "with",
    "would",
    "write",
    "you",
    "your",
];

/// Builds the decoded view; `None` if there is nothing to decode.
pub(super) fn decoded(text: &str, folded: &View) -> Option<View> {
    let mut view = View::default();
    encoded(text, &mut view);
    escaped(text, &mut view);
    if ROTATED.has(&folded.text) {
        let mut last = (0, 0);
        for (at, sign) in folded.text.char_indices() {
            last = original(folded, at, sign);
            view.push(rot13(sign), last);
        }
        view.push('\n', last);
    }
    if REVERSED.has(&folded.text) {
        folded.text.char_indices().rev().for_each(|(at, sign)| view.push(sign, original(folded, at, sign)));
    }
    (!view.text.is_empty()).then_some(view)
}

/// Returns the bytes of the text that a character of a view stands for.
fn original(view: &View, at: usize, sign: char) -> (u32, u32) {
    let (start, end) = view.original((at, at + sign.len_utf8()));
    span(start, end)
}

/// Decodes the runs of base64, base32 and hexadecimal digits, each on its own line.
fn encoded(text: &str, view: &mut View) {
    let is_encoded = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=');
    let mut at = 0;
    for run in text.as_bytes().split(|byte| !is_encoded(byte)) {
        let start = at;
        at += run.len() + 1;
        if run.len() < ENCODED_MIN {
            continue;
        }
        let readings = [HEXLOWER_PERMISSIVE.decode(run).ok(), base32(run), base64(run)];
        let readable = readings.into_iter().flatten().filter_map(|bytes| String::from_utf8(bytes).ok());
        if let Some(held) = readable.into_iter().find(|held| is_printable(held)) {
            add(view, &held, (start, start + run.len()));
        }
    }
}

fn add(view: &mut View, held: &str, place: Span) {
    let whole = span(place.0, place.1);
    let folded = fold(held, |_, _| whole);
    folded.text.chars().chain(['\n']).for_each(|sign| view.push(sign, whole));
}

/// Returns whether at least nine of ten characters are printed.
fn is_printable(text: &str) -> bool {
    let printable = text.chars().filter(|sign| !sign.is_control() || sign.is_whitespace()).count();
    printable * 10 >= text.chars().count() * 9
}

/// Decodes base32 in capitals, with or without padding.
fn base32(run: &[u8]) -> Option<Vec<u8>> {
    let end = run.iter().rposition(|byte| *byte != b'=')? + 1;
    BASE32_NOPAD.decode(run.part(..end)).ok()
}

fn base64(run: &[u8]) -> Option<Vec<u8>> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    [alphabet::STANDARD, alphabet::URL_SAFE]
        .iter()
        .find_map(|alphabet| GeneralPurpose::new(alphabet, lenient).decode(run).ok())
}

/// Resolves rows of `\u0041`, `\x41` and `%41`, each row on its own line.
fn escaped(text: &str, view: &mut View) {
    let (bytes, mut at) = (text.as_bytes(), 0);
    while at < bytes.len() {
        let (start, mut held, mut count) = (at, vec![], 0);
        while let Some((length, sign)) = escape(bytes.part(at..)) {
            match sign {
                Escape::Byte(byte) => held.push(byte),
                Escape::Sign(sign) => held.extend(sign.encode_utf8(&mut [0; 4]).as_bytes()),
            }
            at += length;
            count += 1;
        }
        if count >= ESCAPED_MIN
            && let Ok(held) = String::from_utf8(held)
        {
            add(view, &held, (start, at));
        }
        if at == start {
            at += 1;
        }
    }
}

/// What one escape stands for.
enum Escape {
    Byte(u8),
    Sign(char),
}

/// Reads the escape that begins here: its length, and what it stands for.
fn escape(bytes: &[u8]) -> Option<(usize, Escape)> {
    let digits = |from: usize, to: usize| {
        let digits = bytes.get(from..to).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match bytes {
        [b'\\', b'u', ..] => Some((6, Escape::Sign(char::from_u32(digits(2, 6)?)?))),
        [b'\\', b'x', ..] => Some((4, Escape::Byte(u8::try_from(digits(2, 4)?).ok()?))),
        [b'%', ..] => Some((3, Escape::Byte(u8::try_from(digits(1, 3)?).ok()?))),
        _ => None,
    }
}

fn rot13(sign: char) -> char {
    let turned = |first: u8| {
        let place = u8::try_from(u32::from(sign) - u32::from(first)).unwrap_or_default();
        char::from(first + (place + 13) % 26)
    };
    match sign {
        'a'..='z' => turned(b'a'),
        'A'..='Z' => turned(b'A'),
        other => other,
    }
}

static ROTATED: LazyLock<Turned> = LazyLock::new(|| Turned::of(|word| word.chars().map(rot13).collect()));
static REVERSED: LazyLock<Turned> = LazyLock::new(|| Turned::of(|word| word.chars().rev().collect()));

/// The words of [`TURNED`], turned, by their length and first letter, which tell most other words apart.
struct Turned(HashMap<(usize, u8), Vec<String>>);

impl Turned {
    fn of(turn: impl Fn(&str) -> String) -> Self {
        let mut words: HashMap<_, Vec<String>> = HashMap::new();
        for word in TURNED.map(turn) {
            if let Some(first) = word.bytes().next() {
                words.entry((word.len(), first)).or_default().push(word);
            }
        }
        Self(words)
    }

    /// Returns whether a text has several of the words.
    fn has(&self, text: &str) -> bool {
        let is_turned = |word: &&str| {
            let first = word.bytes().next().map(|first| first.to_ascii_lowercase());
            let alike = first.and_then(|first| self.0.get(&(word.len(), first)));
            alike.is_some_and(|alike| alike.iter().any(|turned| turned.eq_ignore_ascii_case(word)))
        };
        text.split(|sign: char| !sign.is_ascii_alphabetic()).filter(is_turned).take(TURNED_MIN).count() == TURNED_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_is_another_of_the_list_when_it_is_turned() {
        for word in TURNED {
            let rotated: String = word.chars().map(rot13).collect();
            let reversed: String = word.chars().rev().collect();
            assert!(!TURNED.contains(&&*rotated) && !TURNED.contains(&&*reversed), "{word}");
        }
    }
}
