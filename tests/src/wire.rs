//! Packets no ordinary socket would send: made by hand, and put on the wire as they are.

use std::{
    cell::Cell,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::{
    IpFragOffset, IpHeaders, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header, NetSlice,
    PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader, TransportSlice, ip_number,
};
use rustix::{
    fd::AsFd,
    net::{AddressFamily, RecvFlags, SocketType, netdevice, sockopt::Timeout},
};

use crate::{http, machine::Machine, wait::PATIENCE};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET_BYTES: usize = 14;
const HOP_LIMIT: u8 = 64;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// What a packet looks like on the wire: for each packet of a conversation, the frames that carry it. Each is what stands behind
/// the two Ethernet addresses, from the `EtherType` on.
pub type Shape = Box<dyn Fn(&[u8]) -> Vec<Vec<u8>>>;

/// One end of a link, to put frames on it.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    ear: OwnedFd,
    from: Mac,
    to: Mac,
}

impl Wire {
    /// Opens this interface of a machine, for frames between these two Ethernet addresses.
    #[must_use]
    #[track_caller]
    pub fn open(machine: &Machine, interface: &str, from: Mac, to: Mac) -> Self {
        let sockets = machine.inside(|| {
            let socket = packet_socket(interface, 0)?;
            take_offloads(&socket)?;
            io::Result::Ok((socket, packet_socket(interface, EVERY_PROTOCOL)?))
        });
        let (socket, ear) = sockets.unwrap_or_else(|error| {
            panic!("{interface} of {} can't be opened: {error}", machine.netns())
        });
        Self { socket, ear, from, to }
    }

