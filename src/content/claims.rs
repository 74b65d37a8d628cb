//! Claims of drafts: that something was done, such as "we have refunded you". A small grammar reads the words of a sentence
//! from left to right: who is spoken of, the auxiliary verb, negation, condition and question decide whether the form of a
//! verb says that something happened. The words and the claims are data of the bundle, one file for each language.

mod event;
mod lexicon;
mod words;

use std::collections::BTreeSet;

use event::{Event, Says};
pub use lexicon::{ClaimFile, Frame, Lexicon};
use lexicon::{Form, Meaning, Role};
use words::Word;
pub use words::{Words, language};

use crate::model::finding::Span;

/// What the words of a sentence say of a frame, and their place.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'l> {
    pub frame: &'l Frame,
    pub span: Span,
    pub said: Said,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// That it happened.
    Claim,
    /// Nothing that is a claim, for this reason.
    Other(&'static str),
    /// The grammar can't tell.
    Unplaced,
}

/// Who or what the clause is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Nobody,
    Thing,
    We,
    You,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auxiliary {
    None,
    Have,
    Is,
    May,
    Was,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    None,
    /// The word stands in the condition.
    Inside,
    /// The condition stands before: what is so now, is so only then.
    Before,
}

/// What the words so far say about the verb that follows.
#[derive(Clone, Debug)]
struct Clause {
    subject: Subject,
    auxiliary: Auxiliary,
    /// Word that is the last auxiliary.
    helped_at: Option<usize>,
    has_been: bool,
    is_negated: bool,
    /// Word that denies the verb.
    denied_at: Option<usize>,
    is_nothing: bool,
    condition: Condition,
    /// Subject that stands behind the auxiliary, and begins another group of words if an auxiliary follows.
    next: Option<Subject>,
    is_new: bool,
    has_event: bool,
    /// Word at which the group begins.
    from: usize,
}

impl Clause {
    fn new() -> Self {
        Self {
            subject: Subject::Nobody,
            auxiliary: Auxiliary::None,
            helped_at: None,
            has_been: false,
            is_negated: false,
            denied_at: None,
            is_nothing: false,
            condition: Condition::None,
            next: None,
            is_new: true,
            has_event: false,
            from: 0,
        }
    }

    /// Begins another group of words with this subject.
    fn begin(&mut self, subject: Subject, at: usize) {
        // A verb that contains its subject may stand behind its negation.
        let is_denied = self.denied_at.is_some_and(|denied| denied + 2 >= at);
        self.is_negated = is_denied || (self.is_nothing && subject != Subject::We);
        self.is_nothing &= subject != Subject::We;
        // The subject may stand behind its auxiliary: "haben wir".
        let is_inverted = subject == Subject::We && self.helped_at.is_some_and(|helped| helped + 1 == at);
        if !is_inverted {
            (self.auxiliary, self.has_been) = (Auxiliary::None, false);
        }
        (self.subject, self.next) = (subject, None);
        (self.is_new, self.has_event, self.from) = (false, false, at);
    }

    /// Reads the sign that ends a clause.
    fn end(&mut self) {
        self.is_new = true;
        self.denied_at = None;
        self.is_nothing = false;
        if self.condition == Condition::Inside {
            self.condition = Condition::Before;
        }
    }

    fn subject(&mut self, subject: Subject, at: usize) {
        let is_object = subject == Subject::You && self.subject == Subject::We && self.from + 1 == at;
        if is_object && self.auxiliary == Auxiliary::None {
            return;
        }
        let is_known = subject == Subject::Thing && self.subject == Subject::Thing && self.auxiliary == Auxiliary::None;
        if is_known && !self.is_new && !self.has_event {
            self.next = Some(subject);
            return;
        }
        if subject == Subject::We || self.is_new || self.has_event || self.auxiliary == Auxiliary::None {
            self.begin(subject, at);
        }
        self.next = Some(subject);
    }

    fn auxiliary(&mut self, auxiliary: Auxiliary, at: usize) {
        if let Some(subject) = self.next.take().filter(|_| self.auxiliary != Auxiliary::None) {
            self.begin(subject, at.saturating_sub(1));
            self.next = None;
        }
        self.auxiliary = match (self.auxiliary, auxiliary) {
            (Auxiliary::May, _) | (_, Auxiliary::May) => Auxiliary::May,
            (Auxiliary::None, new) => new,
            (Auxiliary::Have, _) | (_, Auxiliary::Have) => Auxiliary::Have,
            (Auxiliary::Was, _) | (_, Auxiliary::Was) => Auxiliary::Was,
            (Auxiliary::Is, _) => Auxiliary::Is,
        };
        (self.is_new, self.has_event, self.helped_at) = (false, false, Some(at));
    }
}

