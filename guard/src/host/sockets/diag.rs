//! The kernel's own lists of sockets, and its way to end one from outside: `sock_diag(7)`.
//!
//! A netlink socket speaks of the network namespace that it was made in.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use guard_common::packet::Protocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, Nla as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, SockDiagDestroy, SockDiagMessage, TCP_SYN_RECV,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer, nlas::Nla},
};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};

use super::unmapped;
use crate::{host::conversation::Conversation, rule::GuardedPort};

/// `INET_DIAG_CGROUP_ID` of `include/uapi/linux/inet_diag.h` (Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;

/// `INET_DIAG_SOCKOPT` of the same, and `transparent` in the first octet of `struct inet_diag_sockopt`. A kernel that does not send
/// it shows no socket as transparent.
const INET_DIAG_SOCKOPT: u16 = 22;
const SOCKOPT_TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };

/// The cookie that stands for "whichever" (`INET_DIAG_NOCOOKIE` of `include/uapi/linux/inet_diag.h`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// A connection that is open, being opened, or being closed; for UDP, a socket that is connected. Or a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The port that decides whether it is guarded: its local one, unless it is known to be another.
    pub port: GuardedPort,
    /// An IPv4 address where an IPv6 socket shows it as mapped, as `remote` is.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// 0 for a socket that no process holds.
    pub inode: u64,
    /// The cgroup that its socket belongs to; `None` for one that has no socket yet.
    pub cgroup: Option<u64>,
    /// It takes, or carries, what is addressed to others (`IP_TRANSPARENT`).
    pub is_transparent: bool,
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
        take: impl FnMut(Connection),
    ) -> io::Result<()> {
        self.list(protocol, states(protocol), local_port, take)
    }

    /// Listeners of TCP, of both families.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn listeners(&mut self, take: impl FnMut(Connection)) -> io::Result<()> {
        self.list(Protocol::Tcp, StateFlags::LISTEN, 0, take)
    }

    fn list(
        &mut self,
        protocol: Protocol,
        states: StateFlags,
        local_port: u16,
        mut take: impl FnMut(Connection),
    ) -> io::Result<()> {
        for family in [AF_INET, AF_INET6] {
            let question = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: protocol as u8,
                extensions: ExtensionFlags::empty(),
                states: states.clone(),
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
            protocol: connection.port.protocol as u8,
            extensions: ExtensionFlags::empty(),
            states: states(connection.port.protocol),
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
        port: GuardedPort { protocol, number: id.source_port },
        local: unmapped((id.source_address, id.source_port).into()),
        remote: unmapped((id.destination_address, id.destination_port).into()),
        inode: header.inode.into(),
        cgroup: nlas.iter().find_map(cgroup_id),
        is_transparent: nlas.iter().any(says_transparent),
        is_established: header.state != TCP_SYN_RECV,
        family: header.family,
        id,
    })
}

