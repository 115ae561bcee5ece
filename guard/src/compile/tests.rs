use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};

use guard_common::packet::Protocol;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tcp(number: u16) -> GuardedPort {
    GuardedPort { protocol: Protocol::Tcp, number }
}

fn rule(id: u64, action: Action, kind: RuleKind, prefixes: &[&str], until_ns: u64) -> InputRule {
    let prefixes = prefixes.iter().map(|prefix| net(prefix)).collect();
    InputRule {
        id: RuleId::command(id),
        action,
        kind,
        prefixes,
        ports: vec![],
        via: None,
        until_ns,
    }
}

fn typed(id: u64, action: Action, prefix: &str, until_ns: u64) -> InputRule {
    rule(id, action, RuleKind::Typed, &[prefix], until_ns)
}

/// Ranges of IPv4 and of IPv6 addresses.
fn ranges(tables: &Tables) -> (usize, usize) {
    (tables.sources.v4.as_slice().len(), tables.sources.v6.as_slice().len())
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Interface(u32),
    Socket,
}

/// An interface that no rule names.
const ELSEWHERE: At = At::Interface(9);

const PLACES: [At; 5] =
    [At::Interface(2), At::Interface(3), At::Interface(4), ELSEWHERE, At::Socket];

/// As the kernel's programs read the tables.
fn ruling_at(tables: &Tables, address: IpAddr, port: GuardedPort, at: At, now_ns: u64) -> Ruling {
    let row = tables.value(address).row() as usize;
    let index = tables.ports.get(&port).or_else(|| tables.aliases.get(&port)).unwrap();
    let place = row * tables.ports.len() + *index as usize;
    let column = match at {
        At::Interface(ifindex) => tables.vias.get(&ifindex).copied().unwrap_or(0),
        At::Socket => tables.columns() - 1,
    };
    tables.ladders[place * tables.columns() as usize + column as usize].at(|| now_ns)
}

fn ruling(tables: &Tables, address: IpAddr, port: GuardedPort, now_ns: u64) -> Ruling {
    ruling_at(tables, address, port, ELSEWHERE, now_ns)
}

/// The design's *Rules, in order*: every rule that holds is laid out, and the first in order is taken.
fn oracle(input: &Input, address: IpAddr, port: GuardedPort, at: At, now_ns: u64) -> Ruling {
    if address.is_loopback() {
        return Ruling::Local;
    }
    let ifindex = match at {
        At::Interface(ifindex) => ifindex,
        At::Socket => {
            let by = |at| oracle(input, address, port, at, now_ns);
            let mut here = input.local.iter().chain(&input.guests);
            let differ = PLACES[..4].iter().any(|place| by(*place) != by(ELSEWHERE));
            let is_here = here.any(|prefix| prefix.contains(&address));
            return if differ && !is_here { Ruling::Vouched } else { by(ELSEWHERE) };
        }
    };
    let mut claims = Vec::new();
    for rule in input.rules.iter().filter(|rule| now_ns < rule.until_ns) {
        if !rule.ports.is_empty() && !rule.ports.contains(&port) {
            continue;
        }
        if let Some(name) = &rule.via
            && !input.vias.iter().any(|via| via.name == *name && via.indices.contains(&ifindex))
        {
            continue;
        }
        let denies = rule.action == Action::Deny;
        for prefix in rule.prefixes.iter().filter(|prefix| prefix.contains(&address)) {
            // Ranks: typed before names before sets; among typed ones by length; then deny before allow.
            let (rank, length) = match rule.kind {
                RuleKind::Typed => (2, prefix.prefix_len()),
                RuleKind::Name => (1, 0),
                RuleKind::Set => (0, 0),
            };
            claims.push((rank, length, denies));
        }
    }
    match claims.iter().max() {
        Some((_, _, true)) => Ruling::Deny,
        Some((_, _, false)) => Ruling::Allow,
        None if input.local.iter().any(|prefix| prefix.contains(&address)) => Ruling::Local,
        None => Ruling::NoRule,
    }
}

