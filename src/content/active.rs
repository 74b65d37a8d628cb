//! Active content in a draft: anything that a mail program or a browser would run, load or submit. Whether a
//! reply is shown as plain text or as HTML is not known here, so it is checked as both: for links with
//! schemes other than [`SCHEMES`], elements that do more than show text, and event handlers.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::content::pattern::constant;
use crate::model::part::Part;

/// Schemes that a reply may link to (RFC 3986, RFC 6068, RFC 3966).
const SCHEMES: [&str; 3] = ["https", "mailto", "tel"];
/// Maximum length of a scheme, in bytes.
const SCHEME_MAX: usize = 32;

/// Schemes that run or load something wherever a program turns them into a link, even without `//`.
const RUNS: [&str; 12] = [
    "about",
    "blob",
    "data",
    "file",
    "filesystem",
    "intent",
    "jar",
    "javascript",
    "livescript",
    "mhtml",
    "vbscript",
    "view-source",
];

/// Named character references that browsers drop from a scheme or read as a part of it (HTML Living Standard,
/// section 13.5).
const REFERENCES: [(&str, &str); 3] = [("&tab;", ""), ("&newline;", ""), ("&colon;", ":")];

/// An element that runs, loads, embeds, submits or restyles.
static ELEMENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let names = "applet|audio|base|body|button|embed|form|frame|frameset|iframe|input|link|math|meta|object|script|select|style|svg|template|textarea|video";
    constant(&format!(r"</?(?:{names})(?:[ \t\n\r\x0c/>]|$)"))
});
/// An event handler within an element.
static HANDLER: LazyLock<Option<Regex>> =
    LazyLock::new(|| constant(r#"<[a-z!/][^<>]{0,512}[ \t\n\r\x0c/"'`]on[a-z]{3,24}[ \t\n\r\x0c]*="#));
/// A place whose text is a link, whatever its scheme.
static LINKED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    constant(
        r#"(?:\]\(|\]:|(?-u:\b)(?:href|src|action|formaction|background|poster|srcdoc) *=) *["'`<]? *([a-z][a-z0-9+.-]{0,31}):"#,
    )
});

/// Finds the active content in a view of a draft and reports its codes and places.
pub(super) fn find(text: &str, mut found: impl FnMut(&'static str, (usize, usize))) {
    let lower = text.to_ascii_lowercase();
    let mut each =
        |code: &'static str, pattern: &'static LazyLock<Option<Regex>>, text: &str, at: &dyn Fn(usize) -> usize| {
            for place in pattern.iter().flat_map(|pattern| pattern.find_iter(text)) {
                found(code, (at(place.start()), at(place.end())));
            }
        };
    each("element", &ELEMENT, &lower, &|at| at);
    each("event_handler", &HANDLER, &lower, &|at| at);
    // Programs drop control characters and resolve references within a scheme when a link is followed.
    let (plain, places) = without_references(&lower);
    let place = |at: usize| places.get(at).copied().unwrap_or(lower.len());
    for linked in LINKED.iter().flat_map(|pattern| pattern.captures_iter(&plain)) {
        let scheme = linked.get(1).filter(|scheme| !SCHEMES.contains(&scheme.as_str()));
        scheme.into_iter().for_each(|scheme| found("scheme", (place(scheme.start()), place(scheme.end()))));
    }
    for (colon, _) in plain.match_indices(':') {
        let before = plain.as_bytes().part(colon.saturating_sub(SCHEME_MAX)..colon);
        let length =
            before.iter().rev().take_while(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(byte)).count();
        let scheme = plain.part(colon - length..colon).trim_start_matches(|sign: char| !sign.is_ascii_alphabetic());
        let rest = plain.part(colon + 1..);
        let is_link = rest.starts_with("//") && scheme.len() > 1
            || RUNS.contains(&scheme) && rest.starts_with(|next: char| !next.is_whitespace());
        if is_link && !SCHEMES.contains(&scheme) {
            found("scheme", (place(colon - scheme.len()), place(colon)));
        }
    }
}

/// Removes control characters and resolves character references; also returns the original place of each
/// byte.
fn without_references(text: &str) -> (Cow<'_, str>, Vec<usize>) {
    if !text.bytes().any(|byte| byte == b'&' || byte.is_ascii_control()) {
        return (Cow::Borrowed(text), (0..=text.len()).collect());
    }
    let mut plain = String::with_capacity(text.len());
    let mut places = Vec::with_capacity(text.len() + 1);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let at = text.len() - rest.len();
        let (length, shown) = match first {
            '&' => reference(rest).unwrap_or((1, Some('&'))),
            control if control.is_ascii_control() => (1, None),
            other => (other.len_utf8(), Some(other)),
        };
        plain.extend(shown);
        places.extend(std::iter::repeat_n(at, shown.map_or(0, char::len_utf8)));
        rest = rest.part(length..);
    }
    places.push(text.len());
    (Cow::Owned(plain), places)
}

