//! Accepting connections: errors never end it, and a drain loses none that is waiting already.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// How long accepting pauses when the process or the machine is out of something (descriptors, memory).
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop` returns, and hands each connection to `serve`, which spawns what it needs. What waits
/// in the queue by then is accepted still: closing the socket would reset it.
pub(crate) async fn accept<F>(listener: TcpListener, stop: impl Future<Output = ()>, mut serve: F)
where
    F: FnMut(TcpStream, SocketAddr),
{
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.as_mut() => break,
            accepted = listener.accept() => accepted,
        };
        take(accepted, &mut serve).await;
    }
    // Asked of the kernel itself: the runtime may not have heard yet of what has just come in.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        take(stream.map(|s| (s, peer)), &mut serve).await;
    }
}

async fn take<F: FnMut(TcpStream, SocketAddr)>(accepted: io::Result<(TcpStream, SocketAddr)>, serve: &mut F) {
    match accepted {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, %peer, "TCP_NODELAY");
            }
            serve(stream, peer);
        }
        // The peer was gone before we came: nothing to wait for.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::Interrupted
            ) => {}
        Err(error) => {
            tracing::error!(%error, "cannot accept connections now; trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_when_the_drain_begins_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let waiting = std::net::TcpStream::connect(addr).unwrap();
        let mut seen = Vec::new();
        accept(listener, std::future::ready(()), |_, peer| seen.push(peer)).await;
        assert_eq!(seen, [waiting.local_addr().unwrap()]);
        assert!(std::net::TcpStream::connect(addr).is_err());
    }
}
