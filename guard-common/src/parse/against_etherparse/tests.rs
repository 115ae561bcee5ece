use std::{vec, vec::Vec};

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions,
    Ipv6Slice, PacketBuilder, TcpHeader, TcpOptions, VlanId, ip_number,
};
use proptest::{collection::vec as many, option, prelude::*, sample::Index};

use super::{agrees, padded, read, sliced};
use crate::{
    packet::{Family, Known, Outcome, Packet, Protocol},
    parse::{ETHERNET_BYTES, MAX_EXTENSION_HEADERS, ethertype, network},
};

/// As [`agrees`], for proptest.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    agrees(bytes).map_err(TestCaseError::fail)
}

/// What a packet is built from.
#[derive(Clone, Debug)]
struct Built {
    tags: Vec<u16>,
    net: Net,
    transport: Transport,
    source_port: u16,
    port: u16,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Net {
    V4 { source: [u8; 4], destination: [u8; 4], option_words: usize },
    V6 { source: [u8; 16], destination: [u8; 16], chain: Chain },
}

/// The extension headers that etherparse can build, in its order; a number is a length.
#[derive(Clone, Debug)]
struct Chain {
    hop_by_hop: Option<usize>,
    destination: Option<usize>,
    routing: Option<(usize, Option<usize>)>,
    atomic_fragment: bool,
    authentication: Option<usize>,
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp { flags: u8, option_words: usize },
    Udp,
}

fn chain() -> impl Strategy<Value = Chain> {
    (
        option::of(0..4_usize),
        option::of(0..4_usize),
        option::of((0..4_usize, option::of(0..4_usize))),
        any::<bool>(),
        option::of(0..8_usize),
    )
        .prop_map(|(hop_by_hop, destination, routing, atomic_fragment, authentication)| {
            Chain { hop_by_hop, destination, routing, atomic_fragment, authentication }
        })
}

fn built() -> impl Strategy<Value = Built> {
    let net = prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>(), 0..=10_usize).prop_map(
            |(source, destination, option_words)| Net::V4 { source, destination, option_words }
        ),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), chain())
            .prop_map(|(source, destination, chain)| { Net::V6 { source, destination, chain } }),
    ];
    let transport = prop_oneof![
        (any::<u8>(), 0..=10_usize)
            .prop_map(|(flags, option_words)| Transport::Tcp { flags, option_words }),
        Just(Transport::Udp),
    ];
    (many(0..4096_u16, 0..=2), net, transport, any::<[u16; 2]>(), many(any::<u8>(), 0..40))
        .prop_map(|(tags, net, transport, [source_port, port], payload)| Built {
            tags,
            net,
            transport,
            source_port,
            port,
            payload,
        })
}

fn raw_header(words: usize) -> Ipv6RawExtHeader {
    Ipv6RawExtHeader::new_raw(IpNumber(0), &vec![0xee; 6 + 8 * words]).unwrap()
}

fn authentication_header(words: usize) -> IpAuthHeader {
    IpAuthHeader::new(IpNumber(0), 1, 2, &vec![0xee; 4 * words]).unwrap()
}

