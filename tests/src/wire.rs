//! Packets no ordinary socket would send: made by hand, and put on the wire as they are.

use std::{
    io,
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use etherparse::{
    IpFragOffset, IpHeaders, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
    PacketBuilderStep, ip_number,
};
use rustix::{
    fd::AsFd,
    net::{AddressFamily, SocketType, netdevice},
};

use crate::machine::Machine;

/// An Ethernet address.
pub type Mac = [u8; 6];

const HOP_LIMIT: u8 = 64;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// One end of a link, to put frames on it.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    from: Mac,
    to: Mac,
}

impl Wire {
    /// Opens this interface of a machine, for frames between these two Ethernet addresses.
    #[must_use]
    #[track_caller]
    pub fn open(machine: &Machine, interface: &str, from: Mac, to: Mac) -> Self {
        let socket = machine.inside(|| packet_socket(interface));
        let socket = socket.unwrap_or_else(|error| {
            panic!("{interface} of {} can't be opened: {error}", machine.netns())
        });
        Self { socket, from, to }
    }

    /// Sends an IP packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.send_frame(&self.frame(ethertype(packet), packet));
    }

    /// Sends an IP packet behind a VLAN tag (IEEE 802.1Q). Tag 0 is a priority tag: any host takes such a frame as untagged.
    #[track_caller]
    pub fn send_tagged(&self, vlan: u16, packet: &[u8]) {
        let mut tagged = vlan.to_be_bytes().to_vec();
        tagged.extend(ethertype(packet).to_be_bytes());
        tagged.extend(packet);
        self.send_frame(&self.frame(ETHERTYPE_VLAN, &tagged));
    }

    fn frame(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.to, self.from].concat();
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[track_caller]
    fn send_frame(&self, frame: &[u8]) {
        let sent = rustix::io::write(&self.socket, frame).unwrap_or_else(|error| {
            panic!("a frame of {} bytes can't be sent: {error}", frame.len())
        });
        assert_eq!(sent, frame.len(), "a frame was cut short");
    }
}

/// A socket that sends whole frames by one interface, and receives nothing.
fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None)?;
    let index = netdevice::name_to_index(socket.as_fd(), interface)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.cast_unsigned().try_into().map_err(io::Error::other)?,
        sll_protocol: 0,
        sll_ifindex: index.try_into().map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>().try_into().map_err(io::Error::other)?;
    // SAFETY: `address` is a whole `sockaddr_ll` that lives across the call, `length` is its size, and the descriptor is open.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

#[track_caller]
fn ethertype(packet: &[u8]) -> u16 {
    match packet[0] >> 4 {
        6 => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    }
}

/// The first packet of a TCP connection.
#[must_use]
#[track_caller]
pub fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    syn_with_data(from, to, &[])
}

#[track_caller]
fn syn_with_data(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let packet = ip(from.ip(), to.ip()).tcp(from.port(), to.port(), 1, 1024).syn();
    let mut bytes = Vec::new();
    packet.write(&mut bytes, data).unwrap_or_else(|error| panic!("no SYN can be made: {error}"));
    bytes
}

/// The first packet of a TCP connection, in two fragments: the first ends as early as a host accepts.
///
/// Over IPv4 that is right behind the ports; over IPv6 all headers must be in the first fragment (RFC 8200 section 4.5).
#[must_use]
#[track_caller]
pub fn syn_in_fragments(from: SocketAddr, to: SocketAddr) -> [Vec<u8>; 2] {
    match to {
        SocketAddr::V4(_) => fragments(&syn(from, to), 8),
        SocketAddr::V6(_) => fragments(&syn_with_data(from, to, &[0; 12]), 24),
    }
}

/// The first packet of a TCP connection over IPv6, behind so many destination options headers that say nothing (RFC 8200 section
/// 4.6: eight bytes of PadN each).
#[must_use]
#[track_caller]
pub fn syn_behind_options(from: SocketAddr, to: SocketAddr, headers: u16) -> Vec<u8> {
    const BYTES: u16 = 8;
    let mut packet = syn(from, to);
    let length = u16::from_be_bytes([packet[4], packet[5]]) + headers * BYTES;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    let mut options = Vec::new();
    for left in (0..headers).rev() {
        let next = if left == 0 { ip_number::TCP } else { ip_number::IPV6_DEST_OPTIONS };
        options.extend([next.0, 0, 1, 4, 0, 0, 0, 0]);
    }
    if headers > 0 {
        packet[6] = ip_number::IPV6_DEST_OPTIONS.0;
    }
    packet.splice(Ipv6Header::LEN..Ipv6Header::LEN, options);
    packet
}

