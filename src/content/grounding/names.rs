//! Names that no source has and, in a bare statement of fact, words that no source has.

use std::sync::LazyLock;

use crate::content::grounding::places::Places;
use crate::content::grounding::words::{
    Pattern, Token, alternatives, is_any, is_ordinary, matches, pattern, singular, words_of,
};
use crate::content::grounding::{Draft, words};
use crate::model::finding::Span;
use crate::model::part::Part;

/// Maximum length of a bare statement of fact, in words.
const STATEMENT_MAX: usize = 30;
/// Maximum length, in words, of a phrase that states a fact without a verb.
const PHRASE_MAX: usize = 6;
/// Maximum number of bytes after a letter's closing that count as its signature.
const SIGNATURE_MAX: usize = 120;

const NAME: &str = r"[A-Z][\w'&-]*\.?";

/// Addressees and senders: `Hi Maria`, `my name is Anna from Northwind`, `this is Tom.`, `, Mr. Wu`.
static PERSON: Pattern = LazyLock::new(|| {
    let names = |most: usize| format!("{NAME}(?: (?:(?:da|de|den|der|di|la|van|von) )*{NAME}){{0,{}}}", most - 1);
    let from = format!("(?:,? (?:from|with|at) (?:the )?{})", names(4));
    pattern(&format!(
        r"(?:^|[.!?,\n]\s*)(?i:{})(?:(?: [a-z]+){{1,4}},|(?i: there)?,?) {}|\b(?:[Mm]y name is|I'm|I am) {}{from}?|\b[Tt]his is {}(?:{from}| here\b| speaking\b|,)|, this is {}[.!]|, (?:Mr|Ms|Mrs|Dr)\.? {NAME}",
        alternatives("greetings"),
        names(4),
        names(3),
        names(3),
        names(2),
    ))
});
static CLOSING: Pattern =
    LazyLock::new(|| pattern(&format!(r"(?:^|\n|[.!?] )\s*(?i:{})[ ,!.]*(?:\n|$|[A-Z])", alternatives("signoffs"))));
static SIGNATURE: Pattern = LazyLock::new(|| pattern(&format!(r"\n\s*(?:-+ ?)?(?:{NAME},? ?){{1,6}}\s*$")));
static LABEL: Pattern =
    LazyLock::new(|| pattern(r"(?:^|\n|[(;,]|[0-9]\. )[ \t*#>•.-]*(?:[\w'/-]+ ){0,5}[\w'/-]+(?: ?\([\w ]+\))?\**:"));
static ENDINGS: LazyLock<Vec<&str>> = LazyLock::new(|| words_of("endings"));

/// Returns the names that no source has. Adjacent names count as one.
pub(super) fn names(draft: &Draft<'_>) -> Vec<Span> {
    let persons = persons(draft.text);
    let titles = titles(draft);
    let mut found: Vec<Span> = vec![];
    for (at, token) in draft.tokens.iter().enumerate() {
        if !token.is_capital() || draft.taken.any(token.span) || persons.any(token.span) || !may_be_name(token) {
            continue;
        }
        let between = |one: &Token<'_>, other: &Token<'_>| draft.text.part(one.span.1..other.span.0).to_owned();
        let is_name = |other: &&Token<'_>| other.is_capital() && !is_any(&["function", "generic"], &other.word);
        let next =
            draft.tokens.get(at + 1).filter(|next| [" ", "-"].contains(&between(token, next).as_str())).filter(is_name);
        let last = at.checked_sub(1).and_then(|at| draft.tokens.get(at));
        let last = last.filter(|last| [" ", "-", ". "].contains(&between(last, token).as_str())).filter(is_name);
        let is_word = is_ordinary(&token.word);
        let is_lone = next.is_none() && last.is_none();
        let is_titled = titles.any(token.span);
        let ends_as_word = || next.is_none() && ENDINGS.iter().any(|ending| token.word.ends_with(ending));
        let is_initial = is_initial(draft.text, token.span.0);
        if is_word && (is_lone || is_titled || is_initial || is_shouted(token))
            || is_initial && ends_as_word()
            || is_held(draft, token)
        {
            continue;
        }
        match found.last_mut() {
            Some(name) if joins(draft.text.part(name.1..token.span.0)) => name.1 = token.span.1,
            Some(_) | None => found.push(token.span),
        }
    }
    found
}

/// Returns whether two names with this text between them are one name.
fn joins(between: &str) -> bool {
    [" ", "-", ", ", " of ", " the ", " of the ", ". "].contains(&between)
}

