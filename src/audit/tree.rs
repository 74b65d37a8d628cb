//! Merkle tree over the lines of the log (RFC 6962, section 2.1, with SHA-256): its leaves are the lines without their newlines.
//! With the root of the tree, a proof of some hundred bytes shows that a line is in the log, or that an older log is the beginning
//! of a newer one.

use sha2::{Digest, Sha256};

use crate::model::number::{to_u64, to_usize};

pub type Hash = [u8; 32];

/// Returns the hash of a leaf: SHA-256 of a zero byte and the line.
pub fn leaf(line: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(line).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The complete subtrees that make up a tree, the largest first: all that appending a leaf needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    hashes: Vec<Hash>,
}

impl Edge {
    /// Returns the edge of a tree of this size; `None` if a tree of this size has another number of subtrees.
    pub fn new(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (to_u64(hashes.len()) == u64::from(size.count_ones())).then_some(Self { size, hashes })
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Subtrees of equal size merge: one for each trailing 1 of the size in binary.
        for _ in 0..self.size.trailing_ones() {
            hash = self.hashes.pop().map_or(hash, |left| node(&left, &hash));
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// Returns the root; of an empty tree it is the SHA-256 of nothing.
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return Sha256::digest([]).into() };
        hashes.fold(*last, |right, left| node(left, &right))
    }

    /// Returns the part of the edge whose leaves lie from a place on, if a subtree begins there.
    fn since(&self, from: u64) -> Option<Self> {
        let mut start = 0;
        let mut kept = Self { size: self.size.checked_sub(from)?, hashes: vec![] };
        let sizes = (0..u64::BITS).rev().map(|bit| 1_u64 << bit).filter(|size| self.size & size != 0);
        for (size, hash) in sizes.zip(&self.hashes) {
            if start >= from {
                kept.hashes.push(*hash);
            } else if start + size > from {
                return None;
            }
            start += size;
        }
        Some(kept)
    }
}

/// The leaves of a tree, of which the first may be known only as subtrees.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    /// The leaves before the first one that is known.
    pub before: Edge,
    pub hashes: Vec<Hash>,
}

impl Leaves {
    pub fn size(&self) -> u64 {
        self.before.size + to_u64(self.hashes.len())
    }

    /// Returns the root of the leaves from one place to another; `None` if they are not known.
    pub fn root(&self, from: u64, to: u64) -> Option<Hash> {
        let known = self.before.size;
        let mut edge = if from < known { self.before.since(from)? } else { Edge::default() };
        let first = to_usize(from.saturating_sub(known));
        let last = to_usize(to.checked_sub(known)?);
        self.hashes.get(first..last)?.iter().for_each(|leaf| edge.push(*leaf));
        Some(edge.root())
    }

    /// Returns the proof that a leaf is in the tree of the first `size` leaves: the siblings on the way to the root, the nearest
    /// first.
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        let (mut from, mut to) = (0, size);
        let mut proof = vec![];
        if index >= size {
            return None;
        }
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                proof.push(self.subtree(middle, to)?);
                to = middle;
            } else {
                proof.push(self.subtree(from, middle)?);
                from = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// Returns the proof that the tree of the first `old` leaves is the beginning of the tree of the first `new` ones.
    pub fn consistency(&self, old: u64, new: u64) -> Option<Vec<Hash>> {
        if old == 0 || old >= new {
            return (old <= new).then(Vec::new);
        }
        let (mut from, mut to) = (0, new);
        let mut proof = vec![];
        // The verifier knows the root of the old tree, so a subtree that is all of it is left out.
        let mut is_whole = true;
        while old != to {
            let middle = from + split(to - from);
            if old <= middle {
                proof.push(self.subtree(middle, to)?);
                to = middle;
            } else {
                proof.push(self.subtree(from, middle)?);
                (from, is_whole) = (middle, false);
            }
        }
        if !is_whole {
            proof.push(self.subtree(from, to)?);
        }
        proof.reverse();
        Some(proof)
    }

    /// Returns the root of a subtree, which may be one of those that are known without their leaves.
    fn subtree(&self, from: u64, to: u64) -> Option<Hash> {
        if to > self.before.size {
            return self.root(from, to);
        }
        let mut start = 0;
        let sizes = (0..u64::BITS).rev().map(|bit| 1_u64 << bit).filter(|size| self.before.size & size != 0);
        for (size, hash) in sizes.zip(&self.before.hashes) {
            if (start, start + size) == (from, to) {
                return Some(*hash);
            }
            start += size;
        }
        None
    }
}

