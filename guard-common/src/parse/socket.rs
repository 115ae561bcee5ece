//! What a hook at the socket reads: the kernel's own parser has been there before it.

use crate::{
    packet::{Outcome, Packet, Protocol},
    parse::{ethertype, network},
    reader::Reader,
};

/// Reads a packet that has reached a socket of `protocol`, from its IP header on.
///
/// The addresses stand at a fixed place, so they are always known. The ports are 0 when more headers stand before them than are
/// walked; the socket's own port then decides. A packet too short for an IP header, which no socket gets, reads as one from 0.0.0.0.
#[inline(always)]
pub fn at_socket<R: Reader + ?Sized>(reader: &R, protocol: Protocol, packet: &mut Packet) {
    let is_ipv4 = matches!(reader.read::<1>(0), Some([first]) if first >> 4 == 4);
    let ether_type = if is_ipv4 { ethertype::IPV4 } else { ethertype::IPV6 };
    if !matches!(network(reader, ether_type, 0, packet), Outcome::Whole | Outcome::Broken) {
        packet.source_port = 0;
        packet.port = 0;
        packet.tcp_flags = 0;
        addresses(reader, is_ipv4, packet);
    }
    packet.protocol = protocol;
}

#[inline(always)]
fn addresses<R: Reader + ?Sized>(reader: &R, is_ipv4: bool, packet: &mut Packet) {
    if is_ipv4 {
        packet.set_ipv4(reader.read::<8>(12).unwrap_or_default());
    } else {
        packet.set_ipv6(&reader.read::<32>(8).unwrap_or_default());
    }
}