/// Returns whether all letters are capitals, except for the `s` of a plural.
fn is_shouted(token: &Token<'_>) -> bool {
    let letters = token.written.strip_suffix('s').filter(|rest| rest.len() > 1).unwrap_or(token.written);
    token.written.len() > 1 && !letters.contains(char::is_lowercase)
}

/// Returns whether a word's capital is not explained by any list.
fn may_be_name(token: &Token<'_>) -> bool {
    let lower = token.written.to_lowercase();
    let is_contraction = ["n't", "'ll", "'re", "'ve", "'d", "'m"].iter().any(|ending| lower.ends_with(ending))
        || lower.starts_with("i'");
    let one = singular(&token.word);
    let is_month = !["may", "march"].contains(&&*token.word) && is_any(&["months"], &token.word);
    let is_listed = is_any(&["function", "courtesy", "titles", "weekdays", "numbers", "generic"], &token.word)
        || is_any(&["generic", "weekdays"], &one)
        || is_month;
    let is_acronym = is_shouted(token) && (is_any(&["acronyms"], &token.word) || is_any(&["acronyms"], &one));
    token.word.len() > 1 && !is_contraction && !is_listed && !is_acronym
}

/// Returns whether a source has a name, or every part of a compound such as `ClearPath`.
fn is_held(draft: &Draft<'_>, token: &Token<'_>) -> bool {
    let has = |word: &str| draft.is_held(|held| held.words.has(word));
    let mut parts = vec![];
    for (at, sign) in token.written.char_indices() {
        match parts.last_mut() {
            Some((_, end)) if !sign.is_uppercase() => *end = at + sign.len_utf8(),
            Some(_) | None => parts.push((at, at + sign.len_utf8())),
        }
    }
    let part = |(start, end): Span| {
        token.written.get(start..end).is_some_and(|part| part.len() > 1 && has(&part.to_lowercase()))
    };
    // A city, if a source has the code of one of its airports. Codes that are words are not listed.
    let has_code = || words::meanings("cities", &token.word).any(has);
    has(&token.word) || has_code() || parts.len() > 1 && parts.into_iter().all(part)
}

/// Returns whether a sentence, line, quote or bracket begins here, so that a capital indicates no name.
fn is_initial(text: &str, at: usize) -> bool {
    let before = text.part(..at);
    let rest = before.trim_end_matches(|sign: char| " \t*_([{'#>|".contains(sign));
    let Some(sign) = rest.chars().next_back() else { return true };
    let (word, start) = words::word_before(rest, rest.len() - sign.len_utf8());
    let is_single = word.len() == 1 && text.get(start..).is_some_and(|word| word.starts_with(char::is_uppercase));
    let is_short =
        sign == '.' && (is_single || ["mr", "mrs", "ms", "dr", "st", "jr", "sr", "no", "vs"].contains(&word.as_str()));
    let is_hyphen =
        before.ends_with('-') && words::sign_before(before, before.len() - 1).is_some_and(char::is_alphanumeric);
    before.ends_with('(') || ".!?:\n\"-;•".contains(sign) && !is_short && !is_hyphen
}

/// Marks the places where a draft names its addressee and its sender.
fn persons(text: &str) -> Places {
    let mut places = Places::of(text);
    matches(&PERSON, text).for_each(|person| places.mark((person.start(), person.end())));
    for closing in matches(&CLOSING, text).filter(|closing| text.len() - closing.end() <= SIGNATURE_MAX) {
        places.mark((closing.start(), text.len()));
    }
    matches(&SIGNATURE, text).for_each(|signature| places.mark((signature.start(), signature.end())));
    places
}

/// Marks labels, and lines of capitalised words, which are headings.
fn titles(draft: &Draft<'_>) -> Places {
    let mut places = Places::of(draft.text);
    matches(&LABEL, draft.text).for_each(|label| places.mark((label.start(), label.end())));
    let mut start = 0;
    // The only line of a draft is not a heading.
    for line in draft.text.split_inclusive('\n').filter(|line| line.len() < draft.text.len()) {
        let end = start + line.len();
        let first = draft.tokens.partition_point(|token| token.span.0 < start);
        let mut tokens = draft.tokens.iter().skip(first).take_while(|token| token.span.0 < end).peekable();
        let is_big =
            |token: &Token<'_>| !token.written.starts_with(char::is_lowercase) || is_any(&["function"], &token.word);
        if tokens.peek().is_some() && tokens.all(is_big) && !line.trim_end().ends_with(['.', '!', '?']) {
            places.mark((start, end));
        }
        start = end;
    }
    places
}

