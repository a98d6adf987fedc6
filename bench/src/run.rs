//! The runner: rounds, progress, the report.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Options, PeerName};
use crate::machine;
use crate::peer::Peer;
use crate::proc::find_program;
use crate::report::{CaseReport, Row, Sample, number};
use crate::scenario::{CASES, Case, Prepared};
use crate::stage::Stage;

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Measures what the command line asks for; the exit code is 0 when every row has its figures.
///
/// # Errors
/// When nothing can be measured.
pub async fn run(options: Options) -> Result<ExitCode> {
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Whatever was started belongs to the future that is dropped here, and ends with it.
    tokio::select! {
        done = measure_all(options) => done,
        _ = interrupt.recv() => Ok(interrupted()),
        _ = terminate.recv() => Ok(interrupted()),
    }
}

fn interrupted() -> ExitCode {
    eprintln!("\ninterrupted; all processes are ended");
    ExitCode::from(INTERRUPTED)
}

fn list() {
    for case in CASES {
        let peers: Vec<&str> = case.peers.iter().map(|peer| peer.name()).collect();
        println!("{:<14} {}\n{:<14} [{}]", case.id, case.about, "", peers.join(", "));
    }
}

/// The cases that were asked for, in the order of the list.
///
/// # Errors
/// When there is none of a name.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    let is = |case: &Case, name: &str| case.id == name || case.scenario() == name;
    for name in names {
        if !CASES.iter().any(|case| is(case, name)) {
            let mut known: Vec<&str> = CASES.iter().map(Case::scenario).collect();
            known.dedup();
            bail!("there is no scenario {name:?}; there are {} (see --list)", known.join(", "));
        }
    }
    Ok(CASES.iter().filter(|case| names.is_empty() || names.iter().any(|name| is(case, name))).collect())
}

/// Progress on standard error; colours where a person looks.
#[derive(Debug)]
struct Progress {
    colours: bool,
}

