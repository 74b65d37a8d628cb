//! Rules of a bundle (`detectors/*.yaml`) that find injections, find sensitive values and check drafts. Each
//! rule carries examples and counter-examples; a bundle in which one of them fails is rejected. Patterns use
//! the `regex` crate, so matching is linear in the text, and their size is bounded. Patterns match bytes
//! rather than Unicode scalar values: folded text is ASCII except for scripts without look-alikes, and an
//! ASCII-only automaton is a tenth of the size.

use regex::bytes::{Match, RegexSet, RegexSetBuilder};
use serde::Deserialize;

use crate::content::nearby::Context;
use crate::content::normalise::Views;
use crate::content::pattern::Pattern;
use crate::model::halt::Severity;
use crate::model::part::Part;

/// Maximum size of the compiled set of all rules with the same [`Judges`], in bytes.
const SET_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum memory of the lazily built automaton of a set, in bytes.
const DFA_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum number of findings of one rule in one view of a text (in drafts: in one sentence). Repetitions add
/// nothing.
const FINDINGS_MAX: usize = 16;
/// Maximum number of matches of a rule whose group `value` is extracted. Further matches are reported whole,
/// because captures cost more than a search.
const PARTED_MAX: usize = 64;
/// Maximum number of sentences of a draft that are checked one by one. The text after them is checked in
/// pieces of [`PIECE`] bytes, without the exceptions (`unless`), which apply to one sentence.
const SENTENCES_MAX: usize = 512;
const PIECE: usize = 4096;
/// Number of bytes that a piece shares with the next one.
const OVERLAP: usize = 512;
/// Separates the previous turn from the text in an example.
const REPLIES: &str = " => ";

/// The kind of text or content that the rules of a file are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Judges {
    /// Problems in drafts.
    Draft,
    /// Injections in incoming texts.
    Incoming,
    /// Sensitive values in texts.
    Private,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct File {
    pub judges: Judges,
    /// BCP 47 tag of the rules' language. A code may occur once per language.
    pub language: String,
    /// Words that say what the value after them is; only with `judges: private`.
    #[serde(default)]
    context: Option<Context>,
    rules: Vec<Written>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Written {
    code: String,
    kind: String,
    #[serde(default)]
    severity: Option<String>,
    pattern: String,
    #[serde(default)]
    unless: String,
    #[serde(default)]
    except: String,
    #[serde(default)]
    asked: String,
    #[serde(default)]
    bare: String,
    #[serde(default)]
    generic: bool,
    #[serde(default)]
    suggestion: String,
    examples: Vec<String>,
    counter_examples: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique among the rules with the same [`Judges`] and language.
    pub code: String,
    pub kind: String,
    /// BCP 47 tag.
    language: String,
    pub severity: Severity,
    /// Advice for the model on what to write instead; may be empty.
    pub suggestion: String,
    /// Whether the rule is ignored where a rule of its kind that is not generic matches in the same sentence
    /// (other than in drafts: in the same view).
    generic: bool,
    pattern: Pattern,
    unless: Option<Pattern>,
    /// A value that this matches is not reported.
    except: Option<Pattern>,
    /// Patterns for the previous turn, and for a bare reply to it.
    asked: Option<(Pattern, Pattern)>,
}

impl Rule {
    /// Forgets the compiled patterns until they are needed.
    fn release(&mut self) {
        self.pattern.release();
        let (asked, bare) = self.asked.as_mut().map_or((None, None), |(asked, bare)| (Some(asked), Some(bare)));
        [self.unless.as_mut(), self.except.as_mut(), asked, bare].into_iter().flatten().for_each(Pattern::release);
    }

    /// Returns the places where a pattern matches (its group `value`, if it has one), except for values that
    /// `except` matches.
    fn spans(&self, pattern: &Pattern, text: &str, most: usize) -> Vec<(usize, usize)> {
        let pattern = pattern.compiled();
        let named = pattern.capture_names().flatten().any(|name| name == "value");
        // A match of bytes is extended to whole characters.
        let whole = |found: Match<'_>| {
            let start = (0..=found.start()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            (start, (found.end()..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len()))
        };
        let bytes = text.as_bytes();
        let counts = |(start, end): &(usize, usize)| {
            let value = text.part(*start..*end);
            !value.is_empty() && !self.except.as_ref().is_some_and(|except| except.is_match(value))
        };
        if !named {
            return pattern.find_iter(bytes).map(whole).filter(counts).take(most).collect();
        }
        let mut end = 0;
        let mut parted = 0;
        let mut found = vec![];
        for captures in pattern.captures_iter(bytes).take(PARTED_MAX) {
            parted += 1;
            end = captures.get(0).map_or(end, |all| all.end());
            found.extend(captures.name("value").map(whole).filter(counts));
            if found.len() >= most {
                return found;
            }
        }
        while parted == PARTED_MAX && found.len() < most {
            let Some(all) = pattern.find_at(bytes, end) else { break };
            end = all.end().max(all.start() + 1);
            found.push(whole(all));
        }
        found
    }
}

/// All rules with the same [`Judges`].
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    /// All patterns together, which find the rules that match; without it, each rule is tried.
    set: Option<RegexSet>,
    /// Whether each sentence is matched separately, together with its exceptions.
    by_sentence: bool,
    /// Whether the number of findings is unlimited. It is for sensitive values, since any that is not found
    /// is passed on.
    all: bool,
    context: Context,
}

