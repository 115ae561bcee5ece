//! The TCP sockets that listen in a network namespace.
//!
//! The kernel is asked for these alone, over `sock_diag(7)`. `/proc/net/tcp` would be read to the same end, and lead through
//! the table of all connections of the machine: some milliseconds even where there are few.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::IpAddr,
    os::fd::AsFd,
    thread,
};

use guard_common::packet::Protocol;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use procfs::{FromBufReadSI, ProcError, net::TcpNetEntries};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Sockets of one namespace that are looked at: more than there are ports.
const MOST_SOCKETS: usize = 100_000;

/// A TCP socket that listens at more than loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    pub port: u16,
    pub uid: u32,
    pub inode: u64,
}

impl Listening {
    fn new(address: IpAddr, port: u16, uid: u32, inode: u64) -> Option<Self> {
        (!address.to_canonical().is_loopback()).then_some(Self { port, uid, inode })
    }
}

/// Those of the calling thread's namespace, in order.
///
/// # Errors
/// When the kernel does not list them in either way.
pub fn here() -> io::Result<Vec<Listening>> {
    // `/proc/net` would be the main thread's.
    sorted(open().and_then(|socket| ask(&socket)).or_else(|_| read("/proc/thread-self")))
}

/// Those of the namespace that a process is in, in order.
///
/// # Errors
/// When it has gone, or the kernel does not list them in either way.
pub fn of_process(pid: u32) -> io::Result<Vec<Listening>> {
    sorted(open_in(pid).and_then(|socket| ask(&socket)).or_else(|_| read(&format!("/proc/{pid}"))))
}

fn sorted(sockets: io::Result<Vec<Listening>>) -> io::Result<Vec<Listening>> {
    let mut sockets = sockets?;
    sockets.sort_unstable();
    Ok(sockets)
}

/// A netlink socket speaks of the namespace that it was made in.
fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    // Nobody but the kernel is listened to.
    socket.connect(&NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Made by a thread that goes there and ends: this one stays where it is.
fn open_in(pid: u32) -> io::Result<Socket> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            open()
        });
        visitor.join().unwrap_or_else(|_| Err(io::Error::other("the visiting thread panicked")))
    })
}

fn ask(socket: &Socket) -> io::Result<Vec<Listening>> {
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let question = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: Protocol::Tcp as u8,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: SocketId::new_v4(),
        });
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        socket.send(&bytes, 0)?;
        while !take_answers(&socket.recv_from_full()?.0, &mut sockets)? {}
    }
    Ok(sockets)
}

/// Takes the sockets of one datagram; whether it was the last.
fn take_answers(datagram: &[u8], sockets: &mut Vec<Listening>) -> io::Result<bool> {
    let unreadable = |error| {
        let what = format!("the kernel's answer can't be read: {error}");
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = NetlinkBuffer::new_checked(rest).map_err(unreadable)?.length() as usize;
        let message = NetlinkMessage::deserialize(rest).map_err(unreadable)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                let header = &response.header;
                let id = &header.socket_id;
                let inode = header.inode.into();
                sockets.extend(Listening::new(
                    id.source_address,
                    id.source_port,
                    header.uid,
                    inode,
                ));
            }
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(-done.code));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(false)
}

/// For a kernel without `sock_diag`: from the tables below the directory of a process, or of a thread.
fn read(process: &str) -> io::Result<Vec<Listening>> {
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6"] {
        let file = match File::open(format!("{process}/net/{table}")) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(error) if table == "tcp6" && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        sockets.extend(read_table(file).map_err(io::Error::other)?);
    }
    Ok(sockets)
}

/// Reads as far as sockets listen: the kernel lists these before all others (`tcp_get_idx` in `net/ipv4/tcp_ipv4.c`), of which
/// there may be very many.
fn read_table(table: impl Read) -> Result<Vec<Listening>, ProcError> {
    let mut text = String::new();
    for (number, line) in BufReader::new(table).lines().enumerate() {
        let line = line?;
        if number > MOST_SOCKETS {
            log::warn!(
                "more than {MOST_SOCKETS} sockets listen: the rest of them is not looked at"
            );
            break;
        }
        // The columns are `sl local_address rem_address st`; 0A is LISTEN (include/net/tcp_states.h).
        if number > 0 && line.split_ascii_whitespace().nth(3) != Some("0A") {
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    let entries = TcpNetEntries::from_buf_read(text.as_bytes(), procfs::current_system_info())?.0;
    let socket = |entry: &procfs::net::TcpNetEntry| {
        let local = entry.local_address;
        Listening::new(local.ip(), local.port(), entry.uid, entry.inode)
    };
    Ok(entries.iter().filter_map(socket).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn reading_ends_where_sockets_no_longer_listen() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 100 0 0 10 0
   1: 0100007F:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 76 1 0 100 0 0 10 0
   2: 0200007F:2CAA 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4 30 10 -1
this is not read
";
        let expected = Listening { port: 8081, uid: 1000, inode: 77 };
        assert_eq!(read_table(table.as_bytes()).unwrap(), [expected]);
        assert_eq!(read_table("".as_bytes()).unwrap(), []);
        assert!(read_table("header\n 0: broken x 0A\n".as_bytes()).is_err());
    }

    #[test]
    fn both_ways_show_what_listens_at_more_than_loopback() {
        let open = [TcpListener::bind("0.0.0.0:0"), TcpListener::bind("[::]:0")];
        let loopback = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("[::1]:0")];
        let port = |listener: &io::Result<TcpListener>| {
            listener.as_ref().unwrap().local_addr().unwrap().port()
        };
        let own = std::process::id();
        for sockets in [here(), of_process(own), sorted(read("/proc/thread-self"))] {
            let sockets = sockets.unwrap();
            let has = |listener| sockets.iter().any(|socket| socket.port == port(listener));
            assert!(open.iter().all(has), "{sockets:?}");
            assert!(!loopback.iter().any(has), "{sockets:?}");
            assert!(sockets.iter().all(|socket| socket.inode != 0));
        }
        // The whole of what one says is what the other says, for what this process has.
        let ours = |sockets: Vec<Listening>| -> Vec<Listening> {
            let is_ours = |socket: &Listening| open.iter().any(|own| port(own) == socket.port);
            sockets.into_iter().filter(is_ours).collect()
        };
        assert_eq!(ours(here().unwrap()), ours(sorted(read("/proc/thread-self")).unwrap()));
    }

    #[test]
    fn a_process_that_has_gone_has_no_namespace() {
        assert!(of_process(u32::MAX).is_err());
    }
}
