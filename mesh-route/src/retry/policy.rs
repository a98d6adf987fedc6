//! When a request is tried again: the plain values.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::StatusCode;

/// The longest backoff, as a multiple of the base; Istio's (and Envoy's) default.
pub const MAX_BACKOFF_FACTOR: u32 = 10;
/// The most retries of one request, whatever the policy says.
pub const MAX_ATTEMPTS: u32 = 100;

/// When and how often a request is tried again. The default is Istio's for a route that says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many retries follow the first try at most; 0 is none. Default: 2, and [`UNSENT_ATTEMPTS`] where
    /// nobody was reached.
    pub attempts: u32,
    /// How long one try may take until its response headers. Default: no limit of its own.
    pub per_try_timeout: Option<Duration>,
    /// The conditions. Default: `connect-failure,refused-stream,unavailable,cancelled`.
    pub retry_on: RetryOn,
    /// Whether somebody wrote the number down, so that it holds for tries that reached nobody, too. Default: no.
    pub counted: bool,
    /// Whether somebody wrote the conditions down, so that they hold for every method. Default: no.
    pub explicit: bool,
    /// Whether endpoints that were tried are left out. Default: yes.
    pub ignore_previous_hosts: bool,
    /// The base of the exponential backoff with full jitter. Default: 25 ms.
    pub backoff: Duration,
}

/// One condition of a retry, by Istio's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Condition {
    /// `5xx`: an answer 500-599, or none at all.
    FiveXx = 1,
    /// `gateway-error`: 502, 503, 504, or no answer in time.
    GatewayError = 1 << 1,
    /// `reset`: no answer at all.
    Reset = 1 << 2,
    /// `reset-before-request`: the connection broke before the request was sent.
    ResetBeforeRequest = 1 << 3,
    /// `connect-failure`: no connection could be made.
    ConnectFailure = 1 << 4,
    /// `retriable-4xx`: 409.
    Retriable4xx = 1 << 5,
    /// `refused-stream`: HTTP/2 `REFUSED_STREAM`.
    RefusedStream = 1 << 6,
    /// `retriable-status-codes`: one of the statuses of the list.
    StatusCodes = 1 << 7,
    /// `retriable-headers`: accepted; without a list of headers it never holds.
    Headers = 1 << 8,
    /// `envoy-ratelimited`: the answer carries `x-envoy-ratelimited`.
    EnvoyRateLimited = 1 << 9,
    /// `http3-post-connect-failure`: accepted; HTTP/3 is not spoken.
    Http3PostConnectFailure = 1 << 10,
    /// `cancelled`: gRPC status 1 in the response headers.
    Cancelled = 1 << 11,
    /// `deadline-exceeded`: gRPC status 4 in the response headers.
    DeadlineExceeded = 1 << 12,
    /// `internal`: gRPC status 13 in the response headers.
    Internal = 1 << 13,
    /// `resource-exhausted`: gRPC status 8 in the response headers.
    ResourceExhausted = 1 << 14,
    /// `unavailable`: gRPC status 14 in the response headers.
    Unavailable = 1 << 15,
}

const NAMES: [(&str, Condition); 16] = [
    ("5xx", Condition::FiveXx),
    ("gateway-error", Condition::GatewayError),
    ("reset", Condition::Reset),
    ("reset-before-request", Condition::ResetBeforeRequest),
    ("connect-failure", Condition::ConnectFailure),
    ("retriable-4xx", Condition::Retriable4xx),
    ("refused-stream", Condition::RefusedStream),
    ("retriable-status-codes", Condition::StatusCodes),
    ("retriable-headers", Condition::Headers),
    ("envoy-ratelimited", Condition::EnvoyRateLimited),
    ("http3-post-connect-failure", Condition::Http3PostConnectFailure),
    ("cancelled", Condition::Cancelled),
    ("deadline-exceeded", Condition::DeadlineExceeded),
    ("internal", Condition::Internal),
    ("resource-exhausted", Condition::ResourceExhausted),
    ("unavailable", Condition::Unavailable),
];

/// A set of conditions, as `retryOn` lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryOn {
    bits: u32,
    statuses: Vec<StatusCode>,
}

/// A token of `retryOn` that is neither a condition nor a status code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "retryOn: `{token}` is no retry condition{}; use status codes or some of {names}",
    hint(.nearest), names = Names
)]
pub struct UnknownCondition {
    token: String,
    nearest: Option<&'static str>,
}

struct Names;

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default()
}

/// How many retries there are where no policy is written.
const ATTEMPTS: u32 = 2;

/// How many retries follow tries that reached nobody, where no policy is written: about half a second of waiting on
/// average. That is what it takes at most to hear that a service's only endpoint was replaced; with fewer, a restart
/// of what has one replica fails calls.
pub const UNSENT_ATTEMPTS: u32 = 6;

impl RetryPolicy {
    /// How many retries there are at most: those of a try that provably reached nobody are more where nobody
    /// wrote the number or the conditions down.
    pub fn most(&self, unsent: bool) -> u32 {
        let unwritten = !self.counted && !self.explicit && self.attempts == ATTEMPTS;
        if unsent && unwritten { UNSENT_ATTEMPTS } else { self.attempts.min(MAX_ATTEMPTS) }
    }

    /// No retry at all.
    pub fn off() -> Self {
        Self { attempts: 0, ..Self::default() }
    }

