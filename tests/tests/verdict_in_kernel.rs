//! The loaded programs, asked by `BPF_PROG_TEST_RUN`, say of every frame what the same code says on the host; and what
//! loading them costs the verifier stays below a ceiling.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use aya::maps::{Array, Map, MapData};
use etherparse::PacketBuilder;
use guard::{
    compile::{Input, InputRule, RuleKind, Via, compile},
    kernel::{
        explain::Oracle,
        links, load,
        pins::Pins,
        tables::{PolicyMaps, Ready, Terms},
    },
    progress::Progress,
    rule::{Action, GuardedPort, RuleId},
};
use guard_common::{
    abi::{
        FLAG_BACKSTOP, FLAG_FORWARDED, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, InsideKey, NO_END, ViaKey,
        map, program,
    },
    model,
    packet::{Outcome, Packet, Protocol},
    parse::{self, ETHERNET_BYTES},
    rules::Rules as _,
    verdict::{self, Decision, Hook, Reason, Verdict},
};
use guard_tests::{
    corpus::{self, Case, Ingredients, Kind},
    kernel,
};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// The programs and maps of one test, gone when it ends.
struct Loaded {
    pins: Pins,
}

impl Loaded {
    fn new(test: &str) -> Self {
        let path = format!("/sys/fs/bpf/guard-test-{test}");
        let pins = Pins::new(path.clone().into(), Path::new(&path));
        pins.remove_all().expect("what an earlier run left goes");
        let loaded = load::load(&pins).expect("the programs load");
        assert_eq!(loaded.no_xdp, None, "this kernel takes all programs");
        Self { pins }
    }
}

impl Loaded {
    /// The interfaces over which only guests send, and those that rules name, as they stand in the slot in force.
    fn indices_in_force(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let open = |name| MapData::from_pin(self.pins.map(name)).expect("the map opens");
        let active: Array<_, u32> = Map::Array(open(map::ACTIVE)).try_into().expect("an array");
        let slot = active.get(&0, 0).expect("it is read") - 1;
        let inside: aya::maps::HashMap<_, InsideKey, u32> =
            Map::HashMap(open(map::INSIDE)).try_into().expect("a hash");
        let vias: aya::maps::HashMap<_, ViaKey, u32> =
            Map::HashMap(open(map::VIAS)).try_into().expect("a hash");
        let inside = inside.keys().map(|key| key.expect("it is read"));
        let vias = vias.keys().map(|key| key.expect("it is read"));
        (
            inside.filter(|key| key.slot == slot).map(|key| key.ifindex).collect(),
            vias.filter(|key| key.slot == slot).map(|key| key.ifindex).collect(),
        )
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let removed = self.pins.remove_all();
        if !std::thread::panicking() {
            removed.expect("the pins go");
        }
    }
}

const TCP: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 11434 };
const OTHER_TCP: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 8080 };
const UDP: GuardedPort = GuardedPort { protocol: Protocol::Udp, number: 5353 };

fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn rule(
    id: &str,
    action: Action,
    prefixes: &[&str],
    ports: &[GuardedPort],
    kind: RuleKind,
) -> InputRule {
    InputRule {
        id: RuleId(id.to_owned()),
        action,
        kind,
        prefixes: prefixes.iter().map(|text| prefix(text)).collect(),
        ports: ports.to_vec(),
        via: None,
        until_ns: NO_END,
    }
}

fn via(name: &str, rule: InputRule) -> InputRule {
    InputRule { via: Some(name.parse().expect("a name")), ..rule }
}

/// Of an interface that no rule names, and of one that some name.
const ETH0: u32 = 2;
const ETH1: u32 = 3;

