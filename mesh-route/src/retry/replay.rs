//! A request's body that can be sent again.
//!
//! While the first try streams it, what was read is kept, up to [`MAX_REPLAY_BYTES`]; another try reads what
//! was kept, and then goes on where the one before stopped. One that is larger can be sent again only as
//! long as nothing of it was read.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use mesh_core::body::{Body, BoxError};
use mesh_core::cluster::MAX_REPLAY_BYTES;

/// What makes bodies for the tries of one request.
#[derive(Debug)]
pub(super) struct Replay(Option<Arc<Mutex<Shared>>>);

#[derive(Debug)]
struct Shared {
    rest: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// More was read than is kept, or the caller's body failed.
    lost: bool,
    ended: bool,
    /// The number of the try that reads.
    reader: u32,
}

/// The body of one try.
pub(super) struct ReplayBody {
    shared: Arc<Mutex<Shared>>,
    /// The number of the try that this is.
    reader: u32,
    /// How many of the kept chunks were read.
    at: usize,
    trailers_read: bool,
}

/// A try whose body another try has taken over.
#[derive(Debug)]
struct TakenOver;

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replay {
    /// Takes a request's body. An empty one costs nothing.
    pub(super) fn new(body: Body) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        Self(Some(Arc::new(Mutex::new(Shared {
            rest: body,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            lost: false,
            ended: false,
            reader: 0,
        }))))
    }

    /// The body for the next try; the one before reads no more.
    pub(super) fn next(&self) -> Body {
        let Some(shared) = &self.0 else { return Body::empty() };
        let mut state = lock(shared);
        state.reader += 1;
        let reader = state.reader;
        drop(state);
        Body::new(ReplayBody { shared: Arc::clone(shared), reader, at: 0, trailers_read: false })
    }

    /// Whether another try can send the body from its start.
    pub(super) fn is_possible(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| !lock(shared).lost)
    }
}

impl Shared {
    fn keep(&mut self, chunk: &Bytes) {
        if self.lost {
            return;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(chunk.len());
        // What cannot fit is not begun to be kept.
        let least = self.kept_bytes as u64 + self.rest.size_hint().lower();
        if least > MAX_REPLAY_BYTES as u64 {
            self.lost = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(chunk.clone());
        }
    }
}

impl HttpBody for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        if shared.reader != this.reader {
            return Poll::Ready(Some(Err(TakenOver.into())));
        }
        if let Some(chunk) = shared.kept.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if !shared.ended {
            match ready!(Pin::new(&mut shared.rest).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(chunk) = frame.data_ref() {
                        shared.keep(chunk);
                        this.at = shared.kept.len();
                    } else if let Some(trailers) = frame.trailers_ref() {
                        this.trailers_read = true;
                        shared.trailers = Some(trailers.clone());
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    shared.lost = true;
                    shared.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => shared.ended = true,
            }
        }
        match &shared.trailers {
            Some(trailers) if !this.trailers_read => {
                this.trailers_read = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))))
            }
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        shared.reader == self.reader
            && self.at >= shared.kept.len()
            && (shared.ended || shared.rest.is_end_stream())
            && (self.trailers_read || shared.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let left: u64 = shared.kept.iter().skip(self.at).map(|c| c.len() as u64).sum();
        let rest = if shared.ended { SizeHint::with_exact(0) } else { shared.rest.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left));
        if let Some(upper) = rest.upper().and_then(|u| u.checked_add(left)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("reader", &self.reader)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another try has taken the request's body over")
    }
}

impl std::error::Error for TakenOver {}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    fn chunks(sizes: &[usize]) -> Body {
        let mut frames: Vec<Result<_, BoxError>> =
            sizes.iter().map(|n| Ok(Frame::data(Bytes::from(vec![b'x'; *n])))).collect();
        let mut trailers = HeaderMap::new();
        trailers.insert("t", "1".parse().unwrap());
        frames.push(Ok(Frame::trailers(trailers)));
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_second_try_reads_all_of_it_and_the_first_reads_no_more() {
        let replay = Replay::new(chunks(&[3, 4]));
        let mut first = replay.next();
        first.frame().await.unwrap().unwrap();
        let second = replay.next();
        assert!(first.frame().await.unwrap().is_err());
        let all = second.collect().await.unwrap();
        assert_eq!(all.trailers().unwrap()["t"], "1");
        assert_eq!(all.to_bytes().len(), 7);
        let third = replay.next().collect().await.unwrap();
        assert_eq!((third.trailers().unwrap().len(), third.to_bytes().len()), (1, 7));
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        for (sizes, possible) in [
            (vec![MAX_REPLAY_BYTES], true),
            (vec![MAX_REPLAY_BYTES, 1], false),
            (vec![MAX_REPLAY_BYTES + 1], false),
        ] {
            let replay = Replay::new(chunks(&sizes));
            let sent = replay.next().collect().await.unwrap().to_bytes();
            assert_eq!(sent.len(), sizes.iter().sum::<usize>());
            assert_eq!(replay.is_possible(), possible, "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn a_large_body_of_which_nothing_was_read_can_be_sent_again() {
        let replay = Replay::new(Body::from(
            vec![b'x'; MAX_REPLAY_BYTES * 2].into_iter().map(char::from).collect::<String>(),
        ));
        drop(replay.next());
        assert!(replay.is_possible());
        let again = replay.next();
        assert_eq!(again.size_hint().exact(), Some(2 * MAX_REPLAY_BYTES as u64));
        assert_eq!(again.collect().await.unwrap().to_bytes().len(), 2 * MAX_REPLAY_BYTES);
        assert!(!replay.is_possible());
    }

    #[tokio::test]
    async fn sizes_are_told_and_an_empty_body_stays_empty() {
        let replay = Replay::new(Body::from("abc"));
        let mut body = replay.next();
        assert_eq!(body.size_hint().exact(), Some(3));
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());
        assert_eq!(replay.next().size_hint().exact(), Some(3));
        assert!(Replay::new(Body::empty()).next().is_end_stream());
    }

    #[tokio::test]
    async fn a_body_that_failed_is_not_sent_again() {
        let frames = [Err::<Frame<Bytes>, BoxError>("gone".into())];
        let replay = Replay::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))));
        assert!(replay.next().collect().await.is_err());
        assert!(!replay.is_possible());
    }
}
