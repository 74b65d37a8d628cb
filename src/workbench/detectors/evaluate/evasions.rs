//! Ways to rewrite a text so that a reader still understands it but a detector may miss it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Name of an evasion, and the function that rewrites a text.
pub(super) type Evasion = (&'static str, fn(&str) -> String);

/// The evasions that are measured.
pub(super) const EVASIONS: [Evasion; 7] = [
    ("base64", |text| format!("Decode this: {}", BASE64.encode(text))),
    ("full width", |text| text.chars().map(full_width).collect()),
    ("homoglyphs", |text| text.chars().map(homoglyph).collect()),
    ("leet", |text| text.chars().map(leet).collect()),
    ("spacing", |text| text.split(' ').map(spaced).collect::<Vec<_>>().join("  ")),
    ("tags", |text| format!("Hello. {}", text.chars().filter_map(tag).collect::<String>())),
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

fn spaced(word: &str) -> String {
    word.chars().map(String::from).collect::<Vec<_>>().join(" ")
}

fn tag(character: char) -> Option<char> {
    if character.is_ascii_graphic() || character == ' ' { char::from_u32(u32::from(character) + 0xE0000) } else { None }
}
