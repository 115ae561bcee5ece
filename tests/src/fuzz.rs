//! What the fuzzer does with bytes: one function for each target, which panics when something does not hold.
//!
//! `tests/fuzz` hands these to libFuzzer; `tests/fuzz_corpus.rs` hands them the kept corpora on stable Rust.

use std::{
    fmt::{Debug, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

use guard::{
    api::server::parse_body,
    compile::{self, CompileError, Input, InputRule, RuleKind, compile},
    config::{Attach, Config, InterfacePattern},
    control::{AddRules, Explain, Failure, RemoveRules, SetMode},
    duration,
    enrich::labels::{Labels, List},
    events::{self, Attempt, BootClock},
    host::interfaces::LanPrefixes,
    output,
    policy::{self, Clock, Policy, Sets},
    rule::{Action, GuardedPort, RuleId, Source, parse_ports},
    state::State,
};
use guard_common::{
    abi::{MAX_GUARDED_PORTS, NO_END, Ruling, STEPS},
    model,
    packet::{AddressBytes, Family, Packet, Protocol},
    parse::{self, against_etherparse, ethertype},
    sources::{self, Line, Lines},
};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// What is done with some bytes.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("parser", parser),
    ("compiler", compiler),
    ("grammar", grammar),
    ("api_body", api_body),
    ("event", event),
    ("labels", labels),
];

/// A file of labels: what is read of it holds against a plain scan, and no name in it steers a terminal.
pub fn labels(bytes: &[u8]) {
    let Ok(list) = List::parse(bytes, "fuzz") else { return };
    let mut labels = Labels::default();
    labels.add(&list).expect("one list has room");
    for (prefix, _) in list.entries.iter().take(64) {
        let address = prefix.addr();
        let found = labels.of(address);
        assert!(!found.is_empty() && found.len() <= 8);
        for name in &found {
            assert!(!name.chars().any(output::text::is_unprintable), "{name:?}");
            assert!((1..=64).contains(&name.chars().count()), "{name:?}");
            let is_named = |(around, number): &(IpNet, u16)| {
                around.contains(&address) && list.names[usize::from(*number)] == *name
            };
            assert!(list.entries.iter().any(is_named), "{address} is not {name}");
        }
    }
}

/// A frame: the parser agrees with etherparse, at every entry that there is.
pub fn parser(bytes: &[u8]) {
    against_etherparse::agrees(bytes).unwrap_or_else(|difference| panic!("{difference}"));
    for ether_type in [ethertype::IPV4, ethertype::IPV6, ethertype::VLAN, ethertype::VLAN_SERVICE] {
        // A bare packet is read as one in a frame.
        let framed = [&[0; 12][..], &ether_type.to_be_bytes(), bytes].concat();
        against_etherparse::agrees(&framed).unwrap_or_else(|difference| panic!("{difference}"));
        let (mut bare, mut in_frame) = (Packet::EMPTY, Packet::EMPTY);
        let outcome = parse::network(bytes, ether_type, 0, &mut bare);
        assert_eq!(parse::frame(&framed[..], &mut in_frame), outcome);
        assert_eq!(bare, in_frame);
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut packet = Packet::EMPTY;
        parse::at_socket(bytes, protocol, &mut packet);
        assert_eq!(packet.protocol, protocol);
        // The addresses stand at a fixed place whatever else is there; where both are not there, nobody is the source.
        let (both, length) = match packet.family {
            Family::V4 => (bytes.get(12..20), 4),
            Family::V6 => (bytes.get(8..40), 16),
        };
        let both = both.unwrap_or(&[0; 32]);
        assert_eq!(packet.source[..length], both[..length]);
        assert_eq!(packet.destination[..length], both[length..2 * length]);
    }
}

/// Bytes as choices, zeros behind their end.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Few addresses under few roots, so that prefixes nest.
    fn prefix(&mut self) -> IpNet {
        let (root, high, low) = (self.byte(), self.byte(), self.byte());
        let prefix = if root & 1 == 0 {
            let root = [10, 11, 127, 172][usize::from(root >> 1 & 3)];
            IpNet::new(Ipv4Addr::new(root, 0, high, low).into(), self.below(33))
        } else {
            let root = [0, 0xfe80, 0x2001, 0xfd00][usize::from(root >> 1 & 3)];
            let (high, low) = (high.into(), low.into());
            IpNet::new(Ipv6Addr::new(root, high, 0, 0, 0, 0, 0, low).into(), self.below(129))
        };
        prefix.expect("no length is too long").trunc()
    }

    fn prefixes(&mut self, most: u8) -> Vec<IpNet> {
        (0..self.below(most + 1)).map(|_| self.prefix()).collect()
    }

    fn port(&mut self) -> GuardedPort {
        let byte = self.below(8);
        let protocol = if byte & 1 == 0 { Protocol::Tcp } else { Protocol::Udp };
        GuardedPort { protocol, number: 1 + u16::from(byte >> 1) }
    }

    fn ports(&mut self, most: u8) -> Vec<GuardedPort> {
        (0..self.below(most + 1)).map(|_| self.port()).collect()
    }

    fn rule(&mut self, number: u64) -> InputRule {
        let byte = self.byte();
        let until = [NO_END, 0, 10, 20, 30, 40, 50, NO_END - 1][usize::from(byte >> 2 & 7)];
        let kind = match (byte & 2, byte & 0x20) {
            (0, _) => RuleKind::Typed,
            (_, 0) => RuleKind::Set,
            _ => RuleKind::Name,
        };
        InputRule {
            id: RuleId::command(number),
            // A name only allows.
            action: if byte & 1 == 0 || kind == RuleKind::Name {
                Action::Allow
            } else {
                Action::Deny
            },
            kind,
            prefixes: match kind {
                RuleKind::Typed => [self.prefix()].into(),
                RuleKind::Name | RuleKind::Set => self.prefixes(4).into(),
            },
            ports: self.ports(3),
            via: None,
            until_ns: until,
        }
    }

    fn input(&mut self) -> Input {
        let mut input = Input {
            ports: self.ports(4),
            local: self.prefixes(3),
            guests: self.prefixes(2),
            ..Input::default()
        };
        // More would tell nothing more, and take the scan long.
        while !self.is_over() && input.rules.len() < 12 {
            input.rules.push(self.rule(input.rules.len() as u64 + 1));
        }
        input.own = single_addresses(&input.local);
        input
    }
}

