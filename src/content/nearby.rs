//! Words directly before a value that say what it is, where its shape does not decide: one in ten order numbers of
//! sixteen digits passes a card's checksum, and a version looks like an IP address. Texts are read folded, so the words
//! have no accents.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::content::normalise::View;
use crate::model::part::Part;

/// Maximum number of bytes that are read before a value.
pub(super) const BEFORE: usize = 45;
/// Maximum length of a word, in bytes.
const WORD_MAX: usize = 24;
/// Maximum number of signs between a word and the value.
const SIGNS_MAX: usize = 5;
/// Number of fillers that are skipped.
const FILLERS_MAX: usize = 3;

/// Words of a language that say what the value after them is, as `detectors/*.yaml` with `judges: private` have them:
/// in small letters, without accents, in the singular.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Context {
    /// Words that may come between a word of the other lists and the value: number, is.
    fillers: BTreeSet<String>,
    /// Words that a dot abbreviates, so that it ends no sentence: no, acct.
    abbreviations: BTreeSet<String>,
    /// Things that have a number of their own, which is no card's and no telephone's: order, parcel.
    numbered: BTreeSet<String>,
    /// Those of `numbered` that also announce a card: card, account.
    cards: BTreeSet<String>,
    /// Words on the same line that announce a telephone number: call, mobile. An entry may have two words.
    phones: BTreeSet<String>,
    /// Words before the version of a program, which is no IP address.
    versions: BTreeSet<String>,
    /// Words before a checksum or a revision, which is no secret.
    checksums: BTreeSet<String>,
    /// Parts of words near a checksum that make it a secret, because a password can be found by its hash: pass, key.
    secrets: BTreeSet<String>,
}

impl Context {
    /// Adds the words of another language. Returns the words that no text can have, because texts are read folded.
    pub(super) fn add(&mut self, other: Self) -> Vec<String> {
        let lists = [
            (&mut self.fillers, other.fillers),
            (&mut self.abbreviations, other.abbreviations),
            (&mut self.numbered, other.numbered),
            (&mut self.cards, other.cards),
            (&mut self.phones, other.phones),
            (&mut self.versions, other.versions),
            (&mut self.checksums, other.checksums),
            (&mut self.secrets, other.secrets),
        ];
        let is_read = |word: &&String| !word.is_empty() && View::folded(&word.to_lowercase()).text() == *word;
        let mut unread = vec![];
        for (list, words) in lists {
            unread.extend(words.iter().filter(|word| !is_read(word)).cloned());
            list.extend(words);
        }
        unread
    }

    /// Returns whether the words before a number show that it is not a card's.
    pub(super) fn denies_card(&self, before: &[u8]) -> bool {
        self.says(before, |word| self.numbered.contains(word) && !self.cards.contains(word))
    }

    /// Returns whether the words before a number show that it is not a telephone's.
    pub(super) fn denies_phone(&self, before: &[u8]) -> bool {
        self.says(before, |word| self.numbered.contains(word) || self.versions.contains(word))
    }

    /// Returns whether the words before numbers with dots show that they are a version.
    pub(super) fn is_version(&self, before: &[u8]) -> bool {
        self.says(before, |word| self.versions.contains(word))
    }

    /// Returns whether the words before hexadecimal digits show that they are a checksum or a revision.
    pub(super) fn is_checksum(&self, before: &[u8]) -> bool {
        let text = String::from_utf8_lossy(before).to_lowercase();
        self.says(before, |word| self.checksums.contains(word)) && !self.secrets.iter().any(|part| text.contains(part))
    }

    /// Returns whether a word before a number, on the same line, announces a telephone number.
    pub(super) fn is_phone(&self, before: &[u8]) -> bool {
        let text = without_placeholders(&String::from_utf8_lossy(before)).to_lowercase();
        let line = text.rsplit('\n').next().unwrap_or_default();
        let words = line.split(|sign: char| !sign.is_alphanumeric() && sign != '_').filter(|word| !word.is_empty());
        let mut last = "";
        words.into_iter().any(|word| {
            let pair = format!("{} {word}", std::mem::replace(&mut last, word));
            self.phones.contains(word) || self.phones.contains(&pair)
        })
    }

    /// Returns whether the word directly before a value, apart from fillers and the ending of a plural, is one of these.
    fn says(&self, before: &[u8], is: impl Fn(&str) -> bool) -> bool {
        let mut rest = before;
        for _ in 0..=FILLERS_MAX {
            let Some((word, start)) = self.last_word(rest) else { return false };
            let word = word.to_lowercase();
            let one = word.strip_suffix('s').unwrap_or(&word);
            if is(&word) || is(one) {
                return true;
            }
            if !self.fillers.contains(&word) {
                return false;
            }
            rest = rest.part(..start);
        }
        false
    }

    /// Returns the last word of a text and where it begins, if only a few signs of the same sentence follow it.
    fn last_word<'t>(&self, text: &'t [u8]) -> Option<(&'t str, usize)> {
        let (word, start, end) = last_word(text)?;
        // The end of a sentence or line separates, but `no.` is an abbreviation.
        let is_ended = text.part(end..).iter().any(|sign| matches!(sign, b'\n' | b'!' | b'?'))
            || text.part(end..).contains(&b'.') && !self.abbreviations.contains(&word.to_ascii_lowercase());
        (!is_ended).then_some((word, start))
    }
}

