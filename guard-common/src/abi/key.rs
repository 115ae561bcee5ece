//! Keys of the policy's tables.

use crate::packet::{AddressBytes, Family, Packet, Protocol};

/// Key of `PORTS`. 24 bytes.
///
/// `family` and `address` have room for a port that is guarded at one address only; a port guarded at
/// every address has zeros there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    port: u16,
    slot: u8,
    protocol: u8,
    family: u8,
    reserved: [u8; 3],
    address: AddressBytes,
}

const _: () = assert!(size_of::<PortKey>() == 24);

impl PortKey {
    /// The key of a port that is guarded at every local address.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "slots are numbers below `POLICY_SLOTS`")]
    pub const fn at_every_address(slot: u32, protocol: Protocol, port: u16) -> Self {
        Self {
            port,
            slot: slot as u8,
            protocol: protocol as u8,
            family: 0,
            reserved: [0; 3],
            address: [0; 16],
        }
    }

    /// The policy slot it belongs to.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot as u32
    }

    /// Host byte order.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `None` for a number no writer of this layout stores.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol)
    }
}

/// The data of a key of `SOURCES`, after the kernel's own prefix length. 20 bytes.
///
/// Slot and family lie before the address and are always matched whole, so that one trie holds both slots and both
/// families apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    slot: u8,
    family: u8,
    reserved: [u8; 2],
    address: AddressBytes,
}

const _: () = assert!(size_of::<SourceKey>() == 20);

impl SourceKey {
    /// Bits before the address.
    pub const HEAD_BITS: u32 = 32;

    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "slots are numbers below `POLICY_SLOTS`")]
    pub const fn new(slot: u32, family: Family, address: AddressBytes) -> Self {
        Self { slot: slot as u8, family: family as u8, reserved: [0; 2], address }
    }

    /// The prefix length, in the kernel's sense, of a key for an address prefix of `bits` bits.
    #[inline(always)]
    #[must_use]
    pub const fn prefix_bits(bits: u8) -> u32 {
        Self::HEAD_BITS + bits as u32
    }

    /// The policy slot it belongs to.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot as u32
    }

    /// `None` for a number no writer of this layout stores.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        Family::from_number(self.family)
    }

    #[must_use]
    pub const fn address(&self) -> &AddressBytes {
        &self.address
    }
}

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
    use crate::abi::layout::layout;

    #[test]
    fn layout_is_pinned() {
        layout!(PortKey, size 24, align 2, {
            port: 0, slot: 2, protocol: 3, family: 4, reserved: 5, address: 8,
        });
        layout!(SourceKey, size 20, align 1, { slot: 0, family: 1, reserved: 2, address: 4 });
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

    #[test]
    fn a_port_key_says_what_it_was_made_of() {
        let key = PortKey::at_every_address(1, Protocol::Udp, 11434);
        assert_eq!((key.slot(), key.protocol(), key.port()), (1, Some(Protocol::Udp), 11434));
        // What stands for "every address" and the room left must be zeros: a hash key is compared whole.
        assert_eq!((key.family, key.reserved, key.address), (0, [0; 3], [0; 16]));
    }

    #[test]
    fn port_keys_differ_by_slot_protocol_and_port() {
        let key = PortKey::at_every_address(0, Protocol::Tcp, 53);
        assert_ne!(key, PortKey::at_every_address(1, Protocol::Tcp, 53));
        assert_ne!(key, PortKey::at_every_address(0, Protocol::Udp, 53));
        assert_ne!(key, PortKey::at_every_address(0, Protocol::Tcp, 54));
    }

    #[test]
    fn a_source_key_says_what_it_was_made_of() {
        let address = [0x20; 16];
        let key = SourceKey::new(1, Family::V6, address);
        assert_eq!((key.slot(), key.family(), key.address()), (1, Some(Family::V6), &address));
        assert_eq!(key.reserved, [0; 2]);
        assert_ne!(key, SourceKey::new(1, Family::V4, address));
    }

    #[test]
    fn what_lies_before_the_address_is_always_matched() {
        let head_bytes = core::mem::offset_of!(SourceKey, address);
        assert_eq!(usize::try_from(SourceKey::HEAD_BITS), Ok(head_bytes * 8));
        assert_eq!(SourceKey::prefix_bits(0), 32);
        assert_eq!(SourceKey::prefix_bits(32), 64);
        assert_eq!(SourceKey::prefix_bits(128), 160);
    }
}
