//! An independent referee: the policy once more, as nftables rules, and the same packets from the wire to the same services
//! with nothing before them, with the referee, and with guard at each of its hooks. Whom the referee lets be answered, and
//! nobody else, guard does.
//!
//! The witness is in nobody's way: a chain on the server's output that only notes to whom a service answers. Every packet has
//! a source port (or an echo identifier) of its own, so that each is told apart from all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::IpAddr,
    process::Command,
    thread,
    time::Duration,
};

use guard_tests::{
    build::{
        self,
        Extension::{self, Destination, HopByHop, Routing},
        Fragment, flags, protocol,
    },
    command,
    lab::{Lab, OLLAMA, SERVER, every_address},
    listener::{Listener, Service},
    machine::Machine,
    on_each_hook,
    product::Attach,
    wait::until,
    wire::Wire,
};
use ipnet::IpNet;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
}

/// A rule of the policy that both are given.
struct Rule {
    action: Action,
    source: &'static str,
    /// The TCP ports it holds for; empty for every guarded port.
    ports: &'static [u16],
}

const fn allow(source: &'static str, ports: &'static [u16]) -> Rule {
    Rule { action: Action::Allow, source, ports }
}

const fn deny(source: &'static str, ports: &'static [u16]) -> Rule {
    Rule { action: Action::Deny, source, ports }
}

const RULES: [Rule; 14] = [
    allow("192.0.2.0/24", &[]),
    deny("192.0.2.128/25", &[]),
    allow("192.0.2.200/32", &[OLLAMA]),
    deny("192.0.2.7/32", &[SECOND]),
    allow("198.51.100.0/24", &[]),
    deny("198.51.100.0/24", &[]),
    allow("172.30.0.9/32", &[]),
    allow("2001:db8:1::/48", &[]),
    deny("2001:db8:1:8000::/49", &[]),
    allow("2001:db8:1:9000::5/128", &[OLLAMA]),
    deny("2001:db8:1::7/128", &[SECOND]),
    allow("2001:db8:5::/48", &[]),
    deny("2001:db8:5::/48", &[]),
    allow("fd30::9/128", &[]),
];

/// A second guarded TCP port, and one that is not guarded.
const SECOND: u16 = 8080;
const UNGUARDED: u16 = 8081;
/// The guarded UDP port; the number of the guarded TCP port is not guarded over UDP.
const GUARDED_UDP: u16 = 5353;

const GUARDED_TCP: [u16; 2] = [OLLAMA, SECOND];
const SERVICES: [(u8, u16); 5] = [
    (protocol::TCP, OLLAMA),
    (protocol::TCP, SECOND),
    (protocol::TCP, UNGUARDED),
    (protocol::UDP, GUARDED_UDP),
    (protocol::UDP, OLLAMA),
];

/// What the server has for its own: its addresses and its local bridge's subnets.
const LOCAL: [&str; 4] = ["10.77.0.2", "172.30.0.0/24", "fd77::2", "fd30::/64"];

/// Where guard is meant to differ from the referee.
struct Difference {
    /// How the names of the cases begin.
    what: &'static str,
    hooks: &'static [Attach],
    why: &'static str,
}

const DIFFERENCES: [Difference; 1] = [Difference {
    what: "a local bridge's",
    hooks: &[Attach::Socket],
    why: "nothing at a socket says by which interface a packet came, so that a source from a local bridge's subnet is \
              local there; `status` says that the hook at the NIC is missing",
}];

impl Difference {
    fn holds(&self, case: &Case, attach: Attach) -> bool {
        case.what.starts_with(self.what) && self.hooks.contains(&attach)
    }
}

