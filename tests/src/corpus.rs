//! Packets of every shape that a parser has to tell apart, the same ones in every run: what the kernel programs and their
//! host build are compared on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::build::{self, Extension, Fragment, ethertype, protocol};

/// Why a packet is in the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// TCP and UDP between all addresses and to all ports.
    Plain,
    /// IPv4 with options, of each length there is.
    Ipv4Options,
    /// IPv6 with extension headers in any order, up to and past what is walked.
    Chain,
    /// First and later fragments: each bit of the offset, of both families.
    Fragment,
    /// VLAN tags in any order, up to and past what is looked behind.
    Tagged,
    /// Every other protocol number, and other `EtherType`s.
    OtherProtocol,
    /// A header that contradicts itself or the packet's length.
    Contradictory,
    /// One byte or bit changed, each in turn.
    Mutated,
    /// Several bytes changed and the end cut off, by chance.
    Damaged,
    /// Cut at each length.
    Truncated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub kind: Kind,
    pub frame: Vec<u8>,
}

/// What the packets are made of.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients<'a> {
    pub v4: &'a [Ipv4Addr],
    pub v6: &'a [Ipv6Addr],
    /// A guarded port of each protocol, and one that is not.
    pub tcp: u16,
    pub udp: u16,
    pub other: u16,
    /// Pairs of a source and a destination, of both families, for the shapes that are not made between all addresses.
    pub pairs: &'a [(IpAddr, IpAddr)],
}

impl Ingredients<'_> {
    const fn ports(&self) -> [u16; 3] {
        [self.tcp, self.udp, self.other]
    }

    /// The guarded port of a protocol.
    const fn port(&self, number: u8) -> u16 {
        if number == protocol::UDP { self.udp } else { self.tcp }
    }
}

/// Numbers that look random, the same ones after the same seed (Steele, Lea and Flood: `SplitMix`).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `bound`, which is not zero.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const SOURCE_PORT: u16 = 1234;
const TRANSPORTS: [u8; 2] = [protocol::TCP, protocol::UDP];

/// The whole corpus.
#[must_use]
pub fn cases(seed: u64, of: &Ingredients<'_>) -> Vec<Case> {
    let mut numbers = Numbers::new(seed);
    let shapes = shapes(of);
    let mut cases = Vec::new();
    let mut add = |kind, frames: Vec<Vec<u8>>| {
        cases.extend(frames.into_iter().map(|frame| Case { kind, frame }));
    };
    add(Kind::Plain, plain(of));
    add(Kind::Ipv4Options, ipv4_options(of));
    add(Kind::Chain, chains(of, &mut numbers));
    add(Kind::Fragment, fragments(of));
    add(Kind::Tagged, tagged(&shapes));
    add(Kind::OtherProtocol, other_protocols(of));
    add(Kind::Contradictory, contradictory(of));
    add(Kind::Mutated, shapes.iter().flat_map(|frame| mutated(frame)).collect());
    add(Kind::Damaged, damaged(&shapes, &mut numbers));
    add(Kind::Truncated, shapes.iter().flat_map(|frame| truncated(frame)).collect());
    cases
}

/// One frame of each shape for each pair of addresses: what is changed and cut.
fn shapes(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for &(from, to) in of.pairs {
        let tcp = build::segment(protocol::TCP, (from, SOURCE_PORT), (to, of.tcp));
        let udp = build::segment(protocol::UDP, (from, SOURCE_PORT), (to, of.udp));
        let packets = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => vec![
                build::ipv4(from, to, protocol::TCP, &tcp),
                build::ipv4(from, to, protocol::UDP, &udp),
                build::ipv4_with(from, to, protocol::TCP, &[1; 8], Fragment::NONE, &tcp),
            ],
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                use Extension::{Authentication, Destination, Fragment as Part, HopByHop, Routing};
                let atomic = Part(Fragment::NONE);
                vec![
                    build::ipv6(from, to, &[], protocol::TCP, &tcp),
                    build::ipv6(from, to, &[], protocol::UDP, &udp),
                    build::ipv6(from, to, &[HopByHop(0), Routing(1)], protocol::TCP, &tcp),
                    build::ipv6(
                        from,
                        to,
                        &[Destination(0), atomic, Authentication(3)],
                        protocol::TCP,
                        &tcp,
                    ),
                ]
            }
            _ => Vec::new(),
        };
        frames.extend(packets.iter().map(|packet| build::frame(&[], packet)));
        frames.extend(packets.first().map(|packet| build::frame(&[ethertype::VLAN], packet)));
    }
    frames
}

fn between(of: &Ingredients<'_>) -> Vec<(IpAddr, IpAddr)> {
    let v4 = of.v4.iter().flat_map(|from| of.v4.iter().map(|to| ((*from).into(), (*to).into())));
    let v6 = of.v6.iter().flat_map(|from| of.v6.iter().map(|to| ((*from).into(), (*to).into())));
    v4.chain(v6).collect()
}

