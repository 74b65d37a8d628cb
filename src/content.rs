//! Detectors for texts: injections in untrusted text, sensitive values, and problems in drafts. Detectors
//! report kinds and places; policies decide.
//!
//! Every detector works on the same views of a text ([`normalise`]), in time linear in its length.

mod active;
mod cards;
pub mod claims;
pub mod drafts;
pub mod grounding;
pub mod linear;
mod nearby;
pub mod normalise;
mod pattern;
mod phone;
mod phrases;
pub mod rules;
pub mod sensitive;
mod structured;
pub mod values;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::content::claims::Lexicon;
use crate::content::linear::Linear;
use crate::content::linear::features::Features;
use crate::content::normalise::{View, Views};
use crate::content::pattern::Pattern;
use crate::content::rules::Rules;
use crate::content::sensitive::Located;
use crate::content::values::{Digest, Values};
use crate::model::call::Untrusted;
use crate::model::finding::{Finding, Screened, SensitiveKind, Span};
use crate::model::halt::Severity;
use crate::model::part::Part;

/// Longest text that is screened, in bytes. A longer text counts as unscreened.
pub const TEXT_MAX: usize = 64 * 1024;
/// Kind of the findings of the model whose thresholds depend on the channel.
pub const INJECTION: &str = "injection";
/// Code of the linear models' findings.
pub const MODEL: &str = "model";

/// `detectors/settings.yaml`: the settings of detectors other than rules.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Settings {
    /// Thresholds per channel. The first channel also covers sources that no channel lists.
    pub channels: Vec<ChannelSettings>,
    /// Score, in thousandths, from which the model reports an injection in a draft. It was not trained on
    /// drafts.
    pub draft_threshold: u16,
    /// A draft whose model reports a lower confidence than this, in percent, gets a `low_confidence` finding.
    #[serde(default)]
    pub confidence_below: u32,
    /// Models of other kinds of findings than injections in incoming text.
    #[serde(default)]
    pub models: Vec<ModelSettings>,
    /// Values that anyone may see, such as the company's own telephone numbers, addresses and links.
    #[serde(default)]
    pub public: Vec<String>,
    /// Patterns of the company's own numbers, such as those of orders and parcels. A number that is one as a whole is no card
    /// number, account number or telephone number.
    #[serde(default)]
    pub numbers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelSettings {
    pub channel: String,
    /// Source names that tool services send; a trailing `*` matches any suffix.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Score, in thousandths, from which the model reports an injection.
    pub threshold: u16,
    /// The same for each string of a JSON text; the default is `threshold`.
    #[serde(default)]
    pub string_threshold: Option<u16>,
}

/// Settings of a model that finds one kind of messages, in `detectors/<kind>.model`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelSettings {
    /// Kind of its findings.
    pub kind: String,
    /// Score, in thousandths, from which it reports a finding.
    pub threshold: u16,
    /// Severity of its findings.
    #[serde(default)]
    pub severity: Severity,
}

#[derive(Clone, Debug, Default)]
pub struct Detectors {
    /// Rules that find attacks in incoming texts.
    pub incoming: Rules,
    /// Rules that find sensitive values.
    pub private: Rules,
    /// Rules that check drafts.
    pub draft: Rules,
    /// Words that make claims, by language.
    pub claims: Vec<Lexicon>,
    pub injection: Option<Linear>,
    /// Models of other kinds of findings, by kind.
    pub models: BTreeMap<String, Linear>,
    /// Languages of the draft rules, as primary subtags.
    pub languages: BTreeSet<String>,
    settings: Settings,
    public: BTreeSet<String>,
    /// Patterns of the settings' `numbers`, anchored at both ends.
    numbers: Vec<Pattern>,
    /// The public values as texts, which ground themselves in drafts.
    public_texts: Vec<View>,
}

/// A model, with what makes a finding of its score.
struct Scorer<'a> {
    kind: &'a str,
    model: &'a Linear,
    /// Score, in thousandths, from which it reports a finding.
    threshold: u16,
    severity: Severity,
    /// Whether it also scores the undone views. Attackers hide injections there; customers hide neither fraud nor distress.
    reads_all: bool,
}

impl Detectors {
    /// Takes the settings; returns what is wrong with them, each with the entry to look for.
    pub fn set(&mut self, settings: Settings) -> Vec<(String, String)> {
        let mut faults = vec![];
        for number in &settings.numbers {
            match Pattern::new(number, &format!("^(?:{number})$")) {
                Ok(pattern) => self.numbers.push(pattern),
                Err(problem) => faults.push((number.clone(), problem)),
            }
        }
        self.public_texts = settings.public.iter().map(|value| View::folded(value)).collect();
        self.public = settings.public.iter().filter_map(|value| values::compact(&View::folded(value))).collect();
        self.settings = settings;
        faults
    }

