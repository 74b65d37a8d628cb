//! Approvals: a human says yes to one call, for a short time, once.
//!
//! `template.rs` has what the bundle says of them, `binding.rs` the call that is bound and the tokens that carry it, `view.rs` what
//! a reviewer is shown, `store.rs` the one place that remembers. The order of the steps is the pipelines'.

pub mod binding;
pub mod release;
pub mod store;
pub mod template;
pub mod view;
