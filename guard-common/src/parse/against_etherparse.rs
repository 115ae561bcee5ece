//! The parser against etherparse, which shares no code with it.
//!
//! Where the two differ, and are meant to:
//!
//! - Length fields (IPv4 total length, IPv6 payload length, UDP length beyond the end). Ours ignores them;
//!   etherparse's strict slicing refuses those that don't fit, and cuts the packet at those that do.
//! - Transport headers cut short behind the ports: ours has the ports; etherparse wants the header whole.
//! - Fragments: of a first one ours has the ports; etherparse reads no transport header of any.
//! - A hop-by-hop header that is not the first: ours steps over it; etherparse refuses it, as the kernel does.
//! - An authentication header of length zero: ours steps over its eight bytes, as the kernel does; etherparse refuses it.
//!   In IPv4, where ours does not look behind one, etherparse does.
//! - More than two VLAN tags, tags of type 0x9100, `MACsec`, and more than six extension headers: etherparse goes on.

use std::{format, string::String};

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, IpFragOffset, IpNumber, Ipv4HeaderSlice,
    Ipv6FragmentHeader, Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, LinkExtSlice, NetSlice, SingleVlanHeaderSlice, SlicedPacket,
    TransportSlice, ether_type, ip_number,
};

use super::{
    ETHERNET_BYTES, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS, frame, plain_frame, plain_frame_port,
};
use crate::packet::{Family, Outcome, Packet, Protocol};

fn padded(address: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&address);
    bytes
}

fn read(bytes: &[u8]) -> (Outcome, Packet) {
    let mut packet = Packet::EMPTY;
    let outcome = frame(bytes, &mut packet);
    (outcome, packet)
}

/// What etherparse's strict slicing makes of a frame that is TCP or UDP, whole, and within our bounds.
fn sliced(bytes: &[u8]) -> Option<Packet> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let tags_are_ours = packet.link_exts.len() <= MAX_VLAN_TAGS
        && packet.link_exts.iter().all(|ext| matches!(ext, LinkExtSlice::Vlan(_)))
        // The type of a tag stands in what is before it.
        && packet.link_exts.iter().all(|ext| {
            ext.ether_payload().is_none_or(|behind| behind.ether_type.0 != 0x9100)
        })
        && bytes[12..14] != [0x91, 0x00];
    if !tags_are_ours {
        return None;
    }
    let (family, source, destination) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) if ip.extensions().is_empty() => {
            let header = ip.header();
            (Family::V4, padded(header.source()), padded(header.destination()))
        }
        NetSlice::Ipv6(ip)
            if ip.extensions().clone().into_iter().count() <= MAX_EXTENSION_HEADERS =>
        {
            (Family::V6, ip.header().source(), ip.header().destination())
        }
        _ => return None,
    };
    let (protocol, source_port, port, tcp_flags) = match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            (Protocol::Tcp, tcp.source_port(), tcp.destination_port(), tcp.slice()[13])
        }
        TransportSlice::Udp(udp) => (Protocol::Udp, udp.source_port(), udp.destination_port(), 0),
        _ => return None,
    };
    Some(Packet { source, destination, family, protocol, source_port, port, tcp_flags })
}

/// Where the transport header of a frame stands, walked with etherparse's readers of single headers, which know nothing of
/// the lengths and places that its slicing insists on.
struct Place {
    family: Family,
    source: [u8; 16],
    destination: [u8; 16],
    number: IpNumber,
    offset: usize,
    is_first_fragment: bool,
}

fn walked(bytes: &[u8]) -> Option<Place> {
    let ethernet = Ethernet2HeaderSlice::from_slice(bytes).ok()?;
    let mut kind = ethernet.ether_type();
    let mut offset = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if matches!(kind, ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING) {
            kind = SingleVlanHeaderSlice::from_slice(bytes.get(offset..)?).ok()?.ether_type();
            offset += 4;
        }
    }
    match kind {
        ether_type::IPV4 => walked4(bytes, offset),
        ether_type::IPV6 => walked6(bytes, offset),
        EtherType(_) => None,
    }
}

