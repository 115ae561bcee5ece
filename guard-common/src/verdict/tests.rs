use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    net::IpAddr,
    vec::Vec,
};

use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    abi::{NO_END, Passed},
    model::{self, About, Action, Kind, Place, Policy, Port, Prefix, Rule},
};

const TCP_11434: Port = Port { protocol: Protocol::Tcp, number: 11_434 };
const TCP_8080: Port = Port { protocol: Protocol::Tcp, number: 8_080 };
const UDP_53: Port = Port { protocol: Protocol::Udp, number: 53 };

const ALLOWED: Decision = Decision::Judged(Verdict::Pass, Reason::Allowed);
const LOCAL: Decision = Decision::Judged(Verdict::Pass, Reason::Local);

const fn dropped(reason: Reason) -> Decision {
    Decision::Judged(Verdict::Drop, reason)
}

fn address(text: &str) -> (Family, AddressBytes) {
    match text.parse().unwrap() {
        IpAddr::V4(v4) => (Family::V4, padded(v4.octets())),
        IpAddr::V6(v6) => (Family::V6, v6.octets()),
    }
}

fn padded(octets: [u8; 4]) -> AddressBytes {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&octets);
    bytes
}

fn prefix(text: &str) -> Prefix {
    let (start, bits) = text.split_once('/').unwrap();
    let (family, address) = address(start);
    Prefix { family, address, bits: bits.parse().unwrap() }
}

fn rule(action: Action, source: &str) -> Rule<'static> {
    Rule {
        action,
        kind: Kind::Typed,
        prefix: prefix(source),
        ports: &[],
        via: None,
        until_ns: NO_END,
    }
}

/// A packet to TCP 11434.
fn packet(source: &str, destination: &str) -> Packet {
    let (family, source) = address(source);
    let (other, destination) = address(destination);
    assert_eq!(family, other);
    Packet {
        source,
        destination,
        family,
        protocol: Protocol::Tcp,
        source_port: 51_234,
        port: 11_434,
        tcp_flags: 0x02,
    }
}

/// Lists that a test's policies are made of.
#[derive(Clone, Debug)]
struct Host {
    ports: Vec<Port>,
    rules: Vec<Rule<'static>>,
    local: Vec<Prefix>,
    own: Vec<Prefix>,
}

/// A host with an address of each family and a container subnet, that allows 192.0.2.0/24 and `2001:db8:a::/48`.
fn host() -> Host {
    Host {
        ports: [TCP_8080, TCP_11434].into(),
        rules: [rule(Action::Allow, "192.0.2.0/24"), rule(Action::Allow, "2001:db8:a::/48")].into(),
        local: [
            prefix("198.51.100.4/32"),
            prefix("172.17.0.0/16"),
            prefix("2001:db8:ff::4/128"),
            prefix("fd00:17::/64"),
        ]
        .into(),
        own: [prefix("198.51.100.4/32"), prefix("2001:db8:ff::4/128")].into(),
    }
}

impl Host {
    fn policy(&self) -> Policy<'_> {
        Policy {
            ports: &self.ports,
            rules: &self.rules,
            local: &self.local,
            own: &self.own,
            place: ON_ETH0,
            now_ns: 1,
            observing: false,
            forwarded: false,
            backstop: true,
        }
    }
}

fn outside(outcome: Outcome, packet: &Packet, policy: &Policy<'_>) -> Decision {
    outside_of(outcome, packet, &policy.about(packet))
}

/// What a hook of a NIC makes of a packet: it asks for the port first.
fn outside_of<P: Rules>(outcome: Outcome, packet: &Packet, rules: &P) -> Decision {
    if is_to_another_port(outcome, packet, |protocol, port| rules.guarded(protocol, port).is_some())
    {
        return Decision::NotOurs;
    }
    from_outside(outcome, packet, rules)
}

fn edge(outcome: Outcome, packet: &Packet, policy: &Policy<'_>) -> Decision {
    edge_of(outcome, packet, &policy.about(packet))
}

/// [`outside_of`] at an edge.
fn edge_of<P: Rules>(outcome: Outcome, packet: &Packet, rules: &P) -> Decision {
    if is_to_another_port(outcome, packet, |protocol, port| rules.guarded(protocol, port).is_some())
    {
        return Decision::NotOurs;
    }
    at_edge(outcome, packet, rules)
}

fn socket(packet: &Packet, socket_port: u16, policy: &Policy<'_>) -> Decision {
    socket_after_nic(packet, socket_port, policy, false)
}

/// At the socket, of a packet that the NIC's hook has vouched for or not.
fn socket_after_nic(
    packet: &Packet,
    socket_port: u16,
    policy: &Policy<'_>,
    vouched: bool,
) -> Decision {
    let policy = Policy { place: Place::Socket { vouched }, ..*policy };
    at_socket(packet, socket_port, &policy.about(packet))
}

const ETH0: u32 = 2;
const ETH1: u32 = 3;

const OWN4: &str = "198.51.100.4";
const OWN6: &str = "2001:db8:ff::4";

// Numbers.

#[test]
fn numbers_are_pinned() {
    assert_eq!(Hook::ALL.map(|hook| hook as u8), [0, 1, 2, 3]);
    assert_eq!(Hook::ALL.map(Hook::name), ["xdp", "tcx", "edge", "cgroup"]);
    assert_eq!(Verdict::ALL.map(|verdict| verdict as u8), [0, 1, 2]);
    assert_eq!(Verdict::ALL.map(Verdict::name), ["pass", "drop", "would-drop"]);
    assert_eq!(Reason::ALL.map(|reason| reason as u8), [0, 1, 2, 3, 4, 5, 6, 7]);
    let names = [
        "allowed",
        "local",
        "no-rule",
        "denied",
        "spoofed",
        "laundered",
        "undecidable",
        "malformed",
    ];
    assert_eq!(Reason::ALL.map(Reason::name), names);
}

