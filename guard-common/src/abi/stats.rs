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
#[inline]
#[must_use]
pub const fn counter_index(hook: Hook, verdict: Verdict, reason: Reason) -> u32 {
    ((hook as u32) * VERDICTS + verdict as u32) * REASONS + reason as u32
}

/// Index into `EVENT_COUNTERS`.
///
/// The numbers of one kind are added up over CPUs with wrap-around: a packet may be held back on one CPU and reported on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventCounter {
    /// Dropped packets that no event has reported, at the NIC's XDP hook.
    UnreportedXdp = 0,
    UnreportedTcx = 1,
    UnreportedEdge = 2,
    UnreportedCgroup = 3,
    /// Packets that an earlier hook had judged already (observe): counted, never reported again.
    Repeated = 4,
    /// Events that found the ring full. Their packets are among the unreported.
    RingFull = 5,
}

impl EventCounter {
    pub const COUNT: u32 = 6;

    #[inline]
    #[must_use]
    pub const fn unreported(hook: Hook) -> u32 {
        hook as u32
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
    #[inline]
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
        Self {
            source: kept,
            family: family as u8,
            reserved: [0; 7],
        }
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

/// Value of `TALLIES`. 64 bytes. All times are boot time.
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
}

const _: () = assert!(size_of::<Tally>() == 64);

/// A source is reported at most once in this time.
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000;
/// Events a CPU may report in a second.
pub const EVENTS_PER_SECOND: u64 = 1_000;
/// Events a CPU may report at once.
pub const EVENT_BURST: u64 = 512;

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
    #[inline]
    pub fn take(&mut self, now_ns: u64) -> bool {
        const NS_PER_EVENT: u64 = 1_000_000_000 / EVENTS_PER_SECOND;
        let earned = now_ns.wrapping_sub(self.refilled_ns) / NS_PER_EVENT;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(EVENT_BURST);
            self.refilled_ns = now_ns;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}