/// A rule, and the place of its match in a view.
pub type Found<'r> = (&'r Rule, (usize, usize));

impl Rules {
    /// Adds the rules of a file. `fits` returns what is wrong with a kind and code, if anything. Returns the
    /// faults, each with the code of its rule.
    pub fn read(&mut self, file: File, fits: impl Fn(&str, &str) -> Option<String>) -> Vec<(String, String)> {
        self.by_sentence = file.judges == Judges::Draft;
        self.all = file.judges == Judges::Private;
        let mut faults = vec![];
        if file.context.is_some() && !self.all {
            faults.push(("context".to_owned(), "`context` needs `judges: private`".to_owned()));
        }
        for word in self.context.add(file.context.unwrap_or_default()) {
            let problem =
                format!("`context`: the word \"{word}\" is never found; write it in small letters and without accents");
            faults.push((word, problem));
        }
        for written in file.rules {
            let code = written.code.clone();
            let mut fault = |problem: String| faults.push((code.clone(), format!("rule `{code}`: {problem}")));
            if let Some(problem) = fits(&written.kind, &written.code) {
                fault(problem);
            }
            if self.rules.iter().any(|known| known.code == written.code && known.language == file.language) {
                fault("another rule with this code and language exists".into());
            }
            if written.examples.is_empty() || written.counter_examples.is_empty() {
                fault("needs at least one example and one counter-example".into());
            }
            let read = rule(&written, &file.language);
            match read {
                Ok(mut rule) => {
                    let (by_sentence, all) = (self.by_sentence, self.all);
                    let alone = Self { rules: vec![rule.clone()], by_sentence, all, ..Self::default() };
                    for example in written.examples.iter().filter(|example| !alone.finds_example(example)) {
                        fault(format!("does not find its example \"{example}\""));
                    }
                    for example in written.counter_examples.iter().filter(|example| alone.finds_example(example)) {
                        fault(format!("finds its counter-example \"{example}\""));
                    }
                    rule.release();
                    self.rules.push(rule);
                }
                Err(problem) => fault(problem),
            }
        }
        faults
    }

    /// Compiles the patterns together, after all files were read. Without this, rules match as well but slower.
    ///
    /// # Errors
    /// If the patterns together are too large.
    pub fn compile(&mut self) -> Result<(), String> {
        let patterns = self.rules.iter().map(|rule| rule.pattern.text());
        let built = RegexSetBuilder::new(patterns)
            .unicode(false)
            .case_insensitive(true)
            .size_limit(SET_BYTES_MAX)
            .dfa_size_limit(DFA_BYTES_MAX)
            .build();
        self.set = Some(built.map_err(|_| "the rules together are too large when compiled".to_owned())?);
        Ok(())
    }

    /// Returns the rules that can match a text.
    fn matching(&self, text: &str) -> Vec<&Rule> {
        match &self.set {
            Some(set) => set.matches(text.as_bytes()).into_iter().filter_map(|index| self.rules.get(index)).collect(),
            None => self.rules.iter().collect(),
        }
    }

    fn most(&self) -> usize {
        if self.all { usize::MAX } else { FINDINGS_MAX }
    }

