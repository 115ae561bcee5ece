//! All maps, and the compiled policy that they hold: the only access to them.

use core::cell::Cell;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use guard_common::{
    abi::{
        BIND_RING_BYTES, Budget, Counter, EVENT_RING_BYTES, EventCounter, Explained, FLAG_BACKSTOP,
        FLAG_FORWARDED, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, FLAG_REJECT, FlowKey, Here, InsideKey,
        LOOPBACK_IFINDEX, Ladder, MAX_INSIDE, MAX_LADDERS, MAX_PASSED, MAX_TALLIES,
        MAX_VIA_INDICES, MAX_VOUCHED, NO_END, POLICY_SLOTS, PORT_WORDS, Passed, PolicyHeader,
        PortIndex, PortIndices, Ruling, Sampler, SourceValue, Tally, TallyKey, VOUCH_INTERVAL_NS,
        VOUCH_SPAN_NS, ViaKey, budget, counter_slots, port_index, port_word,
    },
    packet::{AddressBytes, Family, Packet, Protocol},
    rules::Rules,
    sources::{self, LINES_PER_PAGE, Line, Lines, MAX_CHUNKS, PAGES_PER_CHUNK, Page},
    verdict::{Hook, Reason},
};

#[map]
pub static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static POLICY: Array<PolicyHeader> = Array::with_max_entries(POLICY_SLOTS, 0);
#[map]
static PORT_BITS: Array<u64> = Array::with_max_entries(POLICY_SLOTS * 2 * PORT_WORDS, 0);
#[map]
static PORT_INDICES: Array<PortIndices> = Array::with_max_entries(POLICY_SLOTS * 2 * PORT_WORDS, 0);
#[btf_map]
static SOURCES: btf_maps::ArrayOfMaps<Chunk, { (POLICY_SLOTS * MAX_CHUNKS) as usize }> =
    btf_maps::ArrayOfMaps::new();
#[map]
static LADDERS: Array<Ladder> = Array::with_max_entries(POLICY_SLOTS * MAX_LADDERS, 0);
#[map]
static INSIDE: HashMap<InsideKey, u32> =
    HashMap::with_max_entries(POLICY_SLOTS * MAX_INSIDE, BPF_F_NO_PREALLOC);
#[map]
static VIAS: HashMap<ViaKey, u32> = HashMap::with_max_entries(MAX_VIA_INDICES, 0);
#[map]
static VOUCHED: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(MAX_VOUCHED, 0);
#[map]
static HERE: PerCpuArray<Here> = PerCpuArray::with_max_entries(1, 0);
#[map]
static PASSED: PerCpuArray<Passed> = PerCpuArray::with_max_entries(MAX_PASSED, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(counter_slots(), 0);
#[map]
pub static EVENT_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EventCounter::COUNT, 0);
#[map]
pub static TALLIES: LruHashMap<TallyKey, Tally> = LruHashMap::with_max_entries(MAX_TALLIES, 0);
#[map]
pub static SAMPLERS: PerCpuArray<Sampler> =
    PerCpuArray::with_max_entries(Hook::ALL.len() as u32, 0);
#[map]
pub static BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(budget::COUNT, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_BYTES, 0);
#[map]
pub static BINDS: RingBuf = RingBuf::with_byte_size(BIND_RING_BYTES, 0);
#[map]
pub static EXPLAINED: Array<Explained> = Array::with_max_entries(1, 0);

/// All chunks have one size, so that the kernel puts the look into one in line, and begin at a page (`BPF_F_MMAPABLE`,
/// kernel 5.5), so that a line is a cache line.
type Chunk = btf_maps::Array<Page, { PAGES_PER_CHUNK as usize }, { BPF_F_MMAPABLE as usize }>;

/// Nanoseconds since boot, time asleep included. Kernel 5.8.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The kernel's coarse clock: a load, no call (`do_misc_fixups` in `kernel/bpf/verifier.c`). Kernel 5.5.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_jiffies64() }
}

/// The slot in force when a packet came in: chosen once, so that no packet is judged by two policies. It is written again only
/// when no packet can still hold it.
#[derive(Clone, Copy)]
pub struct Slot(u32);

impl Slot {
    /// `None` until a policy has been put in force.
    #[inline(always)]
    pub fn in_force() -> Option<Self> {
        ACTIVE.get(0)?.checked_sub(1).map(Self)
    }

    /// Whether a port is guarded.
    #[inline(always)]
    pub fn may_guard(self, protocol: Protocol, port: u16) -> bool {
        PORT_BITS
            .get(port_word(self.0, protocol, port))
            .is_some_and(|word| word >> (port & 63) & 1 != 0)
    }

    /// Its policy, for a packet that came by this interface.
    #[inline(always)]
    pub fn policy(self, hook: Hook, ifindex: u32) -> Option<InForce> {
        let header = POLICY.get(self.0)?;
        Some(InForce { slot: self.0, header, hook, ifindex, is_lasting: Cell::new(true) })
    }

