//! Texts: what untrusted ones try, what must not be passed on, what drafts say. Detectors find, with kinds and places; policies judge.
//!
//! Every detector works on the same views of a text ([`normalise`]), in time linear in it.

mod active;
pub mod drafts;
pub mod grounding;
pub mod injection;
pub mod normalise;
mod phone;
mod phrases;
pub mod private;
pub mod rules;
pub mod values;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::content::drafts::{Draft, Judged};
use crate::content::injection::Injection;
use crate::content::normalise::{View, Views};
use crate::content::private::Located;
use crate::content::rules::Rules;
use crate::content::values::{Digest, ValueKey, Values};
use crate::model::call::Untrusted;
use crate::model::finding::{Finding, Screened};
use crate::model::halt::Severity;

/// The longest text that is screened; a longer one counts as unscreened.
pub const TEXT_MAX: usize = 64 * 1024;
/// The kind of what the linear model finds, and its code.
pub const INJECTION: &str = "injection";
/// The code of what the linear model finds.
pub const MODEL: &str = "model";

/// `detectors/settings.yaml`: what is not a rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How sure the model must be of each channel's texts; the first is that of sources that no channel names.
    pub channels: Vec<ChannelSettings>,
    /// The score from which the model finds an injection in a draft, in thousandths; it has seen no drafts.
    pub draft_threshold: u16,
    /// A draft whose model is less sure of it than this, in percent, is found to be of low confidence.
    #[serde(default)]
    pub confidence_below: u32,
    /// Values that everybody may see: one's own telephone numbers, addresses, links.
    #[serde(default)]
    pub public: Vec<String>,
}

/// How texts of one kind of source are judged.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSettings {
    /// Its name.
    pub channel: String,
    /// Sources, as tool services call them; `*` at the end stands for anything.
    #[serde(default)]
    pub sources: Vec<String>,
    /// The score from which the model finds an injection, in thousandths.
    pub threshold: u16,
}

/// All detectors of a bundle.
#[derive(Clone, Debug, Default)]
pub struct Detectors {
    /// What incoming texts try.
    pub incoming: Rules,
    /// What must not be passed on.
    pub private: Rules,
    /// What drafts say.
    pub draft: Rules,
    /// The linear model of injections.
    pub injection: Option<Injection>,
    /// The languages that the draft rules are in, as primary subtags.
    pub languages: BTreeSet<String>,
    settings: Settings,
    public: BTreeSet<String>,
}

impl Detectors {
    /// Makes what is made at the first use, so that no request waits for it.
    pub fn warm(&self) {
        normalise::warm();
        let values = Values::new(ValueKey::new([0; 16]));
        let draft = Draft {
            text: "We wrote to Jane Doe about 20 EUR on 2 May 2026, see https://example.org or call +1 212 555 0123.",
            sources: vec!["20 EUR"],
            customer: vec![],
            has_sources: true,
            unknown_source: false,
            confidence: 100,
            locale: "",
            redacted: &values,
        };
        let _judged = self.draft(&draft);
    }

    /// Takes the settings over.
    pub fn set(&mut self, settings: Settings) {
        self.public = settings.public.iter().filter_map(|value| values::compact(&View::folded(value))).collect();
        self.settings = settings;
    }

    /// Screens the untrusted texts of a call.
    pub fn screen(&self, texts: &[Untrusted]) -> Screened {
        let mut screened = Screened::default();
        for text in texts {
            if text.text.len() > TEXT_MAX {
                screened.unscreened = true;
                continue;
            }
            screened.screened = true;
            screened.findings.extend(self.screen_text(&text.source, &text.text, &Views::of(&text.text)));
            // A label may be a file's name, which the sender chose: its words are read as well. They have no place in the text.
            let label = text.source.replace(|sign: char| !sign.is_alphanumeric(), " ");
            let found = self.screen_text(&text.source, &label, &Views::of(&label));
            screened.findings.extend(found.into_iter().map(|finding| Finding { span: None, ..finding }));
        }
        screened
    }

    /// What one text tries.
    pub(crate) fn screen_text(&self, source: &str, text: &str, views: &Views) -> Vec<Finding> {
        self.screen_at(self.threshold(source), source, text, views)
    }

    /// What a draft carries of it.
    pub(crate) fn screen_draft(&self, text: &str, views: &Views) -> Vec<Finding> {
        self.screen_at(self.settings.draft_threshold, drafts::DRAFT, text, views)
    }

