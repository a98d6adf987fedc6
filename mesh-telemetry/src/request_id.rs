//! `x-request-id`: kept when the caller sent a sane one, made otherwise.
//!
//! ```
//! use http::HeaderMap;
//! use tower_mesh_telemetry::request_id;
//!
//! let mut headers = HeaderMap::new();
//! let made = request_id::ensure(&mut headers, || 7);
//! assert_eq!(headers["x-request-id"], made);
//! assert_eq!(request_id::ensure(&mut headers, || 8), made);
//! ```

use bytes::Bytes;
use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The header.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id that is kept, in bytes; a longer one is replaced.
pub const MAX_REQUEST_ID: usize = 128;

/// How long a new id is, in bytes.
pub(crate) const UUID_LEN: usize = 36;

/// Whether a caller's request id is kept: one to [`MAX_REQUEST_ID`] visible ASCII characters.
pub fn is_sane(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The request's id: the one that it carries, if sane and the only one, else a new one, which is put
/// into the headers. `draw` gives random numbers and is asked twice for a new id.
pub fn ensure(headers: &mut HeaderMap, mut draw: impl FnMut() -> u64) -> HeaderValue {
    ensure_with(headers, || Bytes::from_owner(uuid_text(draw(), draw())))
}

/// [`ensure`], where somebody else makes the text of a new id.
pub(crate) fn ensure_with(headers: &mut HeaderMap, make: impl FnOnce() -> Bytes) -> HeaderValue {
    match headers.entry(REQUEST_ID_HEADER) {
        Entry::Occupied(mut found) => {
            let first = found.get();
            if is_sane(first.as_bytes()) && found.iter().nth(1).is_none() {
                return first.clone();
            }
            let id = value(make());
            // Replaces every value, not only the first.
            found.insert(id.clone());
            id
        }
        Entry::Vacant(place) => place.insert(value(make())).clone(),
    }
}

/// A version 4 UUID (RFC 9562) of two random numbers.
pub fn uuid(high: u64, low: u64) -> HeaderValue {
    value(Bytes::from_owner(uuid_text(high, low)))
}

/// The characters of [`uuid`].
pub(crate) fn uuid_text(high: u64, low: u64) -> [u8; UUID_LEN] {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = crate::trace::hex(high);
    let [q, r, s, t, u, v, w, x, y, z, aa, bb, cc, dd, ee, ff] = crate::trace::hex(low);
    [
        a, b, c, d, e, f, g, h, b'-', i, j, k, l, b'-', m, n, o, p, b'-', q, r, s, t, b'-', u, v, w, x, y, z,
        aa, bb, cc, dd, ee, ff,
    ]
}

fn value(text: Bytes) -> HeaderValue {
    // Hexadecimal digits and dashes are always a header value.
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        assert_eq!(uuid(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            uuid(0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef),
            "01234567-89ab-4def-8123-456789abcdef"
        );
    }

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        let longest = "x".repeat(MAX_REQUEST_ID);
        let too_long = "x".repeat(MAX_REQUEST_ID + 1);
        for (id, kept) in
            [("a", true), (longest.as_str(), true), (too_long.as_str(), false), ("a b", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID_HEADER, HeaderValue::from_str(id).unwrap());
            assert_eq!(ensure(&mut headers, || 1) == id, kept, "{id:?}");
            assert!(is_sane(headers[REQUEST_ID_HEADER].as_bytes()));
        }
        let mut two = HeaderMap::new();
        two.append(REQUEST_ID_HEADER, HeaderValue::from_static("a"));
        two.append(REQUEST_ID_HEADER, HeaderValue::from_static("b"));
        let id = ensure(&mut two, || 1);
        assert_eq!(two.get_all(REQUEST_ID_HEADER).iter().collect::<Vec<_>>(), [&id]);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_a_sane_id_goes_on(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(REQUEST_ID_HEADER, value);
            }
            let id = ensure(&mut headers, || 3);
            prop_assert!(is_sane(id.as_bytes()));
            prop_assert_eq!(&headers[REQUEST_ID_HEADER], &id);
        }
    }
}
