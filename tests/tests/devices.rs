//! Devices that stand on others, and tunnels: what comes out of them is judged once, at the lowest device that sees it whole.
//!
//! Each table is one world and one guard. A row that this kernel has no device for is left out, and named.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use guard::control::{CounterView, Status};
use guard_tests::{
    command, kernel,
    lab::{CLIENT, CLIENT_MAC, Lab, OLLAMA, SERVER, SERVER_MAC, every_address},
    listener::Service,
    machine::Machine,
    on_each_hook,
    outlet::{Outlet, Tunnel},
    pppoe::Session,
    product::{Attach, Guard},
    wait::{patience, until},
    wire::{self, Mac},
};
use socket2::{Domain, Socket, Type};

/// A way into the server, over a device of its own at either end.
struct Path {
    name: &'static str,
    number: u8,
    families: Families,
    /// Whether the server's answers find their way.
    answers: bool,
    entry: Entry,
}

enum Entry {
    Device(Outlet),
    Program(Tunnel),
    /// Its devices live as long as both ends of the session.
    Session {
        outlet: Outlet,
        _ends: [Session; 2],
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    V4,
    V6,
    Both,
}

impl Path {
    fn send(&self, packet: &[u8]) {
        match &self.entry {
            Entry::Device(outlet) | Entry::Session { outlet, .. } => outlet.send(packet),
            Entry::Program(tunnel) => tunnel.send(packet),
        }
    }

    /// The server's addresses on it.
    fn servers(&self) -> Vec<SocketAddr> {
        let v4 = (self.families != Families::V6).then(|| inner_v4(self.number, 2).into());
        let v6 = (self.families != Families::V4).then(|| inner_v6(self.number, 2).into());
        let addresses: [Option<IpAddr>; 2] = [v4, v6];
        addresses.into_iter().flatten().map(|address| (address, OLLAMA).into()).collect()
    }
}

fn inner_v4(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, number, host)
}

fn inner_v6(number: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd90, number.into(), 0, 0, 0, 0, 0, host.into())
}

/// Somebody at the other end whom no machine's kernel answers for.
fn outsider(to: SocketAddr, number: u8) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (inner_v4(number, 77), 4242).into(),
        SocketAddr::V6(_) => (inner_v6(number, 77), 4242).into(),
    }
}

/// Somebody with an address that is in none of the paths' networks.
fn stranger(to: SocketAddr, number: u8) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (wire::stranger_v4(number.into()), 4242).into(),
        SocketAddr::V6(_) => (wire::stranger_v6(number.into()), 4242).into(),
    }
}

/// The server's own address. Not one from another link: a tunnel over IPv6 sends nothing that claims to be its other end
/// (`ip6_tnl_addr_conflict` in `net/ipv6/ip6_tunnel.c`).
fn own(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), 4242)
}

fn server_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0x90, number]
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Commands that give a device its addresses.
fn addresses(device: &str, number: u8, host: u8, families: Families) -> String {
    let mut commands = format!("link set {device} up\n");
    if families != Families::V6 {
        commands += &format!("address add {}/24 dev {device}\n", inner_v4(number, host));
    }
    if families != Families::V4 {
        commands += &format!("address add {}/64 dev {device} nodad\n", inner_v6(number, host));
    }
    commands
}

/// A link of this name at both ends; the server's has this Ethernet address.
fn link_to_client(lab: &Lab, link: &str, mac: Mac) {
    command::ip(&format!(
        "link add {link} netns {} type veth peer name {link} netns {} address {}\n",
        lab.client.netns(),
        lab.server.netns(),
        mac_text(mac)
    ));
}

/// What a tunnel is made of, `{own4}` and so on being the outer addresses.
struct Kind {
    name: &'static str,
    options: &'static str,
    families: Families,
    is_ethernet: bool,
}

