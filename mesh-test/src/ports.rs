//! Free loopback ports.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// Where ports are taken from: below the range from which Linux gives ports to outgoing connections, so that
/// no connection can take a port between [`free`] and its use, and above the ports of well-known daemons.
const RANGE: std::ops::Range<u16> = 16_000..32_000;

struct Taken {
    next: u16,
    given: BTreeSet<u16>,
}

static TAKEN: LazyLock<Mutex<Taken>> = LazyLock::new(|| {
    let width = u64::from(RANGE.end - RANGE.start);
    let offset = RandomState::new().build_hasher().finish() % width;
    let next = RANGE.start + u16::try_from(offset).unwrap_or(0);
    Mutex::new(Taken { next, given: BTreeSet::new() })
});

/// A loopback port on which nobody listens now and which this process has not given out before.
///
/// Each process starts at a random place of the range, so that test processes that run side by side
/// rarely meet; within a process no port is given twice.
///
/// # Panics
/// When no port of the range is left.
pub fn free() -> u16 {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in RANGE {
        let port = taken.next;
        taken.next = if port + 1 < RANGE.end { port + 1 } else { RANGE.start };
        if !taken.given.contains(&port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            taken.given.insert(port);
            return port;
        }
    }
    panic!("no free port between {} and {}", RANGE.start, RANGE.end)
}

/// `127.0.0.1` with a [`free`] port.
pub fn free_addr() -> SocketAddr {
    loopback(free())
}

/// `127.0.0.1` with that port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Listens on an address that may have been in use a moment ago.
///
/// A closed listener can live on for an instant in a child process that is being started just then (between
/// `fork` and `exec` it holds a copy), so an address in use is tried again for a while.
///
/// # Panics
/// When the address cannot be bound.
pub async fn listen(addr: SocketAddr) -> tokio::net::TcpListener {
    let what = format!("to listen on {addr}");
    crate::wait::until_ok(Duration::from_secs(5), &what, || tokio::net::TcpListener::bind(addr)).await
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_port_is_given_twice() {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..50).map(|_| super::free()).collect::<Vec<_>>()))
            .collect();
        let mut all: Vec<u16> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200);
    }
}