fn single_addresses(prefixes: &[IpNet]) -> Vec<IpNet> {
    prefixes.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).copied().collect()
}

/// In each span between the ends that rules have, and at both sides of one.
fn moments(input: &Input) -> Vec<u64> {
    let mut moments = vec![0, 9];
    moments.extend(input.rules.iter().map(|rule| rule.until_ns.min(NO_END - 1)));
    moments.sort_unstable();
    moments.dedup();
    moments
}

/// A policy: its tables say what a plain scan over its rules says, and the rule that is named is one that says so.
pub fn compiler(bytes: &[u8]) {
    let input = Choices(bytes).input();
    let tables = match compile(&input) {
        Ok(tables) => tables,
        Err(error) => return expect_refusal(&error, &input),
    };
    let moments = moments(&input);
    let scan = Scan::of(&input);
    let rules = scan.rules();
    let memory = Memory(sources::build(&tables.sources).expect("a small policy fits"));
    for address in addresses(&input) {
        let value = tables.value(address);
        let (family, bytes) = family_and_bytes(address);
        assert_eq!(sources::find(&memory, family, &bytes), value, "{address} in {input:?}");
        let is_here = address.is_loopback()
            || input.local.iter().chain(&input.guests).any(|net| net.contains(&address));
        assert_eq!(value.is_local(), is_here, "{address} in {input:?}");
        let is_own = input.own.iter().any(|net| net.contains(&address));
        assert_eq!(value.is_own(), is_own, "{address} in {input:?}");
        for (port, index) in &tables.ports {
            let ladder = value.row() as usize * tables.ports.len() + *index as usize;
            for now_ns in moments.iter().copied() {
                let case = || format!("{address} at port {port} at {now_ns} in {input:?}");
                let expected = scan.ruling(&rules, address, *port, now_ns);
                assert_eq!(tables.ladders[ladder].at(|| now_ns), expected, "{}", case());
                let (said, id) = compile::resolve(&input, address, *port, now_ns);
                assert_eq!(said, expected, "{}", case());
                let is_by_rule = matches!(said, Ruling::Allow | Ruling::Deny);
                assert_eq!(id.is_some(), is_by_rule, "{}", case());
            }
        }
    }
}

/// A policy as small as these is refused only because a verdict changes too often.
fn expect_refusal(error: &CompileError, input: &Input) {
    let CompileError::TooManySteps { source_prefix, port, .. } = error else {
        panic!("{error}: {input:?}");
    };
    // At the first address of that prefix it does, with nothing else in the policy than what is around the prefix.
    let mut around = input.clone();
    for rule in &mut around.rules {
        rule.prefixes =
            rule.prefixes.iter().filter(|prefix| prefix.contains(source_prefix)).copied().collect();
    }
    around.local.retain(|prefix| prefix.contains(source_prefix));
    let scan = Scan::of(&around);
    let rules = scan.rules();
    let rulings: Vec<_> = moments(input)
        .into_iter()
        .map(|now_ns| scan.ruling(&rules, source_prefix.network(), *port, now_ns))
        .collect();
    let changes = rulings.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes >= STEPS, "{error}: {input:?}");
}