fn cgroup_id(attribute: &Nla) -> Option<u64> {
    let value = value_of(attribute, INET_DIAG_CGROUP_ID)?;
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

fn says_transparent(attribute: &Nla) -> bool {
    let options = value_of(attribute, INET_DIAG_SOCKOPT).unwrap_or_default();
    options.first().is_some_and(|first| first & SOCKOPT_TRANSPARENT != 0)
}

/// The value of an attribute that is of this kind, one that the crate does not know.
fn value_of(attribute: &Nla, kind: u16) -> Option<Vec<u8>> {
    let Nla::Other(attribute) = attribute else { return None };
    if attribute.kind() != kind {
        return None;
    }
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(value)
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
    /// One for tests.
    #[cfg(test)]
    pub(super) fn example(protocol: Protocol, local: &str, remote: &str) -> Self {
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        let (Some(local), Some(remote)) = (address(local), address(remote)) else {
            panic!("{local} or {remote} is no address");
        };
        Self {
            port: GuardedPort { protocol, number: local.port() },
            local: unmapped(local),
            remote: unmapped(remote),
            inode: 1,
            cgroup: None,
            is_transparent: false,
            is_established: true,
            family: AF_INET,
            id: SocketId::new_v4(),
        }
    }

    /// The same, known to be for another port than its local one.
    pub fn for_port(&self, port: GuardedPort) -> Self {
        Self { port, ..self.clone() }
    }

    /// The interface it is bound to, as one with a link-local address is; 0 for none.
    pub fn interface(&self) -> u32 {
        self.id.interface_id
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    use netlink_packet_core::DefaultNla;
    use netlink_packet_sock_diag::{TCP_ESTABLISHED, inet::InetResponseHeader};

    use super::*;

    fn response(state: u8, timer: Option<Timer>, nlas: Vec<Nla>) -> InetResponse {
        let socket_id = SocketId {
            source_port: 11434,
            destination_port: 5000,
            source_address: "::ffff:192.0.2.4".parse().unwrap(),
            destination_address: "::ffff:203.0.113.9".parse().unwrap(),
            ..SocketId::new_v6()
        };
        let header = InetResponseHeader {
            family: AF_INET6,
            state,
            timer,
            socket_id,
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 77,
        };
        InetResponse { header, nlas: nlas.into() }
    }

    fn other(kind: u16, value: &[u8]) -> Nla {
        Nla::Other(DefaultNla::new(kind, value.to_vec()))
    }

    #[test]
    fn a_response_says_who_where_and_in_which_cgroup() {
        let cgroup = other(INET_DIAG_CGROUP_ID, &4711_u64.to_ne_bytes());
        let nlas = vec![Nla::Shutdown(0), other(20, &1_u64.to_ne_bytes()), cgroup];
        let found = connection(Protocol::Tcp, response(TCP_ESTABLISHED, None, nlas)).unwrap();
        assert_eq!(found.local, "192.0.2.4:11434".parse().unwrap());
        assert_eq!(found.remote, "203.0.113.9:5000".parse().unwrap());
        assert_eq!((found.inode, found.cgroup, found.is_established), (77, Some(4711), true));
        assert_eq!(found.port, GuardedPort { protocol: Protocol::Tcp, number: 11434 });
        assert!(!found.is_transparent);
        // It is asked for as it was shown.
        assert_eq!(found.family, AF_INET6);
        assert!(found.id.source_address.is_ipv6());
    }

    #[test]
    fn a_request_has_no_socket_yet_and_time_wait_has_none_any_more() {
        let cut_short = other(INET_DIAG_CGROUP_ID, &[1, 2, 3]);
        let request = response(TCP_SYN_RECV, None, vec![cut_short]);
        let found = connection(Protocol::Tcp, request).unwrap();
        assert_eq!((found.cgroup, found.is_established), (None, false));
        let over = response(TCP_ESTABLISHED, Some(Timer::TimeWait), Vec::new());
        assert_eq!(connection(Protocol::Tcp, over), None);
    }

    #[test]
    fn a_transparent_socket_is_told_by_its_options() {
        for (options, is_transparent) in [
            (other(INET_DIAG_SOCKOPT, &[SOCKOPT_TRANSPARENT, 0]), true),
            (other(INET_DIAG_SOCKOPT, &[!SOCKOPT_TRANSPARENT, 0xff]), false),
            (other(INET_DIAG_SOCKOPT, &[]), false),
            (other(20, &[0xff, 0xff]), false),
        ] {
            let found = response(TCP_ESTABLISHED, None, vec![options]);
            let found = connection(Protocol::Tcp, found).unwrap();
            assert_eq!(found.is_transparent, is_transparent, "{found:?}");
        }
    }

    fn listed(protocol: Protocol, local_port: u16) -> Vec<Connection> {
        let mut found = Vec::new();
        Diag::open()
            .unwrap()
            .connections(protocol, local_port, |connection| found.push(connection))
            .unwrap();
        found
    }

    #[test]
    fn the_kernel_lists_this_process_s_connections() {
        for any in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let listener = TcpListener::bind((any, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            let found = listed(Protocol::Tcp, local.port());
            let mut listeners = Vec::new();
            let mut diag = Diag::open().unwrap();
            diag.listeners(|listener| listeners.push(listener.local)).unwrap();
            assert!(listeners.contains(&local), "{listeners:?}");
            // It is none of the connections.
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].local, found[0].remote), (local, client.local_addr().unwrap()));
            assert!(found[0].is_established && found[0].inode != 0);
            assert!(listed(Protocol::Tcp, 0).contains(&found[0]));

            let udp = UdpSocket::bind((any, 0)).unwrap();
            let local = udp.local_addr().unwrap();
            assert!(listed(Protocol::Udp, local.port()).is_empty());
            udp.connect((any, 9)).unwrap();
            assert_eq!(listed(Protocol::Udp, local.port())[0].local, local);
        }
    }

    #[test]
    fn a_connection_is_ended_once() {
        crate::host::assert_root();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let found = listed(Protocol::Tcp, server.local_addr().unwrap().port());
        let mut diag = Diag::open().unwrap();
        assert!(diag.destroy(&found[0]).unwrap());
        assert!(!diag.destroy(&found[0]).unwrap());
        let error = io::Read::read(&mut server, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(listed(Protocol::Tcp, found[0].local.port()).is_empty());
    }

    #[test]
    fn only_what_stays_here_leads_here() {
        let mut routes = Routes::open().unwrap();
        for (address, leads_here) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            // Whether or not there is a way to them.
            ("203.0.113.9", false),
            ("2001:db8::9", false),
        ] {
            let answer = routes.lead_here(address.parse().unwrap(), 0).unwrap();
            assert_eq!(answer, leads_here, "{address}");
        }
        assert!(!routes.lead_here("fe80::9".parse().unwrap(), u32::MAX >> 1).unwrap());
    }
}
