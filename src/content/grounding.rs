//! What a draft states that no source holds.

/// Where atoms stand that no source holds: code and place.
pub(super) fn find(_draft: &str, _sources: &[&str]) -> Vec<(&'static str, (usize, usize))> {
    vec![]
}
