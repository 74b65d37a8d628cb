//! Converts JSON to Cedar values by the schema's types. On a type mismatch Cedar's own reader names only the
//! last attribute and prints whole values; this one reports the full path and never a value.

use cedar_policy::{EntityId, EntityUid, RestrictedExpression};

use crate::json::{Object, Value, shown_name};
use crate::model::refusal::Refusal;
use crate::model::time::Timestamp;
use crate::policy::shape::{EntityShape, Member, Record, Shape};

/// A record's members as Cedar values.
pub type Pairs = Vec<(String, RestrictedExpression)>;

/// Converts values, and collects the entities that they refer to.
#[derive(Debug, Default)]
pub struct Converter {
    /// Entities that the values refer to, except members of enumerated types.
    pub references: Vec<EntityUid>,
}

impl Converter {
    /// Converts an object to a record's members.
    ///
    /// # Errors
    /// The first member that is unknown, missing or of another type; `path` is the path of the object.
    pub fn members(&mut self, object: &Object, record: &Record, path: &str) -> Result<Pairs, Refusal> {
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
    ) -> Result<Pairs, Refusal> {
        let mut members = Vec::with_capacity(object.len());
        for (name, member) in record {
            let below = || format!("{path}.{name}");
            match object.get(name) {
                Some(value) => members.push((name.clone(), self.value(value, &member.shape, &below)?)),
                None if member.required => return Err(Refusal::invalid(below(), "is missing")),
                None => {}
            }
        }
        Ok(members)
    }

    fn value(
        &mut self,
        value: &Value,
        shape: &Shape,
        path: &dyn Fn() -> String,
    ) -> Result<RestrictedExpression, Refusal> {
        let refuse = |problem| Err(Refusal::invalid(path(), problem));
        match (shape, value) {
            (Shape::Bool, Value::Bool(value)) => Ok(RestrictedExpression::new_bool(*value)),
            (Shape::Long, Value::Integer(value)) => Ok(RestrictedExpression::new_long(*value)),
            (Shape::String, Value::String(text)) => Ok(RestrictedExpression::new_string(text.clone())),
            (Shape::Entity(entity), Value::String(id)) => {
                self.entity(entity, id).ok_or(()).or_else(|()| refuse("is not one of the values that the schema lists"))
            }
            (Shape::Datetime, Value::String(text)) => match Timestamp::parse(text) {
                Some(time) => Ok(RestrictedExpression::new_datetime(time.cedar())),
                None => refuse("is not an RFC 3339 time"),
            },
            (Shape::Decimal, Value::String(text)) => match is_decimal(text) {
                true => Ok(RestrictedExpression::new_decimal(text)),
                false => refuse("is not a decimal with one to four fraction digits"),
            },
            (Shape::Ip, Value::String(text)) => match is_ip(text) {
                true => Ok(RestrictedExpression::new_ip(text)),
                false => refuse("is not an IP address or range"),
            },
            (Shape::Duration, Value::String(text)) => match is_duration(text) {
                true => Ok(RestrictedExpression::new_duration(text)),
                false => refuse("is not a duration such as `1d2h3m4s5ms`"),
            },
            (Shape::Set(element), Value::Array(items)) => {
                let converted: Result<Vec<_>, _> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(item, element, &|| format!("{}[{index}]", path())))
                    .collect();
                Ok(RestrictedExpression::new_set(converted?))
            }
            (Shape::Record(record), Value::Object(object)) => {
                let members = self.members(object, record, &path())?;
                RestrictedExpression::new_record(members).or_else(|_| refuse("has a duplicate member"))
            }
            (_, Value::Null) => refuse("is null; leave the member out instead"),
            (_, Value::Float(_)) => refuse("is a fraction; send integers, or decimals as text"),
            (Shape::Bool, _) => refuse("is not a boolean"),
            (Shape::Long, _) => refuse("is not an integer"),
            (Shape::Record(_), _) => refuse("is not an object"),
            (Shape::Set(_), _) => refuse("is not an array"),
            (Shape::String | Shape::Entity(_) | Shape::Datetime | Shape::Decimal | Shape::Ip | Shape::Duration, _) => {
                refuse("is not a string")
            }
        }
    }

    fn entity(&mut self, shape: &EntityShape, id: &str) -> Option<RestrictedExpression> {
        let uid = EntityUid::from_type_name_and_id(shape.name.clone(), EntityId::new(id));
        match &shape.choices {
            Some(choices) => {
                choices.iter().any(|choice| choice == id).then(|| RestrictedExpression::new_entity_uid(uid))
            }
            None => {
                self.references.push(uid.clone());
                Some(RestrictedExpression::new_entity_uid(uid))
            }
        }
    }
}

