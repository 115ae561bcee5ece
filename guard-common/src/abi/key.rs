//! Keys of the policy's tables.

use crate::packet::{AddressBytes, Packet};

/// Key of `INSIDE`. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InsideKey {
    pub slot: u32,
    /// Of a local bridge, or of a container's veth on this host's side.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<InsideKey>() == 8);

/// Key of `VOUCHED`: a flow by what a NIC's hook and the backstop both see of it. 24 bytes.
///
/// The destination is left out: between the two it may have been translated. The generation is there so that no policy goes by what
/// another one has let in; its low bits tell policies apart that follow each other within [`VOUCH_SPAN_NS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    source: AddressBytes,
    source_port: u16,
    port: u16,
    family: u8,
    protocol: u8,
    generation: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 24);

impl FlowKey {
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
    pub const fn of(packet: &Packet, generation: u64) -> Self {
        Self {
            source: packet.source,
            source_port: packet.source_port,
            port: packet.port,
            family: packet.family as u8,
            protocol: packet.protocol as u8,
            generation: generation as u16,
        }
    }
}

/// Flows that are vouched for at a time; beyond that the least recently seen are forgotten, and vouched for again by their next
/// packet at the NIC.
pub const MAX_VOUCHED: u32 = 16_384;

/// A flow is written again this long after it was last written, and not for every packet.
pub const VOUCH_INTERVAL_NS: u64 = 1_000_000_000;

/// How long the backstop goes by what a NIC's hook has vouched for.
///
/// Every packet of a flow passes the NIC's hook before it comes to the backstop. So this is the time between two writes and,
/// for what lies between them, most of it reassembly, four seconds: the fragments of one datagram follow each other, and what
/// takes longer is sent again.
pub const VOUCH_SPAN_NS: u64 = VOUCH_INTERVAL_NS + 4_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::layout::layout,
        packet::{Family, Protocol},
    };

    #[test]
    fn layout_is_pinned() {
        layout!(InsideKey, size 8, align 4, { slot: 0, ifindex: 4 });
        layout!(FlowKey, size 24, align 2, {
            source: 0, source_port: 16, port: 18, family: 20, protocol: 21, generation: 22,
        });
    }

    #[test]
    fn flows_differ_by_source_ports_family_protocol_and_policy_and_not_by_destination() {
        let packet = Packet {
            family: Family::V4,
            protocol: Protocol::Tcp,
            source: [7; 16],
            destination: [8; 16],
            source_port: 40_000,
            port: 11434,
            ..Packet::EMPTY
        };
        let key = FlowKey::of(&packet, 7);
        assert_eq!(FlowKey::of(&Packet { destination: [9; 16], ..packet }, 7), key);
        assert_ne!(FlowKey::of(&packet, 8), key);
        for other in [
            Packet { source: [9; 16], ..packet },
            Packet { source_port: 40_001, ..packet },
            Packet { port: 11435, ..packet },
            Packet { family: Family::V6, ..packet },
            Packet { protocol: Protocol::Udp, ..packet },
        ] {
            assert_ne!(FlowKey::of(&other, 7), key, "{other:?}");
        }
    }
}