/// Returns the length of the character reference that begins here, and the character that it adds to a link.
/// Browsers accept any number of leading zeros, and a number without a semicolon.
fn reference(text: &str) -> Option<(usize, Option<char>)> {
    if let Some((written, shown)) = REFERENCES.iter().find(|(written, _)| text.starts_with(written)) {
        return Some((written.len(), shown.chars().next()));
    }
    let number = text.strip_prefix("&#")?;
    let (radix, digits) = number.strip_prefix('x').map_or((10, number), |digits| (16, digits));
    let count = digits.bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    let written = digits.get(..count).filter(|_| count > 0)?;
    let code = u32::from_str_radix(written.trim_start_matches('0'), radix).unwrap_or(0);
    let semicolon = usize::from(digits.get(count..).is_some_and(|rest| rest.starts_with(';')));
    let shown = char::from_u32(code).filter(|shown| !shown.is_control()).map(|shown| shown.to_ascii_lowercase());
    Some((text.len() - digits.len() + count + semicolon, shown))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::content::normalise::Views;

    fn codes(text: &str) -> BTreeSet<&'static str> {
        let mut codes = BTreeSet::new();
        Views::of(text).all().for_each(|view| {
            find(view.text(), |code, _| {
                codes.insert(code);
            })
        });
        codes
    }

    #[test]
    fn what_runs_loads_or_submits_is_found() {
        for text in [
            "See javascript:alert(1)",
            "[here](javascript:alert(1))",
            "[here](JaVaScRiPt:alert(1))",
            "[here](java\tscript:alert(1))",
            "[here](java\nscript:alert(1))",
            "[here](java&Tab;script:alert(1))",
            "[here](java&#x0A;script&colon;alert(1))",
            "[here](&#106;avascript:alert(1))",
            "[here](&#0000106avascript:alert(1))",
            "[here](java&#x0009script&#58;alert(1))",
            "[here](ｊavascript:alert(1))",
            "[here](java\u{200b}script:alert(1))",
            "[here](vbscript:x)",
            "<data:text/html;base64,PHNjcmlwdD4=>",
            "see http://lumen.example/returns",
            "see ftp://lumen.example",
            "[1]: skype:lumen?call",
            "<a href='sms:+4930'>",
            "<a href = whatsapp:x>",
        ] {
            assert!(codes(text).contains("scheme"), "{text}: {:?}", codes(text));
        }
        for text in [
            "<script>x</script>",
            "<SCRIPT src=//x>",
            "<iframe src=x>",
            "<form action=x>",
            "<svg/onload=x>",
            "</form >",
            "<meta http-equiv=refresh>",
        ] {
            assert!(codes(text).contains("element"), "{text}: {:?}", codes(text));
        }
        for text in
            ["<img src=x onerror=alert(1)>", "<a\nonmouseover='x'>", "<b/onclick =x>", "<p title=\"a\"onfocus=x>"]
        {
            assert!(codes(text).contains("event_handler"), "{text}: {:?}", codes(text));
        }
    }

    #[test]
    fn a_plain_reply_has_none() {
        for text in [
            "See https://lumen.example/returns or write to mailto:help@lumen.example, tel:+49301234567.",
            "[Returns](https://lumen.example) and <b>bold</b>, <p>text</p>, <br>.",
            "Note: this costs 5 EUR. Your order: ORD-7731, at 10:30. Ratio 3:4. C: is a drive.",
            "Please choose one (once = enough); 5 < 6 and on=off is no element.",
            "The data: all of it. The file:  see below. About: us.",
        ] {
            assert_eq!(codes(text), BTreeSet::new(), "{text}");
        }
    }

    #[test]
    fn places_point_back_at_the_text() {
        let text = "a [x](java\tscript:y)";
        let mut spans = vec![];
        find(text, |_, (start, end)| spans.push(&text[start..end]));
        assert_eq!(spans, ["java\tscript", "java\tscript"]);
    }
}
