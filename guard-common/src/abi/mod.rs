//! Every record that crosses a map between the kernel programs and userspace: `repr(C)`, no padding,
//! sizes fixed at compile time, all numbers in the machine's byte order and all addresses in network order.
//!
//! A change of any record, map or number here needs a new [`ABI_VERSION`]: pins of another version
//! stand in another directory and are never read with these types.
//!
//! An all-zero record always means "not configured", since arrays start as zeros.

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "`Pod` is an unsafe trait; why it holds stands there")]
mod pod;

mod event;
mod key;
#[cfg(test)]
mod layout;
mod passed;
mod policy;
mod stats;

pub use event::{BIND_RING_BYTES, EVENT_RING_BYTES, Event, Explained};
pub use key::{FlowKey, InsideKey, MAX_VOUCHED, VOUCH_INTERVAL_NS, VOUCH_SPAN_NS};
pub use passed::{Here, MAX_PASSED, Passed};
pub use policy::{
    FLAG_BACKSTOP, FLAG_FORWARDED, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, FLAG_REJECT, Ladder,
    MAX_GUARDED_PORTS, MAX_INSIDE, MAX_LADDERS, MAX_ROWS, MAX_VIA_INDICES, MAX_VIAS, NO_END,
    PORT_ALIAS, PolicyHeader, PortIndex, Ruling, SOURCE_BY_INTERFACE, SOURCE_LOCAL, SOURCE_OWN,
    STEPS, SourceValue, Step, ViaKey,
};
pub use stats::{
    Budget, Counter, EVENT_BURST, EVENT_INTERVAL_NS, EVENTS_PER_SECOND, EventCounter, MAX_TALLIES,
    REPEAT_WINDOW_NS, SAMPLED_ONE_IN, Sampler, Tally, TallyKey, WHOLE_PER_TICK, Weight, budget,
    counter_index, counter_slots,
};

/// The number of this layout of records and maps; names the pin directory (`v1`).
pub const ABI_VERSION: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };

/// Two copies of every policy table: packets are judged by one while the other is written.
pub const POLICY_SLOTS: u32 = 2;

/// Words of a bitmap with one bit for each port number.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Value of `PORT_INDICES`: an octet for each port of a word.
pub type PortIndices = [u8; 64];

/// The octet of a guarded port with this index, or of an alias, which leads to that: to a packet they are the same.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "indices are numbers below `MAX_GUARDED_PORTS`"
)]
pub const fn port_octet(index: PortIndex, is_alias: bool) -> u8 {
    (index as u8 + 1) | if is_alias { PORT_ALIAS } else { 0 }
}

/// What an octet stands for; `None` where the port is not guarded.
#[inline(always)]
#[must_use]
pub const fn port_index(octet: u8) -> Option<PortIndex> {
    ((octet & !PORT_ALIAS) as PortIndex).checked_sub(1)
}

/// Where the word of `protocol`'s and `port`'s bit stands in [`map::PORT_BITS`], and the word's indices in [`map::PORT_INDICES`].
#[inline(always)]
#[must_use]
pub const fn port_word(slot: u32, protocol: crate::packet::Protocol, port: u16) -> u32 {
    let table = match protocol {
        crate::packet::Protocol::Tcp => 0,
        crate::packet::Protocol::Udp => 1,
    };
    (slot * 2 + table) * PORT_WORDS + (port as u32 >> 6)
}

/// The names of the maps, as they stand in the kernel and below the pin directory.
pub mod map {
    /// `Array<u32>` of one: which slot is in force. 0: none (nothing is guarded), else the slot's number plus one.
    /// Its values differ in one byte only, so a store of it can't be seen half done.
    pub const ACTIVE: &str = "ACTIVE";
    /// `Array<PolicyHeader>`, one a slot.
    pub const POLICY: &str = "POLICY";
    /// `Array<u64>`: for each slot and protocol a bitmap of the port numbers guarded at any address.
    pub const PORT_BITS: &str = "PORT_BITS";
    /// `Array<PortIndices>`: beside each word of [`PORT_BITS`], an octet for each of its ports, see `port_octet`.
    pub const PORT_INDICES: &str = "PORT_INDICES";
    /// `ArrayOfMaps`: per slot the chunks of the source table ([`crate::sources`]), each an `Array<Page>`; those that it does
    /// not take are not there.
    pub const SOURCES: &str = "SOURCES";
    /// `Array<Ladder>`: per slot, row after row, for each guarded port one ladder a column (`PolicyHeader::columns`).
    pub const LADDERS: &str = "LADDERS";
    /// `HashMap<InsideKey, u32>`: the interfaces over which only this host's guests send.
    pub const INSIDE: &str = "INSIDE";
    /// `HashMap<ViaKey, u32>`: the column of an interface that rules name.
    pub const VIAS: &str = "VIAS";
    /// `LruHashMap<FlowKey, u64>`: flows that a NIC's hook has let in by the interface they came by, and when it last said
    /// so, in nanoseconds of boot time.
    pub const VOUCHED: &str = "VOUCHED";
    /// `PerCpuArray<Here>` of one: a destination that was this host's a moment ago.
    pub const HERE: &str = "HERE";
    /// `PerCpuArray<Passed>`: flows that were let in a moment ago.
    pub const PASSED: &str = "PASSED";
    /// `PerCpuArray<Counter>`, see `counter_index`.
    pub const COUNTERS: &str = "COUNTERS";
    /// `PerCpuArray<u64>`, see `EventCounter`.
    pub const EVENT_COUNTERS: &str = "EVENT_COUNTERS";
    /// `LruHashMap<TallyKey, Tally>`: attempts by source.
    pub const TALLIES: &str = "TALLIES";
    /// `PerCpuArray<Sampler>`: which attempts are looked at, one for each hook.
    pub const SAMPLERS: &str = "SAMPLERS";
    /// `PerCpuArray<Budget>`: how many events this CPU may still report, and how many resets send, see `budget`.
    pub const BUDGET: &str = "BUDGET";
    /// `RingBuf` of `Event`.
    pub const EVENTS: &str = "EVENTS";
    /// `Array<Explained>` of one: the interface a test run stands for, and its verdict.
    pub const EXPLAINED: &str = "EXPLAINED";