#[test]
fn without_rules_only_loopback_is_let_in() {
    let tables = compile(&Input { ports: vec![tcp(11434)], ..Input::default() }).unwrap();
    // Up to loopback, in it, and behind it.
    assert_eq!(ranges(&tables), (3, 3));
    assert_eq!(tables.ladders[0], Ladder::always(Ruling::NoRule));
    for address in ["127.0.0.1", "127.255.255.255", "::1"] {
        assert!(tables.value(ip(address)).is_local());
        assert_eq!(ruling(&tables, ip(address), tcp(11434), 0), Ruling::Local);
    }
    for address in ["192.0.2.1", "::2", "::"] {
        assert_eq!(tables.value(ip(address)), SourceValue::default());
    }
}

#[test]
fn an_alias_has_the_rules_of_the_port_it_leads_to() {
    let only_there =
        InputRule { ports: vec![tcp(11434)], ..typed(1, Action::Allow, "192.0.2.7/32", NO_END) };
    let other = InputRule { ports: vec![tcp(80)], ..typed(2, Action::Allow, "192.0.2.8/32", 10) };
    let input = Input {
        ports: vec![tcp(80), tcp(11434)],
        aliases: BTreeMap::from([
            (tcp(8081), tcp(11434)),
            // Guarded by itself, and leading to what is not guarded.
            (tcp(80), tcp(11434)),
            (tcp(8082), tcp(443)),
        ]),
        rules: vec![only_there, other],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    assert_eq!(tables.aliases, BTreeMap::from([(tcp(8081), tables.ports[&tcp(11434)])]));
    for (address, port, wanted, by) in [
        ("192.0.2.7", 8081, Ruling::Allow, Some(1)),
        ("192.0.2.7", 80, Ruling::NoRule, None),
        ("192.0.2.8", 8081, Ruling::NoRule, None),
        ("192.0.2.8", 80, Ruling::Allow, Some(2)),
    ] {
        assert_eq!(ruling(&tables, ip(address), tcp(port), 0), wanted, "{address} {port}");
        let answer = resolve(&input, ip(address), tcp(port), 0);
        assert_eq!(answer, (wanted, by.map(RuleId::command)), "{address} {port}");
    }
}

#[test]
fn aliases_take_the_room_of_ports() {
    let ports: Vec<_> = (1..64).map(tcp).collect();
    let mut input = Input { ports, ..Input::default() };
    input.aliases.insert(tcp(8081), tcp(1));
    assert_eq!(compile(&input).unwrap().aliases.len(), 1);
    input.aliases.insert(tcp(8082), tcp(1));
    assert_eq!(compile(&input), Err(CompileError::TooManyPorts { count: 65 }));
}

#[test]
fn the_most_specific_typed_prefix_decides_and_deny_wins_within_one() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![
            typed(1, Action::Allow, "10.0.0.0/8", NO_END),
            typed(2, Action::Deny, "10.1.0.0/16", NO_END),
            typed(3, Action::Allow, "10.1.2.0/24", NO_END),
            typed(4, Action::Deny, "10.1.2.3/32", NO_END),
            typed(5, Action::Allow, "10.1.2.3/32", NO_END),
        ],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (address, wanted, id) in [
        ("10.9.9.9", Ruling::Allow, 1),
        ("10.1.9.9", Ruling::Deny, 2),
        ("10.1.2.9", Ruling::Allow, 3),
        ("10.1.2.3", Ruling::Deny, 4),
    ] {
        assert_eq!(ruling(&tables, ip(address), tcp(11434), 0), wanted, "{address}");
        let answer = resolve(&input, ip(address), tcp(11434), 0);
        assert_eq!(answer, (wanted, Some(RuleId::command(id))), "{address}");
    }
}

