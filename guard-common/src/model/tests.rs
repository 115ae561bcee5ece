use super::*;
use crate::abi::NO_END;

const OLLAMA: Port = Port { protocol: Protocol::Tcp, number: 11434 };
const OTHER: Port = Port { protocol: Protocol::Tcp, number: 8080 };
const NOW_NS: u64 = 1_000;
const ETH0: u32 = 2;
const ETH1: u32 = 3;

fn v4(octets: [u8; 4]) -> AddressBytes {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&octets);
    bytes
}

fn prefix4(octets: [u8; 4], bits: u8) -> Prefix {
    Prefix { family: Family::V4, address: v4(octets), bits }
}

fn rule(action: Action, kind: Kind, prefix: Prefix) -> Rule<'static> {
    Rule { action, kind, prefix, ports: &[], via: None, until_ns: NO_END }
}

fn allow(prefix: Prefix) -> Rule<'static> {
    rule(Action::Allow, Kind::Typed, prefix)
}

fn deny(prefix: Prefix) -> Rule<'static> {
    rule(Action::Deny, Kind::Typed, prefix)
}

fn set_allow(prefix: Prefix) -> Rule<'static> {
    rule(Action::Allow, Kind::Set, prefix)
}

fn set_deny(prefix: Prefix) -> Rule<'static> {
    rule(Action::Deny, Kind::Set, prefix)
}

