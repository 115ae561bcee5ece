//! One test's world.
//!
//! ```text
//!   client ─── 10.77.0.0/24, fd77::/64 ─── eth0 ┐        ┌ br0 ─── 172.30.0.0/24, fd30::/64 ─── container
//!                                               ├ server ┤
//! neighbour ── 10.78.0.0/24, fd78::/64 ─── eth1 ┘        └ 127.0.0.1
//! ```
//!
//! The server's default route leads to the client. Every lab has the same addresses: its namespaces keep it apart from others.

use std::{
    cell::RefCell,
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
};

use tempfile::TempDir;

use crate::{
    cgroup, command,
    listener::{Listener, Service},
    lock::{MachineLock, NameLock},
    machine::Machine,
    product::{self, Attach, Guard},
    wire::{Mac, Wire},
};

/// Ollama's port.
pub const OLLAMA: u16 = 11434;

/// A machine's address in each family.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    const fn new(v4: [u8; 4], v6: [u16; 2]) -> Self {
        Self {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
            v6: Ipv6Addr::new(v6[0], 0, 0, 0, 0, 0, 0, v6[1]),
        }
    }

    #[must_use]
    pub fn v4_at(self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    #[must_use]
    pub fn v6_at(self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// Both.
    #[must_use]
    pub fn at(self, port: u16) -> [SocketAddr; 2] {
        [self.v4_at(port), self.v6_at(port)]
    }

    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        address == self.v4 || address == self.v6
    }
}

pub const CLIENT: Addresses = Addresses::new([10, 77, 0, 1], [0xfd77, 1]);
/// The server on the client's link.
pub const SERVER: Addresses = Addresses::new([10, 77, 0, 2], [0xfd77, 2]);
pub const NEIGHBOUR: Addresses = Addresses::new([10, 78, 0, 1], [0xfd78, 1]);
/// The server on the neighbour's link.
pub const SERVER_TO_NEIGHBOUR: Addresses = Addresses::new([10, 78, 0, 2], [0xfd78, 2]);
pub const CONTAINER: Addresses = Addresses::new([172, 30, 0, 2], [0xfd30, 2]);
/// The server on its bridge.
pub const BRIDGE: Addresses = Addresses::new([172, 30, 0, 1], [0xfd30, 1]);

// Locally administered Ethernet addresses.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0x77, 1];
pub const SERVER_MAC: Mac = [2, 0, 0, 0, 0x77, 2];
const NEIGHBOUR_MAC: Mac = [2, 0, 0, 0, 0x78, 1];
const SERVER_TO_NEIGHBOUR_MAC: Mac = [2, 0, 0, 0, 0x78, 2];

#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: TempDir,
    cgroup: PathBuf,
    pub client: Machine,
    pub server: Machine,
    listeners: RefCell<usize>,
    _name: NameLock,
    _machine: Option<MachineLock>,
}

impl Lab {
    /// Makes the world of the test of this name: the client and the server.
    #[must_use]
    #[track_caller]
    pub fn new(test: &str) -> Self {
        Self::with_lock(test, || Some(MachineLock::shared()))
    }

    /// As [`Lab::new`], for somebody who holds the machine: asking for it once more could be waiting for oneself.
    #[must_use]
    #[track_caller]
    pub fn on(_machine: &MachineLock, test: &str) -> Self {
        Self::with_lock(test, || None)
    }

    /// As [`Lab::new`], with no other lab beside it: for the test whose backstop sees every socket of this machine.
    #[must_use]
    #[track_caller]
    pub fn alone(test: &str) -> Self {
        Self::with_lock(test, || Some(MachineLock::alone()))
    }

