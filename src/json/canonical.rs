//! Writes the canonical form JCS (RFC 8785) in one pass: members are written in the order in which they come,
//! and sorted in place at the end of their object if they came in another one.

mod name;
mod open;

use std::cmp::Ordering;
use std::fmt::Display;
use std::ops::Range;

use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::Error;

use crate::json::canonical::open::Open;

/// Largest integer that every reader of JSON reads exactly.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Text that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
    /// Members of the open objects, outermost first.
    members: Vec<Member>,
    scratch: Vec<u8>,
}

/// A member of an open object. In `out` it starts with a comma or the object's brace, then the name.
#[derive(Clone, Debug)]
struct Member {
    start: usize,
    /// Position of the name without its quotes.
    name: Range<usize>,
    /// The name, if it is not plain ASCII: such names are compared by their UTF-16 code units.
    other: Option<String>,
    end: usize,
}

impl Writer {
    fn text(&mut self, text: &str) -> Result<(), Error> {
        if is_plain(text) {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
            return Ok(());
        }
        serde_json::to_writer(&mut self.out, text)
    }

    fn unsigned(&mut self, value: u64) {
        match value {
            0..=INTEGER_MAX => self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
            // Every number is a double.
            _ => self.out.extend_from_slice(ryu_js::Buffer::new().format_finite(value as f64).as_bytes()),
        }
    }

    fn signed(&mut self, value: i64) {
        match value.unsigned_abs() {
            0..=INTEGER_MAX => self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
            _ => self.out.extend_from_slice(ryu_js::Buffer::new().format_finite(value as f64).as_bytes()),
        }
    }

    /// Starts a member: its name and colon.
    fn name(&mut self, name: &str) -> Result<(), Error> {
        let start = self.out.len();
        self.out.push(b',');
        self.text(name)?;
        let other = (!is_plain(name)).then(|| name.to_owned());
        self.members.push(Member { start, name: start + 2..self.out.len() - 1, other, end: 0 });
        self.out.push(b':');
        Ok(())
    }

    fn end_member(&mut self) {
        if let Some(member) = self.members.last_mut() {
            member.end = self.out.len();
        }
    }

    /// Ends the object whose members follow the first `outer` ones.
    fn end_object(&mut self, outer: usize) -> Result<(), Error> {
        let members = self.members.get_mut(outer..).unwrap_or_default();
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            self.out.extend_from_slice(b"{}");
            return Ok(());
        };
        let (start, end) = (first.start, last.end);
        let out = &self.out;
        let is_sorted = members.is_sorted_by(|one, other| compare(out, one, other) == Ordering::Less);
        if !is_sorted {
            members.sort_unstable_by(|one, other| compare(out, one, other));
            if members
                .windows(2)
                .any(|pair| matches!(pair, [one, other] if compare(out, one, other) == Ordering::Equal))
            {
                return Err(Error::custom("an object has two members with the same name"));
            }
            self.scratch.clear();
            for member in members.iter() {
                self.scratch.extend_from_slice(out.get(member.start..member.end).unwrap_or_default());
            }
            self.out.truncate(start);
            self.out.extend_from_slice(&self.scratch);
        }
        debug_assert_eq!(self.out.len(), end, "sorting keeps the length");
        if let Some(brace) = self.out.get_mut(start) {
            *brace = b'{';
        }
        self.out.push(b'}');
        self.members.truncate(outer);
        Ok(())
    }
}

