//! What holds the application's end up until nobody calls it any more.
//!
//! When a pod is deleted the kubelet tells the application to end at once, and everybody else at the same time that
//! they should not call it any more. Injection gives each container a `preStop` hook that asks here, and here is
//! answered when that has been told.

use std::time::Duration;

use mesh::ConfigurationStatus;
use mesh::core::live::Live;
use tokio::time::{Instant, sleep, timeout};

/// How long after the sidecar has been told that its workload is to end the application may: callers are told at the
/// same time, and what they had begun then is done.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// How long after it has been told the sidecar leaves: who is late calls once more as ever.
pub(crate) const LEAVE_AFTER: Duration = Duration::from_millis(500);
/// How long is waited where the request does not say.
pub(super) const DEFAULT_WITHIN: Duration = Duration::from_secs(5);
/// The longest that is waited.
pub(super) const MAX_WITHIN: Duration = Duration::from_secs(600);

/// Returns once the workload is to end.
pub(crate) async fn ending(configuration: &Live<ConfigurationStatus>) {
    let mut changes = configuration.changes();
    while !configuration.load().ending {
        changes.changed().await;
    }
}

/// Returns when callers have been told that the workload is to end, or after `within`. Says whether they were.
pub(super) async fn withdrawn(configuration: &Live<ConfigurationStatus>, within: Duration) -> bool {
    let over = Instant::now() + within;
    if timeout(within, ending(configuration)).await.is_err() {
        return false;
    }
    sleep(SETTLE.min(over.saturating_duration_since(Instant::now()))).await;
    true
}

/// Reads how long the request lets wait: `within=SECONDS`.
pub(super) fn within(query: Option<&str>) -> Result<Duration, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(DEFAULT_WITHIN) };
    let seconds = query.strip_prefix("within=").and_then(|seconds| seconds.parse::<u64>().ok());
    let most = MAX_WITHIN.as_secs();
    match seconds {
        Some(seconds) if seconds <= most => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("write within=SECONDS, from 0 to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use mesh::core::live::Publisher;

    use super::*;

    #[test]
    fn how_long_is_read_or_refused() {
        for (query, seconds) in [
            (None, Some(5)),
            (Some(""), Some(5)),
            (Some("within=0"), Some(0)),
            (Some("within=600"), Some(600)),
        ] {
            assert_eq!(within(query).ok().map(|d| d.as_secs()), seconds, "{query:?}");
        }
        for bad in ["within=601", "within=-1", "within=1s", "x", "within=1&x=2"] {
            assert!(within(Some(bad)).unwrap_err().contains("within=SECONDS"), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_until_callers_have_been_told_but_not_for_ever() {
        let publisher = Publisher::new(ConfigurationStatus::default());
        let status = publisher.live();
        let begun = Instant::now();
        assert!(!withdrawn(&status, Duration::from_secs(5)).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));

        let begun = Instant::now();
        let told = async {
            sleep(Duration::from_secs(2)).await;
            publisher.publish(ConfigurationStatus { generation: 1, ..ConfigurationStatus::default() });
            sleep(Duration::from_secs(1)).await;
            publisher.publish(ConfigurationStatus { ending: true, ..ConfigurationStatus::default() });
        };
        let (was, ()) = tokio::join!(withdrawn(&status, Duration::from_secs(10)), told);
        assert!(was);
        assert_eq!(begun.elapsed(), Duration::from_secs(3) + SETTLE);

        // Known already; and never longer than allowed.
        let begun = Instant::now();
        assert!(withdrawn(&status, Duration::from_millis(300)).await);
        assert_eq!(begun.elapsed(), Duration::from_millis(300));
    }
}
