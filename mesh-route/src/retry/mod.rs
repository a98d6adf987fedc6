//! Tries a request again where that is safe and helps.

mod policy;

pub use policy::{Condition, MAX_ATTEMPTS, MAX_BACKOFF_FACTOR, RetryOn, RetryPolicy, UnknownCondition};
