//! Packets made header by header, in any order, whether or not a standard allows it. Their checksums are right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of both Ethernet addresses, behind which the `EtherType` or a VLAN tag stands.
pub const MACS_BYTES: usize = 12;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = MACS_BYTES + 2;

/// `EtherType`s, from `include/uapi/linux/if_ether.h`.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const VLAN_SERVICE: u16 = 0x88a8;
    /// What some took for a second tag before IEEE 802.1ad.
    pub const VLAN_OLD: u16 = 0x9100;
}

/// IANA protocol numbers.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
}

/// TCP flags (RFC 9293 section 3.1).
pub mod flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

const HOP_LIMIT: u8 = 64;
const PAYLOAD: &[u8] = b"hello";

/// What part of a packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
    pub identification: u16,
}

impl Fragment {
    /// The whole of it.
    pub const NONE: Self = Self { offset: 0, more: false, identification: 7 };
}

/// An IPv6 extension header (RFC 8200 section 4; RFC 4302).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// With room for so many words of eight bytes behind the first.
    HopByHop(usize),
    Destination(usize),
    /// With no segment left.
    Routing(usize),
    Fragment(Fragment),
    /// With a check value of so many words of four bytes.
    Authentication(usize),
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => protocol::HOP_BY_HOP,
            Self::Destination(_) => protocol::DESTINATION,
            Self::Routing(_) => protocol::ROUTING,
            Self::Fragment(_) => protocol::FRAGMENT,
            Self::Authentication(_) => protocol::AUTHENTICATION,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        let count = |words: usize| u8::try_from(words).expect("a header of at most 255 words");
        match self {
            Self::HopByHop(words) | Self::Destination(words) => {
                // Padding, and in each further word an option that a host steps over which does not know it (RFC 8200 section
                // 4.2): more than seven bytes of padding Linux refuses (`ip6_parse_tlv` in `net/ipv6/exthdrs.c`).
                let mut bytes = vec![next, count(words), 1, 4, 0, 0, 0, 0];
                for _ in 0..words {
                    bytes.extend([0x1e, 6, 0, 0, 0, 0, 0, 0]);
                }
                bytes
            }
            Self::Routing(words) => {
                let mut bytes = vec![next, count(words), 0, 0];
                bytes.resize(8 + 8 * words, 0);
                bytes
            }
            Self::Fragment(Fragment { offset, more, identification }) => {
                let mut bytes = vec![next, 0];
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend(u32::from(identification).to_be_bytes());
                bytes
            }
            Self::Authentication(words) => {
                let mut bytes = vec![next, count(words + 1), 0, 0];
                bytes.resize(12 + 4 * words, 0xee);
                bytes
            }
        }
    }
}

/// The first packet of a TCP connection, a UDP datagram, or an echo request of either ICMP, from its own header on. Any other
/// protocol gets the bytes of TCP.
#[must_use]
pub fn segment(number: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    match number {
        protocol::UDP => datagram(from, to),
        protocol::ICMP | protocol::ICMPV6 => echo_request(number, from, to),
        _ => tcp(flags::SYN, from, to, &[]),
    }
}

