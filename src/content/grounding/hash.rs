//! Hashes of words that can be concatenated: the hash of two words in a row is computed from the hashes of
//! both, without reading their letters again.
//!
//! The hash is a polynomial modulo 2^64 with a random base, mixed with a second random number, so that
//! whoever writes the words can't choose which of them collide in a table. (Exception: under every odd base
//! some texts of 1,024 bytes and more collide.) Equal hashes are treated as equal words.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};
use std::sync::LazyLock;

/// The base and the mixer, both odd.
static SECRETS: LazyLock<(u64, u64)> = LazyLock::new(|| {
    let random = RandomState::new();
    (random.hash_one("base") | 1, random.hash_one("mixer") | 1)
});

/// The hash of a text, and the base to the power of its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash {
    value: u64,
    power: u64,
}

impl Hash {
    pub(super) fn of(text: &str) -> Self {
        let (base, _) = *SECRETS;
        let step = |hash: Self, byte: u8| Self {
            // The 1 is added because leading zero bytes would not change the hash.
            value: hash.value.wrapping_mul(base).wrapping_add(u64::from(byte) + 1),
            power: hash.power.wrapping_mul(base),
        };
        text.bytes().fold(Self { value: 0, power: 1 }, step)
    }

    /// Returns the hash of this text followed by another.
    pub(super) fn then(self, next: Self) -> Self {
        Self {
            value: self.value.wrapping_mul(next.power).wrapping_add(next.value),
            power: self.power.wrapping_mul(next.power),
        }
    }

    /// Returns the value that sets store.
    pub(super) fn finish(self) -> u64 {
        let (_, mixer) = *SECRETS;
        let mixed = (self.value ^ (self.value >> 32)).wrapping_mul(mixer);
        mixed ^ (mixed >> 29)
    }
}

pub(super) type Hashes = HashSet<u64, BuildHasherDefault<Finished>>;

/// A hasher that passes a finished hash through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Finished(u64);

impl Hasher for Finished {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, finished: u64) {
        self.0 = finished;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_words_in_a_row_is_that_of_them_together() {
        for (one, other) in [("ab", "c"), ("", "abc"), ("a", "bc"), ("abc", "")] {
            assert_eq!(Hash::of(one).then(Hash::of(other)), Hash::of("abc"));
        }
        assert_ne!(Hash::of("ab").finish(), Hash::of("ba").finish());
        assert_ne!(Hash::of("\0").finish(), Hash::of("").finish());
    }
}