impl Progress {
    fn new() -> Self {
        Self { colours: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn say(&self, colour: &str, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ =
            if self.colours { writeln!(err, "\x1b[{colour}m{text}\x1b[0m") } else { writeln!(err, "{text}") };
    }

    fn measured(&self, what: &str, case: &Case, result: &Result<Sample, String>) {
        match result {
            Ok(sample) => {
                let figures: Vec<String> = case
                    .metrics
                    .iter()
                    .filter_map(|m| Some(format!("{} {}", number(*sample.get(m.id)?, m.digits), m.title)))
                    .collect();
                self.say("0", &format!("{what}  {}", figures.join(", ")));
            }
            // The table shows the whole of it.
            Err(error) => {
                self.say("31", &format!("{what}  ERROR: {}", error.lines().next().unwrap_or_default()));
            }
        }
    }
}

/// Who takes part in a case.
fn peers_of(case: &Case, options: &Options) -> Vec<Peer> {
    let wanted: Vec<Peer> = options.peers.iter().map(|name| PeerName::peer(*name)).collect();
    case.peers
        .iter()
        .copied()
        .filter(|peer| !peer.is_chosen() || wanted.contains(peer))
        .filter(|peer| *peer != Peer::OursB || options.ours.is_some())
        .collect()
}

fn head(stage: &Stage) -> Result<Vec<(&'static str, String)>> {
    let options = &stage.options;
    let mut head = machine::describe(options.cores);
    let ours = stage.mesh_proxy(Peer::Ours)?;
    head.push(("ours", format!("{} ({})", machine::version(&ours, &["--version"])?, ours.display())));
    if let Some(other) = &options.ours {
        head.push(("ours-b", format!("{} ({})", machine::version(other, &["--version"])?, other.display())));
    }
    for peer in &options.peers {
        let (name, program, args) = match peer {
            PeerName::Envoy => ("envoy", options.envoy.clone(), "--version"),
            PeerName::Nginx => ("nginx", "nginx".into(), "-v"),
            PeerName::Haproxy => ("haproxy", "haproxy".into(), "-v"),
            PeerName::Relay => continue,
        };
        head.push((name, machine::version(&find_program(&program)?, &[args])?));
    }
    for (program, arg) in [("wrk", "-v"), ("h2load", "--version")] {
        // Not every scenario needs both.
        let found = find_program(program.as_ref()).and_then(|path| machine::version(&path, &[arg]));
        head.push((program, found.unwrap_or_else(|_| "not installed".into())));
    }
    head.push((
        "measured",
        format!(
            "{} rounds of {} s, each after {} s of warm-up; medians",
            options.rounds,
            options.seconds,
            crate::measure::WARM_UP
        ),
    ));
    Ok(head)
}

async fn measure_all(options: Options) -> Result<ExitCode> {
    let progress = Progress::new();
    let cases = chosen(&options.scenarios)?;
    let files = machine::raise_open_files();
    machine::pin_self(options.cores.load)?;
    let stage = Stage::new(options)?;
    let mut head = head(&stage)?;
    head.push(("open files", files.to_string()));
    for (name, value) in &head {
        println!("{name:<10} {value}");
    }
    println!();
    let mut reports = Vec::new();
    for case in cases {
        let report = measure_case(&stage, case, &progress).await;
        let report = report.with_context(|| format!("the scenario {}", case.id))?;
        println!("{}", report.table());
        reports.push(report);
        // After each case: an interruption loses one case at most.
        if let Some(file) = &stage.options.json {
            let cases: Vec<_> = reports.iter().map(CaseReport::json).collect();
            let head: Vec<_> = head.iter().map(|(name, value)| json!([name, value])).collect();
            let text = serde_json::to_string_pretty(&json!({"head": head, "cases": cases}))?;
            std::fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
        }
    }
    let failed = reports.iter().flat_map(|report| &report.rows).any(|row| row.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn measure_case(stage: &Stage, case: &'static Case, progress: &Progress) -> Result<CaseReport> {
    let peers = peers_of(case, &stage.options);
    progress.say("1", &format!("{}: {}", case.id, case.about));
    let prepared: Prepared = case.prepare(stage, &peers).await?;
    let mut rows: Vec<Row> =
        peers.iter().map(|peer| Row { peer: *peer, rounds: Vec::new(), error: None }).collect();
    for round in 0..stage.options.rounds {
        // Nobody is always first, or always after the same neighbour's noise.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.rotate_left(round as usize % rows.len().max(1));
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let Some(row) = rows.get_mut(at) else { continue };
            if row.error.is_some() {
                continue;
            }
            let result = case.measure(stage, &prepared, row.peer, round == 0).await;
            let result = result.map_err(|error| format!("{error:#}"));
            let what = format!("  {}/{} {:<14}", round + 1, stage.options.rounds, row.peer.name());
            progress.measured(&what, case, &result);
            match result {
                Ok(sample) => row.rounds.push(sample),
                Err(error) => row.error = Some(error),
            }
        }
    }
    case.finish(&mut rows);
    Ok(CaseReport {
        id: case.id,
        about: case.about,
        metrics: case.metrics,
        base: case.base,
        rows,
        notes: prepared.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name_or_case() {
        assert_eq!(chosen(&[]).unwrap().len(), CASES.len());
        let plain = chosen(&["plain".into()]).unwrap();
        assert_eq!(plain.iter().map(|case| case.id).collect::<Vec<_>>(), ["plain"]);
        let error = chosen(&["plane".into()]).err().unwrap().to_string();
        assert!(error.contains("plane") && error.contains("mtls"), "{error}");
    }

    #[test]
    fn each_case_has_a_name_of_its_own_and_its_base_among_its_peers() {
        let mut ids: Vec<&str> = CASES.iter().map(|case| case.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CASES.len());
        for case in CASES {
            assert!(case.peers.contains(&case.base), "{}", case.id);
        }
    }
}
