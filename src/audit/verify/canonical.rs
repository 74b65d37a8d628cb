//! Checks in one pass that a line is in canonical form (RFC 8785), and finds its members. A line in this form has no member twice, so
//! that two readers can't read it differently.

use std::borrow::Cow;
use std::ops::Range;

/// Maximum nesting of objects and arrays.
const DEPTH_MAX: usize = 64;
/// Number of members that most lines have at most.
const MEMBERS: usize = 40;
/// Largest integer that the canonical form writes as it is.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// The members of a line's object, each with the places of its name and its value. The name is without its quotes.
#[derive(Debug, Default)]
pub(super) struct Members(Vec<(Range<usize>, Range<usize>)>);

impl Members {
    /// Reads the members of a line. `None` if the line is not a JSON object in canonical form.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        std::str::from_utf8(line).ok()?;
        let mut scanner = Scanner { line, at: 0 };
        let mut members = Self(Vec::with_capacity(MEMBERS));
        scanner.object(0, |name, value| members.0.push((name, value)))?;
        (scanner.at == line.len()).then_some(members)
    }

    /// Returns the place of a member's value.
    pub(super) fn place(&self, line: &[u8], member: &str) -> Option<Range<usize>> {
        let found = self.0.iter().find(|(name, _)| line.get(name.clone()) == Some(member.as_bytes()));
        found.map(|(_, value)| value.clone())
    }

    /// Returns the text of a member.
    pub(super) fn text<'l>(&self, line: &'l [u8], member: &str) -> Option<Cow<'l, str>> {
        let quoted = line.get(self.place(line, member)?)?;
        match quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")? {
            plain if memchr::memchr(b'\\', plain).is_none() => std::str::from_utf8(plain).ok().map(Cow::Borrowed),
            _ => serde_json::from_slice(quoted).ok().map(Cow::Owned),
        }
    }

    /// Returns the number of a member.
    pub(super) fn number(&self, line: &[u8], member: &str) -> Option<u64> {
        std::str::from_utf8(line.get(self.place(line, member)?)?).ok()?.parse().ok()
    }
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
    fn object(&mut self, depth: usize, mut member: impl FnMut(Range<usize>, Range<usize>)) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        let mut before: Option<Range<usize>> = None;
        loop {
            let name = self.string()?;
            if before.is_some_and(|before| !self.is_sorted(before, name.clone())) {
                return None;
            }
            self.take(b':')?;
            let start = self.at;
            self.value(depth + 1)?;
            member(name.clone(), start..self.at);
            before = Some(name);
            if self.take(b',').is_none() {
                return self.take(b'}');
            }
        }
    }

    fn is_sorted(&self, one: Range<usize>, next: Range<usize>) -> bool {
        let (Some(one), Some(next)) = (self.line.get(one), self.line.get(next)) else { return false };
        let is_plain = |name: &[u8]| name.is_ascii() && !name.contains(&b'\\');
        if is_plain(one) && is_plain(next) {
            return one < next;
        }
        let units = |name: &[u8]| {
            let quoted = [b"\"", name, b"\""].concat();
            serde_json::from_slice::<String>(&quoted).ok().map(|name| name.encode_utf16().collect::<Vec<_>>())
        };
        matches!((units(one), units(next)), (Some(one), Some(next)) if one < next)
    }

    /// Reads a string, and returns the place of what is between its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            let rest = self.line.get(self.at..)?;
            let plain = memchr::memchr2(b'"', b'\\', rest)?;
            if rest.get(..plain)?.iter().any(|byte| *byte < 0x20) {
                return None;
            }
            self.at += plain;
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(start..self.at - 1);
                }
                b'\\' => self.escape()?,
                _ => return None,
            }
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
