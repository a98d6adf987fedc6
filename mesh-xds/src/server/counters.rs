//! What a server counts, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => {
        /// What a server counts. Totals since start, but for `streams`.
        #[derive(Debug, Default)]
        pub struct ServerCounters {
            $( pub(super) $name: AtomicU64, )*
        }

        /// The counts of one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct ServerCounts {
            $( $(#[$doc])* pub $name: u64, )*
        }

        impl ServerCounters {
            /// The counts of now.
            pub fn read(&self) -> ServerCounts {
                ServerCounts { $( $name: self.$name.load(Ordering::Relaxed), )* }
            }
        }
    };
}

counters! {
    /// Open streams.
    streams,
    /// Streams that were opened.
    opened,
    /// Streams that were refused because there were too many.
    refused_streams,
    /// Streams that were refused because nobody vouched for the peer.
    unauthenticated,
    /// Streams that were closed because the peer did not keep to the protocol or to a limit.
    violations,
    /// Requests.
    requests,
    /// Responses.
    responses,
    /// Resources in responses.
    resources,
    /// Removals in responses.
    removals,
    /// Bytes of content in responses.
    bytes,
    /// Responses that were taken.
    acks,
    /// Responses that were refused.
    nacks,
    /// Verdicts on responses that were not the last.
    stale,
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
