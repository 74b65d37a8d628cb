//! The words of a language and the claims that they can make, as `detectors/claims-<language>.yaml` has them.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;

use super::Said;
use super::words::{Word, Words, words, written};
use crate::content::normalise::View;
use crate::model::halt::Severity;

/// Maximum number of words of an entry.
const WORDS_MAX: usize = 6;
/// In an entry, this word matches any number, also an ordinal: 2, 2nd.
const NUMBER: &str = "0";

/// What a word does in a sentence. The order is the one in which the roles of one word are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) enum Role {
    /// A phrase whose words mean something else than each of them: French "tout à fait" does nothing.
    Idiom,
    /// Begins another clause: and.
    And,
    /// Denies the subject: no, none.
    No,
    /// Begins a condition or a doubt: if, once, not sure.
    If,
    /// Begins a question: has, when.
    Ask,
    /// Begins what the customer said: you wrote.
    Said,
    /// Says that the sentence is a general rule: usually, within.
    Usual,
    /// Says that the sentence only speaks of a thing: about, request.
    Topic,
    /// Names a time in the past, such as the name of a month.
    Dated,
    /// The company as the subject: we, I.
    We,
    /// The customer as the subject: you.
    You,
    /// Begins another subject: it, everything.
    Thing,
    /// Determiner of another subject: your, the.
    The,
    /// Auxiliary of what has happened: have.
    Have,
    /// Auxiliary of what happened: was.
    Was,
    /// Auxiliary of what is so: is.
    Is,
    /// What may happen, will happen, or is only wanted: can, will, to be.
    May,
    /// Makes an active verb passive: been.
    Been,
    /// Denies the verb: not, unable.
    Not,
}

/// What the words of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    About,
    Name,
    Done,
    Did,
    Past,
    Went,
    State,
    Says,
}

/// A file of claims.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClaimFile {
    /// Language of the words, as a primary subtag of BCP 47.
    pub language: String,
    /// Whether an auxiliary may stand behind its verb, as in German.
    #[serde(default)]
    verb_last: bool,
    /// Words that are frequent in the language, by which it is known besides the other words of this file.
    common: Vec<String>,
    /// Endings that frames leave out.
    #[serde(default)]
    endings: Endings,
    /// Words and phrases by what they do in a sentence.
    words: BTreeMap<Role, Vec<String>>,
    frames: Vec<WrittenFrame>,
}

/// Maps an ending to the endings that may replace it, so that a frame needs one form of a word: with `{o: [a]}`, the entry "enviado"
/// also matches "enviada". Applies to entries of one word, and uses the longest ending that matches.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Endings {
    /// Endings of `about` and `names`.
    #[serde(default)]
    nouns: BTreeMap<String, Vec<String>>,
    /// Endings of `done` and `did`.
    #[serde(default)]
    verbs: BTreeMap<String, Vec<String>>,
}

