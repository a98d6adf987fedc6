//! Whether a request is tried again: the whole decision, without clock, count or chance.

use http::{HeaderMap, HeaderName, Method, StatusCode};
use mesh_core::failure::{FailureCode, GrpcCode};

use super::policy::{Condition, RetryPolicy};
use crate::pool::TryError;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// What became of one try.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It provably never reached the application.
    Unsent,
    /// The connection broke before any byte of an answer.
    Reset,
    /// No answer came in the time of one try.
    TimedOut,
    /// It failed in a way that another try does not change, such as a limit that is reached.
    Hopeless,
    /// The head of an answer came.
    Answer(StatusCode, &'a HeaderMap),
}

/// What is known of the request besides its method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// How many retries there were.
    pub retries: u32,
    /// Whether its body can be sent again from the start.
    pub replayable: bool,
}

/// Whether it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Once more, if the budget allows it.
    Retry,
    /// No: the outcome is good, or no condition holds.
    Final,
    /// It would be, but all attempts are used up.
    Exhausted,
    /// It would be, but its body was larger than what is kept.
    BodyTooLarge,
}

impl Outcome<'_> {
    /// The outcome that an error means.
    pub fn of(error: &TryError) -> Self {
        let spec = error.failure().spec();
        match error.failure().code() {
            _ if !spec.retry_helps => Self::Hopeless,
            _ if error.is_unsent() => Self::Unsent,
            FailureCode::Timeout => Self::TimedOut,
            _ => Self::Reset,
        }
    }
}

/// Decides whether a request is tried again.
///
/// What provably never reached the application may be repeated for every method. Any other outcome must
/// meet a condition of the policy; and unless somebody wrote the conditions down, the method must be
/// idempotent (RFC 9110, section 9.2.2), or the answer a gRPC status that the policy names. Without written
/// conditions an idempotent request is also repeated when its connection broke, or its try took too long,
/// before any byte of an answer: that is more than Istio's default does, and as safe.
pub fn decide(policy: &RetryPolicy, outcome: Outcome<'_>, method: &Method, context: Context) -> Verdict {
    if !holds(policy, outcome, is_idempotent(method)) {
        Verdict::Final
    } else if context.retries >= policy.most(matches!(outcome, Outcome::Unsent)) {
        Verdict::Exhausted
    } else if !context.replayable {
        Verdict::BodyTooLarge
    } else {
        Verdict::Retry
    }
}

fn holds(policy: &RetryPolicy, outcome: Outcome<'_>, idempotent: bool) -> bool {
    let on = &policy.retry_on;
    let may = policy.explicit || idempotent;
    match outcome {
        Outcome::Unsent => true,
        Outcome::Hopeless => false,
        // An upstream that does not answer counts as one that answers 5xx, as Envoy has it.
        Outcome::Reset | Outcome::TimedOut if policy.explicit => {
            on.has(Condition::Reset) || on.has(Condition::FiveXx) || on.has(Condition::GatewayError)
        }
        Outcome::Reset | Outcome::TimedOut => idempotent,
        Outcome::Answer(status, headers) => {
            let limited = may && on.has(Condition::EnvoyRateLimited);
            let holds = (may && answer(policy, status)) || grpc(policy, headers);
            // The header is looked for only where it could change something.
            (limited || holds) && if headers.contains_key(RATE_LIMITED) { limited } else { holds }
        }
    }
}

const GRPC_CONDITIONS: [Condition; 5] = [
    Condition::Cancelled,
    Condition::DeadlineExceeded,
    Condition::Internal,
    Condition::ResourceExhausted,
    Condition::Unavailable,
];

fn answer(policy: &RetryPolicy, status: StatusCode) -> bool {
    let on = &policy.retry_on;
    (on.has(Condition::FiveXx) && status.is_server_error())
        || (on.has(Condition::GatewayError) && matches!(status.as_u16(), 502..=504))
        || (on.has(Condition::Retriable4xx) && status == StatusCode::CONFLICT)
        || on.has_status(status)
}

