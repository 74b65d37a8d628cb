//! Faults in files of the bundle, with their places.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, SourceSpan};

use crate::model::part::Part;
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
        let at = self.at.offset();
        let (line, column) = self.text.position(at);
        let start = at + 1 - column;
        let edge = |at: usize| (0..=at).rev().find(|at| self.text.text.is_char_boundary(*at)).unwrap_or(0);
        let (from, to) = (edge(at.saturating_sub(LINE_MAX / 3).max(start)), edge(at + LINE_MAX * 2 / 3));
        let shown = self.text.text.part(from..to.min(self.text.text.len())).lines().next().unwrap_or("");
        let before = self.text.text.part(from..at).chars().count();
        let ellipsis = if from > start { "…" } else { "" };
        let gap = " ".repeat(line.to_string().len());
        let under = " ".repeat(before + ellipsis.chars().count());
        let mut text = format!(
            "  × {}\n {gap} ╭─[{}]\n {line} │ {ellipsis}{shown}…\n {gap} · {under}┬\n {gap} · {under}╰── here\n {gap} ╰────\n",
            self.message,
            self.place()
        );
        if let Some(help) = &self.help {
            text.push_str(&format!("  help: {help}\n"));
        }
        text
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
        let fault = Fault::new(&Source::new("a.json", text), (at, 5), "is wrong").help("write it right");
        let drawing = fault.drawing();
        assert!(drawing.contains("╭─[a.json:2:100002]") && drawing.contains("help: write it right"), "{drawing}");
        let lines: Vec<&str> = drawing.lines().collect();
        let column = |line: &str, sign: &str| line.split(sign).next().map(|before| before.chars().count());
        assert_eq!(column(lines[2], "wrong"), column(lines[3], "┬"), "{drawing}");
        assert!(lines.iter().all(|line| line.len() < 2 * LINE_MAX), "{drawing}");
    }
}
