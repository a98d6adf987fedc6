//! Buffers that are needed for a moment only: they belong to the thread, so that connections need none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// What is read at once, in bytes, where nothing tells of more.
pub const READ: usize = 16 * 1024;
/// What is written is kept for the next one up to this size, in bytes.
const KEPT: usize = 16 * 1024;
/// The size up to which more than one is kept, in bytes: that of heads, of which many are written before the first of
/// them is sent.
const KEPT_MANY: usize = 2 * 1024;
/// So many of them are kept by a thread.
const MAX_MANY: usize = 64;
/// Room for a head as it is usual, in bytes.
const HEAD: usize = 512;

thread_local! {
    static TO_READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static TO_WRITE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
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

/// An empty buffer for a head; one of the thread's own where nobody has it. [`Outbox`](super::Outbox) gives it back.
#[inline]
pub fn to_write() -> Vec<u8> {
    let kept = TO_WRITE.with(|kept| kept.try_borrow_mut().ok().and_then(|mut kept| kept.pop()));
    kept.unwrap_or_else(|| Vec::with_capacity(HEAD))
}

/// Takes it back.
#[inline]
pub(super) fn written(mut buffer: Vec<u8>) {
    TO_WRITE.with(|kept| {
        if let Ok(mut kept) = kept.try_borrow_mut()
            && is_kept(buffer.capacity(), kept.len())
        {
            buffer.clear();
            kept.push(buffer);
        }
    });
}

/// Whether a buffer of that size is kept beside so many others.
const fn is_kept(size: usize, others: usize) -> bool {
    (size <= KEPT && others == 0) || (size <= KEPT_MANY && others < MAX_MANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_keeps_is_bounded() {
        for (size, others, kept) in [
            (KEPT, 0, true),
            (KEPT + 1, 0, false),
            (KEPT, 1, false),
            (KEPT_MANY, 1, true),
            (KEPT_MANY, MAX_MANY, false),
        ] {
            assert_eq!(is_kept(size, others), kept, "{size} {others}");
        }
        let mut held: Vec<_> = (0..MAX_MANY + 9).map(|_| to_write()).collect();
        held.drain(..).for_each(written);
        assert_eq!(TO_WRITE.with_borrow(Vec::len), MAX_MANY);
        assert!(to_write().is_empty());
    }
}
