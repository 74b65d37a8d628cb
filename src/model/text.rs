//! Characters that mislead a reader.

use std::fmt::Write as _;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

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