    #[track_caller]
    fn with_lock(test: &str, machine: impl FnOnce() -> Option<MachineLock>) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the end-to-end tests need root: they make network namespaces and load kernel programs"
        );
        let name = world_name(test);
        let name_lock = NameLock::take(&name);
        let machine_lock = machine();
        product::mount_bpffs();
        product::refuse_a_guarded_machine();

        // A run that was killed may have left a world of this name.
        let leftovers = remove_world(&name);
        assert!(leftovers.is_empty(), "an earlier run's world can't be removed: {leftovers:?}");

        let directory = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir()
            .unwrap_or_else(|error| panic!("no temporary directory can be made: {error}"));
        let lab = Self {
            cgroup: cgroup::create(&name),
            client: Machine::new(netns(&name, "client")),
            server: Machine::new(netns(&name, "server")),
            name,
            directory,
            listeners: RefCell::new(0),
            _name: name_lock,
            _machine: machine_lock,
        };
        lab.build();
        lab
    }

    #[track_caller]
    fn build(&self) {
        self.add_machine(&self.client);
        self.add_machine(&self.server);
        self.join(
            Port { machine: &self.client, interface: "eth0", mac: CLIENT_MAC, addresses: CLIENT },
            Port { machine: &self.server, interface: "eth0", mac: SERVER_MAC, addresses: SERVER },
        );
        // The server's default route is what makes its eth0 an outside interface; the client's leads to the neighbour.
        add_default_route(&self.server, CLIENT);
        add_default_route(&self.client, SERVER);
    }

    /// A second outsider, on a second interface of the server, `eth1`.
    #[must_use]
    #[track_caller]
    pub fn add_neighbour(&self) -> Machine {
        let neighbour = self.add_bare_machine("neighbour");
        self.plug_in(&neighbour, None);
        neighbour
    }

    /// A machine without a link.
    #[must_use]
    #[track_caller]
    pub fn add_bare_machine(&self, name: &str) -> Machine {
        let machine = Machine::new(netns(&self.name, name));
        self.add_machine(&machine);
        machine
    }

    /// Joins a neighbour to the server's `eth1`, which is made, with this number where one is asked for.
    #[track_caller]
    pub fn plug_in(&self, neighbour: &Machine, index: Option<u32>) {
        self.join_by(
            index,
            Port {
                machine: &self.server,
                interface: "eth1",
                mac: SERVER_TO_NEIGHBOUR_MAC,
                addresses: SERVER_TO_NEIGHBOUR,
            },
            Port {
                machine: neighbour,
                interface: "eth0",
                mac: NEIGHBOUR_MAC,
                addresses: NEIGHBOUR,
            },
        );
        add_default_route(neighbour, SERVER_TO_NEIGHBOUR);
    }

    /// A container behind a bridge of the server, `br0`.
    #[must_use]
    #[track_caller]
    pub fn add_container(&self) -> Machine {
        let container = Machine::new(netns(&self.name, "container"));
        self.add_machine(&container);
        command::ip(&format!(
            "link add eth0 netns {} type veth peer name veth0 netns {}",
            container.netns(),
            self.server.netns()
        ));
        let Addresses { v4, v6 } = BRIDGE;
        self.server.ip(&format!(
            "link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             address add {v4}/24 dev br0\n\
             address add {v6}/64 dev br0 nodad\n\
             link set veth0 master br0\n\
             link set veth0 up\n\
             link set br0 up\n"
        ));
        let Addresses { v4, v6 } = CONTAINER;
        container.ip(&format!(
            "address add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ));
        add_default_route(&container, BRIDGE);
        container
    }

    /// Another container, alone behind a bridge of this name: `.2` and `::2` of a /24 and a /64 that begin so.
    #[must_use]
    #[track_caller]
    pub fn add_guest(&self, bridge: &str, v4: &str, v6: &str) -> Machine {
        let guest = Machine::new(netns(&self.name, bridge));
        self.add_machine(&guest);
        command::ip(&format!(
            "link add eth0 netns {} type veth peer name {bridge}p0 netns {}",
            guest.netns(),
            self.server.netns()
        ));
        self.server.ip(&format!(
            "link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n\
             address add {v4}.1/24 dev {bridge}\n\
             address add {v6}:1/64 dev {bridge} nodad\n\
             link set {bridge}p0 master {bridge}\n\
             link set {bridge}p0 up\n\
             link set {bridge} up\n"
        ));
        guest.ip(&format!(
            "address add {v4}.2/24 dev eth0\n\
             address add {v6}:2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {v4}.1\n\
             route add default via {v6}:1\n"
        ));
        guest
    }

    /// Lets the server forward packets between its links.
    #[track_caller]
    pub fn let_server_forward(&self) {
        self.server.set_sysctl("net/ipv4/ip_forward", "1");
        self.server.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    #[track_caller]
    #[expect(clippy::unused_self, reason = "a machine is made as part of a lab, which removes it")]
    fn add_machine(&self, machine: &Machine) {
        command::ip(&format!("netns add {}", machine.netns()));
        // Spoofed sources are guard's business here, not the kernel's; and no address waits to be found a duplicate.
        for (name, value) in [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            machine.set_sysctl(name, value);
        }
        machine.ip("link set lo up");
    }

    #[track_caller]
    fn join(&self, one: Port, other: Port) {
        self.join_by(None, one, other);
    }

    #[track_caller]
    #[expect(clippy::unused_self, reason = "a link is made as part of a lab, which removes it")]
    fn join_by(&self, index: Option<u32>, one: Port, other: Port) {
        let index = index.map(|index| format!("index {index}")).unwrap_or_default();
        command::ip(&format!(
            "link add {} netns {} address {} {index} type veth peer name {} netns {} address {}",
            one.interface,
            one.machine.netns(),
            mac_text(one.mac),
            other.interface,
            other.machine.netns(),
            mac_text(other.mac)
        ));
        for (here, there) in [(&one, &other), (&other, &one)] {
            let interface = here.interface;
            let Addresses { v4, v6 } = here.addresses;
            let Addresses { v4: their_v4, v6: their_v6 } = there.addresses;
            let their_mac = mac_text(there.mac);
            // The neighbours are known beforehand, so that no test meets the time it takes to find them.
            here.machine.ip(&format!(
                "address add {v4}/24 dev {interface}\n\
                 address add {v6}/64 dev {interface} nodad\n\
                 link set {interface} up\n\
                 neighbour add {their_v4} lladdr {their_mac} dev {interface} nud permanent\n\
                 neighbour add {their_v6} lladdr {their_mac} dev {interface} nud permanent\n"
            ));
        }
    }

    /// Starts a service on a machine, in this lab's cgroup.
    #[must_use]
    #[track_caller]
    pub fn listen(&self, machine: &Machine, service: Service, address: SocketAddr) -> Listener {
        self.listen_in(machine, service, address, &self.cgroup)
    }

    /// As [`Lab::listen`], in another cgroup.
    #[must_use]
    #[track_caller]
    pub fn listen_in(
        &self,
        machine: &Machine,
        service: Service,
        address: SocketAddr,
        cgroup: &Path,
    ) -> Listener {
        let number = self.listeners.replace_with(|number| *number + 1);
        let journal = self.directory().join(format!("reached-{number}"));
        Listener::start(machine, service, address, cgroup, journal)
    }

    /// Starts an AI server on the server: on every address, of both families, at Ollama's port.
    #[must_use]
    #[track_caller]
    pub fn serve(&self) -> Listener {
        self.listen(&self.server, Service::Http, every_address(OLLAMA))
    }

    /// The client's end of the link to the server.
    #[must_use]
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::open(&self.client, "eth0", CLIENT_MAC, SERVER_MAC)
    }

    /// The neighbour's end of the link to the server.
    #[must_use]
    #[track_caller]
    pub fn wire_of(&self, neighbour: &Machine) -> Wire {
        Wire::open(neighbour, "eth0", NEIGHBOUR_MAC, SERVER_TO_NEIGHBOUR_MAC)
    }

    /// A guard on the server, not started yet, whose configuration holds these lines too.
    #[must_use]
    #[track_caller]
    pub fn guard(&self, attach: Attach, configuration: &str) -> Guard<'_> {
        Guard::new(self, attach, configuration)
    }

    /// Starts a guard on the server, and waits until it guards.
    #[must_use]
    #[track_caller]
    pub fn start_guard(&self, attach: Attach, configuration: &str) -> Guard<'_> {
        let guard = self.guard(attach, configuration);
        guard.start();
        guard
    }

    /// The lab's name, which is in the names of all that belongs to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of the lab's own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The cgroup of the lab's services.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The directory of the lab's pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        pins(&self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut problems = Vec::new();
        if product::has_pins(&self.pins()) {
            problems.extend(product::lift(self).err());
        }
        problems.extend(remove_world(&self.name));
        problems.extend(processes_of(&self.name));
        if problems.is_empty() {
            return;
        }
        let message = format!("{} could not be removed without trace: {problems:#?}", self.name);
        if thread::panicking() {
            eprintln!("{message}");
        } else {
            panic!("{message}");
        }
    }
}

