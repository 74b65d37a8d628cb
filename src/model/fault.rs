//! A fault in a file of the bundle, with the place where it stands.

use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceCode, SourceSpan};

/// One fault, in a form that [`miette`] can draw.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    #[source_code]
    source_code: Arc<NamedSource<String>>,
    #[label("here")]
    at: SourceSpan,
    #[help]
    help: Option<String>,
}

impl Fault {
    /// A fault at a byte range of a file of the bundle.
    pub fn new(file: &str, text: &str, at: impl Into<SourceSpan>, message: impl Into<String>) -> Self {
        let source_code = Arc::new(NamedSource::new(file, text.to_owned()));
        let at: SourceSpan = at.into();
        // A span past the end can't be drawn; the end of the file is the honest place.
        let start = at.offset().min(text.len());
        let at = SourceSpan::from((start, at.len().min(text.len() - start)));
        Self { message: message.into(), source_code, at, help: None }
    }

    /// A fault of a whole file, or of its absence.
    pub fn whole(file: &str, text: &str, message: impl Into<String>) -> Self {
        Self::new(file, text, (0, 0), message)
    }

    /// With a word on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// `file:line:column`, counted from 1.
    pub fn place(&self) -> String {
        let (line, column) = match self.source_code.read_span(&self.at, 0, 0) {
            Ok(span) => (span.line() + 1, span.column() + 1),
            Err(_) => (1, 1),
        };
        format!("{}:{line}:{column}", self.source_code.name())
    }

    /// One line: place and message.
    pub fn line(&self) -> String {
        format!("{}: {}", self.place(), self.message)
    }

    /// The place, the message and the source line, drawn for a terminal without colours.
    pub fn drawing(&self) -> String {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(120);
        let mut text = String::new();
        match handler.render_report(&mut text, self) {
            Ok(()) => text,
            Err(_) => self.line(),
        }
    }
}
