//! Packets as nearly all are, read in a few instructions.

use super::{ETHERNET_BYTES, ethertype, transport};
use crate::{
    packet::{Known, Outcome, Packet, Protocol},
    reader::Reader,
};

/// The destination port of a plain packet, whose network header, of this `EtherType`, stands at `offset`: an IPv4 header without options,
/// not of a fragment, or an IPv6 header, with TCP or UDP right behind it.
///
/// `None` says nothing of a packet. Where there is a port, [`network`](super::network) reads the same one.
#[inline(always)]
pub fn plain_port<R: Reader + ?Sized>(
    reader: &R,
    ether_type: u16,
    offset: usize,
) -> Option<(Protocol, u16)> {
    const FIRST_OCTET: u8 = 0x45;
    /// The flag for more fragments, and a fragment's offset.
    const FRAGMENT: u16 = 0x3fff;
    let (protocol, port) = match ether_type {
        ethertype::IPV4 => {
            let header = reader.read::<24>(offset)?;
            let fragment = u16::from_ne_bytes([header[6], header[7]]);
            if header[0] != FIRST_OCTET || fragment & FRAGMENT.to_be() != 0 {
                return None;
            }
            (header[9], [header[22], header[23]])
        }
        ethertype::IPV6 => {
            let header = reader.read::<44>(offset)?;
            if header[0] >> 4 != 6 {
                return None;
            }
            (header[6], [header[42], header[43]])
        }
        _ => return None,
    };
    Some((Protocol::from_number(protocol)?, u16::from_be_bytes(port)))
}

/// [`plain_port`] of an Ethernet frame without tags.
#[inline(always)]
pub fn plain_frame_port<R: Reader + ?Sized>(reader: &R) -> Option<(Protocol, u16)> {
    plain_port(reader, ether_type(reader)?, ETHERNET_BYTES)
}

/// What [`frame`](super::frame) makes of a frame that has a [`plain_frame_port`] of this protocol.
#[inline(always)]
pub fn plain_frame<R: Reader + ?Sized>(
    reader: &R,
    protocol: Protocol,
    packet: &mut Packet,
) -> Outcome {
    read_frame(reader, protocol, packet).unwrap_or(Outcome::Undecidable(Known::Nothing))
}

#[inline(always)]
fn read_frame<R: Reader + ?Sized>(
    reader: &R,
    protocol: Protocol,
    packet: &mut Packet,
) -> Option<Outcome> {
    packet.protocol = protocol;
    let transport = if ether_type(reader)? == ethertype::IPV4 {
        packet.set_ipv4(reader.read::<8>(ETHERNET_BYTES + 12)?);
        ETHERNET_BYTES + 20
    } else {
        packet.set_ipv6(&reader.read::<32>(ETHERNET_BYTES + 8)?);
        ETHERNET_BYTES + 40
    };
    Some(transport::read(reader, transport, false, packet))
}

#[inline(always)]
fn ether_type<R: Reader + ?Sized>(reader: &R) -> Option<u16> {
    reader.read::<2>(ETHERNET_BYTES - 2).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn ipv4(protocol: u8) -> Vec<u8> {
        let mut packet = Vec::from([0x45, 0, 0, 24, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend([203, 0, 113, 9, 198, 51, 100, 4, 0xc8, 0x22, 0x2c, 0xaa]);
        packet
    }

    fn ipv6(protocol: u8) -> Vec<u8> {
        let mut packet = Vec::from([0x60, 0, 0, 0, 0, 4, protocol, 64]);
        packet.extend([0x20; 32]);
        packet.extend([0xc8, 0x22, 0x2c, 0xaa]);
        packet
    }

    #[test]
    fn the_ports_of_plain_packets_are_read() {
        for (number, protocol) in [(6, Protocol::Tcp), (17, Protocol::Udp)] {
            let read = Some((protocol, 11434));
            assert_eq!(plain_port(&ipv4(number)[..], ethertype::IPV4, 0), read);
            assert_eq!(plain_port(&ipv6(number)[..], ethertype::IPV6, 0), read);
            let framed = [&[0; 12], &[8, 0][..], &ipv4(number)].concat();
            assert_eq!(plain_frame_port(&framed[..]), read);
            let tagged = [&[0; 12], &[0x81, 0, 0, 0, 8, 0][..], &ipv4(number)].concat();
            assert_eq!(plain_frame_port(&tagged[..]), None);
        }
    }

    #[test]
    fn nothing_is_said_of_any_other() {
        let none = |packet: &[u8], ether_type| {
            assert_eq!(plain_port(packet, ether_type, 0), None, "{packet:x?}");
        };
        for number in [0, 1, 43, 44, 47, 50, 51, 58, 60, 132] {
            none(&ipv4(number), ethertype::IPV4);
            none(&ipv6(number), ethertype::IPV6);
        }
        // A version, options, more fragments, a later fragment by either octet.
        for (at, octet) in [(0, 0x65), (0, 0x44), (0, 0x46), (6, 0x20), (6, 0x01), (7, 0x01)] {
            let mut packet = ipv4(6);
            packet[at] = octet;
            none(&packet, ethertype::IPV4);
        }
        let mut packet = ipv6(6);
        packet[0] = 0x45;
        none(&packet, ethertype::IPV6);
        none(&ipv4(6)[..23], ethertype::IPV4);
        none(&ipv6(6)[..43], ethertype::IPV6);
        none(&ipv4(6), ethertype::IPV6);
        none(&ipv4(6), ethertype::VLAN);
    }
}