const KINDS: [Kind; 9] = [
    Kind {
        name: "vxlan",
        options: "vxlan id 7 dstport 4789 local {own4} remote {their4}",
        families: Families::Both,
        is_ethernet: true,
    },
    Kind {
        name: "vxlan over IPv6",
        options: "vxlan id 8 dstport 4790 local {own6} remote {their6}",
        families: Families::Both,
        is_ethernet: true,
    },
    Kind {
        name: "geneve",
        options: "geneve id 7 remote {their4}",
        families: Families::Both,
        is_ethernet: true,
    },
    Kind {
        name: "gre",
        options: "gre local {own4} remote {their4}",
        families: Families::Both,
        is_ethernet: false,
    },
    Kind {
        name: "gretap",
        options: "gretap local {own4} remote {their4}",
        families: Families::Both,
        is_ethernet: true,
    },
    Kind {
        name: "ipip",
        options: "ipip local {own4} remote {their4}",
        families: Families::V4,
        is_ethernet: false,
    },
    Kind {
        name: "sit",
        options: "sit local {own4} remote {their4}",
        families: Families::V6,
        is_ethernet: false,
    },
    Kind {
        name: "ip6gre",
        options: "ip6gre local {own6} remote {their6}",
        families: Families::Both,
        is_ethernet: false,
    },
    Kind {
        name: "ip6tnl",
        options: "ip6tnl mode any local {own6} remote {their6}",
        families: Families::Both,
        is_ethernet: false,
    },
];

