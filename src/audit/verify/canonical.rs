//! Checks in one pass that a line is in canonical form (RFC 8785), and finds its members. A line in this form has no member twice, so
//! that two readers can't read it differently.

use std::borrow::Cow;
use std::ops::Range;

/// Maximum nesting of objects and arrays.
const DEPTH_MAX: usize = 64;
/// Largest integer that the canonical form writes as it is.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Number of members that `verify` reads.
const READ: usize = 12;

/// The places of those values in a line's object that `verify` reads.
#[derive(Debug, Default)]
pub(super) struct Members([Range<usize>; READ]);

/// Returns the index of a member; `None` if it is not read.
fn index(member: &[u8]) -> Option<usize> {
    Some(match member {
        b"before" => 0,
        b"durability" => 1,
        b"durable" => 2,
        b"hash" => 3,
        b"mac" => 4,
        b"prev" => 5,
        b"root" => 6,
        b"seq" => 7,
        b"tree" => 8,
        b"ts" => 9,
        b"type" => 10,
        b"v" => 11,
        _ => return None,
    })
}

impl Members {
    /// Reads the members of a line. `None` if the line is not a JSON object in canonical form.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        std::str::from_utf8(line).ok()?;
        let mut scanner = Scanner { line, at: 0 };
        let mut members = Self::default();
        scanner.object(0, |name, value| {
            let place = index(name).and_then(|index| members.0.get_mut(index));
            place.into_iter().for_each(|place| *place = value.clone());
        })?;
        (scanner.at == line.len()).then_some(members)
    }

    /// Returns the place of a member's value. The member must be one that is read.
    pub(super) fn place(&self, member: &str) -> Option<Range<usize>> {
        self.0.get(index(member.as_bytes())?).filter(|place| !place.is_empty()).cloned()
    }

    /// Returns the text of a member.
    pub(super) fn text<'l>(&self, line: &'l [u8], member: &str) -> Option<Cow<'l, str>> {
        let quoted = line.get(self.place(member)?)?;
        match quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")? {
            plain if memchr::memchr(b'\\', plain).is_none() => std::str::from_utf8(plain).ok().map(Cow::Borrowed),
            _ => serde_json::from_slice(quoted).ok().map(Cow::Owned),
        }
    }

    /// Returns the number of a member.
    pub(super) fn number(&self, line: &[u8], member: &str) -> Option<u64> {
        std::str::from_utf8(line.get(self.place(member)?)?).ok()?.parse().ok()
    }
}

/// A string of a line.
#[derive(Clone)]
struct Text {
    /// Place of what is between its quotes.
    place: Range<usize>,
    /// Whether it is of ASCII without escapes, so that the order of its bytes is that of its UTF-16 code units.
    is_plain: bool,
}

struct Scanner<'a> {
    line: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let end = self.at + word.len();
        (self.line.get(self.at..end)? == word).then(|| self.at = end)
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.peek()? {
            b'{' => self.object(depth, |_, _| {}),
            b'[' => self.array(depth),
            b'"' => self.string().map(|_| ()),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            self.value(depth + 1)?;
            if self.take(b',').is_none() {
                return self.take(b']');
            }
        }
    }

    /// Reads an object, whose names must be in the order of their UTF-16 code units.
    fn object(&mut self, depth: usize, mut member: impl FnMut(&[u8], Range<usize>)) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        let mut before: Option<Text> = None;
        loop {
            let name = self.string()?;
            if before.is_some_and(|before| !self.is_sorted(&before, &name)) {
                return None;
            }
            self.take(b':')?;
            let start = self.at;
            self.value(depth + 1)?;
            member(self.line.get(name.place.clone())?, start..self.at);
            before = Some(name);
            if self.take(b',').is_none() {
                return self.take(b'}');
            }
        }
    }

    fn is_sorted(&self, one: &Text, next: &Text) -> bool {
        let bytes = |text: &Text| self.line.get(text.place.clone());
        let (Some(first), Some(second)) = (bytes(one), bytes(next)) else { return false };
        if one.is_plain && next.is_plain {
            return first < second;
        }
        let units = |name: &[u8]| {
            let quoted = [b"\"", name, b"\""].concat();
            serde_json::from_slice::<String>(&quoted).ok().map(|name| name.encode_utf16().collect::<Vec<_>>())
        };
        matches!((units(first), units(second)), (Some(one), Some(next)) if one < next)
    }

    fn string(&mut self) -> Option<Text> {
        self.take(b'"')?;
        let start = self.at;
        let mut is_plain = true;
        loop {
            let (length, is_ascii) = ordinary(self.line.get(self.at..)?);
            is_plain &= is_ascii;
            self.at += length;
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(Text { place: start..self.at - 1, is_plain });
                }
                b'\\' => self.escape()?,
                _ => return None,
            }
            is_plain = false;
        }
    }

    /// Reads an escape, which must be the shortest one of its character.
    fn escape(&mut self) -> Option<()> {
        self.take(b'\\')?;
        match self.peek()? {
            b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            _ => {
                self.word(b"u00")?;
                let digits = self.line.get(self.at..self.at + 2)?;
                let is_shortest = matches!(digits, [b'0' | b'1', b'0'..=b'9' | b'a'..=b'f'])
                    && !matches!(digits, [b'0', b'8' | b'9' | b'a' | b'c' | b'd']);
                is_shortest.then(|| self.at += 2)?;
            }
        }
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let start = self.at;
        let rest = self.line.get(start..)?;
        let is_of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        self.at += rest.iter().position(|byte| !is_of_number(byte)).unwrap_or(rest.len());
        let text = std::str::from_utf8(self.line.get(start..self.at)?).ok()?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_integer = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
        if text == "0" || is_integer && digits.parse::<u64>().is_ok_and(|number| number <= INTEGER_MAX) {
            return Some(());
        }
        let number: f64 = serde_json::from_str(text).ok()?;
        (serde_json_canonicalizer::to_string(&number).ok()? == text).then_some(())
    }
}