/// Returns whether a text is ASCII that needs no escape.
fn is_plain(text: &str) -> bool {
    // Without an early exit, several bytes are compared at once.
    text.bytes().fold(true, |plain, byte| plain & (matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')))
}

fn compare(out: &[u8], one: &Member, other: &Member) -> Ordering {
    let bytes = |member: &Member| out.get(member.name.clone()).unwrap_or_default();
    match (&one.other, &other.other) {
        (None, None) => bytes(one).cmp(bytes(other)),
        (one_text, other_text) => {
            let units = |text: &Option<String>, member: &Member| -> Vec<u16> {
                match text {
                    Some(text) => text.encode_utf16().collect(),
                    None => bytes(member).iter().copied().map(u16::from).collect(),
                }
            };
            units(one_text, one).cmp(&units(other_text, other))
        }
    }
}

impl Writer {
    /// Starts an object whose only member is an enum variant.
    fn variant(&mut self, name: &str) -> Result<(), Error> {
        self.out.push(b'{');
        self.text(name)?;
        self.out.push(b':');
        Ok(())
    }
}

impl<'w> Serializer for &'w mut Writer {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Open<'w>;
    type SerializeTuple = Open<'w>;
    type SerializeTupleStruct = Open<'w>;
    type SerializeTupleVariant = Open<'w>;
    type SerializeMap = Open<'w>;
    type SerializeStruct = Open<'w>;
    type SerializeStructVariant = Open<'w>;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.signed(value);
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.unsigned(value);
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        if !value.is_finite() {
            return Err(Error::custom("a number is not finite"));
        }
        self.out.extend_from_slice(ryu_js::Buffer::new().format_finite(value).as_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.text(value)
    }

    fn collect_str<T: ?Sized + Display>(self, value: &T) -> Result<(), Error> {
        self.text(&value.to_string())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result<(), Error> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _name: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(variant)?;
        value.serialize(&mut *self)?;
        self.out.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _length: Option<usize>) -> Result<Open<'w>, Error> {
        Ok(Open::array(self, false))
    }

    fn serialize_tuple(self, _length: usize) -> Result<Open<'w>, Error> {
        Ok(Open::array(self, false))
    }

    fn serialize_tuple_struct(self, _name: &'static str, _length: usize) -> Result<Open<'w>, Error> {
        Ok(Open::array(self, false))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _length: usize,
    ) -> Result<Open<'w>, Error> {
        self.variant(variant)?;
        Ok(Open::array(self, true))
    }

    fn serialize_map(self, _length: Option<usize>) -> Result<Open<'w>, Error> {
        Ok(Open::object(self, false))
    }

    fn serialize_struct(self, _name: &'static str, _length: usize) -> Result<Open<'w>, Error> {
        Ok(Open::object(self, false))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _length: usize,
    ) -> Result<Open<'w>, Error> {
        self.variant(variant)?;
        Ok(Open::object(self, true))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use crate::json::try_canonical;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                // Names from few characters, among them some whose order differs in UTF-8 and UTF-16.
                proptest::collection::btree_map("[a-c\"\\\\\n\u{e000}\u{10000}é]{0,3}", inner, 0..8)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_form_is_that_of_another_implementation(value in value()) {
            prop_assert_eq!(try_canonical(&value).ok(), serde_json_canonicalizer::to_vec(&value).ok());
        }
    }

    #[derive(serde::Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Unit,
        Newtype(u8),
        Tuple(u8, &'static str),
        Struct { z: u8, a: Option<u8> },
    }

    #[derive(serde::Serialize)]
    struct Whole {
        z: Kind,
        b: (u8, char),
        #[serde(flatten)]
        more: std::collections::HashMap<&'static str, Kind>,
    }

    #[test]
    fn types_have_the_form_of_another_implementation() {
        let more = [("y", Kind::Newtype(1)), ("a", Kind::Tuple(1, "\u{1f}")), ("m", Kind::Struct { z: 1, a: None })];
        let whole = Whole { z: Kind::Unit, b: (1, 'é'), more: more.into_iter().collect() };
        assert_eq!(try_canonical(&whole).ok(), serde_json_canonicalizer::to_vec(&whole).ok());
    }

    #[test]
    fn numbers_that_are_not_finite_and_other_names_are_refused() {
        assert!(try_canonical(&f64::NAN).is_err());
        assert!(try_canonical(&std::collections::BTreeMap::from([(1, 1)])).is_err());
        let twice = serde_json::json!({"b": 1});
        #[derive(serde::Serialize)]
        struct Twice {
            b: u8,
            #[serde(flatten)]
            more: serde_json::Value,
        }
        assert!(try_canonical(&Twice { b: 1, more: twice }).is_err());
    }
}
