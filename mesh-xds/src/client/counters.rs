//! What a client counts, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => {
        /// What a client counts. Totals since start.
        #[derive(Debug, Default)]
        pub struct ClientCounters {
            $( pub(super) $name: AtomicU64, )*
        }

        /// The counts of one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct ClientCounts {
            $( $(#[$doc])* pub $name: u64, )*
        }

        impl ClientCounters {
            /// The counts of now.
            pub fn read(&self) -> ClientCounts {
                ClientCounts { $( $name: self.$name.load(Ordering::Relaxed), )* }
            }
        }
    };
}

counters! {
    /// Streams that were opened.
    connected,
    /// Connections that could not be made, and streams that could not be opened.
    connect_failures,
    /// Responses.
    responses,
    /// Resources in responses.
    resources,
    /// Removals in responses.
    removals,
    /// Responses of which something was refused.
    nacks,
    /// Names that were let go of because they were not used, or named nothing.
    forgotten,
    /// First calls that got no answer in time.
    timed_out,
}

pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