#[test]
fn only_known_numbers_are_read() {
    for number in 0..=u8::MAX {
        let place = usize::from(number);
        assert_eq!(Hook::from_number(number), Hook::ALL.get(place).copied());
        assert_eq!(Verdict::from_number(number), Verdict::ALL.get(place).copied());
        assert_eq!(Reason::from_number(number), Reason::ALL.get(place).copied());
    }
}

// From outside.

#[test]
fn what_is_not_ours_is_left_alone() {
    let (host, stranger) = (host(), packet("203.0.113.9", OWN4));
    assert_eq!(outside(Outcome::NotOurs, &stranger, &host.policy()), Decision::NotOurs);
}

#[test]
fn an_unguarded_port_is_not_ours_whatever_the_packet() {
    let host = host();
    for source in ["203.0.113.9", "192.0.2.7", "127.0.0.1", OWN4, "0.0.0.0"] {
        for destination in [OWN4, "127.0.0.1", "224.0.0.1", "203.0.113.1"] {
            for outcome in [Outcome::Whole, Outcome::Broken] {
                let other_port = Packet { port: 443, ..packet(source, destination) };
                assert_eq!(outside(outcome, &other_port, &host.policy()), Decision::NotOurs);
                let udp = Packet { protocol: Protocol::Udp, ..packet(source, destination) };
                assert_eq!(outside(outcome, &udp, &host.policy()), Decision::NotOurs);
            }
        }
    }
}

#[test]
fn replies_from_a_guarded_port_elsewhere_are_not_ours() {
    let host = host();
    let reply = Packet { source_port: 11_434, port: 40_000, ..packet("203.0.113.9", OWN4) };
    assert_eq!(outside(Outcome::Whole, &reply, &host.policy()), Decision::NotOurs);
}

#[test]
fn rules_decide_over_both_families() {
    let mut host = host();
    host.rules.push(rule(Action::Deny, "192.0.2.66/32"));
    host.rules.push(rule(Action::Deny, "2001:db8:a::66/128"));
    for (source, destination, decision) in [
        ("192.0.2.7", OWN4, ALLOWED),
        ("192.0.2.66", OWN4, dropped(Reason::Denied)),
        ("203.0.113.9", OWN4, dropped(Reason::NoRule)),
        ("2001:db8:a::7", OWN6, ALLOWED),
        ("2001:db8:a::66", OWN6, dropped(Reason::Denied)),
        ("2001:db8:b::7", OWN6, dropped(Reason::NoRule)),
    ] {
        let packet = packet(source, destination);
        assert_eq!(outside(Outcome::Whole, &packet, &host.policy()), decision, "{source}");
    }
}

#[test]
fn a_container_as_destination_is_judged_like_any_other() {
    let host = host();
    for (source, destination, decision) in [
        ("192.0.2.7", "172.17.0.2", ALLOWED),
        ("203.0.113.9", "172.17.0.2", dropped(Reason::NoRule)),
        ("2001:db8:a::7", "fd00:17::2", ALLOWED),
        ("2001:db8:b::7", "fd00:17::2", dropped(Reason::NoRule)),
    ] {
        let packet = packet(source, destination);
        assert_eq!(outside(Outcome::Whole, &packet, &host.policy()), decision, "{source}");
    }
}

/// A host that allows every source, so that what is dropped is dropped before the rules.
fn open_host() -> Host {
    let rules = [rule(Action::Allow, "0.0.0.0/0"), rule(Action::Allow, "::/0")].into();
    Host { rules, ..host() }
}

#[test]
fn sources_that_cannot_come_from_outside_are_spoofed_whatever_the_rules() {
    let host = open_host();
    for source in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        OWN4,
        "172.17.0.1",
        "172.17.255.254",
    ] {
        let packet = packet(source, OWN4);
        let decision = outside(Outcome::Whole, &packet, &host.policy());
        assert_eq!(decision, dropped(Reason::Spoofed), "{source}");
    }
    for source in [
        "::",
        "::1",
        "::192.0.2.7",
        "::ffff:ffff",
        "::ffff:192.0.2.7",
        "::ffff:0.0.0.0",
        "::ffff:127.0.0.1",
        "ff02::1",
        "ff00::",
        OWN6,
        "fd00:17::",
        "fd00:17::ffff:1",
    ] {
        let packet = packet(source, OWN6);
        let decision = outside(Outcome::Whole, &packet, &host.policy());
        assert_eq!(decision, dropped(Reason::Spoofed), "{source}");
    }
}

#[test]
fn neighbours_of_the_spoofed_ranges_are_sources_like_any_other() {
    let host = open_host();
    for source in ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "172.16.255.255"] {
        assert_eq!(
            outside(Outcome::Whole, &packet(source, OWN4), &host.policy()),
            ALLOWED,
            "{source}"
        );
    }
    for source in [
        "::1:0:0",
        "::fffe:192.0.2.7",
        "::1:ffff:192.0.2.7",
        "64:ff9b::192.0.2.7",
        "fe80::1",
        "fec0::1",
        "fd00:16::1",
        "feff::1",
    ] {
        assert_eq!(
            outside(Outcome::Whole, &packet(source, OWN6), &host.policy()),
            ALLOWED,
            "{source}"
        );
    }
}

#[test]
fn a_mapped_source_is_never_taken_for_the_ipv4_host() {
    // Neither at the NIC nor at the socket, where a rule for the IPv4 host must not match it.
    let host = host();
    let mapped = packet("::ffff:192.0.2.7", OWN6);
    assert_eq!(outside(Outcome::Whole, &mapped, &host.policy()), dropped(Reason::Spoofed));
    assert_eq!(socket(&mapped, 11_434, &host.policy()), dropped(Reason::NoRule));
}

