//! Marks of the places of a text that are already explained.

use crate::model::finding::Span;

/// A set of bytes of a text.
#[derive(Debug)]
pub(in crate::content) struct Places(Vec<bool>);

impl Places {
    pub(in crate::content) fn of(text: &str) -> Self {
        Self(vec![false; text.len()])
    }

    pub(in crate::content) fn mark(&mut self, span: Span) {
        let (start, end) = span;
        if let Some(places) = self.0.get_mut(start..end) {
            places.fill(true);
        }
    }

    /// Returns whether any byte of the span is marked.
    pub(in crate::content) fn any(&self, span: Span) -> bool {
        let (start, end) = span;
        self.0.get(start..end).is_some_and(|places| places.contains(&true))
    }
}