fn walked4(bytes: &[u8], offset: usize) -> Option<Place> {
    let header = Ipv4HeaderSlice::from_slice(bytes.get(offset..)?).ok()?;
    (header.fragments_offset() == IpFragOffset::ZERO).then(|| Place {
        family: Family::V4,
        source: padded(header.source()),
        destination: padded(header.destination()),
        number: header.protocol(),
        offset: offset + header.slice().len(),
        is_first_fragment: header.more_fragments(),
    })
}

fn walked6(bytes: &[u8], offset: usize) -> Option<Place> {
    let header = Ipv6HeaderSlice::from_slice(bytes.get(offset..)?).ok()?;
    let mut place = Place {
        family: Family::V6,
        source: header.source(),
        destination: header.destination(),
        number: header.next_header(),
        offset: offset + Ipv6Header::LEN,
        is_first_fragment: false,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        let rest = bytes.get(place.offset..)?;
        let (next, length) = match place.number {
            ip_number::IPV6_FRAG => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                if fragment.fragment_offset() != IpFragOffset::ZERO {
                    return None;
                }
                place.is_first_fragment |= fragment.more_fragments();
                (fragment.next_header(), Ipv6FragmentHeader::LEN)
            }
            ip_number::AUTH if *rest.get(1)? == 0 => (IpNumber(rest[0]), 8),
            ip_number::AUTH => {
                let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
            _ => break,
        };
        place.number = next;
        place.offset += length;
    }
    Some(place)
}

/// Whether what the parser says is what stands in the frame.
///
/// # Errors
/// When it is not: both, to read.
pub fn agrees(bytes: &[u8]) -> Result<(), String> {
    let said = read(bytes);
    if let Some((protocol, port)) = plain_frame_port(bytes) {
        let mut packet = Packet::EMPTY;
        let at_a_glance = (plain_frame(bytes, protocol, &mut packet), packet);
        same(at_a_glance, said)?;
        if packet.port != port || !matches!(said.0, Outcome::Whole | Outcome::Broken) {
            return Err(format!("{said:?} is said, and port {port} at a glance"));
        }
    }
    if let Some(expected) = sliced(bytes) {
        same(said, (Outcome::Whole, expected))?;
    }
    match walked(bytes).and_then(|place| expected_at(&place, bytes)) {
        Some(expected) => same(said, expected),
        None if matches!(said.0, Outcome::Whole | Outcome::Broken) => {
            Err(format!("{said:?} is said of a frame without a transport header"))
        }
        None => Ok(()),
    }
}

fn same(said: (Outcome, Packet), expected: (Outcome, Packet)) -> Result<(), String> {
    if said == expected { Ok(()) } else { Err(format!("{said:?} is said, and is {expected:?}")) }
}

/// What stands at the place of a transport header of TCP or UDP whose ports are there.
fn expected_at(place: &Place, bytes: &[u8]) -> Option<(Outcome, Packet)> {
    let protocol = match place.number {
        ip_number::TCP => Protocol::Tcp,
        ip_number::UDP => Protocol::Udp,
        _ => return None,
    };
    let octet = |at: usize| bytes.get(place.offset + at).copied();
    let number = |at: usize| Some(u16::from_be_bytes([octet(at)?, octet(at + 1)?]));
    let tcp_flags = if protocol == Protocol::Tcp && !place.is_first_fragment {
        octet(13).unwrap_or(0)
    } else {
        0
    };
    let contradicts_itself = !place.is_first_fragment
        && match protocol {
            Protocol::Tcp => octet(13).is_some() && octet(12).is_some_and(|words| words < 0x50),
            Protocol::Udp => number(4).is_some_and(|length| (1..8).contains(&length)),
        };
    let packet = Packet {
        source: place.source,
        destination: place.destination,
        family: place.family,
        protocol,
        source_port: number(0)?,
        port: number(2)?,
        tcp_flags,
    };
    Some((if contradicts_itself { Outcome::Broken } else { Outcome::Whole }, packet))
}

#[cfg(test)]
mod tests;