/// One packet, whole or in parts, and whom it claims to be from.
struct Case {
    what: String,
    /// Its source port, or the identifier of an echo request.
    number: u16,
    from: IpAddr,
    to: IpAddr,
    shape: Shape,
    service: (u8, u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Plain,
    /// Behind a priority tag, which any host takes for none (IEEE 802.1Q).
    Tagged,
    /// IPv4 options, all of them no-operations.
    Options(usize),
    /// IPv6 extension headers.
    Chain(Vec<Extension>),
    /// In two parts, the later one first or last.
    Parts {
        later_first: bool,
    },
    /// With TCP flags other than SYN.
    Flags(u8),
}

impl Shape {
    /// Whether a host answers it at all.
    fn is_ever_answered(&self) -> bool {
        match self {
            // Nothing but a SYN opens a connection, and nothing but an ACK is met with a RST by a listener (RFC 9293 section
            // 3.10.7.2); a SYN with a FIN Linux passes over (`tcp_rcv_state_process`).
            Self::Flags(flags) => flags & flags::ACK != 0,
            // Hop-by-hop options stand first or not at all (RFC 8200 section 4.1).
            Self::Chain(chain) => !matches!(chain[..], [_, HopByHop(_), ..]),
            Self::Plain | Self::Tagged | Self::Options(_) | Self::Parts { .. } => true,
        }
    }
}

fn shapes(is_v4: bool, number: u8) -> Vec<Shape> {
    let atomic = Extension::Fragment(Fragment::NONE);
    let mut shapes = vec![
        Shape::Tagged,
        Shape::Parts { later_first: false },
        Shape::Parts { later_first: true },
    ];
    if is_v4 {
        shapes.extend([1, 2, 10].map(Shape::Options));
    } else {
        let chains = [
            vec![HopByHop(0)],
            vec![Destination(0)],
            vec![Destination(2)],
            vec![Routing(1)],
            vec![atomic],
            vec![HopByHop(0), Destination(0), Routing(1), atomic, Destination(0)],
            vec![atomic, Destination(1)],
            vec![Destination(0), HopByHop(0)],
            // As many as guard's hooks at the NIC walk, and more.
            vec![Destination(0); 6],
            vec![Destination(0); 7],
            vec![Destination(0); 12],
        ];
        shapes.extend(chains.map(Shape::Chain));
    }
    if number == protocol::TCP {
        let all = [
            flags::ACK,
            flags::FIN,
            flags::RST,
            flags::SYN | flags::ACK,
            flags::SYN | flags::FIN,
            0,
        ];
        shapes.extend(all.map(Shape::Flags));
    }
    shapes
}

const STRANGERS_V4: [(&str, &str); 6] = [
    ("a stranger's", "203.0.113.9"),
    ("an allowed source's", "192.0.2.1"),
    ("a denied one's below an allow", "192.0.2.129"),
    ("one's that is allowed for one port", "192.0.2.200"),
    ("one's that is denied for one port", "192.0.2.7"),
    ("one's with an allow and a deny", "198.51.100.5"),
];
const STRANGERS_V6: [(&str, &str); 6] = [
    ("a stranger's", "2001:db8::9"),
    ("an allowed source's", "2001:db8:1::1"),
    ("a denied one's below an allow", "2001:db8:1:8000::1"),
    ("one's that is allowed for one port", "2001:db8:1:9000::5"),
    ("one's that is denied for one port", "2001:db8:1::7"),
    ("one's with an allow and a deny", "2001:db8:5::5"),
];
const ODD_SOURCES: [(&str, &str); 27] = [
    ("the last of an allowed prefix", "192.0.2.127"),
    ("the first of a denied prefix", "192.0.2.128"),
    ("the first behind a prefix", "192.0.3.0"),
    ("the client's own", "10.77.0.1"),
    ("the server's own", "10.77.0.2"),
    ("a local bridge's own", "172.30.0.1"),
    ("a local bridge's neighbour", "172.30.0.5"),
    ("a local bridge's neighbour with an allow", "172.30.0.9"),
    ("loopback", "127.0.0.1"),
    ("nobody", "0.0.0.0"),
    ("this network", "0.1.2.3"),
    ("multicast", "224.0.0.251"),
    ("class E", "240.0.0.1"),
    ("broadcast", "255.255.255.255"),
    ("link-local", "169.254.1.1"),
    ("the last of an allowed prefix", "2001:db8:1:7fff:ffff:ffff:ffff:ffff"),
    ("the first behind a prefix", "2001:db8:2::"),
    ("the client's own", "fd77::1"),
    ("the server's own", "fd77::2"),
    ("a local bridge's own", "fd30::1"),
    ("a local bridge's neighbour", "fd30::5"),
    ("a local bridge's neighbour with an allow", "fd30::9"),
    ("loopback", "::1"),
    ("nobody", "::"),
    ("an allowed IPv4 source, mapped", "::ffff:192.0.2.1"),
    ("an allowed IPv4 source, embedded", "::192.0.2.1"),
    ("multicast", "ff02::1"),
];
/// Destinations that are the server's as well: its bridge, and broadcast and multicast.
const DESTINATIONS: [&str; 7] =
    ["172.30.0.1", "10.77.0.255", "255.255.255.255", "224.0.0.1", "fd30::1", "ff02::1", "ff0e::1"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn server(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { SERVER.v4.into() } else { SERVER.v6.into() }
}

/// Every source at every service; every shape, and every destination, from the sources of which each rule has one.
fn cases() -> Vec<Case> {
    const FIRST_NUMBER: u16 = 20_000;
    let mut cases = Vec::new();
    let mut add = |what: String, from, to, shape, service| {
        let number = FIRST_NUMBER + u16::try_from(cases.len()).expect("as many as there are ports");
        cases.push(Case { what, number, from, to, shape, service });
    };
    let strangers = || STRANGERS_V4.into_iter().chain(STRANGERS_V6);
    for (what, from) in strangers().chain(ODD_SOURCES) {
        let from = address(from);
        for service in SERVICES {
            add(what.to_owned(), from, server(from), Shape::Plain, service);
        }
        let echo = if from.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        add(format!("{what} ping"), from, server(from), Shape::Plain, (echo, 1));
    }
    for (what, from) in strangers() {
        let from = address(from);
        for service in SERVICES {
            for shape in shapes(from.is_ipv4(), service.0) {
                add(what.to_owned(), from, server(from), shape, service);
            }
            for to in
                DESTINATIONS.map(address).into_iter().filter(|to| to.is_ipv4() == from.is_ipv4())
            {
                add(format!("{what}, to {to}"), from, to, Shape::Plain, service);
            }
        }
    }
    cases
}

impl Case {
    /// The packets it is made of. Their identification is another in each round: what one round leaves half put together
    /// must not meet the next round's parts.
    fn packets(&self, round: u16) -> Vec<Vec<u8>> {
        let (number, port) = self.service;
        let (from, to) = ((self.from, self.number), (self.to, port));
        let whole = |shape: &[Extension], segment: &[u8]| match (self.from, self.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => build::ipv6(from, to, shape, number, segment),
            _ => build::ip(self.from, self.to, number, segment),
        };
        let segment = build::segment(number, from, to);
        match &self.shape {
            Shape::Plain | Shape::Tagged => vec![whole(&[], &segment)],
            Shape::Chain(chain) => vec![whole(chain, &segment)],
            Shape::Flags(flags) => vec![whole(&[], &build::tcp(*flags, from, to, &[]))],
            Shape::Options(words) => match (self.from, self.to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let options = vec![1; 4 * words];
                    vec![build::ipv4_with(from, to, number, &options, Fragment::NONE, &segment)]
                }
                _ => panic!("options are IPv4's"),
            },
            Shape::Parts { later_first } => {
                let mut parts = self.parts(round);
                if *later_first {
                    parts.reverse();
                }
                parts
            }
        }
    }

    /// In two parts, of which the first holds the whole header where a host wants that (RFC 8200 section 4.5).
    fn parts(&self, round: u16) -> Vec<Vec<u8>> {
        let (number, port) = self.service;
        let (from, to) = ((self.from, self.number), (self.to, port));
        let (segment, cut) = match number {
            protocol::TCP if self.from.is_ipv4() => (build::tcp(flags::SYN, from, to, &[]), 8),
            protocol::TCP => (build::tcp(flags::SYN, from, to, &[0; 12]), 24),
            _ => (build::segment(number, from, to), 8),
        };
        let (front, back) = segment.split_at(cut);
        let identification = self.number.wrapping_add(round << 13);
        let first = Fragment { offset: 0, more: true, identification };
        let offset = u16::try_from(cut / 8).expect("a short packet");
        let last = Fragment { offset, more: false, identification };
        let part = |part, payload| match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                build::ipv4_with(from, to, number, &[], part, payload)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                build::ipv6(from, to, &[Extension::Fragment(part)], number, payload)
            }
            _ => panic!("{} and {} are of different families", self.from, self.to),
        };
        vec![part(first, front), part(last, back)]
    }

    fn send(&self, wire: &Wire, round: u16) {
        for packet in self.packets(round) {
            if self.shape == Shape::Tagged {
                wire.send_tagged(0, &packet);
            } else {
                wire.send(&packet);
            }
        }
    }

    fn is_guarded(&self) -> bool {
        let (number, port) = self.service;
        match number {
            protocol::TCP => GUARDED_TCP.contains(&port),
            protocol::UDP => port == GUARDED_UDP,
            _ => false,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from, to, shape, service: (protocol, port), .. } = self;
        write!(f, "{what}: {from} to {to}, protocol {protocol}, port {port}, {shape:?}")
    }
}