#[test]
fn loopback_destinations_are_spoofed_even_where_forwarded_packets_pass() {
    let host = open_host();
    for (source, destination) in
        [("192.0.2.7", "127.0.0.1"), ("192.0.2.7", "127.255.255.255"), ("2001:db8:a::7", "::1")]
    {
        for forwarded in [false, true] {
            let policy = Policy { forwarded, ..host.policy() };
            let decision = outside(Outcome::Whole, &packet(source, destination), &policy);
            assert_eq!(decision, dropped(Reason::Spoofed), "{destination}");
        }
    }
    let policy = Policy { forwarded: true, ..host.policy() };
    assert_eq!(outside(Outcome::Whole, &packet("2001:db8:a::7", "::2"), &policy), ALLOWED);
    assert_eq!(outside(Outcome::Whole, &packet("192.0.2.7", "128.0.0.1"), &policy), ALLOWED);
}

#[test]
fn transit_is_left_alone_unless_it_is_guarded() {
    let host = host();
    let guarded = Policy { forwarded: true, ..host.policy() };
    for (source, destination) in
        [("203.0.113.9", "203.0.113.200"), ("2001:db8:b::7", "2001:db8:b::200")]
    {
        let transit = packet(source, destination);
        assert_eq!(outside(Outcome::Whole, &transit, &host.policy()), Decision::NotOurs);
        assert_eq!(outside(Outcome::Whole, &transit, &guarded), dropped(Reason::NoRule));
    }
    assert_eq!(outside(Outcome::Whole, &packet("192.0.2.7", "203.0.113.200"), &guarded), ALLOWED);
}

#[test]
fn transit_is_no_business_of_ours_even_if_impossible_or_broken() {
    let host = host();
    for source in ["127.0.0.1", "240.0.0.1", "0.0.0.0"] {
        for outcome in [Outcome::Whole, Outcome::Broken] {
            let transit = packet(source, "203.0.113.200");
            assert_eq!(outside(outcome, &transit, &host.policy()), Decision::NotOurs);
        }
    }
}

/// What seems to be transit may be for an address of this host that no interface has, where a local source is let in.
#[test]
fn a_local_source_is_spoofed_wherever_it_is_sent_to() {
    let host = host();
    for source in [OWN4, "172.17.0.9"] {
        for outcome in [Outcome::Whole, Outcome::Broken, LATER_FRAGMENT, LONG_CHAIN] {
            let transit = packet(source, "203.0.113.200");
            assert_eq!(outside(outcome, &transit, &host.policy()), dropped(Reason::Spoofed));
        }
    }
}

#[test]
fn destinations_that_are_every_hosts_are_this_hosts() {
    let host = host();
    for (source, destination) in [
        ("203.0.113.9", "224.0.0.1"),
        ("203.0.113.9", "239.255.255.255"),
        ("203.0.113.9", "255.255.255.255"),
        // Between two of these the kernel takes it for a broadcast; from anywhere else it refuses it.
        ("203.0.113.9", "0.0.0.0"),
        ("2001:db8:b::7", "ff02::1"),
        ("2001:db8:b::7", "ff0e::1"),
        ("2001:db8:b::7", "fe80::1"),
        ("2001:db8:b::7", "febf:ffff::1"),
    ] {
        let decision = outside(Outcome::Whole, &packet(source, destination), &host.policy());
        assert_eq!(decision, dropped(Reason::NoRule), "{destination}");
    }
    let from_nowhere = packet("0.0.0.0", "0.0.0.0");
    assert_eq!(outside(Outcome::Whole, &from_nowhere, &host.policy()), dropped(Reason::Spoofed));
}

#[test]
fn neighbours_of_every_hosts_destinations_are_transit() {
    let host = host();
    for (source, destination) in [
        ("203.0.113.9", "223.255.255.255"),
        ("203.0.113.9", "240.0.0.1"),
        ("203.0.113.9", "255.255.255.254"),
        ("203.0.113.9", "0.0.0.1"),
        ("2001:db8:b::7", "fe7f::1"),
        ("2001:db8:b::7", "fec0::1"),
        ("2001:db8:b::7", "fdff::1"),
    ] {
        let decision = outside(Outcome::Whole, &packet(source, destination), &host.policy());
        assert_eq!(decision, Decision::NotOurs, "{destination}");
    }
}

#[test]
fn a_broken_header_is_malformed_even_from_an_allowed_source() {
    let host = host();
    for source in ["192.0.2.7", "203.0.113.9"] {
        let decision = outside(Outcome::Broken, &packet(source, OWN4), &host.policy());
        assert_eq!(decision, dropped(Reason::Malformed));
    }
}

#[test]
fn the_first_that_applies_gives_the_reason() {
    let host = host();
    // To loopback, in transit, spoofed, broken and unruled at once; then one less each time.
    for (source, destination, outcome, decision) in [
        ("0.0.0.0", "127.0.0.1", Outcome::Broken, dropped(Reason::Spoofed)),
        ("0.0.0.0", "203.0.113.1", Outcome::Broken, Decision::NotOurs),
        ("0.0.0.0", OWN4, Outcome::Broken, dropped(Reason::Spoofed)),
        ("203.0.113.9", OWN4, Outcome::Broken, dropped(Reason::Malformed)),
        ("203.0.113.9", OWN4, Outcome::Whole, dropped(Reason::NoRule)),
    ] {
        assert_eq!(outside(outcome, &packet(source, destination), &host.policy()), decision);
    }
}

// Undecidable.

const LATER_FRAGMENT: Outcome = Outcome::LaterFragment(Known::Protocol);
const LONG_CHAIN: Outcome = Outcome::Undecidable(Known::Addresses);
const CUT_SHORT: Outcome = Outcome::Undecidable(Known::Nothing);