/// Returns whether the text ends with the beginning of a code, such as `AB12`, that the value continues.
pub(super) fn ends_with_code(before: &[u8]) -> bool {
    let Some((word, _, end)) = last_word(before) else { return false };
    let signs = before.part(end..);
    let letters = word.bytes().take_while(u8::is_ascii_alphabetic).count();
    signs.len() <= 1
        && !signs.iter().any(|sign| matches!(sign, b'\n' | b'!' | b'?' | b'.'))
        && (1..=3).contains(&letters)
        && (letters + 1..=letters + 3).contains(&word.len())
        && word.bytes().skip(letters).all(|byte| byte.is_ascii_digit())
}

/// Returns the last word of a text, where it begins and where it ends, if only a few signs follow it.
fn last_word(text: &[u8]) -> Option<(&str, usize, usize)> {
    // A byte of a character beyond ASCII belongs to a word; an underscore joins two, as in `order_id`.
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
    let signs = text.iter().rev().take(SIGNS_MAX + 1).take_while(|byte| !is_word(byte)).count();
    if signs > SIGNS_MAX {
        return None;
    }
    let end = text.len() - signs;
    let length = text.part(..end).iter().rev().take(WORD_MAX).take_while(|byte| is_word(byte)).count();
    let word = std::str::from_utf8(text.part(end - length..end)).ok()?;
    (!word.is_empty()).then_some((word, end - length, end))
}

/// Removes the placeholders of redactions, such as `[card number removed]`: the server wrote their words, so they announce no value.
fn without_placeholders(text: &str) -> String {
    let pieces = text.split_inclusive(']').map(|piece| {
        let inner = piece.strip_suffix(']').unwrap_or("");
        let name = inner.trim_end_matches(|sign: char| sign.is_ascii_digit() || sign == '#').trim_end();
        match name.ends_with(" removed") {
            true => inner.rsplit_once('[').map_or("", |(before, _)| before),
            false => piece,
        }
    });
    pieces.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the words of the reference bundle.
    pub(in crate::content) fn shipped() -> Context {
        #[derive(Deserialize)]
        struct File {
            context: Context,
        }
        let mut all = Context::default();
        for file in [
            include_str!("../../policies/detectors/private.yaml"),
            include_str!("../../policies/detectors/private-de.yaml"),
            include_str!("../../policies/detectors/private-es.yaml"),
            include_str!("../../policies/detectors/private-fr.yaml"),
        ] {
            let read: File = serde_saphyr::from_str(file).unwrap();
            assert_eq!(all.add(read.context), [] as [String; 0]);
        }
        all
    }

    #[test]
    fn words_that_no_folded_text_has_are_reported() {
        let given = ["order", "Order", "número", "", "注文"].map(str::to_owned);
        let other = Context { numbered: given.into(), ..Context::default() };
        assert_eq!(Context::default().add(other), ["", "Order", "número"]);
    }

    #[test]
    fn a_checksum_is_announced_and_of_no_secret() {
        let context = shipped();
        for (before, is) in
            [("md5 ", true), ("commit ", true), ("", false), ("password hash ", false), ("API key hash: ", false)]
        {
            assert_eq!(context.is_checksum(before.as_bytes()), is, "{before}");
        }
    }

    #[test]
    fn a_telephone_number_is_announced_on_its_line() {
        let context = shipped();
        for (before, is) in [
            ("call me at ", true),
            ("you can text me: ", true),
            ("the text ", false),
            ("call me\n", false),
            ("", false),
        ] {
            assert_eq!(context.is_phone(before.as_bytes()), is, "{before}");
        }
    }

    #[test]
    fn the_word_before_a_value_decides() {
        let context = shipped();
        let is_numbered = |before: &str| context.says(before.as_bytes(), |word| context.numbered.contains(word));
        for before in [
            "my order ",
            "Orders: ",
            "order no. ",
            "invoice number is ",
            "Meine Bestellung ",
            "numero de commande : ",
            "pedido n. ",
            r#"{"tracking_id": [""#,
        ] {
            assert_eq!(is_numbered(before), !before.contains(" n. "), "{before}");
        }
        for before in ["I ordered it with ", "order it! Call ", "order ------ ", "", "in order to pay "] {
            assert!(!is_numbered(before), "{before}");
        }
        assert!(ends_with_code(b"code AB12-") && !ends_with_code(b"pay 12 ") && !ends_with_code(b"AB12, "));
    }

    #[test]
    fn placeholders_are_removed_and_nothing_else() {
        for (text, rest) in [
            ("phone [email removed #12] or ", "phone  or "),
            ("ssn [social security number removed] ", "ssn  "),
            ("security number removed] call ", " call "),
            ("my phone was removed [see note] ", "my phone was removed [see note] "),
        ] {
            assert_eq!(without_placeholders(text), rest);
        }
    }
}