/// Returns the words that no source has if the draft is one bare statement of fact. In a text that addresses
/// no one, a new word is a new fact.
pub(super) fn content(draft: &Draft<'_>) -> Vec<Span> {
    let tokens = &draft.tokens;
    let is_phrase = tokens.len() <= PHRASE_MAX && !tokens.iter().any(|token| is_any(&["verbs"], &token.word));
    if tokens.len() > STATEMENT_MAX || !is_statement(draft) {
        return vec![];
    }
    let is_new = |(at, token): &(usize, &Token<'_>)| {
        let is_known = is_any(
            &["function", "plain", "courtesy", "currencies", "numbers", "magnitudes", "units", "months"],
            &token.word,
        );
        let is_word =
            token.word.len() > 3 && token.word.starts_with(char::is_alphabetic) && (*at == 0 || !token.is_capital());
        is_word && !is_known && !draft.taken.any(token.span) && !draft.is_held(|held| held.words.has_like(&token.word))
    };
    let says = |token: &&Token<'_>| {
        let is_deed = token.word.ends_with("ed");
        is_any(&["attribute"], &token.word)
            || is_any(&["attribute"], &singular(&token.word))
            || !is_deed && (is_phrase || !is_ordinary(&token.word))
    };
    tokens.iter().enumerate().filter(is_new).map(|(_, token)| token).filter(says).map(|token| token.span).collect()
}

/// Returns whether a draft is one sentence that addresses no one.
fn is_statement(draft: &Draft<'_>) -> bool {
    let text = draft.text.trim();
    let ends_sentence = |pair: &[Token<'_>]| {
        let [one, other] = pair else { return false };
        let between = draft.text.part(one.span.1..other.span.0);
        let is_short = one.word.len() == 1 || ["mr", "mrs", "ms", "dr", "st", "jr", "no", "vs"].contains(&&*one.word);
        between.ends_with(' ')
            && between.trim_end().ends_with(['.', '!', '?'])
            && other.is_capital()
            && !(is_short && between.starts_with('.'))
    };
    let speaks = draft.tokens.iter().any(|token| is_any(&["person"], &token.word));
    !text.ends_with(['?', '!']) && !text.contains('\n') && !speaks && !draft.tokens.windows(2).any(ends_sentence)
}

#[cfg(test)]
mod tests {
    use crate::content::grounding::find;

    fn found(draft: &str, source: &str) -> Vec<String> {
        find(draft, &[source], &[])
            .into_iter()
            .map(|(code, (start, end))| format!("{code} {}", &draft[start..end]))
            .collect()
    }

    #[test]
    fn names_are_told_from_capitals() {
        for draft in [
            "Unfortunately, Delivery Times vary. Please see our FAQ, IMPORTANT!",
            "Dear Ms. van der Linden, I'm Ada from Brightwater. Sincerely, Ada Moor",
            "Order Summary:\n- **Shipping Method**: Ground\nKindly Wait For It",
            "Thanks for your patience, Nils! Hopefully that helps.",
            "The harbour cafe is by ClearWater.",
        ] {
            assert_eq!(
                found(draft, "shipping: ground. Clear water by the harbour cafe."),
                Vec::<String>::new(),
                "{draft}"
            );
        }
        assert_eq!(
            found("It is run by Otto Krahe of Zwolle and DHL.", "It is run by us."),
            ["name Otto Krahe of Zwolle", "name DHL"]
        );
        assert_eq!(found("Krahe runs it.", "Otto runs it."), ["name Krahe"]);
    }

    #[test]
    fn a_bare_statement_has_no_new_words() {
        let source = "The lamp runs on a battery that lasts 20 hours. Ada Moor wrote its manual.";
        assert_eq!(found("The battery of the lamp lasts 20 hours.", source), Vec::<String>::new());
        assert_eq!(found("The lamp is photovoltaic.", source), ["content photovoltaic"]);
        assert_eq!(found("a plumber", source), ["content plumber"]);
        assert_eq!(found("Ada Moor is an actress.", source), ["content actress"]);
        assert_eq!(found("Your lamp is photovoltaic.", source), Vec::<String>::new());
        assert_eq!(found("It is photovoltaic. It is new.", source), Vec::<String>::new());
    }
}