/// The policy as nftables rules: what an administrator would write who had only these.
fn nftables(rules: &[Rule]) -> String {
    let families = |wanted: bool| {
        let of_family = LOCAL.iter().filter(move |text| text.contains(':') == wanted);
        of_family.copied().collect::<Vec<_>>().join(", ")
    };
    let (v4, v6) = (families(false), families(true));
    let tcp = GUARDED_TCP.map(|port| port.to_string()).join(", ");
    let mut text = format!(
        "table inet referee {{\n\
         chain input {{\n\
         type filter hook input priority filter; policy accept;\n\
         iifname != \"eth0\" accept\n\
         tcp dport {{ {tcp} }} goto guarded\n\
         udp dport {GUARDED_UDP} goto guarded\n\
         }}\n\
         chain guarded {{\n\
         ip saddr {{ 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3, {v4} }} drop\n\
         ip6 saddr {{ ::/96, ::ffff:0:0/96, ff00::/8, {v6} }} drop\n"
    );
    // The most specific first; of one prefix, deny wins.
    let mut sorted: Vec<_> = rules.iter().collect();
    sorted.sort_by_key(|rule| {
        let net: IpNet = rule.source.parse().expect("a prefix");
        (std::cmp::Reverse(net.prefix_len()), rule.action == Action::Allow)
    });
    for rule in sorted {
        let family = if rule.source.contains(':') { "ip6" } else { "ip" };
        let verdict = if rule.action == Action::Allow { "accept" } else { "drop" };
        let ports = rule.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let ports = if ports.is_empty() { ports } else { format!("tcp dport {{ {ports} }}") };
        writeln!(text, "{family} saddr {} {ports} {verdict}", rule.source)
            .expect("a string takes it");
    }
    text + "drop\n}\n}\n"
}

