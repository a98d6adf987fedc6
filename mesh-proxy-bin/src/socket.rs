//! Bytes from and to a socket by the kernel's own calls.
//!
//! The C library makes each of its calls one that a thread may be cancelled in: two atomic operations around it, which is
//! a hundredth of what carrying a small message costs.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads what has come, as much as there is room for; zero at the end. `None` when there is nothing after all, and the
/// socket has to be waited for again: only for one that is said to be readable.
pub(crate) fn try_recv(from: &TcpStream, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let room = into.capacity().saturating_sub(into.len());
    let mut part = None;
    let read = from.try_io(Interest::READABLE, || {
        let (read, _) = recv(from, spare_capacity(into), RecvFlags::empty())?;
        drained(read, room, &mut part)
    });
    outcome(read, part)
}

/// Writes the bytes, or a part of them.
pub(crate) fn poll_send(cx: &mut Context<'_>, to: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        let mut part = None;
        // Tried before it is asked whether that can be done: it nearly always can.
        let written = to.try_io(Interest::WRITABLE, || {
            let written = send(to, bytes, SendFlags::NOSIGNAL)?;
            drained(written, bytes.len(), &mut part)
        });
        if let Some(written) = outcome(written, part)? {
            return Poll::Ready(Ok(written));
        }
        ready!(to.poll_write_ready(cx))?;
    }
}

/// Says that the socket is to be waited for where it has carried a part only: a call that would just find that out is
/// spared.
fn drained(carried: usize, most: usize, part: &mut Option<usize>) -> io::Result<usize> {
    if carried > 0 && carried < most {
        *part = Some(carried);
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(carried)
}

/// How much was carried; `None` where the socket has to be waited for.
fn outcome(carried: io::Result<usize>, part: Option<usize>) -> io::Result<Option<usize>> {
    match carried {
        Ok(carried) => Ok(Some(carried)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(part),
        // A signal came.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}
