//! The answer to a TCP packet that is rejected: a reset, as RFC 9293 section 3.10.7.1 has it for a port that is closed.

use crate::{
    packet::Protocol,
    parse::ethertype,
    reader::{Reader, Writer},
};

/// Bytes of the IPv4 and IPv6 headers before their addresses, and whole.
const IPV4_HEAD_BYTES: usize = 12;
const IPV4_BYTES: usize = 20;
const IPV6_HEAD_BYTES: usize = 8;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;

/// How long the answers are, from their IP header on.
pub const IPV4_ANSWER_BYTES: usize = IPV4_BYTES + TCP_BYTES;
pub const IPV6_ANSWER_BYTES: usize = IPV6_BYTES + TCP_BYTES;

/// Of the answers: what Linux gives its own.
const HOP_LIMIT: u8 = 64;

/// "More fragments" and the offset, in IPv4's word of them.
const NOT_WHOLE: u16 = 0x3fff;

/// TCP flags (RFC 9293 section 3.1).
mod flag {
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Turns the packet whose IP header, of this `EtherType`, stands at `offset` into its answer, in place. Returns how many bytes of
/// it, from the IP header on, are the answer.
///
/// `None` for a packet that gets none: a reset, a fragment, one to many hosts, and one whose TCP header does not stand right
/// behind a plain IP header. So an answer, which has no options, is never larger than the packet answered. It may have been
/// written in part where the packet turns out to be shorter than its header says.
///
/// All is read anew and written piece by piece: so the verifier need not know what was read before to follow this,
/// and the small stack of a kernel program holds no whole answer.
#[inline(always)]
pub fn turn<P: Reader + Writer + ?Sized>(
    packet: &P,
    ether_type: u16,
    offset: usize,
) -> Option<usize> {
    match ether_type {
        ethertype::IPV4 => {
            let head = packet.read::<IPV4_HEAD_BYTES>(offset)?;
            let is_whole = u16::from_be_bytes([head[6], head[7]]) & NOT_WHOLE == 0;
            if head[0] != 0x45 || head[9] != Protocol::Tcp as u8 || !is_whole {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let segment_bytes = length.checked_sub(IPV4_BYTES)?;
            let [to] = packet.read(offset + IPV4_HEAD_BYTES + 4)?;
            if is_for_many_v4(to) {
                return None;
            }
            let addresses = swap::<4, 4, P>(packet, offset + IPV4_HEAD_BYTES)?;
            turn_tcp(packet, offset + IPV4_BYTES, segment_bytes, addresses)?;
            packet.write(offset, &ipv4_head(addresses))?;
            Some(IPV4_ANSWER_BYTES)
        }
        ethertype::IPV6 => {
            let [version, _, _, _, l0, l1, next, _] = packet.read::<IPV6_HEAD_BYTES>(offset)?;
            let [to] = packet.read(offset + IPV6_HEAD_BYTES + 16)?;
            if version >> 4 != 6 || next != Protocol::Tcp as u8 || to == 0xff {
                return None;
            }
            let segment_bytes = usize::from(u16::from_be_bytes([l0, l1]));
            let addresses = swap::<16, 4, P>(packet, offset + IPV6_HEAD_BYTES)?;
            turn_tcp(packet, offset + IPV6_BYTES, segment_bytes, addresses)?;
            let head = [0x60, 0, 0, 0, 0, TCP_BYTES as u8, Protocol::Tcp as u8, HOP_LIMIT];
            packet.write(offset, &head)?;
            Some(IPV6_ANSWER_BYTES)
        }
        _ => None,
    }
}

/// Swaps the two addresses of `A` bytes at `offset`, and returns the sum of their 16-bit words. By `W` bytes at a time: the stack of
/// a kernel program has no room for them.
#[inline(always)]
pub fn swap<const A: usize, const W: usize, P: Reader + Writer + ?Sized>(
    packet: &P,
    offset: usize,
) -> Option<u32> {
    let mut addresses = 0;
    let mut at = 0;
    while at < A {
        let source = packet.read::<W>(offset + at)?;
        let destination = packet.read::<W>(offset + A + at)?;
        // Opaque, so that it is added up at once and no byte is kept for later.
        addresses = P::opaque(addresses + sum(&source) + sum(&destination));
        packet.write(offset + at, &destination)?;
        packet.write(offset + A + at, &source)?;
        at += W;
    }
    Some(addresses)
}

/// Of an IPv4 address whose first octet this is, nobody answers for it: multicast, broadcast, or "this network" (RFC 1122 section
/// 4.2.3.10).
#[inline(always)]
const fn is_for_many_v4(first_octet: u8) -> bool {
    matches!(first_octet, 0 | 224..)
}

/// Turns the TCP header of the segment of `segment_bytes` bytes at `offset`; `addresses` is the sum of both addresses.
#[inline(always)]
fn turn_tcp<P: Reader + Writer + ?Sized>(
    packet: &P,
    offset: usize,
    segment_bytes: usize,
    addresses: u32,
) -> Option<()> {
    let [words, flags] = packet.read::<2>(offset + 12)?;
    // Of a length below its header nothing can be acknowledged; BIG TCP says zero.
    let data = segment_bytes.checked_sub(usize::from(words >> 4) * 4)? as u32;
    if flags & flag::RST != 0 {
        return None;
    }
    let sequence = u32::from_be_bytes(packet.read(offset + 4)?);
    let acknowledged = u32::from_be_bytes(packet.read(offset + 8)?);
    let (sequence, acknowledged, answer) = if flags & flag::ACK != 0 {
        (acknowledged, 0, flag::RST)
    } else {
        // SYN and FIN, the second bit and the first.
        let controls = u32::from(flags >> 1 & 1) + u32::from(flags & 1);
        (0, sequence.wrapping_add(data).wrapping_add(controls), flag::RST | flag::ACK)
    };
    let ports = swap::<2, 2, P>(packet, offset)?;
    packet.write(offset + 4, &sequence.to_be_bytes())?;
    packet.write(offset + 8, &acknowledged.to_be_bytes())?;
    let length_and_flags = [(TCP_BYTES as u8 / 4) << 4, answer];
    packet.write(offset + 12, &length_and_flags)?;
    // The pseudo-header: addresses, protocol and length (RFC 9293 section 3.1). The window and the urgent pointer are zero.
    let pseudo = addresses + Protocol::Tcp as u32 + TCP_BYTES as u32;
    let words = sum(&sequence.to_be_bytes()) + sum(&acknowledged.to_be_bytes());
    let checksum = folded(pseudo + ports + words + sum(&length_and_flags));
    packet.write(offset + 14, &[0, 0])?;
    packet.write(offset + 16, &checksum.to_be_bytes())?;
    packet.write(offset + 18, &[0, 0])
}

#[inline(always)]
fn ipv4_head(addresses: u32) -> [u8; IPV4_HEAD_BYTES] {
    let mut head = [0; IPV4_HEAD_BYTES];
    head[0] = 0x45;
    head[3] = IPV4_ANSWER_BYTES as u8;
    // "Don't fragment": without it, an identification of zero would be another packet's (RFC 6864 section 4.1).
    head[6] = 0x40;
    head[8] = HOP_LIMIT;
    head[9] = Protocol::Tcp as u8;
    let checksum = folded(addresses + sum(&head));
    head[10..12].copy_from_slice(&checksum.to_be_bytes());
    head
}

/// The sum of 16-bit words that the Internet checksum is made from (RFC 1071).
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i + 1 < N {
        sum += u32::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    sum
}

#[inline(always)]
fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, vec::Vec};

    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const CLIENT4: [u8; 4] = [203, 0, 113, 9];
    const SERVER4: [u8; 4] = [198, 51, 100, 4];
    const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    const SERVER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4];

    fn segment(change: impl FnOnce(&mut TcpHeader)) -> TcpHeader {
        let mut header = TcpHeader::new(51_234, 11_434, 1_000, 64_240);
        change(&mut header);
        header
    }

    fn packets(header: &TcpHeader, payload: &[u8]) -> [Vec<u8>; 2] {
        let mut packets = [Vec::new(), Vec::new()];
        let v4 = PacketBuilder::ipv4(CLIENT4, SERVER4, 7).tcp_header(header.clone());
        v4.write(&mut packets[0], payload).unwrap();
        let v6 = PacketBuilder::ipv6(CLIENT6, SERVER6, 7).tcp_header(header.clone());
        v6.write(&mut packets[1], payload).unwrap();
        packets
    }

    /// A packet that can be written to.
    struct Frame(RefCell<Vec<u8>>);

    impl Reader for Frame {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.borrow()[..].read(offset)
        }
    }

    impl Writer for Frame {
        fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Option<()> {
            self.0.borrow_mut().get_mut(offset..offset + N)?.copy_from_slice(bytes);
            Some(())
        }
    }

    fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
        let ether_type = if bytes[0] >> 4 == 4 { ethertype::IPV4 } else { ethertype::IPV6 };
        let frame = Frame(RefCell::new(bytes.to_vec()));
        let length = turn(&frame, ether_type, 0)?;
        let mut whole = frame.0.into_inner();
        assert!(length <= whole.len());
        whole.truncate(length);
        Some(whole)
    }

    /// An independent parser reads the answer, and computes its checksums.
    fn read(whole: &[u8]) -> TcpHeader {
        let sliced = SlicedPacket::from_ip(whole).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
        let header = tcp.to_header();
        assert!(tcp.payload().is_empty());
        let checksum = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                assert_eq!((ip.source, ip.destination), (SERVER4, CLIENT4));
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert!(ip.dont_fragment);
                header.calc_checksum_ipv4(&ip, &[]).unwrap()
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                assert_eq!((ip.source, ip.destination), (SERVER6, CLIENT6));
                header.calc_checksum_ipv6(&ip, &[]).unwrap()
            }
            NetSlice::Arp(_) => panic!("no IP"),
        };
        assert_eq!(header.checksum, checksum);
        assert_eq!((header.source_port, header.destination_port), (11_434, 51_234));
        header
    }

    #[test]
    fn a_syn_is_answered_with_an_acknowledged_reset() {
        let syn = segment(|header| header.syn = true);
        for packet in packets(&syn, &[]) {
            let reset = read(&answer(&packet).unwrap());
            assert!(reset.rst && reset.ack && !reset.syn && !reset.fin);
            assert_eq!((reset.sequence_number, reset.acknowledgment_number), (0, 1_001));
        }
    }

    #[test]
    fn data_in_a_syn_and_a_fin_count_too() {
        let syn = segment(|header| (header.syn, header.sequence_number) = (true, u32::MAX));
        let fin = segment(|header| header.fin = true);
        for (header, payload, next) in [(&syn, &b"GET /"[..], 5), (&fin, b"x", 1_002)] {
            for packet in packets(header, payload) {
                let reset = read(&answer(&packet).unwrap());
                assert!(reset.rst && reset.ack);
                assert_eq!((reset.sequence_number, reset.acknowledgment_number), (0, next));
            }
        }
    }

    #[test]
    fn a_segment_with_an_acknowledgment_says_where_the_reset_stands() {
        let data = segment(|header| (header.ack, header.acknowledgment_number) = (true, 77));
        for packet in packets(&data, b"data") {
            let reset = read(&answer(&packet).unwrap());
            assert!(reset.rst && !reset.ack);
            assert_eq!((reset.sequence_number, reset.acknowledgment_number), (77, 0));
        }
    }

    #[test]
    fn some_packets_get_no_answer() {
        let syn = segment(|header| header.syn = true);
        let reset = segment(|header| header.rst = true);
        for packet in packets(&reset, &[]) {
            assert_eq!(answer(&packet), None, "a reset");
        }
        let [v4, v6] = packets(&syn, &[]);
        let changed = |packet: &[u8], at: usize, bytes: &[u8]| {
            let mut packet = packet.to_vec();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet
        };
        for (what, packet) in [
            ("a first fragment", changed(&v4, 6, &[0x20, 0])),
            ("IPv4 multicast", changed(&v4, 16, &[224, 0, 0, 1])),
            ("IPv4 broadcast", changed(&v4, 16, &[255; 4])),
            ("a length below the headers", changed(&v4, 2, &[0, 39])),
            ("IPv4 BIG TCP", changed(&v4, 2, &[0, 0])),
            ("IPv6 multicast", changed(&v6, 24, &[0xff, 2])),
            ("IPv6 BIG TCP", changed(&v6, 4, &[0, 0])),
            ("IPv4 options", [&[0x46], &v4[1..20], &[1; 4], &v4[20..]].concat()),
            ("a TCP header cut short", v6[..v6.len() - 1].to_vec()),
        ] {
            assert_eq!(answer(&packet), None, "{what}");
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_never_larger_and_never_answered(
            flags in any::<u8>(),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
            sequence: u32,
            acknowledged: u32,
        ) {
            let header = segment(|header| {
                (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledged);
            });
            for mut packet in packets(&header, &payload) {
                let tcp = packet.len() - payload.len() - TCP_BYTES;
                packet[tcp + 13] = flags;
                let Some(whole) = answer(&packet) else {
                    prop_assert!(flags & flag::RST != 0);
                    continue;
                };
                prop_assert!(whole.len() <= packet.len());
                read(&whole);
                prop_assert_eq!(answer(&whole), None);
            }
        }
    }
}
