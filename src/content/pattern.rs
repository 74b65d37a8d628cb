//! A pattern of a rule, compiled when it is needed.

use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

/// Maximum size of a compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A pattern of a rule. Most rules match no text for hours, and a compiled pattern takes some 100 KB, so it is
/// compiled when its rule first needs it.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    compiled: OnceLock<Regex>,
}

impl Pattern {
    /// Checks that a pattern can be compiled and does not match the empty string.
    pub(super) fn new(name: &str, text: &str) -> Result<Self, String> {
        let compiled = compile(text).map_err(|error| {
            let text = error.to_string();
            format!("`{name}` can't be used: {}", text.lines().last().unwrap_or(&text).trim_start_matches("error: "))
        })?;
        match compiled.is_match(b"") {
            true => Err(format!("`{name}` matches the empty string")),
            false => Ok(Self { text: text.to_owned(), compiled: compiled.into() }),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    #[expect(clippy::expect_used, reason = "a rule without its pattern would find nothing")]
    pub(super) fn compiled(&self) -> &Regex {
        self.compiled.get_or_init(|| compile(&self.text).expect("the pattern was compiled when it was read"))
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.compiled().is_match(text.as_bytes())
    }

    /// Forgets the compiled pattern.
    pub(super) fn release(&mut self) {
        self.compiled.take();
    }
}

/// Compiles a pattern of this program. One that can't be compiled finds nothing, and fails every test that uses it.
pub(super) fn constant(text: &str) -> Option<regex::Regex> {
    let compiled = regex::Regex::new(text);
    debug_assert!(compiled.is_ok(), "a constant pattern can't be compiled: {compiled:?}");
    compiled.ok()
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).unicode(false).case_insensitive(true).size_limit(PATTERN_BYTES_MAX).build()
}
