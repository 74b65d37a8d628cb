//! Values that the steps hand to each other; no I/O, no behaviour beyond their own invariants.

pub mod answer;
pub mod call;
pub mod chain;
pub mod fault;
pub mod refusal;
pub mod roles;
pub mod time;
pub mod verdict;
pub mod vouched;