    /// Sends an IP packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.put(&plain(packet));
    }

    /// Sends an IP packet, unless the link is down.
    pub fn send_if_up(&self, packet: &[u8]) -> bool {
        let frame =
            [&Offload::default().bytes()[..], &self.to, &self.from, &plain(packet)].concat();
        rustix::io::write(&self.socket, &frame).is_ok()
    }

    /// Sends an IP packet behind a VLAN tag (IEEE 802.1Q). Tag 0 is a priority tag: any host takes such a frame as untagged.
    #[track_caller]
    pub fn send_tagged(&self, vlan: u16, packet: &[u8]) {
        self.put(&tagged(&[vlan], packet));
    }

    /// Sends an IP packet in this shape.
    #[track_caller]
    pub fn send_as(&self, shape: &Shape, packet: &[u8]) {
        for frame in shape(packet) {
            self.put(&frame);
        }
    }

    /// Puts a frame on the wire: what stands behind its addresses.
    #[track_caller]
    pub fn put(&self, behind_addresses: &[u8]) {
        self.put_with(&Offload::default(), behind_addresses);
    }

    /// Sends a TCP packet, as [`stray`] makes it, as the kernel hands it to a NIC that is to cut it into segments of so
    /// many bytes, and to fill in their checksums.
    #[track_caller]
    pub fn send_segmented(&self, packet: &[u8], segment_bytes: u16) {
        const NEEDS_CHECKSUM: u8 = 1;
        const TCP_V4: u8 = 1;
        const TCP_V6: u8 = 4;
        const TCP_CHECKSUM: u16 = 16;
        const HOP_BY_HOP_BYTES: usize = 8;
        let is_v6 = packet[0] >> 4 == 6;
        let ip_bytes = match (is_v6, packet[6]) {
            (true, 0) => Ipv6Header::LEN + HOP_BY_HOP_BYTES,
            (true, _) => Ipv6Header::LEN,
            (false, _) => Ipv4Header::MIN_LEN,
        };
        let transport = (ETHERNET_BYTES + ip_bytes) as u16;
        let offload = Offload {
            flags: NEEDS_CHECKSUM,
            kind: if is_v6 { TCP_V6 } else { TCP_V4 },
            header_bytes: transport + u16::from(packet[ip_bytes + 12] >> 4) * 4,
            segment_bytes,
            checksum_start: transport,
            checksum_offset: TCP_CHECKSUM,
        };
        self.put_with(&offload, &plain(packet));
    }

    #[track_caller]
    fn put_with(&self, offload: &Offload, behind_addresses: &[u8]) {
        let frame = [&offload.bytes()[..], &self.to, &self.from, behind_addresses].concat();
        let sent = rustix::io::write(&self.socket, &frame).unwrap_or_else(|error| {
            panic!("a frame of {} bytes can't be sent: {error}", frame.len())
        });
        assert_eq!(sent, frame.len(), "a frame was cut short");
    }

    /// Opens a TCP connection with this packet and asks for `/`, in packets of this shape: [`CALL_PACKETS`].
    ///
    /// `from` may be any address whose packets the other end sends this way, and that is nobody's: no kernel answers for it.
    #[must_use]
    #[track_caller]
    pub fn call(&self, first: &[u8], from: SocketAddr, to: SocketAddr, shape: &Shape) -> bool {
        let Some(number) = self.greet(first, from, to, shape) else {
            return false;
        };
        self.send_as(shape, &asking(from, to, number));
        self.hear_answer(from, to)
    }

    /// Opens a TCP connection with this packet, in this shape, and waits to be welcomed: with what number, for [`asking`].
    #[must_use]
    #[track_caller]
    pub fn greet(
        &self,
        first: &[u8],
        from: SocketAddr,
        to: SocketAddr,
        shape: &Shape,
    ) -> Option<u32> {
        self.forget();
        self.send_as(shape, first);
        let is_welcome = |heard: &Heard| heard.is_reply(from, to) && heard.syn && heard.ack;
        self.hear(is_welcome).map(|welcome| welcome.sequence.wrapping_add(1))
    }

    /// Sends one packet with the question in it, in this shape, and waits for the answer.
    #[must_use]
    #[track_caller]
    pub fn call_at_once(
        &self,
        only: &[u8],
        from: SocketAddr,
        to: SocketAddr,
        shape: &Shape,
    ) -> bool {
        self.forget();
        self.send_as(shape, only);
        self.hear_answer(from, to)
    }

    fn hear_answer(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let is_answer = |heard: &Heard| {
            heard.is_reply(from, to)
                && (heard.payload.ends_with(http::BODY.as_bytes()) || heard.payload == DATAGRAM)
        };
        self.hear(is_answer).is_some()
    }

    /// Makes room for what is to be heard.
    fn forget(&self) {
        while rustix::net::recv(&self.ear, &mut [0; 1][..], RecvFlags::DONTWAIT).is_ok() {}
    }

    /// Waits for a packet from the other end.
    fn hear(&self, is_it: impl Fn(&Heard) -> bool) -> Option<Heard> {
        let deadline = Instant::now() + PATIENCE;
        let mut frame = vec![0; 65536];
        while Instant::now() < deadline {
            let Ok(length) = rustix::io::read(&self.ear, &mut frame[..]) else {
                continue;
            };
            if let Some(heard) = Heard::read(&frame[..length])
                && is_it(&heard)
            {
                return Some(heard);
            }
        }
        None
    }
}

/// The resets from one port that come in by an interface, from when it was opened on.
#[derive(Debug)]
pub struct Ears {
    socket: OwnedFd,
    port: u16,
    heard: Cell<usize>,
}

impl Ears {
    /// Opens this interface of a machine.
    #[must_use]
    #[track_caller]
    pub fn open(machine: &Machine, interface: &str, port: u16) -> Self {
        let socket = machine.inside(|| {
            let socket = packet_socket(interface, EVERY_PROTOCOL)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            Ok::<_, io::Error>(socket)
        });
        let socket = socket.unwrap_or_else(|error| {
            panic!("{interface} of {} can't be listened to: {error}", machine.netns())
        });
        Self { socket, port, heard: Cell::new(0) }
    }

