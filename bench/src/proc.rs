//! Child processes that do not outlive the runner, and what the kernel tells about them.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::machine;

/// Lines of a program's output that an error shows.
const SHOWN_LINES: usize = 15;

/// A program to start.
#[derive(Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    core: usize,
    /// Where it goes back to after the start: a child takes over the core of its parent.
    own_core: usize,
    output: PathBuf,
    access_log: Option<PathBuf>,
    guarded: bool,
}

impl Spawn {
    /// `program` on `core`, started by a runner that lives on `own_core`; both of its outputs go into a file.
    pub fn new(program: impl Into<PathBuf>, (core, own_core): (usize, usize), output: PathBuf) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            core,
            own_core,
            output,
            access_log: None,
            guarded: true,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// A flag with its value.
    #[must_use]
    pub fn flag(self, name: &str, value: impl ToString) -> Self {
        self.arg(name).arg(value.to_string())
    }

    /// Where it writes a line for each request.
    #[must_use]
    pub fn logs_to(mut self, file: PathBuf) -> Self {
        self.access_log = Some(file);
        self
    }

    /// Without the helper that ties its life to ours: for starts whose time is measured.
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.guarded = false;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self) -> Result<Proc> {
        let shown = self.program.display().to_string();
        let log = std::fs::File::create(&self.output).with_context(|| self.output.display().to_string())?;
        let errors = log.try_clone()?;
        let mut command = if self.guarded {
            // Even a runner that is killed without a word leaves nothing behind.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.args).stdin(Stdio::null()).stdout(log).stderr(errors);
        machine::pin_self(self.core)?;
        let child = command.spawn();
        machine::pin_self(self.own_core)?;
        let child = child.with_context(|| format!("cannot start {shown}"))?;
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Proc { name, child, output: self.output, access_log: self.access_log })
    }
}

/// A running child. Dropping it ends it and its children.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    output: PathBuf,
    access_log: Option<PathBuf>,
}

impl Proc {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It and its children (nginx's worker is one).
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.pid()];
        pids.extend(children_of(self.pid()));
        pids
    }

    /// Where it writes a line for each request.
    pub fn logs_to(&mut self, file: PathBuf) {
        self.access_log = Some(file);
    }

    /// The lines of its access log so far; none when it writes none.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn logged(&self) -> Result<Option<u64>> {
        let Some(path) = &self.access_log else { return Ok(None) };
        let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        let (mut lines, mut part) = (0, vec![0; 1 << 16]);
        loop {
            let read = file.read(&mut part)?;
            if read == 0 {
                return Ok(Some(lines));
            }
            let part = part.get(..read).unwrap_or_default();
            lines += part.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        }
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// With the last lines of its output.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended ({status})\n{}", self.name, self.tail())),
        }
    }

    /// The last lines of its output.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(SHOWN_LINES))
            .map(|line| format!("  | {line}\n"))
            .collect()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let children = children_of(self.pid());
        // The parent first: it might start its children anew.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in children {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// The fields of `/proc/PID/stat` from the state on; the name before it may hold anything.
fn stat_fields(text: &str) -> Vec<&str> {
    text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat_fields(&stat).get(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    })
    .collect()
}

/// CPU time of these processes so far, user and system, in seconds.
///
/// # Errors
/// When one of them is gone.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).with_context(|| format!("process {pid} is gone"))?;
        ticks += cpu_ticks(&text).with_context(|| format!("{path} reads {text:?}"))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a hundred, on every Linux")]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks / per_second)
}

fn cpu_ticks(stat: &str) -> Option<f64> {
    let fields = stat_fields(stat);
    let field = |n: usize| fields.get(n)?.parse::<f64>().ok();
    Some(field(11)? + field(12)?)
}

/// Resident memory of these processes, in MiB.
///
/// # Errors
/// When one of them is gone.
pub fn rss_mib(pids: &[u32]) -> Result<f64> {
    let mut kib = 0.0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("a process is gone")?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        match line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()) {
            Some(of_one) => kib += of_one,
            None => bail!("process {pid} has ended"),
        }
    }
    Ok(kib / 1024.0)
}

/// A program by its name in `PATH` or by its path.
///
/// # Errors
/// When there is none.
pub fn find_program(name: &Path) -> Result<PathBuf> {
    if name.components().count() > 1 {
        return name.canonicalize().with_context(|| name.display().to_string());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons live where an ordinary user's PATH does not look.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{} is not installed; bench/run installs what it needs", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let stat = "42 (a) b (c)) S 7 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(stat_fields(stat)[1], "7");
        assert_eq!(cpu_ticks(stat), Some(300.0));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let own = std::process::id();
        assert!(cpu_seconds(&[own]).unwrap() >= 0.0);
        assert!(rss_mib(&[own]).unwrap() > 0.1);
        assert!(cpu_seconds(&[u32::MAX]).is_err());
    }
}
