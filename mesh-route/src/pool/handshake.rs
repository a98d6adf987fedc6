//! From bytes to a connection that requests can be sent on; for HTTP/2 hyper's handshake, and the connection's task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::carried;
use super::connect::HttpVersion;
use super::drive;
use super::endpoint::{Http2, Remote};
use super::gather::Gather;
use super::h1::{Conn, Connection, MAX_HEAD_BYTES, MAX_HEADERS};

/// What HTTP/2 counts beside the bytes of a head: 32 for each of the headers that HTTP/1.1 takes and for
/// `:status`. A head that could come over HTTP/1.1 can come carried.
const CARRIED_HEAD_BYTES: u32 = MAX_HEAD_BYTES + (MAX_HEADERS as u32 + 1) * 32;

pub(super) enum Made {
    Http1(Conn),
    /// HTTP/2, or what it carries.
    Http2(Arc<Http2>),
}

/// Begins to speak `version` on `io`.
pub(super) async fn handshake<IO>(io: IO, version: HttpVersion, remote: Remote) -> hyper::Result<Made>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if version == HttpVersion::Http1 {
        return Ok(Made::Http1(Connection::open(io, remote)));
    }
    let (parts, mut runner) = drive::parts();
    let mut client = http2::Builder::new(parts);
    client.timer(TokioTimer::new()).max_header_list_size(MAX_HEAD_BYTES);
    if version == HttpVersion::Carried {
        client
            .max_header_list_size(CARRIED_HEAD_BYTES)
            .initial_stream_window_size(carried::STREAM_WINDOW)
            .initial_connection_window_size(carried::CONNECTION_WINDOW)
            .max_send_buf_size(carried::STREAM_WINDOW as usize);
    }
    let (send, conn) = client.handshake(TokioIo::new(Gather::new(io))).await?;
    let made = Arc::new(Http2::new(send, remote, version));
    // Weak, because the handles to send with end the connection when they are dropped.
    let told = Arc::downgrade(&made);
    let mut conn = Some(conn);
    tokio::spawn(poll_fn(move |cx| {
        if let Some(running) = &mut conn {
            let told = told.upgrade();
            if let Some(told) = &told {
                told.room.listen(cx);
            }
            let done = Pin::new(&mut *running).poll(cx).is_ready();
            if let Some(told) = &told {
                told.room.tell(running.current_max_send_streams());
            }
            if done {
                conn = None;
                told.inspect(|told| told.end());
            }
        }
        runner.poll(cx)
    }));
    Ok(Made::Http2(made))
}
