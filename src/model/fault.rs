//! Faults in files of the bundle, with their places.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, SourceSpan};

use crate::model::source::Source;

/// Fault in a form that [`miette`] can draw.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Fault {
    pub message: String,
    #[source_code]
    text: Source,
    #[label("here")]
    at: SourceSpan,
    #[help]
    help: Option<String>,
}

impl Fault {
    /// Creates a fault at a byte range of a file of the bundle.
    pub fn new(source: &Source, at: impl Into<SourceSpan>, message: impl Into<String>) -> Self {
        let at: SourceSpan = at.into();
        // A span past the end can't be drawn, so move it to the end of the file.
        let start = at.offset().min(source.text.len());
        let at = SourceSpan::from((start, at.len().min(source.text.len() - start)));
        Self { message: message.into(), text: source.clone(), at, help: None }
    }

    /// Creates a fault of a whole file.
    pub fn whole(source: &Source, message: impl Into<String>) -> Self {
        Self::new(source, (0, 0), message)
    }

    /// Creates a fault of a file that is missing or unreadable, or of a folder.
    pub fn missing(file: &str, message: impl Into<String>) -> Self {
        Self::new(&Source::new(file, ""), (0, 0), message)
    }

    /// Adds advice on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns `file:line:column`, counted from 1.
    pub fn place(&self) -> String {
        let (line, column) = self.text.position(self.at.offset());
        format!("{}:{line}:{column}", self.text.file)
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