impl Built {
    fn frame(&self) -> Vec<u8> {
        let ip = match &self.net {
            Net::V4 { source, destination, option_words } => {
                let mut header =
                    Ipv4Header::new(0, 64, IpNumber(0), *source, *destination).unwrap();
                header.options = Ipv4Options::try_from(&vec![1; 4 * option_words][..]).unwrap();
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            Net::V6 { source, destination, chain } => {
                let header = Ipv6Header {
                    source: *source,
                    destination: *destination,
                    hop_limit: 64,
                    ..Ipv6Header::default()
                };
                let extensions = Ipv6Extensions {
                    hop_by_hop_options: chain.hop_by_hop.map(raw_header),
                    destination_options: chain.destination.map(raw_header),
                    routing: chain.routing.map(|(routing, last)| Ipv6RoutingExtensions {
                        routing: raw_header(routing),
                        final_destination_options: last.map(raw_header),
                    }),
                    fragment: chain.atomic_fragment.then(|| {
                        Ipv6FragmentHeader::new(IpNumber(0), IpFragOffset::ZERO, false, 7)
                    }),
                    auth: chain.authentication.map(authentication_header),
                };
                IpHeaders::Ipv6(header, extensions)
            }
        };
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let tag = |number: u16| VlanId::try_new(number).unwrap();
        let step = match self.tags[..] {
            [] => ethernet.ip(ip),
            [one] => ethernet.single_vlan(tag(one)).ip(ip),
            [outer, inner, ..] => ethernet.double_vlan(tag(outer), tag(inner)).ip(ip),
        };
        let mut frame = Vec::new();
        match self.transport {
            Transport::Tcp { flags, option_words } => {
                let mut header = TcpHeader::new(self.source_port, self.port, 1, 2);
                header.fin = flags & 0x01 != 0;
                header.syn = flags & 0x02 != 0;
                header.rst = flags & 0x04 != 0;
                header.psh = flags & 0x08 != 0;
                header.ack = flags & 0x10 != 0;
                header.urg = flags & 0x20 != 0;
                header.ece = flags & 0x40 != 0;
                header.cwr = flags & 0x80 != 0;
                header.options = TcpOptions::try_from_slice(&vec![1; 4 * option_words]).unwrap();
                step.tcp_header(header).write(&mut frame, &self.payload).unwrap();
            }
            Transport::Udp => {
                step.udp(self.source_port, self.port).write(&mut frame, &self.payload).unwrap();
            }
        }
        frame
    }

    /// What was put in.
    fn facts(&self) -> Packet {
        let (family, source, destination) = match self.net {
            Net::V4 { source, destination, .. } => {
                (Family::V4, padded(source), padded(destination))
            }
            Net::V6 { source, destination, .. } => (Family::V6, source, destination),
        };
        let (protocol, tcp_flags) = match self.transport {
            Transport::Tcp { flags, .. } => (Protocol::Tcp, flags),
            Transport::Udp => (Protocol::Udp, 0),
        };
        let (source_port, port) = (self.source_port, self.port);
        Packet { source, destination, family, protocol, source_port, port, tcp_flags }
    }
}

/// Bytes that mean something somewhere in a header, and any others.
fn telling_byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        proptest::sample::select(&[
            0, 1, 2, 4, 6, 8, 17, 43, 44, 50, 51, 60, 0x20, 0x3f, 0x44, 0x45, 0x4f, 0x60, 0x81,
            0x88, 0xa8, 0xdd, 0x86, 0xff,
        ]),
    ]
}

/// An extension header of any chain, whether or not the standard allows it there.
#[derive(Clone, Debug)]
enum Extension {
    Raw { kind: IpNumber, words: usize },
    Authentication { words: usize },
    Fragment { offset: u16, more: bool },
}

impl Extension {
    fn kind(&self) -> IpNumber {
        match self {
            Self::Raw { kind, .. } => *kind,
            Self::Authentication { .. } => ip_number::AUTH,
            Self::Fragment { .. } => ip_number::IPV6_FRAG,
        }
    }

    fn bytes(&self, next: IpNumber) -> Vec<u8> {
        match self {
            Self::Raw { words, .. } => {
                let mut header = raw_header(*words);
                header.next_header = next;
                header.to_bytes().to_vec()
            }
            Self::Authentication { words } => {
                let mut header = authentication_header(*words);
                header.next_header = next;
                header.to_bytes().to_vec()
            }
            Self::Fragment { offset, more } => {
                let offset = IpFragOffset::try_new(*offset).unwrap();
                Ipv6FragmentHeader::new(next, offset, *more, 7).to_bytes().to_vec()
            }
        }
    }

    fn is_later_fragment(&self) -> bool {
        matches!(self, Self::Fragment { offset: 1.., .. })
    }
}

/// A fragment offset that is not zero, in units of eight bytes: each of its bits alone, or any.
fn fragment_offset() -> impl Strategy<Value = u16> {
    prop_oneof![(0..13).prop_map(|bit| 1_u16 << bit), 1..=0x1fff_u16]
}

