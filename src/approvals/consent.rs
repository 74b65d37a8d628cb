//! Consents: the case's customer agrees to exactly one call. The customer is shown a text of the bundle, into which the
//! PDP writes values of the call, so that no agent words it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::json::{Object, Value};
use crate::model::approval::BoundCall;
use crate::model::call::Call;
use crate::model::refusal::Refusal;
use crate::model::text::{is_unprintable, visible};

/// Maximum length of a template's text, in bytes.
const TEXT_MAX: usize = 1000;
/// Maximum length of a text value that is shown, in characters. A longer value could tell a story of its own.
const VALUE_MAX: usize = 100;
/// Maximum length of a word that is shown without quotation marks, in bytes.
const WORD_MAX: usize = 24;
/// Signs that look like the end of a quotation.
const QUOTES: [char; 16] = ['"', '“', '”', '„', '‟', '«', '»', '❝', '❞', '〝', '〞', '〟', '＂', '″', '‶', '˝'];
/// Maximum length of a text that is shown, in bytes.
const SHOWN_MAX: usize = 4096;
/// Maximum number of members of a set that are shown.
const MEMBERS_MAX: usize = 20;

/// Currencies of ISO 4217 whose minor unit is not a hundredth, with the number of its decimal digits.
const DIGITS: [(&str, usize); 26] = [
    ("BHD", 3),
    ("BIF", 0),
    ("CLF", 4),
    ("CLP", 0),
    ("DJF", 0),
    ("GNF", 0),
    ("IQD", 3),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KMF", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("LYD", 3),
    ("OMR", 3),
    ("PYG", 0),
    ("RWF", 0),
    ("TND", 3),
    ("UGX", 0),
    ("UYI", 0),
    ("UYW", 4),
    ("VND", 0),
    ("VUV", 0),
    ("XAF", 0),
    ("XOF", 0),
    ("XPF", 0),
];

/// Rules for one kind of consent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConsentTemplate {
    /// Purpose of the consent, in one line for people who read it later.
    pub title: String,
    /// Time for use after the customer's answer, 1 to 60 minutes.
    pub use_minutes: u32,
    /// Text that the customer is shown, by language (BCP 47). `{args.booking_id}` is replaced by that value of the call,
    /// and `{derived.paid_minor in args.currency}` by an amount in the minor unit of its currency, such as 12.50 EUR.
    pub text: BTreeMap<String, Text>,
}

impl ConsentTemplate {
    pub fn usable(&self) -> Duration {
        Duration::from_secs(u64::from(self.use_minutes) * 60)
    }

    /// Returns the texts for a call, by language.
    ///
    /// # Errors
    /// If a value can't be shown to a customer (INVALID_ARGUMENT with its path).
    pub fn texts(&self, values: Values<'_>) -> Result<BTreeMap<String, String>, Refusal> {
        self.text.iter().map(|(language, text)| Ok((language.clone(), text.of(values)?))).collect()
    }
}

/// A text with places for values.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Text(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Words(String),
    Value(Place),
    Money { amount: Place, currency: Place },
}

/// Place of a value in a call: the root `args`, `case`, `derived`, `facts` or `resource`, and at least one name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(Vec<String>);

/// What a place is used as, which determines the types that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Amount,
    Currency,
    Value,
}

const ROOTS: [&str; 5] = ["args", "case", "derived", "facts", "resource"];

/// Values of a call that a text may show.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    arguments: &'a Object,
    facts: Option<&'a Object>,
    derived: &'a Object,
    case: (&'a str, &'a Object),
    resource: (&'a str, Option<&'a Object>),
}

impl<'a> Values<'a> {
    /// Collects the values of a call. `derived` are those that the PDP computes from its arguments.
    pub fn of(call: &'a Call, derived: &'a Object) -> Self {
        Self {
            arguments: &call.arguments,
            facts: call.facts.as_ref(),
            derived,
            case: (&call.case.id, &call.case.attributes),
            resource: (&call.resource.reference.id, call.resource.attributes.as_ref()),
        }
    }

