//! Values that the PDP computes from a call's arguments, because policies can't: how many, how much, which.

use std::collections::BTreeSet;

use crate::json::{Object, Value};
use crate::model::number::to_i64;

/// Function of the values at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// The number of values.
    Count,
    /// The number of different values.
    CountDistinct,
    /// The different values.
    Distinct,
    Max,
    Min,
    Sum,
}

/// A value that is computed from the arguments, written as `sum(payments.amount)`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Derivation {
    pub function: Function,
    /// Members on the way from the arguments. Each list on the way stands for all of its items.
    pub path: Vec<String>,
}

#[cfg(test)]
impl schemars::JsonSchema for Derivation {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Derivation".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^(count|count_distinct|distinct|max|min|sum)\\([A-Za-z0-9_. ]+\\)$"})
    }
}

impl TryFrom<String> for Derivation {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const FORM: &str = "must be `count`, `count_distinct`, `distinct`, `max`, `min` or `sum` of a path, such as `sum(payments.amount)`";
        let (function, rest) = text.split_once('(').ok_or(FORM)?;
        let function = match function.trim() {
            "count" => Function::Count,
            "count_distinct" => Function::CountDistinct,
            "distinct" => Function::Distinct,
            "max" => Function::Max,
            "min" => Function::Min,
            "sum" => Function::Sum,
            _ => return Err(FORM),
        };
        let path = rest.strip_suffix(')').ok_or(FORM)?;
        let path: Vec<String> = path.split('.').map(|step| step.trim().to_owned()).collect();
        let is_name =
            |step: &String| !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if path.iter().all(is_name) { Ok(Self { function, path }) } else { Err(FORM) }
    }
}

/// Returns the different values, in the order in which they occur first.
fn distinct(values: &[&Value]) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    let is_new = |value: &&&Value| seen.insert(crate::json::canonical(**value));
    values.iter().filter(is_new).map(|value| (*value).clone()).collect()
}

impl Derivation {
    /// Computes the value. `None`: there is no smallest or largest of no values.
    ///
    /// # Errors
    /// A description of the problem: a sum is too large, or a value is no integer.
    pub fn of(&self, arguments: &Object) -> Result<Option<Value>, &'static str> {
        let values = self.values(arguments);
        let integers = || {
            let integer = |value: &&Value| match value {
                Value::Integer(integer) => Ok(*integer),
                _ => Err("has a value that is not an integer"),
            };
            values.iter().map(integer).collect::<Result<Vec<i64>, _>>()
        };
        Ok(match self.function {
            Function::Count => Some(Value::Integer(to_i64(values.len()))),
            Function::CountDistinct => Some(Value::Integer(to_i64(distinct(&values).len()))),
            Function::Distinct => Some(Value::Array(distinct(&values))),
            Function::Max => integers()?.into_iter().max().map(Value::Integer),
            Function::Min => integers()?.into_iter().min().map(Value::Integer),
            Function::Sum => {
                let sum = integers()?.into_iter().try_fold(0_i64, i64::checked_add);
                Some(Value::Integer(sum.ok_or("adds up to more than 64 bits")?))
            }
        })
    }

    /// Returns the values at the end of the path.
    fn values<'a>(&self, arguments: &'a Object) -> Vec<&'a Value> {
        let items = |value: &'a Value| match value {
            Value::Array(items) => items.iter().collect(),
            value => vec![value],
        };
        let mut steps = self.path.iter();
        let first = steps.next().and_then(|step| arguments.get(step));
        let mut at: Vec<&Value> = first.map_or_else(Vec::new, items);
        for step in steps {
            let members = at.into_iter().filter_map(|value| value.as_object()?.get(step));
            at = members.flat_map(items).collect();
        }
        at
    }
}

/// Entity of a call whose id an argument must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Named {
    Agent,
    Case,
    /// Owner of the case.
    Owner,
    Resource,
    Supervisor,
    Tenant,
}

impl Named {
    /// Describes the entity for an error message.
    pub fn problem(self) -> &'static str {
        match self {
            Self::Agent => "is not the id of the call's agent",
            Self::Case => "is not the id of the call's case",
            Self::Owner => "is not the owner of the call's case",
            Self::Resource => "is not the id of the call's resource",
            Self::Supervisor => "is not the id of the call's supervisor",
            Self::Tenant => "is not the id of the call's tenant",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(text: &str, arguments: &str) -> Result<Option<Value>, &'static str> {
        let arguments = crate::json::read_object(arguments.as_bytes()).expect("an object");
        Derivation::try_from(text.to_owned()).expect("well-formed").of(&arguments)
    }

    #[test]
    fn values_are_counted_added_and_compared_over_lists_and_records() {
        let booking = r#"{"passengers": [{"age": 40}, {"age": 40}, {"age": 7}], "payments": [{"amount": 5, "method": "card"},
            {"amount": 7, "method": "card"}, {"amount": 1, "method": "voucher"}], "total": {"amount": 13}, "none": []}"#;
        for (text, expected) in [
            ("count(passengers)", Some(Value::Integer(3))),
            ("count(passengers.age)", Some(Value::Integer(3))),
            ("count(none)", Some(Value::Integer(0))),
            ("count(missing)", Some(Value::Integer(0))),
            ("sum(payments.amount)", Some(Value::Integer(13))),
            ("sum(total.amount)", Some(Value::Integer(13))),
            ("sum(none)", Some(Value::Integer(0))),
            ("min(passengers.age)", Some(Value::Integer(7))),
            ("max(passengers.age)", Some(Value::Integer(40))),
            ("max(none)", None),
            ("count_distinct(payments.method)", Some(Value::Integer(2))),
            ("distinct(payments.method)", Some(Value::Array(vec!["card".into(), "voucher".into()]))),
        ] {
            assert_eq!(derived(text, booking), Ok(expected), "{text}");
        }
        let large = format!(r#"{{"a": [{}]}}"#, vec!["9007199254740991"; 1025].join(", "));
        assert!(derived("sum(a)", &large).is_err());
        assert!(derived("sum(a.b)", r#"{"a": [{"b": "5"}]}"#).is_err());
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "count", "count()", "count(a", "avg(a)", "sum(a..b)", "sum(a.b) + 1", "sum(a, b)", "count(a*)"]
        {
            assert!(Derivation::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