fn without_ports(packet: Packet) -> Packet {
    Packet { source_port: 0, port: 0, tcp_flags: 0, ..packet }
}

#[test]
fn undecidable_packets_are_the_backstops_business_where_there_is_one() {
    let host = host();
    for (outcome, reason) in [
        (LATER_FRAGMENT, Reason::Undecidable),
        (LONG_CHAIN, Reason::Undecidable),
        (CUT_SHORT, Reason::Undecidable),
        (Outcome::Malformed(Known::Protocol), Reason::Malformed),
        (Outcome::Malformed(Known::Addresses), Reason::Malformed),
    ] {
        for source in ["203.0.113.9", "192.0.2.7"] {
            let packet = without_ports(packet(source, OWN4));
            let left = Decision::Judged(Verdict::Pass, reason);
            assert_eq!(outside(outcome, &packet, &host.policy()), left);
            let alone = Policy { backstop: false, ..host.policy() };
            assert_eq!(outside(outcome, &packet, &alone), dropped(reason));
        }
    }
}

#[test]
fn a_packet_of_a_protocol_that_is_not_guarded_cannot_be_for_a_guarded_port() {
    let fragment = without_ports(packet("203.0.113.9", OWN4));
    let udp_fragment = Packet { protocol: Protocol::Udp, ..fragment };
    let undecidable = dropped(Reason::Undecidable);
    for (ports, of_tcp, of_udp, of_unknown) in [
        (&[][..], Decision::NotOurs, Decision::NotOurs, Decision::NotOurs),
        (&[TCP_11434][..], undecidable, Decision::NotOurs, undecidable),
        (&[UDP_53][..], Decision::NotOurs, undecidable, undecidable),
        (&[TCP_11434, UDP_53][..], undecidable, undecidable, undecidable),
    ] {
        let host = Host { ports: ports.into(), ..host() };
        let policy = Policy { backstop: false, ..host.policy() };
        assert_eq!(outside(LATER_FRAGMENT, &fragment, &policy), of_tcp);
        assert_eq!(outside(LATER_FRAGMENT, &udp_fragment, &policy), of_udp);
        assert_eq!(outside(LONG_CHAIN, &fragment, &policy), of_unknown);
        assert_eq!(outside(CUT_SHORT, &fragment, &policy), of_unknown);
        assert_eq!(outside(Outcome::Malformed(Known::Protocol), &udp_fragment, &policy), {
            if of_udp == Decision::NotOurs { of_udp } else { dropped(Reason::Malformed) }
        });
    }
}

#[test]
fn undecidable_transit_is_left_alone_where_the_destination_is_known() {
    let host = host();
    let transit = without_ports(packet("203.0.113.9", "203.0.113.200"));
    let alone = Policy { backstop: false, ..host.policy() };
    assert_eq!(outside(LATER_FRAGMENT, &transit, &alone), Decision::NotOurs);
    assert_eq!(outside(LONG_CHAIN, &transit, &alone), Decision::NotOurs);
    assert_eq!(outside(CUT_SHORT, &transit, &alone), dropped(Reason::Undecidable));
    let guarded = Policy { forwarded: true, ..alone };
    assert_eq!(outside(LATER_FRAGMENT, &transit, &guarded), dropped(Reason::Undecidable));
}

#[test]
fn a_spoofed_source_is_not_left_to_the_backstop() {
    // At the socket an own address or a container's is local, and nothing says by which way it came.
    let host = host();
    for (source, destination) in [
        (OWN4, OWN4),
        ("172.17.0.2", OWN4),
        ("127.0.0.1", OWN4),
        ("192.0.2.7", "127.0.0.1"),
        (OWN6, OWN6),
        ("fd00:17::2", OWN6),
        ("::ffff:192.0.2.7", OWN6),
        ("2001:db8:a::7", "::1"),
    ] {
        let spoofed = without_ports(packet(source, destination));
        for outcome in [LATER_FRAGMENT, LONG_CHAIN] {
            let decision = outside(outcome, &spoofed, &host.policy());
            assert_eq!(decision, dropped(Reason::Spoofed), "{source} to {destination}");
        }
    }
    // Nothing is known of its addresses.
    let unread = outside(CUT_SHORT, &Packet::EMPTY, &host.policy());
    assert_eq!(unread, Decision::Judged(Verdict::Pass, Reason::Undecidable));
}

#[test]
fn a_spoofed_fragment_of_a_protocol_that_is_not_guarded_is_not_ours() {
    let host = host();
    let dhcp = Packet { protocol: Protocol::Udp, ..without_ports(packet("0.0.0.0", OWN4)) };
    assert_eq!(outside(LATER_FRAGMENT, &dhcp, &host.policy()), Decision::NotOurs);
}

// At the socket.

#[test]
fn a_socket_that_is_not_guarded_is_not_ours() {
    let host = host();
    let stranger = Packet { port: 443, ..packet("203.0.113.9", OWN4) };
    assert_eq!(socket(&stranger, 443, &host.policy()), Decision::NotOurs);
    let reply = Packet { source_port: 11_434, port: 40_000, ..packet("203.0.113.9", OWN4) };
    assert_eq!(socket(&reply, 40_000, &host.policy()), Decision::NotOurs);
}

#[test]
fn a_guarded_socket_lets_in_allowed_and_local_sources() {
    let mut host = host();
    host.rules.push(rule(Action::Deny, "172.17.0.66/32"));
    for (source, decision) in [
        ("192.0.2.7", ALLOWED),
        ("172.17.0.2", LOCAL),
        ("172.17.0.66", dropped(Reason::Denied)),
        ("203.0.113.9", dropped(Reason::NoRule)),
    ] {
        let packet = packet(source, OWN4);
        assert_eq!(socket(&packet, 11_434, &host.policy()), decision, "{source}");
    }
}

