//! One function per parser of what peers send or users write.
//!
//! Each takes any bytes and panics when the parser breaks a promise: that it does not panic, and what its
//! target says besides. The fuzzers in `fuzz_targets/` call them on nightly; the test `corpus` calls them
//! with every file of `corpus/` on stable.

mod access;
mod authorize;
mod http1;
mod names;
mod route;
mod tls;
mod xds;
mod yaml;

pub use access::{access_log, exposition, trace};
pub use authorize::authorize;
pub use http1::{request, response};
pub use names::{authority, matcher, path, spiffe};
pub use route::route;
pub use tls::{certificate, client_hello, sni};
pub use xds::{discovery, payload};
pub use yaml::yaml;

/// A target: takes any bytes, panics when a promise is broken.
pub type Target = fn(&[u8]);

/// All targets by the names of their fuzzers and corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("access_log", access_log),
    ("authority", authority),
    ("authorize", authorize),
    ("certificate", certificate),
    ("client_hello", client_hello),
    ("discovery", discovery),
    ("exposition", exposition),
    ("matcher", matcher),
    ("path", path),
    ("payload", payload),
    ("request", request),
    ("response", response),
    ("route", route),
    ("sni", sni),
    ("spiffe", spiffe),
    ("trace", trace),
    ("yaml", yaml),
];

/// The input as text, where it is one.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
