//! Characters that mislead a reader, and names for error messages.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};
use sha2::{Digest as _, Sha256};

/// Returns whether a character could forge a line, or its appearance. By their Unicode properties these are
/// controls, format characters, line and paragraph separators, and characters that are invisible unless a
/// font supports them (Default_Ignorable_Code_Point).
pub fn is_unprintable(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control();
    }
    let of = CodePointMapData::<GeneralCategory>::new().get(character);
    matches!(
        of,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(character)
}

/// Returns whether a character has no reliable appearance: in some fonts or programs it looks like nothing,
/// like a blank, or like another character. The space is the only blank that a reader expects.
fn is_misleading(character: char) -> bool {
    let of = CodePointMapData::<GeneralCategory>::new().get(character);
    let blank = of == GeneralCategory::SpaceSeparator && character != ' ' || character == BRAILLE_BLANK;
    is_unprintable(character)
        || blank
        || matches!(of, GeneralCategory::PrivateUse | GeneralCategory::Surrogate | GeneralCategory::Unassigned)
}

/// Braille pattern without dots: a symbol by its properties, but it looks blank.
pub const BRAILLE_BLANK: char = '\u{2800}';

/// Returns the text with every misleading character escaped, so that a reader sees all of it.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() && !character.is_ascii_control() || !is_misleading(character) {
            shown.push(character);
        } else {
            // Writing to a string can't fail.
            let _written = write!(shown, "\\u{{{:x}}}", u32::from(character));
        }
    }
    shown
}

/// Returns 16 hex digits of the SHA-256 of an id: enough to find its lines in a log, which must not show the id.
pub fn short_digest(id: &str) -> String {
    hex(Sha256::digest(id).iter().take(8).copied())
}

/// Maximum number of known names in an error message.
const KNOWN_MAX: usize = 8;

/// Returns the end of an error message about an unknown name: the known name that it resembles, or all of
/// them if they are few.
pub fn known<'a>(name: &str, all: impl IntoIterator<Item = &'a str>) -> String {
    let all: BTreeSet<&str> = all.into_iter().collect();
    let likeness = |known: &&&str| strsim::jaro_winkler(name, known);
    let closest = all.iter().filter(|known| likeness(known) > 0.8);
    match closest.max_by(|one, other| likeness(one).total_cmp(&likeness(other))) {
        Some(closest) => format!(": did you mean `{closest}`?"),
        None if all.is_empty() => ": there is none".to_owned(),
        None if all.len() <= KNOWN_MAX => {
            let all: Vec<String> = all.iter().map(|known| format!("`{known}`")).collect();
            format!(": use one of {}", all.join(", "))
        }
        None => String::new(),
    }
}

/// Returns bytes in lower-case hexadecimal.
pub fn hex(bytes: impl IntoIterator<Item = impl std::borrow::Borrow<u8>>) -> String {
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    let bytes = bytes.into_iter();
    let mut text = String::with_capacity(2 * bytes.size_hint().0);
    for byte in bytes {
        text.push(digit(byte.borrow() >> 4));
        text.push(digit(byte.borrow() & 15));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misleads_is_written_out_and_nothing_is_lost() {
        assert_eq!(
            visible("pay \u{202e}0001\u{202c} EUR\n\u{1b}[31m"),
            "pay \\u{202e}0001\\u{202c} EUR\\u{a}\\u{1b}[31m"
        );
        assert_eq!(visible("<b>größer</b> 100 €"), "<b>größer</b> 100 €");
        assert_eq!(visible(&"\u{200b}".repeat(3)), "\\u{200b}\\u{200b}\\u{200b}");
    }

    #[test]
    fn whatever_has_no_look_of_its_own_is_written_out() {
        for character in [
            '\u{1bca0}',
            '\u{1d173}',
            '\u{115f}',
            '\u{3164}',
            '\u{ffa0}',
            '\u{2800}',
            '\u{3000}',
            '\u{a0}',
            '\u{2003}',
            '\u{e000}',
            '\u{f0000}',
            '\u{378}',
            '\u{34f}',
            '\u{17b4}',
            '\u{2028}',
            '\u{85}',
            '\u{e0041}',
            '\u{fe0f}',
        ] {
            assert_eq!(visible(&format!("a{character}b")), format!("a\\u{{{:x}}}b", u32::from(character)));
        }
        for text in ["größer 100 €", "Жук", "日本語", "हिन्दी", "a\u{301}", "😀"] {
            assert_eq!(visible(text), text);
        }
    }
}
