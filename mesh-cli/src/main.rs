//! `meshctl`: what people ask of the mesh from a terminal.

mod inject;
mod terminal;
mod yaml;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What people ask of the mesh from a terminal.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add the sidecar to the pods of Kubernetes manifests, without a cluster
    Inject(Box<inject::InjectArgs>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Inject(args) => inject::run(&args),
    };
    result.unwrap_or_else(|error| {
        terminal::error(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