    /// Returns the words that say what the value after them is.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub fn finds(&self, kind: &str) -> bool {
        self.rules.iter().any(|rule| rule.kind == kind)
    }

    pub fn suggestion(&self, code: &str) -> Option<&str> {
        self.rules.iter().find(|rule| rule.code == code).map(|rule| rule.suggestion.as_str())
    }

    pub fn codes<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().filter(move |rule| rule.kind == kind).map(|rule| rule.code.as_str())
    }

    /// Reports the matches of all rules in a view of a text.
    pub fn find<'r>(&'r self, text: &str, mut found: impl FnMut(Found<'r>)) {
        let sentences = if self.by_sentence { bounded(text, sentences(text)) } else { vec![(0, text.len())] };
        for (index, (start, end)) in sentences.into_iter().enumerate() {
            let is_sentence = index < SENTENCES_MAX;
            let Some(sentence) = text.get(start..end) else { continue };
            // A single line break does not end a sentence, so it is matched as a space.
            let unwrapped = self.by_sentence.then(|| sentence.replace(['\n', '\r', '\t'], " "));
            let sentence = unwrapped.as_deref().unwrap_or(sentence);
            let excepted = |rule: &&Rule| {
                self.by_sentence && is_sentence && rule.unless.as_ref().is_some_and(|unless| unless.is_match(sentence))
            };
            let all: Vec<(&Rule, Vec<(usize, usize)>)> = self
                .matching(sentence)
                .into_iter()
                .filter(|rule| !excepted(rule))
                .map(|rule| (rule, rule.spans(&rule.pattern, sentence, self.most())))
                .filter(|(_, spans)| !spans.is_empty())
                .collect();
            let told =
                |rule: &Rule| rule.generic && all.iter().any(|(other, _)| !other.generic && other.kind == rule.kind);
            for (rule, spans) in all.iter().filter(|(rule, _)| !told(rule)) {
                spans.iter().for_each(|span| found((rule, (start + span.0, start + span.1))));
            }
        }
    }

    /// Reports what a bare reply discloses after the previous turn asked for it. Both texts are folded.
    pub fn replied<'r>(&'r self, turn: &str, text: &str, mut found: impl FnMut(Found<'r>)) {
        for rule in &self.rules {
            let Some((asked, bare)) = &rule.asked else { continue };
            if asked.is_match(turn) && !rule.unless.as_ref().is_some_and(|unless| unless.is_match(text)) {
                rule.spans(bare, text, self.most()).into_iter().for_each(|span| found((rule, span)));
            }
        }
    }

    fn finds_example(&self, example: &str) -> bool {
        let (turn, text) = example.split_once(REPLIES).unwrap_or(("", example));
        let (turn, views) = (Views::of(turn), Views::of(text));
        let mut finds = false;
        views.all().for_each(|view| self.find(view.text(), |_| finds = true));
        self.replied(turn.folded.text(), views.folded.text(), |_| finds = true);
        finds
    }
}

