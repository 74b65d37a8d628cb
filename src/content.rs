//! What untrusted text tries: phrases of the bundle, `detectors/*.yaml`. Each rule carries its own examples and counter-examples, and a
//! bundle in which one fails is refused. Patterns are of the `regex` crate: linear in the text, bounded in size.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::model::call::Untrusted;
use crate::model::finding::{Finding, Screened};

/// The longest text that is screened; a longer one counts as unscreened.
pub const TEXT_MAX: usize = 64 * 1024;
/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// The most findings of one rule in one text: more of the same say nothing more.
const FINDINGS_MAX: usize = 16;

/// A rule as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    code: String,
    kind: String,
    pattern: String,
    examples: Vec<String>,
    counter_examples: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug)]
struct Phrase {
    code: String,
    kind: String,
    pattern: Regex,
}

/// The rules of a bundle.
#[derive(Clone, Debug, Default)]
pub struct Phrases(Vec<Phrase>);

impl Phrases {
    /// Reads a file of rules into the others. `kinds` are the members of the schema's type of findings.
    ///
    /// # Errors
    /// The YAML error as it is.
    pub fn read(&mut self, text: &str, kinds: &[String]) -> Result<Vec<(String, String)>, serde_saphyr::Error> {
        let written: Vec<Written> = serde_saphyr::from_str(text)?;
        let mut faults = vec![];
        for rule in written {
            let mut fault = |problem: String| faults.push((rule.code.clone(), format!("rule `{}`: {problem}", rule.code)));
            if !kinds.contains(&rule.kind) {
                fault(format!("`{}` is no kind of finding of the schema", rule.kind));
            }
            if self.0.iter().any(|known| known.code == rule.code) {
                fault("there is another of this code".into());
            }
            if rule.examples.is_empty() || rule.counter_examples.is_empty() {
                fault("has no example, or no counter-example".into());
            }
            let pattern = RegexBuilder::new(&rule.pattern).case_insensitive(true).size_limit(PATTERN_BYTES_MAX).build();
            let pattern = match pattern {
                Ok(pattern) => pattern,
                Err(error) => {
                    let text = error.to_string();
                    fault(format!("`pattern` can't be used: {}", text.lines().last().unwrap_or_default().trim_start_matches("error: ")));
                    continue;
                }
            };
            for example in rule.examples.iter().filter(|text| !pattern.is_match(text)) {
                fault(format!("does not find its example \"{example}\""));
            }
            for example in rule.counter_examples.iter().filter(|text| pattern.is_match(text)) {
                fault(format!("finds its counter-example \"{example}\""));
            }
            self.0.push(Phrase { code: rule.code, kind: rule.kind, pattern });
        }
        Ok(faults)
    }

    /// Whether a rule finds this kind.
    pub fn finds(&self, kind: &str) -> bool {
        self.0.iter().any(|phrase| phrase.kind == kind)
    }

    /// Screens the texts of a call.
    pub fn screen(&self, texts: &[Untrusted]) -> Screened {
        let mut screened = Screened::default();
        for text in texts {
            if text.text.len() > TEXT_MAX {
                screened.unscreened = true;
                continue;
            }
            screened.screened = true;
            for phrase in &self.0 {
                let found = phrase.pattern.find_iter(&text.text).take(FINDINGS_MAX);
                screened.findings.extend(found.map(|found| Finding {
                    kind: phrase.kind.clone(),
                    code: phrase.code.clone(),
                    source: text.source.clone(),
                    span: (found.start(), found.end()),
                }));
            }
        }
        screened
    }
}
