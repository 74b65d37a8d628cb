//! Keeps the comments of the source in plain English, as far as a program can: CONTRIBUTING.md has the rules.

use std::path::Path;

use regex::Regex;

/// Highest share of sentences with a mark of the dialect, and of sentences of one or two words, in thousandths.
const MARKED_MAX: usize = 14;
const SHORT_MAX: usize = 20;

/// Openings and words that a reader who is new to the code stops at, each with what to write instead.
const MARKS: &[(&str, &str)] = &[
    (r"^(what|who|whose|whom|of|how|by what|by whom)\b", "open with a verb or a noun"),
    (r"\b(stands?|stood)\b", "is listed, contains, holds"),
    (r"\balone\b", "only"),
    (r"\banew\b", "again"),
    (r"\b(is|are|was|were|be|knows|has|have) none\b", "is not a"),
    (r"\b(kept|keeps?|held|holds?) back\b", "withheld"),
    (r"\bnobody\b", "no caller, no one"),
    (r"\bso (many|much|long)\b", "a number, an amount"),
    (r"\b(came|comes?) of\b", "resulted from"),
    (r"\b(known|knows?) again\b|\bused up\b", "looked up, consumed"),
    (r"\ball the same\b|\bthat is all\b", "even so"),
];

/// A run of comment lines, with the line that it starts at.
struct Comment {
    line: usize,
    text: String,
}

/// Returns the comments of Rust source, without their code examples, lists' marks, headings and tables.
fn comments(source: &str) -> Vec<Comment> {
    let mut all: Vec<Comment> = vec![];
    let (mut open, mut is_code) = (false, false);
    for (index, line) in source.lines().enumerate() {
        let line = line.trim_start();
        let Some(text) = ["///", "//!", "//"].into_iter().find_map(|mark| line.strip_prefix(mark)) else {
            (open, is_code) = (false, false);
            continue;
        };
        let mut text = text.trim();
        if text.starts_with("```") {
            is_code = !is_code;
            text = "";
        }
        if is_code || text.is_empty() || text.starts_with(['#', '|']) {
            open = false;
            continue;
        }
        let item = text
            .strip_prefix("- ")
            .or_else(|| text.split_once(". ").filter(|(number, _)| number.parse::<u8>().is_ok()).map(|(_, rest)| rest));
        match all.last_mut().filter(|_| open && item.is_none()) {
            Some(comment) => {
                comment.text.push(' ');
                comment.text.push_str(text);
            }
            None => all.push(Comment { line: index + 1, text: item.unwrap_or(text).to_owned() }),
        }
        open = true;
    }
    all
}

/// Splits a comment into its sentences. Code between backticks is one word.
fn sentences(text: &str) -> Vec<String> {
    let code = Regex::new("`[^`]*`").unwrap();
    let link = Regex::new(r"\[([^\]]*)\](\([^)]*\))?").unwrap();
    let end = Regex::new(r#"([.!?])\s+([A-Z"(])"#).unwrap();
    let plain = code.replace_all(text, "X").into_owned();
    let plain = link.replace_all(&plain, "$1").into_owned();
    end.replace_all(&plain, "$1\n$2")
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

#[test]
fn comments_are_plain_english() {
    let marks: Vec<(Regex, &str)> =
        MARKS.iter().map(|(mark, instead)| (Regex::new(&format!("(?i){mark}")).unwrap(), *instead)).collect();
    let words = Regex::new(r"[A-Za-z0-9'’_-]+").unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = vec![];
    files(&root.join("src"), &mut all);
    let (mut count, mut marked, mut short) = (0, vec![], vec![]);
    for path in all {
        let source = std::fs::read_to_string(&path).unwrap();
        for comment in comments(&source) {
            for sentence in sentences(&comment.text) {
                count += 1;
                let place = format!("{}:{}: {sentence}", path.strip_prefix(root).unwrap().display(), comment.line);
                if let Some((_, instead)) = marks.iter().find(|(mark, _)| mark.is_match(&sentence)) {
                    marked.push(format!("{place} (rather: {instead})"));
                }
                if words.find_iter(&sentence).count() <= 2 {
                    short.push(place);
                }
            }
        }
    }
    assert!(count > 3000, "{count} sentences were read");
    assert!(marked.len() * 1000 <= count * MARKED_MAX, "{} of {count} sentences:\n{}", marked.len(), marked.join("\n"));
    assert!(
        short.len() * 1000 <= count * SHORT_MAX,
        "{} of {count} sentences of one or two words:\n{}",
        short.len(),
        short.join("\n")
    );
}

#[test]
fn marks_are_found_and_code_is_left_out() {
    let source = "/// What stands in the log.\n///\n/// ```\n/// // nobody\n/// ```\n/// Whose `alone`.\nfn nobody() {}\n// It is none of ours.\n";
    let found: Vec<String> = comments(source).iter().flat_map(|comment| sentences(&comment.text)).collect();
    assert_eq!(found, ["What stands in the log.", "Whose X.", "It is none of ours."]);
    let marked =
        |sentence: &str| MARKS.iter().any(|(mark, _)| Regex::new(&format!("(?i){mark}")).unwrap().is_match(sentence));
    assert!(found.iter().all(|sentence| marked(sentence)));
    assert!(!marked("Returns the records that the log contains."));
}
