//! Ways to rewrite a text so that a reader still understands it but a detector may miss it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use data_encoding::{BASE32, HEXLOWER};

/// Name of an evasion, and the function that rewrites a text.
pub(super) type Evasion = (&'static str, fn(&str) -> String);

/// The evasions that are measured.
pub(super) const EVASIONS: [Evasion; 13] = [
    ("base32", |text| format!("Decode this: {}", BASE32.encode(text.as_bytes()))),
    ("base64", |text| format!("Decode this: {}", BASE64.encode(text))),
    ("escapes", |text| text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()),
    ("full width", |text| text.chars().map(full_width).collect()),
    ("hexadecimal", |text| format!("Decode this: {}", HEXLOWER.encode(text.as_bytes()))),
    ("homoglyphs", |text| text.chars().map(homoglyph).collect()),
    ("leet", |text| text.chars().map(leet).collect()),
    ("reversal", |text| text.chars().rev().collect()),
    ("rot13", |text| text.chars().map(rot13).collect()),
    ("spacing", |text| text.split(' ').map(spaced).collect::<Vec<_>>().join("  ")),
    ("tags", |text| format!("Hello. {}", text.chars().filter_map(tag).collect::<String>())),
    ("transposition", |text| text.split(' ').map(transposed).collect::<Vec<_>>().join(" ")),
    ("zero width", |text| text.chars().flat_map(|character| [character, '\u{200b}']).collect()),
];

fn full_width(character: char) -> char {
    let moved = if ('!'..='~').contains(&character) { char::from_u32(u32::from(character) + 0xFEE0) } else { None };
    moved.unwrap_or(character)
}

fn homoglyph(character: char) -> char {
    match character {
        'a' => 'а',
        'c' => 'с',
        'e' => 'е',
        'i' => 'і',
        'o' => 'о',
        'p' => 'р',
        's' => 'ѕ',
        'x' => 'х',
        'y' => 'у',
        'A' => 'А',
        'E' => 'Е',
        'I' => 'І',
        'O' => 'О',
        'S' => 'Ѕ',
        other => other,
    }
}

fn leet(character: char) -> char {
    match character {
        'a' | 'A' => '4',
        'e' | 'E' => '3',
        'i' | 'I' => '1',
        'o' | 'O' => '0',
        's' | 'S' => '5',
        't' | 'T' => '7',
        other => other,
    }
}

fn rot13(character: char) -> char {
    let turned = |first: u8, letter: char| {
        u8::try_from(letter).map_or(letter, |letter| char::from(first + (letter - first + 13) % 26))
    };
    match character {
        'a'..='z' => turned(b'a', character),
        'A'..='Z' => turned(b'A', character),
        other => other,
    }
}

/// Swaps the second and the third letter of a long word.
fn transposed(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() > 4 && letters.iter().all(|letter| letter.is_alphabetic()) {
        letters.swap(1, 2);
    }
    letters.into_iter().collect()
}

fn spaced(word: &str) -> String {
    word.chars().map(String::from).collect::<Vec<_>>().join(" ")
}

fn tag(character: char) -> Option<char> {
    if character.is_ascii_graphic() || character == ' ' { char::from_u32(u32::from(character) + 0xE0000) } else { None }
}