fn plain(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (from, to) in between(of) {
        for port in of.ports() {
            for number in TRANSPORTS {
                let segment = build::segment(number, (from, SOURCE_PORT), (to, port));
                frames.push(build::frame(&[], &build::ip(from, to, number, &segment)));
            }
        }
    }
    frames
}

fn pairs_v4(of: &Ingredients<'_>) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let both = of.pairs.iter().filter_map(|pair| match pair {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some((*from, *to)),
        _ => None,
    });
    both.collect()
}

fn pairs_v6(of: &Ingredients<'_>) -> Vec<(Ipv6Addr, Ipv6Addr)> {
    let both = of.pairs.iter().filter_map(|pair| match pair {
        (IpAddr::V6(from), IpAddr::V6(to)) => Some((*from, *to)),
        _ => None,
    });
    both.collect()
}

fn ipv4_options(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (from, to) in pairs_v4(of) {
        for words in 1..=10 {
            for port in of.ports() {
                for number in TRANSPORTS {
                    let segment =
                        build::segment(number, (from.into(), SOURCE_PORT), (to.into(), port));
                    // No-operation options (RFC 791 section 3.1), and some that are no options at all.
                    for byte in [1, 0xff] {
                        let options = vec![byte; 4 * words];
                        let packet =
                            build::ipv4_with(from, to, number, &options, Fragment::NONE, &segment);
                        frames.push(build::frame(&[], &packet));
                    }
                }
            }
        }
    }
    frames
}

/// Each kind of extension header: an atomic fragment header is one, and some are longer than the shortest.
const EXTENSIONS: [Extension; 5] = [
    Extension::HopByHop(0),
    Extension::Routing(1),
    Extension::Fragment(Fragment::NONE),
    Extension::Authentication(3),
    Extension::Destination(2),
];

/// All chains of up to three headers, and as many longer ones by chance as there are of three.
fn chains(of: &Ingredients<'_>, numbers: &mut Numbers) -> Vec<Vec<u8>> {
    const LONGEST: usize = 9;
    let mut chains: Vec<Vec<Extension>> = EXTENSIONS.map(|one| vec![one]).to_vec();
    let mut start = 0;
    for _ in 2..=3 {
        let shorter = chains[start..].to_vec();
        start = chains.len();
        for chain in shorter {
            chains.extend(EXTENSIONS.map(|one| [&chain[..], &[one]].concat()));
        }
    }
    for length in 4..=LONGEST {
        for _ in 0..5 * 5 * 5 {
            chains.push((0..length).map(|_| any_extension(numbers)).collect());
        }
    }

    let pairs = pairs_v6(of);
    let mut frames = Vec::new();
    for (number, chain) in chains.iter().enumerate() {
        let (from, to) = pairs[number % pairs.len()];
        let port = of.ports()[number / 5 % of.ports().len()];
        for transport in [protocol::TCP, protocol::UDP, protocol::ICMPV6] {
            let segment = build::segment(transport, (from.into(), SOURCE_PORT), (to.into(), port));
            frames.push(build::frame(&[], &build::ipv6(from, to, chain, transport, &segment)));
        }
    }
    frames
}

/// One header, now and then a fragment that is not atomic.
fn any_extension(numbers: &mut Numbers) -> Extension {
    let offset = numbers.pick(&[0, 0, 1, 0x1fff]);
    let part = Fragment { offset, more: numbers.below(2) == 0, identification: 7 };
    match numbers.below(12) {
        0 => Extension::Fragment(part),
        1 => Extension::Authentication(numbers.below(6)),
        2 => Extension::Routing(numbers.below(4)),
        3 => Extension::Destination(numbers.below(4)),
        _ => numbers.pick(&EXTENSIONS),
    }
}

fn fragments(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let offsets = (0..13).map(|bit| 1_u16 << bit).chain([0, 0x1fff]);
    let mut frames = Vec::new();
    for offset in offsets {
        for more in [false, true] {
            let part = Fragment { offset, more, identification: 7 };
            for &(from, to) in of.pairs {
                for number in [protocol::TCP, protocol::UDP, protocol::ICMP] {
                    let segment =
                        build::segment(number, (from, SOURCE_PORT), (to, of.port(number)));
                    let packet = match (from, to) {
                        (IpAddr::V4(from), IpAddr::V4(to)) => {
                            build::ipv4_with(from, to, number, &[], part, &segment)
                        }
                        (IpAddr::V6(from), IpAddr::V6(to)) => {
                            build::ipv6(from, to, &[Extension::Fragment(part)], number, &segment)
                        }
                        _ => continue,
                    };
                    frames.push(build::frame(&[], &packet));
                }
            }
        }
    }
    frames
}

