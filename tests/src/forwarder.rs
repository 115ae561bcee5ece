//! A userland forwarder: a process that relays TCP, under the name and with the command line of a container engine's.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
};

use crate::{lab::Lab, listener, machine::Machine};

/// A running forwarder. It ends when this is dropped, or when the test's process dies.
#[derive(Debug)]
pub struct Forwarder {
    child: Child,
}

impl Forwarder {
    /// As Docker starts it: one process for each published port and family.
    #[must_use]
    #[track_caller]
    pub fn docker_proxy(lab: &Lab, listens: SocketAddr, to: SocketAddr) -> Self {
        Self::relay(lab, "docker-proxy", listens, to)
    }

    /// As [`Forwarder::docker_proxy`], under another name.
    #[must_use]
    #[track_caller]
    pub fn relay(lab: &Lab, name: &str, listens: SocketAddr, to: SocketAddr) -> Self {
        let arguments = [
            ("-proto", "tcp".to_owned()),
            ("-host-ip", listens.ip().to_string()),
            ("-host-port", listens.port().to_string()),
            ("-container-ip", to.ip().to_string()),
            ("-container-port", to.port().to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        Self::start(lab, name, &arguments.collect::<Vec<_>>(), "")
    }

    /// As Podman starts it for an ordinary user: what it forwards comes over standard input, and a child of its is in the
    /// container's namespace.
    #[must_use]
    #[track_caller]
    pub fn rootlessport(
        lab: &Lab,
        container: &Machine,
        listens: SocketAddr,
        to: SocketAddr,
    ) -> Self {
        let orders = format!("{listens} {to} {}\n", container.netns_path().display());
        Self::start(lab, "rootlessport", &[], &orders)
    }

    #[track_caller]
    fn start(lab: &Lab, name: &str, arguments: &[String], orders: &str) -> Self {
        // The kernel names a process after the path it was started by.
        let program = lab.directory().join(name);
        if !program.exists() {
            symlink(listener::program(), &program)
                .unwrap_or_else(|error| panic!("{} can't be made: {error}", program.display()));
        }
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", lab.cgroup().display());
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", lab.server.netns_path().display()))
            .args(["sh", "-c", &join, "sh"])
            .arg(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        if let Some(input) = &mut child.stdin {
            // One that has ended says so by not being ready.
            let _ = input.write_all(orders.as_bytes());
        }
        let mut word = String::new();
        if let Some(output) = child.stdout.take() {
            let _ = BufReader::new(output).read_line(&mut word);
        }
        assert_eq!(word, "ready\n", "{name} did not come up");
        Self { child }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Not killed: it has to end its child first.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
