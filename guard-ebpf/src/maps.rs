//! All maps, and the compiled policy that they hold: the only access to them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use guard_common::{
    abi::{
        Budget, Counter, EVENT_RING_BYTES, EventCounter, Explained, FLAG_BACKSTOP, FLAG_FORWARDED,
        FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, FLAG_REJECT, InsideKey, Ladder, MAX_GUARDED_PORTS,
        MAX_INSIDE, MAX_LADDERS, MAX_SOURCES, MAX_TALLIES, NO_END, POLICY_SLOTS, PORT_WORDS,
        PolicyHeader, PortIndex, PortKey, PortValue, Ruling, SourceKey, SourceValue, Tally,
        TallyKey, budget, counter_slots, port_word,
    },
    packet::{AddressBytes, Family, Protocol},
    rules::Rules,
};

#[map]
pub static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static POLICY: Array<PolicyHeader> = Array::with_max_entries(POLICY_SLOTS, 0);
#[map]
static PORT_BITS: Array<u64> = Array::with_max_entries(POLICY_SLOTS * 2 * PORT_WORDS, 0);
#[map]
static PORTS: HashMap<PortKey, PortValue> =
    HashMap::with_max_entries(POLICY_SLOTS * MAX_GUARDED_PORTS, 0);
#[map]
static SOURCES: LpmTrie<SourceKey, SourceValue> = LpmTrie::with_max_entries(MAX_SOURCES, 0);
#[map]
static LADDERS: Array<Ladder> = Array::with_max_entries(POLICY_SLOTS * MAX_LADDERS, 0);
#[map]
static INSIDE: HashMap<InsideKey, u32> =
    HashMap::with_max_entries(POLICY_SLOTS * MAX_INSIDE, BPF_F_NO_PREALLOC);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(counter_slots(), 0);
#[map]
pub static EVENT_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EventCounter::COUNT, 0);
#[map]
pub static TALLIES: LruHashMap<TallyKey, Tally> = LruHashMap::with_max_entries(MAX_TALLIES, 0);
#[map]
pub static BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(budget::COUNT, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_BYTES, 0);
#[map]
pub static EXPLAINED: Array<Explained> = Array::with_max_entries(1, 0);

/// Nanoseconds since boot, time asleep included. Kernel 5.8.
#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The policy in force when a packet came in. The slot is chosen once, so that no packet is judged by two policies;
/// a slot is written again only when no packet can still hold it.
pub struct InForce {
    slot: u32,
    header: &'static PolicyHeader,
}

impl InForce {
    /// `None` until a policy has been put in force.
    #[inline(always)]
    pub fn now() -> Option<Self> {
        let slot = ACTIVE.get(0)?.checked_sub(1)?;
        let header = POLICY.get(slot)?;
        Some(Self { slot, header })
    }

    /// Whether dropped TCP packets are answered.
    #[inline(always)]
    pub fn rejects(&self) -> bool {
        self.header.has(FLAG_REJECT)
    }

    /// Whether only guests of this host send over an interface.
    #[inline(always)]
    pub fn is_inside(&self, ifindex: u32) -> bool {
        // SAFETY: this slot's entries are not written while a packet can hold it.
        unsafe { INSIDE.get(InsideKey { slot: self.slot, ifindex }) }.is_some()
    }
}

impl Rules for InForce {
    #[inline(always)]
    fn guarded(
        &self,
        protocol: Protocol,
        _family: Family,
        _address: &AddressBytes,
        port: u16,
    ) -> Option<PortIndex> {
        let word = PORT_BITS.get(port_word(self.slot, protocol, port))?;
        if word >> (port & 63) & 1 == 0 {
            return None;
        }
        // SAFETY: this slot's entries are not written while a packet can hold it.
        let value = unsafe { PORTS.get(PortKey::at_every_address(self.slot, protocol, port)) }?;
        Some(value.index)
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
        let key = SourceKey::new(self.slot, family, *address);
        SOURCES
            .get(Key::new(SourceKey::prefix_bits(family.bits()), key))
            .copied()
            .unwrap_or_default()
    }

    #[inline(always)]
    fn ruling(&self, value: SourceValue, port: PortIndex) -> Ruling {
        let index = value.row.wrapping_mul(self.header.port_count).wrapping_add(port);
        if index >= MAX_LADDERS {
            return Ruling::NoRule;
        }
        LADDERS
            .get(self.slot * MAX_LADDERS + index)
            .map_or(Ruling::NoRule, |ladder| ladder.at(boot_ns))
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
