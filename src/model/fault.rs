//! Faults in files of the bundle, with their places.

pub mod code;

use std::fmt::Display;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode, SourceSpan};

use crate::model::fault::code::Code;
use crate::model::part::Part;
use crate::model::source::Source;

/// Fault in a form that [`miette`] can draw.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub code: Code,
    pub message: String,
    text: Source,
    at: SourceSpan,
    help: Option<String>,
}

impl Diagnostic for Fault {
    fn code<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.code.name()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.help.as_ref()?))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some("here".to_owned()), self.at))))
    }
}

/// A fault for programs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FaultReport {
    /// File below the bundle's folder.
    pub file: String,
    /// Line and column, counted from 1; the column is in bytes.
    pub line: usize,
    pub column: usize,
    /// Name of a [`Code`].
    pub code: &'static str,
    pub message: String,
    /// Advice to the author; empty if there is none.
    pub help: String,
    /// The line, or its part around the column if it is long.
    pub source: String,
}

impl Fault {
    /// Creates a fault at a byte range of a file of the bundle.
    pub fn new(code: Code, source: &Source, at: impl Into<SourceSpan>, message: impl Into<String>) -> Self {
        let at: SourceSpan = at.into();
        // A span past the end can't be drawn, so move it to the end of the file.
        let start = at.offset().min(source.text.len());
        let at = SourceSpan::from((start, at.len().min(source.text.len() - start)));
        Self { code, message: message.into(), text: source.clone(), at, help: None }
    }

    /// Creates a fault of a whole file.
    pub fn whole(code: Code, source: &Source, message: impl Into<String>) -> Self {
        Self::new(code, source, (0, 0), message)
    }

    /// Creates a fault of a file that is missing or unreadable, or of a folder.
    pub fn missing(code: Code, file: &str, message: impl Into<String>) -> Self {
        Self::new(code, &Source::new(file, ""), (0, 0), message)
    }

    /// Adds advice on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns the same fault at a place of another file, from which this one was made.
    #[must_use]
    pub fn moved(self, source: &Source, at: impl Into<SourceSpan>) -> Self {
        Self { help: self.help, ..Self::new(self.code, source, at, self.message) }
    }

    /// Returns the file, below the bundle's folder.
    pub fn file(&self) -> &str {
        &self.text.file
    }

    /// Returns the fault for programs.
    pub fn report(&self) -> FaultReport {
        let (line, column) = self.text.position(self.at.offset());
        FaultReport {
            file: self.text.file.clone(),
            line,
            column,
            code: self.code.name(),
            message: self.message.clone(),
            help: self.help.clone().unwrap_or_default(),
            source: self.excerpt().0,
        }
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

    /// Draws the place, the message and the source line for a terminal without colours. Of a long line only the
    /// part around the place is shown.
    pub fn drawing(&self) -> String {
        if self.text.line_length(self.at.offset()) > LINE_MAX {
            return self.drawing_of_part();
        }
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(120);
        let mut text = String::new();
        match handler.render_report(&mut text, self) {
            Ok(()) => text,
            Err(_) => self.line(),
        }
    }

    fn drawing_of_part(&self) -> String {
        let (excerpt, before) = self.excerpt();
        let line = self.text.position(self.at.offset()).0;
        let (gap, under) = (" ".repeat(line.to_string().len()), " ".repeat(before));
        let mut text = format!(
            "{}\n\n  × {}\n {gap} ╭─[{}]\n {line} │ {excerpt}\n {gap} · {under}┬\n {gap} · {under}╰── here\n {gap} ╰────\n",
            self.code.name(),
            self.message,
            self.place()
        );
        if let Some(help) = &self.help {
            text.push_str(&format!("  help: {help}\n"));
        }
        text
    }

    /// Returns the line of the place, or the part around it if it is long, and the number of characters before the
    /// place.
    fn excerpt(&self) -> (String, usize) {
        let at = self.at.offset();
        let start = at + 1 - self.text.position(at).1;
        let edge = |at: usize| (0..=at).rev().find(|at| self.text.text.is_char_boundary(*at)).unwrap_or(0);
        let is_long = self.text.line_length(at) > LINE_MAX;
        let from = if is_long { edge(at.saturating_sub(LINE_MAX / 3).max(start)) } else { start };
        let end = self.text.text.len();
        let to = if is_long { edge((at + LINE_MAX * 2 / 3).min(end)) } else { end };
        let shown = self.text.text.part(from..to).lines().next().unwrap_or("");
        let ellipsis = if from > start { "…" } else { "" };
        let before = self.text.text.part(from..at).chars().count() + ellipsis.chars().count();
        (format!("{ellipsis}{shown}{}", if is_long { "…" } else { "" }), before)
    }
}

/// Maximum length in bytes of a line that is drawn as a whole. The library that draws lines fails at columns beyond
/// 65,535, and a terminal shows far less.
const LINE_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_line_the_part_around_the_place_is_drawn() {
        let text = format!("first\n{}{}wrong{}\n", "ä".repeat(50_000), "a", "ü".repeat(300));
        let at = text.find("wrong").expect("there");
        let fault =
            Fault::new(Code::EntityInvalid, &Source::new("a.json", text), (at, 5), "is wrong").help("write it right");
        let drawing = fault.drawing();
        assert!(drawing.contains("╭─[a.json:2:100002]") && drawing.contains("help: write it right"), "{drawing}");
        let lines: Vec<&str> = drawing.lines().collect();
        let column = |line: &str, sign: &str| line.split(sign).next().map(|before| before.chars().count());
        assert_eq!(column(lines[4], "wrong"), column(lines[5], "┬"), "{drawing}");
        assert!(lines.iter().all(|line| line.len() < 2 * LINE_MAX), "{drawing}");
    }
}
