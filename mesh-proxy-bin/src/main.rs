//! `mesh-proxy`: the mesh's sidecar.
//!
//! Listeners, protocol detection, admin pages and drain around the layers of the mesh. It has no policy of
//! its own: what it decides is decided in the crates that any Rust service can use as well.

mod accept;
mod admin;
mod args;
mod bind;
mod check;
mod cpu;
mod demo;
mod detect;
mod drain;
mod inbound;
mod logging;
mod outbound;
mod relay;
mod run;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::run(&args),
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