/// A UDP datagram.
#[must_use]
#[track_caller]
pub fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let packet = ip(from.ip(), to.ip()).udp(from.port(), to.port());
    let mut bytes = Vec::new();
    packet
        .write(&mut bytes, b"hello")
        .unwrap_or_else(|error| panic!("no datagram can be made: {error}"));
    bytes
}

#[track_caller]
fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
        }
        _ => panic!("{from} and {to} are of different families"),
    }
}

/// Cuts an IP packet without options or extension headers in two, `at` bytes (a multiple of 8) behind its IP header.
#[track_caller]
fn fragments(packet: &[u8], at: usize) -> [Vec<u8>; 2] {
    let offset = u16::try_from(at / 8).ok().and_then(|offset| IpFragOffset::try_new(offset).ok());
    let offset = offset.unwrap_or_else(|| panic!("{at} is too far for a fragment"));
    let cut = match packet[0] >> 4 {
        6 => fragments_v6(packet, at, offset),
        _ => fragments_v4(packet, at, offset),
    };
    cut.unwrap_or_else(|error| panic!("the packet can't be cut in two: {error}"))
}

fn fragments_v4(packet: &[u8], at: usize, offset: IpFragOffset) -> anyhow::Result<[Vec<u8>; 2]> {
    let (whole, payload) = Ipv4Header::from_slice(packet)?;
    let (front, back) = payload.split_at(at);
    let part = |payload: &[u8], fragment_offset, more_fragments| {
        let mut header = Ipv4Header {
            identification: 7,
            dont_fragment: false,
            more_fragments,
            fragment_offset,
            ..whole.clone()
        };
        header.set_payload_len(payload.len())?;
        let mut bytes = Vec::new();
        header.write(&mut bytes)?;
        bytes.extend(payload);
        anyhow::Ok(bytes)
    };
    Ok([part(front, IpFragOffset::ZERO, true)?, part(back, offset, false)?])
}

fn fragments_v6(packet: &[u8], at: usize, offset: IpFragOffset) -> anyhow::Result<[Vec<u8>; 2]> {
    let (whole, payload) = Ipv6Header::from_slice(packet)?;
    let (front, back) = payload.split_at(at);
    let part = |payload: &[u8], fragment_offset, more_fragments| {
        let fragment =
            Ipv6FragmentHeader::new(whole.next_header, fragment_offset, more_fragments, 7);
        let mut header = Ipv6Header { next_header: ip_number::IPV6_FRAG, ..whole.clone() };
        header.set_payload_length(Ipv6FragmentHeader::LEN + payload.len())?;
        let mut bytes = Vec::new();
        header.write(&mut bytes)?;
        fragment.write(&mut bytes)?;
        bytes.extend(payload);
        anyhow::Ok(bytes)
    };
    Ok([part(front, IpFragOffset::ZERO, true)?, part(back, offset, false)?])
}

/// A TCP packet whose header says that it is shorter than a TCP header can be (RFC 9293 section 3.1: the data offset).
#[must_use]
#[track_caller]
pub fn with_short_tcp_header(mut packet: Vec<u8>) -> Vec<u8> {
    let transport = if packet[0] >> 4 == 6 { Ipv6Header::LEN } else { Ipv4Header::MIN_LEN };
    packet[transport + 12] = 4 << 4;
    packet
}

/// An IPv4 packet whose header says that it is shorter than an IPv4 header can be (RFC 791 section 3.1: the IHL).
#[must_use]
pub fn with_short_ipv4_header(mut packet: Vec<u8>) -> Vec<u8> {
    packet[0] = (4 << 4) | 4;
    packet
}

/// Addresses from 198.18.0.0/15, which no machine of a lab has (RFC 2544 section C.2.2), different ones for different numbers.
#[must_use]
pub fn stranger_v4(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// Addresses from `2001:db8::/32` (RFC 3849), each in a /64 of its own.
#[must_use]
pub const fn stranger_v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, 1)
}
