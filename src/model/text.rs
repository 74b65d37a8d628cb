//! Characters that mislead a reader.

use std::fmt::Write as _;

/// Characters that could forge a line, or the look of one: controls, line separators, bidi marks, zero-width characters, tags.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e01ef}')
}

/// The text with every such character written out, so that a reader sees all of it and is misled by none.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unprintable(character) {
            // Writing to a string can't fail.
            let _written = write!(shown, "\\u{{{:x}}}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misleads_is_written_out_and_nothing_is_lost() {
        assert_eq!(visible("pay \u{202e}0001\u{202c} EUR\n\u{1b}[31m"), "pay \\u{202e}0001\\u{202c} EUR\\u{a}\\u{1b}[31m");
        assert_eq!(visible("<b>größer</b> 100 €"), "<b>größer</b> 100 €");
        assert_eq!(visible(&"\u{200b}".repeat(3)), "\\u{200b}\\u{200b}\\u{200b}");
    }
}
