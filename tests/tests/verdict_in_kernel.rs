//! The loaded programs, asked by `BPF_PROG_TEST_RUN`, say of every frame what the same code says on the host; and what
//! loading them costs the verifier stays below a ceiling.

use std::{cell::RefCell, collections::HashSet, path::Path};

use etherparse::PacketBuilder;
use guard::{
    compile::{Input, InputRule, RuleKind, compile},
    kernel::{
        explain::Oracle,
        links, load,
        pins::Pins,
        tables::{PolicyMaps, Terms},
    },
    rule::{Action, GuardedPort, RuleId},
};
use guard_common::{
    abi::{FLAG_BACKSTOP, FLAG_FORWARDED, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, NO_END},
    model,
    packet::{Outcome, Packet, Protocol},
    parse::{self, ETHERNET_BYTES},
    verdict::{self, Decision, Hook, Reason, Verdict},
};
use guard_tests::kernel;
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
        until_ns: NO_END,
    }
}

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
        local: ["127.0.0.0/8", "::1/128", "10.77.0.1/32", "fd77::1/128", "172.30.0.0/24"]
            .map(prefix)
            .to_vec(),
        guests: Vec::new(),
    }
}

/// The same policy for the host's side: answered by a plain scan, where the kernel has compiled tables.
struct Model {
    ports: Vec<model::Port>,
    rules: Vec<(model::Action, model::Kind, model::Prefix, Vec<model::Port>)>,
    local: Vec<model::Prefix>,
    terms: Terms,
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
                    RuleKind::Set => model::Kind::Set,
                };
                let ports = rule.ports.iter().copied().map(model_port).collect();
                (action, kind, model_prefix(*net), ports)
            })
        });
        Self {
            ports: input.ports.iter().copied().map(model_port).collect(),
            rules: rules.collect(),
            local: input.local.iter().copied().map(model_prefix).collect(),
            terms,
        }
    }

    fn decide(&self, packet: &Packet, judge: impl Fn(&model::About<'_>) -> Decision) -> Decision {
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|(action, kind, prefix, ports)| model::Rule {
                action: *action,
                kind: *kind,
                prefix: *prefix,
                ports,
                until_ns: NO_END,
            })
            .collect();
        let policy = model::Policy {
            ports: &self.ports,
            rules: &rules,
            local: &self.local,
            now_ns: 0,
            observing: self.terms.observe_until_ns != 0,
            forwarded: self.terms.flags & FLAG_FORWARDED != 0,
            backstop: self.terms.flags & FLAG_BACKSTOP != 0,
        };
        judge(&policy.about(packet))
    }

    /// What the host's build says of a frame at a hook.
    fn judge(&self, hook: Hook, frame: &[u8]) -> Option<(Verdict, Reason)> {
        let mut packet = Packet::EMPTY;
        let outcome = match hook {
            Hook::Xdp => parse::frame(frame, &mut packet),
            Hook::Tcx | Hook::Edge => {
                let kind = u16::from_be_bytes([frame[12], frame[13]]);
                parse::network(&frame[ETHERNET_BYTES..], kind, 0, &mut packet)
            }
            Hook::Cgroup => {
                parse::at_socket(&frame[ETHERNET_BYTES..], Protocol::Tcp, &mut packet);
                Outcome::Whole
            }
        };
        let decision = self.decide(&packet, |about| match hook {
            Hook::Cgroup => verdict::at_socket(&packet, 0, about),
            _ => verdict::from_outside(outcome, &packet, about),
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

/// The kernel's test run makes no skb of a frame that ends in its IP header (`bpf_prog_test_run_skb`).
fn is_refused_as_skb(frame: &[u8]) -> bool {
    let header = match &frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    frame.len() < ETHERNET_BYTES + header
}

#[test]
fn kernel_and_host_agree() {
    let loaded = Loaded::new("agree");
    let mut maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
    let oracle = RefCell::new(Oracle::open(&loaded.pins).expect("the programs open"));
    let flags = [
        FLAG_BACKSTOP | FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_FORWARDED | FLAG_GUARDS_TCP | FLAG_GUARDS_UDP,
        FLAG_GUARDS_TCP,
    ];
    let reasons = RefCell::new(HashSet::new());
    for flags in flags {
        for observe_until_ns in [0, NO_END] {
            let terms = Terms { observe_until_ns, flags, rule_count: 6 };
            let ports: &[_] = if flags & FLAG_GUARDS_UDP != 0 {
                &[TCP, OTHER_TCP, UDP]
            } else {
                &[TCP, OTHER_TCP]
            };
            let input = input(ports);
            let tables = compile(&input).expect("the policy compiles");
            maps.put_in_force(&tables, terms).expect("the policy is put in force");
            let model = Model::of(&input, terms);

            // So many that each verdict and reason below comes up dozens of times.
            let mut runner =
                TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(1000) });
            let agreed = runner.run(&prop_oneof![frames(), damaged(), contradictory()], |frame| {
                let hooks: &[Hook] = if is_refused_as_skb(&frame) {
                    &[Hook::Xdp]
                } else {
                    &[Hook::Xdp, Hook::Tcx, Hook::Cgroup]
                };
                for hook in hooks.iter().copied() {
                    let kernel = oracle.borrow_mut().judge(hook, &frame).map_err(|error| {
                        TestCaseError::fail(format!("{hook:?} refused {frame:02x?}: {error}"))
                    })?;
                    prop_assert_eq!(kernel, model.judge(hook, &frame), "{:?} {:02x?}", hook, frame);
                    reasons
                        .borrow_mut()
                        .extend(kernel.map(|(verdict, reason)| (hook, verdict, reason)));
                }
                Ok(())
            });
            agreed.expect("kernel and host agree");
        }
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
    for reason in [Reason::NoRule, Reason::Denied] {
        assert!(reasons.contains(&(Hook::Cgroup, Verdict::Drop, reason)), "{reason:?} was met");
    }
    for reason in [Reason::Allowed, Reason::Local] {
        assert!(reasons.contains(&(Hook::Cgroup, Verdict::Pass, reason)), "{reason:?} was met");
    }
}

#[test]
fn a_policy_is_swapped_whole_and_the_idle_slot_is_clean() {
    let loaded = Loaded::new("swap");
    let mut maps = PolicyMaps::open(&loaded.pins).expect("the maps open");
    assert_eq!(maps.header().expect("it is read"), None, "nothing is in force before the first");
    let first = compile(&input(&[TCP])).expect("it compiles");
    let second = compile(&input(&[TCP, OTHER_TCP, UDP])).expect("it compiles");
    for generation in 1..=7_u64 {
        let wanted = if generation % 3 == 0 { &first } else { &second };
        let put = maps.put_in_force(wanted, Terms::default()).expect("it is put in force");
        assert_eq!(put, generation);
        // Another process reads it from the kernel alone.
        let read = PolicyMaps::open(&loaded.pins).expect("the maps open");
        assert_eq!(read.in_force().expect("it is read").as_ref(), Some(wanted));
        // And goes on from there.
        maps = read;
    }
}

#[test]
fn the_verifier_has_little_to_do() {
    let loaded = Loaded::new("verifier");
    maps_in_force(&loaded);
    let ours = links::own_programs(loaded.pins.instance).expect("the programs are listed");
    let mut seen = 0;
    for program in
        aya::programs::loaded_programs().flatten().filter(|program| ours.contains(&program.id()))
    {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        seen += 1;
        let Some(count) = program.verified_instruction_count() else {
            assert!(!kernel::counts_verified_instructions(), "{name} has no count");
            continue;
        };
        println!("{name}: {count} instructions verified");
        // An eighth of the kernel's limit, so that other kernels and compilers have room.
        assert!(count < 125_000, "{name}: {count} instructions verified");
    }
    assert_eq!(seen, 3);
}

fn maps_in_force(loaded: &Loaded) {
    let tables = compile(&input(&[TCP])).expect("it compiles");
    PolicyMaps::open(&loaded.pins)
        .and_then(|mut maps| maps.put_in_force(&tables, Terms::default()))
        .expect("it is put in force");
}