impl Kind {
    fn commands(&self, number: u8, is_server: bool) -> String {
        let (own, their) = if is_server { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
        let options = self
            .options
            .replace("{own4}", &own.v4.to_string())
            .replace("{own6}", &own.v6.to_string())
            .replace("{their4}", &their.v4.to_string())
            .replace("{their6}", &their.v6.to_string());
        let mac = if self.is_ethernet && is_server {
            format!("address {}", mac_text(server_mac(number)))
        } else {
            String::new()
        };
        format!("link add t{number} {mac} type {options}\n")
    }
}

/// Every tunnel that this kernel has, between client and server.
fn tunnels(lab: &Lab) -> Vec<Path> {
    let mut paths = Vec::new();
    for (number, kind) in (1..).zip(&KINDS) {
        let made = lab.server.try_ip(&kind.commands(number, true));
        if let Err(missing) = made {
            kernel::leave_out(kind.name, &missing);
            continue;
        }
        lab.client.ip(&kind.commands(number, false));
        let device = format!("t{number}");
        lab.server.ip(&addresses(&device, number, 2, kind.families));
        lab.client.ip(&addresses(&device, number, 1, kind.families));
        let entry = Entry::Device(Outlet::open(&lab.client, &device, server_mac(number)));
        paths.push(Path { name: kind.name, number, families: kind.families, answers: true, entry });
    }
    paths.extend(wireguard(lab, 20));
    paths.extend(tun(lab, 21));
    paths.extend(pppoe(lab, 22));
    paths
}

fn tun(lab: &Lab, number: u8) -> Option<Path> {
    match Tunnel::make(&lab.server, "t21") {
        Ok(tunnel) => {
            lab.server.ip(&addresses("t21", number, 2, Families::Both));
            let entry = Entry::Program(tunnel);
            Some(Path { name: "tun", number, families: Families::Both, answers: false, entry })
        }
        Err(error) => {
            kernel::leave_out("tun", &error.to_string());
            None
        }
    }
}

fn pppoe(lab: &Lab, number: u8) -> Option<Path> {
    let open = |machine, remote| Session::open(machine, "eth0", remote, number.into());
    let server = match open(&lab.server, CLIENT_MAC) {
        Ok(server) => server,
        Err(error) => {
            kernel::leave_out("PPPoE", &error.to_string());
            return None;
        }
    };
    let client = open(&lab.client, SERVER_MAC)
        .unwrap_or_else(|error| panic!("the session has no other end: {error}"));
    lab.server.ip(&addresses(&server.interface, number, 2, Families::Both));
    lab.client.ip(&addresses(&client.interface, number, 1, Families::Both));
    let outlet = Outlet::open(&lab.client, &client.interface, server_mac(number));
    let entry = Entry::Session { outlet, _ends: [server, client] };
    Some(Path { name: "PPPoE", number, families: Families::Both, answers: true, entry })
}

fn wireguard(lab: &Lab, number: u8) -> Option<Path> {
    if !command::is_installed("wg") {
        kernel::leave_out("wireguard", "`wg` is not installed");
        return None;
    }
    if let Err(missing) = lab.server.try_ip("link add t20 type wireguard\n") {
        kernel::leave_out("wireguard", &missing);
        return None;
    }
    lab.client.ip("link add t20 type wireguard\n");
    let keys = [&lab.server, &lab.client].map(|machine| {
        let file = lab.directory().join(format!("{}.key", machine.netns()));
        let private = wg(&["genkey"], "");
        std::fs::write(&file, &private).unwrap_or_else(|error| panic!("no key: {error}"));
        (file, wg(&["pubkey"], &private))
    });
    let ends = [(&lab.server, CLIENT, 2), (&lab.client, SERVER, 1)];
    for (i, (machine, their, host)) in ends.into_iter().enumerate() {
        let netns = format!("--net={}", machine.netns_path().display());
        let file = keys[i].0.display().to_string();
        let peer = keys[1 - i].1.trim();
        let endpoint = their.v4_at(51820).to_string();
        command::run(
            "nsenter",
            &[
                &netns,
                "wg",
                "set",
                "t20",
                "listen-port",
                "51820",
                "private-key",
                &file,
                "peer",
                peer,
                "endpoint",
                &endpoint,
                "allowed-ips",
                "0.0.0.0/0,::/0",
            ],
        );
        machine.ip(&addresses("t20", number, host, Families::Both));
    }
    let entry = Entry::Device(Outlet::open(&lab.client, "t20", server_mac(number)));
    Some(Path { name: "wireguard", number, families: Families::Both, answers: true, entry })
}

fn wg(arguments: &[&str], input: &str) -> String {
    let output = command::output(std::process::Command::new("wg").args(arguments), input);
    assert!(output.status.success(), "`wg {}` failed", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A device on the server, over a link that leads to the client.
struct Stack {
    name: &'static str,
    /// `{mac}` is the Ethernet address of the device with the addresses, which is called `s…`.
    server: &'static str,
    client: &'static str,
    /// Needs a link of its own, `link…` at both ends, with that Ethernet address.
    own_link: bool,
    answers: bool,
}

const VRF: &str = "VRF";

const STACKS: [Stack; 7] = [
    Stack {
        name: "VLAN",
        server: "link add link eth0 name s1 address {mac} type vlan id 7",
        client: "link add link eth0 name s1 type vlan id 7",
        own_link: false,
        answers: true,
    },
    Stack {
        name: "two VLAN tags",
        server: "link add link eth0 name q2 type vlan proto 802.1ad id 5
                 link set q2 up
                 link add link q2 name s2 address {mac} type vlan id 7",
        client: "link add link eth0 name q2 type vlan proto 802.1ad id 5
                 link set q2 up
                 link add link q2 name s2 type vlan id 7",
        own_link: false,
        answers: true,
    },
    Stack {
        name: "bridge with a port that is no guest's",
        server: "link add link eth0 name v3 type vlan id 9
                 link add s3 address {mac} type bridge forward_delay 0 mcast_snooping 0
                 link set v3 master s3
                 link set v3 up",
        client: "link add link eth0 name s3 type vlan id 9",
        own_link: false,
        answers: true,
    },
    Stack {
        name: "bond",
        server: "link add s4 type bond mode active-backup miimon 100
                 link set link4 down
                 link set link4 master s4",
        client: "link set link4 name s4",
        own_link: true,
        answers: true,
    },
    Stack {
        name: "team",
        // Which port sends is for a program to say, and none does: it takes in all the same.
        server: "link add s5 address {mac} type team
                 link set link5 down
                 link set link5 master s5
                 link set link5 up",
        client: "link set link5 name s5",
        own_link: true,
        answers: false,
    },
    Stack {
        name: VRF,
        server: "link add s6 type vrf table 70
                 link set s6 up
                 link set link6 master s6",
        client: "link set link6 name s6",
        own_link: true,
        answers: true,
    },
    Stack {
        name: "priority tag",
        server: "link set link7 up
                 link add link link7 name s7 address {mac} type vlan id 0",
        client: "link set link7 up
                 link add link link7 name s7 type vlan id 0",
        own_link: true,
        answers: true,
    },
];

/// Numbers of their paths begin here.
const STACKED: u8 = 50;

fn stacks(lab: &Lab) -> Vec<Path> {
    // An unbound listener takes connections from every VRF.
    let _ = lab.server.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_l3mdev_accept", "1"));
    let mut paths = Vec::new();
    for (i, stack) in (1..).zip(&STACKS) {
        let number = STACKED + i;
        let mac = mac_text(server_mac(number));
        if stack.own_link {
            link_to_client(lab, &format!("link{i}"), server_mac(number));
        }
        if let Err(missing) = lab.server.try_ip(&stack.server.replace("{mac}", &mac)) {
            kernel::leave_out(stack.name, &missing);
            continue;
        }
        lab.client.ip(stack.client);
        let families = Families::Both;
        lab.client.ip(&addresses(&format!("s{i}"), number, 1, families));
        if stack.name == VRF {
            // Its port has the addresses; its table needs a way back to strangers.
            lab.server.ip(&addresses("link6", number, 2, families));
            lab.server.ip(&format!(
                "route add default via {} table 70\nroute add default via {} table 70\n",
                inner_v4(number, 1),
                inner_v6(number, 1)
            ));
        } else {
            lab.server.ip(&addresses(&format!("s{i}"), number, 2, families));
        }
        let entry = Entry::Device(Outlet::open(&lab.client, &format!("s{i}"), server_mac(number)));
        paths.push(Path { name: stack.name, number, families, answers: stack.answers, entry });
    }
    paths
}

/// Packets that were judged so, at this hook; nothing else may have been. What is only observed goes on, and the backstop
/// counts it too.
#[track_caller]
fn expect_only(path: &Path, guard: &Guard<'_>, hook: &str, wanted: &[(&str, &str, u64)]) {
    let counted = |status: &Status| -> Vec<(String, String, String, u64)> {
        let view =
            |c: &CounterView| (c.hook.clone(), c.verdict.clone(), c.reason.clone(), c.packets);
        let is_counted = |c: &&CounterView| {
            c.packets > 0
                && c.verdict != "pass"
                && (c.hook.as_str(), c.verdict.as_str()) != ("cgroup", "would-drop")
        };
        let judged = status.counters.iter().filter(is_counted);
        let mut counted: Vec<_> = judged.map(view).collect();
        counted.sort();
        counted
    };
    let mut expected: Vec<_> = wanted
        .iter()
        .filter(|(_, _, packets)| *packets > 0)
        .map(|(verdict, reason, packets)| {
            (hook.to_owned(), (*verdict).to_owned(), (*reason).to_owned(), *packets)
        })
        .collect();
    expected.sort();
    let total: u64 = expected.iter().map(|(_, _, _, packets)| packets).sum();
    let deadline = std::time::Instant::now() + patience();
    loop {
        let counted = counted(&guard.status());
        let sum: u64 = counted.iter().map(|(_, _, _, packets)| packets).sum();
        if sum >= total || std::time::Instant::now() > deadline {
            assert_eq!(counted, expected, "after {}: {:#?}", path.name, guard.status().interfaces);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
}

/// Sends what no rule allows, and what claims to be the server itself: each is dropped, once, at the NIC's hook.
#[track_caller]
fn expect_shut(paths: &[Path], guard: &Guard<'_>, hook: &str) -> (u64, u64) {
    let (mut no_rule, mut spoofed) = (0, 0);
    for path in paths {
        for server in path.servers() {
            path.send(&wire::syn(outsider(server, path.number), server));
            path.send(&wire::syn(own(server), server));
            no_rule += 1;
            spoofed += 1;
        }
        let wanted = [("drop", "no-rule", no_rule), ("drop", "spoofed", spoofed)];
        expect_only(path, guard, hook, &wanted);
    }
    (no_rule, spoofed)
}

#[track_caller]
fn expect_open(paths: &[Path], lab: &Lab) {
    for path in paths.iter().filter(|path| path.answers) {
        for server in path.servers() {
            lab.client.expect_answer(server);
        }
    }
}

/// All that a table's rows have in common.
#[track_caller]
fn expect_guarded(lab: &Lab, paths: &[Path], guard: &Guard<'_>, hook: &str) {
    let (no_rule, spoofed) = expect_shut(paths, guard, hook);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

    guard.tell(&["allow", "10.90.0.0/16", "fd90::/24"]);
    expect_open(paths, lab);

    guard.tell(&["observe", "--for", "1h"]);
    let mut seen = 0;
    for path in paths {
        for server in path.servers() {
            path.send(&wire::syn(stranger(server, path.number), server));
            seen += 1;
        }
        let wanted = [
            ("drop", "no-rule", no_rule),
            ("drop", "spoofed", spoofed),
            ("would-drop", "no-rule", seen),
        ];
        expect_only(path, guard, hook, &wanted);
    }
    until("the listener has seen every packet that was let in", || {
        lab.server.half_open_connections(OLLAMA) as u64 == seen
    });
}

/// Whether there is something to test.
fn any(test: &str, paths: &[Path]) -> bool {
    if paths.is_empty() {
        kernel::skip(test, "this kernel has none of these devices");
    }
    !paths.is_empty()
}

on_each_hook!(what_comes_out_of_a_tunnel_is_judged_there, [auto]);
fn what_comes_out_of_a_tunnel_is_judged_there(attach: Attach) {
    let lab = Lab::new("what_comes_out_of_a_tunnel");
    let listener = lab.serve();
    let paths = tunnels(&lab);
    if !any("what_comes_out_of_a_tunnel_is_judged_there", &paths) {
        return;
    }
    expect_open(&paths, &lab);
    let before = listener.reached_by().len();
    let guard = lab.start_guard(attach, "");

    expect_guarded(&lab, &paths, &guard, attach.hook());
    assert_eq!(listener.reached_by().len(), 2 * before, "{:?}", listener.reached_by());
}

#[test]
fn tunnels_work_without_a_backstop() {
    let lab = Lab::new("tunnels_work_without_a_backstop");
    let _listener = lab.serve();
    let paths = tunnels(&lab);
    if !any("tunnels_work_without_a_backstop", &paths) {
        return;
    }
    let guard = lab.guard(Attach::Auto, "").without_cgroups();
    guard.start();

    expect_shut(&paths, &guard, Attach::Auto.hook());
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    guard.tell(&["allow", "10.90.0.0/16", "fd90::/24"]);
    expect_open(&paths, &lab);
}

/// From behind its 14th byte on this packet could be one to another port, were there an Ethernet header.
#[test]
fn a_packet_in_a_tunnel_that_looks_like_a_frame_is_judged() {
    const PORT: u16 = 0x2c06;
    // Of its own type, and with that of Ethernet devices, which whoever holds its other end can give it.
    for (attach, claims) in [(Attach::Auto, false), (Attach::Auto, true), (Attach::Generic, true)] {
        let lab = Lab::new("a_packet_that_looks_like_a_frame");
        let Ok(tunnel) = Tunnel::make(&lab.server, "t21") else {
            return kernel::skip(
                "a_packet_in_a_tunnel_that_looks_like_a_frame_is_judged",
                "no tun",
            );
        };
        if claims {
            tunnel.claim_to_be_ethernet();
        }
        lab.server.ip(&addresses("t21", 21, 2, Families::Both));
        let entry = Entry::Program(tunnel);
        let path =
            Path { name: "tun", number: 21, families: Families::Both, answers: false, entry };
        let guard = lab.start_guard(attach, &format!("ports = [{PORT}]"));
        let from = (Ipv4Addr::new(8, 0, 0x45, 77), 0x4000);
        let packet = wire::syn(from.into(), (inner_v4(21, 2), PORT).into());
        let inside = &packet[14..];
        assert_eq!((&packet[12..14], inside[0], inside[9]), (&[8, 0][..], 0x45, 6));
        assert_eq!((inside[6] & 0x3f, inside[7]), (0, 0), "no fragment");
        path.send(&packet);
        expect_only(&path, &guard, Attach::Tcx.hook(), &[("drop", "no-rule", 1)]);
    }
}

on_each_hook!(what_stands_on_a_link_is_judged_below, [auto, native]);
fn what_stands_on_a_link_is_judged_below(attach: Attach) {
    let lab = Lab::new(&format!("what_stands_on_a_link {attach}"));
    let _listener = lab.serve();
    let paths = stacks(&lab);
    if !any("what_stands_on_a_link_is_judged_below", &paths) {
        return;
    }
    expect_open(&paths, &lab);
    let guard = lab.start_guard(attach, "");

    expect_guarded(&lab, &paths, &guard, attach.hook());
    // The host's own programs in a VRF call the service by their address there; those packets do not take loopback.
    guard.tell(&["remove", "10.90.0.0/16", "fd90::/24"]);
    guard.tell(&["enforce"]);
    if let Some(vrf) = paths.iter().find(|path| path.name == VRF) {
        for server in vrf.servers() {
            call_inside_vrf(&lab.server, server);
        }
    }
}

#[track_caller]
fn call_inside_vrf(machine: &Machine, to: SocketAddr) {
    let called = machine.inside(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind_device(Some(b"s6"))?;
        socket.connect_timeout(&to.into(), patience())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience()))?;
        guard_tests::http::ask(&mut stream)
    });
    called.unwrap_or_else(|error| panic!("a program in a VRF can't call {to}: {error}"));
}

/// A container with a device of its own on the server's link: its packets pass the server's addresses by. Each kind has a
/// link of its own, since a device takes only one kind.
const CONTAINERS: [(&str, u8); 2] = [("macvlan mode bridge", 60), ("ipvlan mode l2", 61)];

on_each_hook!(a_container_on_the_hosts_link_is_guarded_by_the_backstop, [auto, native]);
fn a_container_on_the_hosts_link_is_guarded_by_the_backstop(attach: Attach) {
    let lab = Lab::new(&format!("a_container_on_the_hosts_link {attach}"));
    let mut containers = Vec::new();
    for (kind, number) in CONTAINERS {
        let (link, device) = (format!("link{number}"), format!("c{number}"));
        link_to_client(&lab, &link, server_mac(number));
        let made = lab.server.try_ip(&format!("link add link {link} name {device} type {kind}\n"));
        if let Err(missing) = made {
            kernel::leave_out(kind, &missing);
            continue;
        }
        lab.client.ip(&addresses(&link, number, 1, Families::Both));
        lab.server.ip(&addresses(&link, number, 2, Families::Both));
        let container = lab.add_bare_machine(&device);
        lab.server.ip(&format!("link set {device} netns {}\n", container.netns()));
        container.ip(&addresses(&device, number, 3, Families::Both));
        let own: [SocketAddr; 2] =
            [(inner_v4(number, 3), OLLAMA).into(), (inner_v6(number, 3), OLLAMA).into()];
        let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
        for address in own {
            lab.client.expect_answer(address);
        }
        containers.push((container, own, listener));
    }
    if containers.is_empty() {
        kernel::skip("a_container_on_the_hosts_link", "this kernel has neither macvlan nor ipvlan");
        return;
    }
    let guard = lab.start_guard(attach, "");

    for (container, own, listener) in &containers {
        for address in *own {
            container.expect_answer(address);
            lab.client.expect_silence(address);
        }
        assert_eq!(listener.reached_by().len(), 4, "{:?}", listener.reached_by());
    }
    let dropped = guard.counted("cgroup", "drop", "no-rule");
    assert!(dropped >= 2 * containers.len() as u64, "{:#?}", guard.status());
    assert_eq!(guard.counted(attach.hook(), "drop", "spoofed"), 0);

    guard.tell(&["allow", "10.90.0.0/16", "fd90::/24"]);
    for (_, own, _) in &containers {
        for address in *own {
            lab.client.expect_answer(address);
        }
    }
}
