//! One test for each arm of the parser, over bytes put together by hand.

use std::{vec, vec::Vec};

use super::*;
use crate::packet::{Family, Protocol};

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const SOURCE4: [u8; 4] = [203, 0, 113, 9];
const DESTINATION4: [u8; 4] = [198, 51, 100, 4];
const SOURCE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6];
const DESTINATION6: [u8; 16] =
    [0x20, 1, 0xd, 0xb8, 0xff, 1, 0xff, 2, 0xff, 3, 0xff, 4, 0xff, 5, 0, 1];

const SOURCE_PORT: u16 = 51_234;
const PORT: u16 = 11_434;
const SYN: u8 = 0x02;

fn padded(address: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&address);
    bytes
}

fn ports() -> Vec<u8> {
    [SOURCE_PORT.to_be_bytes(), PORT.to_be_bytes()].concat()
}

/// A SYN without options.
fn tcp() -> Vec<u8> {
    let mut header = ports();
    header.extend([0; 8]);
    header.extend([5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// A datagram that carries four bytes.
fn udp() -> Vec<u8> {
    let mut header = ports();
    header.extend([0, 12, 0, 0]);
    header.extend(*b"data");
    header
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(SOURCE4);
    packet.extend(DESTINATION4);
    packet.extend(payload);
    packet
}

/// As [`ipv4`], with this fragment offset in units of eight bytes.
fn ipv4_fragment(protocol: u8, more: bool, offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4(protocol, payload);
    let field = u16::from(more) << 13 | offset;
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend(SOURCE6);
    packet.extend(DESTINATION6);
    packet.extend(payload);
    packet
}

/// An extension header with a length in units of eight bytes behind the first eight.
fn options(next: u8, more_words: u8) -> Vec<u8> {
    let mut header = vec![next, more_words];
    header.resize(8 + usize::from(more_words) * 8, 0xee);
    header
}

/// The length of an authentication header counts units of four bytes, less two (RFC 4302 section 2.2).
fn authentication(next: u8, length: u8) -> Vec<u8> {
    let mut header = vec![next, length, 0, 0];
    header.resize((usize::from(length) + 2) * 4, 0xee);
    header
}

/// A fragment header with this offset in units of eight bytes.
fn fragment(next: u8, more: bool, offset: u16) -> Vec<u8> {
    let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next, 0xee, o0, o1, 1, 2, 3, 4]
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A tag, and the type of what stands behind it.
fn tag(kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x60, 42];
    bytes.extend(kind.to_be_bytes());
    bytes
}

fn read_frame(bytes: &[u8]) -> (Outcome, Packet) {
    let mut packet = Packet::EMPTY;
    let outcome = frame(bytes, &mut packet);
    (outcome, packet)
}

/// Reads a bare IP packet, as it stands behind another header.
fn read_ip(ether_type: u16, bytes: &[u8]) -> (Outcome, Packet) {
    let at_start = read_at(ether_type, bytes, 0);
    let behind_a_header = read_at(ether_type, &[&[0xee; 3], bytes].concat(), 3);
    assert_eq!(at_start, behind_a_header);
    at_start
}

fn read_at(ether_type: u16, bytes: &[u8], offset: usize) -> (Outcome, Packet) {
    let mut packet = Packet::EMPTY;
    let outcome = network(bytes, ether_type, offset, &mut packet);
    (outcome, packet)
}

fn read4(bytes: &[u8]) -> (Outcome, Packet) {
    read_ip(ethertype::IPV4, bytes)
}

fn read6(bytes: &[u8]) -> (Outcome, Packet) {
    read_ip(ethertype::IPV6, bytes)
}

const WHOLE4: Packet = Packet {
    source: [203, 0, 113, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    destination: [198, 51, 100, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    family: Family::V4,
    protocol: Protocol::Tcp,
    source_port: SOURCE_PORT,
    port: PORT,
    tcp_flags: SYN,
};

const WHOLE6: Packet =
    Packet { source: SOURCE6, destination: DESTINATION6, family: Family::V6, ..WHOLE4 };

fn as_udp(packet: Packet) -> Packet {
    Packet { protocol: Protocol::Udp, tcp_flags: 0, ..packet }
}

fn without_flags(packet: Packet) -> Packet {
    Packet { tcp_flags: 0, ..packet }
}

fn without_ports(packet: Packet) -> Packet {
    Packet { source_port: 0, port: 0, tcp_flags: 0, ..packet }
}

#[track_caller]
fn assert_addresses_are_known(known: Known, (outcome, packet): (Outcome, Packet), whole: Packet) {
    assert_eq!(outcome, Outcome::Undecidable(known));
    assert_eq!(packet.family, whole.family);
    assert_eq!(packet.source, whole.source);
    assert_eq!(packet.destination, whole.destination);
    assert_eq!((packet.source_port, packet.port, packet.tcp_flags), (0, 0, 0));
}

#[track_caller]
fn assert_protocol_is_known(read: (Outcome, Packet), whole: Packet) {
    assert_eq!(read, (Outcome::Undecidable(Known::Protocol), without_ports(whole)));
}

#[track_caller]
fn assert_later_fragment(read: (Outcome, Packet), whole: Packet) {
    assert_eq!(read, (Outcome::LaterFragment(Known::Protocol), without_ports(whole)));
}

/// Of a packet whose first fragment holds more headers.
#[track_caller]
fn assert_later_fragment_of_headers((outcome, packet): (Outcome, Packet), whole: Packet) {
    assert_eq!(outcome, Outcome::LaterFragment(Known::Addresses));
    assert_eq!((packet.source, packet.destination), (whole.source, whole.destination));
    assert_eq!((packet.source_port, packet.port, packet.tcp_flags), (0, 0, 0));
}

// Plain packets.

#[test]
fn tcp_and_udp_over_both_families() {
    assert_eq!(padded(SOURCE4), WHOLE4.source);
    assert_eq!(read4(&ipv4(TCP, &tcp())), (Outcome::Whole, WHOLE4));
    assert_eq!(read4(&ipv4(UDP, &udp())), (Outcome::Whole, as_udp(WHOLE4)));
    assert_eq!(read6(&ipv6(TCP, &tcp())), (Outcome::Whole, WHOLE6));
    assert_eq!(read6(&ipv6(UDP, &udp())), (Outcome::Whole, as_udp(WHOLE6)));
}

#[test]
fn every_tcp_flag_is_read() {
    for flags in 0..=u8::MAX {
        let mut header = tcp();
        header[13] = flags;
        let expected = Packet { tcp_flags: flags, ..WHOLE4 };
        assert_eq!(read4(&ipv4(TCP, &header)), (Outcome::Whole, expected));
    }
}

#[test]
fn other_protocols_are_not_ours() {
    for protocol in 0..=u8::MAX {
        if !matches!(protocol, TCP | UDP) {
            assert_eq!(read4(&ipv4(protocol, &tcp())).0, Outcome::NotOurs, "IPv4 {protocol}");
        }
        let is_walked = matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        );
        if !matches!(protocol, TCP | UDP) && !is_walked {
            assert_eq!(read6(&ipv6(protocol, &tcp())).0, Outcome::NotOurs, "IPv6 {protocol}");
        }
    }
}

#[test]
fn an_authentication_header_is_walked_in_ipv6_only() {
    // Both families' sockets get what stands behind one only through a security association, and the backstop
    // judges it there. The walk in IPv6 is for a chain that goes on behind it.
    assert_eq!(read4(&ipv4(AUTHENTICATION, &authentication(TCP, 4))).0, Outcome::NotOurs);
    let chain = [authentication(TCP, 4), tcp()].concat();
    assert_eq!(read6(&ipv6(AUTHENTICATION, &chain)), (Outcome::Whole, WHOLE6));
}

// Ethernet.

#[test]
fn an_untagged_frame() {
    assert_eq!(
        read_frame(&ethernet(ethertype::IPV4, &ipv4(TCP, &tcp()))),
        (Outcome::Whole, WHOLE4)
    );
    assert_eq!(
        read_frame(&ethernet(ethertype::IPV6, &ipv6(TCP, &tcp()))),
        (Outcome::Whole, WHOLE6)
    );
}

#[test]
fn frames_of_other_types_are_not_ours() {
    // ARP, PPPoE, MPLS, an 802.3 length, and a tag type the kernel does not take for one.
    for kind in [0x0806, 0x8864, 0x8847, 0x0040, 0x9100, 0, 0xffff] {
        let frame = ethernet(kind, &ipv4(TCP, &tcp()));
        assert_eq!(read_frame(&frame).0, Outcome::NotOurs, "{kind:#06x}");
    }
}

#[test]
fn one_and_two_tags_of_both_types_are_looked_behind() {
    let tags = [ethertype::VLAN, ethertype::VLAN_SERVICE];
    for outer in tags {
        let inside = [tag(ethertype::IPV4), ipv4(TCP, &tcp())].concat();
        assert_eq!(read_frame(&ethernet(outer, &inside)), (Outcome::Whole, WHOLE4));
        for inner in tags {
            let inside = [tag(inner), tag(ethertype::IPV6), ipv6(UDP, &udp())].concat();
            let expected = (Outcome::Whole, as_udp(WHOLE6));
            assert_eq!(read_frame(&ethernet(outer, &inside)), expected);
            // A hook behind the kernel's untagging is told the inner tag's type.
            let inside = [tag(ethertype::IPV6), ipv6(UDP, &udp())].concat();
            assert_eq!(read_ip(inner, &inside), expected);
        }
    }
}

#[test]
fn a_third_tag_is_undecidable() {
    for third in [ethertype::VLAN, ethertype::VLAN_SERVICE] {
        let inside =
            [tag(ethertype::VLAN), tag(third), tag(ethertype::IPV4), ipv4(TCP, &tcp())].concat();
        let frame = ethernet(ethertype::VLAN_SERVICE, &inside);
        assert_eq!(read_frame(&frame).0, Outcome::Undecidable(Known::Nothing));
    }
}

#[test]
fn tagged_frames_of_other_types_are_not_ours() {
    let inside = [tag(ethertype::VLAN), tag(0x0806), ipv4(TCP, &tcp())].concat();
    assert_eq!(read_frame(&ethernet(ethertype::VLAN, &inside)).0, Outcome::NotOurs);
}

// IPv4.

#[test]
fn ipv4_options_of_every_length_are_stepped_over() {
    for words in 5..=15_u8 {
        let mut packet = ipv4(TCP, &[]);
        packet[0] = 0x40 | words;
        packet.resize(usize::from(words) * 4, 0x01);
        packet.extend(tcp());
        assert_eq!(read4(&packet), (Outcome::Whole, WHOLE4), "{words} words");
    }
}

#[test]
fn an_ipv4_header_below_five_words_is_malformed() {
    for words in 0..5 {
        let mut packet = ipv4(TCP, &tcp());
        packet[0] = 0x40 | words;
        assert_eq!(read4(&packet), (Outcome::Malformed(Known::Protocol), without_ports(WHOLE4)));
    }
}

#[test]
fn an_ipv4_header_of_another_version_is_malformed() {
    for version in (0..=15).filter(|version| *version != 4) {
        let mut packet = ipv4(UDP, &udp());
        packet[0] = version << 4 | 5;
        let expected = (Outcome::Malformed(Known::Protocol), without_ports(as_udp(WHOLE4)));
        assert_eq!(read4(&packet), expected, "version {version}");
    }
}

#[test]
fn a_malformed_ipv4_header_of_another_protocol_is_not_ours() {
    let mut packet = ipv4(1, &[0; 8]);
    packet[0] = 0x64;
    assert_eq!(read4(&packet).0, Outcome::NotOurs);
}

#[test]
fn length_fields_of_zero_and_beyond_the_end_change_nothing() {
    for length in [0, 1, 20, 40, u16::MAX] {
        let mut packet = ipv4(TCP, &tcp());
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(read4(&packet), (Outcome::Whole, WHOLE4), "total length {length}");
        let mut packet = ipv6(TCP, &tcp());
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        assert_eq!(read6(&packet), (Outcome::Whole, WHOLE6), "payload length {length}");
    }
}

#[test]
fn the_bits_beside_an_ipv4_fragment_offset_make_no_fragment() {
    // Don't fragment, and the reserved bit.
    for bits in [0x40, 0x80, 0xc0] {
        let mut packet = ipv4(TCP, &tcp());
        packet[6] = bits;
        assert_eq!(read4(&packet), (Outcome::Whole, WHOLE4));
    }
}

#[test]
fn a_first_ipv4_fragment_has_its_ports() {
    let first = ipv4_fragment(TCP, true, 0, &tcp());
    assert_eq!(read4(&first), (Outcome::Whole, without_flags(WHOLE4)));
    let first = ipv4_fragment(UDP, true, 0, &udp());
    assert_eq!(read4(&first), (Outcome::Whole, as_udp(WHOLE4)));
}

#[test]
fn a_later_ipv4_fragment_is_undecidable_whatever_it_holds() {
    for offset in [1, 2, 185, 0x1000, 0x1fff] {
        for more in [false, true] {
            let later = ipv4_fragment(TCP, more, offset, &tcp());
            assert_later_fragment(read4(&later), WHOLE4);
            let later = ipv4_fragment(UDP, more, offset, &[]);
            assert_later_fragment(read4(&later), as_udp(WHOLE4));
        }
    }
}

#[test]
fn a_later_ipv4_fragment_of_another_protocol_is_not_ours() {
    assert_eq!(read4(&ipv4_fragment(1, false, 185, &tcp())).0, Outcome::NotOurs);
}

#[test]
fn a_tiny_first_fragment_is_not_judged_by_the_padding_behind_it() {
    // Eight bytes of TCP, and what Ethernet adds up to its shortest frame: zeros where the data offset would be.
    let mut packet = ipv4_fragment(TCP, true, 0, &tcp()[..8]);
    packet.resize(46, 0);
    assert_eq!(read4(&packet), (Outcome::Whole, without_flags(WHOLE4)));
}

#[test]
fn a_first_fragment_without_its_ports_is_undecidable() {
    for held in 0..4 {
        let first = ipv4_fragment(TCP, true, 0, &tcp()[..held]);
        assert_protocol_is_known(read4(&first), WHOLE4);
        let first = ipv6(FRAGMENT, &[fragment(UDP, true, 0), udp()[..held].to_vec()].concat());
        assert_protocol_is_known(read6(&first), as_udp(WHOLE6));
    }
}

// IPv6.

#[test]
fn an_ipv6_header_of_another_version_is_malformed() {
    for version in (0..=15).filter(|version| *version != 6) {
        let mut packet = ipv6(TCP, &tcp());
        packet[0] = version << 4;
        let (outcome, read) = read6(&packet);
        assert_eq!(outcome, Outcome::Malformed(Known::Addresses), "version {version}");
        assert_eq!((read.source, read.destination), (SOURCE6, DESTINATION6));
        assert_eq!(read.port, 0);
    }
}

#[test]
fn the_ipv6_traffic_class_and_flow_label_are_ignored() {
    let mut packet = ipv6(TCP, &tcp());
    packet[..4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff]);
    assert_eq!(read6(&packet), (Outcome::Whole, WHOLE6));
}

#[test]
fn each_extension_header_of_every_length_is_stepped_over() {
    for length in 0..=u8::MAX {
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
            let chain = [options(TCP, length), tcp()].concat();
            assert_eq!(read6(&ipv6(kind, &chain)), (Outcome::Whole, WHOLE6), "{kind} {length}");
        }
        let chain = [authentication(UDP, length), udp()].concat();
        let expected = (Outcome::Whole, as_udp(WHOLE6));
        assert_eq!(read6(&ipv6(AUTHENTICATION, &chain)), expected, "authentication {length}");
    }
}

#[test]
fn the_length_octet_of_a_fragment_header_is_reserved() {
    let mut chain = fragment(TCP, false, 0);
    chain[1] = 0xff;
    chain.extend(tcp());
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, WHOLE6));
}