    /// Collects the values of a call that a consent is bound to.
    pub fn of_bound(call: &'a BoundCall, derived: &'a Object) -> Self {
        Self {
            // A consent bounds no argument, so every one of them is exact.
            arguments: &call.exact,
            facts: Some(&call.facts),
            derived,
            case: (&call.case, &call.case_attributes),
            resource: (&call.resource_id, Some(&call.resource_attributes)),
        }
    }
}

impl TryFrom<String> for Text {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.trim().is_empty() || text.len() > TEXT_MAX || text.chars().any(is_unprintable) {
            return Err(format!("a text for the customer must have 1 to {TEXT_MAX} bytes on one line"));
        }
        let mut pieces = vec![];
        let mut rest = text.as_str();
        while let Some((words, after)) = rest.split_once('{') {
            let (inside, after) = after.split_once('}').ok_or("a text for the customer has `{` without `}`")?;
            if words.contains('}') {
                return Err("a text for the customer has `}` without `{`".to_owned());
            }
            pieces.push(Piece::Words(words.to_owned()));
            pieces.push(match inside.split_once(" in ") {
                Some((amount, currency)) => Piece::Money { amount: place(amount)?, currency: place(currency)? },
                None => Piece::Value(place(inside)?),
            });
            rest = after;
        }
        if rest.contains('}') {
            return Err("a text for the customer has `}` without `{`".to_owned());
        }
        pieces.push(Piece::Words(rest.to_owned()));
        Ok(Self(pieces))
    }
}

fn place(text: &str) -> Result<Place, String> {
    let names: Vec<String> = text.split('.').map(str::to_owned).collect();
    let is_name = |name: &String| {
        !name.is_empty() && name.chars().all(|character| character.is_alphanumeric() || "_-".contains(character))
    };
    match names.split_first() {
        Some((root, rest)) if ROOTS.contains(&root.as_str()) && !rest.is_empty() && rest.iter().all(is_name) => {
            Ok(Place(names))
        }
        Some(_) | None => Err(format!(
            "`{{{text}}}` names no value: write `{{args.name}}` or `{{args.amount in args.currency}}`, with one of {} as the \
             first name",
            ROOTS.join(", ")
        )),
    }
}

impl Text {
    /// Returns the places that the text shows, with what it uses them as.
    pub fn places(&self) -> Vec<(&Place, Usage)> {
        let mut places = vec![];
        for piece in &self.0 {
            match piece {
                Piece::Words(_) => {}
                Piece::Value(place) => places.push((place, Usage::Value)),
                Piece::Money { amount, currency } => {
                    places.extend([(amount, Usage::Amount), (currency, Usage::Currency)]);
                }
            }
        }
        places
    }

    fn of(&self, values: Values<'_>) -> Result<String, Refusal> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Words(words) => text.push_str(words),
                Piece::Value(place) => text.push_str(&shown(&place.value(values)?, place)?),
                Piece::Money { amount, currency } => {
                    let code = code(&currency.value(values)?, currency)?;
                    text.push_str(&money(&amount.value(values)?, &code, amount)?);
                }
            }
        }
        match text.len() > SHOWN_MAX {
            true => Err(Refusal::invalid("arguments_json", "makes the text for the customer longer than 4096 bytes")),
            false => Ok(text),
        }
    }
}

impl Place {
    /// Returns the root, and the names below it.
    pub fn split(&self) -> (&str, Vec<&str>) {
        let mut names = self.0.iter().map(String::as_str);
        (names.next().unwrap_or(""), names.collect())
    }

    /// Returns the path as a text of the bundle has it.
    pub fn path(&self) -> String {
        self.0.join(".")
    }

    /// Returns the path of the value in a request.
    fn field(&self) -> String {
        let (root, names) = self.split();
        let field = match (root, names.as_slice()) {
            ("case", ["id"]) => return "case.id".to_owned(),
            ("resource", ["id"]) => return "resource.ref.id".to_owned(),
            ("case", _) => "case.attributes_json",
            ("facts", _) => "facts_json",
            ("resource", _) => "resource.attributes_json",
            // Derived values are computed from the arguments.
            _ => "arguments_json",
        };
        format!("{field}.{}", names.join("."))
    }

