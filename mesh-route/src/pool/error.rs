//! What can go wrong with one try.

use std::error::Error as StdError;
use std::fmt;

use mesh_core::body::BoxError;
use mesh_core::cluster::EndpointAddress;
use mesh_core::failure::{Failure, FailureCode};

use super::h1;

const CALLERS_BODY: &str = "the request's body ended early on the way to";
const NO_HTTP: &str = "no valid HTTP from";
const BROKE: &str = "the connection broke to";

/// One try that failed, and whether the request provably never reached the application.
///
/// [`Failure::of`] finds the failure in it, which carries the same answer in [`Failure::is_unsent`]: layers
/// between the pool and whoever retries may turn one into the other.
#[derive(Debug, Clone)]
pub struct TryError {
    failure: Failure,
    unsent: bool,
}

impl TryError {
    /// A try that may have reached the application.
    pub fn sent(failure: Failure) -> Self {
        Self { failure: failure.unsent(false), unsent: false }
    }

    /// A try that provably never reached the application, so that any method may be repeated.
    pub fn unsent(failure: Failure) -> Self {
        Self { failure: failure.unsent(true), unsent: true }
    }

    /// Why it failed.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Whether the request provably never reached the application: it was not sent at all, or the other
    /// side said that it did not process it.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Reads any error: a `TryError` among its causes, else what the failure table says of its failure.
    pub fn of(error: BoxError) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
        while let Some(e) = cause {
            if let Some(found) = e.downcast_ref::<Self>() {
                return found.clone();
            }
            cause = e.source();
        }
        let failure = Failure::of(error);
        Self { unsent: failure.is_unsent(), failure }
    }

    /// What hyper's error means for a request that was handed to a connection.
    pub(super) fn of_exchange(error: hyper::Error, address: &EndpointAddress) -> Self {
        let h2 = cause::<h2::Error>(&error);
        if let Some(e) = h2 {
            let refused = e.is_reset() && e.is_remote() && e.reason() == Some(h2::Reason::REFUSED_STREAM);
            // A stream fails with the peer's GOAWAY only when the peer says that it did not process it;
            // those that it took fail with the end of the connection. (See `drive` for what it takes.)
            let unprocessed = e.is_go_away() && e.is_remote();
            if refused || unprocessed {
                let why = if refused { "refused the stream" } else { "is going away" };
                return Self::unsent(
                    Failure::new(FailureCode::UpstreamReset)
                        .detail(format!("{address} {why} and did not process the request"))
                        .source(error),
                );
            }
        }
        Self::sent(of_body(error, address))
    }

    pub(super) fn handed_back(error: Option<hyper::Error>, address: &EndpointAddress) -> Self {
        let failure = Failure::new(FailureCode::UpstreamReset)
            .detail(format!("{address} closed each connection before the request was sent"));
        Self::unsent(match error {
            Some(error) => failure.source(error),
            None => failure,
        })
    }
}

/// What the end of an HTTP/1.1 exchange means that was begun.
pub(super) fn of_http1(error: h1::Error, address: &EndpointAddress) -> Failure {
    if let Some(failure) = cause::<Failure>(&error) {
        return failure.clone();
    }
    let (code, what) = match error {
        h1::Error::Body(_) => (FailureCode::DownstreamClosed, CALLERS_BODY),
        h1::Error::Malformed(_) => (FailureCode::UpstreamProtocol, NO_HTTP),
        h1::Error::Ended | h1::Error::Io(_) => (FailureCode::UpstreamReset, BROKE),
    };
    Failure::new(code).detail(format!("{what} {address}")).source(error)
}

/// What hyper's error means once bytes have flown.
pub(super) fn of_body(error: hyper::Error, address: &EndpointAddress) -> Failure {
    if let Some(failure) = cause::<Failure>(&error) {
        return failure.clone();
    }
    let local_h2 = cause::<h2::Error>(&error).is_some_and(|e| e.is_library() && e.reason().is_some());
    // Hyper tells by text alone that its own task was dropped, which is nobody's body.
    let callers_body =
        error.is_user() && error.source().is_some() && !error.to_string().starts_with("dispatch");
    let (code, what) = if callers_body {
        (FailureCode::DownstreamClosed, CALLERS_BODY)
    } else if error.is_parse() || local_h2 {
        (FailureCode::UpstreamProtocol, NO_HTTP)
    } else {
        (FailureCode::UpstreamReset, BROKE)
    };
    Failure::new(code).detail(format!("{what} {address}")).source(error)
}

fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref() {
            return Some(found);
        }
        next = e.source();
    }
    None
}

impl From<TryError> for Failure {
    fn from(error: TryError) -> Self {
        error.failure
    }
}

impl From<Failure> for TryError {
    fn from(failure: Failure) -> Self {
        Self { unsent: failure.is_unsent(), failure }
    }
}

impl fmt::Display for TryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl StdError for TryError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.failure)
    }
}
