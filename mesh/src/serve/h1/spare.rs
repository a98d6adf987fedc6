//! Room for headers: an answer's is a later request's, of whatever connection. It belongs to the thread, which has many
//! requests on their way at once: what one turn of the event loop brings is read before the first of it is answered.

use std::cell::RefCell;

use http::HeaderMap;

/// Room for more headers is not kept.
const MAX_KEPT: usize = 64;
/// So many rooms are kept by a thread; some 2 KB each as a rule.
const MAX_ROOMS: usize = 64;

thread_local! {
    static HEADERS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map.
pub(super) fn take() -> HeaderMap {
    HEADERS.with(|rooms| rooms.try_borrow_mut().ok().and_then(|mut rooms| rooms.pop())).unwrap_or_default()
}

/// Takes it back, without what is in it.
pub(super) fn give(mut headers: HeaderMap) {
    // First, since nobody knows what goes with the values.
    headers.clear();
    HEADERS.with(|rooms| {
        if let Ok(mut rooms) = rooms.try_borrow_mut()
            && rooms.len() < MAX_ROOMS
            && (1..=MAX_KEPT).contains(&headers.capacity())
        {
            rooms.push(headers);
        }
    });
}
