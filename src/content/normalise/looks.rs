//! The look of a character: its decomposition without marks, as ASCII where it resembles ASCII.

use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::model::number::{to_u32, to_usize};
use crate::model::part::Part;
use crate::model::text::{BRAILLE_BLANK, is_unprintable};

/// Maximum number of characters that one character becomes. Compatibility decomposition yields up to 18, but
/// no word that people write needs more than four.
pub(super) const UNFOLDED_MAX: usize = 4;

/// Returns the characters that a character looks like.
pub(super) fn of(character: char) -> impl Iterator<Item = char> {
    UNFOLDED.of(character)
}

/// The look of each character, computed once. Decomposition and look-alikes take several look-ups each, and a
/// text may be full of such characters.
static UNFOLDED: LazyLock<Unfolded> = LazyLock::new(Unfolded::new);

/// Code points from here on are ideographs, which look like no other character, and tags.
const LISTED_MAX: u32 = 0x2_0000;

struct Unfolded {
    /// For each character the offset of its look in `looks` and the number of characters there; [`ITSELF`]
    /// instead of the number if it looks like itself.
    places: Vec<(u32, u8)>,
    looks: Vec<char>,
}

/// Marks a character that looks like itself.
const ITSELF: u8 = u8::MAX;

impl Unfolded {
    fn new() -> Self {
        let mut unfolded = Self { places: vec![], looks: vec![] };
        for code in 0..LISTED_MAX {
            // A surrogate is no character, so it has no look.
            let looks: Vec<char> = char::from_u32(code).map_or_else(Vec::new, unfold);
            let itself = matches!(looks.as_slice(), [one] if u32::from(*one) == code);
            let place = to_u32(unfolded.looks.len());
            // A look has at most `UNFOLDED_MAX` characters.
            unfolded.places.push((place, if itself { ITSELF } else { u8::try_from(looks.len()).unwrap_or(0) }));
            if !itself {
                unfolded.looks.extend(looks);
            }
        }
        unfolded
    }

    fn of(&self, character: char) -> impl Iterator<Item = char> {
        let listed = self.places.get(to_usize(u32::from(character)));
        let (itself, looks) = match listed {
            None => (!is_invisible(character), [].as_slice()),
            Some((_, ITSELF)) => (true, [].as_slice()),
            Some((place, count)) => {
                let start = to_usize(*place);
                (false, self.looks.part(start..start + usize::from(*count)))
            }
        };
        itself.then_some(character).into_iter().chain(looks.iter().copied())
    }
}

/// Computes what a character looks like. Compatibility decomposition separates the combining marks; they and
/// invisible characters are dropped.
fn unfold(character: char) -> Vec<char> {
    let mut looks = vec![];
    for decomposed in std::iter::once(character).nfkd().filter(|part| !is_combining_mark(*part) && !is_invisible(*part))
    {
        like(decomposed, |look| looks.push(look));
    }
    looks.truncate(UNFOLDED_MAX);
    looks
}

/// Returns whether a character is invisible and not white space.
fn is_invisible(character: char) -> bool {
    is_unprintable(character) && !character.is_whitespace() || character == BRAILLE_BLANK
}

/// Pushes the ASCII that a character looks like, or the character itself if it looks like none.
fn like(character: char, mut push: impl FnMut(char)) {
    // Currency signs are kept, because amounts depend on them.
    if matches!(character, '€' | '£' | '¥' | '\u{20A0}'..='\u{20CF}') {
        push(character);
        return;
    }
    if let Some(digit) = digit(character) {
        push(digit);
        return;
    }
    let spelled = match character {
        'ß' | 'ẞ' => "ss",
        'æ' | 'Æ' => "ae",
        'œ' | 'Œ' => "oe",
        'ø' | 'Ø' => "o",
        'ı' => "i",
        'ł' | 'Ł' => "l",
        'đ' | 'Đ' => "d",
        '\u{2018}'..='\u{201B}' | '\u{2032}' | '\u{02BC}' => "'",
        '\u{201C}'..='\u{201F}' | '\u{2033}' | '«' | '»' => "\"",
        '\u{2010}'..='\u{2015}' | '\u{2212}' => "-",
        '\u{2044}' | '\u{2215}' => "/",
        _ => "",
    };
    if !spelled.is_empty() {
        spelled.chars().for_each(push);
        return;
    }
    if character.is_ascii() {
        push(character);
        return;
    }
    if character.is_whitespace() {
        push(if character == '\u{2028}' || character == '\u{2029}' { '\n' } else { ' ' });
        return;
    }
    let mut buffer = [0; 4];
    let skeleton: String = unicode_security::skeleton(character.encode_utf8(&mut buffer)).take(4).collect();
    if !skeleton.is_empty() && skeleton.is_ascii() {
        skeleton.chars().for_each(push);
        return;
    }
    match decancer::cure_char(character, decancer::Options::default()) {
        decancer::Translation::Character(looks) if looks.is_ascii() && !looks.is_ascii_control() => push(looks),
        decancer::Translation::String(looks) if !looks.is_empty() && looks.is_ascii() => looks.chars().for_each(push),
        decancer::Translation::Character(_) | decancer::Translation::String(_) | decancer::Translation::None => {
            push(character)
        }
    }
}

/// Returns the ASCII digit for a decimal digit of another script.
fn digit(character: char) -> Option<char> {
    const ZEROS: [u32; 20] = [
        0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xE50, 0xED0, 0xF20,
        0x1040, 0x17E0, 0x1810, 0x1946, 0xA620,
    ];
    let code = u32::from(character);
    let zero = ZEROS.into_iter().find(|zero| (*zero..zero + 10).contains(&code))?;
    char::from_digit(code - zero, 10)
}
