//! Countersign is a policy decision point (PDP) for AI agents in customer support. This crate is the server,
//! its command line and its tools. `README.md` describes their use, and `docs/architecture.md` follows a
//! request through the modules.
//!
//! # API tour
//!
//! - [`api::client`] asks a running server: [`message`](api::client::message) converts a
//!   [`Call`](model::call::Call) to a request, and [`authorize`](api::client::authorize) sends it to a
//!   [`Target`](api::client::Target). [`api::v1`] has the types that are generated from the protocol.
//! - [`Bundle::load`](bundle::Bundle::load) loads a policy bundle from its folder. It returns all faults of an
//!   invalid bundle, each with file, line and column.
//! - [`Evaluator`](pdp::evaluation::Evaluator) evaluates a call in process: gates, Cedar and what-if
//!   evaluation. It does no I/O, so it verifies no token, reads no history and writes no record.
//! - [`workbench::tables::run`] runs the decision tables of a bundle, and
//!   [`workbench::request`] reads requests as people write them.
//! - [`audit::verify::verify`] verifies an audit log. It checks the MACs only if
//!   [`Expected`](audit::verify::Expected) has the deployment's key.
//! - [`app::build`] builds a whole server from its [`Config`](config::Config). Tests replace clock, disk and
//!   randomness by [`Seams`](app::Seams).
//!
//! # Example
//!
//! The reference bundle evaluates the request of `examples/authorize.yaml` in two workflow steps. An assistant
//! may check an order in one of them, but not in the other.
//!
//! ```
//! use std::path::Path;
//!
//! use countersign::bundle::{Bundle, Reading};
//! use countersign::clock::{Clock, SystemClock};
//! use countersign::delegation::asserted_chain;
//! use countersign::model::answer::Reason;
//! use countersign::model::chain::Asserted;
//! use countersign::pdp::evaluation::Evaluator;
//! use countersign::pdp::scoring::calm;
//! use countersign::workbench::request::WrittenRequest;
//!
//! let bundle = Bundle::load(Path::new("policies"), Reading::default())?;
//! let roles = bundle.roles.as_ref().ok_or("the bundle has no roles")?;
//! let defaults = bundle.manifest.development.as_ref().ok_or("the bundle has no defaults")?;
//! let request = std::fs::read_to_string("examples/authorize.yaml")?;
//! let call = serde_saphyr::from_str::<WrittenRequest>(&request)?.call();
//! // The case has no history: no approval, no checks, and the lowest risk.
//! let trusted = calm(&bundle.policies.shapes);
//! let evaluator = Evaluator { bundle: &bundle, roles, now: SystemClock.now() };
//!
//! for (step, denied) in [("enrichment", None), ("intake", Some(Reason::StepNotAllowed))] {
//!     let asserted = Asserted { step: step.to_owned(), ..Asserted::default() };
//!     let chain = asserted_chain(&defaults.tool_service, &asserted, defaults);
//!     let evaluation = evaluator.evaluate(&chain, &call, &trusted)?;
//!     assert_eq!(evaluation.outcome.denied, denied);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The modules are listed in the order of a request: command line and API, pipeline, what the pipeline uses.
pub mod app;
pub mod cli;
pub mod config;

pub mod admin;
pub mod api;
pub mod desk;
pub mod events;
pub mod workbench;

pub mod pdp;

pub mod approvals;
pub mod audit;
pub mod bundle;
pub mod caep;
pub mod caller;
pub mod content;
pub mod decision;
pub mod delegation;
pub mod entities;
pub mod obligations;
pub mod policy;
pub mod rates;
pub mod redact;
pub mod risk;
pub mod risk_store;
pub mod sealing;

pub mod clock;
pub mod connections;
pub mod entropy;
pub mod jose;
pub mod json;
pub mod model;
pub mod telemetry;
pub mod text_pool;