impl Endings {
    /// Returns an entry of a frame with its other forms.
    fn forms(&self, form: Form, entry: &str) -> Vec<String> {
        let endings = match form {
            Form::About | Form::Name => &self.nouns,
            Form::Done | Form::Did => &self.verbs,
            Form::Past | Form::Went | Form::State | Form::Says => return vec![entry.to_owned()],
        };
        let ending = endings.iter().filter(|(ending, _)| !entry.contains(' ') && entry.ends_with(ending.as_str()));
        let (stem, others) = match ending.max_by_key(|(ending, _)| ending.len()) {
            Some((ending, others)) => (entry.strip_suffix(ending.as_str()).unwrap_or(entry), others.as_slice()),
            None => (entry, [].as_slice()),
        };
        let others = others.iter().map(|other| format!("{stem}{other}"));
        std::iter::once(entry.to_owned()).chain(others).collect()
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct WrittenFrame {
    /// Claim of the schema.
    code: String,
    #[serde(default)]
    severity: Option<String>,
    /// Whether the claim is left out if the sentence makes another one.
    #[serde(default)]
    generic: bool,
    /// Whether only what was done just now is claimed, and not what the record says of a date.
    #[serde(default)]
    recent: bool,
    /// Advice for the model on what to write instead; one language of a claim needs it.
    #[serde(default)]
    suggestion: String,
    /// What the claim is about: refund, money.
    #[serde(default)]
    about: Vec<String>,
    /// Nouns of the event itself: reimbursement. If a frame has some, a sentence with one of them, or with a form of the frame,
    /// that neither claims the event nor says why not, is a finding `unplaced_claim`.
    #[serde(default)]
    names: Vec<String>,
    /// Forms of verbs that need nothing more: refunded.
    #[serde(default)]
    done: Vec<String>,
    /// Forms of verbs that need what the claim is about: issued.
    #[serde(default)]
    did: Vec<String>,
    /// Finite forms that need what the claim is about, but no subject and no auxiliary: Spanish "cancelamos", French "venons d'annuler".
    #[serde(default)]
    past: Vec<String>,
    /// Forms of verbs that what it is about does by itself: arrived.
    #[serde(default)]
    went: Vec<String>,
    /// States of what it is about: on its way.
    #[serde(default)]
    states: Vec<String>,
    /// Phrases that make the claim alone.
    #[serde(default)]
    says: Vec<String>,
    examples: Vec<String>,
    counter_examples: Vec<String>,
}

/// A claim that the words of a language can make.
#[derive(Clone, Debug)]
pub struct Frame {
    pub code: String,
    pub severity: Severity,
    pub suggestion: String,
    pub generic: bool,
    pub recent: bool,
    /// Whether a sentence about it that the grammar can't place is a finding.
    pub placed: bool,
}

/// A meaning of a word or phrase.
#[derive(Clone, Debug)]
pub(super) struct Meaning {
    /// Role in a sentence; `None` for the words of a frame.
    pub(super) role: Option<Role>,
    pub(super) frame: usize,
    pub(super) form: Form,
    /// Number of words.
    pub(super) length: usize,
    /// Whether the first word was written without the accents of the entry, so that it may be another word.
    pub(super) is_unaccented: bool,
}

impl Meaning {
    fn of(role: Option<Role>, frame: usize, form: Form) -> Self {
        Self { role, frame, form, length: 0, is_unaccented: false }
    }
}

/// The further words of an entry without accents, and its meaning.
type Entry = (Vec<String>, Meaning);

/// The words and frames of a language.
#[derive(Clone, Debug, Default)]
pub struct Lexicon {
    pub language: String,
    pub(super) verb_last: bool,
    common: FxHashSet<String>,
    pub frames: Vec<Frame>,
    /// Entries by their first word: as it is written, and without accents.
    exact: FxHashMap<String, Vec<Entry>>,
    folded: FxHashMap<String, Vec<Entry>>,
    roles: Vec<Role>,
}

impl Lexicon {
    /// Reads a file. `knows` returns whether the schema has a claim. Returns the faults, each with the name to look for.
    pub fn read(file: ClaimFile, knows: impl Fn(&str) -> bool) -> (Self, Vec<(String, String)>) {
        let common = file.common.iter().map(|word| word.to_lowercase()).collect();
        let mut lexicon = Self { language: file.language, verb_last: file.verb_last, common, ..Self::default() };
        let mut faults = vec![];
        for (role, words) in file.words {
            lexicon.roles.push(role);
            for word in words {
                let meaning = Meaning::of(Some(role), 0, Form::About);
                lexicon.add(&word, meaning).into_iter().for_each(|problem| faults.push((word.clone(), problem)));
            }
        }
        let mut examples = vec![];
        for (index, written) in file.frames.into_iter().enumerate() {
            let code = written.code.clone();
            let mut fault = |problem: String| faults.push((code.clone(), format!("claim `{code}`: {problem}")));
            if !knows(&code) {
                fault(format!("`{code}` is not a claim of the schema"));
            }
            let severity = match written.severity.as_deref().map_or(Some(Severity::High), Severity::from_name) {
                Some(severity) => severity,
                None => {
                    fault("`severity` must be info, low, medium, high or critical".to_owned());
                    Severity::High
                }
            };
            if written.examples.is_empty() || written.counter_examples.is_empty() {
                fault("needs at least one example and one counter-example".to_owned());
            }
            let placed = !written.names.is_empty();
            let forms = [
                (Form::About, written.about),
                (Form::Name, written.names),
                (Form::Done, written.done),
                (Form::Did, written.did),
                (Form::Past, written.past),
                (Form::Went, written.went),
                (Form::State, written.states),
                (Form::Says, written.says),
            ];
            for (form, words) in forms {
                for word in words.iter().flat_map(|word| file.endings.forms(form, word)) {
                    let meaning = Meaning::of(None, index, form);
                    lexicon.add(&word, meaning).into_iter().for_each(&mut fault);
                }
            }
            let (generic, recent, suggestion) = (written.generic, written.recent, written.suggestion);
            lexicon.frames.push(Frame { code: code.clone(), severity, suggestion, generic, recent, placed });
            examples.push((code, written.examples, written.counter_examples));
        }
        for (code, good, bad) in examples {
            let finds = |text: &str| {
                let mut finds = false;
                let view = View::folded(text);
                let words = Words::of(text, &view);
                lexicon.find(&words, |reading| finds |= reading.said == Said::Claim && reading.frame.code == code);
                finds
            };
            let missed =
                good.iter().filter(|text| !finds(text)).map(|text| format!("does not find its example \"{text}\""));
            let wrong =
                bad.iter().filter(|text| finds(text)).map(|text| format!("finds its counter-example \"{text}\""));
            faults.extend(missed.chain(wrong).map(|problem| (code.clone(), format!("claim `{code}`: {problem}"))));
        }
        (lexicon, faults)
    }

    /// Adds a word or phrase; returns what is wrong with it.
    fn add(&mut self, entry: &str, meaning: Meaning) -> Option<String> {
        let view = View::folded(entry);
        let words = words(view.text(), |span| written(entry, &view, span));
        let Some((first, rest)) = words.split_first().filter(|(_, rest)| rest.len() < WORDS_MAX) else {
            return Some(format!("`{entry}` must have 1 to {WORDS_MAX} words"));
        };
        let meaning = Meaning { length: words.len(), ..meaning };
        let rest: Vec<String> = rest.iter().map(|word| word.text.clone()).collect();
        self.exact.entry(first.exact.clone()).or_default().push((rest.clone(), meaning.clone()));
        let meaning = Meaning { is_unaccented: first.exact != first.text, ..meaning };
        self.folded.entry(first.text.clone()).or_default().push((rest, meaning));
        None
    }

    /// Returns how many of some words the language knows.
    pub(super) fn knows<'w>(&self, words: impl Iterator<Item = &'w str>) -> usize {
        words.filter(|word| self.common.contains(*word) || self.exact.contains_key(*word)).count()
    }

    pub(super) fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Returns the meanings of the words that begin at a place. Of entries that begin alike and have roles, only the longest
    /// counts.
    pub(super) fn meanings(&self, words: &[Word], at: usize) -> Vec<&Meaning> {
        let Some(first) = words.get(at) else { return vec![] };
        // Accents tell words apart, as in German "wurde" and "würde". Of a word that is unknown with them, what it is without
        // them counts, and then what stands behind an elision, as in French "l'argent".
        let elided = || first.text.rsplit_once('\'').map(|(_, word)| word);
        let number = || self.exact.get(NUMBER).filter(|_| first.is_number());
        let known = self.exact.get(&first.exact).or_else(|| self.folded.get(&first.text)).or_else(number);
        let Some(entries) = known.or_else(|| self.folded.get(elided()?)) else { return vec![] };
        let is = |word: &str, next: &Word| next.text == word || word == NUMBER && next.is_number();
        let follow = |rest: &Vec<String>| {
            rest.iter().zip(at + 1..).all(|(word, place)| words.get(place).is_some_and(|next| is(word, next)))
        };
        let all: Vec<&Meaning> = entries.iter().filter(|(rest, _)| follow(rest)).map(|(_, meaning)| meaning).collect();
        let longest =
            all.iter().filter(|meaning| meaning.role.is_some()).map(|meaning| meaning.length).max().unwrap_or(0);
        let counts = |meaning: &&Meaning| match meaning.role {
            None | Some(Role::Ask) => true,
            Some(_) => meaning.length == longest,
        };
        all.into_iter().filter(counts).collect()
    }
}
