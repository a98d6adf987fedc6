//! The `Date` of answers, which is made once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::http1::line;

thread_local! {
    /// A second since the epoch, and its name.
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Writes the line.
pub(super) fn write(out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(second, name)| {
        if *second != now || name.is_empty() {
            *name = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            *second = now;
        }
        line::write(out, b"date", name.as_bytes());
    });
}
