//! Listening sockets: one per worker on the same address, so that workers share nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use anyhow::Context;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted, per socket.
const BACKLOG: i32 = 4096;

/// `count` listeners on `addr`. They share it (`SO_REUSEPORT`); that somebody else listens there already is
/// an error all the same, since connections would silently be split with them.
pub(crate) fn listeners(flag: &str, addr: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
    // Refused when anybody listens there, whether they share or not.
    let (probe, addr) = match bind(addr, false) {
        // Without IPv6 everywhere is everywhere in IPv4.
        Err(error) if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_missing(&error) => {
            let addr = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
            (bind(addr, false), addr)
        }
        probe => (probe, addr),
    };
    let what = || format!("cannot listen on --{flag} {addr}");
    let probe = probe.with_context(what)?;
    let addr = probe.local_addr().with_context(what)?;
    if count == 1 {
        return Ok(vec![probe]);
    }
    drop(probe);
    (0..count).map(|_| bind(addr, true)).collect::<io::Result<_>>().with_context(what)
}

/// Whether a family of addresses is missing.
fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| missing.contains(&code))
}

fn bind(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted proxy must not wait for its old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_an_address_and_strangers_do_not() {
        let ours = listeners("inbound", "127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let addr = ours[0].local_addr().unwrap();
        assert!(ours.iter().all(|l| l.local_addr().unwrap() == addr));
        let error = format!("{:#}", listeners("inbound", addr, 2).unwrap_err());
        assert!(error.contains(&format!("cannot listen on --inbound {addr}")), "{error}");
    }
}
