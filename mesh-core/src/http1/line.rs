//! Single lines of a head: what they say, and how they are written.

use http::{HeaderName, HeaderValue};

/// Digits alone, as a number.
#[inline]
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut number = 0_u64;
    for digit in text {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}

/// Whether a list has this token, in whatever case.
#[inline]
pub fn lists(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether an `Upgrade` asks for any protocol but HTTP/2 in plaintext. That way to HTTP/2 is no more (RFC 9113, section
/// 3.1), and who offers it still, as Java's client does with a connection's first request, is served over HTTP/1.1.
pub fn asks_for_another(upgrade: &HeaderValue) -> bool {
    let names = upgrade.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    names.into_iter().any(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"h2c"))
}

/// Writes a line with its end.
#[inline]
pub fn write(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What may not come in trailers, which are read when the head has long been acted on (RFC 9110, section 6.5.1).
pub fn may_trail(name: &HeaderName) -> bool {
    use http::header as h;
    let forbidden = [
        h::AUTHORIZATION,
        h::CACHE_CONTROL,
        h::CONNECTION,
        h::CONTENT_ENCODING,
        h::CONTENT_LENGTH,
        h::CONTENT_RANGE,
        h::CONTENT_TYPE,
        h::HOST,
        h::MAX_FORWARDS,
        h::SET_COOKIE,
        h::TE,
        h::TRAILER,
        h::TRANSFER_ENCODING,
        h::UPGRADE,
    ];
    !forbidden.contains(name)
}
