//! Peers that do not speak HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::ports;

/// Counts of a TCP server.
#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// A TCP server that sends back each byte that it gets, after a banner if it has one (a server that speaks
/// first, as MySQL and SMTP do). Ends with its handle.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl EchoServer {
    /// An echo server on a free port.
    pub async fn start() -> Self {
        Self::with_banner(ports::free_addr(), "").await
    }

    /// An echo server that first says `banner` on each connection.
    pub async fn banner(banner: &str) -> Self {
        Self::with_banner(ports::free_addr(), banner).await
    }

    /// An echo server on that address; an empty banner means that it waits for the client.
    pub async fn with_banner(addr: SocketAddr, banner: &str) -> Self {
        let listener = ports::listen(addr).await;
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(accept(listener, Arc::clone(&counts), banner.into()));
        Self { addr, counts, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, counts: Arc<Counts>, banner: Arc<str>) {
    // Connections live in the set, so that they end with the server.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                let open = Open::new(&counts);
                let banner = Arc::clone(&banner);
                connections.spawn(async move {
                    let _open = open;
                    // A peer that goes away is not this server's concern.
                    let _ = echo(stream, &banner).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn echo(mut stream: TcpStream, banner: &str) -> std::io::Result<()> {
    stream.write_all(banner.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Sends `message` and reads as many bytes back.
///
/// # Errors
/// When the stream ends or fails first.
pub async fn round_trip<S>(stream: &mut S, message: &[u8]) -> std::io::Result<Vec<u8>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(message).await?;
    stream.flush().await?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn speaks_first_then_echoes_then_ends() {
        let server = EchoServer::banner("hello\n").await;
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        let mut banner = [0; 6];
        stream.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"hello\n");
        assert_eq!(round_trip(&mut stream, b"ping").await.unwrap(), b"ping");
        assert_eq!((server.accepted(), server.open()), (1, 1));
        drop(server);
        assert_eq!(stream.read(&mut banner).await.unwrap_or(0), 0);
    }
}
