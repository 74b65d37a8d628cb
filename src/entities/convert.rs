//! Converts JSON to Cedar values by the schema's types. On a type mismatch Cedar's own reader names only the
//! last attribute and prints whole values; this one reports the full path and never a value.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use cedar_policy::{EntityId, EntityUid};
use cedar_policy_core::ast::{ExtensionFunction, Name, PartialValue, Value as CedarValue};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use crate::json::{Object, Value, shown_name};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::policy::shape::{EntityShape, Member, Record, Shape};

/// A record's members as Cedar values.
pub type Members = Vec<(SmolStr, CedarValue)>;

/// Converts values, and collects the entities that they refer to.
#[derive(Debug, Default)]
pub struct Converter {
    /// Entities that the values refer to, except members of enumerated types.
    pub references: Vec<EntityUid>,
    /// Whether a list may repeat an item in the place of a set, as lists that the PDP makes may.
    pub takes_repetitions: bool,
}

/// Returns the place of a value that occurs before in the list. A set would drop it, and with it what the repetition means,
/// such as a payment that is charged twice.
fn repeated(values: &[CedarValue]) -> Option<usize> {
    let mut ordered: Vec<(&CedarValue, usize)> = values.iter().zip(0..).collect();
    ordered.sort();
    ordered.windows(2).find_map(|pair| match pair {
        [(one, _), (other, index)] if one == other => Some(*index),
        _ => None,
    })
}

impl Converter {
    /// Converts an object to a record's members.
    ///
    /// # Errors
    /// The first member that is unknown, missing or of another type; `path` is the path of the object.
    pub fn members(&mut self, object: &Object, record: &Record, path: &str) -> Result<Members, Refusal> {
        if let Some(unknown) = object.keys().find(|name| !record.contains_key(*name)) {
            let unknown = Some(shown_name(unknown).to_owned());
            return Err(Refusal::Invalid {
                field: path.to_owned(),
                below: String::new(),
                problem: "has an unknown member",
                unknown,
            });
        }
        self.known_members(object, record, path)
    }