#[test]
fn an_end_uncovers_the_rule_beneath() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![
            typed(1, Action::Deny, "192.0.2.0/24", 300),
            typed(2, Action::Allow, "192.0.2.7/32", 200),
        ],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    let at = |now_ns| {
        let address = ip("192.0.2.7");
        let (answer, id) = resolve(&input, address, tcp(11434), now_ns);
        assert_eq!(ruling(&tables, address, tcp(11434), now_ns), answer);
        (answer, id.map(|id| id.0))
    };
    assert_eq!(at(0), (Ruling::Allow, Some("2".to_owned())));
    assert_eq!(at(199), (Ruling::Allow, Some("2".to_owned())));
    assert_eq!(at(200), (Ruling::Deny, Some("1".to_owned())));
    assert_eq!(at(300), (Ruling::NoRule, None));
}

#[test]
fn sets_stand_between_typed_prefixes_and_local_sources() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![
            rule(1, Action::Allow, RuleKind::Set, &["10.1.2.3/32", "10.2.0.0/16"], NO_END),
            rule(2, Action::Deny, RuleKind::Set, &["10.0.0.0/8"], NO_END),
            typed(3, Action::Allow, "10.2.0.0/15", NO_END),
        ],
        local: vec![net("10.4.0.0/24"), net("172.17.0.0/16")],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (address, wanted) in [
        ("10.1.2.3", Ruling::Deny),
        ("10.2.0.1", Ruling::Allow),
        ("10.4.0.1", Ruling::Deny),
        ("172.17.0.2", Ruling::Local),
    ] {
        assert_eq!(ruling(&tables, ip(address), tcp(11434), 0), wanted, "{address}");
        assert_eq!(resolve(&input, ip(address), tcp(11434), 0).0, wanted, "{address}");
    }
    assert!(tables.value(ip("10.4.0.1")).is_local());
}

#[test]
fn names_stand_between_typed_prefixes_and_sets() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![
            rule(
                1,
                Action::Allow,
                RuleKind::Name,
                &["10.1.2.3/32", "10.2.0.1/32", "fd00::1/128"],
                NO_END,
            ),
            rule(2, Action::Deny, RuleKind::Set, &["10.0.0.0/8", "fd00::/8"], NO_END),
            typed(3, Action::Deny, "10.2.0.0/16", NO_END),
            rule(4, Action::Allow, RuleKind::Name, &[], NO_END),
        ],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (address, wanted, by) in [
        ("10.1.2.3", Ruling::Allow, 1),
        ("fd00::1", Ruling::Allow, 1),
        ("10.1.2.4", Ruling::Deny, 2),
        ("fd00::2", Ruling::Deny, 2),
        // A hand-typed deny wins, however much wider it is.
        ("10.2.0.1", Ruling::Deny, 3),
    ] {
        assert_eq!(ruling(&tables, ip(address), tcp(11434), 0), wanted, "{address}");
        let answer = resolve(&input, ip(address), tcp(11434), 0);
        assert_eq!(answer, (wanted, Some(RuleId::command(by))), "{address}");
    }
    assert_eq!(ruling(&tables, ip("192.0.2.1"), tcp(11434), 0), Ruling::NoRule);
}

#[test]
fn guests_are_this_hosts_without_being_let_in() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![typed(1, Action::Allow, "172.17.0.2/32", NO_END)],
        local: vec![net("172.17.0.1/32")],
        guests: vec![net("172.17.0.0/16")],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (address, wanted) in [
        ("172.17.0.1", Ruling::Local),
        ("172.17.0.2", Ruling::Allow),
        ("172.17.0.3", Ruling::NoRule),
    ] {
        assert!(tables.value(ip(address)).is_local(), "{address}");
        assert_eq!(ruling(&tables, ip(address), tcp(11434), 0), wanted, "{address}");
    }
}

fn via(name: &str, indices: &[u32]) -> Via {
    Via { name: name.parse().unwrap(), indices: indices.to_vec() }
}

fn by(name: &str, rule: InputRule) -> InputRule {
    InputRule { via: Some(name.parse().unwrap()), ..rule }
}