    fn value(&self, values: Values<'_>) -> Result<Value, Refusal> {
        let (root, names) = self.split();
        let (id, object) = match root {
            "args" => (None, Some(values.arguments)),
            "case" => (Some(values.case.0), Some(values.case.1)),
            "derived" => (None, Some(values.derived)),
            "facts" => (None, values.facts),
            _ => (Some(values.resource.0), values.resource.1),
        };
        if let (Some(id), ["id"]) = (id, names.as_slice()) {
            return Ok(Value::from(id));
        }
        let (first, rest) = names.split_first().unwrap_or((&"", &[]));
        let found = object.and_then(|object| object.get(*first));
        let found = rest.iter().try_fold(found, |value, name| Some(value?.as_object()?.get(*name))).flatten();
        found.cloned().ok_or_else(|| Refusal::invalid(self.field(), "is missing, and the customer must see it"))
    }
}

/// Returns a value as a customer may see it. A short word of letters and digits is shown as it is; any other text stands in
/// quotation marks, so that the customer sees where it begins and ends.
fn shown(value: &Value, place: &Place) -> Result<String, Refusal> {
    let refuse = |problem| Err(Refusal::invalid(place.field(), problem));
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        Value::String(text) if text.is_empty() || text.chars().count() > VALUE_MAX => {
            refuse("must have 1 to 100 characters, because the customer is to agree to it")
        }
        Value::String(text) if visible(text) != *text => refuse("has characters that can't be shown to the customer"),
        Value::String(text) => {
            let joins = text.bytes().filter(|byte| b"-_".contains(byte)).count();
            let letters = text.bytes().filter(u8::is_ascii_alphanumeric).count();
            let is_word = letters + joins == text.len() && joins <= 2 && text.len() <= WORD_MAX;
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte));
            let quoted = || format!("“{}”", text.replace(QUOTES, "'"));
            Ok(if is_word || is_number { text.clone() } else { quoted() })
        }
        Value::Array(items) if items.is_empty() || items.len() > MEMBERS_MAX => {
            refuse("must have 1 to 20 members, because the customer is to agree to each")
        }
        Value::Array(items) => {
            let items: Result<Vec<String>, Refusal> = items.iter().map(|item| shown(item, place)).collect();
            Ok(items?.join(", "))
        }
        _ => refuse("is of a type that can't be shown to the customer"),
    }
}

fn code(currency: &Value, place: &Place) -> Result<String, Refusal> {
    let code = currency.as_str().filter(|code| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()));
    code.map(str::to_owned).ok_or_else(|| Refusal::invalid(place.field(), "is not a currency code of ISO 4217"))
}

