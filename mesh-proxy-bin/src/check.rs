//! `mesh-proxy check`: what a directory's resources would do, without running anything.

use std::process::ExitCode;

use crate::args::{CheckArgs, OutputFormat};

/// Loads and reports; exit code 1 when something would not be applied.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = mesh::check(&args.dir, &args.root_namespace)?;
    match args.output {
        OutputFormat::Json => println!("{:#}", report.to_json()),
        OutputFormat::Text => {
            for diagnostic in &report.diagnostics {
                println!("{}: {diagnostic}", word(diagnostic));
            }
            println!("{}", report.summary());
        }
    }
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn word(diagnostic: &mesh::core::diagnostic::Diagnostic) -> &'static str {
    use mesh::core::diagnostic::Effect;
    match diagnostic.effect {
        Effect::Skipped => "note",
        Effect::NoEffect => "warning",
        _ => "error",
    }
}