/// Returns whether a text is a Cedar decimal: an optional sign, digits, a point, one to four digits, within
/// ±922337203685477.5807.
fn is_decimal(text: &str) -> bool {
    let Some((whole, fraction)) = text.split_once('.') else { return false };
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let scaled = format!("{whole}{fraction:0<4}").parse::<i64>();
    all_digits(digits) && all_digits(fraction) && fraction.len() <= 4 && scaled.is_ok()
}

/// Returns whether a text is an IP address, optionally with a prefix length.
fn is_ip(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let longest = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        // Cedar does not accept IPv4 notation inside an IPv6 address.
        Ok(std::net::IpAddr::V6(_)) if !address.contains('.') => 128,
        Ok(std::net::IpAddr::V6(_)) | Err(_) => return false,
    };
    let plain = |prefix: &str| prefix == "0" || !prefix.starts_with('0');
    prefix.is_none_or(|prefix| {
        plain(prefix)
            && prefix.bytes().all(|byte| byte.is_ascii_digit())
            && prefix.parse().is_ok_and(|length: u8| length <= longest)
    })
}

/// Returns whether a text is a Cedar duration, such as `1d2h3m4s5ms`: each unit at most once, in this order,
/// at least one, and within 64 bits of milliseconds.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let mut millis: i64 = 0;
    let mut units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)].iter();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at(letters);
        let scale = units.by_ref().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        let total = number
            .parse::<i64>()
            .ok()
            .zip(scale)
            .and_then(|(number, scale)| number.checked_mul(scale))
            .and_then(|part| millis.checked_add(part));
        let Some(total) = total else { return false };
        millis = total;
        rest = after;
    }
    text.len() > text.bytes().filter(|byte| *byte == b'-').count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(shape: &Shape, text: &str) -> bool {
        Converter::default().value(&Value::from(text), shape, &|| "x".into()).is_ok()
    }

    fn evaluates(expression: RestrictedExpression) -> bool {
        cedar_policy::Context::from_pairs([("x".to_owned(), expression)]).is_ok()
    }

    #[test]
    fn numbers_that_are_no_longs_are_refused_by_name() {
        let problem = |value: Value| match Converter::default().value(&value, &Shape::Long, &|| "arguments.n".into()) {
            Err(Refusal::Invalid { field, problem, .. }) => (field, problem),
            other => panic!("{other:?}"),
        };
        assert_eq!(problem(Value::from("25")), ("arguments.n".into(), "is not an integer"));
        assert_eq!(problem(Value::Null).1, "is null; leave the member out instead");
        assert_eq!(problem(Value::Float(2.5)).1, "is a fraction; send integers, or decimals as text");
    }

    proptest! {
        // Cedar must evaluate every accepted value: a failure there would count as a policy error.
        #[test]
        fn accepted_extension_values_evaluate(text in r"(-?[0-9]{0,17}\.?[0-9]{0,5})|([0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,3})?)|(-?([0-9]{1,5}[dhms]{1,2}){0,3})|([0-9a-f:]{2,12}(/[0-9]{1,3})?)") {
            if accepted(&Shape::Decimal, &text) { prop_assert!(evaluates(RestrictedExpression::new_decimal(&text)), "decimal {text}"); }
            if accepted(&Shape::Ip, &text) { prop_assert!(evaluates(RestrictedExpression::new_ip(&text)), "ip {text}"); }
            if accepted(&Shape::Duration, &text) { prop_assert!(evaluates(RestrictedExpression::new_duration(&text)), "duration {text}"); }
        }

        #[test]
        fn accepted_times_evaluate(micros in -62_135_596_800_000_000i64..253_402_300_799_000_000i64) {
            let text = Timestamp::from_micros(micros).to_string();
            prop_assert!(accepted(&Shape::Datetime, &text));
            prop_assert!(evaluates(RestrictedExpression::new_datetime(Timestamp::from_micros(micros).cedar())), "{text}");
        }
    }
}