#[test]
fn a_rule_for_an_interface_holds_there_only() {
    let input = Input {
        ports: vec![tcp(1), tcp(2)],
        rules: vec![
            by("eth1", typed(1, Action::Allow, "10.0.0.0/8", NO_END)),
            by("eth1", typed(2, Action::Deny, "192.0.2.7/32", NO_END)),
            typed(3, Action::Allow, "192.0.2.0/24", NO_END),
            typed(4, Action::Allow, "198.51.100.0/24", NO_END),
        ],
        vias: vec![via("eth1", &[3])],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    assert_eq!((tables.columns(), tables.vias.len()), (3, 1));
    let there = At::Interface(3);
    for (address, elsewhere, at_eth1, at_socket) in [
        ("10.1.2.3", Ruling::NoRule, Ruling::Allow, Ruling::Vouched),
        // The next less specific rule decides where the interface is another one.
        ("192.0.2.7", Ruling::Allow, Ruling::Deny, Ruling::Vouched),
        ("192.0.2.8", Ruling::Allow, Ruling::Allow, Ruling::Allow),
        ("198.51.100.1", Ruling::Allow, Ruling::Allow, Ruling::Allow),
        ("203.0.113.1", Ruling::NoRule, Ruling::NoRule, Ruling::NoRule),
    ] {
        let says =
            [ELSEWHERE, there, At::Socket].map(|at| ruling_at(&tables, ip(address), tcp(2), at, 0));
        assert_eq!(says, [elsewhere, at_eth1, at_socket], "{address}");
        let depends = at_socket == Ruling::Vouched;
        assert_eq!(tables.value(ip(address)).is_by_interface(), depends, "{address}");
        let named = resolve_by(&input, ip(address), tcp(2), Some(3), 0);
        assert_eq!(named.0, at_eth1, "{address}");
        assert_eq!(resolve_at_socket(&input, ip(address), tcp(2), 0).0, at_socket, "{address}");
    }
    // Whoever does not know by which interface: the one that lets it in.
    assert_eq!(
        resolve(&input, ip("10.1.2.3"), tcp(1), 0),
        (Ruling::Allow, Some(RuleId::command(1)))
    );
    assert_eq!(
        resolve(&input, ip("192.0.2.7"), tcp(1), 0),
        (Ruling::Allow, Some(RuleId::command(3)))
    );
}

#[test]
fn an_interface_that_is_not_there_costs_nothing_and_matches_nothing() {
    let without = Input {
        ports: vec![tcp(1)],
        rules: vec![typed(1, Action::Allow, "192.0.2.0/24", NO_END)],
        ..Input::default()
    };
    let mut with = without.clone();
    with.rules.push(by("wg0", typed(2, Action::Allow, "10.0.0.0/8", NO_END)));
    with.vias = vec![via("wg0", &[])];
    assert_eq!(compile(&with), compile(&without));
    assert_eq!(compile(&without).unwrap().columns(), 1);
}

#[test]
fn a_local_source_never_needs_a_voucher() {
    let input = Input {
        ports: vec![tcp(1)],
        rules: vec![by("eth1", typed(1, Action::Deny, "172.17.0.0/16", NO_END))],
        vias: vec![via("eth1", &[3])],
        local: vec![net("172.17.0.0/24")],
        guests: vec![net("172.17.1.0/24")],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    let at_socket = |address| ruling_at(&tables, ip(address), tcp(1), At::Socket, 0);
    assert_eq!(at_socket("172.17.0.2"), Ruling::Local);
    assert_eq!(at_socket("172.17.1.2"), Ruling::NoRule);
    assert_eq!(at_socket("172.17.2.2"), Ruling::Vouched);
}

#[test]
fn rules_for_ports_that_are_not_guarded_do_nothing() {
    let mut elsewhere = typed(1, Action::Allow, "192.0.2.7/32", NO_END);
    elsewhere.ports = vec![tcp(8081)];
    let input = Input { ports: vec![tcp(11434)], rules: vec![elsewhere], ..Input::default() };
    let tables = compile(&input).unwrap();
    assert_eq!(tables.value(ip("192.0.2.7")), SourceValue::default());
    assert_eq!(resolve(&input, ip("192.0.2.7"), tcp(11434), 0), (Ruling::NoRule, None));
    let none = Input { ports: vec![], ..input };
    assert!(compile(&none).unwrap().ladders.is_empty());
}

#[test]
fn equal_rows_and_covered_entries_are_kept_once() {
    let input = Input {
        ports: vec![tcp(1), tcp(2)],
        rules: vec![
            typed(1, Action::Allow, "10.0.0.0/8", NO_END),
            typed(2, Action::Allow, "10.1.0.0/16", NO_END),
            typed(3, Action::Allow, "192.0.2.0/24", NO_END),
        ],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    // In 10.0.0.0/8, loopback and 192.0.2.0/24, and around them; none, allowed, and local.
    assert_eq!(ranges(&tables), (7, 3));
    assert_eq!(tables.ladders.len(), 3 * 2);
}

#[test]
fn a_verdict_that_changes_too_often_is_refused_by_name() {
    let rules = vec![
        typed(1, Action::Allow, "10.0.0.0/8", 400),
        typed(2, Action::Deny, "10.1.0.0/16", 300),
        typed(3, Action::Allow, "10.1.2.0/24", 200),
        typed(4, Action::Deny, "10.1.2.3/32", 100),
    ];
    let mut input = Input { ports: vec![tcp(11434)], rules, ..Input::default() };
    let error = compile(&input).unwrap_err();
    assert_eq!(
        error.to_string(),
        "for 10.1.2.3/32 at port 11434 the rules 1, 2, 3 and 4 change the verdict more than 3 times"
    );
    input.rules[0].until_ns = NO_END;
    assert!(compile(&input).is_ok());
}

#[test]
fn what_does_not_fit_is_refused() {
    let ports: Vec<GuardedPort> = (1..=65).map(tcp).collect();
    let input = Input { ports, ..Input::default() };
    assert_eq!(compile(&input), Err(CompileError::TooManyPorts { count: 65 }));

    let ports: Vec<GuardedPort> = (1..=64).map(tcp).collect();
    let by_own_end = (1..=256u32).map(|i| {
        let prefix = IpNet::from(IpAddr::from(Ipv4Addr::from(i << 16)));
        let (id, action) = (RuleId::command(i.into()), Action::Allow);
        let (kind, until_ns) = (RuleKind::Typed, i.into());
        let prefixes = vec![prefix];
        InputRule {
            id,
            action,
            kind,
            prefixes: prefixes.into(),
            ports: vec![],
            via: None,
            until_ns,
        }
    });
    let input = Input { ports, rules: by_own_end.collect(), ..Input::default() };
    let error = compile(&input).unwrap_err();
    assert_eq!(error, CompileError::TooManyRows { ladders: 64 });
    assert!(error.to_string().contains("more than 256 different combinations"), "{error}");
}

#[test]
fn a_large_set_is_one_row() {
    let prefixes: Vec<IpNet> = (0..100_000u32)
        .map(|i| IpNet::new(Ipv4Addr::from(i << 12).into(), 21 + (i % 8) as u8).unwrap())
        .collect();
    let mut set = rule(1, Action::Deny, RuleKind::Set, &[], NO_END);
    set.prefixes = prefixes.into();
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![set, typed(2, Action::Allow, "0.0.0.0/0", NO_END)],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    // The typed prefix wins everywhere, so that no prefix of the set says anything new.
    assert_eq!(ranges(&tables), (3, 3));
    let input = Input { rules: vec![input.rules[0].clone()], ..input };
    let tables = compile(&input).unwrap();
    // Each prefix of the set and what follows it, and loopback.
    assert_eq!(ranges(&tables), (2 * 100_000 + 2, 3));
    assert_eq!(tables.ladders.len(), 3);
}

#[test]
fn a_peer_is_stopped_where_nothing_lets_it_in_now() {
    let udp = GuardedPort { protocol: Protocol::Udp, number: 11434 };
    let mut at_one_port = typed(1, Action::Allow, "192.0.2.7/32", NO_END);
    at_one_port.ports = vec![tcp(11434)];
    let input = Input {
        ports: vec![tcp(11434), tcp(8081)],
        rules: vec![
            at_one_port,
            typed(2, Action::Allow, "2001:db8::/32", 100),
            typed(3, Action::Deny, "172.17.0.3/32", NO_END),
        ],
        local: vec![net("172.17.0.0/16")],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (source, port, now_ns, stopped) in [
        ("192.0.2.7", tcp(11434), 0, false),
        ("192.0.2.7", tcp(8081), 0, true),
        ("192.0.2.8", tcp(11434), 0, true),
        // A mapped address is another one than the IPv4 address in it.
        ("::ffff:192.0.2.7", tcp(11434), 0, true),
        ("2001:db8::9", tcp(8081), 99, false),
        ("2001:db8::9", tcp(8081), 100, true),
        ("172.17.0.2", tcp(11434), 0, false),
        ("172.17.0.3", tcp(11434), 0, true),
        ("127.0.0.1", tcp(11434), 0, false),
        ("::1", tcp(11434), 0, false),
        // Nobody guards these.
        ("192.0.2.8", tcp(22), 0, false),
        ("192.0.2.8", udp, 0, false),
    ] {
        assert_eq!(tables.stops(ip(source), port, now_ns), stopped, "{source} {port} {now_ns}");
    }
    assert_eq!(tables.ruling(ip("192.0.2.8"), udp, 0), None);
    assert_eq!(tables.ruling(ip("192.0.2.8"), tcp(8081), 0), Some(Ruling::NoRule));
}

#[test]
fn tables_with_a_row_missing_are_closed() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![typed(1, Action::Allow, "192.0.2.7/32", NO_END)],
        ..Input::default()
    };
    let mut tables = compile(&input).unwrap();
    tables.ladders.clear();
    assert_eq!(tables.ruling(ip("192.0.2.7"), tcp(11434), 0), Some(Ruling::NoRule));
}

#[test]
fn the_next_end_is_the_first_that_is_still_to_come() {
    let input = Input {
        ports: vec![tcp(11434)],
        rules: vec![
            typed(1, Action::Deny, "192.0.2.0/24", 300),
            typed(2, Action::Allow, "192.0.2.7/32", 200),
            typed(3, Action::Allow, "2001:db8::/32", NO_END),
        ],
        ..Input::default()
    };
    let tables = compile(&input).unwrap();
    for (after_ns, end) in
        [(0, Some(200)), (199, Some(200)), (200, Some(300)), (300, None), (u64::MAX, None)]
    {
        assert_eq!(tables.next_end(after_ns), end, "after {after_ns}");
    }
}

/// Few addresses under few roots, so that prefixes nest.
fn any_prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (select(vec![10u8, 11, 127, 172]), 0..4u8, 0..4u8, 0..=32u8)
        .prop_map(|(a, c, d, bits)| IpNet::new(Ipv4Addr::new(a, 0, c, d).into(), bits));
    let v6 = (select(vec![0u16, 0xfe80, 0x2001]), 0..4u16, 0..=128u8)
        .prop_map(|(a, h, bits)| IpNet::new(Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, h).into(), bits));
    prop_oneof![v4, v6].prop_map(|prefix| prefix.unwrap().trunc())
}