/// The policy as guard's configuration.
fn configuration(rules: &[Rule]) -> String {
    let mut text = format!("ports = [{OLLAMA}, {SECOND}, \"udp/{GUARDED_UDP}\"]\n");
    for rule in rules {
        let word = if rule.action == Action::Allow { "allow" } else { "deny" };
        writeln!(text, "[[rule]]\n{word} = \"{}\"", rule.source).expect("a string takes it");
        if !rule.ports.is_empty() {
            writeln!(text, "ports = {:?}", rule.ports).expect("a string takes it");
        }
    }
    text
}

const WITNESS: &str = "table inet witness {
    set answered { type inet_service; flags dynamic; size 65535; }
    set echoed { typeof icmp id; flags dynamic; size 65535; }
    set echoed6 { typeof icmpv6 id; flags dynamic; size 65535; }
    chain output {
        type filter hook output priority filter + 10; policy accept;
        tcp sport { 11434, 8080, 8081 } add @answered { tcp dport }
        udp sport { 5353, 11434 } add @answered { udp dport }
        icmp type echo-reply add @echoed { icmp id }
        icmpv6 type echo-reply add @echoed6 { icmpv6 id }
    }
}";

/// The numbers of the packets that were answered.
fn answered(server: &Machine) -> BTreeSet<u16> {
    let netns = format!("--net={}", server.netns_path().display());
    let mut numbers = BTreeSet::new();
    for set in ["answered", "echoed", "echoed6"] {
        let mut nft = Command::new("nsenter");
        nft.args([&netns, "nft", "--json", "list", "set", "inet", "witness", set]);
        let output = command::output(&mut nft, "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON from nft");
        let parts = listed["nftables"].as_array().expect("nft lists objects");
        let sets = parts.iter().filter_map(|part| part["set"]["elem"].as_array());
        numbers.extend(sets.flatten().filter_map(Value::as_u64).map(|number| number as u16));
    }
    numbers
}

/// The server's services, new ones for each round: none remembers a connection of the last.
fn serve(lab: &Lab) -> Vec<Listener> {
    let services = SERVICES.iter().map(|(number, port)| {
        let service = if *number == protocol::TCP { Service::Http } else { Service::Echo };
        lab.listen(&lab.server, service, every_address(*port))
    });
    services.collect()
}

/// Sends all cases, and returns the numbers of those that were answered.
fn round(lab: &Lab, cases: &[Case], round: u16) -> BTreeSet<u16> {
    /// A socket's buffer holds more datagrams than this.
    const BATCH: usize = 100;
    const LAST_NUMBERS: u16 = 60_000;
    let _services = serve(lab);
    let wire = lab.wire();
    lab.server.nft(WITNESS);
    for (batch, cases) in (0_u16..).zip(cases.chunks(BATCH)) {
        for case in cases {
            case.send(&wire, round);
        }
        // Each service works through its packets in order: who has answered the last has answered all.
        let last: Vec<Case> = (0..)
            .zip(SERVICES)
            .map(|(place, service)| Case {
                what: "the last".to_owned(),
                number: LAST_NUMBERS + 10 * batch + place,
                from: address("192.0.2.1"),
                to: SERVER.v4.into(),
                shape: Shape::Plain,
                service,
            })
            .collect();
        for case in &last {
            case.send(&wire, round);
        }
        until("the last packet of a batch is answered by each service", || {
            let answered = answered(&lab.server);
            last.iter().all(|case| answered.contains(&case.number))
        });
    }
    // Packets of one batch may have been taken by two CPUs: the last one then says nothing of the other's.
    thread::sleep(Duration::from_millis(100));
    let answered = answered(&lab.server);
    lab.server.nft("delete table inet witness");
    answered
}