fn input(ports: &[GuardedPort]) -> Input {
    use RuleKind::{Set, Typed};
    Input {
        ports: ports.to_vec(),
        rules: vec![
            rule("1", Action::Allow, &["10.77.0.0/16", "fd77::/32"], &[], Typed),
            rule("2", Action::Deny, &["10.77.9.0/24", "fd77:9::/48"], &[], Typed),
            rule("3", Action::Allow, &["10.77.9.7/32"], &[TCP], Typed),
            rule("4", Action::Deny, &["172.30.0.9/32"], &[], Typed),
            rule("5", Action::Allow, &["198.51.100.0/24", "2001:db8:5::/48"], &[], Set),
            rule("6", Action::Deny, &["198.51.100.128/25"], &[], Set),
        ],
        vias: Vec::new(),
        local: ["127.0.0.0/8", "::1/128", "10.77.0.1/32", "fd77::1/128", "172.30.0.0/24"]
            .map(prefix)
            .to_vec(),
        own: ["10.77.0.1/32", "fd77::1/128"].map(prefix).to_vec(),
        ..Input::default()
    }
}

/// The same, with rules for interfaces over and beneath the others. `wg0` is not there.
fn input_by_interface(ports: &[GuardedPort]) -> Input {
    use RuleKind::{Name, Set, Typed};
    let mut input = input(ports);
    input.rules.extend([
        via("eth1", rule("7", Action::Allow, &["203.0.113.0/24", "2001:db8::9/128"], &[], Typed)),
        via("eth1", rule("8", Action::Deny, &["10.77.3.0/24", "fd77::5/128"], &[TCP], Typed)),
        via("wg0", rule("9", Action::Deny, &["0.0.0.0/0", "::/0"], &[], Typed)),
        via("br0", rule("10", Action::Deny, &["198.51.100.0/24"], &[], Set)),
        via("br0", rule("11", Action::Allow, &["0.0.0.0/0", "::/0"], &[], Name)),
    ]);
    let of = |name: &str, indices: &[u32]| Via {
        name: name.parse().expect("a name"),
        indices: indices.to_vec(),
    };
    input.vias = vec![of("br0", &[4, 5]), of("eth1", &[ETH1]), of("wg0", &[])];
    input
}

/// The same policy for the host's side: answered by a plain scan, where the kernel has compiled tables.
struct Model {
    ports: Vec<model::Port>,
    rules: Vec<ModelRule>,
    local: Vec<model::Prefix>,
    own: Vec<model::Prefix>,
    terms: Terms,
}

struct ModelRule {
    action: model::Action,
    kind: model::Kind,
    prefix: model::Prefix,
    ports: Vec<model::Port>,
    via: Option<Vec<u32>>,
}

fn model_prefix(net: IpNet) -> model::Prefix {
    let (family, address) = match net {
        IpNet::V4(net) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&net.addr().octets());
            (guard_common::packet::Family::V4, bytes)
        }
        IpNet::V6(net) => (guard_common::packet::Family::V6, net.addr().octets()),
    };
    model::Prefix { family, address, bits: net.prefix_len() }
}

fn model_port(port: GuardedPort) -> model::Port {
    model::Port { protocol: port.protocol, number: port.number }
}

impl Model {
    fn of(input: &Input, terms: Terms) -> Self {
        let rules = input.rules.iter().flat_map(|rule| {
            rule.prefixes.iter().map(|net| {
                let action = match rule.action {
                    Action::Allow => model::Action::Allow,
                    Action::Deny => model::Action::Deny,
                };
                let kind = match rule.kind {
                    RuleKind::Typed => model::Kind::Typed,
                    RuleKind::Name => model::Kind::Name,
                    RuleKind::Set => model::Kind::Set,
                };
                let ports = rule.ports.iter().copied().map(model_port).collect();
                let via = rule.via.as_ref().map(|name| {
                    let named = input.vias.iter().filter(|via| via.name == *name);
                    named.flat_map(|via| via.indices.clone()).collect()
                });
                ModelRule { action, kind, prefix: model_prefix(*net), ports, via }
            })
        });
        Self {
            ports: input.ports.iter().copied().map(model_port).collect(),
            rules: rules.collect(),
            local: input.local.iter().copied().map(model_prefix).collect(),
            own: input.own.iter().copied().map(model_prefix).collect(),
            terms,
        }
    }