fn extension() -> impl Strategy<Value = Extension> {
    let raw = proptest::sample::select(&[
        ip_number::IPV6_HOP_BY_HOP,
        ip_number::IPV6_ROUTE,
        ip_number::IPV6_DEST_OPTIONS,
    ]);
    let offset = prop_oneof![3 => Just(0), 1 => fragment_offset()];
    prop_oneof![
        4 => (raw, 0..3_usize).prop_map(|(kind, words)| Extension::Raw { kind, words }),
        1 => (0..6_usize).prop_map(|words| Extension::Authentication { words }),
        1 => (offset, any::<bool>())
            .prop_map(|(offset, more)| Extension::Fragment { offset, more }),
    ]
}

/// What a chain of extension headers before this protocol comes to, said without walking bytes.
fn expected_of_chain(chain: &[Extension], protocol: IpNumber) -> Outcome {
    let ours = matches!(protocol, ip_number::TCP | ip_number::UDP);
    let later = chain.iter().position(Extension::is_later_fragment);
    match later {
        Some(place) if place < MAX_EXTENSION_HEADERS => {
            if place + 1 < chain.len() {
                Outcome::LaterFragment(Known::Addresses)
            } else if ours {
                Outcome::LaterFragment(Known::Protocol)
            } else {
                Outcome::NotOurs
            }
        }
        _ if chain.len() > MAX_EXTENSION_HEADERS => Outcome::Undecidable(Known::Addresses),
        _ if ours => Outcome::Whole,
        _ => Outcome::NotOurs,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_put_in_is_read(built in built()) {
        let frame = built.frame();
        prop_assert_eq!(read(&frame), (Outcome::Whole, built.facts()));
        prop_assert_eq!(sliced(&frame), Some(built.facts()));
        check(&frame)?;
    }

    #[test]
    fn a_frame_cut_anywhere_says_what_is_left_of_it(built in built(), cut: Index) {
        let frame = built.frame();
        let end = cut.index(frame.len());
        check(&frame[..end])?;
        let facts = built.facts();
        let (outcome, packet) = read(&frame[..end]);
        match outcome {
            Outcome::NotOurs => prop_assert!(end < ETHERNET_BYTES),
            Outcome::Whole => {
                prop_assert_eq!((packet.source_port, packet.port), (facts.source_port, facts.port));
                prop_assert!(packet.tcp_flags == facts.tcp_flags || packet.tcp_flags == 0);
            }
            Outcome::Undecidable(Known::Protocol) => prop_assert_eq!(packet.protocol, facts.protocol),
            Outcome::Undecidable(Known::Nothing | Known::Addresses) => {}
            Outcome::Broken | Outcome::LaterFragment(_) | Outcome::Malformed(_) => prop_assert!(false, "{outcome:?}"),
        }
        if !matches!(outcome, Outcome::NotOurs | Outcome::Undecidable(Known::Nothing)) {
            prop_assert_eq!((packet.family, packet.source), (facts.family, facts.source));
            prop_assert_eq!(packet.destination, facts.destination);
        }
    }

    #[test]
    fn a_frame_with_wrong_bytes_is_read_as_it_stands(
        built in built(),
        changes in many((any::<Index>(), telling_byte()), 1..6),
        cut in option::weighted(0.3, any::<Index>()),
    ) {
        let mut frame = built.frame();
        for (place, byte) in changes {
            let place = place.index(frame.len());
            frame[place] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        check(&frame)?;
    }

    #[test]
    fn any_bytes_behind_any_type_are_read_as_they_stand(
        kind in proptest::sample::select(&[[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8]]),
        bytes in many(telling_byte(), 0..200),
    ) {
        let mut frame = vec![0; 12];
        frame.extend(kind);
        frame.extend(&bytes);
        check(&frame)?;
        check(&bytes)?;
    }

    #[test]
    fn a_bare_packet_is_read_as_one_in_a_frame(built in built(), before in many(any::<u8>(), 0..40)) {
        let frame = built.frame();
        let start = ETHERNET_BYTES + 4 * built.tags.len();
        let ether_type = match built.net {
            Net::V4 { .. } => ethertype::IPV4,
            Net::V6 { .. } => ethertype::IPV6,
        };
        let moved = [&before[..], &frame[start..]].concat();
        let mut packet = Packet::EMPTY;
        let outcome = network(&moved[..], ether_type, before.len(), &mut packet);
        prop_assert_eq!((outcome, packet), (Outcome::Whole, built.facts()));
    }

    #[test]
    fn any_chain_of_extension_headers(
        chain in many(extension(), 0..9),
        protocol in proptest::sample::select(&[ip_number::TCP, ip_number::UDP, ip_number::IPV6_ICMP]),
        ports in any::<[u16; 2]>(),
    ) {
        let mut behind = Vec::new();
        for (place, extension) in chain.iter().enumerate() {
            let next = chain.get(place + 1).map_or(protocol, Extension::kind);
            behind.extend(extension.bytes(next));
        }
        behind.extend(ports[0].to_be_bytes());
        behind.extend(ports[1].to_be_bytes());
        // All TCP flags, and neither a data offset nor a length that contradicts itself.
        behind.extend([0xff; 16]);
        let header = Ipv6Header {
            payload_length: u16::try_from(behind.len()).unwrap(),
            next_header: chain.first().map_or(protocol, Extension::kind),
            source: [0x11; 16],
            destination: [0x22; 16],
            ..Ipv6Header::default()
        };
        let bytes = [&header.to_bytes()[..], &behind].concat();

        let mut packet = Packet::EMPTY;
        let outcome = network(&bytes[..], ethertype::IPV6, 0, &mut packet);
        prop_assert_eq!(outcome, expected_of_chain(&chain, protocol));
        if outcome == Outcome::Whole {
            prop_assert_eq!([packet.source_port, packet.port], ports);
            let is_fragment = chain.iter().any(|one| matches!(one, Extension::Fragment { more: true, .. }));
            let has_flags = protocol == ip_number::TCP && !is_fragment;
            prop_assert_eq!(packet.tcp_flags, if has_flags { 0xff } else { 0 });
            if let Ok(slice) = Ipv6Slice::from_slice(&bytes) {
                prop_assert_eq!(slice.payload().ip_number.0, packet.protocol as u8);
                let there = &slice.payload().payload[..4];
                prop_assert_eq!(there, &[ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat());
            }
        }
        if outcome != Outcome::NotOurs {
            prop_assert_eq!((packet.source, packet.destination), ([0x11; 16], [0x22; 16]));
        }
    }

    #[test]
    fn any_ipv4_fragment(
        more: bool,
        offset in prop_oneof![Just(0), fragment_offset()],
        dont_fragment: bool,
        protocol in proptest::sample::select(&[ip_number::TCP, ip_number::UDP, ip_number::ICMP]),
    ) {
        let mut header = Ipv4Header::new(20, 64, protocol, [192, 0, 2, 7], [198, 51, 100, 4]).unwrap();
        header.more_fragments = more;
        header.dont_fragment = dont_fragment;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend([0xff; 20]);

        let mut packet = Packet::EMPTY;
        let outcome = network(&bytes[..], ethertype::IPV4, 0, &mut packet);
        let expected = match (protocol, offset) {
            (ip_number::ICMP, _) => Outcome::NotOurs,
            (_, 0) => Outcome::Whole,
            _ => Outcome::LaterFragment(Known::Protocol),
        };
        prop_assert_eq!(outcome, expected);
        if outcome == Outcome::Whole {
            prop_assert_eq!([packet.source_port, packet.port], [0xffff; 2]);
            let has_flags = protocol == ip_number::TCP && !more;
            prop_assert_eq!(packet.tcp_flags, if has_flags { 0xff } else { 0 });
        }
        if outcome != Outcome::NotOurs {
            prop_assert_eq!(packet.source, padded([192, 0, 2, 7]));
            prop_assert_eq!(packet.destination, padded([198, 51, 100, 4]));
        }
    }
}
