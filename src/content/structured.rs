//! The strings of a JSON text. The result of a tool is mostly names and numbers, among which the words of one hostile string
//! weigh little, so each string is screened by itself.

use crate::model::finding::Span;
use crate::model::part::Part;

/// Fewest spaces of a string that can say something.
const SPACES_MIN: usize = 2;

/// Fewest characters beyond ASCII of a string that says something without spaces.
const OTHER_MIN: usize = 4;
/// Maximum number of strings that are read one by one. Those behind are read in pieces of [`PIECE`] bytes, because each text that is
/// read has a cost of its own.
const STRINGS_MAX: usize = 256;
const PIECE: usize = 4096;

/// Calls `found` with the place and the content of each string that can say something, if the text is JSON. Returns whether it is.
pub(super) fn strings(text: &str, mut found: impl FnMut(Span, &str)) -> bool {
    let looks = text.trim_start().starts_with(['{', '[']);
    if !looks || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return false;
    }
    let (mut from, mut is_escaped, mut count) = (None, false, 0);
    let (mut piece, mut piece_span): (String, Span) = (String::new(), (0, 0));
    for (at, byte) in text.bytes().enumerate() {
        match (from, byte) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), b'\\') => is_escaped = true,
            (Some(start), b'"') => {
                from = None;
                let written = text.part(start..=at);
                let Ok(content) = serde_json::from_str::<String>(written) else { continue };
                let spaces = content.bytes().filter(u8::is_ascii_whitespace).count();
                if spaces < SPACES_MIN && content.chars().filter(|sign| !sign.is_ascii()).count() < OTHER_MIN {
                    continue;
                }
                count += 1;
                if count <= STRINGS_MAX {
                    found((start, at + 1), &content);
                    continue;
                }
                if piece.is_empty() {
                    piece_span.0 = start;
                }
                piece_span.1 = at + 1;
                piece.push_str(&content);
                piece.push('\n');
                if piece.len() >= PIECE {
                    found(piece_span, &piece);
                    piece.clear();
                }
            }
            (None, b'"') => from = Some(at),
            (Some(_) | None, _) => {}
        }
    }
    if !piece.is_empty() {
        found(piece_span, &piece);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn strings_of_several_words_are_found_with_their_places() {
        let text =
            r#" {"id": "a b", "note": "one \"two\" three\nfour", "more": ["x y z", {"k e y": 1}], "other": "Привет"}"#;
        let mut all = vec![];
        assert!(strings(text, |(start, end), content| all.push((text[start..end].to_owned(), content.to_owned()))));
        let expected = [
            (r#""one \"two\" three\nfour""#, "one \"two\" three\nfour"),
            (r#""x y z""#, "x y z"),
            (r#""k e y""#, "k e y"),
            (r#""Привет""#, "Привет"),
        ];
        assert_eq!(all, expected.map(|(written, content)| (written.to_owned(), content.to_owned())));
        let many: Vec<String> = (0..2000).map(|at| format!("a b {at}")).collect();
        let (mut calls, mut read) = (0, 0);
        assert!(strings(&serde_json::to_string(&many).expect("JSON"), |_, content| {
            calls += 1;
            read += content.lines().count();
        }));
        assert!(calls < super::STRINGS_MAX + 10 && read == 2000, "{calls} {read}");
        assert!(!strings("[EXT] what a list does not look like", |_, content| panic!("no JSON: {content}")));
        assert!(!strings(r#"He said "one two three"."#, |_, content| panic!("no JSON: {content}")));
    }
}