    fn decide(
        &self,
        packet: &Packet,
        place: model::Place,
        judge: impl Fn(&model::About<'_>) -> Decision,
    ) -> Decision {
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|rule| model::Rule {
                action: rule.action,
                kind: rule.kind,
                prefix: rule.prefix,
                ports: &rule.ports,
                via: rule.via.as_deref(),
                until_ns: NO_END,
            })
            .collect();
        let policy = model::Policy {
            ports: &self.ports,
            rules: &rules,
            local: &self.local,
            own: &self.own,
            place,
            now_ns: 0,
            observing: self.terms.observe_until_ns != 0,
            forwarded: self.terms.flags & FLAG_FORWARDED != 0,
            backstop: self.terms.flags & FLAG_BACKSTOP != 0,
        };
        judge(&policy.about(packet))
    }

    /// What the host's build says of a frame at a hook, where it came by this interface. Nobody has vouched for it.
    fn judge(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> Option<(Verdict, Reason)> {
        let mut packet = Packet::EMPTY;
        let behind = frame.get(ETHERNET_BYTES..).unwrap_or_default();
        let outcome = match hook {
            Hook::Xdp => parse::frame(frame, &mut packet),
            Hook::Tcx | Hook::Edge => {
                let kind = frame.get(ETHERNET_BYTES - 2..ETHERNET_BYTES).unwrap_or(&[0, 0]);
                let kind = u16::from_be_bytes([kind[0], kind[1]]);
                parse::network(behind, kind, 0, &mut packet)
            }
            Hook::Cgroup => {
                parse::at_socket(behind, Protocol::Tcp, &mut packet);
                Outcome::Whole
            }
        };
        let place = match hook {
            Hook::Cgroup => model::Place::Socket { vouched: false },
            _ => model::Place::Interface(ifindex),
        };
        let decision = self.decide(&packet, place, |about| match hook {
            Hook::Cgroup => verdict::at_socket(&packet, 0, about),
            _ if verdict::is_to_another_port(outcome, &packet, |protocol, port| {
                about.guarded(protocol, port).is_some()
            }) =>
            {
                Decision::NotOurs
            }
            Hook::Edge => verdict::at_edge(outcome, &packet, about),
            Hook::Xdp | Hook::Tcx => verdict::from_outside(outcome, &packet, about),
        });
        match decision {
            Decision::NotOurs => None,
            Decision::Judged(verdict, reason) => Some((verdict, reason)),
        }
    }
}

const V4: [[u8; 4]; 12] = [
    [203, 0, 113, 9],
    [10, 77, 3, 3],
    [10, 77, 9, 9],
    [10, 77, 9, 7],
    [10, 77, 0, 1],
    [172, 30, 0, 5],
    [172, 30, 0, 9],
    [198, 51, 100, 5],
    [198, 51, 100, 200],
    [127, 0, 0, 1],
    [0, 1, 2, 3],
    [224, 0, 0, 251],
];

fn v6() -> [[u8; 16]; 9] {
    [
        "2001:db8::9",
        "fd77::5",
        "fd77:9::1",
        "fd77::1",
        "2001:db8:5::7",
        "::1",
        "::ffff:10.77.3.3",
        "::10.77.3.3",
        "fe80::1",
    ]
    .map(|text| text.parse::<std::net::Ipv6Addr>().expect("an address").octets())
}

/// Whole frames over every kind of address, port, tag and protocol that the policy knows.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let port = prop_oneof![Just(11434_u16), Just(8080), Just(5353), Just(22), any::<u16>()];
    let tags = 0..4_u8;
    let pick = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    (any::<bool>(), pick, port, tags, any::<bool>(), any::<u8>()).prop_map(
        |(is_v6, (from, to), port, tags, is_udp, extra)| {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let builder = if is_v6 {
                builder.ipv6(*from.get(&v6()), *to.get(&v6()), 9)
            } else {
                builder.ipv4(*from.get(&V4), *to.get(&V4), 9)
            };
            let payload = vec![extra; usize::from(extra % 40)];
            let written = if is_udp {
                builder.udp(1234, port).write(&mut frame, &payload)
            } else {
                builder.tcp(1234, port, 7, 8).syn().write(&mut frame, &payload)
            };
            written.expect("a vector takes it");
            for tag in 0..tags {
                let kind: [u8; 2] = if tag % 2 == 0 { [0x81, 0] } else { [0x88, 0xa8] };
                frame.splice(12..12, [kind[0], kind[1], 0, tag]);
            }
            frame
        },
    )
}