fn rule(written: &Written, language: &str) -> Result<Rule, String> {
    let severity = match &written.severity {
        None => Severity::Medium,
        Some(name) => Severity::from_name(name).ok_or("`severity` must be info, low, medium, high or critical")?,
    };
    let optional = |name: &str, text: &str| if text.is_empty() { Ok(None) } else { Pattern::new(name, text).map(Some) };
    let asked = match (optional("asked", &written.asked)?, optional("bare", &written.bare)?) {
        (Some(asked), Some(bare)) => Some((asked, bare)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err("`asked` and `bare` must be given together".into()),
    };
    Ok(Rule {
        code: written.code.clone(),
        kind: written.kind.clone(),
        language: language.to_owned(),
        severity,
        suggestion: written.suggestion.clone(),
        generic: written.generic,
        pattern: Pattern::new("pattern", &written.pattern)?,
        unless: optional("unless", &written.unless)?,
        except: optional("except", &written.except)?,
        asked,
    })
}

/// Keeps the first [`SENTENCES_MAX`] sentences and splits the rest of the text into pieces. Pieces overlap,
/// so that a match across a boundary is found unless it is longer than [`OVERLAP`].
fn bounded(text: &str, mut sentences: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let Some((mut start, _)) = sentences.get(SENTENCES_MAX).copied() else { return sentences };
    sentences.truncate(SENTENCES_MAX);
    while start < text.len() {
        let end = (start + PIECE..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
        sentences.push((start, end));
        if end == text.len() {
            break;
        }
        start = (start + 1..=end - OVERLAP).rev().find(|start| text.is_char_boundary(*start)).unwrap_or(end);
    }
    sentences
}

/// Words that end with a dot within a sentence.
const ABBREVIATIONS: [&str; 14] =
    ["bzw", "ca", "dr", "e.g", "herr", "i.e", "mme", "mr", "mrs", "ms", "no", "nr", "sr", "sra"];

fn is_abbreviated(before: &str) -> bool {
    let word = before.rsplit([' ', '\n', '(']).next().unwrap_or("");
    word.len() <= 4 && ABBREVIATIONS.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Splits a text into sentences. A sentence ends after `.`, `!` or `?`, at an empty line or a line that
/// begins with a bullet, and before "but" and "however". A dot within a number or a name does not end one.
pub fn sentences(text: &str) -> Vec<(usize, usize)> {
    let mut cuts = vec![];
    let mut following = text.char_indices().peekable();
    while let Some((at, character)) = following.next() {
        let ends = match character {
            '.' => following.peek().is_none_or(|(_, next)| !next.is_alphanumeric()) && !is_abbreviated(text.part(..at)),
            '!' | '?' => true,
            '\n' => following.peek().is_some_and(|(_, next)| matches!(next, '\n' | '\r' | '-' | '*' | '•')),
            _ => false,
        };
        if ends {
            cuts.push(at + character.len_utf8());
        } else if character == ' ' {
            let rest = text.part(at + 1..);
            if ["but ", "however ", "however,"].iter().any(|word| rest.starts_with(word)) {
                cuts.push(at);
            }
        }
    }
    cuts.push(text.len());
    let mut start = 0;
    let mut found = vec![];
    for end in cuts {
        if start < end {
            found.push((start, end));
        }
        start = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(text: &str) -> (Rules, Vec<(String, String)>) {
        let mut rules = Rules::default();
        let faults = rules.read(serde_saphyr::from_str(text).expect("a file"), |_, _| None);
        (rules, faults)
    }

    #[test]
    fn sentences_are_the_text_and_a_dot_in_a_number_ends_none() {
        let text = "It is 4.20 here. Yes! But why? a.b\nno but yes";
        let found: Vec<&str> = sentences(text).into_iter().map(|(start, end)| &text[start..end]).collect();
        assert_eq!(found, ["It is 4.20 here.", " Yes!", " But why?", " a.b\nno", " but yes"]);
        assert_eq!(found.concat(), text);
    }

    #[test]
    fn an_exception_holds_for_its_own_sentence() {
        let (rules, faults) = read(
            "judges: draft\nlanguage: en\nrules:\n- {code: c, kind: claim, pattern: 'is approved', unless: '\\bnot\\b', examples: ['It is approved.'], counter_examples: ['It not is approved.']}\n",
        );
        assert_eq!(faults, []);
        let mut found = vec![];
        rules.find("it is not. it is approved. not that it is approved", |(_, span)| found.push(span));
        assert_eq!(found, [(14, 25)]);
    }

    #[test]
    fn what_stands_behind_many_sentences_is_found_wherever_it_stands() {
        let (rules, faults) = read(
            "judges: draft\nlanguage: en\nrules:\n- {code: c, kind: claim, pattern: 'is approved', examples: ['It is approved.'], counter_examples: ['It is not.']}\n",
        );
        assert_eq!(faults, []);
        for filler in (0..2 * PIECE).step_by(7).chain(PIECE - 20..PIECE + 20) {
            let text = format!("{}{} it is approved, for sure", "a. ".repeat(SENTENCES_MAX), "w ".repeat(filler / 2));
            let mut found = BTreeSet::new();
            rules.find(&text, |(_, span)| {
                found.insert(span);
            });
            assert_eq!(
                found.into_iter().map(|(start, end)| &text[start..end]).collect::<Vec<_>>(),
                ["is approved"],
                "{filler}"
            );
        }
    }

    #[test]
    fn a_bare_reply_counts_when_it_was_asked_for() {
        let (rules, faults) = read(
            "judges: private\nlanguage: en\nrules:\n- {code: pin, kind: pin, pattern: 'pin is (?P<value>\\d+)', asked: 'your pin', bare: '^(?P<value>\\d{4})$', examples: ['pin is 4215', 'Your PIN? => 4215'], counter_examples: ['4215', 'Your name? => 4215']}\n",
        );
        assert_eq!(faults, []);
        let mut found = vec![];
        rules.find("my pin is 4215.", |(_, span)| found.push(span));
        assert_eq!(found, [(10, 14)]);
    }

    #[test]
    fn rules_that_would_mislead_are_refused() {
        for (rule, problem) in [
            ("{code: c, kind: k, pattern: 'x', examples: ['y'], counter_examples: ['z']}", "does not find its example"),
            (
                "{code: c, kind: k, pattern: 'x', examples: ['x'], counter_examples: ['xx']}",
                "finds its counter-example",
            ),
            ("{code: c, kind: k, pattern: '(', examples: ['x'], counter_examples: ['y']}", "can't be used"),
            ("{code: c, kind: k, pattern: 'x*', examples: ['x'], counter_examples: ['y']}", "matches the empty string"),
            ("{code: c, kind: k, pattern: 'x', examples: [], counter_examples: ['y']}", "needs at least one example"),
            ("{code: c, kind: k, severity: bad, pattern: 'x', examples: ['x'], counter_examples: ['y']}", "`severity`"),
            (
                "{code: c, kind: k, pattern: 'x', asked: 'x', examples: ['x'], counter_examples: ['y']}",
                "must be given together",
            ),
            (
                "{code: c, kind: k, pattern: '(\\w{600}){600}', examples: ['x'], counter_examples: ['y']}",
                "can't be used",
            ),
        ] {
            let (_, faults) = read(&format!("judges: incoming\nlanguage: en\nrules:\n- {rule}\n"));
            assert!(faults.iter().any(|(_, fault)| fault.contains(problem)), "{rule}: {faults:?}");
        }
    }
}
