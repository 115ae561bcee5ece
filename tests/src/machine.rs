//! One machine of a lab: a network namespace.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    panic,
    path::PathBuf,
    thread,
    time::Duration,
};

use rustix::{
    net::{AddressFamily, SocketType, netdevice},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{command, http, wait::patience};

/// How long a connection that must not come about is waited for.
const LONG_ENOUGH: Duration = Duration::from_millis(800);

/// What became of a call to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Answered,
    /// The host was reached, and nobody listens there.
    Refused,
    /// The connection was ended under way.
    Reset,
    /// Nothing came back.
    Silent,
}

#[derive(Debug)]
pub struct Machine {
    netns: String,
}

impl Machine {
    pub(crate) fn new(netns: String) -> Self {
        Self { netns }
    }

    /// Its namespace's name, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Its namespace, as `nsenter --net` takes it.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.netns)
    }

    /// Does some work on this machine: on a thread that has moved to its namespace.
    #[track_caller]
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(self.netns_path()).unwrap_or_else(|error| {
            panic!("the namespace {} can't be opened: {error}", self.netns)
        });
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap_or_else(|error| panic!("{} can't be entered: {error}", self.netns));
                work()
            });
            worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` commands here, one a line.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        let output = command::output(
            std::process::Command::new("ip").args(["-netns", &self.netns, "-batch", "-"]),
            commands,
        );
        assert!(
            output.status.success(),
            "`ip` refused one of these commands on {}: {}\n{commands}",
            self.netns,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }

    /// The number of an interface here.
    #[must_use]
    #[track_caller]
    pub fn index_of(&self, interface: &str) -> u32 {
        let index = self.inside(|| {
            let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
            netdevice::name_to_index(socket, interface)
        });
        index.unwrap_or_else(|error| panic!("{} has no {interface}: {error}", self.netns))
    }

    /// How often an interface's carrier came and went (`carrier_changes` of `/sys/class/net`).
    #[must_use]
    #[track_caller]
    pub fn carrier_changes(&self, interface: &str) -> u64 {
        let path = format!("/sys/class/net/{interface}/carrier_changes");
        // `/sys` shows the interfaces of the namespace that it was mounted in; `ip netns exec` mounts it anew.
        let output = command::output(
            std::process::Command::new("ip").args(["netns", "exec", &self.netns, "cat", &path]),
            "",
        );
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().unwrap_or_else(|error| panic!("{path} says `{text}`: {error}"))
    }

    /// As [`Machine::ip`], unless this kernel lacks something for it: then what `ip` says.
    ///
    /// # Errors
    /// When the kernel knows no such device.
    #[track_caller]
    pub fn try_ip(&self, commands: &str) -> Result<(), String> {
        let output = command::output(
            std::process::Command::new("ip").args(["-netns", &self.netns, "-batch", "-"]),
            commands,
        );
        let errors = String::from_utf8_lossy(&output.stderr);
        // EOPNOTSUPP: no module of this name (`rtnl_newlink_create` in `net/core/rtnetlink.c`). IPsec names what it misses
        // (`net/xfrm/xfrm_user.c`).
        if [
            "Unknown device type",
            "Operation not supported",
            "Protocol not supported",
            "algorithm not found",
            "Requested type not found",
        ]
        .iter()
        .any(|text| errors.contains(text))
        {
            return Err(errors.lines().next().unwrap_or_default().to_owned());
        }
        assert!(
            output.status.success(),
            "`ip` refused one of these commands on {}: {}\n{commands}",
            self.netns,
            errors.trim()
        );
        Ok(())
    }

    /// Loads an nftables rule set here.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        let netns = format!("--net={}", self.netns_path().display());
        let output = command::output(
            std::process::Command::new("nsenter").args([&netns, "nft", "-f", "-"]),
            rules,
        );
        assert!(
            output.status.success(),
            "`nft` refused these rules: {}\n{rules}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }

    /// A value below `/proc/sys`, such as `net/ipv4/ip_forward`.
    #[must_use]
    #[track_caller]
    pub fn sysctl(&self, name: &str) -> String {
        let path = format!("/proc/sys/{name}");
        let text = self.inside(|| fs::read_to_string(&path));
        text.unwrap_or_else(|error| panic!("{path} can't be read: {error}")).trim().to_owned()
    }

    #[track_caller]
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        let written = self.inside(|| fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("{path} can't be set to {value}: {error}"));
    }

    /// Connections to this port of which only the first packet has come: the listener has answered it, and waits.
    #[must_use]
    #[track_caller]
    pub fn half_open_connections(&self, port: u16) -> usize {
        self.connections(port, "03")
    }

    /// Connections to this port that this end has closed first, and remembers for a while (`TIME_WAIT`).
    #[must_use]
    #[track_caller]
    pub fn remembered_connections(&self, port: u16) -> usize {
        self.connections(port, "06")
    }

    /// Connections to this port in this state (include/net/tcp_states.h).
    #[track_caller]
    fn connections(&self, port: u16, state: &str) -> usize {
        let tables = self.inside(|| {
            ["tcp", "tcp6"].map(|name| {
                fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
            })
        });
        // The columns are `sl local_address rem_address st`.
        let local = format!(":{port:04X}");
        tables
            .iter()
            .flat_map(|table| table.lines())
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields.len() > 3 && fields[1].ends_with(&local) && fields[3] == state)
            .count()
    }

    /// Opens a connection, which must come about.
    #[must_use]
    #[track_caller]
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, patience()));
        stream.unwrap_or_else(|error| panic!("{} can't connect to {to}: {error}", self.netns))
    }

    /// Opens a connection and asks for `/`.
    #[must_use]
    #[track_caller]
    pub fn call(&self, to: SocketAddr) -> Reply {
        self.call_within(to, LONG_ENOUGH)
    }

    #[track_caller]
    fn call_within(&self, to: SocketAddr, limit: Duration) -> Reply {
        let asked = self.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, limit)?;
            stream.set_read_timeout(Some(limit))?;
            http::ask(&mut stream)
        });
        reply(asked, to)
    }

    /// Fails the test unless a listener answers.
    #[track_caller]
    pub fn expect_answer(&self, to: SocketAddr) {
        let reply = self.call_within(to, patience());
        assert_eq!(reply, Reply::Answered, "{} called {to}", self.netns);
    }

    /// Fails the test unless the call is met with silence.
    #[track_caller]
    pub fn expect_silence(&self, to: SocketAddr) {
        assert_eq!(self.call(to), Reply::Silent, "{} called {to}", self.netns);
    }

    /// Fails the test unless the host is reached and says that nobody listens there.
    #[track_caller]
    pub fn expect_refusal(&self, to: SocketAddr) {
        let reply = self.call_within(to, patience());
        assert_eq!(reply, Reply::Refused, "{} called {to}", self.netns);
    }

    /// Sends one datagram and waits for its echo.
    #[must_use]
    #[track_caller]
    pub fn call_udp(&self, to: SocketAddr) -> Reply {
        let asked = self.inside(|| {
            let any: SocketAddr = if to.is_ipv4() {
                (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(LONG_ENOUGH))?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 16])
        });
        reply(asked.map(drop), to)
    }
}

#[track_caller]
fn reply(asked: io::Result<()>, to: SocketAddr) -> Reply {
    match asked.map_err(|error| (error.kind(), error)) {
        Ok(()) => Reply::Answered,
        Err((io::ErrorKind::ConnectionRefused, _)) => Reply::Refused,
        Err((io::ErrorKind::ConnectionReset, _)) => Reply::Reset,
        Err((io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, _)) => Reply::Silent,
        Err((_, error)) => panic!("a call to {to} failed in an unexpected way: {error}"),
    }
}
