//! The strings of a JSON text. The result of a tool is mostly names and numbers, among which the words of one hostile string
//! weigh little, so each string is screened by itself.

use crate::model::finding::Span;
use crate::model::part::Part;

/// Fewest spaces of a string that can say something.
const SPACES_MIN: usize = 2;

/// Calls `found` with the place and the content of each string of several words, if the text looks like JSON. Returns whether
/// it does.
pub(super) fn strings(text: &str, mut found: impl FnMut(Span, &str)) -> bool {
    if !text.trim_start().starts_with(['{', '[']) {
        return false;
    }
    let (mut from, mut is_escaped) = (None, false);
    for (at, byte) in text.bytes().enumerate() {
        match (from, byte) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(start), b'"') => {
                from = None;
                let written = text.part(start..=at);
                let content = written.trim_matches('"');
                if content.bytes().filter(u8::is_ascii_whitespace).count() >= SPACES_MIN {
                    // What is no string of JSON is read as it is written.
                    let read = serde_json::from_str::<String>(written);
                    found((start, at + 1), read.as_deref().unwrap_or(content));
                }
            }
            (None, b'"') => from = Some(at),
            (Some(_) | None, _) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn strings_of_several_words_are_found_with_their_places() {
        let text =
            r#" {"id": "a b", "note": "one \"two\" three\nfour", "more": ["x y z", {"k e y": 1}], "open": "a b c d"#;
        let mut all = vec![];
        assert!(strings(text, |(start, end), content| all.push((text[start..end].to_owned(), content.to_owned()))));
        let expected = [
            (r#""one \"two\" three\nfour""#, "one \"two\" three\nfour"),
            (r#""x y z""#, "x y z"),
            (r#""k e y""#, "k e y"),
        ];
        assert_eq!(all, expected.map(|(written, content)| (written.to_owned(), content.to_owned())));
        assert!(!strings(r#"He said "one two three"."#, |_, content| panic!("no JSON: {content}")));
    }
}
