//! The ports of TCP (RFC 9293) and UDP (RFC 768).

use crate::{
    packet::{Known, Outcome, Packet, Protocol},
    reader::Reader,
};

/// Reads the header at `offset`; of a first fragment (`is_fragment`) its ports only.
#[inline(always)]
pub(super) fn read<R: Reader + ?Sized>(
    reader: &R,
    offset: usize,
    is_fragment: bool,
    packet: &mut Packet,
) -> Outcome {
    let Some([s0, s1, d0, d1]) = reader.read::<4>(offset) else {
        return Outcome::Undecidable(Known::Protocol);
    };
    packet.source_port = u16::from_be_bytes([s0, s1]);
    packet.port = u16::from_be_bytes([d0, d1]);
    if is_fragment {
        // It may end behind the ports: what stands there is then the padding of the shortest Ethernet frame, no
        // part of the header. The whole header is checked by the kernel, after reassembly.
        return Outcome::Whole;
    }
    let sound = match packet.protocol {
        // A packet may end right behind the ports: then there is nothing here to contradict.
        Protocol::Tcp => reader.read::<2>(offset + 12).is_none_or(|[words, flags]| {
            packet.tcp_flags = flags;
            words >> 4 >= 5
        }),
        Protocol::Udp => reader.read::<2>(offset + 4).is_none_or(|length| {
            // Zero is what a jumbogram carries (RFC 2675 section 4).
            matches!(u16::from_be_bytes(length), 0 | 8..)
        }),
    };
    if sound { Outcome::Whole } else { Outcome::Broken }
}
