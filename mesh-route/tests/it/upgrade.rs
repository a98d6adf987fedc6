//! Requests that become another protocol.

use std::sync::Arc;

use http::Response;
use mesh_core::body::Body;
use mesh_core::cluster::ClusterSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_mesh_route::pool::{Pool, TcpConnect, Upgrade, caller_half, join_upgrade};

use crate::support::{Server, cluster, endpoint, send, until};

#[tokio::test]
async fn an_upgrade_passes_through() {
    let upstream = Server::start(|mut request| async move {
        let on = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(on.await.unwrap());
            let mut buf = [0; 4];
            io.read_exact(&mut buf).await.unwrap();
            io.write_all(&buf).await.unwrap();
        });
        Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", request.headers()["upgrade"].clone())
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let pool = Pool::new(TcpConnect::new());
    let cluster = cluster(&[upstream.address], ClusterSettings::default());
    let (through, to) = (pool.clone(), Arc::clone(&cluster));
    let proxy = Server::start(move |mut request| {
        let (pool, cluster) = (through.clone(), Arc::clone(&to));
        async move {
            let caller = caller_half(&mut request).unwrap();
            let mut response = send(&pool, &cluster, request.map(Body::from)).await.unwrap();
            let upstream = Upgrade::take(&mut response).unwrap();
            tokio::spawn(join_upgrade(caller, upstream));
            response
        }
    })
    .await;
    let mut io = TcpStream::connect(proxy.address).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo"), "{head}");
    assert_eq!((endpoint(&cluster, 0).state().active(), pool.connections()), (1, 1));
    io.write_all(b"ping").await.unwrap();
    let mut buf = [0; 4];
    io.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"ping");
    drop(io);
    until(|| endpoint(&cluster, 0).state().active() == 0 && pool.connections() == 0).await;
}