on_each_hook!(guard_lets_in_whom_the_referee_lets_in, [native, generic, tcx, clsact, socket]);
fn guard_lets_in_whom_the_referee_lets_in(attach: Attach) {
    let lab = Lab::new(&format!("the_referee {attach}"));
    if !has_nftables(&lab.server) {
        println!("skipped: this kernel has no nf_tables");
        return;
    }
    let _container = lab.add_container();
    wait_for_multicast(&lab);
    let cases = cases();

    let unguarded = round(&lab, &cases, 0);
    lab.server.nft(&nftables(&RULES));
    let by_referee = round(&lab, &cases, 1);
    lab.server.nft("delete table inet referee");
    let guard = lab.start_guard(attach, &configuration(&RULES));
    let by_guard = round(&lab, &cases, 2);

    expect_to_tell_apart(&cases, &unguarded, &by_referee);
    let mut differences = Vec::new();
    let mut met = BTreeSet::new();
    for case in &cases {
        let with_guard = by_guard.contains(&case.number);
        if with_guard == by_referee.contains(&case.number) {
            continue;
        }
        match DIFFERENCES.iter().position(|difference| difference.holds(case, attach)) {
            Some(known) => drop(met.insert(known)),
            None => differences.push(format!("answered with guard: {with_guard}: {case}")),
        }
    }
    assert!(differences.is_empty(), "{differences:#?}\n{:#?}", guard.status());
    for (place, difference) in DIFFERENCES.iter().enumerate() {
        let is_due = difference.hooks.contains(&attach);
        assert_eq!(met.contains(&place), is_due, "{}: {}", difference.what, difference.why);
    }
}

/// Fails the test unless the rounds say something: of each shape and each service in each family the referee lets some packets
/// in and stops others that would have been answered.
fn expect_to_tell_apart(cases: &[Case], unguarded: &BTreeSet<u16>, by_referee: &BTreeSet<u16>) {
    assert!(cases.len() > 1_000, "{} cases", cases.len());
    assert!(unguarded.is_superset(by_referee), "{:?}", by_referee.difference(unguarded));
    let mut groups: BTreeMap<String, (bool, usize, usize)> = BTreeMap::new();
    for case in cases {
        let family = if case.from.is_ipv4() { "IPv4" } else { "IPv6" };
        let (protocol, port) = case.service;
        let service = (format!("{family}, protocol {protocol}, port {port}"), case.is_guarded());
        let shape = (format!("{family}, {:?}", case.shape), case.shape.is_ever_answered());
        for (group, is_telling) in [service, shape] {
            let (_, let_in, stopped) = groups.entry(group).or_insert((is_telling, 0, 0));
            if by_referee.contains(&case.number) {
                *let_in += 1;
            } else if unguarded.contains(&case.number) {
                *stopped += 1;
            }
        }
    }
    for (group, (is_telling, let_in, stopped)) in groups {
        let tells = let_in > 0 && stopped > 0;
        assert_eq!(tells, is_telling, "{group}: {let_in} are let in, {stopped} are stopped");
    }
}

/// A host answers what comes to IPv6's multicast a moment after its link has come up.
fn wait_for_multicast(lab: &Lab) {
    let _services = serve(lab);
    let wire = lab.wire();
    lab.server.nft(WITNESS);
    let case = Case {
        what: "the first".to_owned(),
        number: 1,
        from: address("2001:db8:1::1"),
        to: address("ff02::1"),
        shape: Shape::Plain,
        service: (protocol::UDP, OLLAMA),
    };
    until("the server answers what is sent to all hosts", || {
        case.send(&wire, 0);
        answered(&lab.server).contains(&case.number)
    });
    lab.server.nft("delete table inet witness");
}

fn has_nftables(server: &Machine) -> bool {
    let netns = format!("--net={}", server.netns_path().display());
    let mut nft = Command::new("nsenter");
    command::output(nft.args([&netns, "nft", "list", "tables"]), "").status.success()
}