/// Returns the number of bytes before the first quote, backslash or control character, and whether they are all ASCII.
fn ordinary(bytes: &[u8]) -> (usize, bool) {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // Sets the high bit of each byte that is zero; bytes after the first such byte may be wrong.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (mut length, mut all) = (0, 0_u64);
    for chunk in bytes.chunks_exact(8) {
        let Some(word) = chunk.first_chunk().copied().map(u64::from_le_bytes) else { break };
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        // A byte below 0x20 has none of its three high bits.
        let control = zero(word & (ONES * 0xE0));
        let end = quote | backslash | control;
        if end != 0 {
            // The lowest bit is that of the first of these bytes, whose bytes before it are the word's lower ones.
            let before = (end & end.wrapping_neg()) - 1;
            return (length + (end.trailing_zeros() / 8) as usize, (all | word & before) & HIGH == 0);
        }
        all |= word;
        length += 8;
    }
    let rest = bytes.get(length..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len());
    (length + end, all & HIGH == 0 && rest.get(..end).is_some_and(<[u8]>::is_ascii))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn is_canonical(text: &str) -> bool {
        Members::read(text.as_bytes()).is_some()
    }

    #[test]
    fn only_the_canonical_form_of_an_object_is_read() {
        for text in [
            "{}",
            r#"{"a":[1,-2,"ü\u0001\n\"\\/",true,false,null,{}],"b":{"c":0}}"#,
            "{\"\":0,\"\\r\":1,\"1\":2,\"\u{80}\":3,\"ö\":4,\"€\":5,\"😀\":6,\"\u{fb33}\":7}",
            r#"{"n":[9007199254740991,1e+30,0.5,1e-7]}"#,
        ] {
            assert!(is_canonical(text), "{text}");
        }
        for text in [
            "",
            "[]",
            "{} ",
            " {}",
            r#"{"a" :1}"#,
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":-0}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1E5}"#,
            r#"{"a":-}"#,
            r#"{"a":"\/"}"#,
            r#"{"a":"\u000a"}"#,
            r#"{"a":"\u001F"}"#,
            r#"{"a":"\u0041"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":"x}"#,
            r#"{"a":tru}"#,
            "{\"\u{fb33}\":6,\"😀\":5}",
        ] {
            assert!(!is_canonical(text), "{text}");
        }
        assert!(Members::read(b"{\"a\":\"\xff\"}").is_none());
        assert!(!is_canonical(&format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000))));
    }

    #[test]
    fn members_are_found_at_the_top_alone() {
        let line = br#"{"a":{"seq":1},"seq":7,"type":"x\ny"}"#;
        let members = Members::read(line).expect("canonical");
        assert_eq!(members.number(line, "seq"), Some(7));
        assert_eq!(members.text(line, "type").as_deref(), Some("x\ny"));
        assert_eq!((members.number(line, "type"), members.text(line, "b")), (None, None));
    }

    /// Any JSON, and texts near it.
    fn texts() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[\\PC\\x00-\\x1f]{0,6}".prop_map(Value::from),
        ];
        let value = scalar.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[\\PC\\x00-\\x1f]{0,3}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        (value, any::<bool>(), 0..64_usize, "[ -~]{0,1}").prop_map(|(value, canonical, at, with)| {
            let text = match canonical {
                true => serde_json_canonicalizer::to_string(&value).unwrap_or_default(),
                false => value.to_string(),
            };
            let at = text.char_indices().map(|(at, _)| at).nth(at).unwrap_or(0);
            let rest = text.get(at..).unwrap_or("").chars().skip(with.len()).collect::<String>();
            format!("{}{with}{rest}", text.get(..at).unwrap_or(""))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_scanner_agrees_with_a_library(text in texts()) {
            let read: Option<Value> = serde_json::from_str(&text).ok();
            let object = read.filter(Value::is_object);
            let canonical = object.is_some_and(|value| serde_json_canonicalizer::to_string(&value).is_ok_and(|canonical| canonical == text));
            prop_assert_eq!(is_canonical(&text), canonical, "{}", text);
        }
    }
}
