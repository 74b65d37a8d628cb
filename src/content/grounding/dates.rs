//! Dates, weekdays and times of day of drafts and sources.

use std::collections::HashSet;
use std::sync::LazyLock;

use chrono::{Datelike, NaiveDate};

use crate::content::grounding::words::{
    Pattern, Token, Words, alternatives, matches, meaning, meanings, pattern, sign_after, sign_before, singular,
    word_before,
};
use crate::model::finding::Span;
use crate::model::part::Part;

const HALF_DAY: u32 = 12 * 60;
/// Largest number of days by which a named shift moves a date.
const SHIFT_MAX: i32 = 7;
/// Words that make a following `March` or `May` a month.
const BEFORE_MONTH: [&str; 13] =
    ["after", "and", "before", "by", "during", "early", "from", "in", "late", "of", "since", "through", "until"];
/// Words and signs between two weekdays that include the days between them.
const RANGE: [&str; 4] = ["-", "through", "to", "until"];

static DATE: Pattern = LazyLock::new(|| {
    let (month, day, year) = (alternatives("months"), "[0-9]{1,2}(?:st|nd|rd|th)?", "(?:1[0-9]|20|21)[0-9]{2}");
    let forms = [
        "[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}".to_owned(),
        format!(r"{day}(?: ?- ?{day})?(?: of)? (?:{month})\b\.?(?:,? {year}\b)?"),
        format!(r"(?:{month})\.? (?:the )?{day}\b(?: ?- ?[0-9]{{1,2}}\b)?(?:,? {year}\b)?"),
        format!(r"(?:{month})\.?,? (?:of )?{year}\b"),
        "[0-9]{1,2}[/.-][0-9]{1,2}[/.-](?:[0-9]{4}|[0-9]{2})".to_owned(),
        format!("{year}'?s"),
        format!(r"{year}(?: ?[-/] ?(?:{year}|[0-9]{{2}})\b)?"),
        format!(r"(?:{month})\b"),
    ];
    pattern(&format!(r"(?i)\b(?:{})", forms.join("|")))
});
static TIME: Pattern = LazyLock::new(|| {
    let minutes = "(?::[0-5][0-9])";
    pattern(&format!(
        r"(?i)\b[0-9]{{1,2}}{minutes}?{minutes}? ?[ap](?:m\b|\.m\b\.?)|(?:\b|T)(?:[01]?[0-9]|2[0-3]){minutes}{minutes}?"
    ))
});

/// `the next day`, `the day before`, `3 days later`, `back by one day`, `tomorrow`, `00:15+1` of timetables.
static SHIFT: Pattern = LazyLock::new(|| {
    pattern(
        r"(?i)\b(?:next|following|previous|prior) day\b|\bday (?:after|before|later|earlier)\b|\b(?:tomorrow|yesterday)\b|\b[0-9]{2}:[0-9]{2}(?::[0-9]{2})?\+1\b|\bby ([0-9]|a|one|two|three|four|five|six|seven) days?\b|\b([0-9]|a|one|two|three|four|five|six|seven) days? (?:after|before|later|earlier|forward|forwards|back|backwards)\b",
    )
});

/// A date, as far as it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Date {
    pub(super) year: Option<u32>,
    pub(super) month: Option<u32>,
    pub(super) day: Option<u32>,
    /// Number of years that the date covers: 10 for a decade.
    years: u32,
}