/// The same, with bytes behind the `EtherType` changed and the end cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((14..80_usize, any::<u8>()), 0..4);
    (frames(), changes, prop::option::of(0..60_usize)).prop_map(|(mut frame, changes, cut)| {
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if let Some(cut) = cut {
            // The kernel's test run takes no frame without a byte behind its Ethernet header.
            frame.truncate((frame.len() - cut.min(frame.len())).max(ETHERNET_BYTES + 1));
        }
        frame
    })
}

/// Frames whose IPv4, TCP or UDP header says that it is shorter than it can be. Damage by chance rarely comes to that.
fn contradictory() -> impl Strategy<Value = Vec<u8>> {
    const IPV4_BYTES: usize = 20;
    const IPV6_BYTES: usize = 40;
    (frames(), any::<bool>(), 0..5_u8).prop_map(|(mut frame, in_network_header, words)| {
        let mut network = ETHERNET_BYTES;
        while matches!(frame[network - 2..network], [0x81, 0] | [0x88, 0xa8]) {
            network += 4;
        }
        let is_v4 = frame[network] >> 4 == 4;
        let (next, header) = if is_v4 { (9, IPV4_BYTES) } else { (6, IPV6_BYTES) };
        let transport = network + header;
        if is_v4 && in_network_header {
            frame[network] = 0x40 | words;
        } else if frame[network + next] == Protocol::Udp as u8 {
            frame[transport + 4..transport + 6].copy_from_slice(&[0, words]);
        } else {
            frame[transport + 12] = words << 4;
        }
        frame
    })
}

/// A program that is asked, and of which frames the kernel's test run makes a packet for it in any release.
struct Program {
    hook: Hook,
    /// At TC: the one for Ethernet devices, or the one for all.
    is_ethernet: bool,
    takes: fn(&[u8]) -> bool,
}

const PROGRAMS: [Program; 6] = [
    Program { hook: Hook::Xdp, is_ethernet: true, takes: is_taken_as_frame },
    Program { hook: Hook::Tcx, is_ethernet: true, takes: is_taken_as_skb },
    Program { hook: Hook::Tcx, is_ethernet: false, takes: is_taken_as_skb },
    Program { hook: Hook::Edge, is_ethernet: true, takes: is_taken_as_skb },
    Program { hook: Hook::Edge, is_ethernet: false, takes: is_taken_as_skb },
    Program { hook: Hook::Cgroup, is_ethernet: true, takes: is_taken_as_skb },
];

/// The kernel's test run takes no frame without a byte behind its Ethernet header (`bpf_test_init` in `net/bpf/test_run.c`).
fn is_taken_as_frame(frame: &[u8]) -> bool {
    frame.len() > ETHERNET_BYTES
}

/// And it makes no skb of a frame that ends in its IP header (`bpf_prog_test_run_skb`).
fn is_taken_as_skb(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 0,
    };
    is_taken_as_frame(frame) && frame.len() >= ETHERNET_BYTES + header
}

/// Each mode and each layer there is or is not. The first leaves nothing to others: no backstop, everything guarded.
fn all_terms() -> Vec<Terms> {
    let flags = [
        FLAG_FORWARDED | FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_BACKSTOP | FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_GUARDS_TCP,
    ];
    let terms = [0, NO_END].map(|observe_until_ns| {
        flags.map(|flags| Terms { observe_until_ns, flags, rule_count: 6 })
    });
    terms.concat()
}

/// Puts the policy in force in the kernel, and returns what answers for it on the host.
fn put_in_force(
    maps: &mut PolicyMaps,
    input: impl Fn(&[GuardedPort]) -> Input,
    terms: Terms,
) -> Model {
    let ports: &[_] =
        if terms.flags & FLAG_GUARDS_UDP == 0 { &[TCP, OTHER_TCP] } else { &[TCP, OTHER_TCP, UDP] };
    let input = input(ports);
    maps.put_in_force(ready(&input), terms, &Progress::default())
        .expect("the policy is put in force");
    Model::of(&input, terms)
}

fn ready(input: &Input) -> Ready {
    let tables = compile(input).expect("the policy compiles");
    Ready::new(tables).expect("the policy fits")
}

