//! A load at a fixed rate: each request has a time at which it is due, whatever happened to those before it, and
//! its latency counts from then. A proxy that stalls pays for everything that would have come in the meantime.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use tokio::time::Instant;

use crate::load::Found;

/// How long the last requests are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The mark of the timer among the events; the connections have their numbers.
const TIMER: u64 = u64::MAX;

/// One connection, with one request at a time.
struct Conn {
    stream: TcpStream,
    /// When the request that is under way was due.
    due: Option<Instant>,
    received: Vec<u8>,
}

/// Sends `count` requests, `rate` in a second, and blocks meanwhile: a runtime's timers go by the millisecond.
///
/// # Errors
/// When a connection fails, an answer is not 200, or the last ones do not come.
pub fn run(addr: SocketAddr, host: &str, rate: u32, count: u64, connections: usize) -> Result<Found> {
    ensure!(rate > 0 && connections > 0, "neither rate nor connections may be zero");
    let request = format!("GET /reviews/7 HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut conns = Vec::new();
    for n in 0..connections {
        let stream = TcpStream::connect(addr).context("to connect")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&events, &stream, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN)?;
        conns.push(Conn { stream, due: None, received: Vec::with_capacity(4096) });
    }
    let mut idle: VecDeque<usize> = (0..connections).collect();

    // Not the timeout of the wait: the kernel rounds those up by 50 us.
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let gap = Duration::from_secs(1) / rate;
    let every = Timespec { tv_sec: gap.as_secs().try_into()?, tv_nsec: gap.subsec_nanos().into() };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: every, it_value: every })?;
    epoll::add(&events, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;

    let begun = Instant::now();
    let (mut scheduled, mut due, mut times) = (0, VecDeque::new(), Vec::new());
    let mut happened = Vec::with_capacity(connections + 1);
    let mut last = begun;
    while (times.len() as u64) < count {
        happened.clear();
        let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into()?, tv_nsec: 0 };
        epoll::wait(&events, rustix::buffer::spare_capacity(&mut happened), Some(&patience))?;
        for event in &happened {
            let data = event.data;
            if data.u64() == TIMER {
                let mut expirations = [0; 8];
                if rustix::io::read(&timer, &mut expirations).is_err() {
                    continue;
                }
                for _ in 0..u64::from_ne_bytes(expirations).min(count - scheduled) {
                    scheduled += 1;
                    last = begun + Duration::from_nanos(u64::try_from(gap.as_nanos())? * scheduled);
                    due.push_back(last);
                }
            } else if let Some(conn) = usize::try_from(data.u64()).ok().and_then(|n| conns.get_mut(n))
                && let Some(was_due) = receive(conn)?
            {
                let took = Instant::now().saturating_duration_since(was_due);
                times.push(u64::try_from(took.as_nanos())?);
                idle.push_back(usize::try_from(data.u64())?);
            }
        }
        // A request that finds no connection free waits, and that counts.
        while !due.is_empty()
            && let Some(conn) = idle.pop_front().and_then(|n| conns.get_mut(n))
        {
            conn.due = due.pop_front();
            // A request fits into any socket's empty buffer.
            conn.stream.write_all(&request).context("to send")?;
        }
        if scheduled == count && Instant::now() > last + PATIENCE {
            bail!("{} of {count} requests are answered, {PATIENCE:?} after the last was due", times.len());
        }
    }
    Ok(Found::new(count, begun.elapsed().as_secs_f64(), times))
}

/// Reads what is there; when that makes the answer whole, tells when its request was due.
fn receive(conn: &mut Conn) -> Result<Option<Instant>> {
    let mut part = [0; 4096];
    loop {
        match conn.stream.read(&mut part) {
            Ok(0) => bail!("a connection was closed"),
            Ok(read) => conn.received.extend_from_slice(part.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("to receive"),
        }
        if answer_length(&conn.received)?.is_some_and(|whole| conn.received.len() >= whole) {
            conn.received.clear();
            return Ok(conn.due.take());
        }
    }
    Ok(None)
}

/// Reads an answer with a `content-length`, and nothing behind it.
///
/// # Errors
/// When the connection fails, or the answer is not 200.
pub(super) async fn read_answer<S>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<()>
where
    S: tokio::io::AsyncRead + Unpin,
{
    use tokio::io::AsyncReadExt as _;
    buffer.clear();
    loop {
        let read = stream.read_buf(buffer).await.context("to receive")?;
        ensure!(read > 0, "the connection was closed before the answer");
        if answer_length(buffer)?.is_some_and(|whole| buffer.len() >= whole) {
            return Ok(());
        }
    }
}

/// The length of head and body, as soon as the head is there.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "the answer is not 200: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.context("an answer without content-length")?.trim().parse()?;
    Ok(Some(end + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_measured_by_its_head() {
        assert_eq!(answer_length(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(answer_length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").unwrap(), Some(43));
        assert!(answer_length(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(answer_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
