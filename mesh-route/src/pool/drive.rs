//! The one task of an HTTP/2 connection.
//!
//! hyper gives an executor one future for the connection and one or two for each request. They all run in
//! one task here, and not only to save tasks: hyper hands a request to the connection and then asks once
//! more how the connection is. A GOAWAY that another thread has read in between fails the request as if it
//! had been left out, although the peer has it and may serve it; and then it must not be repeated. In one
//! task nothing comes in between, so that a GOAWAY error is proof.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use hyper::rt::Executor;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the futures of a connection. As many as it has streams, which the pool bounds.
#[derive(Debug, Clone)]
pub(super) struct Parts(UnboundedSender<Part>);

/// Runs them.
pub(super) struct Runner {
    incoming: UnboundedReceiver<Part>,
    /// The connection itself, which hyper gives first. It comes after the requests, so that it writes what all of
    /// them have to send.
    connection: Option<Part>,
    began: bool,
    running: FuturesUnordered<Part>,
}

pub(super) fn parts() -> (Parts, Runner) {
    let (send, incoming) = unbounded_channel();
    (Parts(send), Runner { incoming, connection: None, began: false, running: FuturesUnordered::new() })
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Parts {
    fn execute(&self, part: F) {
        // The runner lives as long as its connection; after that nobody needs the part.
        let _ = self.0.send(Box::pin(part));
    }
}

impl Runner {
    /// Lets everything go on that can; ready when nothing is left and nothing can come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut closed = false;
            let mut more = false;
            loop {
                match self.incoming.poll_recv(cx) {
                    Poll::Ready(Some(part)) if !self.began => {
                        self.began = true;
                        self.connection = Some(part);
                        more = true;
                    }
                    Poll::Ready(Some(part)) => {
                        self.running.push(part);
                        more = true;
                    }
                    Poll::Ready(None) => {
                        closed = true;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(cx) {
                more = true;
            }
            if more {
                continue;
            }
            if self.connection.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
                self.connection = None;
                continue;
            }
            if closed && self.running.is_empty() && self.connection.is_none() {
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
    }
}