    /// Converts the members of an object that a record declares, and ignores all others.
    ///
    /// # Errors
    /// The first member that is required but missing, or of another type.
    pub fn known_members<'a>(
        &mut self,
        object: &Object,
        record: impl IntoIterator<Item = (&'a String, &'a Member)>,
        path: &str,
    ) -> Result<Members, Refusal> {
        let mut members = Vec::with_capacity(object.len());
        for (name, member) in record {
            let below = || format!("{path}.{name}");
            match object.get(name) {
                Some(value) => members.push((SmolStr::new(name), self.value(value, &member.shape, &below)?)),
                None if member.required => return Err(Refusal::invalid(below(), "is missing")),
                None => {}
            }
        }
        Ok(members)
    }

    /// Converts the tags of an entity, whose names are the caller's own.
    ///
    /// # Errors
    /// The first tag that is of another type; `path` is the path of the tags.
    pub fn tags(&mut self, tags: &Object, shape: &Shape, path: &str) -> Result<Members, Refusal> {
        let mut members = Vec::with_capacity(tags.len());
        for (name, value) in tags {
            let value = self.value(value, shape, &|| path.to_owned()).map_err(|refusal| match refusal {
                Refusal::Invalid { field, problem, unknown, .. } => {
                    Refusal::Invalid { field, below: format!(".{}", shown_name(name)), problem, unknown }
                }
                other => other,
            })?;
            members.push((SmolStr::new(name), value));
        }
        Ok(members)
    }

    fn value(&mut self, value: &Value, shape: &Shape, path: &dyn Fn() -> String) -> Result<CedarValue, Refusal> {
        let refuse = |problem| Err(Refusal::invalid(path(), problem));
        match (shape, value) {
            (Shape::Bool, Value::Bool(value)) => Ok(CedarValue::from(*value)),
            (Shape::Long, Value::Integer(value)) => Ok(CedarValue::from(*value)),
            (Shape::String, Value::String(text)) => Ok(CedarValue::from(SmolStr::new(text))),
            (Shape::Entity(entity), Value::String(id)) => {
                self.entity(entity, id).map_or_else(|| refuse("is not one of the values that the schema lists"), Ok)
            }
            (Shape::Datetime, Value::String(text)) => match Timestamp::parse(text) {
                Some(parsed) => time(parsed).map_or_else(|| refuse("is not an RFC 3339 time"), Ok),
                None => refuse("is not an RFC 3339 time"),
            },
            (Shape::Decimal, Value::String(text)) => {
                DECIMAL.value(text).map_or_else(|| refuse("is not a decimal with one to four fraction digits"), Ok)
            }
            (Shape::Ip, Value::String(text)) => {
                IP.value(text).map_or_else(|| refuse("is not an IP address or range"), Ok)
            }
            (Shape::Duration, Value::String(text)) => {
                DURATION.value(text).map_or_else(|| refuse("is not a duration such as `1d2h3m4s5ms`"), Ok)
            }
            (Shape::Set(element), Value::Array(items)) => {
                let converted: Result<Vec<_>, _> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(item, element, &|| format!("{}[{index}]", path())))
                    .collect();
                let converted = converted?;
                match repeated(&converted).filter(|_| !self.takes_repetitions) {
                    Some(index) => Err(Refusal::invalid(format!("{}[{index}]", path()), "occurs twice in a set")),
                    None => Ok(CedarValue::set(converted, None)),
                }
            }
            (Shape::Record(record), Value::Object(object)) => Ok(record_of(self.members(object, record, &path())?)),
            (_, Value::Null) => refuse("is null; leave the member out instead"),
            (Shape::String | Shape::Entity(_), Value::Float(_) | Value::Integer(_)) => {
                refuse("is a number; send it as text, in quotes")
            }
            (Shape::Decimal, Value::Float(_) | Value::Integer(_)) => {
                refuse("is a number; send a decimal as text with one to four fraction digits, such as \"12.50\"")
            }
            (Shape::Long, Value::Float(_)) => {
                refuse("is a fraction; send an integer of the smallest unit, such as 1250 for 12.50")
            }
            (Shape::Bool, _) => refuse("is not a boolean"),
            (Shape::Long, _) => refuse("is not an integer"),
            (Shape::Record(_), _) => refuse("is not an object"),
            (Shape::Set(_), _) => refuse("is not an array"),
            (Shape::String | Shape::Entity(_) | Shape::Datetime | Shape::Decimal | Shape::Ip | Shape::Duration, _) => {
                refuse("is not a string")
            }
        }
    }

    fn entity(&mut self, shape: &EntityShape, id: &str) -> Option<CedarValue> {
        let uid = EntityUid::from_type_name_and_id(shape.name.clone(), EntityId::new(id));
        match &shape.choices {
            Some(choices) if !choices.iter().any(|choice| choice == id) => return None,
            Some(_) => {}
            None => self.references.push(uid.clone()),
        }
        Some(CedarValue::from(cedar_policy_core::ast::EntityUID::from(uid)))
    }
}

/// Returns a record of these members, whose names are unique.
pub fn record_of(members: Members) -> CedarValue {
    CedarValue::record_arc(Arc::new(members.into_iter().collect::<BTreeMap<_, _>>()), None)
}

/// Returns a time as a `datetime`; `None` if Cedar has no such time.
pub fn time(time: Timestamp) -> Option<CedarValue> {
    DATETIME.value(&time.cedar())
}

static DATETIME: LazyLock<Constructor> = LazyLock::new(|| Constructor::named("datetime"));
static DECIMAL: LazyLock<Constructor> = LazyLock::new(|| Constructor::named("decimal"));
static DURATION: LazyLock<Constructor> = LazyLock::new(|| Constructor::named("duration"));
static IP: LazyLock<Constructor> = LazyLock::new(|| Constructor::named("ip"));

