//! The `countersign` program: see [`countersign::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The variables that can be text; others are no settings of ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

fn main() -> ExitCode {
    countersign::cli::run(std::env::args_os(), environment())
}