    /// Its policy, for a packet at its socket, where nothing says by which interface it came.
    #[inline(always)]
    pub fn policy_at_socket(self) -> Option<InForce> {
        self.policy(Hook::Cgroup, 0)
    }
}

/// The policy that judges a packet.
pub struct InForce {
    slot: u32,
    header: &'static PolicyHeader,
    /// Which hook asks. A constant wherever it is looked at, so that no program has another's paths.
    hook: Hook,
    /// The interface whose hook asks; 0 for the backstop.
    ifindex: u32,
    /// What has been said of the packet holds as long as the policy is in force.
    is_lasting: Cell<bool>,
}

impl InForce {
    /// Whether only guests of this host send over an interface.
    #[inline(always)]
    pub fn is_inside(&self, ifindex: u32) -> bool {
        // SAFETY: this slot's entries are not written while a packet can hold it.
        unsafe { INSIDE.get(InsideKey { slot: self.slot, ifindex }) }.is_some()
    }

    /// Whether dropped TCP packets are answered.
    #[inline(always)]
    pub fn rejects(&self) -> bool {
        self.header.has(FLAG_REJECT)
    }

    #[inline(always)]
    fn is_at_socket(&self) -> bool {
        matches!(self.hook, Hook::Cgroup)
    }

    /// The packet, as this CPU remembers it.
    #[inline(always)]
    fn flow(&self, packet: &Packet, socket_port: u16) -> Passed {
        Passed::of(packet, self.hook, self.ifindex, socket_port, self.header.generation)
    }

    /// A NIC's program is never attached to loopback, so this is a test run.
    #[inline(always)]
    fn is_test_run(&self) -> bool {
        self.ifindex == LOOPBACK_IFINDEX
    }

    /// The column to read in, see [`PolicyHeader::columns`].
    #[inline(always)]
    fn column(&self) -> u32 {
        if self.header.columns <= 1 {
            return 0;
        }
        if self.is_at_socket() {
            return self.header.columns - 1;
        }
        let ifindex = if self.is_test_run() {
            EXPLAINED.get(0).map_or(0, |asked| asked.ifindex)
        } else {
            self.ifindex
        };
        // SAFETY: this slot's entries are not written while a packet can hold it.
        unsafe { VIAS.get(ViaKey { slot: self.slot, ifindex }) }.copied().unwrap_or(0)
    }
}

/// Tells the backstop that a NIC's hook has let a packet of this flow in.
#[inline(always)]
fn vouch(key: FlowKey) {
    let now_ns = boot_ns();
    // SAFETY: the time is one word, written whole. An LRU entry's memory may become another flow's meanwhile: at worst
    // this one is not written again for a second more, and its span has room for that.
    let is_recent = unsafe { VOUCHED.get(key) }
        .is_some_and(|last_ns| now_ns.saturating_sub(*last_ns) < VOUCH_INTERVAL_NS);
    if !is_recent {
        // Without room the backstop drops the packet: closed.
        let _ = VOUCHED.insert(key, now_ns, 0);
    }
}

/// Whether a NIC's hook has let a packet of this flow in a moment ago.
#[inline(always)]
fn is_vouched_for(key: FlowKey) -> bool {
    // SAFETY: the time is one word, written whole. An LRU entry's memory may become another flow's meanwhile: that a
    // NIC's hook has let in too, by the same kind of rule.
    unsafe { VOUCHED.get(key) }
        .is_some_and(|last_ns| boot_ns().saturating_sub(*last_ns) < VOUCH_SPAN_NS)
}

/// The source table of a slot. The chunk where it begins, which is all that most policies have, is looked up once.
struct SourceTable {
    slot: u32,
    first: &'static Chunk,
}

impl SourceTable {
    #[inline(always)]
    fn of(slot: u32) -> Option<Self> {
        Some(Self { slot, first: SOURCES.get(slot * MAX_CHUNKS)? })
    }
}

impl Lines for SourceTable {
    #[inline(always)]
    fn line(&self, number: u32) -> Option<&Line> {
        let (page, line) = (number / LINES_PER_PAGE, number % LINES_PER_PAGE);
        let chunk = match page / PAGES_PER_CHUNK % MAX_CHUNKS {
            0 => self.first,
            number => SOURCES.get(self.slot * MAX_CHUNKS + number)?,
        };
        chunk.get(page % PAGES_PER_CHUNK)?.as_chunks().0.get(line as usize)
    }
}

// A global function takes and returns numbers, and is verified once and by itself (kernel 5.6): in line, each of the ways
// through it would multiply with all ways that lead to it.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_v4(slot: u32, address: u32) -> u32 {
    let found = SourceTable::of(slot).and_then(|table| sources::walk_v4(&table, address));
    found.map_or(0, |value| value.number().into())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_v6(slot: u32, high: u64, low: u64) -> u32 {
    let found = SourceTable::of(slot).and_then(|table| sources::walk_v6(&table, high, low));
    found.map_or(0, |value| value.number().into())
}

