//! The machine, the kernel and the date of a run, and whether the machine is at rest.

use std::{fmt, fs, thread, time::Duration};

/// More of its processors' time than this, taken by others, makes a machine busy.
const BUSY_SHARE: f64 = 0.1;

#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Which guard, as its history names it.
    pub revision: String,
    pub processor: String,
    pub processors: usize,
    pub kernel: String,
    pub date: String,
    /// How much of all processors' time others took while nothing was measured.
    pub busy_share: f64,
}

impl Facts {
    /// Takes a second.
    #[must_use]
    pub fn gather(revision: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let before = times(&read("/proc/stat"));
        thread::sleep(Duration::from_secs(1));
        let after = times(&read("/proc/stat"));
        let total = after.total.saturating_sub(before.total).max(1);
        let idle = after.idle.saturating_sub(before.idle);
        Self {
            revision: revision.to_owned(),
            processor: processor(&read("/proc/cpuinfo")),
            processors: thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            // The day in UTC, of RFC 3339.
            date: jiff::Timestamp::now().to_string().chars().take(10).collect(),
            busy_share: 1.0 - (idle as f64 / total as f64).min(1.0),
        }
    }

    /// What a busy machine means for the figures.
    #[must_use]
    pub fn is_busy(&self) -> Option<String> {
        (self.busy_share > BUSY_SHARE).then(|| {
            format!(
                "others take {:.0} % of this machine's processors: ratios hold better than nanoseconds",
                self.busy_share * 100.0
            )
        })
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, processor, processors, kernel, date, .. } = self;
        let plural = if *processors == 1 { "" } else { "s" };
        write!(
            f,
            "guard {revision}, {processor}, {processors} processor{plural}, Linux {kernel}, {date}"
        )
    }
}

struct Times {
    total: u64,
    idle: u64,
}

/// Of all processors together: the first line, of which the fourth number is the idle time and the fifth the time spent waiting
/// for a disk (proc_stat(5)).
fn times(stat: &str) -> Times {
    let line = stat.lines().next().unwrap_or_default();
    // Guests' time, behind the eighth, is in the user's already.
    let values = line.split_ascii_whitespace().skip(1).take(8);
    let values: Vec<u64> = values.filter_map(|value| value.parse().ok()).collect();
    Times { total: values.iter().sum(), idle: values.iter().skip(3).take(2).sum() }
}

fn processor(table: &str) -> String {
    let line = table.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "unknown processor".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_told_from_the_rest() {
        let times = times("cpu  100 1 50 800 30 2 3 4 20 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!((times.total, times.idle), (990, 830));
    }

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(processor("vendor_id\t: X\nmodel name\t: Fast CPU 9\n"), "Fast CPU 9");
        assert_eq!(processor(""), "unknown processor");
    }

    #[test]
    fn a_busy_machine_says_so() {
        let facts = |busy_share| Facts {
            busy_share,
            ..Facts {
                revision: "0123abc".to_owned(),
                processor: "Fast CPU 9".to_owned(),
                processors: 2,
                kernel: "6.18.0".to_owned(),
                date: "2026-11-25".to_owned(),
                busy_share: 0.0,
            }
        };
        assert_eq!(facts(0.02).is_busy(), None);
        assert!(facts(0.4).is_busy().unwrap().starts_with("others take 40 % "));
        let text = "guard 0123abc, Fast CPU 9, 2 processors, Linux 6.18.0, 2026-11-25";
        assert_eq!(facts(0.0).to_string(), text);
    }
}