/// A sentence with the meanings of its words.
struct Sentence<'l> {
    words: &'l [Word],
    meanings: Vec<Vec<&'l Meaning>>,
    is_question: bool,
    is_told: Option<usize>,
    is_general: bool,
    is_dated: bool,
    last_condition: usize,
    /// Whether a word is written with an accent. Then a word without one is another word.
    has_accents: bool,
}

impl Sentence<'_> {
    /// Returns the auxiliary at a place.
    fn auxiliary(&self, at: usize) -> Auxiliary {
        let all = [
            (Role::May, Auxiliary::May),
            (Role::Have, Auxiliary::Have),
            (Role::Was, Auxiliary::Was),
            (Role::Is, Auxiliary::Is),
        ];
        all.into_iter().find(|(role, _)| self.is(at, *role)).map_or(Auxiliary::None, |(_, auxiliary)| auxiliary)
    }

    /// Returns whether words of the sentence say why what it names need not have happened.
    fn is_explained(&self) -> bool {
        let explains = [Role::If, Role::May, Role::No, Role::Not, Role::Topic];
        let any = explains.into_iter().any(|role| (0..self.words.len()).any(|at| self.is(at, role)));
        any || self.is_question || self.is_general || self.is_told.is_some()
    }

    fn is(&self, at: usize, role: Role) -> bool {
        self.meanings.get(at).is_some_and(|all| all.iter().any(|meaning| meaning.role == Some(role)))
    }
}

impl Lexicon {
    /// Reports what a text says of frames; places are in bytes of its view.
    pub fn find<'l>(&'l self, words: &Words, mut found: impl FnMut(Reading<'l>)) {
        // What "it" stands for: the frames whose subject the sentence before names.
        let mut before: BTreeSet<usize> = BTreeSet::new();
        for written in &words.sentences {
            let read = self.sentence(written);
            let readings = self.readings(&read, &before);
            let is_claim = |reading: &Reading<'_>| reading.said == Said::Claim;
            let is_specific = readings.iter().any(|reading| is_claim(reading) && !reading.frame.generic);
            for reading in readings {
                if !(is_claim(&reading) && reading.frame.generic && is_specific) {
                    let (from, to) = reading.span;
                    found(Reading { span: (written.start + from, written.start + to), ..reading });
                }
            }
            let named =
                read.meanings.iter().flatten().filter(|meaning| meaning.form == Form::About && meaning.role.is_none());
            before = named.map(|meaning| meaning.frame).collect();
        }
    }

    fn sentence<'s>(&'s self, written: &'s words::Sentence) -> Sentence<'s> {
        let words = written.words.as_slice();
        let mut meanings: Vec<Vec<&Meaning>> = (0..words.len()).map(|at| self.meanings(words, at)).collect();
        for at in 0..words.len() {
            let idiom = meanings.get(at).and_then(|all| all.iter().find(|meaning| meaning.role == Some(Role::Idiom)));
            let length = idiom.map_or(0, |idiom| idiom.length);
            meanings.iter_mut().skip(at).take(length).for_each(Vec::clear);
            // "May" of a date is no auxiliary.
            let dated = meanings.get(at).and_then(|all| all.iter().find(|meaning| meaning.role == Some(Role::Dated)));
            let length = dated.map_or(0, |dated| dated.length);
            let within = meanings.iter_mut().skip(at + 1).take(length.saturating_sub(1));
            within.for_each(|all| all.retain(|meaning| meaning.role != Some(Role::May)));
        }
        let has = |at: usize, role: Role| {
            meanings.get(at).is_some_and(|all| all.iter().any(|meaning| meaning.role == Some(role)))
        };
        let all = |role: Role| (0..words.len()).filter(move |at| has(*at, role));
        let first = (0..words.len()).find(|at| has(*at, Role::Ask) || !has(*at, Role::And)).unwrap_or(0);
        let may_ask = !self.has_role(Role::Ask) || has(first, Role::Ask) || written.begins_question;
        Sentence {
            is_question: written.asks && may_ask,
            is_told: all(Role::Said).next(),
            is_general: all(Role::Usual).next().is_some(),
            is_dated: all(Role::Dated).next().is_some(),
            last_condition: all(Role::If).next_back().unwrap_or(0),
            has_accents: words.iter().any(words::Word::has_accent),
            words,
            meanings,
        }
    }