    /// How many TCP resets have come so far.
    #[must_use]
    #[track_caller]
    pub fn resets(&self) -> usize {
        let mut frame = [0; 2048];
        loop {
            match rustix::io::read(&self.socket, &mut frame) {
                Ok(length) => self
                    .heard
                    .set(self.heard.get() + usize::from(is_reset(&frame[..length], self.port))),
                Err(rustix::io::Errno::WOULDBLOCK) => return self.heard.get(),
                Err(error) => panic!("what comes in can't be read: {error}"),
            }
        }
    }
}

fn is_reset(frame: &[u8], port: u16) -> bool {
    SlicedPacket::from_ethernet(frame)
        .is_ok_and(|packet| matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.rst() && tcp.source_port() == port))
}

/// Packets that [`Wire::call`] sends.
pub const CALL_PACKETS: u64 = 2;

const FIRST_SEQUENCE: u32 = 1000;
const DATAGRAM: &[u8] = b"hello";

/// What a NIC is to do with a frame: `struct virtio_net_hdr` of include/uapi/linux/virtio_net.h, with nothing to do by default.
#[derive(Debug, Default)]
struct Offload {
    flags: u8,
    kind: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Offload {
    fn bytes(&self) -> Vec<u8> {
        let words =
            [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset];
        let mut bytes = vec![self.flags, self.kind];
        bytes.extend(words.into_iter().flat_map(u16::to_ne_bytes));
        bytes
    }
}

/// A TCP or UDP packet that came over a wire.
#[derive(Debug)]
struct Heard {
    from_port: u16,
    to: SocketAddr,
    syn: bool,
    ack: bool,
    sequence: u32,
    payload: Vec<u8>,
}

impl Heard {
    fn read(frame: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let to: IpAddr = match sliced.net? {
            NetSlice::Ipv4(packet) => packet.header().destination_addr().into(),
            NetSlice::Ipv6(packet) => packet.header().destination_addr().into(),
            NetSlice::Arp(_) => return None,
        };
        match sliced.transport? {
            TransportSlice::Tcp(tcp) => Some(Self {
                from_port: tcp.source_port(),
                to: (to, tcp.destination_port()).into(),
                syn: tcp.syn(),
                ack: tcp.ack(),
                sequence: tcp.sequence_number(),
                payload: tcp.payload().to_vec(),
            }),
            TransportSlice::Udp(udp) => Some(Self {
                from_port: udp.source_port(),
                to: (to, udp.destination_port()).into(),
                syn: false,
                ack: false,
                sequence: 0,
                payload: udp.payload().to_vec(),
            }),
            _ => None,
        }
    }

    /// By the ports: NAT and source routes may change addresses. Nobody else in a lab uses a stranger's port.
    fn is_reply(&self, from: SocketAddr, to: SocketAddr) -> bool {
        (self.from_port, self.to.port()) == (to.port(), from.port())
            && self.to.is_ipv4() == from.is_ipv4()
    }
}

/// `ETH_P_ALL` of include/uapi/linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;

/// How long one look for a packet takes.
const LISTENING: Duration = Duration::from_millis(50);

/// A socket that sends whole frames by one interface, and receives those of this protocol; 0 is none.
fn packet_socket(interface: &str, protocol: u16) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None)?;
    let index = netdevice::name_to_index(socket.as_fd(), interface)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LISTENING))?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.cast_unsigned().try_into().map_err(io::Error::other)?,
        sll_protocol: protocol.to_be(),
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

