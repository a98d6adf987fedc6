//! HTTP/1.1 for API servers, probes and people: bounded, and one answer at a time.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::drain::Draining;

/// The largest headers of a request, in bytes.
pub const MAX_HEADERS: usize = 16 * 1024;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// JSON.
pub const JSON: &str = "application/json";

/// An answer.
pub type Page = Response<Full<Bytes>>;

/// A page with a text.
pub fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What is said to a method that a page does not know.
pub fn wrong_method(allowed: &Method) -> Page {
    let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("use {allowed}\n"));
    if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// The whole body of a request.
///
/// # Errors
/// The answer to give instead: 413 when it has more than `most` bytes, 408 when it takes longer than
/// [`BODY_TIMEOUT`], 400 when it breaks off.
pub async fn whole(request: Request<Incoming>, most: usize) -> Result<Bytes, Page> {
    let body = Limited::new(request.into_body(), most).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(page(StatusCode::PAYLOAD_TOO_LARGE, TEXT, format!("the body has more than {most} bytes\n")))
        }
        Ok(Err(_)) => Err(page(StatusCode::BAD_REQUEST, TEXT, "the body broke off\n")),
        Err(_) => Err(page(StatusCode::REQUEST_TIMEOUT, TEXT, "the body took too long\n")),
    }
}

/// Serves a connection until its peer closes it, says nothing for `idle`, or the drain begins (then it ends
/// with the answer that is being made).
pub async fn serve_connection<IO, F, O>(io: IO, idle: Duration, mut drain: Draining, answer: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> O,
    O: Future<Output = Page>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // From the end of an answer to the end of the next request's headers.
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::super::drain::Drain;
    use super::*;

    /// What is answered to a body that is announced with `length` bytes, of which `sent` are sent; and when.
    async fn answer(length: usize, sent: &str) -> (String, Duration) {
        let (mut near, far) = duplex(64 * 1024);
        let (drain, begun) = (Drain::new(), Instant::now());
        let served = serve_connection(far, BODY_TIMEOUT * 10, drain.handle(), |request| async {
            whole(request, 8).await.map_or_else(|answer| answer, |body| page(StatusCode::OK, TEXT, body))
        });
        let ask = async {
            let head = format!("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            near.write_all(format!("{head}{sent}").as_bytes()).await.unwrap();
            let mut text = String::new();
            near.read_to_string(&mut text).await.unwrap();
            text.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        let (status, ()) = tokio::join!(ask, served);
        (status, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_its_size_and_its_time() {
        assert_eq!(answer(8, "12345678").await, ("200".to_owned(), Duration::ZERO));
        assert_eq!(answer(9, "123456789").await, ("413".to_owned(), Duration::ZERO));
        let (status, took) = answer(8, "1234567").await;
        assert_eq!(status, "408");
        assert!(took >= BODY_TIMEOUT && took < BODY_TIMEOUT + Duration::from_secs(1), "{took:?}");
    }
}
