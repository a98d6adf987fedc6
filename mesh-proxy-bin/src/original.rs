//! Where a redirected connection was going.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use socket2::SockRef;

/// Where the accepted connection `socket` was going before it was redirected here, or nothing when it came
/// straight to the listener's own address. A listener on `[::]` may hold connections of both families.
///
/// Nothing must not mean "wherever it says now": who connects straight to a redirecting listener's port would
/// make the sidecar call itself.
///
/// # Errors
///
/// Those of the socket; a kernel without connection tracking has none to tell from.
pub(crate) fn original_destination<S>(socket: &S) -> io::Result<Option<SocketAddr>>
where
    S: std::os::fd::AsFd,
{
    let socket = SockRef::from(socket);
    let not_ip = || io::Error::new(io::ErrorKind::InvalidInput, "the socket is not one of TCP over IP");
    let local = canonical(socket.local_addr()?.as_socket().ok_or_else(not_ip)?);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original {
        Ok(original) => {
            let original = canonical(original.as_socket().ok_or_else(not_ip)?);
            Ok((original != local).then_some(original))
        }
        // No entry: nobody translated it. ENOPROTOOPT: nothing in this network tracks connections yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An IPv4 address as one, also where a listener for both families shows it inside of IPv6.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}
