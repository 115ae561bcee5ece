//! What the kernel programs count.

use crate::{
    packet::{AddressBytes, Family},
    verdict::{Hook, Reason, Verdict},
};

/// Value of `COUNTERS`. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets as they were on the wire: a coalesced one counts for all it holds.
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

const HOOKS: u32 = 4;
const VERDICTS: u32 = 4;
const REASONS: u32 = 16;

/// How many counters there are, unused numbers included.
#[must_use]
pub const fn counter_slots() -> u32 {
    HOOKS * VERDICTS * REASONS
}

/// Where a verdict is counted.
#[inline(always)]
#[must_use]
pub const fn counter_index(hook: Hook, verdict: Verdict, reason: Reason) -> u32 {
    ((hook as u32) * VERDICTS + verdict as u32) * REASONS + reason as u32
}

/// Index into `EVENT_COUNTERS`.
///
/// The numbers of one kind are added up over CPUs with wrap-around: a packet may be held back on one CPU and
/// reported on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventCounter {
    /// Packets that got `drop` or `would-drop` and that no event has reported.
    Unreported = 0,
    /// Packets that an earlier hook had judged already (observe): counted, never reported again.
    Repeated = 1,
    /// Events that found the ring full. Their packets are among the unreported.
    RingFull = 2,
}

impl EventCounter {
    pub const COUNT: u32 = 3;
}

/// Attempts that a CPU looks at one by one, at each hook and in each tick of the kernel's coarse clock (`CONFIG_HZ`: 1 to
/// 10 ms). So nobody who tries now and then is missed, and a flood soon costs no more than counting.
pub const WHOLE_PER_TICK: u64 = 32;
/// Of those beyond, one in so many stands for all since the last one.
pub const SAMPLED_ONE_IN: u64 = 64;

/// Value of `SAMPLERS`, one for each hook. 32 bytes.
///
/// What is passed over is never lost: it is counted for the next one that is looked at, and stands here until then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampler {
    /// Which tick it is, in jiffies.
    pub tick: u64,
    /// Attempts in this tick.
    pub seen: u64,
    /// Packets passed over since the last attempt that was looked at.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Sampler>() == 32);

/// What an attempt that is looked at stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub packets: u64,
    pub bytes: u64,
    /// Others' are among them.
    pub is_sampled: bool,
}

impl Sampler {
    /// Whether to look at this attempt, and what it then stands for.
    #[inline(always)]
    pub fn take(&mut self, tick: u64, packets: u64, bytes: u64) -> Option<Weight> {
        if self.tick != tick {
            self.tick = tick;
            self.seen = 0;
        }
        self.seen += 1;
        self.packets += packets;
        self.bytes += bytes;
        if self.seen > WHOLE_PER_TICK && !self.seen.is_multiple_of(SAMPLED_ONE_IN) {
            return None;
        }
        let weight = Weight {
            packets: self.packets,
            bytes: self.bytes,
            is_sampled: self.packets != packets,
        };
        self.packets = 0;
        self.bytes = 0;
        Some(weight)
    }
}

/// How many sources are tallied; beyond that the least recently seen are forgotten.
pub const MAX_TALLIES: u32 = 65_536;

/// Key of `TALLIES`. 24 bytes. An IPv6 source is tallied by its /64.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TallyKey {
    source: AddressBytes,
    family: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<TallyKey>() == 24);

impl TallyKey {
    #[inline(always)]
    #[must_use]
    pub fn new(family: Family, source: &AddressBytes) -> Self {
        let mut kept = *source;
        if matches!(family, Family::V6) {
            let mut i = 8;
            while i < 16 {
                kept[i] = 0;
                i += 1;
            }
        }
        Self { source: kept, family: family as u8, reserved: [0; 7] }
    }

    #[must_use]
    pub const fn source(&self) -> &AddressBytes {
        &self.source
    }

    /// `None` for a number no writer of this layout stores.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        Family::from_number(self.family)
    }
}

/// Value of `TALLIES`. 80 bytes. All times are boot time. In a flood all numbers of packets and bytes are about right: see
/// [`Sampler`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Wire packets that got `drop` or `would-drop`.
    pub packets: u64,
    pub bytes: u64,
    /// Of these, packets that no event has reported. Two CPUs may report the same ones at once; then it falls below
    /// zero, and the next event says as many fewer, so that the sum of what events say stays right.
    pub pending_packets: i64,
    pub pending_bytes: i64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// When it was last reported.
    pub reported_ns: u64,
    /// When a NIC's hook last judged a packet of it; 0 for never.
    pub nic_ns: u64,
    /// When an edge hook last judged a packet of it; 0 for never.
    pub edge_ns: u64,
    /// 1 where others' packets are among those that no event has reported.
    pub is_sampled: u64,
}

