//! What the form of a verb says, by the words around it.

use std::collections::BTreeSet;

use super::lexicon::{Form, Frame, Meaning, Role};
use super::words::Word;
use super::{Auxiliary, Clause, Condition, Sentence, Subject};

/// Number of words between the form of a verb and what it is about.
const NEAR: usize = 12;

/// What the form of a verb says.
pub(super) enum Says {
    /// That it happened; with the end of the words that say so, and whether they name what it is about.
    Claim(usize, bool),
    /// Nothing that is a claim, for this reason.
    Other(&'static str),
    Unknown,
}

/// The form of a verb in its sentence.
pub(super) struct Event<'a> {
    pub(super) sentence: &'a Sentence<'a>,
    pub(super) at: usize,
    pub(super) clause: &'a Clause,
    pub(super) before: &'a BTreeSet<usize>,
}

impl Event<'_> {
    pub(super) fn says(&self, frame: &Frame, meaning: &Meaning) -> Says {
        let Self { sentence, at, clause, .. } = self;
        let last = sentence.words.get(at + meaning.length.saturating_sub(1));
        let Some((word, last)) = sentence.words.get(*at).zip(last) else { return Says::Unknown };
        if let Some(why) = self.why_not(frame, meaning, word) {
            return Says::Other(why);
        }
        let is_now = matches!(clause.auxiliary, Auxiliary::Is | Auxiliary::None);
        let is_conditional = self.is_conditional();
        let about = self.about(meaning.frame);
        let is_short = sentence.words.len() <= at + meaning.length && *at <= 3;
        let is_headline = is_short && is_now && (*at == 0 || word.after == Some(':'));
        let is_ours = match (clause.auxiliary, clause.subject) {
            (Auxiliary::Have, Subject::You) => clause.has_been,
            (Auxiliary::Have | Auxiliary::Was, _) => true,
            (Auxiliary::Is, subject) => subject != Subject::We,
            (Auxiliary::None, subject) => (subject == Subject::We && !is_conditional) || is_headline,
            (Auxiliary::May, _) => false,
        };
        let is_it = clause.subject == Subject::Thing && self.before.contains(&meaning.frame);
        let is_claimed = match meaning.form {
            Form::About | Form::Name => false,
            Form::Done => is_ours,
            Form::Did => is_ours && (about.is_some() || is_it || (frame.generic && is_headline && *at == 0)),
            Form::Past => {
                // "Vous" of "rendez-vous" is no subject.
                let is_other = clause.subject != Subject::You || about.is_some_and(|about| about < *at);
                is_other && !is_conditional && (about.is_some() || is_it)
            }
            Form::Went => {
                let goes = clause.auxiliary == Auxiliary::None && clause.subject == Subject::Thing && !is_conditional;
                (about.is_some_and(|about| about < *at) || is_it)
                    && (goes || is_headline || (is_ours && clause.auxiliary != Auxiliary::None))
            }
            Form::State => {
                (about.is_some() || is_it) && (is_headline || (is_ours && clause.auxiliary != Auxiliary::None))
            }
            Form::Says => !is_conditional || !is_now,
        };
        let end = about.filter(|about| *about > *at).and_then(|about| sentence.words.get(about));
        match is_claimed {
            true => {
                let is_named = about.is_some_and(|about| self.is_joined(about));
                Says::Claim(end.map_or(last.span.1, |about| about.span.1.max(last.span.1)), is_named)
            }
            // What the customer did is no claim, and a form without its thing is a form of something else.
            false if clause.subject == Subject::You => Says::Other("the customer did it"),
            false if about.is_none() && meaning.form != Form::Done => Says::Other("nothing says what it is about"),
            false => Says::Unknown,
        }
    }

    /// Returns whether the form and another word are in one clause: no sign that ends a clause and no "and" is between them.
    fn is_joined(&self, other: usize) -> bool {
        let (first, last) = (self.at.min(other), self.at.max(other));
        (first + 1..=last).all(|place| {
            let is_apart = self.sentence.words.get(place).is_some_and(|word| word.after.is_some());
            !is_apart && !self.sentence.is(place, Role::And)
        })
    }

    fn is_conditional(&self) -> bool {
        self.clause.condition == Condition::Before || self.sentence.last_condition > self.at
    }

    /// Returns why a form claims nothing, if the words around it say so.
    fn why_not(&self, frame: &Frame, meaning: &Meaning, word: &Word) -> Option<&'static str> {
        let Self { sentence, at, clause, .. } = self;
        // After a determiner, a form is an adjective: the updated details.
        let is_adjective = at.checked_sub(1).is_some_and(|before| sentence.is(before, Role::The));
        let is_now = clause.auxiliary == Auxiliary::Is;
        // French "traite" is no "traité" in a sentence with accents, and Spanish "cambie" never "cambié". An auxiliary shows what is meant.
        let is_other_word = meaning.is_unaccented
            && word.is_plain()
            && clause.auxiliary == Auxiliary::None
            && (sentence.has_accents || meaning.form == Form::Past);
        let reasons = [
            (sentence.is_question, "it is a question"),
            (sentence.is_told.is_some_and(|told| told < *at), "somebody else said so"),
            (word.is_quoted, "it is a quotation"),
            (clause.condition == Condition::Inside, "it is a condition or a doubt"),
            (clause.is_negated || clause.is_nothing, "it is denied"),
            (clause.auxiliary == Auxiliary::May, "it is possible, wanted or to come"),
            (is_other_word, "without an accent it is another word"),
            (is_adjective && matches!(meaning.form, Form::Did | Form::Done | Form::Past), "it describes a thing"),
            (is_now && self.is_conditional(), "it depends on a condition"),
            ((is_now || meaning.form == Form::Past) && sentence.is_general, "it is a rule"),
            (
                frame.recent && sentence.is_dated && clause.auxiliary != Auxiliary::Have,
                "it is of the past, as the record says",
            ),
        ];
        reasons.into_iter().find(|(applies, _)| *applies).map(|(_, why)| why)
    }

    /// Returns the nearest word in the clause that names what a frame is about.
    fn about(&self, frame: usize) -> Option<usize> {
        let Self { sentence, at, .. } = self;
        let names = |place: &usize| {
            let meanings = sentence.meanings.get(*place);
            meanings.is_some_and(|all| {
                all.iter()
                    .any(|meaning| meaning.form == Form::About && meaning.frame == frame && meaning.role.is_none())
            })
        };
        let ends = |place: &usize| {
            sentence.words.get(*place).is_some_and(|word| word.after.is_some_and(|sign| ";:".contains(sign)))
        };
        let behind = (at + 1..sentence.words.len()).take(NEAR).take_while(|place| !ends(place)).find(&names);
        let ahead = (at.saturating_sub(NEAR)..=*at).rev().find(&names);
        ahead.or(behind)
    }
}