fn any_rule() -> impl Strategy<Value = InputRule> {
    (
        select(vec![Action::Allow, Action::Deny]),
        prop_oneof![
            any_prefix().prop_map(|prefix| (RuleKind::Typed, vec![prefix])),
            vec(any_prefix(), 0..6).prop_map(|prefixes| (RuleKind::Set, prefixes)),
            // An interface's, and a DNS name's.
            Just((RuleKind::Name, vec![net("0.0.0.0/0"), net("::/0")])),
            vec(any_prefix(), 0..6).prop_map(|prefixes| (RuleKind::Name, prefixes)),
        ],
        vec(select(vec![tcp(1), tcp(2), tcp(3), tcp(4)]), 0..3),
        select(vec![None, None, Some("br0"), Some("eth0"), Some("eth1"), Some("wg0")]),
        select(vec![0, 10, 20, 30, 40, 50, NO_END, NO_END]),
    )
        .prop_map(|(action, (kind, prefixes), ports, via, until_ns)| {
            // A name only allows.
            let action = if kind == RuleKind::Name { Action::Allow } else { action };
            let id = RuleId(String::new());
            let via = via.map(|name| name.parse().unwrap());
            InputRule { id, action, kind, prefixes: prefixes.into(), ports, via, until_ns }
        })
}