const _: () = assert!(size_of::<Tally>() == 80);

/// How long after a hook judged a source a `would-drop` of it at a later hook counts as the same attempt.
pub const REPEAT_WINDOW_NS: u64 = 2_000_000_000;

/// A source is reported at most once in this time.
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000;
/// Events a CPU may report, and resets it may send, in a second.
pub const EVENTS_PER_SECOND: u64 = 1_000;
/// As many at once.
pub const EVENT_BURST: u64 = 512;

/// Index into `BUDGET`. Both are filled at the same rate.
pub mod budget {
    /// For events.
    pub const EVENTS: u32 = 0;
    /// For resets that answer rejected packets.
    pub const RESETS: u32 = 1;

    pub const COUNT: u32 = 2;
}

/// Value of `BUDGET`: a token bucket. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    pub tokens: u64,
    /// Boot time of the last refill.
    pub refilled_ns: u64,
}

const _: () = assert!(size_of::<Budget>() == 16);

impl Budget {
    /// Takes one token if there is one.
    ///
    /// A time before the last refill earns nothing: whoever asks may have been interrupted, between reading the
    /// clock and asking, by another hook on the same CPU.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64) -> bool {
        const NS_PER_EVENT: u64 = 1_000_000_000 / EVENTS_PER_SECOND;
        let earned = now_ns.saturating_sub(self.refilled_ns) / NS_PER_EVENT;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(EVENT_BURST);
            // Only by the time that whole tokens took, so that the rest of it goes on counting.
            self.refilled_ns += earned * NS_PER_EVENT;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::abi::layout::layout;

    #[test]
    fn layout_is_pinned() {
        layout!(Counter, size 16, align 8, { packets: 0, bytes: 8 });
        layout!(TallyKey, size 24, align 1, { source: 0, family: 16, reserved: 17 });
        layout!(Tally, size 80, align 8, {
            packets: 0, bytes: 8, pending_packets: 16, pending_bytes: 24, first_ns: 32,
            last_ns: 40, reported_ns: 48, nic_ns: 56, edge_ns: 64, is_sampled: 72,
        });
        layout!(Sampler, size 32, align 8, { tick: 0, seen: 8, packets: 16, bytes: 24 });
        layout!(Budget, size 16, align 8, { tokens: 0, refilled_ns: 8 });
    }

