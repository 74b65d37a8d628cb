//! Entry point of the `countersign` program. [`countersign::cli`] has the commands.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Returns the environment variables that are valid UTF-8. Settings are text, so no other variable can be
/// one.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn main() -> ExitCode {
    countersign::cli::run(std::env::args_os(), environment())
}
