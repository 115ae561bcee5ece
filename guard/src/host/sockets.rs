//! Which processes listen on guarded ports, and who is connected to them.
//!
//! Listeners are those of the calling thread's network namespace; owners are looked for among all processes that this
//! one may look into. A list that can't be read is logged and taken as empty: these are facts to show, and
//! nothing is enforced by them. [`open`] lists connections in other namespaces, too, and ends them.

mod diag;
pub mod open;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use guard_common::packet::Protocol;
use procfs::{
    FromReadSI, ProcError, ProcResult,
    net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState},
    process::{FDTarget, all_processes},
};
use serde::{Deserialize, Serialize};

use crate::rule::GuardedPort;

/// A socket that listens on a guarded port at an address other machines may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub local: SocketAddr,
    pub process: Option<Process>,
}

/// An open connection to a guarded port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The guarded port that the connection is for.
    pub port: GuardedPort,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub process: Option<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub name: String,
}

/// Who listens on these ports, TCP or UDP, at more than loopback.
#[must_use]
pub fn listeners(ports: &[GuardedPort]) -> Vec<Listener> {
    let sockets = select(table(), ports, is_listener);
    let owners = owners(sockets.iter().map(|socket| socket.inode));
    let listener = |socket: Socket| Listener {
        local: socket.local,
        process: owners.get(&socket.inode).cloned(),
    };
    sockets.into_iter().map(listener).collect()
}

/// Who is connected to these ports over TCP in this namespace, from anywhere but loopback. This host's other addresses are among
/// them.
fn peers(ports: &[GuardedPort]) -> Vec<Peer> {
    let sockets = select(table(), ports, is_peer);
    let owners = owners(sockets.iter().map(|socket| socket.inode));
    let peer = |socket: Socket| Peer {
        port: GuardedPort { protocol: socket.protocol, number: socket.local.port() },
        local: socket.local,
        remote: socket.remote,
        process: owners.get(&socket.inode).cloned(),
    };
    sockets.into_iter().map(peer).collect()
}

/// A line of the kernel's socket tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    protocol: Protocol,
    local: SocketAddr,
    remote: SocketAddr,
    state: State,
    /// 0 for a socket that no process holds.
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// TCP that listens, or UDP that is not connected.
    Open,
    /// TCP whose handshake is complete, and which may still carry data or its end.
    Connected,
    Other,
}

impl From<TcpState> for State {
    fn from(state: TcpState) -> Self {
        match state {
            TcpState::Listen => Self::Open,
            TcpState::Established
            | TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::Closing => Self::Connected,
            TcpState::SynSent
            | TcpState::SynRecv
            | TcpState::NewSynRecv
            | TcpState::TimeWait
            | TcpState::Close => Self::Other,
        }
    }
}

impl From<UdpState> for State {
    fn from(state: UdpState) -> Self {
        match state {
            UdpState::Close => Self::Open,
            UdpState::Established => Self::Other,
        }
    }
}

fn is_listener(socket: &Socket) -> bool {
    socket.state == State::Open && !socket.local.ip().is_loopback()
}

fn is_peer(socket: &Socket) -> bool {
    socket.state == State::Connected && !socket.remote.ip().is_loopback()
}

