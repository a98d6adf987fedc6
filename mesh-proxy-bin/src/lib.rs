//! `mesh-proxy`: the mesh's sidecar.
//!
//! Listeners, protocol detection, admin pages and drain around the layers of the mesh. It has no policy of
//! its own: what it decides is decided in the crates that any Rust service can use as well.
//!
//! The program is [`main`] and an allocator; that it is a library too lets a test look inside of it while it
//! works.

mod accept;
mod admin;
mod args;
mod bind;
mod check;
mod control;
mod cpu;
mod demo;
mod detect;
mod drain;
mod inbound;
mod init;
mod logging;
mod loops;
mod original;
mod outbound;
mod pod;
mod redirected;
mod relay;
mod run;
mod serve;
mod socket;
mod splice;
mod status;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tokio::time::Instant;

use args::{Cli, Command};

/// Does what a command line asks for, the program's name being its first word. Ends the process when the
/// command line is wrong, or asks for help.
pub fn main(command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let begun = Instant::now();
    let result = match Cli::parse_from(command_line).command {
        Command::Run(args) => run::run(*args, begun),
        Command::Check(args) => check::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Demo(args) => demo(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("mesh-proxy: {error:#}");
        ExitCode::FAILURE
    })
}

fn demo(args: args::DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(demo::run(args))
}