    /// `RingBuf` of `u64`, which mean nothing: a stream socket has been bound. The daemon's own, and not pinned.
    pub const BINDS: &str = "BINDS";

    /// What a layout takes over from the one before, where both have the same kind of map with keys, values and entries of the
    /// same sizes. So what one of these holds may change its meaning only together with its size.
    pub const KEPT: [&str; 4] = [COUNTERS, EVENT_COUNTERS, TALLIES, VOUCHED];

    /// What is pinned.
    pub const ALL: [&str; 18] = [
        ACTIVE,
        POLICY,
        PORT_BITS,
        PORT_INDICES,
        SOURCES,
        LADDERS,
        INSIDE,
        VIAS,
        VOUCHED,
        HERE,
        PASSED,
        COUNTERS,
        EVENT_COUNTERS,
        TALLIES,
        SAMPLERS,
        BUDGET,
        EVENTS,
        EXPLAINED,
    ];
}

/// The names of the programs in the object and in the kernel (which keeps 15 bytes).
pub mod program {
    pub const XDP: &str = "guard_xdp";
    /// Stands in for [`XDP`] below kernel 5.18, under its pin.
    pub const XDP_PLAIN: &str = "guard_xdp_plain";
    pub const TCX: &str = "guard_tcx";
    /// As [`TCX`], for Ethernet devices.
    pub const TCX_ETHERNET: &str = "guard_tcx_eth";
    pub const EDGE: &str = "guard_edge";
    /// As [`EDGE`], for Ethernet devices.
    pub const EDGE_ETHERNET: &str = "guard_edge_eth";
    pub const CGROUP: &str = "guard_cgroup";
    /// The daemon's own, and not pinned: tells of bound sockets of IPv4.
    pub const BIND4: &str = "guard_bind4";
    /// As [`BIND4`], for IPv6.
    pub const BIND6: &str = "guard_bind6";

    /// Those that judge packets.
    pub const ALL: [&str; 7] = [XDP, XDP_PLAIN, TCX, TCX_ETHERNET, EDGE, EDGE_ETHERNET, CGROUP];

    /// Those that every kernel takes.
    pub const EVERYWHERE: [&str; 5] = [TCX, TCX_ETHERNET, EDGE, EDGE_ETHERNET, CGROUP];
}

/// A test run sets the packet's `cb[0]` to this, so that the cgroup program writes its verdict to
/// [`map::EXPLAINED`] and counts nothing. The kernel clears `cb` before it runs the program on a real packet
/// (`bpf_prog_run_save_cb` in `include/linux/filter.h`). The NIC's programs know a test run by its
/// interface, which is loopback's; the one it is to stand for stands in [`map::EXPLAINED`].
pub const EXPLAIN_MARK: u32 = 0x6775_6172;

/// The index of loopback in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::packet::Protocol;

    #[test]
    fn every_slot_protocol_and_word_of_ports_has_its_own_place() {
        let mut places = HashSet::new();
        for slot in 0..POLICY_SLOTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for first_of_word in (0..=u16::MAX).step_by(64) {
                    let place = port_word(slot, protocol, first_of_word);
                    assert!(place < POLICY_SLOTS * 2 * PORT_WORDS);
                    assert!(places.insert(place), "{slot} {protocol:?} {first_of_word}");
                    for port in first_of_word..=first_of_word + 63 {
                        assert_eq!(port_word(slot, protocol, port), place);
                    }
                }
            }
        }
        assert_eq!(places.len(), 4096);
        // The numbers are part of the layout.
        assert_eq!(port_word(0, Protocol::Tcp, 11434), 178);
        assert_eq!(port_word(0, Protocol::Udp, 0), 1024);
        assert_eq!(port_word(1, Protocol::Udp, 65_535), 4095);
    }

    #[test]
    fn an_octet_says_which_port_and_whether_it_is_an_alias() {
        assert_eq!(port_index(0), None);
        assert_eq!(port_index(PORT_ALIAS), None);
        for index in 0..MAX_GUARDED_PORTS {
            for is_alias in [false, true] {
                let octet = port_octet(index, is_alias);
                assert_eq!(port_index(octet), Some(index));
                assert_eq!(octet & PORT_ALIAS != 0, is_alias);
            }
        }
    }

    #[test]
    fn the_kernel_keeps_names_whole() {
        // `BPF_OBJ_NAME_LEN` in `include/uapi/linux/bpf.h` is 16, with the closing zero.
        let unpinned = [map::BINDS, program::BIND4, program::BIND6];
        for name in map::ALL.into_iter().chain(program::ALL).chain(unpinned) {
            assert!(name.len() <= 15, "{name}");
        }
        assert_eq!(HashSet::from(map::ALL).len(), map::ALL.len());
        assert_eq!(HashSet::from(program::ALL).len(), program::ALL.len());
    }

    #[test]
    fn numbers_are_pinned() {
        assert_eq!([ABI_VERSION, POLICY_SLOTS, PORT_WORDS], [1, 2, 1024]);
        assert_eq!([MAX_VIAS, MAX_VIA_INDICES], [8, 1024]);
        assert_eq!(EXPLAIN_MARK.to_be_bytes(), *b"guar");
        assert_eq!(LOOPBACK_IFINDEX, 1);
    }
}