/// Every address of a machine, of both families.
#[must_use]
pub fn every_address(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// One end of a link.
#[derive(Clone, Copy)]
struct Port<'a> {
    machine: &'a Machine,
    interface: &'a str,
    mac: Mac,
    addresses: Addresses,
}

#[track_caller]
fn add_default_route(machine: &Machine, via: Addresses) {
    machine.ip(&format!("route add default via {}\nroute add default via {}\n", via.v4, via.v6));
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The name of a test's world: readable, of bounded length, different for different tests.
fn world_name(test: &str) -> String {
    let readable: String = test
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(24)
        .collect();
    let mut hasher = DefaultHasher::new();
    test.hash(&mut hasher);
    format!("guard-test-{readable}-{:08x}", hasher.finish() & 0xffff_ffff)
}

fn netns(world: &str, machine: &str) -> String {
    format!("{world}-{machine}")
}

fn pins(world: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(world)
}

/// Removes what has a world's name, and says what could not be removed.
fn remove_world(world: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let prefix = format!("{world}-");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            command::run("ip", &["netns", "delete", &name]);
        }
    }
    let pins = pins(world);
    if pins.exists()
        && let Err(error) = fs::remove_dir_all(&pins)
    {
        problems.push(format!("the pins in {} stay: {error}", pins.display()));
    }
    let cgroup = cgroup::mount_point().join(world);
    if let Err(error) = cgroup::remove(&cgroup) {
        problems.push(format!("the cgroup {} stays: {error}", cgroup.display()));
    }
    problems
}

/// Processes that have a world's name on their command line.
fn processes_of(world: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let line = fs::read(process.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(world)
                .then(|| format!("{} still runs: {line}", process.file_name().display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_has_a_name_of_its_own() {
        let names = ["deny native", "deny generic", "", &"x".repeat(300), &"x".repeat(301)];
        let worlds = names.map(world_name);
        for (i, world) in worlds.iter().enumerate() {
            assert!(world.len() <= 64, "{world}");
            assert!(world.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{world}");
            assert!(!worlds[..i].contains(world), "{world}");
        }
    }
}
