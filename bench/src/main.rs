//! The command `bench/run`; see `bench/README.md`.

use std::process::ExitCode;

use clap::Parser;
use mesh_bench::args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match mesh_bench::main(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