/// Returns an amount in the minor unit of its currency as people write it, such as `12.50 EUR`.
fn money(amount: &Value, code: &str, place: &Place) -> Result<String, Refusal> {
    let Value::Integer(amount) = amount else {
        return Err(Refusal::invalid(place.field(), "is not an integer"));
    };
    let digits = DIGITS.iter().find(|(known, _)| *known == code).map_or(2, |(_, digits)| *digits);
    let sign = if *amount < 0 { "-" } else { "" };
    let padded = format!("{:0>width$}", amount.unsigned_abs(), width = digits + 1);
    let (whole, fraction) = padded.split_at(padded.len() - digits);
    let point = if digits == 0 { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{fraction} {code}"))
}

#[cfg(test)]
impl schemars::JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConsentText".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "minLength": 1, "maxLength": TEXT_MAX})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn text(text: &str) -> Result<Text, String> {
        Text::try_from(text.to_owned())
    }

    fn of(template: &str, name: &str, value: Value) -> Result<String, (String, &'static str)> {
        let arguments = json::object([(name, value), ("currency", Value::from("EUR"))]);
        let (arguments, none) = (arguments.as_object().expect("an object").clone(), Object::new());
        let values =
            Values { arguments: &arguments, facts: None, derived: &none, case: ("c", &none), resource: ("r", None) };
        text(template).expect("a text").of(values).map_err(|refusal| match refusal {
            Refusal::Invalid { field, problem, .. } => (field, problem),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn values_are_shown_as_customers_read_them_and_none_can_pose_as_the_text() {
        let shown = |value: &str| of("Cancel {args.x}?", "x", Value::from(value)).expect("shown");
        assert_eq!(shown("ABC-123"), "Cancel ABC-123?");
        assert_eq!(shown("12.50"), "Cancel 12.50?");
        assert_eq!(shown("it, or call evil.example"), "Cancel “it, or call evil.example”?");
        assert_eq!(shown("a” or „b\""), "Cancel “a' or 'b'”?");
        assert_eq!(shown("nothing_Reply-YES-to-get-500-EUR"), "Cancel “nothing_Reply-YES-to-get-500-EUR”?");
        let list = Value::Array(vec![Value::from("card"), Value::Integer(3)]);
        assert_eq!(of("{args.x}", "x", list), Ok("card, 3".to_owned()));
        for value in ["", &"x".repeat(101), "a\u{202e}b", "a\nb", "a\u{a0}b", "a\u{3000}b", "a\u{e000}b"] {
            assert_eq!(
                of("{args.x}", "x", Value::from(value)).expect_err("refused").0,
                "arguments_json.x",
                "{value:?}"
            );
        }
        for value in [
            Value::Bool(true),
            Value::Object(Object::new()),
            Value::Array(vec![Value::Integer(1); 21]),
            Value::Array(vec![]),
        ] {
            assert_eq!(of("{args.x}", "x", value).expect_err("refused").0, "arguments_json.x");
        }
        assert_eq!(of("{args.y}", "x", Value::Integer(1)).expect_err("missing").0, "arguments_json.y");
    }

    #[test]
    fn amounts_are_shown_in_the_unit_of_their_currency() {
        let amount = |minor: i64, code: &str| {
            let arguments = json::object([("a", Value::Integer(minor)), ("c", Value::from(code))]);
            let (arguments, none) = (arguments.as_object().expect("an object").clone(), Object::new());
            let values = Values {
                arguments: &arguments,
                facts: None,
                derived: &none,
                case: ("c", &none),
                resource: ("r", None),
            };
            text("{args.a in args.c}").expect("a text").of(values)
        };
        for (minor, code, expected) in [
            (1250, "EUR", "12.50 EUR"),
            (5, "USD", "0.05 USD"),
            (1250, "JPY", "1250 JPY"),
            (1250, "KWD", "1.250 KWD"),
            (0, "EUR", "0.00 EUR"),
            (-1, "EUR", "-0.01 EUR"),
            (i64::MIN, "JPY", "-9223372036854775808 JPY"),
        ] {
            assert_eq!(amount(minor, code), Ok(expected.to_owned()));
        }
        assert!(amount(1, "euro").is_err() && amount(1, "eur").is_err());
    }

    #[test]
    fn texts_that_name_no_value_are_refused() {
        for wrong in [
            "",
            " ",
            "a\nb",
            "{",
            "}",
            "a } b {args.x}",
            "{}",
            "{args}",
            "{x.y}",
            "{args.}",
            "{args.x in }",
            "{{args.x}}",
        ] {
            assert!(text(wrong).is_err(), "{wrong:?}");
        }
        let places = text("{args.a in case.c} for {resource.id}").expect("a text");
        let places: Vec<(String, Usage)> =
            places.places().into_iter().map(|(place, usage)| (place.path(), usage)).collect();
        assert_eq!(
            places,
            [
                ("args.a".to_owned(), Usage::Amount),
                ("case.c".to_owned(), Usage::Currency),
                ("resource.id".to_owned(), Usage::Value)
            ]
        );
    }
}