fn any_input() -> impl Strategy<Value = Input> {
    (
        select(vec![vec![tcp(2)], vec![tcp(3), tcp(1), tcp(1)], vec![tcp(1), tcp(2), tcp(3)]]),
        any_aliases(),
        vec(any_rule(), 0..14),
        vec(any_prefix(), 0..4),
        vec(any_prefix(), 0..3),
    )
        .prop_map(|(ports, aliases, mut rules, local, guests)| {
            for (number, rule) in (1..).zip(&mut rules) {
                rule.id = RuleId::command(number);
            }
            // The bridge has two ports, one of which is named itself; the tunnel is not there.
            let vias =
                vec![via("br0", &[3, 4]), via("eth0", &[2]), via("eth1", &[3]), via("wg0", &[])];
            let is_single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
            let own = local.iter().filter(is_single).copied().collect();
            Input { ports, aliases, rules, vias, local, own, guests, ..Input::default() }
        })
}

/// From ports that are guarded, and ports that are not, to the same.
fn any_aliases() -> impl Strategy<Value = BTreeMap<GuardedPort, GuardedPort>> {
    let port = || (1..6u16).prop_map(tcp);
    btree_map(port(), port(), 0..3)
}

/// The first and last address of every prefix, and their neighbours outside.
fn addresses(input: &Input) -> Vec<IpAddr> {
    let prefixes = input.rules.iter().flat_map(|rule| &*rule.prefixes);
    let mut addresses = vec![ip("127.0.0.1"), ip("::1"), ip("192.0.2.1"), ip("2001:db8::1")];
    for prefix in prefixes.chain(&input.local).chain(&input.guests) {
        addresses.extend([prefix.network(), prefix.broadcast()]);
        addresses.push(moved(prefix.network(), -1));
        addresses.push(moved(prefix.broadcast(), 1));
    }
    addresses
}