#[test]
fn kernel_and_host_agree() {
    agree("agree", input, &[ETH0], 1000);
}

#[test]
fn kernel_and_host_agree_about_interfaces() {
    agree("agree-via", input_by_interface, &[ETH0, ETH1, 4, 5], 250);
}

/// So many cases that each verdict and reason below comes up dozens of times.
fn agree(name: &str, input: impl Fn(&[GuardedPort]) -> Input, interfaces: &[u32], cases: u32) {
    let loaded = Loaded::new(name);
    let mut maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
    let oracle = RefCell::new(Oracle::open(&loaded.pins).expect("the programs open"));
    let reasons = RefCell::new(HashSet::new());
    for terms in all_terms() {
        let model = put_in_force(&mut maps, &input, terms);

        let mut runner =
            TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
        let agreed = runner.run(&prop_oneof![frames(), damaged(), contradictory()], |frame| {
            let programs = PROGRAMS.iter().filter(|one| (one.takes)(&frame));
            let places =
                programs.flat_map(|one| interfaces.iter().map(move |ifindex| (one, *ifindex)));
            for (Program { hook, is_ethernet, .. }, ifindex) in places {
                let hook = *hook;
                let answer = oracle.borrow_mut().judge(hook, *is_ethernet, ifindex, &frame);
                let kernel = answer.map_err(|error| {
                    TestCaseError::fail(format!("{hook:?} refused {frame:02x?}: {error}"))
                })?;
                let host = model.judge(hook, ifindex, &frame);
                prop_assert_eq!(kernel, host, "{:?} on {} {:02x?}", hook, ifindex, frame);
                reasons
                    .borrow_mut()
                    .extend(kernel.map(|(verdict, reason)| (hook, verdict, reason)));
            }
            Ok(())
        });
        agreed.expect("kernel and host agree");
    }
    let reasons = reasons.into_inner();
    for hook in [Hook::Xdp, Hook::Tcx] {
        for reason in [
            Reason::NoRule,
            Reason::Denied,
            Reason::Spoofed,
            Reason::Undecidable,
            Reason::Malformed,
        ] {
            assert!(
                reasons.contains(&(hook, Verdict::Drop, reason)),
                "{hook:?} {reason:?} was met"
            );
            assert!(
                reasons.contains(&(hook, Verdict::WouldDrop, reason)),
                "{hook:?} {reason:?} was met"
            );
        }
        assert!(
            reasons.contains(&(hook, Verdict::Pass, Reason::Undecidable)),
            "{hook:?} left some"
        );
    }
    for reason in [
        Reason::NoRule,
        Reason::Denied,
        Reason::Laundered,
        Reason::Spoofed,
        Reason::Undecidable,
        Reason::Malformed,
    ] {
        assert!(reasons.contains(&(Hook::Edge, Verdict::Drop, reason)), "{reason:?} was met");
    }
    for reason in [Reason::NoRule, Reason::Denied] {
        assert!(reasons.contains(&(Hook::Cgroup, Verdict::Drop, reason)), "{reason:?} was met");
    }
    for reason in [Reason::Allowed, Reason::Local] {
        assert!(reasons.contains(&(Hook::Cgroup, Verdict::Pass, reason)), "{reason:?} was met");
    }
}

/// What the corpus is made from; another number makes other packets where chance has a part in them.
const SEED: u64 = 11434;

fn corpus() -> Vec<Case> {
    let v4 = V4.map(Ipv4Addr::from);
    let v6 = v6().map(Ipv6Addr::from);
    let pair =
        |from: &str, to: &str| (from.parse().expect("an address"), to.parse().expect("an address"));
    // A stranger and an allowed source of each family, to this host.
    let pairs = [
        pair("203.0.113.9", "10.77.0.1"),
        pair("10.77.3.3", "172.30.0.5"),
        pair("2001:db8::9", "fd77::1"),
        pair("fd77::5", "fd77::1"),
    ];
    let of = Ingredients {
        v4: &v4,
        v6: &v6,
        tcp: TCP.number,
        udp: UDP.number,
        other: 22,
        pairs: &pairs,
    };
    corpus::cases(SEED, &of)
}

