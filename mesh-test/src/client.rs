//! One connection and the calls on it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The longest that a call, its body included, or a connection attempt may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive.
    #[default]
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
}

/// Why a call has no answer.
#[derive(Debug, Clone)]
pub struct CallError {
    text: String,
    unsent: bool,
    closed: bool,
}

impl CallError {
    fn new(what: &str, error: &dyn std::error::Error) -> Self {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self { text, unsent: false, closed: false }
    }

    fn late(what: &str) -> Self {
        Self { text: format!("{what}: nothing within {PATIENCE:?}"), unsent: false, closed: false }
    }

    /// Whether the server provably never took the request: the connection had ended before a byte of it was
    /// written, or the server said so (GOAWAY without an error, REFUSED_STREAM). Any client may send such a
    /// request again.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Whether the connection ended without a byte of an answer, whatever the server did with the request.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CallError {}

/// A request to send.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    host: String,
    headers: HeaderMap,
    body: Bytes,
    absolute: bool,
}

impl Call {
    /// A call with that method to that host (`Host` or `:authority`) and path.
    pub fn new(method: Method, host: &str, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            host: host.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            absolute: false,
        }
    }

    /// A GET.
    pub fn get(host: &str, path: &str) -> Self {
        Self::new(Method::GET, host, path)
    }

    /// A POST with a body.
    pub fn post(host: &str, path: &str, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, host, path).body(body)
    }

    /// One more header.
    ///
    /// # Panics
    /// When name or value is none.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap_or_else(|e| panic!("header name {name:?}: {e}"));
        let value: HeaderValue = value.parse().unwrap_or_else(|e| panic!("header value {value:?}: {e}"));
        self.headers.append(name, value);
        self
    }

    /// The body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Over HTTP/1.1, writes the request line in absolute form (`GET http://HOST/PATH`), as clients of an
    /// HTTP proxy do.
    #[must_use]
    pub fn absolute(mut self) -> Self {
        self.absolute = true;
        self
    }

    fn request(&self, protocol: Protocol) -> Request<Full<Bytes>> {
        let uri = match protocol {
            Protocol::H1 if !self.absolute => self.path.clone(),
            Protocol::H1 | Protocol::H2 => format!("http://{}{}", self.host, self.path),
        };
        let uri: Uri = uri.parse().unwrap_or_else(|e| panic!("{uri:?} is no URI: {e}"));
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        if protocol == Protocol::H1 && !self.headers.contains_key(header::HOST) {
            let host = self.host.parse().unwrap_or_else(|e| panic!("host {:?}: {e}", self.host));
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The HTTP version.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers; empty when there were none.
    pub trailers: HeaderMap,
}

impl Reply {
    /// The first value of a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The backend that answered (`x-served-by`); none when it was not a [`Backend`](crate::backend::Backend).
    pub fn served_by(&self) -> Option<&str> {
        self.header("x-served-by")
    }

    /// Why the mesh answered in the application's place (`x-mesh-reason`).
    pub fn reason(&self) -> Option<&str> {
        self.header("x-mesh-reason")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What `/echo` of a [`Backend`](crate::backend::Backend) saw.
    ///
    /// # Panics
    /// When the answer is not one of `/echo`.
    pub fn echo(&self) -> crate::backend::Echo {
        crate::backend::Echo::parse(&self.body)
    }
}

#[derive(Debug)]
enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

/// One client connection. It never reconnects: what happens to it is what the test wants to see.
#[derive(Debug)]
pub struct Conn {
    sender: Sender,
    task: JoinHandle<()>,
}

impl Conn {
    /// Connects to an address.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn open(addr: SocketAddr, protocol: Protocol) -> Result<Self, CallError> {
        Self::over(connect(addr).await?, protocol).await
    }

    /// Connects to a proxy, asks it with CONNECT for a tunnel to `target` (`HOST:PORT`), and speaks
    /// `protocol` inside.
    ///
    /// # Errors
    /// When the connection fails or the proxy answers with anything but 2xx.
    pub async fn tunnel(proxy: SocketAddr, target: &str, protocol: Protocol) -> Result<Self, CallError> {
        Self::over(connect_tunnel(proxy, target).await?, protocol).await
    }

    /// Speaks HTTP over a stream, for example one of [`tls::connect`](crate::tls::connect).
    ///
    /// # Errors
    /// When the handshake of the protocol fails.
    pub async fn over<S>(stream: S, protocol: Protocol) -> Result<Self, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let failed = |e: hyper::Error| CallError::new("HTTP handshake", &e);
        // How the connection ends is told to the calls on it; the driver has nothing to add.
        Ok(match protocol {
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                let task = tokio::spawn(async move { drop(connection.with_upgrades().await) });
                Self { sender: Sender::H1(sender), task }
            }
            Protocol::H2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.map_err(failed)?;
                let task = tokio::spawn(async move { drop(connection.await) });
                Self { sender: Sender::H2(sender), task }
            }
        })
    }

    /// The protocol it speaks.
    pub fn protocol(&self) -> Protocol {
        match self.sender {
            Sender::H1(_) => Protocol::H1,
            Sender::H2(_) => Protocol::H2,
        }
    }

    /// Whether the connection is known to have ended, or to end after what is in flight.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }

    /// Waits until another call may be sent on it; `false` when there can be none (the server closed it, or
    /// announced that it will).
    pub async fn ready(&mut self) -> bool {
        let ready = async {
            match &mut self.sender {
                Sender::H1(sender) => sender.ready().await.is_ok(),
                Sender::H2(sender) => sender.ready().await.is_ok(),
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false)
    }

    /// Sends a call and reads the whole answer.
    ///
    /// # Errors
    /// When there is no whole answer within [`PATIENCE`].
    pub async fn send(&mut self, call: &Call) -> Result<Reply, CallError> {
        let exchange = async {
            let response = self.start(call).await?;
            read(response).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(CallError::late("the call")))
    }

    /// Sends a call and gives the answer as soon as its head is there; the body is the caller's to read.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn start(&mut self, call: &Call) -> Result<Response<Incoming>, CallError> {
        let request = call.request(self.protocol());
        if !self.ready().await {
            let text = "the connection had ended before the call".to_owned();
            return Err(CallError { text, unsent: true, closed: true });
        }
        let sent = match &mut self.sender {
            Sender::H1(sender) => sender.try_send_request(request).await,
            Sender::H2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(unanswered)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn unanswered(mut error: TrySendError<Request<Full<Bytes>>>) -> CallError {
    let handed_back = error.take_message().is_some();
    let error = error.into_error();
    let not_processed = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|h2| {
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let leaving = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            h2.is_remote() && (refused || leaving)
        });
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let closed = error.is_incomplete_message() || error.is_closed() || source.is_some();
    CallError { unsent: handed_back || not_processed, closed, ..CallError::new("no answer", &error) }
}

async fn read(response: Response<Incoming>) -> Result<Reply, CallError> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|e| CallError::new("the answer's body", &e))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Reply {
        status: head.status.as_u16(),
        version: head.version,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    })
}

