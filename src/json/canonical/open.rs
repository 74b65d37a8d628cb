//! Arrays and objects that are being written.

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};
use serde_json::Error;

use crate::json::canonical::Writer;
use crate::json::canonical::name::Name;

/// An array, or an object, that is being written.
#[derive(Debug)]
pub(in crate::json) struct Open<'w> {
    writer: &'w mut Writer,
    /// Number of members of the objects around this one; for an array, whether it has an item.
    outer: usize,
    is_empty: bool,
    /// Whether the value is itself the only member of an object: an enum variant with content.
    is_variant: bool,
}

impl<'w> Open<'w> {
    pub(super) fn array(writer: &'w mut Writer, is_variant: bool) -> Self {
        writer.out.push(b'[');
        Self { writer, outer: 0, is_empty: true, is_variant }
    }

    pub(super) fn object(writer: &'w mut Writer, is_variant: bool) -> Self {
        Self { outer: writer.members.len(), writer, is_empty: true, is_variant }
    }

    fn item<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.writer.out.push(b',');
        }
        value.serialize(&mut *self.writer)
    }

    fn member<T: ?Sized + Serialize>(&mut self, name: &str, value: &T) -> Result<(), Error> {
        self.writer.name(name)?;
        value.serialize(&mut *self.writer)?;
        self.writer.end_member();
        // The members of inner objects are gone, so the last one is this one.
        Ok(())
    }

    fn end_array(self) -> Result<(), Error> {
        self.writer.out.push(b']');
        self.end_variant()
    }

    fn end_object(self) -> Result<(), Error> {
        self.writer.end_object(self.outer)?;
        self.end_variant()
    }

    fn end_variant(self) -> Result<(), Error> {
        if self.is_variant {
            self.writer.out.push(b'}');
        }
        Ok(())
    }
}

/// Implements a serde trait of arrays.
macro_rules! array {
    ($kind:ident, $item:ident) => {
        impl $kind for Open<'_> {
            type Ok = ();
            type Error = Error;

            fn $item<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }

            fn end(self) -> Result<(), Error> {
                self.end_array()
            }
        }
    };
}

/// Implements a serde trait of objects whose names are known.
macro_rules! object {
    ($kind:ident) => {
        impl $kind for Open<'_> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.member(name, value)
            }

            fn end(self) -> Result<(), Error> {
                self.end_object()
            }
        }
    };
}

array!(SerializeSeq, serialize_element);
array!(SerializeTuple, serialize_element);
array!(SerializeTupleStruct, serialize_field);
array!(SerializeTupleVariant, serialize_field);
object!(SerializeStruct);
object!(SerializeStructVariant);

impl SerializeMap for Open<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, name: &T) -> Result<(), Error> {
        name.serialize(Name(self.writer))
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.writer)?;
        self.writer.end_member();
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        self.end_object()
    }
}
