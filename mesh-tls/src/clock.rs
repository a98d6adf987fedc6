//! The time of day, as an argument: certificates are judged by it, and tests do not wait for it.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use tower_mesh_tls::clock::{Clock, utc};
//!
//! let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
//! let clock = Clock::from_fn(move || noon);
//! assert_eq!(utc(clock.now()), "2023-11-14T22:13:20Z");
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Where the time of day comes from. Cheap to clone; the default is the system's clock.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Given(Arc<dyn Fn() -> SystemTime + Send + Sync>),
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that `now` reads.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Source::Given(Arc::new(now)))
    }

    /// The time of day.
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            Source::System => SystemTime::now(),
            Source::Given(now) => now(),
        }
    }

    pub(crate) fn unix(&self) -> UnixTime {
        unix(self.now())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Clock(system)",
            Source::Given(_) => "Clock(given)",
        })
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.unix())
    }
}

/// The time as rustls counts it; a time before 1970 counts as 1970.
pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A certificate's time (seconds since 1970) as a [`SystemTime`]; what does not fit counts as 1970.
pub(crate) fn from_timestamp(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time as people read it, `2026-01-31T12:00:00Z`, without fractions.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let Some(t) = i64::try_from(seconds).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok())
    else {
        return format!("{seconds} seconds after 1970");
    };
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second) = t.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_do_not_fit_are_no_panic() {
        assert_eq!(from_timestamp(-5), SystemTime::UNIX_EPOCH);
        let _ = from_timestamp(i64::MAX);
        assert_eq!(utc(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert!(utc(far).ends_with("after 1970"));
    }
}
