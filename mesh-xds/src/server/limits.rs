//! What a server bears.

use std::time::Duration;

/// What a server bears of each proxy and of all together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// Subscriptions of one stream, all types together. Default: 16,384, which is more than 5,000 services
    /// of one proxy. A stream that asks for more is closed.
    pub subscriptions: usize,
    /// Open streams. Default: 10,000. Further ones are refused with `RESOURCE_EXHAUSTED`.
    pub streams: usize,
    /// Bytes of one request. Default: 1 MiB, which is 1,024 names
    /// as long as they may be, with their versions.
    pub request_bytes: usize,
    /// Bytes of content after which a response takes no more resources. Default: 32 KiB, which is what each of many
    /// proxies that ask for everything at once has on its way at a time, for each type. A larger resource travels
    /// alone.
    pub response_bytes: usize,
    /// Resources and removals of one response. Default: 1,024.
    pub response_items: usize,
    /// How long a stream lasts at least before it is ended, so that proxies spread over replicas again and
    /// show a certificate that is valid now; up to a tenth is added at random. Default: 1 hour.
    pub stream_age: Duration,
    /// How often a silent connection is asked whether it lives. Default: 30 s.
    pub keep_alive: Duration,
    /// How long the answer may take. Default: 10 s.
    pub keep_alive_timeout: Duration,
    /// Requests at the same time on one connection. Default: 8; a proxy has one stream, and one certificate
    /// is made at a time.
    pub connection_requests: u32,
    /// Bytes of the headers of one request. Default: 32 KiB, a token included.
    pub header_bytes: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            subscriptions: 16_384,
            streams: 10_000,
            request_bytes: 1024 * 1024,
            response_bytes: 32 * 1024,
            response_items: 1024,
            stream_age: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            connection_requests: 8,
            header_bytes: 32 * 1024,
        }
    }
}
