//! Measures `mesh-proxy` beside Envoy and others on the same work. `bench/README.md` says what and how.
//!
//! The program has two faces: the runner, which starts everything and prints the report, and the *roles*, in
//! which it starts itself again as a backend, a load generator, or the bare relay.

pub mod args;
pub mod load;
pub mod machine;
pub mod measure;
pub mod peer;
pub mod proc;
pub mod report;
pub mod role;
pub mod run;
pub mod scenario;
pub mod stage;
mod stale;
pub mod stats;
pub mod template;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Runs what the command line asks for.
///
/// # Errors
/// When nothing can be measured at all. A measurement that goes wrong is a line of the report and the exit
/// code.
pub fn main(cli: args::Cli) -> Result<ExitCode> {
    // One thread everywhere: the runner shares a core with the load, and each role owns the core it is given.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    match cli.role {
        Some(args::Internal::Role(role)) => {
            runtime.block_on(tokio::task::LocalSet::new().run_until(role::run(role)))?;
            Ok(ExitCode::SUCCESS)
        }
        None => runtime.block_on(run::run(cli.options)),
    }
}