fn tagged(shapes: &[Vec<u8>]) -> Vec<Vec<u8>> {
    const TYPES: [u16; 3] = [ethertype::VLAN, ethertype::VLAN_SERVICE, ethertype::VLAN_OLD];
    let mut tags: Vec<Vec<u16>> = TYPES.map(|one| vec![one]).to_vec();
    for two in TYPES {
        tags.extend(TYPES.map(|one| vec![one, two]));
        for three in TYPES {
            tags.extend(TYPES.map(|one| vec![one, two, three]));
        }
    }
    let mut frames = Vec::new();
    for frame in shapes {
        for tags in &tags {
            frames.push(build::tagged(tags, frame));
        }
    }
    frames
}

fn other_protocols(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for &(from, to) in of.pairs {
        // Ports stand where those of TCP would.
        let segment = build::segment(protocol::TCP, (from, SOURCE_PORT), (to, of.tcp));
        for number in 0..=u8::MAX {
            frames.push(build::frame(&[], &build::ip(from, to, number, &segment)));
        }
        let ip = build::ip(from, to, protocol::TCP, &segment);
        // ARP, MPLS, PPPoE, MACsec, LLDP, IPX, an 802.3 length, and neighbours of IPv4's and IPv6's.
        for kind in [
            0x0806_u16, 0x8847, 0x8864, 0x88e5, 0x88cc, 0x8137, 0x0040, 0x0801, 0x07ff, 0x86dc,
            0x86de, 0,
        ] {
            let mut frame = build::frame(&[], &ip);
            frame[build::MACS_BYTES..build::ETHERNET_BYTES].copy_from_slice(&kind.to_be_bytes());
            frames.push(frame);
        }
        // The other family's EtherType, and the other family's version number.
        let other = if from.is_ipv4() { ethertype::IPV6 } else { ethertype::IPV4 };
        let mut frame = build::frame(&[], &ip);
        frame[build::MACS_BYTES..build::ETHERNET_BYTES].copy_from_slice(&other.to_be_bytes());
        frames.push(frame);
    }
    frames
}

/// Headers that say they are shorter than they can be, and lengths that are not the packet's.
fn contradictory(of: &Ingredients<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for &(from, to) in of.pairs {
        for port in of.ports() {
            let network = build::ETHERNET_BYTES;
            let transport = network + if from.is_ipv4() { 20 } else { 40 };
            let of_protocol = |number| {
                let segment = build::segment(number, (from, SOURCE_PORT), (to, port));
                build::frame(&[], &build::ip(from, to, number, &segment))
            };
            let (tcp, udp) = (of_protocol(protocol::TCP), of_protocol(protocol::UDP));
            for words in 0..=0xf {
                frames.push(with(&tcp, transport + 12, &[words << 4]));
                frames.push(with(&udp, transport + 4, &[0, words]));
                // The version number.
                frames.push(with(&tcp, network, &[words << 4 | (tcp[network] & 0xf)]));
                if from.is_ipv4() {
                    frames.push(with(&tcp, network, &[0x40 | words]));
                }
            }
            let length = network + if from.is_ipv4() { 2 } else { 4 };
            for wrong in [0_u16, 1, 19, 20, 21, 39, 40, 41, 0xffff] {
                frames.push(with(&tcp, length, &wrong.to_be_bytes()));
                frames.push(with(&udp, length, &wrong.to_be_bytes()));
            }
        }
    }
    frames
}

fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Each bit turned, and each byte at its least and its greatest.
fn mutated(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for at in 0..frame.len() {
        let here = frame[at];
        frames.extend((0..8).map(|bit| with(frame, at, &[here ^ (1 << bit)])));
        frames.push(with(frame, at, &[0]));
        frames.push(with(frame, at, &[0xff]));
    }
    frames
}

fn truncated(frame: &[u8]) -> Vec<Vec<u8>> {
    (0..frame.len()).map(|length| frame[..length].to_vec()).collect()
}

fn damaged(shapes: &[Vec<u8>], numbers: &mut Numbers) -> Vec<Vec<u8>> {
    /// Bytes that mean something somewhere in a header.
    const TELLING: [u8; 16] = [0, 1, 4, 5, 6, 8, 17, 43, 44, 51, 60, 0x2c, 0x45, 0x60, 0x81, 0xff];
    let mut frames = Vec::new();
    for frame in shapes {
        for _ in 0..60 {
            let mut frame = frame.clone();
            for _ in 0..=numbers.below(4) {
                let behind = frame.len() - build::MACS_BYTES;
                let at = build::MACS_BYTES + numbers.below(behind);
                frame[at] = numbers.pick(&TELLING);
            }
            if numbers.below(3) == 0 {
                let behind = frame.len() - build::ETHERNET_BYTES;
                frame.truncate(build::ETHERNET_BYTES + 1 + numbers.below(behind));
            }
            frames.push(frame);
        }
    }
    frames
}