/// Lets each frame that is sent begin with an [`Offload`].
fn take_offloads(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>().try_into().map_err(io::Error::other)?;
    // SAFETY: `on` is the integer the option takes, `length` its size, and the descriptor is open.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A packet in a frame of its own.
#[must_use]
pub fn plain(packet: &[u8]) -> Vec<u8> {
    tagged(&[], packet)
}

/// A packet in a frame of its own, behind these VLAN tags.
#[must_use]
pub fn tagged(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    for tag in tags {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype(packet).to_be_bytes());
    frame.extend(packet);
    frame
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

/// As [`syn`], with the options an ordinary host sends but the timestamps: 32 bytes of TCP header.
#[must_use]
#[track_caller]
pub fn opening(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    syn_with_options(from, to, &ORDINARY_OPTIONS, &[])
}

/// As [`opening`], of a connection that may have several paths (MP_CAPABLE of RFC 8684 section 3.1).
#[must_use]
#[track_caller]
pub fn multipath_opening(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    syn_with_options(from, to, &[&ORDINARY_OPTIONS[..], &[30, 4, 1, 1]].concat(), &[])
}

/// As [`opening`], of another path of a connection (MP_JOIN of RFC 8684 section 3.2), which there is not.
#[must_use]
#[track_caller]
pub fn joining(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let join = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    syn_with_options(from, to, &[&ORDINARY_OPTIONS[..], &join].concat(), &[])
}

/// As [`opening`], with the question in it and no cookie (RFC 7413 section 4.1.1).
#[must_use]
#[track_caller]
pub fn fast_opening(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let options = [&ORDINARY_OPTIONS[..], &[34, 2, 1, 1]].concat();
    syn_with_options(from, to, &options, http::REQUEST)
}

/// What a client says next that was welcomed with this number: its question.
#[must_use]
#[track_caller]
pub fn asking(from: SocketAddr, to: SocketAddr, number: u32) -> Vec<u8> {
    let ask = ip(from.ip(), to.ip())
        .tcp(from.port(), to.port(), FIRST_SEQUENCE + 1, 1024)
        .ack(number)
        .psh();
    written(ask, http::REQUEST)
}

/// Segments of 1000 bytes, a window in units of 128, selective acknowledgements (RFC 9293 section 3.2, RFC 7323, RFC 2018).
const ORDINARY_OPTIONS: [u8; 12] = [2, 4, 3, 232, 1, 3, 3, 7, 1, 1, 4, 2];

#[track_caller]
fn syn_with_options(from: SocketAddr, to: SocketAddr, options: &[u8], data: &[u8]) -> Vec<u8> {
    let packet = ip(from.ip(), to.ip())
        .tcp(from.port(), to.port(), FIRST_SEQUENCE, 1024)
        .syn()
        .options_raw(options)
        .unwrap_or_else(|error| panic!("these TCP options do not fit: {error}"));
    written(packet, data)
}

/// A packet of a connection that nobody has opened, with so many bytes in it. Where they are more than a length field can say, it
/// is a packet of BIG TCP: its length is 0, and an IPv6 one has it in a jumbo payload option (RFC 2675 section 2).
#[must_use]
#[track_caller]
pub fn stray(from: SocketAddr, to: SocketAddr, bytes: usize) -> Vec<u8> {
    let packet = ip(from.ip(), to.ip()).tcp(from.port(), to.port(), FIRST_SEQUENCE, 1024).ack(1);
    if bytes <= 65000 {
        return written(packet, &vec![b'x'; bytes]);
    }
    let packet = written(packet, &[]);
    let made = match to {
        SocketAddr::V4(_) => big_v4(&packet),
        SocketAddr::V6(_) => big_v6(&packet, bytes),
    };
    let mut made = made.unwrap_or_else(|error| panic!("no BIG TCP packet can be made: {error}"));
    made.resize(made.len() + bytes, b'x');
    made
}

fn big_v4(packet: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (header, payload) = Ipv4Header::from_slice(packet)?;
    let mut made = Vec::new();
    Ipv4Header { total_len: 0, ..header }.write(&mut made)?;
    made.extend(payload);
    Ok(made)
}

fn big_v6(packet: &[u8], bytes: usize) -> anyhow::Result<Vec<u8>> {
    const HOP_BY_HOP_BYTES: usize = 8;
    let (header, payload) = Ipv6Header::from_slice(packet)?;
    let length = u32::try_from(HOP_BY_HOP_BYTES + payload.len() + bytes)?;
    let mut made = Vec::new();
    let first =
        Ipv6Header { payload_length: 0, next_header: ip_number::IPV6_HEADER_HOP_BY_HOP, ..header };
    first.write(&mut made)?;
    made.extend([header.next_header.0, 0, 0xc2, 4]);
    made.extend(length.to_be_bytes());
    made.extend(payload);
    Ok(made)
}

#[track_caller]
fn written(packet: PacketBuilderStep<TcpHeader>, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet
        .write(&mut bytes, data)
        .unwrap_or_else(|error| panic!("no TCP packet can be made: {error}"));
    bytes
}

#[track_caller]
fn syn_with_data(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    written(ip(from.ip(), to.ip()).tcp(from.port(), to.port(), 1, 1024).syn(), data)
}

/// A TCP packet that ends a connection.
#[must_use]
#[track_caller]
pub fn reset(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    written(ip(from.ip(), to.ip()).tcp(from.port(), to.port(), 1, 0).rst(), &[])
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
        .write(&mut bytes, DATAGRAM)
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
    let end = payload(packet).len();
    [fragment(packet, 0..at), fragment(packet, at..end)]
}

/// What stands behind an IP header without options.
#[must_use]
pub fn payload(packet: &[u8]) -> &[u8] {
    let header = if packet[0] >> 4 == 6 { Ipv6Header::LEN } else { Ipv4Header::MIN_LEN };
    &packet[header..]
}

/// A fragment of an IP packet without options or extension headers: these bytes of what stands behind its IP header, from a
/// multiple of 8 on.
#[must_use]
#[track_caller]
pub fn fragment(packet: &[u8], bytes: Range<usize>) -> Vec<u8> {
    let offset = u16::try_from(bytes.start / 8).ok().and_then(|at| IpFragOffset::try_new(at).ok());
    let offset = offset.unwrap_or_else(|| panic!("{} is too far for a fragment", bytes.start));
    let more = bytes.end < payload(packet).len();
    let made = match packet[0] >> 4 {
        6 => fragment_v6(packet, bytes, offset, more),
        _ => fragment_v4(packet, bytes, offset, more),
    };
    made.unwrap_or_else(|error| panic!("no fragment can be made of the packet: {error}"))
}

/// Of every packet another, so that what is left of one is never put together with another.
fn identification(packet: &[u8]) -> u16 {
    let mut hasher = DefaultHasher::new();
    packet.hash(&mut hasher);
    (hasher.finish() & 0xffff) as u16
}

fn fragment_v4(
    packet: &[u8],
    bytes: Range<usize>,
    fragment_offset: IpFragOffset,
    more_fragments: bool,
) -> anyhow::Result<Vec<u8>> {
    let (whole, payload) = Ipv4Header::from_slice(packet)?;
    let mut header = Ipv4Header {
        identification: identification(packet),
        dont_fragment: false,
        more_fragments,
        fragment_offset,
        ..whole
    };
    header.set_payload_len(bytes.len())?;
    let mut made = Vec::new();
    header.write(&mut made)?;
    made.extend(&payload[bytes]);
    Ok(made)
}

fn fragment_v6(
    packet: &[u8],
    bytes: Range<usize>,
    offset: IpFragOffset,
    more_fragments: bool,
) -> anyhow::Result<Vec<u8>> {
    let (whole, payload) = Ipv6Header::from_slice(packet)?;
    let fragment = Ipv6FragmentHeader::new(
        whole.next_header,
        offset,
        more_fragments,
        identification(packet).into(),
    );
    let mut header = Ipv6Header { next_header: ip_number::IPV6_FRAG, ..whole };
    header.set_payload_length(Ipv6FragmentHeader::LEN + bytes.len())?;
    let mut made = Vec::new();
    header.write(&mut made)?;
    fragment.write(&mut made)?;
    made.extend(&payload[bytes]);
    Ok(made)
}

/// An IPv4 packet with these options (RFC 791 section 3.1), a multiple of four bytes.
#[must_use]
#[track_caller]
pub fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(packet)
        .unwrap_or_else(|error| panic!("options are for an IPv4 packet: {error}"));
    header.options = Ipv4Options::try_from(options)
        .unwrap_or_else(|error| panic!("{options:?} can't be IPv4 options: {error}"));
    header
        .set_payload_len(payload.len())
        .unwrap_or_else(|error| panic!("the packet is too long for options: {error}"));
    let mut made = Vec::new();
    header.write(&mut made).unwrap_or_else(|error| panic!("no header can be made: {error}"));
    made.extend(payload);
    made
}

/// An IPv6 extension header (RFC 8200 section 4) that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    HopByHop,
    DestinationOptions,
    /// Destination options of 264 bytes.
    LongDestinationOptions,
    /// Type 0, with no segment left (RFC 2460 section 4.4).
    Routing,
    /// A segment routing header, with no segment left (RFC 8754 section 2).
    Segments,
    /// Of a packet in one fragment (RFC 6946).
    AtomicFragment,
    /// RFC 4302 section 2; nobody has the key.
    Authentication,
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing | Self::Segments => 43,
            Self::AtomicFragment => 44,
            Self::Authentication => 51,
            Self::DestinationOptions | Self::LongDestinationOptions => 60,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        // PadN (RFC 8200 section 4.2) fills a header of options.
        match self {
            Self::HopByHop | Self::DestinationOptions => vec![next, 0, 1, 4, 0, 0, 0, 0],
            Self::LongDestinationOptions => {
                // An option for experiments (RFC 4727 section 3.2), of which who does not know it takes no notice: padding is not
                // accepted at such length. One holds 255 bytes at most, so there is a PadN behind it.
                [&[next, 32, 0x1e, 255][..], &[0; 255], &[1, 3, 0, 0, 0]].concat()
            }
            Self::Routing => [&[next, 2, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16]].concat(),
            Self::Segments => [&[next, 2, 4, 0, 0, 0, 0, 0][..], &[0xfd; 16]].concat(),
            Self::AtomicFragment => vec![next, 0, 0, 0, 0, 0, 0, 7],
            Self::Authentication => [&[next, 4, 0, 0][..], &[1; 20]].concat(),
        }
    }
}

