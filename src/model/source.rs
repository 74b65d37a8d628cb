//! Text files of the bundle, with a table of their lines.

use std::ops::Deref;
use std::sync::Arc;

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use crate::model::part::Part;

/// A text file of the bundle. Clones share the text and its table of lines.
#[derive(Clone, Debug)]
pub struct Source(Arc<File>);

/// Name and text of a [`Source`].
#[derive(Debug)]
pub struct File {
    /// Path relative to the bundle's folder.
    pub file: String,
    pub text: String,
    /// Offset of each line's first byte.
    lines: Vec<usize>,
}

impl Deref for Source {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Source {
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        let (file, text) = (file.into(), text.into());
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self(Arc::new(File { file, text, lines }))
    }
}

impl File {
    /// Returns the index of the line that contains an offset. An offset past the end is in the last line.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).saturating_sub(1)
    }

    /// Returns the offset of a line's first byte, or of the text's end if there are fewer lines.
    fn start(&self, line: usize) -> usize {
        self.lines.get(line).copied().unwrap_or(self.text.len())
    }

    /// Returns the length in bytes of the line that contains an offset, with its line break.
    pub fn line_length(&self, at: usize) -> usize {
        let line = self.line(at);
        self.start(line + 1) - self.start(line)
    }

    /// Returns line and column of an offset, both counted from 1; the column is in bytes.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let line = self.line(at);
        (line + 1, at.saturating_sub(self.start(line)) + 1)
    }

    /// Returns the place of the first occurrence of a name as a whole word outside comments, or otherwise of its first
    /// occurrence at all.
    pub fn find(&self, name: &str) -> Option<(usize, usize)> {
        let is_part = |sign: Option<char>| sign.is_some_and(|sign| sign.is_alphanumeric() || "_.-".contains(sign));
        let is_word = |at: usize| {
            let (before, after) = (self.text.part(..at), self.text.part(at + name.len()..));
            let start = self.start(self.line(at));
            let line = self.text.part(start..at).trim_start();
            let is_comment = line.starts_with('#') || line.contains(" #") || line.contains("//");
            !is_comment && !is_part(before.chars().next_back()) && !is_part(after.chars().next())
        };
        let mut found = self.text.match_indices(name).map(|(at, _)| at);
        let at = found.by_ref().find(|at| is_word(*at)).or_else(|| self.text.find(name))?;
        Some((at, name.len()))
    }

    /// Returns the offset of a line and column, both counted from 1.
    pub fn offset(&self, line: usize, column: usize) -> usize {
        (self.start(line.saturating_sub(1)) + column.saturating_sub(1)).min(self.text.len())
    }
}

impl SourceCode for Source {
    /// Reads only the lines around a span, so that drawing a fault does not read the whole text.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        // One more line on each side, because an empty span at the start of a line begins on the line before.
        let first = self.line(span.offset()).saturating_sub(before + 1);
        let last = self.line(span.offset() + span.len()) + after + 1;
        let (from, to) = (self.start(first), self.start(last + 1));
        let window = self.text.get(from..to).ok_or(MietteError::OutOfBounds)?;
        let moved = SourceSpan::from((span.offset() - from, span.len()));
        let read = window.read_span(&moved, before, after)?;
        let at = SourceSpan::from((read.span().offset() + from, read.span().len()));
        let contents = MietteSpanContents::new_named(
            self.file.clone(),
            read.data(),
            at,
            read.line() + first,
            read.column(),
            read.line_count(),
        );
        Ok(Box::new(contents))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The table of lines gives what reading the whole text gives.
        #[test]
        fn a_span_is_read_as_from_the_whole_text(text in "[ab\n]{0,40}", at in 0_usize..41, len in 0_usize..9) {
            let at = at.min(text.len());
            let span = SourceSpan::from((at, len.min(text.len() - at)));
            let source = Source::new("a", text.clone());
            for lines in [0, 1, 2] {
                let (own, whole) = (source.read_span(&span, lines, lines), text.read_span(&span, lines, lines));
                let (own, whole) = (own.expect("inside"), whole.expect("inside"));
                prop_assert_eq!(own.data(), whole.data());
                prop_assert_eq!((own.line(), own.column(), own.span()), (whole.line(), whole.column(), whole.span()));
            }
            prop_assert_eq!(source.offset(source.position(at).0, source.position(at).1), at);
        }
    }
}
