#![doc = include_str!("../README.md")]

// The modules are listed in the order of a request: command line and API, pipeline, what the pipeline uses.
pub mod app;
pub mod cli;
pub mod config;

pub mod admin;
pub mod api;
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

pub mod clock;
pub mod connections;
pub mod entropy;
pub mod jose;
pub mod json;
pub mod model;
pub mod telemetry;
pub mod text_pool;