/// The headers of RFC 8200 section 4.1 in its order, without the encrypted one: the longest regular chain.
fn longest_chain(last_next: u8) -> Vec<u8> {
    [
        options(DESTINATION_OPTIONS, 1),
        options(ROUTING, 0),
        options(FRAGMENT, 2),
        fragment(AUTHENTICATION, false, 0),
        authentication(DESTINATION_OPTIONS, 4),
        options(last_next, 3),
    ]
    .concat()
}

#[test]
fn a_chain_at_the_bound_is_walked() {
    let packet = ipv6(HOP_BY_HOP, &[longest_chain(TCP), tcp()].concat());
    assert_eq!(read6(&packet), (Outcome::Whole, WHOLE6));
    let packet = ipv6(HOP_BY_HOP, &[longest_chain(UDP), udp()].concat());
    assert_eq!(read6(&packet), (Outcome::Whole, as_udp(WHOLE6)));
    assert_eq!(read6(&ipv6(HOP_BY_HOP, &longest_chain(58))).0, Outcome::NotOurs);
}

#[test]
fn a_chain_beyond_the_bound_is_undecidable() {
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        let packet = ipv6(HOP_BY_HOP, &[longest_chain(kind), options(TCP, 0), tcp()].concat());
        assert_addresses_are_known(Known::Addresses, read6(&packet), WHOLE6);
    }
    let chain = [longest_chain(FRAGMENT), fragment(TCP, false, 7), tcp()].concat();
    assert_addresses_are_known(Known::Addresses, read6(&ipv6(HOP_BY_HOP, &chain)), WHOLE6);
    let chain = [longest_chain(AUTHENTICATION), authentication(TCP, 4), tcp()].concat();
    assert_addresses_are_known(Known::Addresses, read6(&ipv6(HOP_BY_HOP, &chain)), WHOLE6);
}

