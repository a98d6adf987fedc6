//! Times as access logs write them: `2024-05-01T12:00:00.042Z`.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// `2024-05-01T12:00:00`, without fraction and zone.
type Text = [u8; 19];

thread_local! {
    /// The second written last, and its text: many lines fall into one second.
    static LAST: Cell<(u64, Text)> = const { Cell::new((0, *b"1970-01-01T00:00:00")) };
}

/// Appends `time` in UTC with milliseconds. Times before 1970 are written as 1970, times after the year
/// 9999 as its end.
pub(super) fn push(out: &mut Vec<u8>, time: SystemTime) {
    // The last millisecond of the year 9999.
    const END: u64 = 253_402_300_799;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().min(END);
    let text = LAST.get();
    let text = if text.0 == seconds {
        text.1
    } else {
        let fresh = civil(seconds);
        LAST.set((seconds, fresh));
        fresh
    };
    out.extend_from_slice(&text);
    out.push(b'.');
    let ms = since.subsec_millis();
    out.extend_from_slice(&[digit(ms / 100), digit(ms / 10), digit(ms), b'Z']);
}

const fn digit(number: u32) -> u8 {
    b'0' + (number % 10) as u8
}

/// The proleptic Gregorian date and time of `seconds` since 1970 (Howard Hinnant, "chrono-compatible
/// low-level date algorithms", `civil_from_days`), for years up to 9999.
fn civil(seconds: u64) -> Text {
    // Years start in March, so that the leap day is the last of its year.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let second = seconds % 86_400;

    let mut text = *b"0000-00-00T00:00:00";
    let parts = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
    ];
    for (at, width, mut number) in parts {
        for place in text.iter_mut().skip(at).take(width).rev() {
            *place = digit(number as u32 % 10);
            number /= 10;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;

    fn ours(seconds: u64, ms: u64) -> String {
        let mut out = Vec::new();
        push(&mut out, UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(ms));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times() {
        assert_eq!(ours(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(ours(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(ours(1_709_210_096, 999), "2024-02-29T12:34:56.999Z");
        assert_eq!(ours(u64::from(u32::MAX) * 100, 0), "9999-12-31T23:59:59.000Z");
        let mut early = Vec::new();
        push(&mut early, UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(early, b"1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn every_time_is_what_another_library_says(seconds in 0_u64..253_402_300_800, ms in 0_u64..1000) {
            let t = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
            let theirs = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{ms:03}Z",
                t.year(), u8::from(t.month()), t.day(), t.hour(), t.minute(), t.second(),
            );
            prop_assert_eq!(ours(seconds, ms), theirs);
        }
    }
}
