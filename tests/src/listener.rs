//! A service on a machine: a process of its own, since a socket belongs to the cgroup its process was in when it was made.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::machine::Machine;

/// What the service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// HTTP, with one answer to everything.
    Http,
    /// As [`Service::Http`], at a socket that also takes connections to other addresses and ports (`IP_TRANSPARENT`).
    HttpTransparent,
    /// TCP, sending to whoever is connected without an end, as a model generates.
    Stream,
    /// As [`Service::Stream`], at a socket like that of [`Service::HttpTransparent`].
    StreamTransparent,
    /// As [`Service::Http`], at a socket of Multipath TCP (RFC 8684).
    HttpMultipath,
    /// As [`Service::Http`], at a socket made before the process enters its cgroup: it stays in the one the test is in.
    HttpMadeBefore,
    /// As [`Service::Http`], at a socket that the process was started with, as systemd does: made by the test.
    HttpInherited,
    /// UDP, sending every datagram back.
    Echo,
    /// As [`Service::Echo`], at a socket connected to this peer.
    EchoTo(SocketAddr),
    /// TCP, reading whatever comes and saying nothing.
    Sink,
    /// Nothing, at a raw socket that gets a copy of every TCP packet.
    Raw,
}

impl Service {
    fn words(self) -> Vec<String> {
        let word = match self {
            Self::Http => "http",
            Self::HttpTransparent => "http-transparent",
            Self::Stream => "stream",
            Self::StreamTransparent => "stream-transparent",
            Self::HttpMultipath => "http-multipath",
            Self::HttpMadeBefore => "http-made-before",
            Self::HttpInherited => "http-inherited",
            Self::Echo => "echo",
            Self::Sink => "sink",
            Self::Raw => "raw",
            Self::EchoTo(peer) => return vec!["echo-to".to_owned(), peer.to_string()],
        };
        vec![word.to_owned()]
    }
}

/// The first descriptor behind the standard ones, which is where systemd hands over a socket (sd_listen_fds(3)).
pub const INHERITED: RawFd = 3;

/// What kind of TCP socket a service listens at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ordinary,
    Transparent,
    Multipath,
}

/// Makes the socket of a service that speaks HTTP.
///
/// # Errors
/// When the address can't be bound, or the kernel has no such socket.
pub fn bind_http(address: SocketAddr, kind: Kind) -> io::Result<TcpListener> {
    let protocol = (kind == Kind::Multipath).then_some(Protocol::MPTCP);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if kind == Kind::Transparent {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// A running service. It ends when this is dropped, or when the test's process dies.
#[derive(Debug)]
pub struct Listener {
    child: Child,
    journal: PathBuf,
}

impl Listener {
    #[track_caller]
    pub(crate) fn start(
        machine: &Machine,
        service: Service,
        address: SocketAddr,
        cgroup: &Path,
        journal: PathBuf,
    ) -> Self {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", machine.netns_path().display()))
            .arg(program())
            .arg(address.to_string())
            .args([cgroup, &journal])
            .args(service.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let inherited = (service == Service::HttpInherited).then(|| {
            let socket = machine.inside(|| bind_http(address, Kind::Ordinary));
            socket.unwrap_or_else(|error| panic!("{address} can't be bound: {error}"))
        });
        if let Some(socket) = &inherited {
            let descriptor = socket.as_raw_fd();
            // SAFETY: dup2 may be called between fork and exec, and the descriptor is open until after that. The copy has no
            // close-on-exec flag.
            unsafe {
                command.pre_exec(move || match libc::dup2(descriptor, INHERITED) {
                    INHERITED => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("the listener at {address} can't be started: {error}"));
        let mut word = String::new();
        if let Some(output) = child.stdout.take() {
            // An empty word says that the process has ended; its error stands on the test's own.
            let _ = BufReader::new(output).read_line(&mut word);
        }
        assert_eq!(word, "ready\n", "the listener at {address} did not come up");
        Self { child, journal }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From where connections (or datagrams) have reached it, in order.
    #[must_use]
    #[track_caller]
    pub fn reached_by(&self) -> Vec<SocketAddr> {
        self.journal().lines().filter(|line| !line.starts_with(ENDED)).map(parse).collect()
    }

    /// Whose streams ([`Service::Stream`]) it could not send to any more, in order.
    #[must_use]
    #[track_caller]
    pub fn ended(&self) -> Vec<SocketAddr> {
        self.journal().lines().filter_map(|line| line.strip_prefix(ENDED)).map(parse).collect()
    }

    #[track_caller]
    fn journal(&self) -> String {
        fs::read_to_string(&self.journal)
            .unwrap_or_else(|error| panic!("{} can't be read: {error}", self.journal.display()))
    }
}

/// What a line of the journal begins with that says whose stream is over.
pub const ENDED: &str = "ended ";

fn parse(peer: &str) -> SocketAddr {
    let peer: SocketAddr =
        peer.parse().unwrap_or_else(|error| panic!("`{peer}` is in the journal: {error}"));
    // A socket of both families shows an IPv4 host as an IPv4-mapped address.
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `guard-lab`, which cargo builds beside the tests' own executables and the benchmark.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe()
        .unwrap_or_else(|error| panic!("the test's own executable is not known: {error}"));
    // A test stands in a directory below, a program beside it.
    let directories = test.ancestors().skip(1).take(2);
    let program = directories.map(|directory| directory.join("guard-lab")).find(|p| p.exists());
    match program {
        Some(program) => program,
        None => panic!(
            "guard-lab is not beside {}: `cargo build -p guard-tests` builds it",
            test.display()
        ),
    }
}