#[test]
fn six_and_seven_of_one_header() {
    let six: Vec<u8> = (0..5).flat_map(|_| options(DESTINATION_OPTIONS, 0)).collect();
    let six = [six, options(TCP, 0)].concat();
    let packet = ipv6(DESTINATION_OPTIONS, &[six.clone(), tcp()].concat());
    assert_eq!(read6(&packet), (Outcome::Whole, WHOLE6));
    let seven = [options(DESTINATION_OPTIONS, 0), six, tcp()].concat();
    let packet = ipv6(DESTINATION_OPTIONS, &seven);
    assert_addresses_are_known(Known::Addresses, read6(&packet), WHOLE6);
}

#[test]
fn a_first_ipv6_fragment_has_its_ports() {
    let chain = [fragment(TCP, true, 0), tcp()].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, without_flags(WHOLE6)));
    // Behind further headers of the fragmentable part.
    let chain = [fragment(DESTINATION_OPTIONS, true, 0), options(UDP, 0), udp()].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, as_udp(WHOLE6)));
}

#[test]
fn a_tiny_first_ipv6_fragment_is_not_judged_by_the_padding_behind_it() {
    let chain = [fragment(TCP, true, 0), tcp()[..8].to_vec(), vec![0; 40]].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, without_flags(WHOLE6)));
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let chain = [fragment(TCP, false, 0), tcp()].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, WHOLE6));
    let mut header = tcp();
    header[12] = 0;
    let chain = [fragment(TCP, false, 0), header].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)).0, Outcome::Broken);
}

