//! The mesh in Kubernetes.
//!
//! [`inject`] gives pods their sidecars, and [`webhook`] is the admission webhooks' answers.
//! [`event`] is what happens to the cluster's objects, [`world`] keeps the store of all of them and says what
//! each proxy is answered. [`authority`] issues the workloads' certificates, to whoever a token of Kubernetes
//! names. [`serve`] is the ports: discovery and certificates for proxies, the webhooks for the API server, the
//! admin pages for people. [`crds`] are the definitions of our kinds.
//!
//! The program is [`main`] and an allocator.

pub mod args;
pub mod authority;
pub mod crds;
pub mod event;
pub mod inject;
mod kubernetes;
pub mod leader;
mod logging;
pub mod metrics;
pub mod plane;
mod queue;
mod run;
pub mod serve;
pub mod shared;
pub mod status;
pub mod watch;
pub mod webhook;
pub mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// Does what a command line asks for, the program's name being its first word. Ends the process when the
/// command line is wrong, or asks for help.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match Cli::parse_from(command_line).command {
        Command::Run(args) => run::run(*args),
        Command::Crds => crds::print(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("mesh-controller: {error:#}");
        ExitCode::FAILURE
    })
}