/// A call that failed in its headers, before any message.
fn grpc(policy: &RetryPolicy, headers: &HeaderMap) -> bool {
    if !GRPC_CONDITIONS.iter().any(|condition| policy.retry_on.has(*condition)) {
        return false;
    }
    // Hardly any head has it, and to look at each name is less than to look one up.
    if !headers.keys().any(|name| *name == GRPC_STATUS) {
        return false;
    }
    let code = headers.get(GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let condition = match code.map(GrpcCode) {
        Some(GrpcCode::CANCELLED) => Condition::Cancelled,
        Some(GrpcCode::DEADLINE_EXCEEDED) => Condition::DeadlineExceeded,
        Some(GrpcCode::INTERNAL) => Condition::Internal,
        Some(GrpcCode::RESOURCE_EXHAUSTED) => Condition::ResourceExhausted,
        Some(GrpcCode::UNAVAILABLE) => Condition::Unavailable,
        _ => return false,
    };
    policy.retry_on.has(condition)
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

#[cfg(test)]
mod tests {
    use super::super::policy::{MAX_ATTEMPTS, UNSENT_ATTEMPTS};
    use super::*;
    use crate::retry::RetryOn;
    use mesh_core::failure::Failure;
    use proptest::prelude::*;

    const ANEW: Context = Context { retries: 0, replayable: true };

    fn written(list: &str) -> RetryPolicy {
        RetryPolicy { retry_on: RetryOn::parse(list).unwrap(), explicit: true, ..RetryPolicy::default() }
    }

    fn answer<'a>(status: u16, headers: &'a HeaderMap) -> Outcome<'a> {
        Outcome::Answer(StatusCode::from_u16(status).unwrap(), headers)
    }

    #[test]
    fn the_table_of_decisions() {
        use Verdict::{Final, Retry};
        let none = HeaderMap::new();
        let default = RetryPolicy::default();
        let (get, post) = (Method::GET, Method::POST);
        let table = [
            (&default, Outcome::Unsent, &post, Retry),
            (&default, Outcome::Unsent, &get, Retry),
            (&written("503"), Outcome::Unsent, &post, Retry),
            (&default, Outcome::Reset, &get, Retry),
            (&default, Outcome::Reset, &post, Final),
            (&default, Outcome::TimedOut, &get, Retry),
            (&default, Outcome::TimedOut, &post, Final),
            (&default, Outcome::Hopeless, &get, Final),
            (&default, answer(503, &none), &get, Final),
            (&default, answer(200, &none), &get, Final),
            (&written("5xx"), answer(500, &none), &get, Retry),
            (&written("5xx"), answer(500, &none), &post, Retry),
            (&written("5xx"), Outcome::Reset, &post, Retry),
            (&written("gateway-error"), answer(500, &none), &get, Final),
            (&written("gateway-error"), answer(502, &none), &post, Retry),
            (&written("gateway-error"), Outcome::TimedOut, &post, Retry),
            (&written("reset"), Outcome::Reset, &post, Retry),
            (&written("reset"), answer(503, &none), &get, Final),
            (&written("connect-failure"), Outcome::Reset, &get, Final),
            (&written("retriable-4xx"), answer(409, &none), &get, Retry),
            (&written("retriable-4xx"), answer(404, &none), &get, Final),
            (&written("429"), answer(429, &none), &post, Retry),
            (&written("429"), answer(503, &none), &post, Final),
        ];
        for (policy, outcome, method, verdict) in table {
            assert_eq!(decide(policy, outcome, method, ANEW), verdict, "{policy:?} {outcome:?} {method}");
        }
    }

    #[test]
    fn grpc_statuses_in_headers_hold_for_post() {
        for (code, verdict) in [
            ("14", Verdict::Retry),
            ("1", Verdict::Retry),
            ("4", Verdict::Final),
            ("0", Verdict::Final),
            ("x", Verdict::Final),
        ] {
            let headers = HeaderMap::from_iter([(GRPC_STATUS, code.parse().unwrap())]);
            assert_eq!(
                decide(&RetryPolicy::default(), answer(200, &headers), &Method::POST, ANEW),
                verdict,
                "{code}"
            );
        }
    }

    #[test]
    fn a_rate_limited_answer_is_repeated_only_when_asked_for() {
        let headers = HeaderMap::from_iter([(RATE_LIMITED, "true".parse().unwrap())]);
        let on = |list| decide(&written(list), answer(503, &headers), &Method::GET, ANEW);
        assert_eq!((on("5xx"), on("5xx,envoy-ratelimited")), (Verdict::Final, Verdict::Retry));
    }

    #[test]
    fn attempts_and_bodies_are_bounded() {
        let policy = RetryPolicy::default();
        let on = |retries, replayable| {
            decide(&policy, Outcome::Unsent, &Method::GET, Context { retries, replayable })
        };
        assert_eq!(on(UNSENT_ATTEMPTS - 1, true), Verdict::Retry);
        assert_eq!(on(UNSENT_ATTEMPTS, true), Verdict::Exhausted);
        assert_eq!(on(0, false), Verdict::BodyTooLarge);
        let reset =
            |retries| decide(&policy, Outcome::Reset, &Method::GET, Context { retries, replayable: true });
        assert_eq!((reset(1), reset(2)), (Verdict::Retry, Verdict::Exhausted));
        let counted = RetryPolicy { counted: true, ..policy.clone() };
        let context = Context { retries: 2, replayable: true };
        assert_eq!(decide(&counted, Outcome::Unsent, &Method::GET, context), Verdict::Exhausted);
        let endless = RetryPolicy { attempts: u32::MAX, ..policy };
        let context = Context { retries: MAX_ATTEMPTS, replayable: true };
        assert_eq!(decide(&endless, Outcome::Unsent, &Method::GET, context), Verdict::Exhausted);
    }

    #[test]
    fn a_limit_that_is_reached_is_not_tried_again() {
        let unsent = |code| TryError::unsent(Failure::new(code));
        assert!(matches!(Outcome::of(&unsent(FailureCode::Overflow)), Outcome::Hopeless));
        assert!(matches!(Outcome::of(&unsent(FailureCode::UpstreamReset)), Outcome::Unsent));
        assert!(matches!(Outcome::of(&Failure::new(FailureCode::ConnectFailed).into()), Outcome::Unsent));
        assert!(matches!(Outcome::of(&Failure::new(FailureCode::UpstreamReset).into()), Outcome::Reset));
        assert!(matches!(Outcome::of(&Failure::new(FailureCode::Timeout).into()), Outcome::TimedOut));
    }

    proptest! {
        #[test]
        fn without_written_conditions_a_post_that_may_have_arrived_is_never_repeated(status in 100u16..600, list in 0u32..0x10000) {
            let mut on = RetryOn::none();
            for c in [Condition::FiveXx, Condition::GatewayError, Condition::Reset, Condition::Retriable4xx] {
                if list & c as u32 != 0 { on = on.with(c); }
            }
            let policy = RetryPolicy { retry_on: on, ..RetryPolicy::default() };
            let headers = HeaderMap::new();
            for outcome in [answer(status, &headers), Outcome::Reset, Outcome::TimedOut] {
                prop_assert_eq!(decide(&policy, outcome, &Method::POST, ANEW), Verdict::Final);
            }
        }
    }
}