#[test]
fn the_reserved_bits_of_a_fragment_header_make_no_later_fragment() {
    let mut chain = [fragment(TCP, false, 0), tcp()].concat();
    chain[3] = 0b110;
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, WHOLE6));
}

#[test]
fn a_later_ipv6_fragment_is_undecidable_whatever_it_holds() {
    for offset in [1, 2, 0x1000, 0x1fff] {
        for more in [false, true] {
            let chain = [fragment(TCP, more, offset), tcp()].concat();
            assert_later_fragment(read6(&ipv6(FRAGMENT, &chain)), WHOLE6);
            let chain = [fragment(UDP, more, offset), tcp()].concat();
            assert_later_fragment(read6(&ipv6(FRAGMENT, &chain)), as_udp(WHOLE6));
            // Behind headers of the part that is not fragmented.
            let chain = [options(ROUTING, 0), options(FRAGMENT, 0), fragment(TCP, more, offset)];
            assert_later_fragment(read6(&ipv6(HOP_BY_HOP, &chain.concat())), WHOLE6);
        }
    }
}

#[test]
fn a_later_ipv6_fragment_says_nothing_of_headers_that_the_first_holds() {
    for kind in [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS] {
        // What stands here looks like such a header, and is the middle of something.
        let chain = [fragment(kind, false, 185), options(58, 0), tcp()].concat();
        assert_later_fragment_of_headers(read6(&ipv6(FRAGMENT, &chain)), WHOLE6);
    }
}

