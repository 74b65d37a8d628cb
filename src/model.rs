//! Values that the pipeline steps pass to each other. They do no I/O and enforce only their own invariants.

pub mod answer;
pub mod approval;
pub mod call;
pub mod chain;
pub mod content;
pub mod derivation;
pub mod fault;
pub mod finding;
pub mod halt;
pub mod head;
pub mod number;
pub mod part;
pub mod refusal;
pub mod right;
pub mod roles;
pub mod signals;
pub mod source;
pub mod text;
pub mod time;
pub mod trusted_context;
pub mod verdict;