    pub fn screen(&self, texts: &[Untrusted]) -> Screened {
        let mut screened = Screened::default();
        for text in texts {
            if text.text.len() > TEXT_MAX {
                screened.unscreened = true;
                continue;
            }
            screened.screened = true;
            let views = Views::of(&text.text);
            screened.findings.extend(self.screen_text(&text.source, &text.text, &views));
            // Rules and model know the languages of the bundle, so their silence on another one means nothing.
            screened.unscreened |= !self.is_known(&text.text);
            // A label may be a file name chosen by the sender, so its words are screened as well. They have
            // no place in the text.
            let label = text.source.replace(|sign: char| !sign.is_alphanumeric(), " ");
            let found = self.screen_text(&text.source, &label, &Views::of(&label));
            screened.findings.extend(found.into_iter().map(|finding| Finding { span: None, ..finding }));
        }
        screened
    }

    /// Returns whether a text is in a language of the bundle, or too short to tell. Of JSON, each string is one text.
    fn is_known(&self, text: &str) -> bool {
        let knows = |text: &str| claims::language(&self.claims, text) != Some("");
        let mut is_known = true;
        let is_structured = structured::strings(text, |_, content| is_known &= knows(content));
        if is_structured { is_known } else { knows(text) }
    }

    pub(crate) fn screen_text(&self, source: &str, text: &str, views: &Views) -> Vec<Finding> {
        let channel = self.channel(source);
        let threshold = channel.map_or(u16::MAX, |channel| channel.threshold);
        let mut found = self.screen_views(&self.scorers(threshold), source, text, views);
        let threshold = channel.and_then(|channel| channel.string_threshold).unwrap_or(threshold);
        let scorers = self.scorers(threshold);
        structured::strings(text, |span, content| {
            let inside = self.screen_views(&scorers, source, content, &Views::of(content));
            found.extend(inside.into_iter().map(|finding| Finding { span: Some(span), ..finding }));
        });
        found.sort();
        found.dedup();
        found
    }

    /// Screens a draft for injections that it repeats.
    pub(crate) fn screen_draft(&self, text: &str, views: &Views) -> Vec<Finding> {
        let scorers: Vec<Scorer<'_>> = self.injection(self.settings.draft_threshold).into_iter().collect();
        self.screen_views(&scorers, drafts::DRAFT, text, views)
    }

    /// Returns the findings of rules and models in all views of a text. A model's finding is its worst window.
    fn screen_views(&self, scorers: &[Scorer<'_>], source: &str, text: &str, views: &Views) -> Vec<Finding> {
        let mut found: BTreeMap<(String, String, usize), Finding> = BTreeMap::new();
        let mut add = |(kind, code): (&str, &str), severity, confidence, span: (usize, usize)| {
            if span.0 < span.1 && text.get(span.0..span.1).is_some() {
                let finding = Finding {
                    kind: kind.into(),
                    code: code.into(),
                    severity,
                    confidence,
                    source: source.into(),
                    span: Some(span),
                };
                found.entry((kind.into(), code.into(), span.0)).or_insert(finding);
            }
        };
        let mut worst: Vec<Option<(u16, Span)>> = vec![None; scorers.len()];
        for view in views.all() {
            self.incoming.find(view.text(), |(rule, span)| {
                add((&rule.kind, &rule.code), rule.severity, 100, view.original(span))
            });
            if scorers.is_empty() {
                continue;
            }
            let features = Features::of(view.text());
            let is_folded = std::ptr::eq(view, &raw const views.folded);
            for (scorer, worst) in scorers.iter().zip(&mut worst).filter(|(scorer, _)| is_folded || scorer.reads_all) {
                let window = scorer.model.worst(&features).filter(|window| window.score >= scorer.threshold);
                if let Some(window) = window.filter(|window| worst.is_none_or(|(score, _)| window.score >= score)) {
                    *worst = Some((window.score, view.original(window.span)));
                }
            }
        }
        for (scorer, worst) in scorers.iter().zip(worst) {
            if let Some((score, span)) = worst {
                // A score is at most 1000, so this is a percentage.
                add((scorer.kind, MODEL), scorer.severity, u8::try_from(score / 10).unwrap_or(100), span);
            }
        }
        found.into_values().collect()
    }

    /// Returns every model with what its findings need; injections are reported from this score.
    fn scorers(&self, threshold: u16) -> Vec<Scorer<'_>> {
        let others = self.settings.models.iter().filter_map(|settings| {
            let ModelSettings { kind, threshold, severity } = settings;
            Some(Scorer {
                kind,
                model: self.models.get(kind)?,
                threshold: *threshold,
                severity: *severity,
                reads_all: false,
            })
        });
        self.injection(threshold).into_iter().chain(others).collect()
    }