#[test]
fn a_later_ipv6_fragment_of_another_protocol_is_not_ours() {
    for protocol in [50, 58, 132, 59] {
        let chain = [fragment(protocol, false, 185), tcp()].concat();
        assert_eq!(read6(&ipv6(FRAGMENT, &chain)).0, Outcome::NotOurs);
    }
}

#[test]
fn a_fragment_within_a_fragment_is_seen() {
    let chain = [fragment(FRAGMENT, true, 0), fragment(TCP, true, 1), tcp()].concat();
    assert_later_fragment(read6(&ipv6(FRAGMENT, &chain)), WHOLE6);
    // The outer one is the first of several: what stands behind the inner, atomic one may be padding.
    let chain = [fragment(FRAGMENT, true, 0), fragment(TCP, false, 0), tcp()].concat();
    assert_eq!(read6(&ipv6(FRAGMENT, &chain)), (Outcome::Whole, without_flags(WHOLE6)));
}

// Transport.

#[test]
fn a_tcp_data_offset_below_five_words_is_broken() {
    for words in 0..16_u8 {
        let mut header = tcp();
        header[12] = words << 4 | 0x0f;
        let outcome = if words < 5 { Outcome::Broken } else { Outcome::Whole };
        assert_eq!(read4(&ipv4(TCP, &header)), (outcome, WHOLE4), "{words} words");
        assert_eq!(read6(&ipv6(TCP, &header)), (outcome, WHOLE6), "{words} words");
    }
}

