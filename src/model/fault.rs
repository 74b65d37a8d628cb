//! Faults in files of the bundle, with their places.

use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceCode, SourceSpan};

/// Fault in a form that [`miette`] can draw.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Fault {
    pub message: String,
    #[source_code]
    source_code: Arc<NamedSource<String>>,
    #[label("here")]
    at: SourceSpan,
    #[help]
    help: Option<String>,
}

impl Fault {
    /// Creates a fault at a byte range of a file of the bundle.
    pub fn new(file: &str, text: &str, at: impl Into<SourceSpan>, message: impl Into<String>) -> Self {
        let source_code = Arc::new(NamedSource::new(file, text.to_owned()));
        let at: SourceSpan = at.into();
        // A span past the end can't be drawn, so move it to the end of the file.
        let start = at.offset().min(text.len());
        let at = SourceSpan::from((start, at.len().min(text.len() - start)));
        Self { message: message.into(), source_code, at, help: None }
    }

    /// Creates a fault of a whole file or a missing one.
    pub fn whole(file: &str, text: &str, message: impl Into<String>) -> Self {
        Self::new(file, text, (0, 0), message)
    }

    /// Adds advice on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns `file:line:column`, counted from 1.
    pub fn place(&self) -> String {
        let (line, column) = match self.source_code.read_span(&self.at, 0, 0) {
            Ok(span) => (span.line() + 1, span.column() + 1),
            Err(_) => (1, 1),
        };
        format!("{}:{line}:{column}", self.source_code.name())
    }

    /// Returns place and message in one line.
    pub fn line(&self) -> String {
        format!("{}: {}", self.place(), self.message)
    }

    /// Draws the place, the message and the source line for a terminal without colours.
    pub fn drawing(&self) -> String {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(120);
        let mut text = String::new();
        match handler.render_report(&mut text, self) {
            Ok(()) => text,
            Err(_) => self.line(),
        }
    }
}
