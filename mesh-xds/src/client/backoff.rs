//! How long to wait before the next try: pure, the draw is an argument.
//!
//! ```
//! use std::time::Duration;
//! use tower_mesh_xds::client::Backoff;
//!
//! let backoff = Backoff::default();
//! assert_eq!(backoff.after(1, 1.0), Duration::from_millis(500));
//! assert_eq!(backoff.after(3, 1.0), Duration::from_secs(2));
//! // At random, so that those who lost a server together do not come back together.
//! assert_eq!(backoff.after(3, 0.0), Duration::from_millis(200));
//! assert_eq!(backoff.after(u32::MAX, 1.0), Duration::from_secs(30));
//! ```

use std::time::Duration;

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure. Default: 500 ms.
    pub first: Duration,
    /// The longest wait at all. Default: 30 s.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait after the `failures`th failure in a row (from 1): up to twice as long each time, at least a
    /// tenth of that. `draw` is from 0 to 1.
    pub fn after(&self, failures: u32, draw: f64) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = self.first.saturating_mul(doubled).min(self.longest);
        let draw = if draw.is_nan() { 1.0 } else { draw.clamp(0.0, 1.0) };
        most / 10 + (most - most / 10).mul_f64(draw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bounds() {
        let backoff = Backoff::default();
        for failures in [0, 1, 2, 7, 31, 32, 33, u32::MAX] {
            for draw in [0.0, 0.5, 1.0, -1.0, 2.0, f64::NAN, f64::INFINITY] {
                let wait = backoff.after(failures, draw);
                assert!(wait >= Duration::from_millis(50) && wait <= backoff.longest, "{failures} {draw}");
            }
        }
        let huge = Backoff { first: Duration::MAX, longest: Duration::from_secs(1) };
        assert_eq!(huge.after(9, 1.0), Duration::from_secs(1));
    }
}