/// The first and last address of every prefix, and their neighbours outside.
fn addresses(input: &Input) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = vec![
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    ];
    let prefixes = input.rules.iter().flat_map(|rule| &*rule.prefixes);
    for prefix in prefixes.chain(&input.local).chain(&input.guests) {
        let (first, last) = (prefix.network(), prefix.broadcast());
        addresses.extend([first, last, moved(first, -1), moved(last, 1)]);
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn moved(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add_signed(by.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add_signed(by.into())).into(),
    }
}

/// A policy for [`model::ruling`].
struct Scan {
    rules: Vec<(model::Action, model::Kind, model::Prefix, Vec<model::Port>, u64)>,
    local: Vec<model::Prefix>,
}

impl Scan {
    fn of(input: &Input) -> Self {
        let rules = input.rules.iter().flat_map(|rule| {
            let action = match rule.action {
                Action::Allow => model::Action::Allow,
                Action::Deny => model::Action::Deny,
            };
            let kind = match rule.kind {
                RuleKind::Typed => model::Kind::Typed,
                RuleKind::Name => model::Kind::Name,
                RuleKind::Set => model::Kind::Set,
            };
            rule.prefixes.iter().map(move |net| {
                let ports = rule
                    .ports
                    .iter()
                    .map(|port| model::Port { protocol: port.protocol, number: port.number });
                (action, kind, model_prefix(*net), ports.collect(), rule.until_ns)
            })
        });
        Self {
            rules: rules.collect(),
            local: input.local.iter().copied().map(model_prefix).collect(),
        }
    }

    fn rules(&self) -> Vec<model::Rule<'_>> {
        let rules = self.rules.iter().map(|(action, kind, prefix, ports, until_ns)| model::Rule {
            action: *action,
            kind: *kind,
            prefix: *prefix,
            ports,
            via: None,
            until_ns: *until_ns,
        });
        rules.collect()
    }

    fn ruling(
        &self,
        rules: &[model::Rule<'_>],
        address: IpAddr,
        port: GuardedPort,
        now_ns: u64,
    ) -> Ruling {
        // The model leaves loopback to the hooks.
        if address.is_loopback() {
            return Ruling::Local;
        }
        let model::Prefix { family, address, .. } = model_prefix(address.into());
        // No rule here names an interface.
        let place = model::Place::Interface(1);
        let (protocol, number) = (port.protocol, port.number);
        model::ruling(rules, &self.local, family, &address, protocol, number, place, now_ns)
    }
}

fn model_prefix(net: IpNet) -> model::Prefix {
    let (family, address) = family_and_bytes(net.network());
    model::Prefix { family, address, bits: net.prefix_len() }
}

fn family_and_bytes(address: IpAddr) -> (Family, AddressBytes) {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (Family::V4, bytes)
        }
        IpAddr::V6(v6) => (Family::V6, v6.octets()),
    }
}

/// A source table as the kernel's programs would find it in their maps.
struct Memory(Vec<Line>);

impl Lines for Memory {
    fn line(&self, number: u32) -> Option<&Line> {
        self.0.get(number as usize)
    }
}

/// A text: as a configuration and as every word that a user can type, it is read or refused in words that can be shown;
/// and what is written of what was read reads as the same.
pub fn grammar(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(text, Path::new("/etc/guard/guard.toml")) {
        Ok(config) => {
            for rule in &config.rules {
                reads_as_written(&rule.source);
            }
            config.ports.iter().for_each(reads_as_written);
        }
        Err(errors) => {
            assert!(!errors.errors.is_empty());
            assert_plain(&errors.to_string());
        }
    }
    word::<Source>(text);
    word::<GuardedPort>(text);
    word::<InterfacePattern>(text);
    word::<Attach>(text);
    if let Ok(ports) = parse_ports(text) {
        assert!(!ports.is_empty());
        ports.iter().for_each(reads_as_written);
    }
    match duration::parse(text) {
        Ok(seconds) => {
            // Of its two largest units nothing is lost by writing.
            let brief = duration::brief(seconds);
            let read = duration::parse(&brief).expect("what is written is read");
            assert!(read <= seconds && duration::brief(read) == brief, "{text:?} {brief}");
        }
        Err(error) => assert_plain(&format!("{error} {}", error.fix())),
    }
}

