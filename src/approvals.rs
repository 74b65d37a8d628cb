//! Approvals: humans allow one call, once, within a limited time. A consent is an approval by the case's customer.
//!
//! `template.rs` has the bundle's rules for approvals, `consent.rs` the texts that customers are shown,
//! `binding.rs` the bound call and its tokens,
//! `release.rs` the token of a released draft, `view.rs` the text that a reviewer is shown, and `store.rs`
//! the state store. The modules of `pdp` define the order of the steps.

pub mod binding;
pub mod consent;
pub mod release;
pub mod store;
pub mod template;
pub mod view;
