//! A strict I-JSON reader (RFC 7493), and the canonical form JCS (RFC 8785).
//!
//! Texts that two parsers could read differently are rejected: those with duplicate members, integers beyond
//! ±(2^53−1), lone surrogates or invalid UTF-8. Faults contain a path but never a value.

mod canonical;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// Maximum nesting of objects and arrays.
pub const DEPTH_MAX: usize = 16;
/// Maximum length of a text for [`read_object`], in bytes.
pub const BYTES_MAX: usize = 64 * 1024;
const INTEGER_MAX: i64 = (1 << 53) - 1;

/// A JSON value, as far as Cedar can represent it. `Null` and `Float` are kept so that a fault can name their
/// path when they are rejected.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Array(Vec<Value>),
    Bool(bool),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// An integer within ±(2^53−1).
    Integer(i64),
    Null,
    Object(Object),
    String(String),
}

/// Members of an object by name.
pub type Object = BTreeMap<String, Value>;

#[cfg(test)]
impl schemars::JsonSchema for Value {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Value".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

/// The reason why a text was rejected, and the path of the fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Fault {
    /// Path of the faulty value in the text, such as `.items[2].id`; empty for the whole text. Names that
    /// don't look like identifiers are replaced by `?`.
    pub path: String,
    /// Constant description of the fault.
    pub problem: &'static str,
}

/// Reads a text of at most [`BYTES_MAX`] bytes whose outermost value is an object. Empty text is `{}`.
///
/// # Errors
/// The first fault, in reading order.
pub fn read_object(text: &[u8]) -> Result<Object, Fault> {
    match text {
        [] => Ok(Object::new()),
        text if text.len() > BYTES_MAX => Err(Fault { path: String::new(), problem: "is longer than 65536 bytes" }),
        text => read_whole(text),
    }
}

/// Reads a text into a type, as strictly as [`read_object`]. The caller must bound its length.
///
/// # Errors
/// The first fault, in reading order.
pub fn read_as<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    // A type's own reader may take the last of two members with one name, so run the strict reader first.
    read_whole(text)?;
    serde_json::from_slice(text)
        .map_err(|_| Fault { path: String::new(), problem: "lacks a member, or a member has the wrong type" })
}

/// Checks that no object of a text has two members with the same name. This is for JSON of a bundle, whose
/// integers may exceed the range of I-JSON and whose form another reader checks.
///
/// # Errors
/// The first duplicate.
pub fn check_members(text: &str) -> Result<(), Fault> {
    let mut place = Place { lenient: true, ..Place::default() };
    match (Node { place: &mut place }).deserialize(&mut serde_json::Deserializer::from_str(text)) {
        Ok(_) => Ok(()),
        Err(_) => place.fault().map_or(Ok(()), Err),
    }
}

fn read_whole(text: &[u8]) -> Result<Object, Fault> {
    let whole = |problem| Fault { path: String::new(), problem };
    if std::str::from_utf8(text).is_err() {
        return Err(whole("is not UTF-8"));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut place = Place::default();
    let value = Node { place: &mut place }.deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(whole("is not a JSON object")),
        Err(_) => Err(place.fault().unwrap_or_else(|| whole("is not JSON"))),
    }
}

/// Returns the canonical form (JCS). A [`Value`] may be digested by it, because its integers are within
/// ±(2^53−1).
#[expect(clippy::expect_used, reason = "a digest of nothing in place of a value would be believed")]
pub fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    try_canonical(value).expect("values have string keys and finite numbers, and are written to memory")
}

/// Returns the canonical form of any type.
///
/// # Errors
/// When it has a key that is not a string, two members with the same name, or a number that is not finite.
pub fn try_canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut writer = canonical::Writer::default();
    value.serialize(&mut writer)?;
    Ok(writer.out)
}

/// Returns a member's name if it looks like an identifier, otherwise `?`, so that messages echo no other
/// text.
pub fn shown_name(name: &str) -> &str {
    let identifier = name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if identifier { name } else { "?" }
}

#[derive(Default)]
struct Place {
    /// Whether only duplicate members are rejected.
    lenient: bool,
    /// Number of open objects and arrays.
    depth: usize,
    fault: Option<&'static str>,
    /// Steps of the fault's path, innermost first; added while the reader leaves the values around the fault.
    path: Vec<String>,
}

impl Place {
    fn refuse<E: serde::de::Error>(&mut self, problem: &'static str) -> E {
        self.fault.get_or_insert(problem);
        E::custom(problem)
    }

    /// Adds a step to the path of the fault, if there is one.
    fn leave(&mut self, step: impl FnOnce() -> String) {
        if self.fault.is_some() {
            self.path.push(step());
        }
    }

    /// Returns the fault with its path.
    fn fault(mut self) -> Option<Fault> {
        self.path.reverse();
        Some(Fault { path: self.path.concat(), problem: self.fault? })
    }
}

