//! Bytes: the backend, the load, and the bare relay.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::listen_on;
use crate::args::TcpWork;
use crate::load::Found;

/// What a client sends to get bytes without end; anything else is sent back to it.
const STREAM: u8 = b'S';

/// The size of the backend's writes and of the reads of the load.
const CHUNK: usize = 64 << 10;

/// The size of a message that goes there and back.
const MESSAGE: usize = 64;

pub(super) async fn backend(listen: SocketAddr) -> Result<()> {
    let listener = listen_on(listen)?;
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(serve(stream));
        }
    }
}

async fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let Some(part) = buffer.get(..read) else { return };
        if part.first() == Some(&STREAM) {
            let bytes = vec![b'x'; CHUNK];
            while stream.write_all(&bytes).await.is_ok() {}
            return;
        }
        if stream.write_all(part).await.is_err() {
            return;
        }
    }
}

pub(super) async fn relay(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = listen_on(listen)?;
    loop {
        let Ok((mut down, _)) = listener.accept().await else { continue };
        tokio::task::spawn_local(async move {
            let Ok(mut up) = TcpStream::connect(to).await else { return };
            let _ = (down.set_nodelay(true), up.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut down, &mut up, CHUNK, CHUNK).await;
        });
    }
}

/// A connection, through a CONNECT tunnel where one is asked for.
async fn connect(to: SocketAddr, tunnel: Option<&str>) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await.context("to connect")?;
    stream.set_nodelay(true)?;
    if let Some(target) = tunnel {
        stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            // By the byte: what comes behind the head belongs to the tunnel.
            head.push(stream.read_u8().await.context("the tunnel's answer")?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 200"), "no tunnel: {}", String::from_utf8_lossy(&head));
    }
    Ok(stream)
}

pub(super) async fn load(
    to: SocketAddr,
    tunnel: Option<&str>,
    work: TcpWork,
    connections: usize,
    seconds: u32,
) -> Result<Found> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(connect(to, tunnel).await?);
    }
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds.into());
    let times = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for stream in streams {
        match work {
            TcpWork::Bulk => tasks.spawn_local(bulk(stream, end)),
            TcpWork::Pingpong => tasks.spawn_local(pingpong(stream, end, Rc::clone(&times))),
        };
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Found::new(count, seconds, std::mem::take(&mut *times.borrow_mut())))
}

/// Bytes that arrived.
async fn bulk(mut stream: TcpStream, end: Instant) -> Result<u64> {
    stream.write_all(&[STREAM]).await?;
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    while Instant::now() < end {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the stream of bytes ended early");
        bytes += read as u64;
    }
    Ok(bytes)
}

/// Messages that came back.
async fn pingpong(mut stream: TcpStream, end: Instant, times: Rc<RefCell<Vec<u64>>>) -> Result<u64> {
    let (message, mut back) = ([b'm'; MESSAGE], [0; MESSAGE]);
    let mut count = 0;
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(count);
        }
        stream.write_all(&message).await?;
        stream.read_exact(&mut back).await.context("a message that should come back")?;
        ensure!(back == message, "another message came back");
        count += 1;
        times.borrow_mut().push(u64::try_from(sent.elapsed().as_nanos())?);
    }
}
