//! How fast packets came: the last minutes by the second, the last hour by the minute, from the kernel's counters.
//!
//! Counters are read now and then, and what came between two readings is spread evenly over that time: each bucket is as exact as
//! readings are near to each other, and no packet is lost or counted twice. Time here is nanoseconds of boot time.

use guard_common::verdict::{Hook, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::events::BootClock;

/// Seconds that are shown one by one.
pub const SECONDS: usize = 300;

/// Minutes that are shown one by one.
pub const MINUTES: usize = 60;

const SECOND_NS: u64 = 1_000_000_000;

const SECONDS_IN_A_MINUTE: usize = 60;

/// Readings nearer to each other than this are taken for one: who asks often costs no more.
const SAME_NS: u64 = SECOND_NS / 5;

/// Packets that got one verdict at one hook since the programs were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub hook: Hook,
    pub verdict: Verdict,
    pub packets: u64,
}

/// The kernel's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub at_ns: u64,
    /// Each hook and verdict at most once.
    pub judged: Vec<Judged>,
    /// Packets in observe that an earlier hook had judged already.
    pub repeated: u64,
}

impl Reading {
    /// Packets that got `drop` or `would-drop`, each once: what is dropped meets no other hook.
    fn attempts(&self) -> u64 {
        let stopped = self.judged.iter().filter(|judged| judged.verdict != Verdict::Pass);
        stopped.map(|judged| judged.packets).sum::<u64>().saturating_sub(self.repeated)
    }

    fn packets(&self, hook: Hook, verdict: Verdict) -> u64 {
        let one = self.judged.iter().find(|it| it.hook == hook && it.verdict == verdict);
        one.map_or(0, |judged| judged.packets)
    }
}

/// Answer of `GET /v1/rates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatesView {
    /// When the last second of each series ends.
    pub time: Timestamp,
    /// For how long packets have been counted, in seconds: before that, series hold zeros.
    pub known_seconds: u64,
    /// Packets that got `drop` or `would-drop`, each once.
    pub attempts: Series,
    /// The same and those that passed, each hook by itself; only where there were any. Never to be added up: a packet may
    /// be counted at more than one hook.
    pub hooks: Vec<HookSeries>,
}

/// Packets in each of the last seconds and minutes, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// [`SECONDS`] whole seconds.
    pub seconds: Vec<u64>,
    /// [`MINUTES`] minutes, of which the last ends with the last second.
    pub minutes: Vec<u64>,
}

impl Series {
    /// Packets a second, over the last so many.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with a few digits")]
    pub fn rate(&self, seconds: usize) -> f64 {
        let last = self.seconds.iter().rev().take(seconds);
        let packets: u64 = last.sum();
        packets as f64 / seconds.max(1) as f64
    }

    /// Packets of the last hour.
    #[must_use]
    pub fn hour(&self) -> u64 {
        self.minutes.iter().sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSeries {
    pub hook: String,
    pub verdict: String,
    #[serde(flatten)]
    pub series: Series,
}

/// What came in the last hour, made of readings. 29 kB for each hook and verdict that there was.
#[derive(Debug, Default)]
pub struct Rates {
    first_ns: u64,
    last: Option<Reading>,
    attempts: Ring,
    hooks: Vec<(Hook, Verdict, Ring)>,
}

impl Rates {
    /// Whether a reading at this moment would tell anything new.
    #[must_use]
    pub fn is_due(&self, at_ns: u64) -> bool {
        self.last.as_ref().is_none_or(|last| at_ns >= last.at_ns.saturating_add(SAME_NS))
    }

    /// Adds what came since the last reading. What came before the first is nobody's rate. A reading older than the last, of a
    /// caller that was overtaken, is left out.
    pub fn take(&mut self, reading: Reading) {
        let Some(last) = self.last.replace(reading.clone()) else {
            self.first_ns = reading.at_ns;
            return;
        };
        if reading.at_ns <= last.at_ns {
            self.last = Some(last);
            return;
        }
        let span = (last.at_ns, reading.at_ns);
        self.attempts.add(span, reading.attempts().saturating_sub(last.attempts()));
        for &Judged { hook, verdict, packets } in &reading.judged {
            let new = packets.saturating_sub(last.packets(hook, verdict));
            if new == 0 {
                continue;
            }
            let at = self.hooks.iter().position(|one| (one.0, one.1) == (hook, verdict));
            let at = at.unwrap_or_else(|| {
                self.hooks.push((hook, verdict, Ring::default()));
                self.hooks.len() - 1
            });
            if let Some((_, _, ring)) = self.hooks.get_mut(at) {
                ring.add(span, new);
            }
        }
    }

    /// All that is known at the last reading.
    #[must_use]
    pub fn view(&self, clock: &BootClock) -> RatesView {
        let at_ns = self.last.as_ref().map_or(0, |last| last.at_ns);
        RatesView {
            time: clock.wall(at_ns / SECOND_NS * SECOND_NS).unwrap_or_default(),
            known_seconds: at_ns.saturating_sub(self.first_ns) / SECOND_NS,
            attempts: self.attempts.series(at_ns),
            hooks: self
                .hooks
                .iter()
                .map(|(hook, verdict, ring)| HookSeries {
                    hook: hook.name().to_owned(),
                    verdict: verdict.name().to_owned(),
                    series: ring.series(at_ns),
                })
                .collect(),
        }
    }
}

/// Packets of each second of the last hour, and of the one under way.
#[derive(Debug)]
struct Ring {
    /// The number of the newest second since the boot.
    newest: u64,
    /// Second `n` stands at `n % len`.
    buckets: Box<[u64]>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { newest: 0, buckets: vec![0; MINUTES * SECONDS_IN_A_MINUTE + 1].into() }
    }
}

impl Ring {
    fn len(&self) -> u64 {
        self.buckets.len() as u64
    }