struct Node<'a> {
    place: &'a mut Place,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if !self.place.lenient && self.place.depth > DEPTH_MAX {
            return Err(self.place.refuse("is nested deeper than 16"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if !self.place.lenient && value.unsigned_abs() > INTEGER_MAX.unsigned_abs() {
            return Err(self.place.refuse("is an integer beyond ±(2^53-1)"));
        }
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) if self.place.lenient => Ok(Value::Integer(i64::MAX)),
            Err(_) => Err(self.place.refuse("is an integer beyond ±(2^53-1)")),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // serde_json passes an integer beyond 64 bits as a float.
        if !value.is_finite() || !self.place.lenient && value.abs() >= INTEGER_MAX as f64 {
            return Err(self.place.refuse("is a number beyond ±(2^53-1)"));
        }
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        self.place.depth += 1;
        loop {
            match items.next_element_seed(Node { place: self.place }) {
                Ok(Some(item)) => array.push(item),
                Ok(None) => break,
                Err(error) => {
                    self.place.leave(|| format!("[{}]", array.len()));
                    return Err(error);
                }
            }
        }
        self.place.depth -= 1;
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Object::new();
        self.place.depth += 1;
        while let Some(name) = members.next_key::<String>()? {
            let step = |name: &str| format!(".{}", shown_name(name));
            if object.contains_key(&name) {
                let error = self.place.refuse("is a duplicate member");
                self.place.leave(|| step(&name));
                return Err(error);
            }
            match members.next_value_seed(Node { place: self.place }) {
                Ok(value) => object.insert(name, value),
                Err(error) => {
                    self.place.leave(|| step(&name));
                    return Err(error);
                }
            };
        }
        self.place.depth -= 1;
        Ok(Value::Object(object))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    array.serialize_element(item)?;
                }
                array.end()
            }
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Null => serializer.serialize_unit(),
            Self::Object(members) => {
                let mut object = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    object.serialize_entry(name, value)?;
                }
                object.end()
            }
            Self::String(value) => serializer.serialize_str(value),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Value {
    /// Reads from any format (settings, decision tables) with the same strictness.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut place = Place::default();
        let value = Node { place: &mut place }.deserialize(deserializer);
        value.map_err(|error| match place.fault() {
            Some(fault) => D::Error::custom(format!("`{}` {}", fault.path, fault.problem)),
            None => error,
        })
    }
}

impl Value {
    /// Returns the members if this is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(members) => Some(members),
            Self::Array(_) | Self::Bool(_) | Self::Float(_) | Self::Integer(_) | Self::Null | Self::String(_) => None,
        }
    }

    /// Returns the text if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Array(_) | Self::Bool(_) | Self::Float(_) | Self::Integer(_) | Self::Null | Self::Object(_) => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl FromIterator<(String, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(members: I) -> Self {
        Self::Object(members.into_iter().collect())
    }
}

/// Creates an object from these members.
pub fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns whether any name occurs twice.
pub fn has_duplicates<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let mut seen = HashSet::new();
    !names.into_iter().all(|name| seen.insert(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &[u8]) -> (String, &'static str) {
        let fault = read_object(text).expect_err("must be refused");
        (fault.path, fault.problem)
    }

    #[test]
    fn ambiguous_or_oversized_texts_are_refused_with_their_path() {
        assert_eq!(fault(br#"{"a":{"b":1,"b":2}}"#), (".a.b".into(), "is a duplicate member"));
        assert_eq!(fault(br#"{"a":[1,9007199254740993]}"#), (".a[1]".into(), "is an integer beyond ±(2^53-1)"));
        assert_eq!(fault(br#"{"a":-9007199254740992}"#), (".a".into(), "is an integer beyond ±(2^53-1)"));
        assert_eq!(fault(br#"{"a":18446744073709551615}"#), (".a".into(), "is an integer beyond ±(2^53-1)"));
        assert_eq!(fault(br#"{"a":99999999999999999999}"#), (".a".into(), "is a number beyond ±(2^53-1)"));
        assert_eq!(fault(br#"{"\u001b[31m":{"x":1,"x":1}}"#).0, ".?.x");
        assert_eq!(fault(b"[1]").1, "is not a JSON object");
        assert_eq!(fault(b"{\"a\":\"\xff\"}").1, "is not UTF-8");
        assert_eq!(fault(br#"{"a":"\ud800"}"#).1, "is not JSON");
        assert_eq!(fault(br#"{"a":1} {}"#).1, "is not JSON");
        assert_eq!(fault(&vec![b' '; BYTES_MAX + 1]).1, "is longer than 65536 bytes");
    }

    #[test]
    fn depth_sixteen_is_read_and_seventeen_refused() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(read_object(nested(16).as_bytes()).is_ok());
        assert_eq!(fault(nested(17).as_bytes()).1, "is nested deeper than 16");
        let bomb = format!(r#"{{"a":{}"#, "[".repeat(60_000));
        assert_eq!(fault(bomb.as_bytes()).1, "is nested deeper than 16");
    }

    #[test]
    fn the_canonical_form_sorts_by_utf16_and_escapes_little() {
        let object = read_object("{\"\u{20ac}\":1,\"\\r\":2,\"a\":\"\\u000f\\n\"}".as_bytes()).expect("valid");
        let text = String::from_utf8(canonical(&Value::Object(object))).expect("utf-8");
        assert_eq!(text, "{\"\\r\":2,\"a\":\"\\u000f\\n\",\"\u{20ac}\":1}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _read = read_object(&bytes);
        }

        #[test]
        fn reading_the_canonical_form_gives_the_same_value(text in r#"\{("[a-c]{1,3}":(1|"x"|\[1,true\]),?)?"z":-3\}"#) {
            let Ok(object) = read_object(text.as_bytes()) else { return Ok(()) };
            let again = read_object(&canonical(&Value::Object(object.clone()))).expect("canonical form is readable");
            prop_assert_eq!(object, again);
        }
    }

    /// YAML can write them, and canonical JSON can't.
    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        use serde::Deserialize as _;
        use serde::de::IntoDeserializer as _;
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let read: Result<Value, serde::de::value::Error> = Value::deserialize(number.into_deserializer());
            assert!(read.is_err(), "{number}");
        }
    }
}
