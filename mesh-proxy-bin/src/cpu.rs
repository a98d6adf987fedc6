//! How many worker threads a sidecar wants: the CPU limit of its cgroup, rounded up.

use std::path::Path;

/// The CPU limit rounded up, but no more than there are CPUs; the CPUs where there is no limit.
pub(crate) fn workers() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let v2 = read("/sys/fs/cgroup/cpu.max").and_then(|text| limit_v2(&text));
    let v1 = || {
        let quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?;
        let period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?;
        limit(&quota, &period)
    };
    // `available_parallelism` knows the limit, too, but rounds it down.
    let host = read("/proc/cpuinfo").map_or(cpus, |t| t.matches("processor\t").count().max(1));
    v2.or_else(v1).map_or(cpus, |limit| limit.clamp(1, host))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(path)).ok()
}

/// `cpu.max` of cgroup v2: `QUOTA PERIOD` or `max PERIOD`.
fn limit_v2(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    limit(quota, period)
}

fn limit(quota: &str, period: &str) -> Option<usize> {
    // `max` in v2 and -1 in v1 say that there is no limit: neither parses as a `u64`.
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|p| *p > 0)?;
    usize::try_from(quota.div_ceil(period)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_round_up() {
        let table = [
            ("100000 100000", Some(1)),
            ("150000 100000", Some(2)),
            ("10000 100000", Some(1)),
            ("max 100000", None),
            ("100000 0", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(limit_v2(text), want, "{text}");
        }
        assert_eq!(limit("-1\n", "100000\n"), None);
    }
}
