//! Parts of texts and slices.

use std::slice::SliceIndex;

/// A text or a slice that gives out its parts.
pub trait Part {
    /// Returns the part at this range, or an empty one if the range is reversed, exceeds the whole, or cuts a
    /// character. Ranges come from searches in the same text, so an empty result means that nothing is there.
    /// Unlike indexing, it never panics.
    fn part<R: SliceIndex<Self, Output = Self>>(&self, range: R) -> &Self;
}

impl Part for str {
    fn part<R: SliceIndex<Self, Output = Self>>(&self, range: R) -> &Self {
        self.get(range).unwrap_or("")
    }
}

impl<T> Part for [T] {
    fn part<R: SliceIndex<Self, Output = Self>>(&self, range: R) -> &Self {
        self.get(range).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_not_there_is_empty() {
        let text = "größe";
        assert_eq!((text.part(..2), text.part(2..4), text.part(4..), text.part(0..=1)), ("gr", "ö", "ße", "gr"));
        let (from, to) = (4, 2);
        assert_eq!((text.part(..3), text.part(8..), text.part(from..to)), ("", "", ""));
        assert_eq!(([1, 2, 3].part(1..), [1, 2, 3].part(2..9)), ([2, 3].as_slice(), [].as_slice()));
    }
}