/// The ruling for 192.0.2.7 at TCP 11434.
fn of(rules: &[Rule<'_>], local: &[Prefix]) -> Ruling {
    at(rules, local, OLLAMA, NOW_NS)
}

fn at(rules: &[Rule<'_>], local: &[Prefix], port: Port, now_ns: u64) -> Ruling {
    at_place(rules, local, port, Place::Interface(ETH0), now_ns)
}

fn at_place(rules: &[Rule<'_>], local: &[Prefix], port: Port, place: Place, now_ns: u64) -> Ruling {
    let source = v4([192, 0, 2, 7]);
    ruling(rules, local, Family::V4, &source, port.protocol, port.number, place, now_ns)
}

fn host() -> Prefix {
    prefix4([192, 0, 2, 7], 32)
}

fn net24() -> Prefix {
    prefix4([192, 0, 2, 0], 24)
}

fn net16() -> Prefix {
    prefix4([192, 0, 0, 0], 16)
}

#[test]
fn without_rules_only_local_sources_are_known() {
    assert_eq!(of(&[], &[]), Ruling::NoRule);
    assert_eq!(of(&[], &[net24()]), Ruling::Local);
    assert_eq!(of(&[], &[prefix4([198, 51, 100, 0], 24)]), Ruling::NoRule);
}

#[test]
fn a_prefix_covers_what_shares_its_bits() {
    let all = prefix4([0; 4], 0);
    assert!(all.covers(Family::V4, &v4([255; 4])));
    assert!(net24().covers(Family::V4, &v4([192, 0, 2, 255])));
    assert!(!net24().covers(Family::V4, &v4([192, 0, 3, 0])));
    assert!(host().covers(Family::V4, &v4([192, 0, 2, 7])));
    assert!(!host().covers(Family::V4, &v4([192, 0, 2, 6])));
    let odd = prefix4([10, 0b1010_0000, 0, 0], 11);
    assert!(odd.covers(Family::V4, &v4([10, 0b1011_1111, 9, 9])));
    assert!(!odd.covers(Family::V4, &v4([10, 0b1000_0000, 0, 0])));
    let v6 = Prefix { family: Family::V6, address: [0xfe; 16], bits: 128 };
    assert!(v6.covers(Family::V6, &[0xfe; 16]));
    let mut last_bit_differs = [0xfe; 16];
    last_bit_differs[15] ^= 1;
    assert!(!v6.covers(Family::V6, &last_bit_differs));
}

#[test]
fn host_bits_of_a_prefix_are_ignored() {
    assert!(prefix4([192, 0, 2, 99], 24).covers(Family::V4, &v4([192, 0, 2, 7])));
}

#[test]
fn a_prefix_of_the_other_family_never_matches() {
    // The same 16 bytes, read in the other family.
    let as_v6 = Prefix { family: Family::V6, ..net24() };
    assert_eq!(of(&[allow(as_v6)], &[as_v6]), Ruling::NoRule);
}

#[test]
fn the_most_specific_typed_prefix_decides() {
    assert_eq!(of(&[deny(net16()), allow(net24())], &[]), Ruling::Allow);
    assert_eq!(of(&[allow(net24()), deny(net16())], &[]), Ruling::Allow);
    assert_eq!(of(&[allow(net16()), deny(net24())], &[]), Ruling::Deny);
    assert_eq!(of(&[allow(net16()), deny(net24()), allow(host())], &[]), Ruling::Allow);
    assert_eq!(of(&[deny(prefix4([0; 4], 0)), allow(net16())], &[]), Ruling::Allow);
    assert_eq!(of(&[allow(prefix4([0; 4], 0))], &[]), Ruling::Allow);
}

#[test]
fn deny_wins_between_typed_rules_of_one_prefix() {
    assert_eq!(of(&[allow(net24()), deny(net24())], &[]), Ruling::Deny);
    assert_eq!(of(&[deny(net24()), allow(net24())], &[]), Ruling::Deny);
}

#[test]
fn a_rule_holds_until_its_end_and_not_at_it() {
    let ending = Rule { until_ns: 2_000, ..allow(net24()) };
    assert_eq!(at(&[ending], &[], OLLAMA, 1_999), Ruling::Allow);
    assert_eq!(at(&[ending], &[], OLLAMA, 2_000), Ruling::NoRule);
    assert_eq!(at(&[allow(net24())], &[], OLLAMA, NO_END - 1), Ruling::Allow);
}

#[test]
fn an_end_uncovers_the_rule_beneath() {
    let allow_host = Rule { until_ns: 2_000, ..allow(host()) };
    assert_eq!(at(&[allow_host, deny(net24())], &[], OLLAMA, 1_999), Ruling::Allow);
    assert_eq!(at(&[allow_host, deny(net24())], &[], OLLAMA, 2_000), Ruling::Deny);

    let deny_host = Rule { until_ns: 2_000, ..deny(host()) };
    assert_eq!(at(&[deny_host, allow(net24())], &[], OLLAMA, 1_999), Ruling::Deny);
    assert_eq!(at(&[deny_host, allow(net24())], &[], OLLAMA, 2_000), Ruling::Allow);

    // Between rules of one prefix, with a set and local sources beneath.
    let deny_net = Rule { until_ns: 2_000, ..deny(net24()) };
    assert_eq!(at(&[deny_net, allow(net24())], &[], OLLAMA, 2_000), Ruling::Allow);
    assert_eq!(at(&[deny_net, set_allow(net16())], &[], OLLAMA, 2_000), Ruling::Allow);
    assert_eq!(at(&[deny_net], &[net24()], OLLAMA, 2_000), Ruling::Local);
    let set_ending = Rule { until_ns: 2_000, ..set_deny(host()) };
    assert_eq!(at(&[set_ending, set_allow(net16())], &[], OLLAMA, 1_999), Ruling::Deny);
    assert_eq!(at(&[set_ending, set_allow(net16())], &[], OLLAMA, 2_000), Ruling::Allow);
}

#[test]
fn a_rule_for_other_ports_is_as_if_it_were_not_there() {
    let deny_other = Rule { ports: &[OTHER], ..deny(host()) };
    assert_eq!(at(&[deny_other, allow(net24())], &[], OLLAMA, NOW_NS), Ruling::Allow);
    assert_eq!(at(&[deny_other, allow(net24())], &[], OTHER, NOW_NS), Ruling::Deny);
    assert_eq!(at(&[deny_other], &[net24()], OLLAMA, NOW_NS), Ruling::Local);
    let allow_both = Rule { ports: &[OTHER, OLLAMA], ..allow(host()) };
    assert_eq!(at(&[allow_both], &[], OLLAMA, NOW_NS), Ruling::Allow);
}

#[test]
fn a_port_of_the_other_protocol_is_another_port() {
    let udp = Port { protocol: Protocol::Udp, ..OLLAMA };
    let allow_udp =
        Rule { ports: &[Port { protocol: Protocol::Udp, number: 11434 }], ..allow(host()) };
    assert_eq!(at(&[allow_udp], &[], OLLAMA, NOW_NS), Ruling::NoRule);
    assert_eq!(at(&[allow_udp], &[], udp, NOW_NS), Ruling::Allow);
}

#[test]
fn a_typed_rule_beats_every_set() {
    assert_eq!(of(&[allow(net16()), set_deny(host())], &[]), Ruling::Allow);
    assert_eq!(of(&[deny(net16()), set_allow(host())], &[]), Ruling::Deny);
}

#[test]
fn among_sets_deny_wins_whatever_the_lengths() {
    assert_eq!(of(&[set_deny(net16()), set_allow(host())], &[]), Ruling::Deny);
    assert_eq!(of(&[set_allow(host()), set_deny(net16())], &[]), Ruling::Deny);
    assert_eq!(of(&[set_allow(net16()), set_deny(host())], &[]), Ruling::Deny);
    assert_eq!(of(&[set_allow(host())], &[]), Ruling::Allow);
}

#[test]
fn local_sources_lie_beneath_every_rule() {
    assert_eq!(of(&[deny(net16())], &[host()]), Ruling::Deny);
    assert_eq!(of(&[set_deny(net16())], &[host()]), Ruling::Deny);
    assert_eq!(of(&[allow(net16())], &[host()]), Ruling::Allow);
    assert_eq!(of(&[set_allow(net16())], &[host()]), Ruling::Allow);
}

#[test]
fn a_rule_for_another_interface_is_as_if_it_were_not_there() {
    let by = |rules: &[Rule<'_>], ifindex| {
        at_place(rules, &[], OLLAMA, Place::Interface(ifindex), NOW_NS)
    };
    let via_eth1 = |rule| Rule { via: Some(&[ETH1]), ..rule };
    let rules = [via_eth1(allow(host()))];
    assert_eq!((by(&rules, ETH0), by(&rules, ETH1)), (Ruling::NoRule, Ruling::Allow));
    // The next less specific one decides there.
    let rules = [via_eth1(deny(host())), allow(net24())];
    assert_eq!((by(&rules, ETH0), by(&rules, ETH1)), (Ruling::Allow, Ruling::Deny));
    let rules = [Rule { via: Some(&[]), ..deny(host()) }, allow(net24())];
    assert_eq!((by(&rules, ETH0), by(&rules, ETH1)), (Ruling::Allow, Ruling::Allow));
}

#[test]
fn the_socket_needs_a_voucher_only_where_interfaces_differ() {
    let at_socket = |rules: &[Rule<'_>], local: &[Prefix], vouched| {
        at_place(rules, local, OLLAMA, Place::Socket { vouched }, NOW_NS)
    };
    for (action, otherwise) in [(Action::Allow, Action::Deny), (Action::Deny, Action::Allow)] {
        let via_eth1 = Rule { action, via: Some(&[ETH1]), ..allow(host()) };
        let beneath = Rule { action: otherwise, ..allow(net24()) };
        assert_eq!(at_socket(&[via_eth1, beneath], &[], true), Ruling::Allow);
        assert_eq!(at_socket(&[via_eth1, beneath], &[], false), Ruling::NoRule);
        // Both say the same, so the interface does not matter.
        let same = Rule { action, ..beneath };
        for vouched in [false, true] {
            let expected = if action == Action::Allow { Ruling::Allow } else { Ruling::Deny };
            assert_eq!(at_socket(&[via_eth1, same], &[], vouched), expected);
        }
    }
    let allow_via = Rule { via: Some(&[ETH1]), ..allow(host()) };
    for vouched in [false, true] {
        assert_eq!(at_socket(&[allow_via], &[net24()], vouched), Ruling::Local);
    }
}

#[test]
fn names_allow_beneath_typed_rules_and_above_sets() {
    let name = rule(Action::Allow, Kind::Name, prefix4([0; 4], 0));
    assert_eq!(of(&[name, deny(net16())], &[]), Ruling::Deny);
    assert_eq!(of(&[name, set_deny(host())], &[]), Ruling::Allow);
    assert_eq!(of(&[name], &[net24()]), Ruling::Allow);
}

#[test]
fn a_policy_answers_for_the_two_addresses_of_its_packet() {
    let packet =
        Packet { source: v4([192, 0, 2, 7]), destination: v4([198, 51, 100, 4]), ..Packet::EMPTY };
    let policy = Policy {
        ports: &[OTHER, OLLAMA],
        rules: &[allow(net24()), deny(prefix4([198, 51, 100, 4], 32))],
        local: &[prefix4([198, 51, 100, 4], 32)],
        own: &[],
        place: Place::Interface(ETH0),
        now_ns: NOW_NS,
        observing: false,
        forwarded: false,
        backstop: false,
    };
    let about = policy.about(&packet);
    assert_eq!(about.guarded(OLLAMA.protocol, OLLAMA.number), Some(1));
    assert_eq!(about.guarded(Protocol::Udp, OLLAMA.number), None);
    assert!(about.guards(Protocol::Tcp) && !about.guards(Protocol::Udp));

    let source = about.lookup(Family::V4, &packet.source);
    assert!(!source.is_local());
    assert_eq!(about.ruling(&packet, source, 1), Ruling::Allow);
    let destination = about.lookup(Family::V4, &packet.destination);
    assert!(destination.is_local());
    assert_eq!(about.ruling(&packet, destination, 1), Ruling::Deny);
    let stranger = about.lookup(Family::V4, &v4([192, 0, 2, 8]));
    assert_eq!(stranger, SourceValue::default());
    assert_eq!(about.ruling(&packet, stranger, 1), Ruling::NoRule);
    assert_eq!(about.ruling(&packet, source, 2), Ruling::NoRule);
}