    /// How long to wait before retry number `retry` (from 1): full jitter over `base * (2^retry - 1)`, at
    /// most ten times the base, as Envoy computes it. `draw` is uniform in `0.0..1.0`.
    pub fn backoff(&self, retry: u32, draw: f64) -> Duration {
        let factor = 1u32.checked_shl(retry).map_or(MAX_BACKOFF_FACTOR, |n| (n - 1).min(MAX_BACKOFF_FACTOR));
        let draw = if draw.is_finite() { draw.clamp(0.0, 1.0) } else { 0.0 };
        self.backoff.saturating_mul(factor).min(MAX_BACKOFF).mul_f64(draw)
    }
}

/// No wait between two tries is longer, whatever the policy says.
const MAX_BACKOFF: Duration = Duration::from_secs(3600);

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: ATTEMPTS,
            per_try_timeout: None,
            retry_on: RetryOn::default(),
            counted: false,
            explicit: false,
            ignore_previous_hosts: true,
            backoff: Duration::from_millis(25),
        }
    }
}

impl RetryOn {
    /// No condition.
    pub const fn none() -> Self {
        Self { bits: 0, statuses: Vec::new() }
    }

    /// Reads a comma-separated list: conditions by Istio's names, and status codes, which imply
    /// `retriable-status-codes`. Spaces and empty places are ignored.
    ///
    /// # Errors
    /// A token that is neither, with the nearest known one.
    pub fn parse(list: &str) -> Result<Self, UnknownCondition> {
        let mut on = Self::none();
        for token in list.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            if let Some((_, condition)) = NAMES.iter().find(|(name, _)| *name == token) {
                on.bits |= *condition as u32;
            } else if let Some(status) = status(token) {
                on.bits |= Condition::StatusCodes as u32;
                on.statuses.push(status);
            } else {
                return Err(UnknownCondition { token: token.to_owned(), nearest: nearest(token) });
            }
        }
        Ok(on)
    }

    /// Adds a condition.
    #[must_use]
    pub fn with(mut self, condition: Condition) -> Self {
        self.bits |= condition as u32;
        self
    }

    /// Whether the condition is in the list.
    pub fn has(&self, condition: Condition) -> bool {
        self.bits & condition as u32 != 0
    }

    /// Whether `status` is one of the listed codes.
    pub fn has_status(&self, status: StatusCode) -> bool {
        self.has(Condition::StatusCodes) && self.statuses.contains(&status)
    }
}

impl Default for RetryOn {
    fn default() -> Self {
        Self::none()
            .with(Condition::ConnectFailure)
            .with(Condition::RefusedStream)
            .with(Condition::Unavailable)
            .with(Condition::Cancelled)
    }
}

impl FromStr for RetryOn {
    type Err = UnknownCondition;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        Self::parse(list)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, _)) in NAMES.iter().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Three digits, 100 to 599: what an answer can have.
fn status(token: &str) -> Option<StatusCode> {
    let status = StatusCode::from_bytes(token.as_bytes()).ok()?;
    (status.as_u16() < 600).then_some(status)
}

/// The condition that shares the longest beginning with `token`, when that is more than a letter or two.
fn nearest(token: &str) -> Option<&'static str> {
    let common = |name: &str| name.bytes().zip(token.bytes()).take_while(|(a, b)| a == b).count();
    NAMES.iter().map(|(name, _)| *name).max_by_key(|name| common(name)).filter(|name| common(name) >= 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_is_read() {
        let on = RetryOn::parse("5xx, reset,,503").unwrap();
        assert!(on.has(Condition::FiveXx) && on.has(Condition::Reset) && on.has(Condition::StatusCodes));
        assert!(on.has_status(StatusCode::SERVICE_UNAVAILABLE) && !on.has_status(StatusCode::BAD_GATEWAY));
        assert!(!on.has(Condition::ConnectFailure));
        let istio = "connect-failure,refused-stream,unavailable,cancelled";
        assert_eq!(RetryOn::parse(istio).unwrap(), RetryOn::default());
        for (name, condition) in NAMES {
            assert!(RetryOn::parse(name).unwrap().has(condition));
        }
    }

    #[test]
    fn an_unknown_token_is_named() {
        let error = RetryOn::parse("5xx,conect-failure").unwrap_err().to_string();
        assert!(error.contains("`conect-failure` is no retry condition"), "{error}");
        assert!(RetryOn::parse("connect_failure").unwrap_err().to_string().contains("`connect-failure`?"));
        for bad in ["99", "600", "1000", "5XX"] {
            assert!(RetryOn::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_backoff_grows_to_ten_times_its_base() {
        let policy = RetryPolicy::default();
        let ms: Vec<_> = (0..8).map(|n| policy.backoff(n, 1.0).as_millis()).collect();
        assert_eq!(ms, [0, 25, 75, 175, 250, 250, 250, 250]);
        assert_eq!(policy.backoff(3, 0.0), Duration::ZERO);
        assert_eq!(policy.backoff(u32::MAX, f64::NAN), Duration::ZERO);
        let long = RetryPolicy { backoff: Duration::MAX, ..policy };
        assert_eq!(long.backoff(u32::MAX, 1.0), MAX_BACKOFF);
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(list in "\\PC{0,60}") {
            let _ = RetryOn::parse(&list);
        }
    }
}
