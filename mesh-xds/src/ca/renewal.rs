//! When to ask for the next certificate: pure, the draw is an argument.
//!
//! A certificate is renewed between half and seven twelfths of its life, at random, so that workloads that
//! started together do not ask together, and an issuer may be gone for two fifths of a life, whenever that is.
//! After a failure it is tried again for ever: after a second at first, then twice as long each time, but at
//! least 16 times in what is left of the certificate's life.
//!
//! ```
//! use std::time::Duration;
//! use tower_mesh_xds::ca::renewal::{renew_after, retry_after};
//!
//! let day = Duration::from_secs(86_400);
//! assert_eq!(renew_after(day, 0.0), day / 2);
//! assert_eq!(renew_after(day, 1.0), day * 7 / 12);
//!
//! // Hours are left: no hurry. Seconds are left, or none: every second.
//! assert_eq!(retry_after(20, day / 3, 1.0), Duration::from_secs(300));
//! assert_eq!(retry_after(20, Duration::ZERO, 1.0), Duration::from_secs(1));
//! ```

use std::time::Duration;

/// The shortest time between two tries.
pub const MIN_RETRY: Duration = Duration::from_secs(1);
/// The longest time between two tries.
pub const MAX_RETRY: Duration = Duration::from_secs(300);
/// How many tries fit at least into what is left of a certificate's life, as long as [`MIN_RETRY`] allows.
pub const TRIES_LEFT: u32 = 16;

/// How long after a certificate's first moment to ask for the next: from half of its life to seven twelfths.
/// `draw` is from 0 to 1.
pub fn renew_after(life: Duration, draw: f64) -> Duration {
    life / 2 + (life / 12).mul_f64(unit(draw))
}

/// How long to wait after the `failures`th failure in a row (from 1), with `left` of the certificate's life
/// to go (zero when it has expired, or when there is none yet). `draw` is from 0 to 1; it takes off up to
/// half.
pub fn retry_after(failures: u32, left: Duration, draw: f64) -> Duration {
    let doubled = MIN_RETRY.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let most = doubled.min(MAX_RETRY).min(left / TRIES_LEFT).max(MIN_RETRY);
    most / 2 + (most / 2).mul_f64(unit(draw))
}

/// A draw that is no number counts as none at all.
fn unit(draw: f64) -> f64 {
    if draw.is_nan() { 0.0 } else { draw.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn it_is_renewed_between_half_and_seven_twelfths_of_its_life() {
        for life in [seconds(0), seconds(120), seconds(86_400), Duration::MAX] {
            for draw in [0.0, 0.3, 1.0, -7.0, 7.0, f64::NAN, f64::INFINITY] {
                let after = renew_after(life, draw);
                assert!(
                    after >= life / 2 && after <= life / 12 * 7 + seconds(1),
                    "{life:?} {draw}: {after:?}"
                );
            }
        }
    }

    #[test]
    fn it_is_tried_again_more_often_the_less_is_left_and_for_ever() {
        for (failures, left, after) in [
            (1, 43_200, 1),
            (2, 43_200, 2),
            (5, 43_200, 16),
            (9, 43_200, 256),
            (10, 43_200, 300),
            (u32::MAX, 43_200, 300),
            (10, 160, 10),
            (10, 16, 1),
            (10, 0, 1),
            (0, 0, 1),
        ] {
            let most = retry_after(failures, seconds(left), 1.0);
            assert_eq!(most, seconds(after), "{failures} {left}");
            assert_eq!(retry_after(failures, seconds(left), 0.0), most / 2);
        }
    }

    /// A certificate of two minutes begins a minute early. The issuer may be gone for a minute, whenever that is, and
    /// some seconds are left for it to begin to answer.
    #[test]
    fn an_issuer_may_be_gone_for_half_of_two_minutes() {
        let (issued, end) = (seconds(60), seconds(180));
        for draw in [0.0, 0.5, 1.0] {
            let due = renew_after(end, draw);
            assert!(due >= issued + seconds(30), "it is not asked for all the time");
            // At the worst it goes when it would have been asked.
            assert!(due + seconds(60) + seconds(15) <= end, "{draw}: {due:?}");
        }
    }

    /// With certificates of two minutes and the issuer gone from the moment of renewal on, there are tries
    /// until the end and after it.
    #[test]
    fn short_lives_get_many_tries() {
        let life = seconds(120);
        let (mut at, mut failures) = (renew_after(life, 1.0), 0);
        while at < life {
            failures += 1;
            at += retry_after(failures, life.saturating_sub(at), 1.0);
        }
        assert!(failures >= 16, "{failures}");
        assert!(retry_after(failures, Duration::ZERO, 1.0) <= seconds(1));
    }
}