#[test]
fn what_claims_to_go_from_an_own_address_to_an_own_address_is_spoofed_at_the_socket_too() {
    let mut host = host();
    host.rules.push(rule(Action::Allow, "198.51.100.0/24"));
    let own = packet(OWN4, OWN4);
    assert_eq!(socket(&own, 11_434, &host.policy()), dropped(Reason::Spoofed));
    assert_eq!(socket(&own, 9_999, &host.policy()), dropped(Reason::Spoofed));
    let elsewhere = Packet { port: 443, ..own };
    assert_eq!(socket(&elsewhere, 443, &host.policy()), Decision::NotOurs);
    // To a container it goes over a bridge.
    assert_eq!(socket(&packet(OWN4, "172.17.0.2"), 11_434, &host.policy()), ALLOWED);
    // Where there may be another way than loopback, no address is known as such.
    host.own.clear();
    assert_eq!(socket(&own, 11_434, &host.policy()), ALLOWED);
}

#[test]
fn a_packet_diverted_to_or_from_a_guarded_port_is_for_it() {
    // TPROXY and `sk_lookup`: the socket's own port is not the packet's destination port.
    let host = host();
    let stranger = packet("203.0.113.9", OWN4);
    assert_eq!(socket(&stranger, 9_999, &host.policy()), dropped(Reason::NoRule));
    let to_other_port = Packet { port: 9_999, ..stranger };
    assert_eq!(socket(&to_other_port, 11_434, &host.policy()), dropped(Reason::NoRule));
    // A destination that is not this host's changes nothing here.
    let diverted = packet("203.0.113.9", "203.0.113.200");
    assert_eq!(socket(&diverted, 11_434, &host.policy()), dropped(Reason::NoRule));
    let allowed = packet("192.0.2.7", OWN4);
    assert_eq!(socket(&allowed, 9_999, &host.policy()), ALLOWED);
}

#[test]
fn where_both_ports_are_guarded_both_must_let_it_in() {
    let (net, one) = (prefix("192.0.2.0/24"), prefix("192.0.2.66/32"));
    let typed = |action, prefix, ports| Rule {
        action,
        kind: Kind::Typed,
        prefix,
        ports,
        via: None,
        until_ns: NO_END,
    };
    let host = Host {
        rules: [
            typed(Action::Allow, net, &[TCP_11434]),
            typed(Action::Allow, one, &[TCP_11434]),
            typed(Action::Deny, one, &[TCP_8080]),
            typed(Action::Allow, prefix("192.0.2.7/32"), &[]),
            typed(Action::Allow, prefix("172.17.0.2/32"), &[TCP_8080]),
        ]
        .into(),
        ..host()
    };
    for (source, packet_port, socket_port, decision) in [
        // Both allow.
        ("192.0.2.7", 11_434, 8_080, ALLOWED),
        // Only one allows; of the other there is no rule.
        ("192.0.2.9", 11_434, 8_080, dropped(Reason::NoRule)),
        ("192.0.2.9", 8_080, 11_434, dropped(Reason::NoRule)),
        // One allows, the other denies.
        ("192.0.2.66", 11_434, 8_080, dropped(Reason::Denied)),
        ("192.0.2.66", 8_080, 11_434, dropped(Reason::Denied)),
        // One port, seen twice.
        ("192.0.2.9", 11_434, 11_434, ALLOWED),
        // Local at one, allowed at the other: the packet's own port says why.
        ("172.17.0.2", 11_434, 8_080, LOCAL),
        ("172.17.0.2", 8_080, 11_434, ALLOWED),
    ] {
        let packet = Packet { port: packet_port, ..packet(source, OWN4) };
        let seen = socket(&packet, socket_port, &host.policy());
        assert_eq!(seen, decision, "{source} to {packet_port} at a socket on {socket_port}");
    }
}

#[test]
fn where_the_packets_ports_are_not_known_the_sockets_decides_alone() {
    let host = host();
    for (source, decision) in [("192.0.2.7", ALLOWED), ("203.0.113.9", dropped(Reason::NoRule))] {
        let fragment = without_ports(packet(source, OWN4));
        assert_eq!(socket(&fragment, 11_434, &host.policy()), decision);
        assert_eq!(socket(&fragment, 443, &host.policy()), Decision::NotOurs);
    }
}

#[test]
fn a_socket_of_the_other_protocol_is_not_ours() {
    let host = host();
    let udp = Packet { protocol: Protocol::Udp, ..packet("203.0.113.9", OWN4) };
    assert_eq!(socket(&udp, 11_434, &host.policy()), Decision::NotOurs);
    let host = Host { ports: [UDP_53].into(), ..host };
    let query = Packet { port: 53, ..udp };
    assert_eq!(socket(&query, 53, &host.policy()), dropped(Reason::NoRule));
}

// Observe.

#[test]
fn observe_passes_what_would_be_dropped_and_keeps_the_reason() {
    let mut host = host();
    host.rules.push(rule(Action::Deny, "192.0.2.66/32"));
    let policy = Policy { observing: true, backstop: false, ..host.policy() };
    for (outcome, source, reason) in [
        (Outcome::Whole, "203.0.113.9", Reason::NoRule),
        (Outcome::Whole, "192.0.2.66", Reason::Denied),
        (Outcome::Whole, OWN4, Reason::Spoofed),
        (Outcome::Broken, "192.0.2.7", Reason::Malformed),
        (LATER_FRAGMENT, "192.0.2.7", Reason::Undecidable),
        (Outcome::Malformed(Known::Protocol), "192.0.2.7", Reason::Malformed),
    ] {
        let seen = outside(outcome, &packet(source, OWN4), &policy);
        assert_eq!(seen, Decision::Judged(Verdict::WouldDrop, reason), "{source}");
    }
    let stranger = packet("203.0.113.9", OWN4);
    let would_drop = Decision::Judged(Verdict::WouldDrop, Reason::NoRule);
    assert_eq!(socket(&stranger, 11_434, &policy), would_drop);
    assert_eq!(outside(Outcome::Whole, &packet("192.0.2.7", OWN4), &policy), ALLOWED);
    assert_eq!(socket(&packet("172.17.0.2", OWN4), 11_434, &policy), LOCAL);
}