/// Returns the dates of a text, each with all of its possible readings.
pub(super) fn dates(text: &str) -> Vec<(Span, Vec<Date>)> {
    let mut found = vec![];
    for (start, written) in matches(&DATE, text).map(|found| (found.start(), found.as_str())) {
        let end = start + written.len();
        let (before, rest) = (sign_before(text, start), text.part(end..));
        let has_letters = written.contains(char::is_alphabetic);
        let goes_on =
            rest.strip_prefix(['.', ',', '/', '-']).unwrap_or(rest).starts_with(|next: char| next.is_ascii_digit());
        let is_stamp = written.len() >= 8 && written.split('-').count() == 3 && rest.starts_with('T');
        let is_part = (!has_letters && before.is_some_and(|sign| ".,/#$€£".contains(sign)))
            || goes_on
            || rest.trim_start().starts_with('%');
        if is_part || (sign_after(text, end).is_some_and(|next| next.is_alphanumeric() || next == '_') && !is_stamp) {
            continue;
        }
        let readings = read(written, &word_before(text, start).0);
        if let [first, second] = readings.as_slice()
            && first.month.is_none()
            && first.years == 1
        {
            // A range of years becomes two dates.
            found.push(((start, start + 4), vec![*first]));
            found.push(((start + 4, end), vec![*second]));
        } else if !readings.is_empty() {
            found.push(((start, end), readings));
        }
    }
    found
}

