//! A service on a machine: a process of its own, since a socket belongs to the cgroup its process was in when it was made.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::machine::Machine;

/// What the service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// HTTP, with one answer to everything.
    Http,
    /// As [`Service::Http`], at a socket that also takes connections to other addresses and ports (`IP_TRANSPARENT`).
    HttpTransparent,
    /// UDP, sending every datagram back.
    Echo,
}

impl Service {
    const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::HttpTransparent => "http-transparent",
            Self::Echo => "echo",
        }
    }
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
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", machine.netns_path().display()))
            .arg(program())
            .args([service.word(), &address.to_string()])
            .args([cgroup, &journal])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
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
        let text = fs::read_to_string(&self.journal)
            .unwrap_or_else(|error| panic!("{} can't be read: {error}", self.journal.display()));
        let parse = |line: &str| {
            let peer: SocketAddr =
                line.parse().unwrap_or_else(|error| panic!("`{line}` is in the journal: {error}"));
            // A socket of both families shows an IPv4 host as an IPv4-mapped address.
            SocketAddr::new(peer.ip().to_canonical(), peer.port())
        };
        text.lines().map(parse).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `guard-lab`, which cargo builds beside the tests' own executables.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe()
        .unwrap_or_else(|error| panic!("the test's own executable is not known: {error}"));
    let program = test.ancestors().nth(2).map(|directory| directory.join("guard-lab"));
    match program {
        Some(program) if program.exists() => program,
        _ => panic!(
            "guard-lab is not beside {}: `cargo build -p guard-tests` builds it",
            test.display()
        ),
    }
}
