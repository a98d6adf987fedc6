//! What an outcome means, and what follows from a row of them. Pure.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use mesh_core::cluster::{Outcome, OutlierSettings};
use mesh_core::failure::{Blame, FailureCode};

/// The longest ejection, unless the base time is longer: Envoy's `max_ejection_time`, which Istio leaves
/// at its default.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);

/// What an outcome says about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It works.
    Success,
    /// Nothing: a policy refused, the endpoint is busy, or the caller is to blame.
    Neutral,
    /// It answered an error that is none of a gateway.
    Error,
    /// It answered 502, 503 or 504 and those count as errors, or failures on the way count as such.
    Gateway,
    /// It answered 502, 503 or 504, and those are not among the statuses that count as errors.
    GatewayOnly,
    /// The way to it failed, and that is counted on its own.
    Local,
}

/// What is known when an ejection is decided. The counts include the outcome at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Errors in a row.
    pub consecutive_5xx: u32,
    /// Gateway errors in a row.
    pub consecutive_gateway: u32,
    /// Failures on the way in a row.
    pub consecutive_local: u32,
    /// How many endpoints the cluster has.
    pub endpoints: usize,
    /// How many of them are ejected.
    pub ejected: usize,
    /// How many ejections of this endpoint there were in a row.
    pub ejections: u32,
    /// How long ago its last ejection ended.
    pub healthy_for: Duration,
}

/// An endpoint is to be ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub reason: Reason,
    /// How long.
    pub duration: Duration,
    /// The how-manieth in a row it is, from 1.
    pub number: u32,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// So many errors in a row (`consecutive5xxErrors`).
    Consecutive5xx(u32),
    /// So many gateway errors in a row (`consecutiveGatewayErrors`).
    ConsecutiveGateway(u32),
    /// So many failures on the way in a row (`consecutiveLocalOriginFailures`).
    ConsecutiveLocal(u32),
}

/// What `outcome` says about the endpoint.
pub fn classify(outcome: Outcome, settings: &OutlierSettings) -> Verdict {
    match outcome {
        Outcome::Status(status) => classify_status(status, settings),
        Outcome::Failed(code) if !is_of_the_endpoint(code) => Verdict::Neutral,
        Outcome::Failed(_) if settings.split_local => Verdict::Local,
        Outcome::Failed(_) => Verdict::Gateway,
    }
}

fn classify_status(status: StatusCode, settings: &OutlierSettings) -> Verdict {
    let listed = settings.error_codes.contains(&status.as_u16());
    let error = listed || (settings.error_codes.is_empty() && status.is_server_error());
    match (error, matches!(status.as_u16(), 502..=504)) {
        (true, true) => Verdict::Gateway,
        (true, false) => Verdict::Error,
        (false, true) => Verdict::GatewayOnly,
        (false, false) if status == StatusCode::TOO_MANY_REQUESTS => Verdict::Neutral,
        (false, false) => Verdict::Success,
    }
}

/// Whether a failure that happened on the way says something about the endpoint.
fn is_of_the_endpoint(code: FailureCode) -> bool {
    matches!(
        code,
        FailureCode::ConnectFailed
            | FailureCode::TlsFailed
            | FailureCode::IdentityMismatch
            | FailureCode::UpstreamReset
            | FailureCode::UpstreamProtocol
            | FailureCode::Timeout
    )
}

/// Whether an answer that the endpoint's own sidecar made says nothing about the application: the
/// caller's fault, or a policy doing its work.
pub(super) fn is_refusal(code: FailureCode) -> bool {
    matches!(code.spec().blame, Blame::Caller | Blame::Policy)
}

/// Whether the endpoint is to be ejected, and how long.
pub fn decide(counts: &Counts, settings: &OutlierSettings) -> Option<Ejection> {
    let reason = reason(counts, settings)?;
    if counts.ejected >= allowed(counts.endpoints, settings) {
        return None;
    }
    let healed = match settings.interval.as_millis() {
        0 => u32::MAX,
        interval => u32::try_from(counts.healthy_for.as_millis() / interval).unwrap_or(u32::MAX),
    };
    let number = counts.ejections.saturating_sub(healed).saturating_add(1);
    let longest = MAX_EJECTION.max(settings.base_ejection);
    let duration = settings.base_ejection.checked_mul(number).unwrap_or(longest).min(longest);
    Some(Ejection { reason, duration, number })
}

/// How many of so many endpoints may be ejected: the share, rounded down, but always one.
pub(super) fn allowed(endpoints: usize, settings: &OutlierSettings) -> usize {
    let percent = usize::try_from(settings.max_ejection_percent.min(100)).unwrap_or(100);
    (endpoints.saturating_mul(percent) / 100).max(1)
}

/// Which threshold is reached.
pub(super) fn reason(counts: &Counts, settings: &OutlierSettings) -> Option<Reason> {
    let reached = |count: u32, threshold: u32| threshold > 0 && count >= threshold;
    if reached(counts.consecutive_gateway, settings.consecutive_gateway) {
        Some(Reason::ConsecutiveGateway(counts.consecutive_gateway))
    } else if reached(counts.consecutive_5xx, settings.consecutive_5xx) {
        Some(Reason::Consecutive5xx(counts.consecutive_5xx))
    } else if settings.split_local && reached(counts.consecutive_local, settings.consecutive_local) {
        Some(Reason::ConsecutiveLocal(counts.consecutive_local))
    } else {
        None
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consecutive5xx(n) => write!(f, "{n} errors in a row (consecutive5xxErrors)"),
            Self::ConsecutiveGateway(n) => {
                write!(f, "{n} gateway errors in a row (consecutiveGatewayErrors)")
            }
            Self::ConsecutiveLocal(n) => {
                write!(f, "{n} failures on the way in a row (consecutiveLocalOriginFailures)")
            }
        }
    }
}
