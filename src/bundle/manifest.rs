//! `bundle.yaml`: the bundle's name and version, and the roles that its entity types play.

use crate::model::chain::DevelopmentDefaults;
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::number::to_usize;
use crate::model::roles::Roles;
use crate::model::source::Source;

/// Contents of `bundle.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Manifest {
    pub name: String,
    /// Version number, incremented with every release.
    pub version: u64,
    /// Roles that entity types play; not needed when gates are off.
    pub roles: Option<Roles>,
    /// Defaults for an absent credential in development mode.
    pub development: Option<DevelopmentDefaults>,
}

impl Manifest {
    /// Reads and validates `bundle.yaml`.
    ///
    /// # Errors
    /// The first fault, with its position.
    pub fn read(source: &Source) -> Result<Self, Fault> {
        let manifest: Self = serde_saphyr::from_str(&source.text).map_err(|error| yaml_fault(source, &error))?;
        let named = (1..=64).contains(&manifest.name.len()) && !manifest.name.contains(char::is_control);
        if !named {
            let at = source.find("name").unwrap_or((0, 0));
            return Err(Fault::new(
                Code::ManifestName,
                source,
                at,
                "`name` must be 1 to 64 bytes without control characters",
            ));
        }
        Ok(manifest)
    }
}

/// Converts a YAML error into a fault at its position.
pub fn yaml_fault(source: &Source, error: &serde_saphyr::Error) -> Fault {
    let at =
        error.location().map_or(0, |location| source.offset(to_usize(location.line()), to_usize(location.column())));
    Fault::new(Code::YamlInvalid, source, (at, 1), yaml_words(error))
}

/// Returns the message of a YAML error in words for the author of the file, without its place.
pub fn yaml_words(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
    // The library addresses programmers.
    let duplicate = text.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split(", set ").next());
    match duplicate {
        Some(key) => format!("the key `{key}` occurs twice"),
        None if text == "expected mapping start" => "a mapping (`key: value`) is expected here".to_owned(),
        None if text == "expected sequence start" => "a list (`[one, other]`) is expected here".to_owned(),
        None if text.starts_with("multiple YAML documents") => {
            "a second YAML document begins: a file has one".to_owned()
        }
        None => match text.strip_prefix("invalid ") {
            Some("u8" | "u16" | "u32" | "u64" | "usize") => "is not a whole number, or too large".to_owned(),
            Some("i32" | "i64") => "is not a whole number".to_owned(),
            Some(_) | None => text.to_owned(),
        },
    }
}

/// Returns place and message of a YAML error in one line.
pub fn yaml_line(error: &serde_saphyr::Error) -> String {
    let place = error
        .location()
        .map_or_else(String::new, |location| format!("line {}, column {}: ", location.line(), location.column()));
    format!("{place}{}", yaml_words(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_errors_speak_to_the_author_and_name_the_place_once() {
        let line = |text: &str| yaml_line(&serde_saphyr::from_str::<Manifest>(text).expect_err("faulty"));
        assert_eq!(line("name: a\nname: b\n"), "line 2, column 1: the key `name` occurs twice");
        assert_eq!(line("name: a\nversion: x\n"), "line 2, column 10: is not a whole number, or too large");
        assert!(line("name: a\nversion: 1\n---\nx: 1\n").ends_with("a second YAML document begins: a file has one"));
        let list = "name: a\nversion: 1\ndevelopment: [a]\n";
        assert_eq!(line(list), "line 3, column 14: a mapping (`key: value`) is expected here");
        let unknown = line("name: a\nversoin: 1\n");
        assert!(
            unknown.starts_with("line 2, column 1: unknown field `versoin`") && !unknown.contains("at line"),
            "{unknown}"
        );
    }
}
