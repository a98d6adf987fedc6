//! From a `DestinationRule` to limits.

use mesh_core::cluster::Limits;
use mesh_core::resource::destination_rule::ConnectionPoolSettings;

/// The limits that a `connectionPool` block sets; what it leaves out, or sets to 0, is practically
/// unlimited, as in Istio.
///
/// ```
/// use mesh_core::resource::destination_rule::ConnectionPoolSettings;
/// use tower_mesh_policy::breaker::limits;
///
/// let pool: ConnectionPoolSettings =
///     serde_json::from_str(r#"{"http": {"http2MaxRequests": 100, "maxRetries": 0}}"#).unwrap();
/// assert_eq!(limits(&pool).requests, 100);
/// assert_eq!(limits(&pool).retries, u32::MAX);
/// ```
pub fn limits(pool: &ConnectionPoolSettings) -> Limits {
    let (tcp, http) = (pool.tcp.as_ref(), pool.http.as_ref());
    let unless_zero = |value: Option<u32>| value.filter(|n| *n != 0).unwrap_or(u32::MAX);
    Limits {
        connections: unless_zero(tcp.map(|t| t.max_connections)),
        pending: unless_zero(http.map(|h| h.http1_max_pending_requests)),
        requests: unless_zero(http.map(|h| h.http2_max_requests)),
        retries: unless_zero(http.map(|h| h.max_retries)),
        requests_per_connection: http.map_or(0, |h| h.max_requests_per_connection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_finds_its_place_and_zero_is_unset() {
        let of = |json: &str| limits(&serde_json::from_str(json).unwrap());
        assert_eq!(of("{}"), Limits::default());
        assert_eq!(
            of(r#"{"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 2,
                "http2MaxRequests": 3, "maxRetries": 4, "maxRequestsPerConnection": 5}}"#),
            Limits { connections: 1, pending: 2, requests: 3, retries: 4, requests_per_connection: 5 }
        );
        assert_eq!(
            of(r#"{"tcp": {"maxConnections": 0}, "http": {"http2MaxRequests": 0}}"#),
            Limits::default()
        );
    }
}