/// How many packets of each kind the corpus holds at least, and how many of them a program must have judged under the terms
/// that leave nothing to others: a NIC's, and the socket's, for which a test run's packets are all of TCP.
const LEAST: [(Kind, usize, usize, usize); 10] = [
    (Kind::Plain, 1_300, 400, 400),
    (Kind::Ipv4Options, 240, 80, 80),
    (Kind::Chain, 2_700, 1_500, 250),
    (Kind::Fragment, 360, 240, 8),
    (Kind::Tagged, 700, 250, 0),
    (Kind::OtherProtocol, 1_000, 6, 60),
    (Kind::Contradictory, 880, 450, 200),
    (Kind::Mutated, 13_000, 11_000, 7_000),
    (Kind::Damaged, 1_000, 700, 300),
    (Kind::Truncated, 1_300, 600, 150),
];

#[test]
fn kernel_and_host_agree_on_every_packet_of_the_corpus() {
    let loaded = Loaded::new("corpus");
    let mut maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
    let mut oracle = Oracle::open(&loaded.pins).expect("the programs open");
    let corpus: Vec<_> = corpus().into_iter().enumerate().collect();
    assert!(corpus.len() >= 10_000, "{} packets", corpus.len());

    let [first, others @ ..] = &all_terms()[..] else { panic!("there are terms") };
    let model = put_in_force(&mut maps, input, *first);
    let judged = agree_on(&corpus, &mut oracle, &model);
    for (kind, least, at_nic, at_socket) in LEAST {
        let count = corpus.iter().filter(|(_, case)| case.kind == kind).count();
        assert!(count >= least, "{count} packets are {kind:?}");
        for hook in Hook::ALL {
            let judged = judged.get(&(hook, kind)).copied().unwrap_or_default();
            let least = match hook {
                Hook::Xdp | Hook::Tcx => at_nic,
                // It leaves later fragments alone, and what is spoofed at other ports.
                Hook::Edge => at_nic.min(at_socket),
                Hook::Cgroup => at_socket,
            };
            assert!(judged >= least, "{hook:?} judged {judged} {kind:?} packets");
        }
    }

    // Under each of the other terms its share.
    for (number, terms) in others.iter().enumerate() {
        let model = put_in_force(&mut maps, input, *terms);
        let share = corpus.iter().filter(|(place, _)| place % others.len() == number);
        agree_on(share, &mut oracle, &model);
    }
}

/// Fails the test unless each program says of each packet what the host says, and returns how many were judged.
fn agree_on<'a>(
    corpus: impl IntoIterator<Item = &'a (usize, Case)>,
    oracle: &mut Oracle,
    model: &Model,
) -> HashMap<(Hook, Kind), usize> {
    let mut judged: HashMap<(Hook, Kind), usize> = HashMap::new();
    for (place, Case { kind, frame }) in corpus {
        for Program { hook, is_ethernet, takes } in &PROGRAMS {
            let case = || {
                let terms = model.terms;
                format!(
                    "{hook:?} (Ethernet: {is_ethernet}), {kind:?}, packet {place} of seed {SEED}, {terms:?}: {frame:02x?}"
                )
            };
            // Also where the kernel takes no such packet: nothing makes the host's build panic.
            let host = model.judge(*hook, ETH0, frame);
            let kernel = match oracle.judge(*hook, *is_ethernet, ETH0, frame) {
                Ok(kernel) => kernel,
                Err(_) if !takes(frame) => continue,
                Err(error) => panic!("{error}: {}", case()),
            };
            assert_eq!(kernel, host, "{}", case());
            if kernel.is_some() && *is_ethernet {
                *judged.entry((*hook, *kind)).or_default() += 1;
            }
        }
    }
    judged
}

