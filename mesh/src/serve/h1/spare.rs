//! Room for headers: an answer's is the next request's, of whatever connection. One a thread.

use std::cell::RefCell;

use http::HeaderMap;

/// Room for more headers is not kept.
const MAX_KEPT: usize = 64;

thread_local! {
    static HEADERS: RefCell<Option<HeaderMap>> = const { RefCell::new(None) };
}

/// An empty map.
pub(super) fn take() -> HeaderMap {
    HEADERS.take().unwrap_or_default()
}

/// Takes it back, without what is in it.
pub(super) fn give(mut headers: HeaderMap) {
    if headers.capacity() <= MAX_KEPT {
        headers.clear();
        HEADERS.set(Some(headers));
    }
}
