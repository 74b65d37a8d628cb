//! Finds statements of a draft that no source supports: atoms such as amounts, dates and names and, in a bare
//! statement of fact, ordinary words.
//!
//! The sources are read once and each atom of the draft is then looked up, so the work is linear in both.

mod codes;
mod dates;
mod derived;
mod hash;
mod links;
mod names;
mod numbers;
pub(super) mod places;
mod words;

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::content::grounding::codes::{is_code, rows_with_digits};
use crate::content::grounding::dates::{Date, Dates};
use crate::content::grounding::links::{links, local};
use crate::content::grounding::numbers::{Number, Numbers};
use crate::content::grounding::places::Places;
use crate::content::grounding::words::{
    Pattern, Token, Words, is_any, matches, meaning, pattern, sign_after, sign_before, word_before,
};
use crate::model::finding::Span;
use crate::model::part::Part;

/// Maximum number of atoms that are checked in a draft, and that are read from a source. The text after the
/// last of them counts as ungrounded in a draft; in a source its dates, numbers and links ground nothing, but
/// its words do. A page of text has about fifty atoms.
const DRAFT_ATOMS_MAX: usize = 512;
const SOURCE_ATOMS_MAX: usize = 2048;
/// Maximum number of pieces of quotes that are looked up, since each is searched for in all sources. Further
/// pieces count as ungrounded.
const QUOTE_PARTS_MAX: usize = 64;
/// Maximum number of prefixes of a source's link that ground a link of the draft.
const LINK_PARTS_MAX: usize = 16;
/// A day, in seconds.
const DAY: f64 = 86_400.0;
/// Words before a weekday that make it a wish instead of a statement: `Happy Friday`.
const WISHES: [&str; 6] = ["good", "great", "happy", "lovely", "nice", "wonderful"];
/// Words before a few minutes that promise nothing: `in 2 minutes`.
const SOON: [&str; 9] = ["about", "another", "for", "in", "just", "me", "next", "wait", "within"];

static LISTING: Pattern = LazyLock::new(|| {
    pattern(
        r"(?i)(?:^|\n|[.:;] )\s*(?:\(?[0-9]{1,2}[.)]|#[0-9]{1,2})\s|\b(?:step|option|point|part)s? [0-9]{1,2}\b|\b24 ?[/x] ?7\b",
    )
});
/// What makes a number the customer's own in the words of a draft: `you mentioned up to $600`.
static ATTRIBUTION: Pattern = LazyLock::new(|| {
    pattern(
        r"(?i)\byou(?:'ve| have)? (?:mentioned|said|told|wrote|asked|requested|offered|stated|indicated)\b[^.!?\n]{0,80}$",
    )
});
static QUOTE: Pattern = LazyLock::new(|| pattern("\"[^\"\n]{1,300}\""));

/// Code of the text after the last atom that is checked.
const UNJUDGED: &str = "too_many";
/// Code of names that no source has.
pub(super) const NAME: &str = "name";
/// Language of the word lists.
pub(super) const LANGUAGE: &str = "en";
/// Code of ordinary words that no source has, in a draft that is one bare statement of fact.
pub(super) const CONTENT: &str = "content";

/// Finds what no source supports; returns code and place. The customer's text grounds everything except links
/// and amounts, because the customer's word does not justify a link or a sum. All texts are folded.
pub(super) fn find(whole: &str, sources: &[&str], customer: &[&str]) -> Vec<(&'static str, Span)> {
    let (sources, customer) = (Held::of(sources), Held::of(customer));
    let (draft, tokens) = judged(whole, words::tokens(whole), DRAFT_ATOMS_MAX);
    let taken = Places::of(draft);
    let mut draft = Draft {
        text: draft,
        tokens,
        sources: &sources,
        customer: &customer,
        taken,
        days: vec![],
        quote_parts: 0,
        found: vec![],
    };
    draft.links();
    draft.listings();
    draft.quotes();
    draft.times();
    draft.dates();
    draft.weekdays();
    draft.codes();
    draft.numbers();
    let names = names::names(&draft);
    names.into_iter().for_each(|span| draft.flag(NAME, span));
    let content = names::content(&draft);
    content.into_iter().for_each(|span| draft.flag(CONTENT, span));
    if draft.text.len() < whole.len() {
        draft.found.push((UNJUDGED, (draft.text.len(), whole.len())));
    }
    draft.found
}