    #[test]
    fn every_verdict_is_counted_in_its_own_place() {
        let mut places = HashSet::new();
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let place = counter_index(hook, verdict, reason);
                    assert!(place < counter_slots());
                    assert!(places.insert(place), "{hook:?} {verdict:?} {reason:?}");
                }
            }
        }
        // The numbers are part of the layout.
        assert_eq!(counter_slots(), 256);
        assert_eq!(counter_index(Hook::Xdp, Verdict::Pass, Reason::Allowed), 0);
        assert_eq!(counter_index(Hook::Cgroup, Verdict::WouldDrop, Reason::Malformed), 231);
    }

    #[test]
    fn event_counters_are_pinned() {
        use EventCounter::{Repeated, RingFull, Unreported};
        assert_eq!([Unreported, Repeated, RingFull].map(|counter| counter as u32), [0, 1, 2]);
        assert_eq!(EventCounter::COUNT, 3);
    }

    #[test]
    fn an_ipv6_source_is_tallied_by_its_64() {
        let mut address = [0xab; 16];
        let key = TallyKey::new(Family::V6, &address);
        assert_eq!(key.family(), Some(Family::V6));
        assert_eq!(key.source()[..8], [0xab; 8]);
        assert_eq!(key.source()[8..], [0; 8]);
        address[8] = 1;
        address[15] = 2;
        assert_eq!(TallyKey::new(Family::V6, &address), key);
        address[7] = 3;
        assert_ne!(TallyKey::new(Family::V6, &address), key);
    }

    #[test]
    fn an_ipv4_source_is_tallied_whole() {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[192, 0, 2, 7]);
        let key = TallyKey::new(Family::V4, &address);
        assert_eq!((key.family(), key.source()), (Some(Family::V4), &address));
        assert_ne!(TallyKey::new(Family::V6, &address), key);
        assert_eq!(key.reserved, [0; 7]);
    }

    const NS_PER_EVENT: u64 = 1_000_000_000 / EVENTS_PER_SECOND;

    fn taken(budget: &mut Budget, now_ns: u64, asked: u64) -> u64 {
        (0..asked).map(|_| u64::from(budget.take(now_ns))).sum()
    }

    #[test]
    fn few_attempts_are_looked_at_one_by_one() {
        let mut sampler = Sampler::default();
        for tick in 1..100 {
            for _ in 0..WHOLE_PER_TICK {
                let own = Weight { packets: 2, bytes: 80, is_sampled: false };
                assert_eq!(sampler.take(tick, 2, 80), Some(own));
            }
        }
    }

    #[test]
    fn in_a_flood_one_stands_for_many() {
        let mut sampler = Sampler::default();
        let looked_at = (1..=6400).filter_map(|_| sampler.take(7, 1, 60)).collect::<Vec<_>>();
        assert_eq!(looked_at.len() as u64, WHOLE_PER_TICK + 6400 / SAMPLED_ONE_IN);
        assert_eq!(looked_at.iter().filter(|weight| weight.is_sampled).count(), 100);
        assert_eq!(looked_at.last().map(|weight| weight.packets), Some(SAMPLED_ONE_IN));
    }

    proptest! {
        /// Every packet is counted for one that is looked at, or still stands in the sampler.
        #[test]
        fn nothing_is_lost_in_a_sampler(
            attempts in proptest::collection::vec((0_u64..3, 1_u64..50, 60_u64..9000), 1..400),
        ) {
            let mut sampler = Sampler::default();
            let (mut tick, mut given, mut taken) = (9, (0, 0), (0, 0));
            for (later, packets, bytes) in attempts {
                tick += later / 2;
                given = (given.0 + packets, given.1 + bytes);
                if let Some(weight) = sampler.take(tick, packets, bytes) {
                    prop_assert!(weight.packets >= packets && weight.bytes >= bytes);
                    prop_assert_eq!(weight.is_sampled, weight.packets > packets);
                    taken = (taken.0 + weight.packets, taken.1 + weight.bytes);
                }
            }
            prop_assert_eq!((taken.0 + sampler.packets, taken.1 + sampler.bytes), given);
        }
    }

    #[test]
    fn a_budget_nobody_has_used_yet_holds_one_burst() {
        // Boot time: by the time a program runs, far more than a burst's worth of it has gone by.
        let mut budget = Budget::default();
        assert_eq!(taken(&mut budget, 60_000_000_000, 2 * EVENT_BURST), EVENT_BURST);
    }

    #[test]
    fn a_budget_at_time_zero_holds_nothing() {
        assert!(!Budget::default().take(0));
    }

    #[test]
    fn a_spent_budget_earns_one_event_at_a_time() {
        let mut budget = Budget { tokens: 0, refilled_ns: 5 };
        assert!(!budget.take(5 + NS_PER_EVENT - 1));
        assert!(budget.take(5 + NS_PER_EVENT));
        assert!(!budget.take(5 + NS_PER_EVENT));
        assert_eq!(taken(&mut budget, 5 + 4 * NS_PER_EVENT, 10), 3);
    }

    #[test]
    fn time_that_earned_no_whole_event_is_not_lost() {
        // Asked every 1.5 events' time for 300 events' time: all 300 are had, not every second one.
        let mut budget = Budget { tokens: 0, refilled_ns: 0 };
        let step_ns = NS_PER_EVENT * 3 / 2;
        let had: u64 = (1..=200).map(|n| taken(&mut budget, n * step_ns, 10)).sum();
        assert_eq!(had, 300);
    }

    #[test]
    fn a_time_before_the_last_refill_earns_nothing() {
        // The hook in task context reads the clock, is interrupted by a NIC's hook that refills, and goes on.
        let mut budget = Budget { tokens: 1, refilled_ns: 1_000_000_000 };
        assert_eq!(taken(&mut budget, 999_999_999, 10), 1);
        assert_eq!(budget.refilled_ns, 1_000_000_000);
    }

    proptest! {
        /// Over any run of questions, no more is had than a burst and what the time between them earns.
        #[test]
        fn a_budget_is_never_overspent(
            gaps_ns in proptest::collection::vec(0_u64..20 * NS_PER_EVENT, 1..200),
            asked in 1_u64..40,
        ) {
            let start_ns = 60_000_000_000;
            let mut budget = Budget::default();
            let mut now_ns = start_ns;
            let mut had = 0;
            for gap_ns in gaps_ns {
                now_ns += gap_ns;
                had += taken(&mut budget, now_ns, asked);
            }
            prop_assert!(had <= EVENT_BURST + (now_ns - start_ns) / NS_PER_EVENT + 1);
        }
    }
}