#[test]
fn a_policy_is_swapped_whole_and_the_idle_slot_is_clean() {
    let loaded = Loaded::new("swap");
    let mut maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
    assert_eq!(maps.header().expect("it is read"), None, "nothing is in force before the first");
    let mut oracle = Oracle::open(&loaded.pins).expect("the programs open");
    let corpus: Vec<_> = corpus().into_iter().enumerate().step_by(200).collect();
    let inside = BTreeSet::from([7, 9]);
    let policies = [
        input(&[TCP]),
        Input { inside, ..input(&[TCP, OTHER_TCP, UDP]) },
        // So long that it takes more memory than the others, which is given back after.
        with_a_long_list(input(&[TCP])),
        input_by_interface(&[TCP, UDP]),
    ];
    for generation in 1..=9_u64 {
        let wanted = &policies[generation as usize % policies.len()];
        let ready = ready(wanted);
        let inside = ready.tables().inside.clone();
        let vias = ready.tables().vias.keys().copied().collect();
        let guards = |protocol| wanted.ports.iter().any(|port| port.protocol == protocol);
        let flags = [(Protocol::Tcp, FLAG_GUARDS_TCP), (Protocol::Udp, FLAG_GUARDS_UDP)];
        let flags = flags.iter().filter(|(protocol, _)| guards(*protocol)).map(|(_, flag)| flag);
        let terms = Terms { flags: flags.sum(), ..Terms::default() };
        assert_eq!(
            maps.put_in_force(ready, terms, &Progress::default()).expect("it is put in force"),
            generation
        );
        let (long, short) = (6 << 20, 4 << 20);
        let bytes = maps.source_table_bytes();
        let is_long = wanted.rules.iter().any(|rule| rule.prefixes.len() > 1000);
        assert!(if is_long { bytes >= long } else { bytes <= short }, "{bytes} bytes are taken");
        // Another process finds all there is in the kernel, and goes on from there.
        maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
        assert_eq!(maps.source_table_bytes(), bytes);
        let ports: BTreeSet<_> =
            maps.ports_in_force().expect("they are read").into_iter().collect();
        assert_eq!(ports, wanted.ports.iter().copied().collect());
        let indices = loaded.indices_in_force();
        assert_eq!(indices, (inside, vias));
        agree_on(&corpus, &mut oracle, &Model::of(wanted, terms));
    }
}

fn with_a_long_list(mut input: Input) -> Input {
    // A leaf each, and every sixteenth in a branch of its own.
    let prefixes = (0..40_000_u32).map(|number| Ipv4Addr::from(0x6000_0000 | number << 12));
    let prefixes = prefixes.map(|address| IpNet::new(address.into(), 32).expect("it is a prefix"));
    let list = InputRule {
        id: RuleId("r900".to_owned()),
        action: Action::Allow,
        kind: RuleKind::Set,
        prefixes: prefixes.collect(),
        ports: Vec::new(),
        via: None,
        until_ns: NO_END,
    };
    input.rules.push(list);
    input
}

#[test]
fn the_verifier_has_little_to_do() {
    let loaded = Loaded::new("verifier");
    maps_in_force(&loaded);
    let ours = links::own_programs(loaded.pins.instance).expect("the programs are listed");
    // An eighth of the kernel's limit of a million, so that other kernels and compilers have room. Kernels before 6.6 see later
    // that two ways come to the same.
    let limit = if kernel::release() < (6, 6) { 500_000 } else { 125_000 };
    let mut seen = Vec::new();
    let mut too_many = Vec::new();
    for program in
        aya::programs::loaded_programs().flatten().filter(|program| ours.contains(&program.id()))
    {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        seen.push(name.clone());
        let Some(count) = program.verified_instruction_count() else {
            assert!(!kernel::counts_verified_instructions(), "{name} has no count");
            continue;
        };
        kernel::tell(&format!("{name}: {count} instructions verified"));
        if count >= limit {
            too_many.push(format!("{name}: {count}"));
        }
    }
    assert!(too_many.is_empty(), "{too_many:?}");
    // Of the two XDP programs a kernel loads one, and that for frames of several buffers where it knows such.
    assert_eq!(seen.len(), program::ALL.len() - 1);
    let xdp = if kernel::release() < (5, 18) { program::XDP_PLAIN } else { program::XDP };
    assert!(seen.iter().any(|name| name == xdp), "{seen:?}");
}

fn maps_in_force(loaded: &Loaded) {
    PolicyMaps::open(&loaded.pins)
        .and_then(|mut maps| {
            maps.put_in_force(ready(&input(&[TCP])), Terms::default(), &Progress::default())
        })
        .expect("it is put in force");
}