impl Rules for InForce {
    #[inline(always)]
    fn guarded(&self, protocol: Protocol, port: u16) -> Option<PortIndex> {
        let octets = PORT_INDICES.get(port_word(self.slot, protocol, port))?;
        port_index(octets[usize::from(port & 63)])
    }

    #[inline(always)]
    fn guards(&self, protocol: Protocol) -> bool {
        self.header.has(match protocol {
            Protocol::Tcp => FLAG_GUARDS_TCP,
            Protocol::Udp => FLAG_GUARDS_UDP,
        })
    }

    #[inline(always)]
    fn lookup(&self, family: Family, address: &AddressBytes) -> SourceValue {
        let Some(table) = SourceTable::of(self.slot) else { return SourceValue::default() };
        // The filter is asked in line: it knows most of a flood, and a call costs more than that.
        let number = match family {
            Family::V4 => {
                let address = sources::v4_number(address);
                if sources::may_be_said_v4(&table, address) {
                    walk_v4(self.slot, address)
                } else {
                    0
                }
            }
            Family::V6 => {
                let (high, low) = sources::v6_numbers(address);
                if sources::may_be_said_v6(&table, high) {
                    walk_v6(self.slot, high, low)
                } else {
                    0
                }
            }
        };
        SourceValue::from_number(number as u16)
    }

    #[inline(always)]
    fn ruling(&self, packet: &Packet, value: SourceValue, port: PortIndex) -> Ruling {
        // Row 0 holds "no rule" for every port.
        if value.row() == 0 {
            return Ruling::NoRule;
        }
        let place = value.row().wrapping_mul(self.header.port_count).wrapping_add(port);
        let index = place.wrapping_mul(self.header.columns).wrapping_add(self.column());
        if index >= MAX_LADDERS {
            return Ruling::NoRule;
        }
        let ruling =
            LADDERS.get(self.slot * MAX_LADDERS + index).map_or(Ruling::NoRule, |ladder| {
                ladder.at(|| {
                    self.is_lasting.set(false);
                    boot_ns()
                })
            });
        if !value.is_by_interface() {
            return ruling;
        }
        self.is_lasting.set(false);
        match ruling {
            Ruling::Allow if !self.is_at_socket() && !self.is_test_run() => {
                vouch(FlowKey::of(packet, self.header.generation));
                Ruling::Allow
            }
            Ruling::Vouched if self.is_at_socket() => {
                let is_vouched_for = is_vouched_for(FlowKey::of(packet, self.header.generation));
                if is_vouched_for { Ruling::Allow } else { Ruling::NoRule }
            }
            other => other,
        }
    }

    #[inline(always)]
    fn is_here(&self, family: Family, address: &AddressBytes) -> bool {
        let here = Here::new(family, address, self.header.generation);
        let Some(held) = HERE.get_ptr_mut(0) else { return false };
        // SAFETY: the entry is this CPU's own.
        if unsafe { &*held }.is_same(&here) {
            return true;
        }
        let is_here = self.lookup(family, address).is_local();
        // A test run may be interrupted by a packet in the middle of what it writes.
        if is_here && !self.is_test_run() {
            // SAFETY: as above.
            unsafe { *held = here };
        }
        is_here
    }

    #[inline(always)]
    fn remembered(&self, packet: &Packet, socket_port: u16) -> Option<Reason> {
        let flow = self.flow(packet, socket_port);
        let held = PASSED.get_ptr(flow.place())?;
        // SAFETY: the entry is this CPU's own. What interrupts this program may write it; see `Passed` for what then.
        let held = unsafe { &*held };
        // A test run stands for a packet on another interface than its own.
        (held.is_same(&flow) && !self.is_test_run()).then(|| held.reason())
    }

    #[inline(always)]
    fn remember(&self, packet: &Packet, socket_port: u16, reason: Reason) {
        if !self.is_lasting.get() || self.is_test_run() {
            return;
        }
        let flow = self.flow(packet, socket_port);
        if let Some(place) = PASSED.get_ptr_mut(flow.place()) {
            // SAFETY: as in `remembered`.
            unsafe { *place = flow.because(reason) };
        }
    }

    #[inline(always)]
    fn observing(&self) -> bool {
        match self.header.observe_until_ns {
            0 => false,
            NO_END => true,
            until_ns => boot_ns() < until_ns,
        }
    }

    #[inline(always)]
    fn guards_forwarded(&self) -> bool {
        self.header.has(FLAG_FORWARDED)
    }

    #[inline(always)]
    fn has_backstop(&self) -> bool {
        self.header.has(FLAG_BACKSTOP)
    }
}
