//! What untrusted text tries: kinds and places, never the text.

/// Something that a detector found. It is no verdict: policies judge it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its kind: a member of the schema's type of findings.
    pub kind: String,
    /// The rule that found it.
    pub code: String,
    /// Which text it is in.
    pub source: String,
    /// Where in the text it begins and ends, in bytes.
    pub span: (usize, usize),
}

/// What came of screening the untrusted texts of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Screened {
    /// Whether there was text that could be screened.
    pub screened: bool,
    /// Whether there was text that could not.
    pub unscreened: bool,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Screened {
    /// The kinds that were found, sorted, each once.
    pub fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<String> = self.findings.iter().map(|finding| finding.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }
}
