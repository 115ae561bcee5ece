//! The ports of TCP (RFC 9293) and UDP (RFC 768).

use crate::{
    packet::{Known, Outcome, Packet, Protocol},
    reader::Reader,
};

/// As far as the TCP flags, and as far as the UDP length.
const TCP_BYTES: usize = 14;
const UDP_BYTES: usize = 6;

/// Reads the header at `offset`; of a first fragment (`is_fragment`) its ports only.
#[inline(always)]
pub(super) fn read<R: Reader + ?Sized>(
    reader: &R,
    offset: usize,
    is_fragment: bool,
    packet: &mut Packet,
) -> Outcome {
    // A first fragment may end behind the ports: what stands there is then the padding of the shortest Ethernet frame, no part of
    // the header. The whole header is checked by the kernel, after reassembly.
    //
    // Of others all is read at once: at most hooks, each read is a call.
    let whole = match packet.protocol {
        _ if is_fragment => None,
        Protocol::Tcp => reader.read::<TCP_BYTES>(offset).map(|header| {
            packet.tcp_flags = header[13];
            ([header[0], header[1], header[2], header[3]], header[12] >> 4 >= 5)
        }),
        Protocol::Udp => reader.read::<UDP_BYTES>(offset).map(|header| {
            let length = u16::from_be_bytes([header[4], header[5]]);
            // Zero is what a jumbogram carries (RFC 2675 section 4).
            ([header[0], header[1], header[2], header[3]], matches!(length, 0 | 8..))
        }),
    };
    // A packet may end right behind the ports: then there is nothing here to contradict.
    let Some(([s0, s1, d0, d1], is_sound)) =
        whole.or_else(|| reader.read::<4>(offset).map(|ports| (ports, true)))
    else {
        return Outcome::Undecidable(Known::Protocol);
    };
    packet.source_port = u16::from_be_bytes([s0, s1]);
    packet.port = u16::from_be_bytes([d0, d1]);
    if is_sound { Outcome::Whole } else { Outcome::Broken }
}
