//! The load generators wrk and h2load: how they are started, and what they say.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use crate::stats::percentile;

/// A load on one address.
#[derive(Debug, Clone)]
pub enum Load {
    /// wrk: HTTP/1.1, closed loop.
    Wrk {
        /// The URL.
        url: String,
        /// The header `Host`.
        host: String,
        /// Connections, each with one request at a time.
        connections: u32,
        /// A Lua script that makes the requests.
        script: Option<PathBuf>,
    },
    /// h2load: HTTP/2 with prior knowledge, closed loop.
    H2load {
        /// The URL.
        url: String,
        /// The header `:authority`.
        host: String,
        /// Connections.
        connections: u32,
        /// Streams at once on each connection.
        streams: u32,
        /// More headers.
        headers: Vec<String>,
        /// The body of each request.
        body: Option<PathBuf>,
    },
}

/// What a load generator saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Requests that were answered well.
    pub requests: f64,
    /// For how long it sent.
    pub seconds: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the latency in milliseconds.
    pub p99_ms: f64,
    /// What went wrong, in words; a measurement with anything in it does not count.
    pub trouble: Option<String>,
}

/// What a load generator of our own found, as it prints it in one line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Requests, bytes, messages, ...
    pub count: f64,
    /// In how many seconds.
    pub seconds: f64,
    /// The median, in microseconds; 0 where no times were taken.
    pub p50_us: f64,
    /// The 99th percentile, in microseconds.
    pub p99_us: f64,
    /// The 99.9th percentile, in microseconds.
    pub p999_us: f64,
}

impl Found {
    /// From a count, a time, and the single times in nanoseconds.
    #[expect(clippy::cast_precision_loss, reason = "figures of a short run")]
    pub fn new(count: u64, seconds: f64, mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let quantile = |share| percentile(&nanoseconds, share).map_or(0.0, |ns| ns as f64 / 1e3);
        Self {
            count: count as f64,
            seconds,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
        }
    }

    /// The line.
    pub fn line(&self) -> String {
        let Self { count, seconds, p50_us, p99_us, p999_us } = self;
        format!("{count} {seconds} {p50_us} {p99_us} {p999_us}")
    }

    /// Reads the line.
    ///
    /// # Errors
    /// When a figure is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let values: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
        match values?.as_slice() {
            &[count, seconds, p50_us, p99_us, p999_us] => {
                Ok(Self { count, seconds, p50_us, p99_us, p999_us })
            }
            other => bail!("{} figures instead of five", other.len()),
        }
    }
}

impl Load {
    /// Runs it for so long.
    ///
    /// # Errors
    /// When the generator cannot be run or understood.
    pub async fn run(&self, seconds: u32, scratch: &Path) -> Result<Outcome> {
        match self {
            Self::Wrk { url, host, connections, script } => {
                let mut command = guarded("wrk");
                command.args(["-t1", "--latency", "--timeout", "10s"]);
                command.arg(format!("-c{connections}")).arg(format!("-d{seconds}s"));
                command.arg("-H").arg(format!("Host: {host}"));
                if let Some(script) = script {
                    command.arg("-s").arg(script);
                }
                let text = output(command.arg(url)).await?;
                parse_wrk(&text).with_context(|| format!("wrk said: {text}"))
            }
            Self::H2load { url, host, connections, streams, headers, body } => {
                let log = scratch.join("h2load.log");
                let mut command = guarded("h2load");
                command.arg("-t1").arg(format!("-c{connections}")).arg(format!("-m{streams}"));
                command.arg(format!("-D{seconds}")).arg("--log-file").arg(&log);
                command.arg("-H").arg(format!(":authority: {host}"));
                for header in headers {
                    command.arg("-H").arg(header);
                }
                if let Some(body) = body {
                    command.arg("-d").arg(body);
                }
                let text = output(command.arg(url)).await?;
                let times = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
                let _ = std::fs::remove_file(&log);
                parse_h2load(&text, &times).with_context(|| format!("h2load said: {text}"))
            }
        }
    }
}

/// A program that ends with the runner, even when the runner is killed without a word.
fn guarded(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

async fn output(command: &mut Command) -> Result<String> {
    let name = command.as_std().get_args().nth(3).unwrap_or_default().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{name} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// `1.50ms`, `843.00us`, `2.10s`, `1.00m` in milliseconds.
fn milliseconds(text: &str) -> Option<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(at)?;
    let number: f64 = number.parse().ok()?;
    Some(match unit {
        "us" => number / 1e3,
        "ms" => number,
        "s" => number * 1e3,
        "m" => number * 6e4,
        "h" => number * 3.6e6,
        _ => return None,
    })
}

/// Reads what `wrk --latency` prints.
///
/// # Errors
/// When a figure is missing.
pub fn parse_wrk(text: &str) -> Result<Outcome> {
    let quantile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        milliseconds(line.trim())
    };
    // "  123456 requests in 4.00s, 20.00MB read"
    let (requests, rest) = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("no count of requests")?;
    let seconds = rest.split(',').next().and_then(milliseconds).context("no duration")? / 1e3;
    let mut trouble = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx or 3xx responses:") {
            trouble.push(line.to_owned());
        }
    }
    let requests: f64 = requests.trim().parse().context("the count of requests")?;
    if requests == 0.0 {
        trouble.push("no request was answered".into());
    }
    Ok(Outcome {
        requests,
        seconds,
        p50_ms: quantile("50%").context("no median")?,
        p99_ms: quantile("99%").context("no 99th percentile")?,
        trouble: (!trouble.is_empty()).then(|| trouble.join("; ")),
    })
}

/// Reads what `h2load -D` prints, and its log file, which has a line for each request: when it began, its
/// status, and how many microseconds it took.
///
/// # Errors
/// When a figure is missing.
pub fn parse_h2load(text: &str, log: &str) -> Result<Outcome> {
    // "finished in 4.00s, 12345.67 req/s, 1.20MB/s"
    let finished = text.lines().find_map(|line| line.strip_prefix("finished in ")).context("no duration")?;
    let seconds = finished.split(',').next().and_then(milliseconds).context("no duration")? / 1e3;
    // "status codes: 1234 2xx, 0 3xx, 0 4xx, 0 5xx"
    let codes =
        text.lines().find_map(|line| line.strip_prefix("status codes: ")).context("no status codes")?;
    // "requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout"
    let counts = text.lines().find_map(|line| line.strip_prefix("requests: ")).context("no counts")?;
    let count = |list: &str, name: &str| {
        list.split(", ").find_map(|part| part.trim().strip_suffix(name)?.trim().parse::<f64>().ok())
    };
    let requests = count(codes, "2xx").context("no count of 2xx")?;
    let mut trouble = Vec::new();
    for (list, names) in [(codes, &["3xx", "4xx", "5xx"][..]), (counts, &["errored", "timeout"][..])] {
        for name in names {
            match count(list, name) {
                Some(0.0) => {}
                Some(n) => trouble.push(format!("{n} {name}")),
                None => bail!("no count of {name}"),
            }
        }
    }
    if requests == 0.0 {
        trouble.push("no request was answered".into());
    }
    let mut times: Vec<u64> =
        log.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse().ok()).collect();
    times.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    let quantile = |share| percentile(&times, share).map_or(f64::NAN, |us| us as f64 / 1e3);
    Ok(Outcome {
        requests,
        seconds,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        trouble: (!trouble.is_empty()).then(|| trouble.join("; ")),
    })
}

#[cfg(test)]
mod tests;
