//! The HTTP/1.1 backend. It understands just enough to never be what limits a measurement.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::listen_on;

/// The bytes that an answer's body has.
const BODY: usize = 100;

pub(super) async fn run(listen: &[SocketAddr]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (n, addr) in listen.iter().enumerate() {
        let listener = listen_on(*addr)?;
        tasks.spawn_local(serve(listener, answer(n + 1)));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// The whole answer of a version, which is told by a header and the body.
fn answer(version: usize) -> &'static [u8] {
    let mut body = format!("v{version} ");
    body.extend(std::iter::repeat_n('x', BODY.saturating_sub(body.len() + 1)));
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nx-version: v{version}\r\n\r\n{body}\n",
        body.len() + 1
    );
    // One for each listener, for as long as the process lives.
    text.leak().as_bytes()
}

async fn serve(listener: TcpListener, answer: &'static [u8]) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(connection(stream, answer));
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// Answers each blank line: requests have no bodies here.
async fn connection(mut stream: TcpStream, answer: &'static [u8]) {
    let mut buffer = Vec::with_capacity(4096);
    let mut out = Vec::new();
    loop {
        match stream.read_buf(&mut buffer).await {
            Ok(1..) => {}
            _ => return,
        }
        let mut begin = 0;
        while let Some(rest) = buffer.get(begin..)
            && let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n")
        {
            begin += end + 4;
            out.extend_from_slice(answer);
        }
        buffer.drain(..begin);
        if !out.is_empty() {
            if stream.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
    }
}