// Properties, over few addresses and ports, so that they meet.

fn any_address() -> impl Strategy<Value = (Family, AddressBytes)> {
    let named = select(&[
        "192.0.2.7",
        "192.0.2.66",
        "203.0.113.9",
        OWN4,
        "172.17.0.2",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "2001:db8:a::7",
        "2001:db8:b::7",
        OWN6,
        "fd00:17::2",
        "fe80::1",
        "ff02::1",
        "::1",
        "::",
        "::ffff:192.0.2.7",
    ])
    .prop_map(address);
    prop_oneof![
        4 => named,
        1 => any::<[u8; 4]>().prop_map(|octets| (Family::V4, padded(octets))),
        1 => any::<[u8; 16]>().prop_map(|octets| (Family::V6, octets)),
    ]
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let addresses = (any_address(), any_address())
        .prop_filter("one family", |(source, destination)| source.0 == destination.0);
    let port = select(&[8_080, 11_434, 53, 443]);
    (addresses, select(&[Protocol::Tcp, Protocol::Udp]), port).prop_map(
        |(((family, source), (_, destination)), protocol, port)| Packet {
            source,
            destination,
            family,
            protocol,
            source_port: 51_234,
            port,
            tcp_flags: 0,
        },
    )
}

const PORT_LISTS: &[&[Port]] = &[&[], &[TCP_11434], &[TCP_8080], &[UDP_53, TCP_11434]];

const VIAS: &[Option<&[u32]>] =
    &[None, None, Some(&[]), Some(&[ETH0]), Some(&[ETH1]), Some(&[ETH0, ETH1])];

fn any_rule() -> impl Strategy<Value = Rule<'static>> {
    let ports = select(PORT_LISTS);
    (
        select(&[Action::Allow, Action::Deny]),
        select(&[Kind::Typed, Kind::Set]),
        any_address(),
        0..=128_u8,
        ports,
        select(VIAS),
        select(&[0, 10, 20, NO_END]),
    )
        .prop_map(|(action, kind, (family, address), bits, ports, via, until_ns)| Rule {
            action,
            kind,
            prefix: Prefix { family, address, bits: bits.min(family.bits()) },
            ports,
            via,
            until_ns,
        })
}

/// A host, a time, and observing, forwarded and backstop.
fn any_host() -> impl Strategy<Value = (Host, u64, [bool; 3])> {
    let ports = proptest::sample::subsequence(&[TCP_8080, TCP_11434, UDP_53][..], 0..=3);
    let rules = proptest::collection::vec(any_rule(), 0..6);
    (ports, rules, 0..30_u64, any::<[bool; 3]>()).prop_map(|(ports, rules, now_ns, switches)| {
        (Host { ports, rules, ..host() }, now_ns, switches)
    })
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let known = select(&[Known::Nothing, Known::Addresses, Known::Protocol]);
    prop_oneof![
        1 => Just(Outcome::NotOurs),
        6 => Just(Outcome::Whole),
        1 => Just(Outcome::Broken),
        2 => known.clone().prop_map(Outcome::Undecidable),
        1 => known.clone().prop_map(Outcome::LaterFragment),
        1 => known.prop_map(Outcome::Malformed),
    ]
}

impl Host {
    fn policy_at(&self, now_ns: u64, [observing, forwarded, backstop]: [bool; 3]) -> Policy<'_> {
        Policy { now_ns, observing, forwarded, backstop, ..self.policy() }
    }

    fn guards(&self, protocol: Protocol, number: u16) -> bool {
        self.ports.contains(&Port { protocol, number })
    }

    fn ruling(&self, packet: &Packet, port: u16, place: Place, now_ns: u64) -> Ruling {
        model::ruling(
            &self.rules,
            &self.local,
            packet.family,
            &packet.source,
            packet.protocol,
            port,
            place,
            now_ns,
        )
    }

    fn is_local(&self, family: Family, address: &AddressBytes) -> bool {
        self.local.iter().any(|prefix| prefix.covers(family, address))
    }
}

/// What hooks have let in, and how often a source was looked up.
#[derive(Debug, Default)]
struct Memory {
    passed: RefCell<Vec<Passed>>,
    lookups: Cell<usize>,
}

/// A policy that remembers, as the kernel programs' do.
struct Remembering<'a> {
    about: About<'a>,
    hook: Hook,
    memory: &'a Memory,
}

impl Remembering<'_> {
    fn flow(&self, packet: &Packet, socket_port: u16) -> Passed {
        Passed::of(packet, self.hook, 2, socket_port, 7)
    }
}

impl Rules for Remembering<'_> {
    fn guarded(&self, protocol: Protocol, port: u16) -> Option<PortIndex> {
        self.about.guarded(protocol, port)
    }

    fn guards(&self, protocol: Protocol) -> bool {
        self.about.guards(protocol)
    }

    fn lookup(&self, family: Family, address: &AddressBytes) -> SourceValue {
        self.memory.lookups.set(self.memory.lookups.get() + 1);
        self.about.lookup(family, address)
    }

    fn ruling(&self, packet: &Packet, value: SourceValue, port: PortIndex) -> Ruling {
        self.about.ruling(packet, value, port)
    }

    fn remembered(&self, packet: &Packet, socket_port: u16) -> Option<Reason> {
        let flow = self.flow(packet, socket_port);
        self.memory.passed.borrow().iter().find(|held| held.is_same(&flow)).map(Passed::reason)
    }

    fn remember(&self, packet: &Packet, socket_port: u16, reason: Reason) {
        self.memory.passed.borrow_mut().push(self.flow(packet, socket_port).because(reason));
    }

    fn observing(&self) -> bool {
        self.about.observing()
    }

    fn guards_forwarded(&self) -> bool {
        self.about.guards_forwarded()
    }

    fn has_backstop(&self) -> bool {
        self.about.has_backstop()
    }
}

