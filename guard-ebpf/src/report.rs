//! What becomes known of a verdict: a counter for every packet judged, a tally and an event for attempts.

use aya_ebpf::bindings::BPF_NOEXIST;
use guard_common::{
    abi::{
        EVENT_INTERVAL_NS, Event, EventCounter, Explained, LOOPBACK_IFINDEX, REPEAT_WINDOW_NS,
        Tally, TallyKey, Weight, budget, counter_index,
    },
    packet::Packet,
    verdict::{Decision, Hook, Reason, Verdict},
};

use crate::{
    maps::{self, BUDGET, COUNTERS, EVENT_COUNTERS, EVENTS, EXPLAINED, SAMPLERS, TALLIES},
    shared::Shared,
};

/// How a packet came to its hook.
pub struct Arrival {
    pub hook: Hook,
    pub ifindex: u32,
    /// Packets it was on the wire.
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
    /// It is no packet: somebody asks what would happen to it.
    pub is_test_run: bool,
}

/// A NIC's program is never attached to loopback, and `BPF_PROG_TEST_RUN` says that its packets come from there
/// (`bpf_prog_test_run_skb` and `bpf_prog_test_run_xdp` in `net/bpf/test_run.c`).
#[inline(always)]
pub fn is_test_run(ifindex: u32) -> bool {
    ifindex == LOOPBACK_IFINDEX
}

/// Counts and reports a decision; returns whether the packet is to be dropped.
#[inline(always)]
pub fn report(decision: Decision, packet: &Packet, arrival: &Arrival) -> bool {
    let Decision::Judged(verdict, reason) = decision else {
        return false;
    };
    if arrival.is_test_run {
        answer(verdict, reason, arrival.hook);
    } else {
        count(verdict, reason, arrival);
        if !matches!(verdict, Verdict::Pass) {
            attempt(verdict, reason, packet, arrival);
        }
    }
    matches!(verdict, Verdict::Drop)
}

#[inline(always)]
fn answer(verdict: Verdict, reason: Reason, hook: Hook) {
    let explained = Explained {
        judged: 1,
        hook: hook as u8,
        verdict: verdict as u8,
        reason: reason as u8,
        ifindex: 0,
    };
    // The map has an entry 0, so this can't fail.
    let _ = EXPLAINED.set(0, explained, 0);
}

#[inline(always)]
fn count(verdict: Verdict, reason: Reason, arrival: &Arrival) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(arrival.hook, verdict, reason)) {
        // SAFETY: the entry is this CPU's own. A program of another hook may interrupt this one between load and
        // store only where it runs at another level (softirq over a socket's backlog), and then has another index.
        unsafe {
            (*counter).packets += arrival.packets;
            (*counter).bytes += arrival.bytes;
        }
    }
}

#[inline(always)]
fn add_to_event_counter(which: EventCounter, packets: u64) {
    if let Some(counter) = EVENT_COUNTERS.get_ptr_mut(which as u32) {
        // SAFETY: map values are aligned to 8 bytes and live as long as the map. Shared, since one hook's program may
        // interrupt another's.
        unsafe { Shared::new(counter) }.add(packets);
    }
}

/// Tallies an attempt by its source, and reports it where neither the source was reported a moment ago nor the CPU's budget is
/// spent; in a flood one in so many, which stands for the others.
#[inline(always)]
fn attempt(verdict: Verdict, reason: Reason, packet: &Packet, arrival: &Arrival) {
    let Some(weight) = weight(arrival) else { return };
    let now_ns = maps::boot_ns();
    let key = TallyKey::new(packet.family, &packet.source);
    let Some(tally) = find_or_make(&key, now_ns) else {
        add_to_event_counter(EventCounter::Unreported, weight.packets);
        return;
    };
    // SAFETY: an LRU entry's memory stays a tally until the program ends, at worst another source's (the kernel hands it out
    // again without waiting); every word is written whole, so that the worst is a number that is off.
    let tally = unsafe { SharedTally::new(tally) };

    let is_recent = |word: Shared| now_ns.wrapping_sub(word.load()) < REPEAT_WINDOW_NS;
    let was_judged_before = match arrival.hook {
        Hook::Xdp | Hook::Tcx => false,
        Hook::Edge => is_recent(tally.nic_ns()),
        Hook::Cgroup => is_recent(tally.nic_ns()) || is_recent(tally.edge_ns()),
    };
    if was_judged_before && matches!(verdict, Verdict::WouldDrop) {
        add_to_event_counter(EventCounter::Repeated, weight.packets);
        return;
    }
    tally.packets().add(weight.packets);
    tally.bytes().add(weight.bytes);
    tally.last_ns().store(now_ns);
    match arrival.hook {
        Hook::Xdp | Hook::Tcx => tally.nic_ns().store(now_ns),
        Hook::Edge => tally.edge_ns().store(now_ns),
        Hook::Cgroup => {}
    }
    if weight.is_sampled {
        tally.is_sampled().store(1);
    }

    let is_due = now_ns.wrapping_sub(tally.reported_ns().load()) >= EVENT_INTERVAL_NS;
    if is_due && within_budget(budget::EVENTS, now_ns) {
        let held_packets = not_below_zero(tally.pending_packets().load());
        let held_bytes = not_below_zero(tally.pending_bytes().load());
        // Made in the ring: the stack has no room for it beside all the rest.
        if let Some(mut entry) = EVENTS.reserve::<Event>(0) {
            entry.write(Event {
                time_ns: now_ns,
                packets: weight.packets + held_packets,
                bytes: weight.bytes + held_bytes,
                source: packet.source,
                destination: packet.destination,
                ifindex: arrival.ifindex,
                source_port: packet.source_port,
                port: packet.port,
                hook: arrival.hook as u8,
                verdict: verdict as u8,
                reason: reason as u8,
                family: packet.family as u8,
                protocol: packet.protocol as u8,
                tcp_flags: packet.tcp_flags,
                is_sampled: tally.is_sampled().load() as u8,
                reserved: 0,
                reserved_ids: [0; 2],
            });
            entry.submit(0);
            tally.reported_ns().store(now_ns);
            tally.is_sampled().store(0);
            tally.pending_packets().add(held_packets.wrapping_neg());
            tally.pending_bytes().add(held_bytes.wrapping_neg());
            add_to_event_counter(EventCounter::Unreported, held_packets.wrapping_neg());
            return;
        }
        add_to_event_counter(EventCounter::RingFull, 1);
    }
    tally.pending_packets().add(weight.packets);
    tally.pending_bytes().add(weight.bytes);
    add_to_event_counter(EventCounter::Unreported, weight.packets);
}

