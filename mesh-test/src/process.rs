//! Child processes whose output is kept and which never outlive the test.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Lines of output kept of a process; older ones are dropped.
const KEPT_LINES: usize = 20_000;

/// Lines shown in a failure message.
const SHOWN_LINES: usize = 60;

#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    dropped: usize,
}

/// A running child process. Dropping it kills it.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    pid: Option<Pid>,
    output: Arc<Mutex<Output>>,
    news: watch::Receiver<usize>,
}

impl Proc {
    /// Starts `program` with its arguments, in the caller's environment.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(program: impl AsRef<Path>, args: impl IntoIterator<Item = A>) -> Self {
        Self::spawn_with(program, args, std::iter::empty::<(OsString, OsString)>())
    }

    /// As [`Proc::spawn`], with more environment variables.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_with<A: AsRef<OsStr>, K: AsRef<OsStr>, V: AsRef<OsStr>>(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let program = program.as_ref();
        let mut child = Command::new(program)
            .args(args)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        let output = Arc::default();
        let (news_tx, news) = watch::channel(0);
        let news_tx = Arc::new(news_tx);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read_lines(stdout, Arc::clone(&output), Arc::clone(&news_tx)));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read_lines(stderr, Arc::clone(&output), news_tx));
        }
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        Self { name, child, pid, output, news }
    }

    /// The process's id; none after it was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The lines of both outputs so far, in the order in which they were read.
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }

    /// The last lines as one text, for a failure message.
    pub fn tail(&self) -> String {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let hidden = output.lines.len().saturating_sub(SHOWN_LINES);
        let mut text = format!("--- output of {} ({} lines before)\n", self.name, output.dropped + hidden);
        for line in output.lines.iter().skip(hidden) {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Waits for a line that contains `part` (also one already written) and gives it.
    ///
    /// # Panics
    /// With the output when there is none within `timeout` or the process ends without it.
    pub async fn wait_for_line(&self, part: &str, timeout: Duration) -> String {
        let mut news = self.news.clone();
        let found = tokio::time::timeout(timeout, async {
            loop {
                news.borrow_and_update();
                if let Some(line) = self.find(part) {
                    return Some(line);
                }
                // Both outputs have ended: nothing more will come.
                if news.changed().await.is_err() {
                    return self.find(part);
                }
            }
        })
        .await;
        match found {
            Ok(Some(line)) => line,
            Ok(None) => panic!("{} ended without a line with {part:?}\n{}", self.name, self.tail()),
            Err(_) => panic!("{}: no line with {part:?} within {timeout:?}\n{}", self.name, self.tail()),
        }
    }

    fn find(&self, part: &str) -> Option<String> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.lines.iter().find(|line| line.contains(part)).cloned()
    }

    /// Sends SIGTERM. A process that has ended is left alone.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL. A process that has ended is left alone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends SIGSTOP: the process keeps its sockets and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT after [`Proc::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // `id` is none once the process was waited for: its number may be another's by then.
        if let (Some(pid), Some(_)) = (self.pid, self.child.id()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// With the output when it still runs after `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        match tokio::time::timeout(timeout, self.child.wait()).await {
            Ok(Ok(status)) => {
                // The readers see the end of the pipes just after; a test wants the last lines too. A
                // grandchild that holds them open must not hold the test.
                let mut news = self.news.clone();
                let drained = async { while news.changed().await.is_ok() {} };
                let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
                status
            }
            Ok(Err(error)) => panic!("cannot wait for {}: {error}", self.name),
            Err(_) => panic!("{} still runs after {timeout:?}\n{}", self.name, self.tail()),
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in KiB (`VmRSS` of `/proc/PID/status`); none when it has ended or there is no `/proc`.
    pub fn rss_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    output: Arc<Mutex<Output>>,
    news: Arc<watch::Sender<usize>>,
) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    // Not `lines()`: a line that is not UTF-8 would end it.
    while let Ok(1..) = pipe.read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            if output.lines.len() == KEPT_LINES {
                output.lines.pop_front();
                output.dropped += 1;
            }
            output.lines.push_back(text);
        }
        news.send_modify(|count| *count += 1);
    }
}

/// Runs a program to its end and gives its exit status and its output (both streams, in the order read).
///
/// # Panics
/// When it cannot be started or still runs after `timeout`.
pub async fn run<A: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    args: impl IntoIterator<Item = A>,
    timeout: Duration,
) -> (ExitStatus, String) {
    let mut proc = Proc::spawn(program, args);
    let status = proc.wait(timeout).await;
    (status, proc.lines().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn keeps_output_and_ends_on_sigterm() {
        let mut proc = Proc::spawn("sh", ["-c", "echo out; echo err >&2; exec sleep 1000"]);
        proc.wait_for_line("out", LONG).await;
        assert_eq!(proc.wait_for_line("err", LONG).await, "err");
        assert!(proc.is_running());
        assert!(proc.rss_kib().unwrap() > 0);
        proc.terminate();
        assert!(!proc.wait(LONG).await.success());
        proc.terminate();
        assert_eq!(proc.rss_kib(), None);
    }

    #[tokio::test]
    #[should_panic(expected = "the reason")]
    async fn a_failure_shows_the_output() {
        let proc = Proc::spawn("sh", ["-c", "echo the reason"]);
        proc.wait_for_line("never", LONG).await;
    }

    #[tokio::test]
    async fn does_not_outlive_its_handle() {
        let proc = Proc::spawn("sleep", ["1000"]);
        let path = format!("/proc/{}/cmdline", proc.pid().unwrap());
        drop(proc);
        crate::wait::until(LONG, "the child's end", async || {
            std::fs::read(&path).map_or(true, |cmdline| cmdline.is_empty())
        })
        .await;
    }

    #[tokio::test]
    async fn runs_to_the_end() {
        let (status, output) = run("sh", ["-c", "echo one; exit 3"], LONG).await;
        assert_eq!((status.code(), output.as_str()), (Some(3), "one"));
    }
}