fn word<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => reads_as_written(&value),
        Err(error) => assert_plain(&error.to_string()),
    }
}

fn reads_as_written<T: FromStr<Err: Display> + Display + PartialEq + Debug>(value: &T) {
    let written = value.to_string();
    match written.parse::<T>() {
        Ok(read) => assert_eq!(read, *value, "{written:?}"),
        Err(error) => panic!("{value:?} is written {written:?}, which is refused: {error}"),
    }
}

/// A message holds no control characters but line breaks, whatever was typed.
fn assert_plain(message: &str) {
    let is_plain = !message.chars().any(|c| c.is_control() && c != '\n');
    assert!(is_plain && !message.is_empty(), "{message:?}");
}

/// The body of a request to the control API: each kind of request is read or refused, is written as it was read, and is
/// carried out or refused; what is carried out can be undone.
pub fn api_body(bytes: &[u8]) {
    let ports = vec![
        GuardedPort { protocol: Protocol::Tcp, number: 11434 },
        GuardedPort { protocol: Protocol::Udp, number: 5353 },
    ];
    let clock = clock();
    if let Some(request) = body::<AddRules>(bytes) {
        add_rules(&request, ports.clone(), &clock);
    }
    if let Some(request) = body::<RemoveRules>(bytes) {
        let rules = Policy { ports, rules: Vec::new() };
        let removed = policy::remove(&rules, &request.rules, &mut State::default());
        assert!(removed.is_err() || request.rules.is_empty(), "there is nothing to remove");
    }
    if let Some(SetMode { for_seconds: Some(seconds), .. }) = body(bytes)
        && let Ok(end) = policy::end_after(&clock, seconds)
    {
        assert!(end >= clock.wall);
    }
    if let Some(Explain { port: Some(port), .. }) = body(bytes) {
        word::<GuardedPort>(&port);
    }
}

fn body<T>(bytes: &[u8]) -> Option<T>
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + Debug,
{
    match parse_body::<T>(bytes) {
        Ok(request) => {
            let written = serde_json::to_vec(&request).expect("a request is written");
            let read: T = parse_body(&written).expect("what is written is read");
            assert_eq!(read, request);
            Some(request)
        }
        Err(Failure { what, fix, .. }) => {
            assert!(!what.is_empty() && fix.is_some());
            None
        }
    }
}

fn clock() -> Clock {
    let wall = Timestamp::from_second(1_764_072_000).expect("a time of the calendar");
    Clock { wall, boot_ns: 1_000_000_000, boot_id: None, trusted: true }
}

fn add_rules(request: &AddRules, ports: Vec<GuardedPort>, clock: &Clock) {
    let mut state = State::default();
    let before = Policy { ports: ports.clone(), rules: Vec::new() };
    let Ok(added) = policy::add(&before, request, &mut state, clock) else { return };
    assert!(!added.ids.is_empty() && !state.rules.is_empty());
    for rule in &state.rules {
        reads_as_written(&rule.source);
        assert_eq!(rule.action, request.action);
    }
    let after = Policy { ports: ports.clone(), rules: state.rules.clone() };
    // A file is not there to be read.
    if let Ok(rules) = after.input_rules(&Sets::default(), &LanPrefixes::default(), clock) {
        assert!(ports.len() <= MAX_GUARDED_PORTS as usize);
        let input = Input { ports, rules, ..Input::default() };
        compile(&input).expect("rules of one request never change a verdict often");
    }
    let ids: Vec<String> = state.rules.iter().map(|rule| rule.id.0.clone()).collect();
    policy::remove(&after, &ids, &mut state)
        .expect("what was made by command is removed by its id");
    assert_eq!(state.rules, []);
}

/// A record of the event ring: it is an attempt or none; one is shown on one line without control characters, and its JSON
/// reads as the same.
pub fn event(bytes: &[u8]) {
    let clock = BootClock { wall_minus_boot: SignedDuration::from_secs(1_764_072_000) };
    let Some(attempt) =
        events::decode(bytes, &clock, |index| (index < 3).then(|| "eth0".to_owned()))
    else {
        return;
    };
    let json = serde_json::to_string(&attempt).expect("an attempt is written");
    let read: Attempt = serde_json::from_str(&json).expect("what is written is read");
    assert_eq!(read, attempt);
    let view = output::View { colour: false, now: attempt.time, zone: TimeZone::UTC };
    let shown = output::attempt(&attempt, &view);
    assert_eq!(shown.matches('\n').count(), usize::from(shown.ends_with('\n')), "{shown:?}");
    assert_plain(&shown);
}
