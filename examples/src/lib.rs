//! What the examples share: a call over one plain connection. The examples themselves are in `examples/`.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Any error: an example ends with it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Calls `addr` as any program without a mesh would, and reads the whole answer.
///
/// # Errors
/// When the connection fails or ends before the answer.
pub async fn plain_call(addr: SocketAddr, method: Method, path: &str) -> Result<Response<String>, BoxError> {
    let io = TokioIo::new(TcpStream::connect(addr).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr.to_string())
        .body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let text = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
    Ok(Response::from_parts(head, text))
}