/// Cedar's constructor of an extension type.
struct Constructor(Option<&'static ExtensionFunction>);

impl Constructor {
    fn named(name: &str) -> Self {
        let name = name.parse::<Name>().ok();
        Self(name.and_then(|name| Extensions::all_available().func(&name).ok()))
    }

    /// Returns the value of a text; `None` if the text is malformed.
    fn value(&self, text: &str) -> Option<CedarValue> {
        match self.0?.call(&[CedarValue::from(SmolStr::new(text))]) {
            Ok(PartialValue::Value(value)) => Some(value),
            Ok(PartialValue::Residual(_)) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::RestrictedExpression;
    use proptest::prelude::*;

    use super::*;

    fn converted(shape: &Shape, text: &str) -> Option<CedarValue> {
        Converter::default().value(&Value::from(text), shape, &|| "x".into()).ok()
    }

    /// Returns Cedar's own value of an expression.
    fn evaluated(expression: RestrictedExpression) -> Option<CedarValue> {
        let context = cedar_policy::Context::from_pairs([("x".to_owned(), expression)]).ok()?;
        match context.as_ref() {
            cedar_policy_core::ast::Context::Value(members) => members.get("x").cloned(),
            cedar_policy_core::ast::Context::RestrictedResidual(_) => None,
        }
    }

    #[test]
    fn numbers_that_are_no_longs_are_refused_by_name() {
        let problem = |value: Value| match Converter::default().value(&value, &Shape::Long, &|| "arguments.n".into()) {
            Err(Refusal::Invalid { field, problem, .. }) => (field, problem),
            other => panic!("{other:?}"),
        };
        assert_eq!(problem(Value::from("25")), ("arguments.n".into(), "is not an integer"));
        assert_eq!(problem(Value::Null).1, "is null; leave the member out instead");
        assert_eq!(
            problem(Value::Float(2.5)).1,
            "is a fraction; send an integer of the smallest unit, such as 1250 for 12.50"
        );
        for value in [Value::Float(12.5), Value::Integer(12)] {
            match Converter::default().value(&value, &Shape::Decimal, &|| "rate".into()) {
                Err(Refusal::Invalid { problem, .. }) => assert!(problem.contains("such as \"12.50\""), "{problem}"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// An id without quotes is a number in YAML and JSON: `customer: 0042`.
    #[test]
    fn numbers_in_the_place_of_text_are_refused_as_such() {
        for value in [Value::Integer(42), Value::Float(42.0)] {
            match Converter::default().value(&value, &Shape::String, &|| "customer".into()) {
                Err(Refusal::Invalid { problem, .. }) => assert_eq!(problem, "is a number; send it as text, in quotes"),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        // A text gives the value that Cedar's expression for it gives, or both refuse it.
        #[test]
        fn values_of_extension_types_are_those_of_cedar(text in r"(-?[0-9]{0,17}\.?[0-9]{0,5})|([0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,3})?)|(-?([0-9]{1,5}[dhms]{1,2}){0,3})|([0-9a-f:]{2,12}(/[0-9]{1,3})?)") {
            prop_assert_eq!(converted(&Shape::Decimal, &text), evaluated(RestrictedExpression::new_decimal(&text)));
            prop_assert_eq!(converted(&Shape::Ip, &text), evaluated(RestrictedExpression::new_ip(&text)));
            prop_assert_eq!(converted(&Shape::Duration, &text), evaluated(RestrictedExpression::new_duration(&text)));
        }

        #[test]
        fn times_are_those_of_cedar(micros in -62_135_596_800_000_000i64..253_402_300_799_000_000i64) {
            let time = Timestamp::from_micros(micros);
            let cedar = evaluated(RestrictedExpression::new_datetime(time.cedar()));
            prop_assert!(cedar.is_some());
            prop_assert_eq!(converted(&Shape::Datetime, &time.to_string()), cedar);
        }
    }
}