/// Returns the possible readings of a date, or both years of a range.
fn read(written: &str, word_before: &str) -> Vec<Date> {
    let parts = written.split(|sign: char| !sign.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let (mut month, mut years, mut numbers) = (None, vec![], vec![]);
    for part in parts {
        let digits = part.trim_end_matches(char::is_alphabetic);
        match (digits.parse::<u32>(), digits.len()) {
            (Ok(year), 4) => years.push(year),
            (Ok(number), _) => numbers.push(number),
            (Err(_), _) => month = month.or_else(|| meaning("months", part).and_then(|month| month.parse().ok())),
        }
    }
    let date = |year: Option<u32>, month: u32, day: Option<u32>| Date { year, month: Some(month), day, years: 1 };
    let either = |year: Option<u32>, one: u32, other: u32| {
        let orders = [(one, other), (other, one)]
            .into_iter()
            .filter(|(month, day)| (1..=12).contains(month) && (1..=31).contains(day));
        orders.map(|(month, day)| date(year, month, Some(day))).collect()
    };
    let alone = |year: u32, years: u32| Date { year: Some(year), years, ..Date::default() };
    match (month, years.as_slice(), numbers.as_slice()) {
        (Some(month), [], []) => {
            let is_word = !written.starts_with(char::is_uppercase)
                || written.len() < 4 && written != "May"
                || written.len() == 4 && month == 9;
            let is_month = !is_word && (!["March", "May"].contains(&written) || BEFORE_MONTH.contains(&word_before));
            if is_month { vec![date(None, month, None)] } else { vec![] }
        }
        (Some(month), years, numbers) => vec![date(years.first().copied(), month, numbers.first().copied())],
        (None, [year], [month, day]) if written.starts_with(&year.to_string()) => {
            vec![date(Some(*year), *month, Some(*day))]
        }
        (None, [year], [one, other]) => either(Some(*year), *one, *other),
        (None, [], [one, other, year]) => either(Some(2000 + year), *one, *other),
        (None, [year], []) if written.ends_with(['s', 'S']) => {
            vec![alone(*year, if year % 100 == 0 { 100 } else { 10 })]
        }
        (None, [year], [last]) => vec![alone(*year, 1), alone(year / 100 * 100 + last, 1)],
        (None, years, _) => years.iter().map(|year| alone(*year, 1)).collect(),
    }
}

/// Returns the times of day of a text: the minute of the day, and whether the text specifies a.m. or p.m.
pub(super) fn times(text: &str) -> Vec<(Span, u32, bool)> {
    let mut found = vec![];
    for (start, written) in matches(&TIME, text).map(|found| (found.start(), found.as_str())) {
        let end = start + written.len();
        let mut numbers =
            written.split(|sign: char| !sign.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
        let Some(hour) = numbers.next() else { continue };
        // `9 am` has no minute.
        let minute = numbers.next().unwrap_or(0);
        let is_afternoon = written.contains(['p', 'P']);
        let says_half = is_afternoon || written.contains(['a', 'A']);
        let is_part = sign_before(text, start).is_some_and(|before| ":.".contains(before))
            || sign_after(text, end).is_some_and(|next| next == ':' || next.is_ascii_digit());
        if !is_part && hour < 24 {
            let hour = if says_half { hour % 12 + if is_afternoon { 12 } else { 0 } } else { hour };
            found.push(((start, end), hour * 60 + minute, says_half));
        }
    }
    found
}

/// Returns the numbers of days by which a text asks or allows to move a date.
pub(super) fn shifts(text: &str) -> impl Iterator<Item = i32> {
    matches(&SHIFT, text).filter_map(|found| {
        let count = found.as_str().split_whitespace().find_map(|word| match word.parse::<i32>() {
            Ok(count) => Some(count),
            Err(_) => meaning("numbers", word).and_then(|number| number.parse().ok()),
        });
        Some(count.unwrap_or(1)).filter(|days| *days <= SHIFT_MAX)
    })
}

/// Returns the number of a full date's day.
pub(super) fn day(date: &Date) -> Option<i32> {
    let year = i32::try_from(date.year?).ok()?;
    NaiveDate::from_ymd_opt(year, date.month?, date.day?).map(|day| day.num_days_from_ce())
}

/// The dates, weekdays and times of the sources.
#[derive(Debug, Default)]
pub(super) struct Dates {
    /// Year, month and day of each date, and every part of it. Year 0 marks a date that is given without a
    /// year.
    dates: HashSet<(Option<u32>, Option<u32>, Option<u32>)>,
    /// The full dates, as numbers of days.
    pub(super) days: HashSet<i32>,
    /// Numbers of days by which the text asks or allows to move a date.
    pub(super) shifts: HashSet<i32>,
    times: HashSet<u32>,
    weekdays: HashSet<u32>,
}

impl Dates {
    pub(super) fn add(&mut self, text: &str, tokens: &[Token<'_>]) {
        for date in dates(text).into_iter().flat_map(|(_, readings)| readings) {
            for (month, day) in [(date.month, date.day), (date.month, None), (None, None)] {
                self.dates.extend([(date.year, month, day), (None, month, day)]);
                if date.year.is_none() {
                    self.dates.insert((Some(0), month, day));
                }
            }
            self.weekdays.extend(weekday(date));
            self.days.extend(day(&date));
        }
        self.shifts.extend(shifts(text));
        for (_, minute, says_half) in times(text) {
            self.times.insert(minute);
            if !says_half {
                self.times.insert((minute + HALF_DAY) % (2 * HALF_DAY));
            }
        }
        let mut last: Option<(u32, usize)> = None;
        for token in tokens {
            let Some(day) = meanings("weekdays", &singular(&token.word)).next().and_then(|day| day.parse().ok()) else {
                continue;
            };
            let from = last
                .filter(|(_, end)| text.get(*end..token.span.0).is_some_and(|between| RANGE.contains(&between.trim())));
            let first = from.map_or(day, |(first, _)| first);
            self.weekdays.extend((0..=(day + 7 - first) % 7).map(|later| (first + later) % 7));
            last = Some((day, token.span.1));
        }
    }

    /// Adds the weekdays that words such as `daily` imply. To be called once all sources are added.
    pub(super) fn add_weekdays(&mut self, words: &Words) {
        let any = |known: &[&str]| known.iter().any(|word| words.contains(word));
        if any(&["weekday", "businessday", "businessdays", "workingday", "workingdays"]) {
            self.weekdays.extend(2..=6);
        }
        if any(&["weekend"]) {
            self.weekdays.extend(0..=1);
        }
        if any(&["247", "everyday", "daily"]) {
            self.weekdays.extend(0..=6);
        }
    }

    /// Returns whether a source has one of the readings of a date, of which `has_year` knows the years: the day
    /// and the year may be given apart.
    pub(super) fn has_date(&self, readings: &[Date], has_year: impl Fn(u32) -> bool) -> bool {
        readings.iter().any(|date| {
            let without_year = || {
                date.month.is_some()
                    && date.year.is_some_and(&has_year)
                    && self.dates.contains(&(Some(0), date.month, date.day))
            };
            let in_decade = || date.year.is_some_and(|year| (year..year + date.years).any(&has_year));
            self.dates.contains(&(date.year, date.month, date.day))
                || without_year()
                || date.month.is_none() && in_decade()
        })
    }

    pub(super) fn has_year(&self, year: u32) -> bool {
        self.dates.contains(&(Some(year), None, None))
    }

    pub(super) fn has_time(&self, minute: u32, says_half: bool) -> bool {
        self.times.contains(&minute) || !says_half && self.times.contains(&((minute + HALF_DAY) % (2 * HALF_DAY)))
    }

    pub(super) fn has_weekday(&self, name: &str) -> bool {
        meaning("weekdays", name).and_then(|day| day.parse().ok()).is_some_and(|day: u32| self.weekdays.contains(&day))
    }
}

/// Returns the weekday of a complete date, counted from Saturday, by Zeller's congruence.
fn weekday(date: Date) -> Option<u32> {
    let (year, month, day) = (date.year?, date.month?, date.day?);
    let (year, month) = if month < 3 { (year.checked_sub(1)?, month + 12) } else { (year, month) };
    Some((day + 13 * (month + 1) / 5 + year + year / 4 - year / 100 + year / 400) % 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::grounding::words::tokens;

    fn held(text: &str) -> Dates {
        let mut dates = Dates::default();
        dates.add(text, &tokens(text));
        dates
    }

    #[test]
    fn dates_are_the_same_in_any_form() {
        for source in [
            "2026-05-04T10:00:00Z",
            "May 4th, 2026",
            "the 4th of May 2026",
            "04/05/2026",
            "4.5.26",
            "5/4/26",
            "4 May; all in 2026",
        ] {
            let held = held(source);
            for (draft, known) in [
                ("4 May 2026", true),
                ("May 4", true),
                ("in May 2026", true),
                ("May 2026", true),
                ("5 May 2026", false),
                ("May 4, 2025", false),
            ] {
                let found = dates(draft);
                assert!(
                    found.iter().all(|(_, readings)| held.has_date(readings, |year| held.has_year(year)) == known)
                        && found.len() == 1,
                    "{draft} in {source}: {found:?}"
                );
            }
        }
        let founded = held("founded in 1994");
        assert!(founded.has_date(&dates("the 1990s").remove(0).1, |year| founded.has_year(year)));
        assert_eq!(dates("from 1844-46").len(), 2);
        for none in ["24/7", "3/4 of it", "Jan 5%", "v1.2.2026.1", "5 march"] {
            assert!(
                dates(none).iter().all(|(_, readings)| none == "5 march" || readings.is_empty()),
                "{none}: {:?}",
                dates(none)
            );
        }
    }

    #[test]
    fn shifts_are_read_in_digits_and_words() {
        let all = |text: &str| shifts(text).collect::<Vec<_>>();
        assert_eq!(all("Move it to the next day, or two days later, or back by one day."), [1, 2, 1]);
        assert_eq!(all("Can I fly the day after? Or tomorrow? Or 3 days earlier?"), [1, 1, 3]);
        assert_eq!(all("departs 18:00, arrives 00:15+1"), [1]);
        assert_eq!(all("Refunds take 5 days. Have a nice day! 9 days later."), [] as [i32; 0]);
    }

    #[test]
    fn weekdays_follow_from_dates_and_ranges() {
        let days = |text: &str| ["Monday", "Wednesday", "Friday", "Saturday"].map(|day| held(text).has_weekday(day));
        assert_eq!(days("Mon-Fri"), [true, true, true, false]);
        assert_eq!(days("due on 2026-05-04"), [true, false, false, false]);
        assert_eq!(days("Friday to Monday"), [true, false, true, true]);
    }

    #[test]
    fn times_are_minutes_of_the_day() {
        let minutes = |text| times(text).into_iter().map(|(_, minute, _)| minute).collect::<Vec<_>>();
        assert_eq!(minutes("9am, 9:30 p.m., 17:05, 12 am, 2026-05-04T10:15:00Z"), [540, 1290, 1025, 0, 615]);
        assert_eq!(minutes("1:2, 25:00, 9 amps"), Vec::<u32>::new());
        assert!(held("10:05 to 22:00").has_time(10 * 60 + 5, true) && held("at 22:00").has_time(600, false));
    }
}