/// Cuts a text and its words before the first atom that exceeds `most`. An atom begins with a capital or a
/// digit, is a word for a number or a month, or follows a quotation mark or one of the signs that join an
/// address.
fn judged<'t>(text: &'t str, mut tokens: Vec<Token<'t>>, most: usize) -> (&'t str, Vec<Token<'t>>) {
    let begins = |token: &Token<'_>| {
        let is_joined = text
            .as_bytes()
            .get(token.span.0.wrapping_sub(1))
            .is_some_and(|sign| matches!(sign, b'.' | b'@' | b'/' | b'"'));
        is_joined
            || token.written.starts_with(|first: char| first.is_uppercase() || first.is_ascii_digit())
            || token.is_listed(&["numbers", "months"])
    };
    let Some((at, cut)) =
        tokens.iter().enumerate().filter(|(_, token)| begins(token)).map(|(at, token)| (at, token.span.0)).nth(most)
    else {
        return (text, tokens);
    };
    tokens.truncate(at);
    (text.get(..cut).unwrap_or(text), tokens)
}

/// Contents of the sources, indexed for look-up.
#[derive(Debug, Default)]
struct Held {
    words: Words,
    /// The words of each source in order, without articles, with a space around each.
    streams: Vec<String>,
    links: HashSet<String>,
    dates: Dates,
    numbers: Numbers,
}

impl Held {
    fn of(sources: &[&str]) -> Self {
        let mut held = Self::default();
        let mut numbers = vec![];
        for source in sources {
            let tokens = words::tokens(source);
            held.words.add(&tokens);
            held.streams.push(stream(&tokens));
            let (source, tokens) = judged(source, tokens, SOURCE_ATOMS_MAX);
            held.dates.add(source, &tokens);
            numbers.extend(numbers::numbers(source, &tokens));
            for (_, link) in links(source) {
                let parts = link
                    .match_indices(['/', '?'])
                    .take(LINK_PARTS_MAX)
                    .filter_map(|(at, _)| link.get(..at))
                    .map(str::to_owned);
                held.links.extend(parts);
                held.links.extend(local(&link).map(str::to_owned));
                held.links.insert(link);
            }
        }
        held.dates.add_weekdays(&held.words);
        held.numbers = Numbers::of(&numbers);
        held
    }

    /// Returns whether a source has these words in this order, ignoring articles, or as one word.
    fn has_row(&self, text: &str) -> bool {
        let tokens = words::tokens(text);
        let row = stream(&tokens);
        let together = || self.words.contains(&tokens.iter().map(|token| &*token.word).collect::<String>());
        row.trim().is_empty() || self.streams.iter().any(|stream| stream.contains(&row)) || together()
    }
}