/// The sockets whose local port is guarded, and which are wanted. IPv4 addresses that an IPv6 socket shows as mapped are
/// IPv4 addresses.
fn select(
    sockets: impl IntoIterator<Item = Socket>,
    ports: &[GuardedPort],
    is_wanted: impl Fn(&Socket) -> bool,
) -> Vec<Socket> {
    let is_guarded = |socket: &Socket| {
        ports.contains(&GuardedPort { protocol: socket.protocol, number: socket.local.port() })
    };
    let plain = |socket: Socket| Socket {
        local: unmapped(socket.local),
        remote: unmapped(socket.remote),
        ..socket
    };
    sockets.into_iter().filter(is_guarded).map(plain).filter(is_wanted).collect()
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// Every TCP and UDP socket of the thread's network namespace. `/proc/net` would show the main thread's.
fn table() -> Vec<Socket> {
    let mut sockets = Vec::new();
    for name in ["tcp", "tcp6"] {
        let entries = read::<TcpNetEntries>(name).map_or_else(Vec::new, |entries| entries.0);
        sockets.extend(entries.into_iter().map(|entry| Socket {
            protocol: Protocol::Tcp,
            local: entry.local_address,
            remote: entry.remote_address,
            state: entry.state.into(),
            inode: entry.inode,
        }));
    }
    for name in ["udp", "udp6"] {
        let entries = read::<UdpNetEntries>(name).map_or_else(Vec::new, |entries| entries.0);
        sockets.extend(entries.into_iter().map(|entry| Socket {
            protocol: Protocol::Udp,
            local: entry.local_address,
            remote: entry.remote_address,
            state: entry.state.into(),
            inode: entry.inode,
        }));
    }
    sockets
}

fn read<T: FromReadSI>(name: &str) -> Option<T> {
    let path = format!("/proc/thread-self/net/{name}");
    match T::from_file(&path, procfs::current_system_info()) {
        Ok(entries) => Some(entries),
        // A kernel without IPv6.
        Err(ProcError::NotFound(_)) => None,
        Err(error) => {
            log::warn!("the sockets in {path} could not be read: {error}");
            None
        }
    }
}

/// The processes that hold the sockets with these inodes; the one with the lowest number where several do.
fn owners(inodes: impl Iterator<Item = u64>) -> HashMap<u64, Process> {
    let mut owners: HashMap<u64, Process> = HashMap::new();
    for (process, held) in holders(inodes) {
        for inode in held {
            let owner = owners.entry(inode).or_insert_with(|| process.clone());
            if process.pid < owner.pid {
                owner.clone_from(&process);
            }
        }
    }
    owners
}

/// Every process that holds some of the sockets with these inodes, and which.
fn holders(inodes: impl Iterator<Item = u64>) -> Vec<(Process, Vec<u64>)> {
    let wanted: HashSet<u64> = inodes.filter(|inode| *inode != 0).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    match all_processes() {
        // A process may end meanwhile, or be none of ours to look into: it holds nothing, then.
        Ok(processes) => processes
            .flatten()
            .filter_map(|process| held_by(&process, &wanted).ok())
            .filter(|(_, held)| !held.is_empty())
            .collect(),
        Err(error) => {
            log::warn!("the processes in /proc could not be listed: {error}");
            Vec::new()
        }
    }
}

fn held_by(
    process: &procfs::process::Process,
    wanted: &HashSet<u64>,
) -> ProcResult<(Process, Vec<u64>)> {
    let held: Vec<u64> = process
        .fd()?
        .flatten()
        .filter_map(|file| match file.target {
            FDTarget::Socket(inode) if wanted.contains(&inode) => Some(inode),
            _ => None,
        })
        .collect();
    let name = if held.is_empty() { String::new() } else { process.stat()?.comm };
    Ok((Process { pid: process.pid().unsigned_abs(), name }, held))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn tcp(number: u16) -> GuardedPort {
        GuardedPort { protocol: Protocol::Tcp, number }
    }

    fn socket(protocol: Protocol, local: &str, remote: &str, state: impl Into<State>) -> Socket {
        Socket {
            protocol,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state: state.into(),
            inode: 1,
        }
    }

    #[test]
    fn listeners_at_more_than_loopback() {
        let udp = GuardedPort { protocol: Protocol::Udp, number: 53 };
        for (protocol, local, expected) in [
            (Protocol::Tcp, "0.0.0.0:11434", Some("0.0.0.0:11434")),
            (Protocol::Tcp, "[::]:11434", Some("[::]:11434")),
            (Protocol::Tcp, "192.0.2.4:11434", Some("192.0.2.4:11434")),
            (Protocol::Tcp, "[::ffff:192.0.2.4]:11434", Some("192.0.2.4:11434")),
            (Protocol::Tcp, "127.0.0.1:11434", None),
            (Protocol::Tcp, "127.8.9.1:11434", None),
            (Protocol::Tcp, "[::1]:11434", None),
            (Protocol::Tcp, "[::ffff:127.0.0.1]:11434", None),
            (Protocol::Tcp, "0.0.0.0:11435", None),
            (Protocol::Tcp, "0.0.0.0:53", None),
            (Protocol::Udp, "0.0.0.0:11434", None),
            (Protocol::Udp, "[::]:53", Some("[::]:53")),
        ] {
            let remote = if local.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let found = select(
                [socket(protocol, local, remote, State::Open)],
                &[tcp(11434), udp],
                is_listener,
            );
            let found: Vec<String> = found.iter().map(|socket| socket.local.to_string()).collect();
            assert_eq!(found, Vec::from_iter(expected), "{protocol:?} {local}");
        }
    }

    #[test]
    fn peers_from_more_than_loopback() {
        for (local, remote, state, expected) in [
            (
                "192.0.2.4:11434",
                "203.0.113.9:5000",
                TcpState::Established,
                Some("203.0.113.9:5000"),
            ),
            (
                "[::ffff:192.0.2.4]:11434",
                "[::ffff:203.0.113.9]:5000",
                TcpState::CloseWait,
                Some("203.0.113.9:5000"),
            ),
            ("[2001:db8::4]:11434", "[2001:db8::9]:5", TcpState::FinWait1, Some("[2001:db8::9]:5")),
            ("127.0.0.1:11434", "127.0.0.1:5000", TcpState::Established, None),
            ("[::ffff:127.0.0.1]:11434", "[::ffff:127.0.0.1]:5", TcpState::Established, None),
            // A client of this host's on another machine's guarded port.
            ("192.0.2.4:5000", "203.0.113.9:11434", TcpState::Established, None),
            ("192.0.2.4:11434", "203.0.113.9:5000", TcpState::TimeWait, None),
            ("192.0.2.4:11434", "203.0.113.9:5000", TcpState::SynSent, None),
            ("0.0.0.0:11434", "0.0.0.0:0", TcpState::Listen, None),
        ] {
            let found =
                select([socket(Protocol::Tcp, local, remote, state)], &[tcp(11434)], is_peer);
            let found: Vec<String> = found.iter().map(|socket| socket.remote.to_string()).collect();
            assert_eq!(found, Vec::from_iter(expected), "{local} {remote}");
        }
    }

    #[test]
    fn udp_that_is_connected_is_neither() {
        let connected =
            socket(Protocol::Udp, "192.0.2.4:53", "203.0.113.9:53", UdpState::Established);
        assert!(!is_listener(&connected) && !is_peer(&connected));
    }

    #[test]
    fn this_process_s_own_listener_and_its_loopback_client() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().unwrap();

        let found = listeners(&[tcp(port)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].local, SocketAddr::from(([0, 0, 0, 0], port)));
        assert_eq!(found[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
        assert_eq!(peers(&[tcp(port)]), []);
        drop((client, accepted));
    }

    #[test]
    fn this_process_s_own_udp_socket() {
        let bound = UdpSocket::bind("0.0.0.0:0").unwrap();
        let number = bound.local_addr().unwrap().port();
        let found = listeners(&[GuardedPort { protocol: Protocol::Udp, number }]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].process.as_ref().map(|process| process.pid), Some(std::process::id()));
    }
}