#[test]
fn a_udp_length_below_its_header_is_broken_and_zero_is_a_jumbogram() {
    for length in [0_u16, 1, 7, 8, 9, 12, 256, u16::MAX] {
        let mut header = udp();
        header[4..6].copy_from_slice(&length.to_be_bytes());
        let outcome = if (1..8).contains(&length) { Outcome::Broken } else { Outcome::Whole };
        assert_eq!(read4(&ipv4(UDP, &header)), (outcome, as_udp(WHOLE4)), "length {length}");
        assert_eq!(read6(&ipv6(UDP, &header)), (outcome, as_udp(WHOLE6)), "length {length}");
    }
}

#[test]
fn the_length_in_a_first_fragment_is_left_to_reassembly() {
    let mut header = udp();
    header[4..6].copy_from_slice(&[0, 7]);
    let first = ipv4_fragment(UDP, true, 0, &header);
    assert_eq!(read4(&first), (Outcome::Whole, as_udp(WHOLE4)));
}

// Truncation.

/// What a packet cut at `end` comes to, when its headers end at these places.
struct Cuts {
    /// Below this a frame does not even say what it carries.
    ethernet: usize,
    /// Where the IP header ends: from here on the addresses are known.
    addresses: usize,
    /// Where the IP headers end: from here on the protocol is known.
    protocol: usize,
    /// From here on the ports are known.
    ports: usize,
    /// From here on the flags are known.
    flags: usize,
}

