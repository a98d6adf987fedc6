//! `mesh-proxy wait`: returns when the sidecar of this pod is ready. The kubelet runs it as the sidecar's `postStart`
//! hook and starts nothing else of the pod before it has ended.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use crate::args::WaitArgs;

/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that is read of an answer.
const MAX_ANSWER: u64 = 16 * 1024;
const REQUEST: &[u8] = b"GET /healthz/ready HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\n\r\n";

/// Asks until the sidecar says that it is ready; an error tells what is missing when the time is over. The kubelet
/// then ends the container, and shows that text.
pub(crate) fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let (sidecar, begun) = (reached_at(args.health), Instant::now());
    loop {
        let missing = match ask(sidecar) {
            Ok(answer) => match missing(&answer) {
                None => return Ok(ExitCode::SUCCESS),
                Some(missing) => missing,
            },
            Err(error) => format!("{sidecar}: {error}"),
        };
        if begun.elapsed() >= args.timeout {
            let text = format!("the sidecar was not ready within {:?}: {missing}", args.timeout);
            if let Some(file) = &args.message {
                // Written through, since the file is the kubelet's: it is not made where there is none.
                let written = std::fs::OpenOptions::new().write(true).open(file);
                if let Err(error) = written.and_then(|mut file| file.write_all(text.as_bytes())) {
                    eprintln!("{}: {error}", file.display());
                }
            }
            bail!(text);
        }
        thread::sleep(PAUSE);
    }
}

/// Where a socket that listens on `health` is reached from the same pod.
fn reached_at(health: SocketAddr) -> SocketAddr {
    // What listens on [::] takes IPv4 as well, and every pod has 127.0.0.1.
    let ip = if health.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { health.ip() };
    SocketAddr::new(ip, health.port())
}

fn ask(sidecar: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&sidecar, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What an answer says is missing; `None` when nothing is.
fn missing(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return None;
    }
    let said = if body.trim().is_empty() { status } else { body.trim() };
    Some(said.trim_start_matches("not ready: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_means_that_nothing_is_missing() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n", None),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: no certificate\n", Some("no certificate")),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some("HTTP/1.1 503 Service Unavailable")),
            ("HTTP/1.1 2000\r\n\r\n", Some("HTTP/1.1 2000")),
            ("200", Some("200")),
            ("", Some("")),
        ] {
            assert_eq!(missing(answer).as_deref(), want, "{answer:?}");
        }
    }

    #[test]
    fn a_socket_on_all_addresses_is_asked_on_the_loopback() {
        for (health, want) in [
            ("[::]:15021", "127.0.0.1:15021"),
            ("0.0.0.0:15021", "127.0.0.1:15021"),
            ("10.0.0.7:1", "10.0.0.7:1"),
        ] {
            assert_eq!(reached_at(health.parse().unwrap()), want.parse().unwrap());
        }
    }
}