    fn at(&self, number: u64) -> usize {
        (number % self.len()) as usize
    }

    /// Spreads packets evenly over a span of time, which ends no sooner than any before.
    fn add(&mut self, (from_ns, to_ns): (u64, u64), packets: u64) {
        let last = to_ns.saturating_sub(1) / SECOND_NS;
        self.advance(last);
        let oldest = self.newest.saturating_sub(self.len() - 1);
        let first = (from_ns / SECOND_NS).max(oldest);
        let span_ns = u128::from(to_ns.saturating_sub(from_ns).max(1));
        // Rounded down at each bucket's end, so that the parts add up to the whole.
        let until = |end_ns: u64| {
            let passed_ns = u128::from(end_ns.clamp(from_ns, to_ns) - from_ns);
            (u128::from(packets) * passed_ns / span_ns) as u64
        };
        for number in first..=last {
            let begin_ns = number * SECOND_NS;
            let part = until(begin_ns.saturating_add(SECOND_NS)) - until(begin_ns);
            let at = self.at(number);
            if let Some(bucket) = self.buckets.get_mut(at) {
                *bucket += part;
            }
        }
    }

    /// Makes room for a new bucket, and for those before it that there was nothing for.
    fn advance(&mut self, newest: u64) {
        let steps = newest.saturating_sub(self.newest).min(self.len());
        for number in newest.saturating_sub(steps) + 1..=newest {
            let at = self.at(number);
            if let Some(bucket) = self.buckets.get_mut(at) {
                *bucket = 0;
            }
        }
        self.newest = self.newest.max(newest);
    }

    fn series(&self, at_ns: u64) -> Series {
        let minutes = self.before(at_ns, MINUTES * SECONDS_IN_A_MINUTE);
        Series {
            seconds: self.before(at_ns, SECONDS),
            minutes: minutes.chunks(SECONDS_IN_A_MINUTE).map(|one| one.iter().sum()).collect(),
        }
    }

