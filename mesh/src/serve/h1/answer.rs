//! The head of an answer: pure decisions about where its body ends and whether the connection goes on.

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use mesh_core::failure::{FailureCode, REASON_HEADER};
use mesh_core::http1::line::{self, lists, number};
use mesh_core::http1::{Framing, Outbox, RequestHead};

use super::date;

/// What of a request decides how its answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// The request was HEAD: the answer has no body, whatever its head says.
    pub(super) head: bool,
    /// The caller speaks HTTP/1.0: it knows no chunks.
    pub(super) old: bool,
    /// The connection may go on.
    pub(super) keep_alive: bool,
    /// The caller takes trailers.
    pub(super) trailers: bool,
}

impl Asked {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self {
            head: head.method == Method::HEAD,
            old: head.version == Version::HTTP_10,
            keep_alive: head.keep_alive,
            trailers: head.trailers,
        }
    }
}

/// What is known of a body before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// There is none.
    Ended,
    /// So many bytes.
    Known(u64),
    /// It ends where it ends.
    Unknown,
}

impl Size {
    pub(super) fn of(body: &impl http_body::Body) -> Self {
        if body.is_end_stream() {
            return Self::Ended;
        }
        body.size_hint().exact().map_or(Self::Unknown, Self::Known)
    }
}

/// What was decided of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) framing: Framing,
    /// The connection ends with it.
    pub(super) last: bool,
    /// The trailers that may follow.
    pub(super) trailers: Vec<HeaderName>,
}

/// Why an answer cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unwritable(pub(super) &'static str);

/// Writes the head of an answer. `closing` ends the connection with it; `dated` gives it a `Date` where it has none.
///
/// # Errors
/// Its status is informational, or its headers do not say in one way where its body ends. What was written of it by then
/// is to be thrown away.
pub(super) fn write(
    out: &mut Vec<u8>,
    asked: Asked,
    status: StatusCode,
    reason: Option<&[u8]>,
    headers: &HeaderMap,
    size: Size,
    (closing, dated): (bool, bool),
) -> Result<Plan, Unwritable> {
    if status.is_informational() {
        return Err(Unwritable("an informational status is no answer"));
    }
    let bodyless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let has_body = !asked.head && !bodyless;
    status_line(out, asked.old, status, reason);

    let mut last = closing || !asked.keep_alive;
    let mut said: Option<u64> = None;
    let (mut says_keep_alive, mut has_date, mut announces) = (false, false, false);
    for (name, value) in headers {
        match *name {
            CONTENT_LENGTH => {
                // Nobody but who was asked for the head alone is told of a body that does not come.
                if size == Size::Ended && !asked.head {
                    continue;
                }
                let length = number(value.as_bytes()).ok_or(Unwritable("content-length is no number"))?;
                match said {
                    Some(other) if other != length => {
                        return Err(Unwritable("several content-length"));
                    }
                    Some(_) => continue,
                    None => said = Some(length),
                }
                if bodyless {
                    continue;
                }
            }
            TRANSFER_ENCODING => {
                // Which is ours to say.
                if !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Unwritable("a transfer-encoding that is not chunked"));
                }
                continue;
            }
            CONNECTION => {
                last |= lists(value, "close");
                says_keep_alive |= lists(value, "keep-alive");
                if closing || !asked.keep_alive {
                    continue;
                }
            }
            TRAILER => {
                if asked.old || !has_body {
                    continue;
                }
                announces = true;
            }
            DATE => has_date = true,
            _ => {}
        }
        line::write(out, name.as_str().as_bytes(), value.as_bytes());
    }

    let framing = match (said, size) {
        (Some(said), Size::Known(real)) if has_body && said != real => {
            return Err(Unwritable("content-length is not the body's"));
        }
        (Some(length), _) => Framing::Length(length),
        (None, Size::Known(length)) if !bodyless => {
            line::write(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
            Framing::Length(length)
        }
        (None, Size::Ended) if has_body => {
            line::write(out, b"content-length", b"0");
            Framing::None
        }
        (None, Size::Unknown) if has_body && asked.old => Framing::Close,
        (None, Size::Unknown) if has_body => {
            line::write(out, b"transfer-encoding", b"chunked");
            Framing::Chunked
        }
        _ => Framing::None,
    };
    let framing = if has_body { framing } else { Framing::None };
    last |= framing == Framing::Close;
    match (asked.old, last) {
        (false, true) if closing || !asked.keep_alive => line::write(out, b"connection", b"close"),
        (true, true) if closing => line::write(out, b"connection", b"close"),
        (true, false) if !says_keep_alive => line::write(out, b"connection", b"keep-alive"),
        _ => {}
    }
    if dated && !has_date {
        date::write(out);
    }
    out.extend_from_slice(b"\r\n");
    let trailers = if announces && asked.trailers && framing == Framing::Chunked {
        Outbox::announced(headers)
    } else {
        Vec::new()
    };
    Ok(Plan { framing, last, trailers })
}

fn status_line(out: &mut Vec<u8>, old: bool, status: StatusCode, reason: Option<&[u8]>) {
    if !old && status == StatusCode::OK && reason.is_none() {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    // Many readers expect one.
    let usual = status.canonical_reason().unwrap_or("<none>");
    out.extend_from_slice(reason.unwrap_or(usual.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// The whole of the mesh's own answer to what no layer gets to see; the connection ends with it.
pub(super) fn refusal(out: &mut Vec<u8>, code: FailureCode, dated: bool) {
    let spec = code.spec();
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(REASON_HEADER, HeaderValue::from_static(spec.code));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let asked = Asked { head: false, old: false, keep_alive: false, trailers: false };
    let size = Size::Known(spec.body.len() as u64);
    // It says in one way where its body ends.
    let _ = write(out, asked, spec.status, None, &headers, size, (true, dated));
    out.extend_from_slice(spec.body.as_bytes());
}