#[track_caller]
fn assert_cut_everywhere(
    bytes: &[u8],
    read: fn(&[u8]) -> (Outcome, Packet),
    cuts: &Cuts,
    whole: Packet,
) {
    for end in 0..=bytes.len() {
        let (outcome, packet) = read(&bytes[..end]);
        if end < cuts.ethernet {
            assert_eq!(outcome, Outcome::NotOurs, "cut at {end}");
        } else if end < cuts.addresses {
            assert_eq!(outcome, Outcome::Undecidable(Known::Nothing), "cut at {end}");
        } else if end < cuts.protocol {
            assert_addresses_are_known(Known::Addresses, (outcome, packet), whole);
        } else if end < cuts.ports {
            assert_protocol_is_known((outcome, packet), whole);
        } else if end < cuts.flags {
            assert_eq!((outcome, packet), (Outcome::Whole, without_flags(whole)), "cut at {end}");
        } else {
            assert_eq!((outcome, packet), (Outcome::Whole, whole), "cut at {end}");
        }
    }
}

#[test]
fn an_ipv4_packet_cut_at_every_byte() {
    let cuts = Cuts { ethernet: 0, addresses: 20, protocol: 20, ports: 24, flags: 34 };
    assert_cut_everywhere(&ipv4(TCP, &tcp()), read4, &cuts, WHOLE4);
    let cuts = Cuts { flags: 24, ..cuts };
    assert_cut_everywhere(&ipv4(UDP, &udp()), read4, &cuts, as_udp(WHOLE4));
}

#[test]
fn an_ipv4_packet_with_options_cut_at_every_byte() {
    let mut packet = ipv4(TCP, &[1; 8]);
    packet[0] = 0x47;
    packet.extend(tcp());
    let cuts = Cuts { ethernet: 0, addresses: 20, protocol: 20, ports: 32, flags: 42 };
    assert_cut_everywhere(&packet, read4, &cuts, WHOLE4);
}

#[test]
fn an_ipv6_packet_cut_at_every_byte() {
    let cuts = Cuts { ethernet: 0, addresses: 40, protocol: 40, ports: 44, flags: 54 };
    assert_cut_everywhere(&ipv6(TCP, &tcp()), read6, &cuts, WHOLE6);
}

#[test]
fn an_ipv6_packet_with_headers_cut_at_every_byte() {
    let chain = [options(AUTHENTICATION, 1), authentication(TCP, 4), tcp()].concat();
    // The last header's first four bytes say how long it is and what follows, so from there on the protocol is known.
    let cuts = Cuts { ethernet: 0, addresses: 40, protocol: 60, ports: 84, flags: 94 };
    assert_cut_everywhere(&ipv6(HOP_BY_HOP, &chain), read6, &cuts, WHOLE6);
}

#[test]
fn a_tagged_frame_cut_at_every_byte() {
    let inside = [tag(ethertype::VLAN), tag(ethertype::IPV4), ipv4(TCP, &tcp())].concat();
    let frame = ethernet(ethertype::VLAN_SERVICE, &inside);
    let cuts = Cuts { ethernet: 14, addresses: 42, protocol: 42, ports: 46, flags: 56 };
    assert_cut_everywhere(&frame, read_frame, &cuts, WHOLE4);
}

#[test]
fn a_later_fragment_is_known_by_its_fragment_header_alone() {
    let packet = ipv6(FRAGMENT, &fragment(TCP, false, 185));
    for end in 40..44 {
        assert_addresses_are_known(Known::Addresses, read6(&packet[..end]), WHOLE6);
    }
    for end in 44..=48 {
        assert_later_fragment(read6(&packet[..end]), WHOLE6);
    }
}

#[test]
fn an_offset_beyond_what_a_number_holds_is_no_panic() {
    let bytes: &[u8] = &[0; 4];
    assert_eq!(bytes.read::<4>(0), Some([0; 4]));
    assert_eq!(bytes.read::<4>(1), None);
    assert_eq!(bytes.read::<4>(usize::MAX), None);
    assert_eq!(bytes.read::<0>(4), Some([]));
}