fn stream(tokens: &[Token<'_>]) -> String {
    let mut stream = String::from(" ");
    for token in tokens.iter().filter(|token| !["a", "an", "the"].contains(&&*token.word)) {
        stream.push_str(&token.word);
        stream.push(' ');
    }
    stream
}

#[derive(Debug)]
struct Draft<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    sources: &'a Held,
    customer: &'a Held,
    /// Places that are already checked.
    taken: Places,
    /// The full dates, as numbers of days.
    days: Vec<i32>,
    /// Number of pieces of quotes that were looked up.
    quote_parts: usize,
    found: Vec<(&'static str, Span)>,
}

impl Draft<'_> {
    /// Returns whether `has` holds for the sources or for the customer's text.
    fn is_held(&self, has: impl Fn(&Held) -> bool) -> bool {
        has(self.sources) || has(self.customer)
    }

    fn flag(&mut self, code: &'static str, span: Span) {
        self.found.push((code, span));
        self.taken.mark(span);
    }

    /// Marks a place as checked, and flags it unless it is grounded.
    fn judge(&mut self, code: &'static str, span: Span, is_grounded: bool) {
        self.taken.mark(span);
        if !is_grounded {
            self.flag(code, span);
        }
    }

    fn links(&mut self) {
        for (span, link) in links(self.text) {
            let has = |link: &str| self.sources.links.contains(link) || self.sources.words.contains(link);
            let is_grounded = has(&link) || local(&link).is_some_and(has);
            self.judge("link", span, is_grounded);
        }
    }

    /// Skips the numbers of lists and steps, which state nothing, and checks `24/7`, which does.
    fn listings(&mut self) {
        for listing in matches(&LISTING, self.text) {
            let is_always = listing.as_str().starts_with("24");
            let is_grounded = !is_always
                || ["247", "24x7", "24hours", "theclock"]
                    .iter()
                    .any(|word| self.is_held(|held| held.words.contains(word)));
            self.judge("time", (listing.start(), listing.end()), is_grounded);
        }
    }

    /// Checks quotes, which are split at commas and the like; each piece may be from a different source.
    fn quotes(&mut self) {
        for quote in matches(&QUOTE, self.text) {
            let is_courtesy =
                |part: &str| words::tokens(part).iter().all(|token| is_any(&["function", "courtesy"], &token.word));
            let mut parts = quote.as_str().split(['…', ',', ';', '(']).flat_map(|part| part.split("..."));
            let mut looked_up = self.quote_parts;
            let is_grounded = parts.all(|part| {
                looked_up += 1;
                looked_up <= QUOTE_PARTS_MAX && self.is_held(|held| held.has_row(part)) || is_courtesy(part)
            });
            self.quote_parts = looked_up;
            if !is_grounded {
                self.flag("quote", (quote.start(), quote.end()));
            }
        }
    }

    fn times(&mut self) {
        for (span, minute, says_half) in dates::times(self.text) {
            if !self.taken.any(span) {
                self.judge("time", span, self.is_held(|held| held.dates.has_time(minute, says_half)));
            }
        }
    }

    fn dates(&mut self) {
        for (span, readings) in dates::dates(self.text) {
            self.days.extend(readings.iter().filter_map(dates::day));
            let year = readings.first().and_then(|date| date.year.filter(|_| date.month.is_none()));
            let is_count = year.is_some() && numbers::unit_after(self.text, span.1).is_some();
            // In `2 may` the word is not a month.
            let letters = self
                .text
                .get(span.0..span.1)
                .and_then(|written| written.split(|sign: char| !sign.is_alphabetic()).find(|word| word.len() > 2));
            let is_word = letters.is_some_and(|word| !word.starts_with(char::is_uppercase));
            if !self.taken.any(span) && !is_count && !is_word {
                let has_year = |year: u32| self.is_held(|held| held.dates.has_year(year));
                let is_grounded = self.is_held(|held| {
                    held.dates.has_date(&readings, has_year) || year.is_some_and(|year| held.numbers.has_value(year))
                }) || self.is_shifted(&readings);
                self.judge("date", span, is_grounded);
            }
        }
    }

    /// Returns whether a date is so many days from one of the sources as the customer or a source asks for.
    fn is_shifted(&self, readings: &[Date]) -> bool {
        let shifts = || self.sources.dates.shifts.iter().chain(&self.customer.dates.shifts);
        readings.iter().filter_map(dates::day).any(|day| {
            shifts().any(|by| [day - by, day + by].iter().any(|day| self.is_held(|held| held.dates.days.contains(day))))
        })
    }

    fn weekdays(&mut self) {
        let named = |token: &&Token<'_>| {
            token.is_capital() && token.word.len() > 5 && meaning("weekdays", &words::singular(&token.word)).is_some()
        };
        let days: Vec<(Span, String)> = self
            .tokens
            .iter()
            .filter(named)
            .map(|token| (token.span, words::singular(&token.word).into_owned()))
            .collect();
        for (span, name) in days.into_iter().filter(|(span, _)| !self.taken.any(*span)).collect::<Vec<_>>() {
            let is_wish = WISHES.contains(&word_before(self.text, span.0).0.as_str());
            self.judge("date", span, is_wish || self.is_held(|held| held.dates.has_weekday(&name)));
        }
    }

    /// Checks codes of letters and digits, and numbers after `#`.
    fn codes(&mut self) {
        for span in rows_with_digits(self.text) {
            let written = self.text.part(span.0..span.1);
            let is_part = sign_before(self.text, span.0)
                .is_some_and(|before| before.is_alphanumeric() || "_@/.".contains(before))
                || sign_after(self.text, span.1).is_some_and(|next| "_@".contains(next));
            if !is_part && !self.taken.any(span) && is_code(written) {
                let compact: String =
                    written.chars().filter(char::is_ascii_alphanumeric).map(|sign| sign.to_ascii_lowercase()).collect();
                self.judge("identifier", span, self.is_held(|held| held.words.contains(&compact)));
            }
        }
    }

    fn numbers(&mut self) {
        let numbers = numbers::numbers(self.text, &self.tokens);
        // Days of dates and numbers of lists count nothing.
        let counting: Vec<Number> = numbers.iter().filter(|number| !self.taken.any(number.span)).cloned().collect();
        let derived = derived::amounts(&counting, &self.sources.numbers, |number| self.holds(number));
        for number in numbers.iter().filter(|number| !number.is_spelled || number.value() != 1.0) {
            if self.taken.any(number.span) {
                continue;
            }
            let is_grounded = self.is_small(number)
                || self.holds(number)
                || derived.contains(&number.span)
                || self.is_span(number)
                || number.currency.is_some() && self.is_said_by_customer(number);
            if !is_grounded {
                self.flag(if number.currency.is_some() { "amount" } else { "number" }, number.span);
            } else if !number.is_spelled {
                self.taken.mark(number.span);
            }
        }
    }

    /// Returns whether two dates of the draft, or of few dates of the sources, are so many days or weeks apart.
    fn is_span(&self, number: &Number) -> bool {
        let is_days = number.unit.filter(|unit| unit.dimension == "time" && unit.size >= DAY);
        is_days.is_some_and(|unit| {
            derived::are_apart(&self.days, &self.sources.dates.days, number.value() * unit.size / DAY)
        })
    }

    /// Returns whether the draft says that the customer gave a number, and the customer did.
    fn is_said_by_customer(&self, number: &Number) -> bool {
        let line = self.text.part(..number.span.0).rsplit(['\n', '.']).next().unwrap_or_default();
        matches(&ATTRIBUTION, line).next().is_some() && self.customer.numbers.has(number, (1.0, 1.0))
    }

    fn holds(&self, number: &Number) -> bool {
        let is_plain = number.currency.is_none() && number.unit.is_none();
        let digits =
            || self.text.part(number.span.0..number.span.1).chars().filter(char::is_ascii_digit).collect::<String>();
        let tolerance = numbers::tolerance(self.text, number);
        if number.currency.is_some() {
            return self.sources.numbers.has(number, tolerance);
        }
        self.is_held(|held| held.numbers.has(number, tolerance))
            || is_plain && !number.is_ordinal && self.is_held(|held| held.numbers.is_within(number.value()))
            || is_plain && number.value() >= 10_000.0 && self.is_held(|held| held.words.contains(&digits()))
    }

    /// Returns whether a number is too small to matter: up to three of anything, or a few minutes.
    fn is_small(&self, number: &Number) -> bool {
        let is_whole = number.value() <= 3.0 && number.value().fract() == 0.0;
        match (number.currency, number.unit) {
            (None, None) => is_whole,
            (None, Some(unit)) if unit.dimension == "time" && unit.size <= 60.0 => {
                number.value() <= 5.0 && SOON.contains(&word_before(self.text, number.span.0).0.as_str())
            }
            (Some(_), _) | (None, Some(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(draft: &str, sources: &[&str]) -> Vec<String> {
        find(draft, sources, &[])
            .into_iter()
            .map(|(code, (start, end))| format!("{code} {}", &draft[start..end]))
            .collect()
    }

    const ORDER: &str = r#"{"order_id": "ORD-7731", "placed": "2026-03-09T15:30:00Z", "total": 84.50, "currency": "EUR", "carrier": "Parcelwise"}"#;
    const POLICY: &str = "Items can be returned within 30 days. Refunds take 5-7 business days. Write to help@lumen.example or see https://lumen.example/returns, \
                          or call +1 (800) 555-0142, Monday to Friday, 9am to 6pm. The guide says: 'Keep the receipt, it proves the purchase'.";

    #[test]
    fn what_the_sources_hold_is_grounded_however_it_is_put() {
        for draft in [
            "Hi Nora,\n\nYour order ORD-7731 of 9 March 2026 came to €84.50 and went out with Parcelwise at 3:30 p.m.\n\nBest regards,\nTom Beck",
            "It was placed on Monday, March 9th, for about 84 euros, and you can return it within thirty days.",
            "Refunds take up to a week: 7 days at most, 5 at least. Call 800-555-0142, or write to help@lumen.example.",
            "We are here until 18:00 on Wednesday. Please give me 2 minutes!",
            "1. Go to lumen.example/returns\n2. Choose \"Keep the receipt\"\n3. Wait for step 4",
            "Thank you for writing to us, this is Ida from Lumen. Is there anything else I can help you with?",
        ] {
            assert_eq!(found(draft, &[ORDER, POLICY]), Vec::<String>::new(), "{draft}");
        }
    }

    #[test]
    fn what_no_source_holds_is_found() {
        for (draft, atoms) in [
            ("We refund $48.50 to you.", vec!["amount $48.50"]),
            ("You can return it within 60 days.", vec!["number 60"]),
            ("It was placed on 10 March 2026 with Swiftship.", vec!["date 10 March 2026", "name Swiftship"]),
            ("It comes by Sunday, at 8pm.", vec!["time 8pm", "date Sunday"]),
            (
                "Write to billing@lumen.example or see lumen.example/claims.",
                vec!["link billing@lumen.example", "link lumen.example/claims"],
            ),
            ("Call +1 888 555 0199 about ORD-7713.", vec!["link +1 888 555 0199", "identifier ORD-7713"]),
            ("Our guide says: \"Refunds are always possible.\"", vec!["quote \"Refunds are always possible.\""]),
            ("We are here for you 24/7.", vec!["time 24/7"]),
        ] {
            assert_eq!(found(draft, &[ORDER, POLICY]), atoms, "{draft}");
        }
    }

    #[test]
    fn an_amount_that_the_draft_works_out_is_grounded() {
        let prices = "The lamp costs 40 EUR, shipping 6 EUR.";
        assert_eq!(found("The lamp is 40 EUR and shipping 6 EUR: 46 EUR in all.", &[prices]), Vec::<String>::new());
        assert_eq!(found("That is 46 EUR in all.", &[prices]), ["amount 46 EUR"]);
        for (draft, amounts) in [
            ("Two lamps come to 80 EUR.", vec![]),
            ("Two lamps come to 90 EUR.", vec!["amount 90 EUR"]),
            ("The lamp is 40 EUR, shipping 6 EUR, 46 EUR in all, and 92 EUR for 2 people.", vec![]),
            ("The lamp is 40 EUR and shipping 6 EUR, so you save 34 EUR.", vec![]),
            ("You save 34 EUR.", vec!["amount 34 EUR"]),
            ("1. The lamp.\n2. You pay 80 EUR.", vec!["amount 80 EUR"]),
        ] {
            assert_eq!(found(draft, &[prices]), amounts, "{draft}");
        }
    }

    #[test]
    fn an_amount_of_the_customer_is_grounded_where_the_draft_says_so() {
        let asked = |draft: &str| find(draft, &[ORDER], &["I can pay up to 60 EUR"]).len();
        assert_eq!(asked("You mentioned that you can pay up to 60 EUR."), 0);
        assert_eq!(asked("You mentioned that you can pay up to 70 EUR."), 1);
        assert_eq!(asked("We refund 60 EUR."), 1);
    }

    #[test]
    fn dates_follow_from_a_shift_that_somebody_names() {
        let trip = r#"{"leaves": "2026-05-18", "from": "BOS", "to": "LAS"}"#;
        let moved = |draft: &str, customer: &str| find(draft, &[trip], &[customer]).len();
        assert_eq!(moved("There is a flight on 19 May 2026.", "Can I go the day after?"), 0);
        assert_eq!(moved("There is a flight on 20 May 2026.", "Can I go the day after?"), 1);
        assert_eq!(moved("There is a flight on 19 May 2026.", "Can I change my trip?"), 1);
        assert_eq!(moved("There is a flight on 26 May 2026.", "On May 26, please."), 0);
        assert_eq!(moved("From 18 May 2026 to 26 May 2026 are 8 days.", "Until May 26, please."), 0);
        assert_eq!(moved("From 18 May 2026 to 26 May 2026 are 9 days.", "Until May 26, please."), 1);
    }

    #[test]
    fn a_city_is_grounded_by_the_code_of_its_airport() {
        let trip = r#"{"from": "BOS", "to": "LAS"}"#;
        assert_eq!(found("It flies from Boston to Las Vegas.", &[trip]), Vec::<String>::new());
        assert_eq!(found("It flies from Boston to Seattle.", &[trip]), ["name Seattle"]);
    }

    #[test]
    fn a_long_row_of_digits_is_no_end_of_a_range() {
        let cards = r#"{"gift_card_7359776": 39, "gift_card_7773485": 160}"#;
        let draft = "It was $39 from gift card 7359776 and $160 from gift card 7773485.";
        assert_eq!(found(draft, &[cards]), Vec::<String>::new());
    }

    #[test]
    fn quotes_are_from_a_source_piece_by_piece() {
        let sources = ["Ship to Elm Road 4, Leeds", "The postcode is LS1 4AB"];
        assert_eq!(found("It goes to \"Elm Road 4, Leeds, LS1 4AB\".", &sources), Vec::<String>::new());
        assert_eq!(found("It goes to \"Elm Road 5, Leeds\".", &sources), ["quote \"Elm Road 5, Leeds\""]);
    }

    #[test]
    fn what_stands_behind_too_many_atoms_is_not_judged_and_grounds_nothing() {
        // The letters and the digits of an order number count as one atom each.
        let atoms = |count: usize, more: &str| format!("{}{more}", "ORD-7731 and ".repeat(count / 2));
        assert_eq!(found(&atoms(DRAFT_ATOMS_MAX, "so on"), &[ORDER]), Vec::<String>::new());
        assert_eq!(found(&atoms(DRAFT_ATOMS_MAX, "Nora and $84.50"), &[ORDER]), ["too_many Nora and $84.50"]);
        let fee = |before: usize| found("The fee is $48.50.", &[&atoms(before, "a fee of $48.50")]);
        assert_eq!(fee(SOURCE_ATOMS_MAX - 2), Vec::<String>::new());
        assert_eq!(fee(SOURCE_ATOMS_MAX), ["amount $48.50"]);
    }

    #[test]
    fn without_sources_nothing_is_grounded_and_no_text_panics() {
        assert_eq!(found("The fee is 12 EUR.", &[]), ["amount 12 EUR"]);
        for draft in [
            "",
            " ",
            "\"",
            "\"\"",
            "1",
            "0-0-0",
            "#",
            "24/7",
            "\u{130}",
            "Жук 5 日本",
            "99999999999999999999999999999999999999999/9/99",
            "x'",
            "...",
        ] {
            for source in ["", draft, "May 0, 1000", "-"] {
                find(draft, &[source], &[source]);
            }
        }
    }
}
