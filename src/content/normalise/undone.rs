//! Removes from the folded view what can hide words in it.

use super::{View, span};
use crate::model::part::Part;

/// Minimum number of single letters in a row that count as a word that was spelled apart.
const SPELLED_MIN: usize = 4;

/// Words of orders to a model whose letters are put in order when they were transposed: `ignroe`.
const TRANSPOSED: [&str; 20] = [
    "administrator",
    "approve",
    "credentials",
    "developer",
    "disregard",
    "everything",
    "execute",
    "forget",
    "ignore",
    "instruction",
    "instructions",
    "override",
    "password",
    "pretend",
    "previous",
    "prompt",
    "refund",
    "restrictions",
    "reveal",
    "system",
];

/// A character of a view, and the bytes of the text that it maps to.
#[derive(Clone, Copy, Debug)]
struct Placed {
    character: char,
    start: u32,
    end: u32,
}

fn placed(view: &View) -> Vec<Placed> {
    if view.map.is_empty() {
        let own = |(at, character): (usize, char)| {
            let (start, end) = span(at, at + character.len_utf8());
            Placed { character, start, end }
        };
        return view.text.char_indices().map(own).collect();
    }
    view.text
        .chars()
        .zip(&view.map)
        .map(|(character, place)| Placed { character, start: place.start, end: place.end })
        .collect()
}

/// Builds the undone view; `None` if there is nothing to undo.
pub(super) fn undone(folded: &View) -> Option<View> {
    let (marked, spelled, leet) = (is_marked(&folded.text), is_spelled(&folded.text), has_leet(&folded.text));
    if !(marked || spelled || leet || has_transposed(&folded.text)) {
        return None;
    }
    let mut characters = placed(folded);
    if marked {
        characters = unmarked(&characters);
    }
    // Removed marks may have separated letters.
    if spelled || marked {
        characters = joined(&characters);
    }
    de_leet(&mut characters);
    transpose(&mut characters);
    let mut view = View { text: String::with_capacity(folded.text.len()), map: Vec::with_capacity(characters.len()) };
    characters.iter().for_each(|placed| view.push(placed.character, (placed.start, placed.end)));
    (view.text != folded.text).then_some(view)
}

/// Returns the word of [`TRANSPOSED`] that has the same letters in another order between the same first and last
/// letter.
fn transposed(word: &str) -> Option<&'static str> {
    let sorted = |word: &str| {
        let mut letters: Vec<u8> = word.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
        letters.sort_unstable();
        letters
    };
    let ends = |word: &str| {
        let lower = |byte: Option<u8>| byte.map(|byte| byte.to_ascii_lowercase());
        (lower(word.bytes().next()), lower(word.bytes().last()))
    };
    TRANSPOSED.iter().copied().find(|known| {
        known.len() == word.len()
            && ends(known) == ends(word)
            && !known.eq_ignore_ascii_case(word)
            && sorted(known) == sorted(word)
    })
}

fn has_transposed(text: &str) -> bool {
    text.split(|sign: char| !sign.is_ascii_alphabetic()).any(|word| transposed(word).is_some())
}

/// Puts the letters of transposed words in order.
fn transpose(characters: &mut [Placed]) {
    for word in characters.split_mut(|placed| !placed.character.is_ascii_alphabetic()) {
        let longest = TRANSPOSED.iter().map(|word| word.len()).max().unwrap_or(0);
        if word.len() > longest {
            continue;
        }
        let written: String = word.iter().map(|placed| placed.character).collect();
        if let Some(known) = transposed(&written) {
            word.iter_mut().zip(known.chars()).for_each(|(placed, letter)| placed.character = letter);
        }
    }
}

/// Joins words that were spelled apart: single letters or digits with one sign between each. Two signs end a
/// word.
fn joined(characters: &[Placed]) -> Vec<Placed> {
    let is = |at: Option<usize>| {
        at.and_then(|at| characters.get(at)).is_some_and(|placed| placed.character.is_alphanumeric())
    };
    let single = |index: usize| is(Some(index)) && !is(index.checked_sub(1)) && !is(Some(index + 1));
    let mut joined = Vec::with_capacity(characters.len());
    let mut index = 0;
    while let Some(placed) = characters.get(index) {
        let mut last = index;
        let mut letters = usize::from(single(index));
        while letters > 0 && single(last + 2) {
            last += 2;
            letters += 1;
        }
        if letters < SPELLED_MIN {
            joined.push(*placed);
            index += 1;
            continue;
        }
        joined.extend(characters.part(index..=last).iter().step_by(2));
        index = last + 1;
    }
    joined
}