/// An IPv6 packet with these extension headers behind its first header.
#[must_use]
#[track_caller]
pub fn with_extensions(packet: &[u8], extensions: &[Extension]) -> Vec<u8> {
    const NEXT_HEADER: usize = 6;
    const PAYLOAD_LENGTH: Range<usize> = 4..6;
    assert_eq!(packet[0] >> 4, 6, "extension headers are for an IPv6 packet");
    let (header, payload) = packet.split_at(Ipv6Header::LEN);
    let mut next = header[NEXT_HEADER];
    let mut behind = payload.to_vec();
    for extension in extensions.iter().rev() {
        behind = [extension.bytes(next), behind].concat();
        next = extension.number();
    }
    let length = u16::try_from(behind.len())
        .unwrap_or_else(|error| panic!("{extensions:?} are too long: {error}"));
    let mut made = header.to_vec();
    made[NEXT_HEADER] = next;
    made[PAYLOAD_LENGTH].copy_from_slice(&length.to_be_bytes());
    made.extend(behind);
    made
}

/// An IP packet of another protocol than TCP and UDP, with this payload.
#[must_use]
#[track_caller]
pub fn of_protocol(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from, to)
        .write(&mut bytes, protocol.into(), payload)
        .unwrap_or_else(|error| panic!("no packet of protocol {protocol} can be made: {error}"));
    bytes
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
