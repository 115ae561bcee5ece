//! The kernel's own lists of sockets, and its way to end one from outside: `sock_diag(7)`.
//!
//! A netlink socket speaks of the network namespace that it was made in.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use guard_common::packet::Protocol;
use netlink_packet_core::{
    DecodeError, DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Nla as _,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, SockDiagDestroy, SockDiagMessage, TCP_SYN_RECV,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer, nlas::Nla},
};
use netlink_sys::{
    Socket, SocketAddr as NetlinkAddr,
    protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};

use super::unmapped;

/// `INET_DIAG_CGROUP_ID` of `include/uapi/linux/inet_diag.h` (Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The cookie that stands for "whichever" (`INET_DIAG_NOCOOKIE` of `include/uapi/linux/inet_diag.h`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// A connection that is open, being opened, or being closed; for UDP, a socket that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    /// An IPv4 address where an IPv6 socket shows it as mapped, as `remote` is.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// 0 for a socket that no process holds.
    pub inode: u64,
    /// The cgroup that its socket belongs to; `None` for one that has no socket yet.
    pub cgroup: Option<u64>,
    /// The handshake is complete.
    pub is_established: bool,
    family: u8,
    id: SocketId,
}

/// What is asked of the socket tables of one network namespace.
#[derive(Debug)]
pub struct Diag(Conversation);

impl Diag {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel has no `sock_diag`, or this process may not have such a socket.
    pub fn open() -> io::Result<Self> {
        Conversation::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Connections of a protocol, of both families, with this local port; with any for 0.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn connections(
        &mut self,
        protocol: Protocol,
        local_port: u16,
        mut take: impl FnMut(Connection),
    ) -> io::Result<()> {
        for family in [AF_INET, AF_INET6] {
            let question = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: protocol as u8,
                extensions: ExtensionFlags::empty(),
                states: states(protocol),
                socket_id: SocketId {
                    source_port: local_port,
                    cookie: ANY_COOKIE,
                    ..SocketId::new_v4()
                },
            });
            self.0.ask(question, NLM_F_DUMP, |answer: SockDiagMessage| {
                if let SockDiagMessage::InetResponse(response) = answer
                    && let Some(connection) = connection(protocol, *response)
                {
                    take(connection);
                }
            })?;
        }
        Ok(())
    }

    /// Ends a connection: whoever holds its socket finds it aborted (`ECONNABORTED`), and the other side gets a reset. Answers
    /// whether it was still there.
    ///
    /// # Errors
    /// `EOPNOTSUPP` from a kernel built without `CONFIG_INET_DIAG_DESTROY`; any other when the kernel does not do it.
    pub fn destroy(&mut self, connection: &Connection) -> io::Result<bool> {
        let question = SockDiagDestroy::new(SockDiagMessage::InetRequest(InetRequest {
            family: connection.family,
            protocol: connection.protocol as u8,
            extensions: ExtensionFlags::empty(),
            states: states(connection.protocol),
            // With its cookie: another connection with these addresses and ports is left alone.
            socket_id: connection.id.clone(),
        }));
        match self.0.ask(question, NLM_F_ACK, |_: SockDiagMessage| ()) {
            Ok(()) => Ok(true),
            // `ENOENT` for one that has gone, `ESTALE` where another has taken its place.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Those that carry data or may come to: all but who listens, who has been closed and who calls.
fn states(protocol: Protocol) -> StateFlags {
    match protocol {
        Protocol::Tcp => {
            StateFlags::ESTABLISHED
                | StateFlags::SYN_RECV
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2
                | StateFlags::CLOSE_WAIT
                | StateFlags::LAST_ACK
                | StateFlags::CLOSING
        }
        // What a connected UDP socket is said to be (`__ip4_datagram_connect` in `net/ipv4/datagram.c`).
        Protocol::Udp => StateFlags::ESTABLISHED,
    }
}

/// `None` for one that is over on this side: FIN-WAIT-2 may be kept like TIME-WAIT, without a socket.
fn connection(protocol: Protocol, response: InetResponse) -> Option<Connection> {
    let InetResponse { header, nlas } = response;
    if header.timer == Some(Timer::TimeWait) {
        return None;
    }
    let id = header.socket_id;
    Some(Connection {
        protocol,
        local: unmapped((id.source_address, id.source_port).into()),
        remote: unmapped((id.destination_address, id.destination_port).into()),
        inode: header.inode.into(),
        cgroup: nlas.iter().find_map(cgroup_id),
        is_established: header.state != TCP_SYN_RECV,
        family: header.family,
        id,
    })
}

fn cgroup_id(attribute: &Nla) -> Option<u64> {
    let Nla::Other(attribute) = attribute else { return None };
    (attribute.kind() == INET_DIAG_CGROUP_ID).then(|| number(attribute))?
}

fn number(attribute: &DefaultNla) -> Option<u64> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

/// What is asked of the routes of one network namespace.
#[derive(Debug)]
pub struct Routes(Conversation);

impl Routes {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// When this process may not have such a socket.
    pub fn open() -> io::Result<Self> {
        Conversation::open(NETLINK_ROUTE).map(Self)
    }

    /// Whether packets to this address stay in the namespace, so that what comes from there comes over loopback.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn lead_here(&mut self, address: IpAddr, interface: u32) -> io::Result<bool> {
        let mut question = RouteMessage::default();
        let (family, to) = match address {
            IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
        };
        question.header.address_family = family;
        question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(to));
        if interface != 0 {
            question.attributes.push(RouteAttribute::Oif(interface));
        }
        let mut is_local = false;
        let asked = self.0.ask(
            RouteNetlinkMessage::GetRoute(question),
            NLM_F_ACK,
            |answer: RouteNetlinkMessage| {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    is_local = route.header.kind == RouteType::Local;
                }
            },
        );
        match asked {
            Ok(()) => Ok(is_local),
            // There is no way there at all.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV | libc::EINVAL)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Connection {
    /// The interface it is bound to, as one with a link-local address is; 0 for none.
    pub fn interface(&self) -> u32 {
        self.id.interface_id
    }
}

/// Questions to the kernel, one at a time, each waited for.
#[derive(Debug)]
struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Nobody but the kernel is listened to.
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and takes every answer up to the end of the list, or the acknowledgement.
    fn ask<Q, A>(&mut self, question: Q, flags: u16, mut take: impl FnMut(A)) -> io::Result<()>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.take_answers(&datagram, &mut take)? == Answers::AllTaken {
                return Ok(());
            }
        }
    }

    /// Takes the messages of one datagram.
    fn take_answers<A>(&self, datagram: &[u8], take: &mut impl FnMut(A)) -> io::Result<Answers>
    where
        A: NetlinkDeserializable,
    {
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(unreadable)?.length() as usize;
            let message = NetlinkMessage::<A>::deserialize(rest).map_err(unreadable)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            // What is left of an answer that was given up on.
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => take(answer),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(Answers::AllTaken),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(Answers::AllTaken),
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::other("the kernel's answer was cut short"));
                }
                _ => {}
            }
        }
        Ok(Answers::MoreToCome)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    AllTaken,
    MoreToCome,
}

fn unreadable(error: DecodeError) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel's answer can't be read: {error}"),
    )
}
