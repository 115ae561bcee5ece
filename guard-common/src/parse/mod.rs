//! From bytes to the facts a verdict needs.
//!
//! Three entries: [`frame`] for a hook that sees the Ethernet header (XDP), [`network`] for one that says where the network
//! header is and what it holds (TCX), [`at_socket`] for one behind the kernel's own parser (cgroup). Before each comes
//! [`plain_port`], which reads packets as nearly all are and leaves the others to them. Length fields are never trusted over the buffer's own end,
//! and are not compared with it either: BIG TCP packets carry a length of zero.

mod ipv4;
mod ipv6;
mod plain;
mod socket;
mod transport;

pub use ipv6::MAX_EXTENSION_HEADERS;
pub use plain::{plain_frame, plain_frame_port, plain_port};
pub use socket::at_socket;

use crate::{
    packet::{Known, Outcome, Packet},
    reader::Reader,
};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;

/// VLAN tags that are looked behind (IEEE 802.1Q and 802.1ad); a third makes a packet undecidable.
pub const MAX_VLAN_TAGS: usize = 2;

/// `EtherType`s, from `include/uapi/linux/if_ether.h`.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const VLAN_SERVICE: u16 = 0x88a8;
}

/// Reads an Ethernet frame into a packet that is [`Packet::EMPTY`].
#[inline(always)]
pub fn frame<R: Reader + ?Sized>(reader: &R, packet: &mut Packet) -> Outcome {
    let Some(kind) = reader.read::<2>(ETHERNET_BYTES - 2) else {
        return Outcome::NotOurs;
    };
    network(reader, u16::from_be_bytes(kind), ETHERNET_BYTES, packet)
}

/// Reads a packet whose network header, of this `EtherType`, stands at `offset`, into one that is [`Packet::EMPTY`]: of an IPv4
/// address only the four bytes are written.
///
/// VLAN tags may still stand there: a hook behind the kernel's untagging sees the inner of two tags so.
#[inline(always)]
pub fn network<R: Reader + ?Sized>(
    reader: &R,
    ether_type: u16,
    offset: usize,
    packet: &mut Packet,
) -> Outcome {
    let mut ether_type = ether_type;
    let mut offset = offset;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan_tag(ether_type) {
            break;
        }
        let Some(kind) = reader.read::<2>(offset + 2) else {
            return Outcome::Undecidable(Known::Nothing);
        };
        ether_type = u16::from_be_bytes(kind);
        offset += 4;
    }
    let next = match ether_type {
        ethertype::IPV4 => ipv4::read(reader, offset, packet),
        ethertype::IPV6 => ipv6::read(reader, offset, packet),
        tag if is_vlan_tag(tag) => Next::End(Outcome::Undecidable(Known::Nothing)),
        _ => Next::End(Outcome::NotOurs),
    };
    match next {
        Next::Transport { offset, is_fragment } => {
            transport::read(reader, offset, is_fragment, packet)
        }
        Next::End(outcome) => outcome,
    }
}

/// What stands behind an IP header and its extension headers.
enum Next {
    /// TCP or UDP, whole or the first fragment of it.
    Transport { offset: usize, is_fragment: bool },
    /// Nothing that can be read on.
    End(Outcome),
}

const fn is_vlan_tag(ether_type: u16) -> bool {
    matches!(ether_type, ethertype::VLAN | ethertype::VLAN_SERVICE)
}

#[cfg(any(test, feature = "against-etherparse"))]
pub mod against_etherparse;
#[cfg(test)]
mod tests;