    /// Returns what a sentence says of frames; places are in bytes of the sentence.
    fn readings<'l>(&'l self, sentence: &Sentence<'_>, before: &BTreeSet<usize>) -> Vec<Reading<'l>> {
        let mut readings: Vec<Reading<'l>> = vec![];
        let mut claimed = BTreeSet::new();
        let mut clause = Clause::new();
        for (at, word) in sentence.words.iter().enumerate() {
            if word.after.is_some() {
                clause.end();
            }
            let Some(meanings) = sentence.meanings.get(at) else { continue };
            clause.read_all(meanings, at);
            let mut is_event = false;
            let mut claims = vec![];
            for meaning in meanings.iter().filter(|meaning| meaning.role.is_none() && meaning.form != Form::About) {
                let Some(frame) = self.frames.get(meaning.frame) else { continue };
                if meaning.form == Form::Name {
                    // The noun of a longer phrase is something else: a credit card is no credit.
                    let is_part = meanings.iter().any(|other| other.length > meaning.length);
                    let named = Reading { frame, span: word.span, said: Said::Unplaced };
                    readings.extend((!word.is_quoted && !is_part).then_some(named));
                    continue;
                }
                is_event |= meaning.form != Form::Says;
                let mut clause = clause.clone();
                if self.verb_last && clause.auxiliary == Auxiliary::None {
                    clause.auxiliary = sentence.auxiliary(at + meaning.length);
                }
                let event = Event { sentence, at, clause: &clause, before };
                let said = event.says(frame, meaning);
                let from = sentence.words.get(clause.from.min(at)).map_or(word.span.0, |first| first.span.0);
                match said {
                    Says::Claim(end, is_named) => {
                        let claim = Reading { frame, span: (from, end), said: Said::Claim };
                        claims.push((meaning.frame, claim, is_named && !frame.generic));
                    }
                    Says::Unknown if frame.placed => {
                        readings.push(Reading { frame, span: word.span, said: Said::Unplaced });
                    }
                    Says::Other(why) => readings.push(Reading { frame, span: word.span, said: Said::Other(why) }),
                    Says::Unknown => {}
                }
            }
            // If a word makes several claims, only those whose thing is named count: "the fees were cancelled" cancels no order.
            let any_named = claims.iter().any(|(_, _, is_named)| *is_named);
            claims.retain(|(_, _, is_named)| *is_named || !any_named);
            readings.extend(claims.into_iter().filter_map(|(frame, claim, _)| claimed.insert(frame).then_some(claim)));
            clause.has_event |= is_event;
        }
        let is_placed = !claimed.is_empty() || sentence.is_explained();
        readings.retain(|reading| reading.said != Said::Unplaced || !is_placed);
        readings
    }
}

impl Clause {
    /// Reads the roles of a word.
    fn read_all(&mut self, meanings: &[&Meaning], at: usize) {
        let mut roles: Vec<Role> = meanings.iter().filter_map(|meaning| meaning.role).collect();
        roles.sort();
        roles.dedup();
        // A word that names what claims are about is a subject.
        let is_plain = roles.iter().all(|role| *role == Role::Topic);
        if is_plain && meanings.iter().any(|meaning| meaning.form == Form::About && meaning.role.is_none()) {
            roles.push(Role::Thing);
        }
        roles.into_iter().for_each(|role| self.read(role, at));
    }

    fn read(&mut self, role: Role, at: usize) {
        match role {
            Role::And => self.is_new = true,
            Role::No => self.is_nothing = true,
            Role::If => self.condition = Condition::Inside,
            Role::We => self.subject(Subject::We, at),
            Role::You => self.subject(Subject::You, at),
            Role::Thing | Role::The => self.subject(Subject::Thing, at),
            Role::Have => self.auxiliary(Auxiliary::Have, at),
            Role::Was => self.auxiliary(Auxiliary::Was, at),
            Role::Is => self.auxiliary(Auxiliary::Is, at),
            Role::May => self.auxiliary(Auxiliary::May, at),
            Role::Been => {
                self.has_been = true;
                // "It's been" has been.
                if self.auxiliary == Auxiliary::Is {
                    self.auxiliary = Auxiliary::Have;
                }
            }
            Role::Not => (self.is_negated, self.denied_at) = (true, Some(at)),
            Role::Ask | Role::Dated | Role::Idiom | Role::Said | Role::Topic | Role::Usual => {}
        }
    }
}
