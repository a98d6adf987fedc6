//! Buffers that are needed for a moment only: one of each kind a thread, so that connections need none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// What is read at once, in bytes, where nothing tells of more.
pub const READ: usize = 16 * 1024;
/// What is written is kept for the next one up to this size.
const KEPT: usize = 16 * 1024;

thread_local! {
    static TO_READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static TO_WRITE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads up to [`READ`] bytes, and gives them to `take`: none at the end.
pub(super) fn poll_read<T>(
    io: Pin<&mut (impl AsyncRead + ?Sized)>,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    // Taken out, so that an IO that reads from one of our own may do so.
    let mut room = TO_READ.take();
    if room.is_empty() {
        room = vec![0; READ];
    }
    let mut buf = ReadBuf::new(&mut room);
    let read = io.poll_read(cx, &mut buf);
    let taken = read.map_ok(|()| take(buf.filled()));
    TO_READ.set(room);
    Poll::Ready(ready!(taken))
}

/// An empty buffer for a head; the thread's own where nobody has it. [`Outbox`](super::Outbox) gives it back.
#[inline]
pub fn to_write() -> Vec<u8> {
    TO_WRITE.take()
}

/// Takes it back.
#[inline]
pub(super) fn written(mut buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT {
        buffer.clear();
        TO_WRITE.set(buffer);
    }
}