/// Connects to an address.
///
/// # Errors
/// When the connection fails or takes longer than [`PATIENCE`].
pub async fn connect(addr: SocketAddr) -> Result<TcpStream, CallError> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(CallError::new(&format!("connection to {addr}"), &error)),
        Err(_) => Err(CallError::late(&format!("connection to {addr}"))),
    }
}

/// Asks a proxy with CONNECT for a tunnel to `target` (`HOST:PORT`) and gives the bytes of the tunnel.
///
/// # Errors
/// When the connection fails or the proxy answers with anything but 2xx.
pub async fn connect_tunnel(proxy: SocketAddr, target: &str) -> Result<TokioIo<Upgraded>, CallError> {
    let mut conn = Conn::open(proxy, Protocol::H1).await?;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = target.parse().unwrap_or_else(|e| panic!("{target:?} is no HOST:PORT: {e}"));
    let host = target.parse().unwrap_or_else(|e| panic!("{target:?} is no HOST:PORT: {e}"));
    request.headers_mut().insert(header::HOST, host);
    let (_, stream) = conn.upgrade_with(request, StatusCode::is_success).await?;
    Ok(stream)
}

/// Asks for a change of protocol (`connection: upgrade`) with a GET, and gives the head of the 101 and the
/// stream that follows.
///
/// # Errors
/// When the connection fails or the answer is not 101.
pub async fn upgrade(
    addr: SocketAddr,
    host: &str,
    path: &str,
    protocol: &str,
) -> Result<(Reply, TokioIo<Upgraded>), CallError> {
    let mut conn = Conn::open(addr, Protocol::H1).await?;
    let call = Call::get(host, path).header("connection", "upgrade").header("upgrade", protocol);
    let request = call.request(Protocol::H1);
    conn.upgrade_with(request, |status| *status == StatusCode::SWITCHING_PROTOCOLS).await
}

impl Conn {
    async fn upgrade_with(
        &mut self,
        request: Request<Full<Bytes>>,
        wanted: impl Fn(&StatusCode) -> bool,
    ) -> Result<(Reply, TokioIo<Upgraded>), CallError> {
        let exchange = async {
            let Sender::H1(sender) = &mut self.sender else {
                let text = "an upgrade needs HTTP/1.1".to_owned();
                return Err(CallError { text, unsent: true, closed: false });
            };
            let mut response = sender.try_send_request(request).await.map_err(unanswered)?;
            if !wanted(&response.status()) {
                let reply = read(response).await?;
                let reason = reply.reason().unwrap_or("none").to_owned();
                let text = format!("answered {} (x-mesh-reason: {reason}): {}", reply.status, reply.text());
                return Err(CallError { text, unsent: false, closed: false });
            }
            let reply = Reply {
                status: response.status().as_u16(),
                version: response.version(),
                headers: response.headers().clone(),
                body: Bytes::new(),
                trailers: HeaderMap::new(),
            };
            let upgraded =
                hyper::upgrade::on(&mut response).await.map_err(|e| CallError::new("the upgrade", &e))?;
            Ok((reply, TokioIo::new(upgraded)))
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(CallError::late("the upgrade")))
    }
}

/// One call on a connection of its own.
///
/// # Errors
/// When there is no whole answer.
pub async fn send(addr: SocketAddr, call: &Call) -> Result<Reply, CallError> {
    Conn::open(addr, Protocol::H1).await?.send(call).await
}

/// One GET over HTTP/1.1 on a connection of its own.
///
/// # Errors
/// When there is no whole answer.
pub async fn get(addr: SocketAddr, host: &str, path: &str) -> Result<Reply, CallError> {
    send(addr, &Call::get(host, path)).await
}

/// One GET over HTTP/2 with prior knowledge on a connection of its own.
///
/// # Errors
/// When there is no whole answer.
pub async fn get_h2(addr: SocketAddr, host: &str, path: &str) -> Result<Reply, CallError> {
    Conn::open(addr, Protocol::H2).await?.send(&Call::get(host, path)).await
}

/// One GET through a CONNECT tunnel to `host` (`HOST:PORT`) on a connection of its own.
///
/// # Errors
/// When there is no tunnel or no whole answer.
pub async fn get_over_connect(
    proxy: SocketAddr,
    host: &str,
    path: &str,
    protocol: Protocol,
) -> Result<Reply, CallError> {
    Conn::tunnel(proxy, host, protocol).await?.send(&Call::get(host, path)).await
}