/// Returns the number of leaves in the left subtree: the largest power of two below the size.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// Returns the root that an inclusion proof leads to, from a leaf at an index of a tree of some size (RFC 9162, section 2.1.3.2);
/// `None` if the proof has the wrong length.
pub fn root_by_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    let (mut at, mut last) = (index, size.checked_sub(1).filter(|last| index <= *last)?);
    let mut hash = leaf;
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// Returns whether a consistency proof shows that one tree is the beginning of another (RFC 9162, section 2.1.4.2).
pub fn is_consistent((old, old_root): (u64, Hash), (new, new_root): (u64, Hash), proof: &[Hash]) -> bool {
    if old == 0 || old >= new {
        return proof.is_empty() && (old == 0 || (old, old_root) == (new, new_root));
    }
    let mut rest = proof.iter();
    let first = if old.is_power_of_two() { Some(&old_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let shift = (old - 1).trailing_ones();
    let (mut at, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut one, mut other) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (one, other) = (node(sibling, &one), node(sibling, &other));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            other = node(&other, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && (one, other) == (old_root, new_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u64) -> Leaves {
        Leaves { before: Edge::default(), hashes: (0..count).map(|at| leaf(&at.to_be_bytes())).collect() }
    }

    #[test]
    fn roots_are_those_of_the_standard() {
        let hex = |hash: Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(Edge::default().root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(leaf(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        let two = Leaves { before: Edge::default(), hashes: vec![leaf(b""), leaf(&[0])] };
        let root = two.root(0, 2).map(hex);
        assert_eq!(root.as_deref(), Some("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"));
    }

    #[test]
    fn every_proof_of_small_trees_holds_and_none_holds_for_another_leaf_or_tree() {
        const SIZE: u64 = 40;
        let all = leaves(SIZE);
        for size in 1..=SIZE {
            let root = all.root(0, size).expect("a root");
            for index in 0..size {
                let proof = all.inclusion(index, size).expect("a proof");
                let hash = leaf(&index.to_be_bytes());
                assert_eq!(root_by_inclusion(hash, index, size, &proof), Some(root), "{index} of {size}");
                let other = leaf(&(index + 1).to_be_bytes());
                assert_ne!(root_by_inclusion(other, index, size, &proof), Some(root));
                let longer: Vec<Hash> = proof.iter().copied().chain([hash]).collect();
                assert_ne!(root_by_inclusion(hash, index, size, &longer), Some(root));
            }
            for old in 0..=size {
                let proof = all.consistency(old, size).expect("a proof");
                let old_root = all.root(0, old).expect("a root");
                assert!(is_consistent((old, old_root), (size, root), &proof), "{old} to {size}");
                if old > 0 {
                    let forged = leaf(b"forged");
                    assert!(!is_consistent((old, forged), (size, root), &proof), "{old} to {size}");
                    assert!(!is_consistent((old, old_root), (size, forged), &proof), "{old} to {size}");
                }
            }
        }
    }

    #[test]
    fn leaves_that_are_known_as_subtrees_prove_the_rest() {
        const SIZE: u64 = 45;
        let all = leaves(SIZE);
        for first in 0..SIZE {
            let mut before = Edge::default();
            all.hashes.iter().take(to_usize(first)).for_each(|leaf| before.push(*leaf));
            assert_eq!(Edge::new(first, before.hashes().to_vec()), Some(before.clone()));
            let rest = Leaves { before, hashes: all.hashes.iter().skip(to_usize(first)).copied().collect() };
            assert_eq!((rest.size(), rest.root(0, SIZE)), (SIZE, all.root(0, SIZE)));
            for index in first..SIZE {
                assert_eq!(rest.inclusion(index, SIZE), all.inclusion(index, SIZE), "{index} after {first}");
            }
            for old in first.max(1)..SIZE {
                assert_eq!(rest.consistency(old, SIZE), all.consistency(old, SIZE), "{old} after {first}");
            }
        }
    }
}