    fn injection(&self, threshold: u16) -> Option<Scorer<'_>> {
        let model = self.injection.as_ref()?;
        Some(Scorer { kind: INJECTION, model, threshold, severity: Severity::High, reads_all: true })
    }

    /// Returns the score, in thousandths, from which the model reports an injection in texts of this source.
    pub fn threshold(&self, source: &str) -> u16 {
        self.channel(source).map_or(u16::MAX, |channel| channel.threshold)
    }

    /// Returns the score, in thousandths, from which the model of a kind reports a finding.
    pub fn threshold_of(&self, kind: &str) -> u16 {
        let settings = self.settings.models.iter().find(|settings| settings.kind == kind);
        settings.map_or(u16::MAX, |settings| settings.threshold)
    }

    fn channel(&self, source: &str) -> Option<&ChannelSettings> {
        let names = |listed: &String| match listed.strip_suffix('*') {
            Some(beginning) => source.starts_with(beginning),
            None => listed == source,
        };
        let channels = &self.settings.channels;
        channels.iter().find(|channel| channel.sources.iter().any(names)).or(channels.first())
    }

    /// Finds the sensitive values of a text. `turn` is the previous turn, to which the text may be a bare
    /// reply; `values` are already known.
    pub fn private(&self, text: &str, turn: &str, values: &Values) -> Vec<Located> {
        self.private_in(text, &Views::of(text), turn, values, |_, _| {})
    }

    /// Finds the sensitive values of a text whose views are given. `missed` is called with the place and
    /// digest of each number that is not a known value.
    pub fn private_in(
        &self,
        text: &str,
        views: &Views,
        turn: &str,
        values: &Values,
        missed: impl FnMut((usize, usize), Digest),
    ) -> Vec<Located> {
        let turn = View::folded(turn.part(..turn.floor_char_boundary(TEXT_MAX)));
        let mut found = sensitive::find(&self.private, text, views, turn.text(), values, missed);
        found.retain(|located| self.is_sensitive(text, located));
        found
    }

    /// Adds the places of values that became known after the text was searched. `missed` is called with the
    /// place and digest of each number that is not one of them.
    pub fn add_known(
        &self,
        text: &str,
        views: &Views,
        values: &Values,
        found: &mut Vec<Located>,
        missed: impl FnMut((usize, usize), Digest),
    ) {
        sensitive::add_known(text, views, values, found, missed);
        found.retain(|located| self.is_sensitive(text, located));
    }

    /// Finds the sensitive values of many short texts; the result has one list per text.
    pub fn private_parts(&self, parts: &[&str], values: &Values) -> Vec<Vec<Located>> {
        let mut found = sensitive::find_in_parts(&self.private, parts, values);
        for (text, located) in parts.iter().zip(&mut found) {
            located.retain(|located| self.is_sensitive(text, located));
        }
        found
    }

    /// Returns advice for the model on a finding in a draft: the advice of its rule or, by default, of its
    /// kind.
    pub fn suggestion(&self, finding: &Finding) -> String {
        let frames = self.claims.iter().flat_map(|lexicon| &lexicon.frames);
        let frames = frames.filter(|_| finding.kind == drafts::CLAIM);
        let mut advice = frames.filter(|frame| frame.code == finding.code).map(|frame| frame.suggestion.as_str());
        let frame = advice.find(|advice| !advice.is_empty());
        let rule = frame.or_else(|| self.draft.suggestion(&finding.code)).filter(|words| !words.is_empty());
        rule.map_or_else(|| drafts::suggestion(&finding.kind).to_owned(), str::to_owned)
    }

    /// Returns whether a value that a detector found is none that anyone may see, and no number of the company's own.
    pub(crate) fn is_sensitive(&self, text: &str, located: &Located) -> bool {
        let is_number = matches!(
            located.kind,
            SensitiveKind::AccountNumber | SensitiveKind::CardNumber | SensitiveKind::Phone | SensitiveKind::Record
        );
        let is_own = is_number && !self.numbers.is_empty() && {
            let value = View::folded(text.part(located.span.0..located.span.1));
            self.numbers.iter().any(|number| number.is_match(value.text().trim()))
        };
        !is_own && (located.kind.is_secret() || !self.is_public(text, located.span))
    }

    pub(crate) fn is_public(&self, text: &str, span: Span) -> bool {
        let (start, end) = span;
        let value = View::folded(text.part(start..end));
        values::compact(&value).is_some_and(|value| self.public.contains(&value))
    }

    pub(crate) fn public_texts(&self) -> impl Iterator<Item = &str> {
        self.public_texts.iter().map(View::text)
    }

    /// Returns whether drafts in this language can be checked. Drafts without a tag are assumed to be
    /// checkable.
    pub(crate) fn reads(&self, locale: &str) -> bool {
        let language = locale.split_once(['-', '_']).map_or(locale, |(language, _)| language).to_ascii_lowercase();
        language.is_empty() || self.languages.contains(&language)
    }

    pub(crate) fn confidence_below(&self) -> u32 {
        self.settings.confidence_below
    }
}