#[test]
fn only_what_is_let_in_and_opens_no_connection_is_remembered() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let (host, memory) = (host(), Memory::default());
    let policy = host.policy();
    let lookups = |source: &str, tcp_flags: u8, outcome: Outcome| {
        let before = memory.lookups.get();
        let packet = Packet { tcp_flags, ..packet(source, OWN4) };
        let about = policy.about(&packet);
        from_outside(outcome, &packet, &Remembering { about, hook: Hook::Tcx, memory: &memory });
        memory.lookups.get() - before
    };
    for _ in 0..2 {
        assert!(lookups("192.0.2.7", SYN, Outcome::Whole) > 0);
    }
    assert!(lookups("192.0.2.7", ACK, Outcome::Whole) > 0);
    assert_eq!(lookups("192.0.2.7", ACK, Outcome::Whole), 0);
    assert!(lookups("192.0.2.7", SYN, Outcome::Whole) > 0);
    assert!(lookups("192.0.2.7", ACK, Outcome::Broken) > 0);
    for _ in 0..2 {
        assert!(lookups("203.0.113.9", ACK, Outcome::Whole) > 0);
    }
}

/// Where [`Host::policy`] judges.
const ON_ETH0: Place = Place::Interface(ETH0);

fn said(ruling: Ruling, observing: bool) -> Decision {
    let stop = if observing { Verdict::WouldDrop } else { Verdict::Drop };
    match ruling {
        Ruling::Allow => Decision::Judged(Verdict::Pass, Reason::Allowed),
        Ruling::Local => Decision::Judged(Verdict::Pass, Reason::Local),
        Ruling::Deny => Decision::Judged(stop, Reason::Denied),
        Ruling::NoRule | Ruling::Vouched => Decision::Judged(stop, Reason::NoRule),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    /// The verdict at a socket is what the rules say, unless both addresses are this host's own.
    #[test]
    fn a_socket_does_what_the_rules_say(
        (host, now_ns, switches) in any_host(),
        packet in any_packet(),
        socket_port in select(&[8_080, 11_434, 53, 443]),
        vouched: bool,
    ) {
        let place = Place::Socket { vouched };
        let judged: Vec<Ruling> = HashSet::from([socket_port, packet.port])
            .into_iter()
            .filter(|port| host.guards(packet.protocol, *port))
            .map(|port| host.ruling(&packet, port, place, now_ns))
            .collect();
        let policy = host.policy_at(now_ns, switches);
        let decision = socket_after_nic(&packet, socket_port, &policy, vouched);
        let is_own = |address| host.own.iter().any(|own| own.covers(packet.family, address));
        match judged[..] {
            [] => prop_assert_eq!(decision, Decision::NotOurs),
            _ if is_own(&packet.source) && is_own(&packet.destination) => {
                prop_assert_eq!(decision, stopped(Reason::Spoofed, &policy.about(&packet)));
            }
            [one] => prop_assert_eq!(decision, said(one, switches[0])),
            _ => {
                let lets_in = |ruling: &Ruling| matches!(ruling, Ruling::Allow | Ruling::Local);
                let passes = matches!(decision, Decision::Judged(Verdict::Pass, _));
                prop_assert_eq!(passes, judged.iter().all(lets_in));
                prop_assert!(judged.iter().any(|ruling| said(*ruling, switches[0]) == decision));
            }
        }
    }

    /// Whoever remembers whom it has let in says what it would say without.
    #[test]
    fn memory_changes_no_decision(
        (host, now_ns, switches) in any_host(),
        packets in proptest::collection::vec((any_packet(), any_outcome(), select(&[0, 2, 16])), 1..12),
        socket_port in select(&[8_080, 11_434, 53, 443]),
    ) {
        let policy = host.policy_at(now_ns, switches);
        let at_a_socket = Policy { place: Place::Socket { vouched: false }, ..policy };
        let memory = Memory::default();
        for (packet, outcome, tcp_flags) in packets.iter().chain(&packets) {
            let packet = Packet { tcp_flags: *tcp_flags, ..*packet };
            let with = |policy, hook| Remembering { about: policy, hook, memory: &memory };
            prop_assert_eq!(
                outside_of(*outcome, &packet, &with(policy.about(&packet), Hook::Tcx)),
                outside(*outcome, &packet, &policy)
            );
            prop_assert_eq!(
                edge_of(*outcome, &packet, &with(policy.about(&packet), Hook::Edge)),
                edge(*outcome, &packet, &policy)
            );
            prop_assert_eq!(
                at_socket(&packet, socket_port, &with(at_a_socket.about(&packet), Hook::Cgroup)),
                socket(&packet, socket_port, &policy)
            );
        }
    }

    /// What passes at the NIC by a rule is from outside, for this host, and allowed.
    #[test]
    fn nothing_passes_from_outside_that_is_not_allowed(
        (host, now_ns, switches) in any_host(),
        packet in any_packet(),
        outcome in any_outcome(),
    ) {
        let [observing, forwarded, backstop] = switches;
        let stop = if observing { Verdict::WouldDrop } else { Verdict::Drop };
        let is_guarded = host.guards(packet.protocol, packet.port);
        let is_local_source = host.is_local(packet.family, &packet.source);
        match outside(outcome, &packet, &host.policy_at(now_ns, switches)) {
            Decision::NotOurs => {
                let is_for_an_own_address = host.is_local(packet.family, &packet.destination);
                prop_assert!(!(outcome == Outcome::Whole && is_guarded && is_for_an_own_address));
            }
            Decision::Judged(verdict, Reason::Allowed) => {
                prop_assert_eq!((verdict, outcome), (Verdict::Pass, Outcome::Whole));
                prop_assert!(is_guarded && !is_local_source);
                prop_assert_eq!(host.ruling(&packet, packet.port, ON_ETH0, now_ns), Ruling::Allow);
            }
            Decision::Judged(verdict, reason @ (Reason::NoRule | Reason::Denied)) => {
                prop_assert_eq!((verdict, outcome), (stop, Outcome::Whole));
                prop_assert!(is_guarded && !is_local_source);
                let ruling = host.ruling(&packet, packet.port, ON_ETH0, now_ns);
                prop_assert_eq!(said(ruling, observing), Decision::Judged(stop, reason));
            }
            Decision::Judged(verdict, Reason::Undecidable) => {
                prop_assert!(matches!(outcome, Outcome::Undecidable(_) | Outcome::LaterFragment(_)));
                prop_assert_eq!(verdict, if backstop { Verdict::Pass } else { stop });
            }
            Decision::Judged(verdict, Reason::Malformed) => match outcome {
                Outcome::Broken => prop_assert_eq!(verdict, stop),
                Outcome::Malformed(_) => {
                    prop_assert_eq!(verdict, if backstop { Verdict::Pass } else { stop });
                }
                _ => prop_assert!(false, "{outcome:?}"),
            },
            Decision::Judged(verdict, Reason::Spoofed) => prop_assert_eq!(verdict, stop),
            Decision::Judged(_, Reason::Local | Reason::Laundered) => prop_assert!(false),
        }
        // That forwarded packets are judged too never lets one in.
        if forwarded {
            let less = host.policy_at(now_ns, [observing, false, backstop]);
            let decision = outside(outcome, &packet, &less);
            let more = outside(outcome, &packet, &host.policy_at(now_ns, switches));
            prop_assert!(decision == more || decision == Decision::NotOurs);
        }
    }

    /// What leaves for a guest is what the rules let in, from sources that are no one of this host; a backstop
    /// changes nothing.
    #[test]
    fn nothing_leaves_for_a_guest_that_is_not_allowed(
        (host, now_ns, switches) in any_host(),
        packet in any_packet(),
        outcome in any_outcome(),
    ) {
        let stop = if switches[0] { Verdict::WouldDrop } else { Verdict::Drop };
        let is_guarded = host.guards(packet.protocol, packet.port);
        let guards_any = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .any(|protocol| host.policy().ports.iter().any(|port| port.protocol == protocol));
        let is_local_source = host.is_local(packet.family, &packet.source);
        match edge(outcome, &packet, &host.policy_at(now_ns, switches)) {
            Decision::NotOurs => match outcome {
                Outcome::NotOurs | Outcome::LaterFragment(_) => {}
                Outcome::Whole | Outcome::Broken => prop_assert!(!is_guarded),
                Outcome::Undecidable(Known::Protocol) | Outcome::Malformed(Known::Protocol) => {
                    prop_assert!(host.ports.iter().all(|port| port.protocol != packet.protocol));
                }
                Outcome::Undecidable(_) | Outcome::Malformed(_) => prop_assert!(!guards_any),
            },
            Decision::Judged(verdict, Reason::Laundered) => {
                prop_assert!(is_guarded && is_local_source);
                prop_assert_eq!(verdict, stop);
            }
            Decision::Judged(verdict, reason) if reason.is_by_rule() => {
                prop_assert_eq!(outcome, Outcome::Whole);
                prop_assert!(is_guarded && !is_local_source);
                let ruling = host.ruling(&packet, packet.port, ON_ETH0, now_ns);
                prop_assert_eq!(said(ruling, switches[0]), Decision::Judged(verdict, reason));
            }
            Decision::Judged(verdict, reason) => {
                prop_assert_eq!(verdict, stop);
                match (reason, outcome) {
                    (Reason::Undecidable, Outcome::Undecidable(_))
                    | (Reason::Malformed, Outcome::Malformed(_) | Outcome::Broken)
                    | (Reason::Spoofed, Outcome::Whole | Outcome::Broken) => {}
                    _ => prop_assert!(false, "{reason:?} for {outcome:?}"),
                }
            }
        }
    }

    /// Observe changes the verdict `drop` to `would-drop`, and nothing else.
    #[test]
    fn observe_changes_one_word(
        (host, now_ns, [_, forwarded, backstop]) in any_host(),
        packet in any_packet(),
        outcome in any_outcome(),
        socket_port in select(&[8_080, 11_434, 53, 443]),
    ) {
        let enforcing = host.policy_at(now_ns, [false, forwarded, backstop]);
        let observing = host.policy_at(now_ns, [true, forwarded, backstop]);
        let softened = |decision| match decision {
            Decision::Judged(Verdict::Drop, reason) => Decision::Judged(Verdict::WouldDrop, reason),
            other => other,
        };
        let at_nic = outside(outcome, &packet, &observing);
        prop_assert_eq!(at_nic, softened(outside(outcome, &packet, &enforcing)));
        let at_edge = edge(outcome, &packet, &observing);
        prop_assert_eq!(at_edge, softened(edge(outcome, &packet, &enforcing)));
        let at_socket = socket(&packet, socket_port, &observing);
        prop_assert_eq!(at_socket, softened(socket(&packet, socket_port, &enforcing)));
    }
}