    fn screen_at(&self, threshold: u16, source: &str, text: &str, views: &Views) -> Vec<Finding> {
        let mut found: BTreeMap<(String, String, usize), Finding> = BTreeMap::new();
        let mut add = |(kind, code): (&str, &str), severity, confidence, span: (usize, usize)| {
            if span.0 < span.1 && text.get(span.0..span.1).is_some() {
                let finding =
                    Finding { kind: kind.into(), code: code.into(), severity, confidence, source: source.into(), span: Some(span) };
                found.entry((kind.into(), code.into(), span.0)).or_insert(finding);
            }
        };
        for view in views.all() {
            self.incoming.find(view.text(), |(rule, span)| add((&rule.kind, &rule.code), rule.severity, 100, view.original(span)));
        }
        if let Some(model) = &self.injection {
            let windows = views.all().filter_map(|view| Some((view, model.worst(view.text())?)));
            let worst = windows.max_by(|(_, one), (_, other)| one.score.cmp(&other.score));
            if let Some((view, window)) = worst.filter(|(_, window)| window.score >= threshold) {
                let confidence = u8::try_from(window.score / 10).unwrap_or(100);
                add((INJECTION, MODEL), Severity::High, confidence, view.original(window.span));
            }
        }
        found.into_values().collect()
    }

    /// The score from which the model finds an injection in texts of this source, in thousandths.
    pub fn threshold(&self, source: &str) -> u16 {
        let names = |listed: &String| match listed.strip_suffix('*') {
            Some(beginning) => source.starts_with(beginning),
            None => listed == source,
        };
        let channels = &self.settings.channels;
        let channel = channels.iter().find(|channel| channel.sources.iter().any(names)).or(channels.first());
        channel.map_or(u16::MAX, |channel| channel.threshold)
    }

    /// What of a text must not be passed on. `turn` is the turn before, for bare replies; `values` are known already.
    pub fn private(&self, text: &str, turn: &str, values: &Values) -> Vec<Located> {
        self.private_in(text, &Views::of(text), turn, values, |_, _| {})
    }

    /// What of a text with these views must not be passed on. `missed` is told of its numbers that are no value, by place and digest.
    pub fn private_in(
        &self,
        text: &str,
        views: &Views,
        turn: &str,
        values: &Values,
        missed: impl FnMut((usize, usize), Digest),
    ) -> Vec<Located> {
        let turn = View::folded(turn.get(..TEXT_MAX.min(turn.len())).unwrap_or_default());
        let mut found = private::find(&self.private, text, views, turn.text(), values, missed);
        found.retain(|located| located.kind.is_secret() || !self.is_public(text, located.span));
        found
    }

    /// Adds the places where values stand that became known after a text was read. `missed` is told of its numbers that are none.
    pub fn add_known(
        &self,
        text: &str,
        views: &Views,
        values: &Values,
        found: &mut Vec<Located>,
        missed: impl FnMut((usize, usize), Digest),
    ) {
        private::add_known(text, views, values, found, missed);
        found.retain(|located| located.kind.is_secret() || !self.is_public(text, located.span));
    }

    /// What of many short texts must not be passed on, for each of them.
    pub fn private_parts(&self, parts: &[&str], values: &Values) -> Vec<Vec<Located>> {
        let mut found = private::find_in_parts(&self.private, parts, values);
        for (text, located) in parts.iter().zip(&mut found) {
            located.retain(|located| located.kind.is_secret() || !self.is_public(text, located.span));
        }
        found
    }

    /// Judges a draft.
    pub fn draft(&self, draft: &Draft<'_>) -> Judged {
        drafts::judge(self, draft)
    }

    /// What to do about a finding in a draft, in words for the model; of its rule, or of its kind.
    pub fn suggestion(&self, finding: &Finding) -> String {
        let rule = self.draft.suggestion(&finding.code).filter(|words| !words.is_empty());
        rule.map_or_else(|| drafts::suggestion(&finding.kind).to_owned(), str::to_owned)
    }

    /// Whether the value at this place is one that everybody may see.
    pub(crate) fn is_public(&self, text: &str, (start, end): (usize, usize)) -> bool {
        let value = View::folded(text.get(start..end).unwrap_or_default());
        values::compact(&value).is_some_and(|value| self.public.contains(&value))
    }

    /// Whether drafts in this language can be judged; without a tag they are taken to be in one that can.
    pub(crate) fn reads(&self, locale: &str) -> bool {
        let language = locale.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
        language.is_empty() || self.languages.contains(&language)
    }

    /// Below which confidence of its model a draft is found to be of low confidence.
    pub(crate) fn confidence_below(&self) -> u32 {
        self.settings.confidence_below
    }
}