/// Returns whether a text has a row of single letters or digits with one sign between each.
fn is_spelled(text: &str) -> bool {
    let (mut before, mut row, mut length) = (2, 0, 0);
    for character in text.chars().chain(['.', '.']) {
        if character.is_ascii_alphanumeric() || !character.is_ascii() && character.is_alphanumeric() {
            length += 1;
            continue;
        }
        row = match (length, before) {
            (1, 1) => row + 1,
            (1, _) => 1,
            _ => 0,
        };
        if row >= SPELLED_MIN {
            return true;
        }
        (before, length) = (length, 0);
    }
    false
}

/// Returns the letter that a digit or sign replaces.
fn stands_for(character: char) -> Option<char> {
    match character {
        '0' => Some('o'),
        '1' | '!' | '|' => Some('i'),
        '3' => Some('e'),
        '4' | '@' => Some('a'),
        '5' | '$' => Some('s'),
        '7' => Some('t'),
        _ => None,
    }
}

/// Returns whether a word mixes letters with characters that replace letters. E-mail addresses and long
/// words, which are usually keys, do not count.
fn is_leet(word: impl DoubleEndedIterator<Item = char> + Clone) -> bool {
    const LONGEST: usize = 24;
    let (mut letters, mut signs, mut length, mut at, mut dot_after_at) = (0, false, 0, false, false);
    // Punctuation at the end of a word replaces no letter.
    let last = word.clone().rev().take(LONGEST).take_while(|character| !character.is_alphanumeric()).count();
    let whole = word.clone().take(LONGEST + 1).count();
    for (index, character) in word.take(LONGEST + 1).enumerate() {
        length += character.len_utf8();
        letters += usize::from(character.is_ascii_alphabetic());
        signs |= index + last < whole && stands_for(character).is_some();
        dot_after_at |= at && character == '.';
        at |= character == '@';
    }
    signs && letters >= 2 && length <= LONGEST && !dot_after_at
}

fn has_leet(text: &str) -> bool {
    if !text.bytes().any(|byte| stands_for(char::from(byte)).is_some()) {
        return false;
    }
    text.split_ascii_whitespace()
        .any(|word| word.bytes().any(|byte| stands_for(char::from(byte)).is_some()) && is_leet(word.chars()))
}

/// Replaces digits and signs with the letters that they imitate.
fn de_leet(characters: &mut [Placed]) {
    for word in characters.split_mut(|placed| placed.character.is_whitespace()) {
        if word.iter().any(|placed| stands_for(placed.character).is_some())
            && is_leet(word.iter().map(|placed| placed.character))
        {
            word.iter_mut()
                .for_each(|placed| placed.character = stands_for(placed.character).unwrap_or(placed.character));
        }
    }
}

/// Returns whether a text has emphasis, tags or character references.
fn is_marked(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().any(|(at, byte)| {
        let next = || bytes.get(at + 1).copied().unwrap_or(b' ');
        match byte {
            b'*' | b'_' | b'`' => true,
            b'~' => next() == b'~',
            b'<' => b"/bBiIsSeEuU".contains(&next()),
            b'&' => {
                next() == b'#'
                    || bytes.get(at..).is_some_and(|rest| rest.starts_with(b"&amp;") || rest.starts_with(b"&nbsp;"))
            }
            _ => false,
        }
    })
}

/// Removes emphasis and tags, and resolves character references.
fn unmarked(characters: &[Placed]) -> Vec<Placed> {
    let mut plain = Vec::with_capacity(characters.len());
    let mut rest = characters;
    while let Some(first) = rest.first() {
        let (length, shown) = match first.character {
            '*' | '_' | '`' | '~' => (1, None),
            // Only a `<` that is closed within 64 characters begins a tag.
            '<' => match rest.iter().take(64).position(|placed| placed.character == '>') {
                Some(close) => (close + 1, None),
                None => (1, Some('<')),
            },
            '&' => reference(rest).map_or((1, Some('&')), |(length, shown)| (length, Some(shown))),
            other => (1, Some(other)),
        };
        if let Some(character) = shown {
            let end = rest.get(length - 1).map_or(first.end, |last| last.end);
            plain.push(Placed { character, start: first.start, end });
        }
        rest = rest.part(length..);
    }
    plain
}

/// Parses the character reference at the beginning of a text; returns its length and the character.
fn reference(characters: &[Placed]) -> Option<(usize, char)> {
    let written: String =
        characters.iter().take(10).map(|placed| placed.character).take_while(|character| *character != ';').collect();
    let length = written.chars().count();
    characters.get(length).filter(|placed| placed.character == ';')?;
    let shown = match written.get(1..)? {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "nbsp" => ' ',
        number => {
            let number = number.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code).filter(|character| !character.is_control())?
        }
    };
    Some((length + 1, shown))
}
