//! The machine, and what is taken of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::args::Cores;

/// Keeps this process (and what it starts without saying otherwise) on one core.
///
/// # Errors
/// When there is no such core.
pub fn pin_self(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("core {core} is not to be had"))
}

/// Raises the limit of open files as far as it goes, for this process and all that it starts, and gives it.
pub fn raise_open_files() -> u64 {
    const WANTED: u64 = 1 << 20;
    let now = getrlimit(Resource::Nofile);
    // Root may go beyond its own limit; others get what they are allowed.
    let beyond = Rlimit { current: Some(WANTED), maximum: Some(now.maximum.unwrap_or(WANTED).max(WANTED)) };
    if setrlimit(Resource::Nofile, beyond).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What the report's head says of the machine.
pub fn describe(cores: Cores) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let cpu = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    vec![
        ("cpu", format!("{} ({count} cores)", cpu.unwrap_or("unknown").trim())),
        ("kernel", format!("{} {}", kernel.trim(), std::env::consts::ARCH)),
        ("cores", format!("proxies on {}, load and backends on {}", cores.proxy, cores.load)),
    ]
}

/// The first line that `program ARGS` says about its version.
///
/// # Errors
/// When it cannot be run.
pub fn version(program: &Path, args: &[&str]) -> Result<String> {
    let shown = program.display();
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {shown}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    match line {
        Some(line) => Ok(line.trim_start_matches("nginx version: ").to_owned()),
        None => bail!("{shown} does not say its version"),
    }
}