/// A TCP packet with these flags and this data.
#[must_use]
pub fn tcp(flags: u8, from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = ports(from.1, to.1);
    // Sequence and acknowledgement number, data offset, flags, window, checksum, urgent pointer.
    bytes.extend([0, 0, 0, 7, 0, 0, 0, 9, 5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    let checksum = checksum(&pseudo_header(from.0, to.0, protocol::TCP, bytes.len()), &bytes);
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn datagram(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut bytes = ports(from.1, to.1);
    bytes.extend(bytes_16(8 + PAYLOAD.len()));
    bytes.extend([0, 0]);
    bytes.extend(PAYLOAD);
    let checksum = checksum(&pseudo_header(from.0, to.0, protocol::UDP, bytes.len()), &bytes);
    // Zero would stand for "none" (RFC 768).
    let checksum = if checksum == 0 { u16::MAX } else { checksum };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Its identifier is the source port, its sequence number the destination port.
fn echo_request(number: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let is_v6 = number == protocol::ICMPV6;
    let mut bytes = vec![if is_v6 { 128 } else { 8 }, 0, 0, 0];
    bytes.extend(ports(from.1, to.1));
    bytes.extend(PAYLOAD);
    let before = if is_v6 { pseudo_header(from.0, to.0, number, bytes.len()) } else { Vec::new() };
    let checksum = checksum(&before, &bytes);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

/// An IP packet without options or extension headers. Both addresses are of one family.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, number: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, number, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, &[], number, payload),
        _ => panic!("{from} and {to} are of different families"),
    }
}

#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, number: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(from, to, number, &[], Fragment::NONE, payload)
}

/// An IPv4 packet with options, a multiple of four bytes, or a part of a packet.
#[must_use]
pub fn ipv4_with(
    from: Ipv4Addr,
    to: Ipv4Addr,
    number: u8,
    options: &[u8],
    part: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let words = u8::try_from(header_bytes / 4).expect("a header of at most 15 words");
    let mut bytes = vec![4 << 4 | words, 0];
    bytes.extend(bytes_16(header_bytes + payload.len()));
    bytes.extend(part.identification.to_be_bytes());
    bytes.extend((u16::from(part.more) << 13 | part.offset).to_be_bytes());
    bytes.extend([HOP_LIMIT, number, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(options);
    let checksum = checksum(&[], &bytes);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet whose extension headers stand in this order.
#[must_use]
pub fn ipv6(
    from: Ipv6Addr,
    to: Ipv6Addr,
    chain: &[Extension],
    number: u8,
    payload: &[u8],
) -> Vec<u8> {
    let first = chain.first().map_or(number, |extension| extension.number());
    let mut behind = Vec::new();
    for (place, extension) in chain.iter().enumerate() {
        let next = chain.get(place + 1).map_or(number, |extension| extension.number());
        behind.extend(extension.bytes(next));
    }
    behind.extend(payload);
    let mut bytes = vec![6 << 4, 0, 0, 0];
    bytes.extend(bytes_16(behind.len()));
    bytes.extend([first, HOP_LIMIT]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(behind);
    bytes
}

/// An Ethernet frame around an IP packet.
#[must_use]
pub fn frame(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 };
    let mut frame = vec![2; 6];
    frame.extend([4; 6]);
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    tagged(tags, &frame)
}

/// A frame with VLAN tags of these types, the outermost first, before what it holds.
#[must_use]
pub fn tagged(tags: &[u16], frame: &[u8]) -> Vec<u8> {
    let (macs, behind) = frame.split_at(MACS_BYTES);
    let mut tagged = macs.to_vec();
    for tag in tags {
        tagged.extend(tag.to_be_bytes());
        tagged.extend([0, 5]);
    }
    tagged.extend(behind);
    tagged
}

fn pseudo_header(from: IpAddr, to: IpAddr, number: u8, length: usize) -> Vec<u8> {
    let mut bytes = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("{from} and {to} are of different families"),
    };
    bytes.extend([0, number]);
    bytes.extend(bytes_16(length));
    bytes
}

/// The Internet checksum (RFC 1071) of both, of which the first has an even length.
fn checksum(before: &[u8], bytes: &[u8]) -> u16 {
    let words = before.chunks(2).chain(bytes.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn bytes_16(number: usize) -> [u8; 2] {
    u16::try_from(number).expect("a packet of less than 64 KiB").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn addresses() -> [(IpAddr, IpAddr); 2] {
        [("192.0.2.7", "198.51.100.4"), ("2001:db8::7", "2001:db8:1::4")]
            .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn an_independent_parser_finds_every_checksum_right() {
        for (from, to) in addresses() {
            for number in [protocol::TCP, protocol::UDP] {
                let segment = segment(number, (from, 1234), (to, 11434));
                let bytes = frame(&[], &ip(from, to, number, &segment));
                let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
                let ip = packet.net.unwrap();
                let (written, right, ports) = match packet.transport.unwrap() {
                    TransportSlice::Tcp(tcp) => {
                        let (header, payload) = (tcp.to_header(), tcp.payload());
                        let right = match &ip {
                            NetSlice::Ipv4(ip) => {
                                header.calc_checksum_ipv4(&ip.header().to_header(), payload)
                            }
                            NetSlice::Ipv6(ip) => {
                                header.calc_checksum_ipv6(&ip.header().to_header(), payload)
                            }
                            other => panic!("{other:?}"),
                        };
                        (header.checksum, right, [header.source_port, header.destination_port])
                    }
                    TransportSlice::Udp(udp) => {
                        let (header, payload) = (udp.to_header(), udp.payload());
                        let right = match &ip {
                            NetSlice::Ipv4(ip) => {
                                header.calc_checksum_ipv4(&ip.header().to_header(), payload)
                            }
                            NetSlice::Ipv6(ip) => {
                                header.calc_checksum_ipv6(&ip.header().to_header(), payload)
                            }
                            other => panic!("{other:?}"),
                        };
                        (header.checksum, right, [header.source_port, header.destination_port])
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(written, right.unwrap());
                assert_eq!(ports, [1234, 11434]);
                if let NetSlice::Ipv4(ip) = ip {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
            }
        }
    }

    #[test]
    fn extension_headers_stand_in_their_order() {
        use Extension::{Authentication, Destination, HopByHop, Routing};
        let [_, (from, to)] = addresses();
        let (IpAddr::V6(from6), IpAddr::V6(to6)) = (from, to) else { panic!("IPv6 addresses") };
        let chain = [HopByHop(2), Routing(1), Extension::Fragment(Fragment::NONE)];
        let chain = [&chain[..], &[Authentication(3), Destination(0)]].concat();
        let segment = segment(protocol::TCP, (from, 1234), (to, 11434));
        let bytes = frame(&[ethertype::VLAN], &ipv6(from6, to6, &chain, protocol::TCP, &segment));
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("{packet:?}") };
        assert_eq!(ip.extensions().clone().into_iter().count(), chain.len());
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("{packet:?}") };
        assert_eq!(tcp.destination_port(), 11434);
    }
}