    /// The last so many buckets that have ended by then, the newest last.
    fn before(&self, at_ns: u64, count: usize) -> Vec<u64> {
        let end = at_ns / SECOND_NS;
        let known = self.newest.saturating_sub(self.len() - 1)..=self.newest;
        let value = |back: u64| {
            let number = end.checked_sub(back).filter(|number| known.contains(number))?;
            self.buckets.get(self.at(number)).copied()
        };
        (1..=count as u64).rev().map(|back| value(back).unwrap_or_default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    const CLOCK: BootClock = BootClock { wall_minus_boot: SignedDuration::from_secs(1_000) };

    fn reading(at_ns: u64, dropped: u64) -> Reading {
        let judged = Judged { hook: Hook::Tcx, verdict: Verdict::Drop, packets: dropped };
        Reading { at_ns, judged: vec![judged], repeated: 0 }
    }

    fn rates(readings: impl IntoIterator<Item = Reading>) -> Rates {
        let mut rates = Rates::default();
        readings.into_iter().for_each(|reading| rates.take(reading));
        rates
    }

    #[test]
    fn what_came_before_the_first_reading_is_nobodys_rate() {
        let view = rates([reading(7 * SECOND_NS, 1_000)]).view(&CLOCK);
        assert_eq!(view.attempts.hour(), 0);
        assert_eq!(view.known_seconds, 0);
        assert_eq!(view.time, Timestamp::from_second(1_007).unwrap());
        assert!(view.hooks.is_empty());
        assert_eq!((view.attempts.seconds.len(), view.attempts.minutes.len()), (SECONDS, MINUTES));
    }

    #[test]
    fn packets_are_spread_over_the_time_they_came_in() {
        let view = rates([
            reading(100 * SECOND_NS, 5),
            reading(110 * SECOND_NS, 105),
            reading(112 * SECOND_NS, 107),
        ])
        .view(&CLOCK);
        let last: Vec<u64> = view.attempts.seconds.iter().rev().take(13).copied().collect();
        assert_eq!(last, [1, 1, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 0]);
        assert_eq!(view.attempts.rate(2).to_string(), "1");
        assert_eq!(view.attempts.minutes.last(), Some(&102));
        assert_eq!(view.hooks.len(), 1);
        assert_eq!((view.hooks[0].hook.as_str(), view.hooks[0].verdict.as_str()), ("tcx", "drop"));
        assert_eq!(view.hooks[0].series, view.attempts);
        assert_eq!(view.known_seconds, 12);
    }

    #[test]
    fn in_observe_a_packet_is_counted_once() {
        let at = |at_s: u64, packets| Reading {
            at_ns: at_s * SECOND_NS,
            judged: [Hook::Tcx, Hook::Cgroup]
                .map(|hook| Judged { hook, verdict: Verdict::WouldDrop, packets })
                .to_vec(),
            repeated: packets,
        };
        let view = rates([at(10, 0), at(20, 600)]).view(&CLOCK);
        assert_eq!(view.attempts.hour(), 600);
        assert!(view.hooks.iter().all(|hook| hook.series.hour() == 600));
    }

    #[test]
    fn counters_that_begin_anew_count_nothing() {
        let view = rates([reading(SECOND_NS, 50), reading(2 * SECOND_NS, 7)]).view(&CLOCK);
        assert_eq!(view.attempts.hour(), 0);
    }

    #[test]
    fn readings_that_are_too_near_are_not_due() {
        let rates = rates([reading(SECOND_NS, 0)]);
        assert!(Rates::default().is_due(0));
        assert!(!rates.is_due(SECOND_NS + SAME_NS - 1));
        assert!(rates.is_due(SECOND_NS + SAME_NS));
    }

    #[test]
    fn the_last_hour_is_bounded_and_an_hour_of_sleep_is_none_of_the_last_minutes() {
        let hour_ns = 3_600 * SECOND_NS;
        let mut rates = rates([reading(0, 0), reading(SECOND_NS, 1_000)]);
        rates.take(reading(3 * hour_ns, 1_000));
        assert_eq!(rates.view(&CLOCK).attempts.hour(), 0);
        // A thousand in each of two hours, of which one is remembered.
        rates.take(reading(5 * hour_ns, 3_000));
        let hour = rates.view(&CLOCK).attempts.hour();
        assert!((995..=1_000).contains(&hour), "{hour}");
    }

    proptest! {
        /// Whatever the readings, no packet is lost or counted twice, in either resolution, and order does not matter.
        #[test]
        fn every_packet_is_in_one_bucket(
            start_ns in 0..u64::MAX / 4,
            steps in prop::collection::vec((0..20 * SECOND_NS, 0..1_000_000_u64), 1..14),
        ) {
            let (mut at_ns, mut packets) = (start_ns, 17);
            let mut readings = vec![reading(at_ns, packets)];
            let mut expected = 0;
            for (step_ns, new) in steps {
                at_ns += step_ns;
                if step_ns > 0 {
                    packets += new;
                    expected += new;
                }
                readings.push(reading(at_ns, packets));
            }
            // A moment without packets, so that every bucket with some has ended.
            readings.push(reading(at_ns + SECOND_NS, packets));
            let mut rates = rates(readings.clone());
            let before = rates.view(&CLOCK);
            prop_assert_eq!(before.attempts.seconds.iter().sum::<u64>(), expected);
            prop_assert_eq!(before.attempts.hour(), expected);
            // One that comes late changes nothing.
            rates.take(readings[0].clone());
            prop_assert_eq!(rates.view(&CLOCK), before);
        }
    }
}