fn moved(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add_signed(by.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add_signed(by.into())).into(),
    }
}

/// What is left of the policy around a prefix.
fn around(input: &Input, inner: IpNet) -> Input {
    let mut input = input.clone();
    for rule in &mut input.rules {
        rule.prefixes =
            rule.prefixes.iter().filter(|prefix| prefix.contains(&inner)).copied().collect();
    }
    input.local.retain(|prefix| prefix.contains(&inner));
    input
}

/// In each span between the ends that rules have, and at both sides of one.
const MOMENTS: [u64; 7] = [0, 9, 10, 20, 30, 40, 50];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn tables_say_what_the_rules_say(input in any_input()) {
        match compile(&input) {
            Ok(tables) => {
                for address in addresses(&input) {
                    let is_here = address.is_loopback()
                        || input.local.iter().chain(&input.guests).any(|net| net.contains(&address));
                    prop_assert_eq!(tables.value(address).is_local(), is_here, "{}", address);
                    let is_own = input.own.iter().any(|net| net.contains(&address));
                    prop_assert_eq!(tables.value(address).is_own(), is_own, "{}", address);
                    let mut needs_voucher = false;
                    for (port, now_ns) in
                        input.ports.iter().flat_map(|port| MOMENTS.map(|now_ns| (*port, now_ns)))
                    {
                        for at in PLACES {
                            let said = ruling_at(&tables, address, port, at, now_ns);
                            prop_assert_eq!(
                                said,
                                oracle(&input, address, port, at, now_ns),
                                "{} at port {} at {} {:?}", address, port, now_ns, at
                            );
                            needs_voucher |= said == Ruling::Vouched;
                        }
                    }
                    prop_assert_eq!(tables.value(address).is_by_interface(), needs_voucher);
                }
                for (alias, to) in &input.aliases {
                    let is_one = input.ports.contains(to) && !input.ports.contains(alias);
                    let index = is_one.then(|| tables.ports[to]);
                    prop_assert_eq!(tables.aliases.get(alias).copied(), index, "{}", alias);
                }
                let in_row = tables.ports.len() * tables.columns() as usize;
                let none = vec![Ladder::always(Ruling::NoRule); in_row];
                prop_assert_eq!(&tables.ladders[..none.len()], &none[..]);
                prop_assert_eq!(tables.ladders.len() % none.len(), 0);
            }
            Err(CompileError::TooManySteps { source_prefix, port, .. }) => {
                let around = around(&input, source_prefix);
                let changes = |at| {
                    let address = source_prefix.network();
                    let rulings = MOMENTS.map(|now_ns| oracle(&around, address, port, at, now_ns));
                    rulings.windows(2).filter(|pair| pair[0] != pair[1]).count()
                };
                let most = PLACES.into_iter().map(changes).max().unwrap_or(0);
                prop_assert!(most >= STEPS, "{} at port {}", source_prefix, port);
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn tables_asked_here_say_what_the_rules_say(input in any_input(), now_ns in 0..60_u64) {
        let Ok(tables) = compile(&input) else { return Ok(()) };
        for address in addresses(&input) {
            let port = input.ports[0];
            let lets_in = |at| {
                matches!(oracle(&input, address, port, at, now_ns), Ruling::Allow | Ruling::Local)
            };
            let at_socket = oracle(&input, address, port, At::Socket, now_ns);
            prop_assert_eq!(tables.ruling(address, port, now_ns), Some(at_socket));
            prop_assert_eq!(tables.may_stop(address, port, now_ns), !lets_in(At::Socket));
            prop_assert_eq!(tables.stops(address, port, now_ns), !PLACES.into_iter().any(lets_in));
            prop_assert!(!tables.stops(address, tcp(50), now_ns));
        }
    }

    #[test]
    fn the_rule_that_is_named_decides(input in any_input()) {
        for address in addresses(&input) {
            for (port, now_ns, ifindex) in
                [(tcp(1), 0, 2), (tcp(2), 10, 3), (tcp(3), 25, 4), (tcp(2), 0, 9)]
            {
                let at_socket = resolve_at_socket(&input, address, port, now_ns).0;
                let (answer, id) = resolve_by(&input, address, port, Some(ifindex), now_ns);
                let port = match input.aliases.get(&port) {
                    Some(to) if !input.ports.contains(&port) => *to,
                    _ => port,
                };
                prop_assert_eq!(at_socket, oracle(&input, address, port, At::Socket, now_ns));
                let at = At::Interface(ifindex);
                prop_assert_eq!(answer, oracle(&input, address, port, at, now_ns));
                match (answer, id) {
                    (Ruling::Allow | Ruling::Deny, Some(id)) => {
                        let named = input.rules.iter().find(|rule| rule.id == id).unwrap();
                        prop_assert_eq!(ruling_of(named.action), answer);
                        prop_assert!(now_ns < named.until_ns && named.is_for(port));
                        prop_assert!(named.prefixes.iter().any(|net| net.contains(&address)));
                    }
                    (Ruling::Local | Ruling::NoRule, None) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
