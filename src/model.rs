//! Values that the steps hand to each other; no I/O, no behaviour beyond their own invariants.

pub mod answer;
pub mod approval;
pub mod call;
pub mod chain;
pub mod content;
pub mod fault;
pub mod finding;
pub mod halt;
pub mod head;
pub mod refusal;
pub mod right;
pub mod roles;
pub mod signals;
pub mod text;
pub mod time;
pub mod verdict;
pub mod vouched;
