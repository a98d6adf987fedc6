//! The floor: hyper on both sides, nothing between. One upstream connection for each downstream connection.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Local, listen_on};

pub(super) async fn run(listen: SocketAddr, to: SocketAddr, h2: bool) -> Result<()> {
    let listener = listen_on(listen)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::task::spawn_local(async move {
            // What goes wrong closes the connection, which the load generator reports.
            let _ = if h2 { relay_h2(stream, to).await } else { relay_h1(stream, to).await };
        });
    }
}

async fn connect(to: SocketAddr) -> Result<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

async fn relay_h1(stream: TcpStream, to: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let (sender, upstream) = client1::handshake(connect(to).await?).await?;
    tokio::task::spawn_local(upstream);
    // HTTP/1.1 has one request at a time: the sender is always there when it is wanted.
    let sender = Rc::new(RefCell::new(Some(sender)));
    let service = service_fn(move |request: Request<Incoming>| {
        let home = Rc::clone(&sender);
        async move {
            let taken = home.borrow_mut().take();
            let mut sender = taken.context("two requests at a time")?;
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            *home.borrow_mut() = Some(sender);
            Ok::<Response<Incoming>, anyhow::Error>(response)
        }
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn relay_h2(stream: TcpStream, to: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let (sender, upstream) = client2::handshake(Local, connect(to).await?).await?;
    tokio::task::spawn_local(upstream);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    http2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}