/// What this attempt stands for; `None` where it is passed over.
#[inline(always)]
fn weight(arrival: &Arrival) -> Option<Weight> {
    let sampler = SAMPLERS.get_ptr_mut(arrival.hook as u32)?;
    // SAFETY: the entry is this CPU's own, and this hook's; see `count`.
    unsafe { (*sampler).take(maps::jiffies(), arrival.packets, arrival.bytes) }
}

/// Nothing tallied yet. It stands beside the code, since the stack has no room for it.
static FRESH: Tally = Tally {
    packets: 0,
    bytes: 0,
    pending_packets: 0,
    pending_bytes: 0,
    first_ns: 0,
    last_ns: 0,
    reported_ns: 0,
    nic_ns: 0,
    edge_ns: 0,
    is_sampled: 0,
};

#[inline(always)]
fn find_or_make(key: &TallyKey, now_ns: u64) -> Option<*mut Tally> {
    if let Some(tally) = TALLIES.get_ptr_mut(key) {
        return Some(tally);
    }
    // Another CPU may have made it meanwhile; either way it is there now.
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a value would be copied to the stack"
    )]
    let _ = TALLIES.insert(key, &FRESH, u64::from(BPF_NOEXIST));
    let tally = TALLIES.get_ptr_mut(key)?;
    // SAFETY: as in `attempt`.
    unsafe { SharedTally::new(tally) }.first_ns().store(now_ns);
    Some(tally)
}

/// Takes one from a budget of this CPU's.
#[inline(always)]
pub fn within_budget(which: u32, now_ns: u64) -> bool {
    BUDGET.get_ptr_mut(which).is_some_and(|budget| {
        // SAFETY: the entry is this CPU's own; where programs of two hooks interleave, one more or less is taken.
        unsafe { (*budget).take(now_ns) }
    })
}

/// What is pending may have fallen below zero, see [`Tally`].
#[inline(always)]
fn not_below_zero(pending: u64) -> u64 {
    (pending.cast_signed()).max(0).cast_unsigned()
}

/// A tally that all CPUs write at once. Its words are pointed to where they are used: kept, the pointers would fill the stack.
#[derive(Clone, Copy)]
struct SharedTally(*mut Tally);

impl SharedTally {
    /// # Safety
    /// `tally` must point to a map value of this layout that stays mapped while the program runs.
    #[inline(always)]
    unsafe fn new(tally: *mut Tally) -> Self {
        Self(tally)
    }

    #[inline(always)]
    fn packets(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).packets) }
    }

    #[inline(always)]
    fn bytes(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).bytes) }
    }

    #[inline(always)]
    fn pending_packets(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).pending_packets) }
    }

    #[inline(always)]
    fn pending_bytes(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).pending_bytes) }
    }

    #[inline(always)]
    fn last_ns(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).last_ns) }
    }

    #[inline(always)]
    fn reported_ns(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).reported_ns) }
    }

    #[inline(always)]
    fn nic_ns(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).nic_ns) }
    }

    #[inline(always)]
    fn edge_ns(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).edge_ns) }
    }

    #[inline(always)]
    fn is_sampled(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).is_sampled) }
    }

    #[inline(always)]
    fn first_ns(self) -> Shared {
        // SAFETY: as promised to `new`; the field is aligned to 8 bytes.
        unsafe { Shared::new(&raw mut (*self.0).first_ns) }
    }
}
