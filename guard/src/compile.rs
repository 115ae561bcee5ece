//! From rules to the exact contents of the kernel's tables: the design's *Rules, in order*, resolved into
//! what is said of every range of addresses. Pure.
//!
//! [`compile`] walks the prefixes of all rules in order, outer ones before what they hold, and keeps on a stack what is
//! known of the prefixes around the current one. What a prefix adds is a set of *effects*: rules that do the
//! same to their sources share one. Two prefixes that add the same effects below the same surroundings are resolved
//! once, so that a set of a hundred thousand prefixes costs little more than sorting it.

mod answers;
mod columns;
mod timeline;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guard_common::{
    abi::{
        Ladder, MAX_GUARDED_PORTS, MAX_LADDERS, MAX_ROWS, MAX_VIAS, NO_END, PortIndex, Ruling,
        SOURCE_BY_INTERFACE, SOURCE_LOCAL, SOURCE_OWN, STEPS, SourceValue,
    },
    sources::{Sources, Sweep},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::{
    columns::{ColumnSet, Columns},
    timeline::Timeline,
};
use crate::{
    control::Failure,
    rule::{Action, GuardedPort, InterfaceName, RuleId, is_loopback, listed},
};

/// Prefixes that one policy may come to.
const MAX_PREFIXES: usize = 1_048_576;

/// All that a policy's tables are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    pub ports: Vec<GuardedPort>,
    /// Ports that are guarded because what listens there leads to a guarded one, whose rules hold for them.
    pub aliases: BTreeMap<GuardedPort, GuardedPort>,
    pub rules: Vec<InputRule>,
    /// The interfaces that rules name, each once.
    pub vias: Vec<Via>,
    /// Local sources: this host's own addresses and, unless the policy leaves them out, the subnets of its local
    /// bridges. Loopback is local whether it stands here or not.
    pub local: Vec<IpNet>,
    /// This host's own addresses that only loopback takes packets between, of the local ones.
    pub own: Vec<IpNet>,
    /// Subnets of local bridges that are no local sources (`local = ["host"]`). They are let in by a rule only, and
    /// still are this host's: a packet to them is not forwarded traffic, and one from outside can't come from them.
    pub guests: Vec<IpNet>,
    /// The interfaces over which only guests send, by index: what comes in by another one came from outside.
    pub inside: BTreeSet<u32>,
}

/// An interface that rules name, and where its packets are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    pub name: InterfaceName,
    /// Its own index, and for a bridge its outside ports'. None while no packet can be told to come by it.
    pub indices: Vec<u32>,
}

/// A rule whose source has become prefixes and whose end has become boot time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRule {
    pub id: RuleId,
    pub action: Action,
    pub kind: RuleKind,
    pub prefixes: Arc<[IpNet]>,
    /// Empty for every guarded port.
    pub ports: Vec<GuardedPort>,
    /// `None` for every interface; else one of the input's `vias`.
    pub via: Option<InterfaceName>,
    /// Boot time in nanoseconds; `NO_END` for none.
    pub until_ns: u64,
}

/// Which of the design's ranks a rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleKind {
    /// A prefix typed by hand.
    Typed,
    /// A name typed by hand. It only allows.
    Name,
    /// One of a set's prefixes.
    Set,
}

/// The contents of one policy slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub ports: BTreeMap<GuardedPort, PortIndex>,
    /// Each with the index of the guarded port it leads to. None of them is one of the ports.
    pub aliases: BTreeMap<GuardedPort, PortIndex>,
    pub sources: Sources,
    /// Rows of `ports.len()` times [`Tables::columns`] ladders; row 0 is what an address has that no prefix covers.
    pub ladders: Vec<Ladder>,
    /// Interfaces over which only guests send, by index.
    pub inside: BTreeSet<u32>,
    /// By the index of an interface that rules name: its column, from 1 on.
    pub vias: BTreeMap<u32, u32>,
}

impl Tables {
    /// How many ladders a row holds for each port, see `PolicyHeader::columns`.
    #[must_use]
    pub fn columns(&self) -> u32 {
        // One for interfaces that no rule names, and one for sockets.
        self.vias.values().max().map_or(1, |last| last + 2)
    }
}

/// Why a policy can't be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{count} ports are guarded, and a policy holds at most {MAX_GUARDED_PORTS}")]
    TooManyPorts { count: usize },
    #[error("the rules come to more than {MAX_PREFIXES} prefixes")]
    TooManyPrefixes,
    #[error(
        "the rules give sources more than {most} different combinations of verdicts and ends over the guarded ports",
        most = most_rows(*ladders)
    )]
    TooManyRows { ladders: usize },
    #[error(
        "the rules name {count} interfaces that have to be told apart, and a policy holds at most {MAX_VIAS}"
    )]
    TooManyInterfaces { count: usize },
    #[error(
        "for {source_prefix} at port {port} the rules {rules} change the verdict more than {most} times",
        rules = listed(rules),
        most = STEPS - 1
    )]
    TooManySteps { source_prefix: IpNet, port: GuardedPort, rules: Vec<RuleId> },
}

impl CompileError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::TooManyPorts { .. } => "Guard only the ports that the service listens on.",
            Self::TooManyPrefixes => "Use shorter lists of prefixes, or wider prefixes.",
            Self::TooManyRows { .. } => {
                "Give rules the same ends, guard fewer ports, or name fewer interfaces."
            }
            Self::TooManyInterfaces { .. } => "Name fewer interfaces in rules.",
            Self::TooManySteps { .. } => "Remove one of them, or give some the same end.",
        }
    }
}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Self {
        Self::failed(error.to_string(), error.fix())
    }
}

/// How many rows of so many ladders each a policy holds.
fn most_rows(ladders: usize) -> usize {
    (MAX_LADDERS as usize / ladders.max(1)).min(MAX_ROWS as usize)
}

/// Makes the tables of a policy.
///
/// # Errors
/// When the policy is larger than the tables, or a source's verdict changes too often.
pub fn compile(input: &Input) -> Result<Tables, CompileError> {
    let ports = port_indices(&input.ports)?;
    let columns = Columns::new(&input.vias)?;
    let (effects, additions) = collect(input, &ports, &columns);
    let mut resolver = Resolver::new(input, &ports, &columns, effects);
    let (mut v4, mut v6) = (Sweep::default(), Sweep::default());
    let mut prefix_count = 0;
    // The prefixes around the current one, outermost first, each with its state.
    let mut around: Vec<(IpNet, StateId)> = Vec::new();
    for same_prefix in additions.chunk_by(|one, other| one.0 == other.0) {
        let prefix = same_prefix[0].0;
        while around.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
            around.pop();
        }
        let outer = around.last().map_or(Resolver::NOTHING, |(_, state)| *state);
        let effects = same_prefix.iter().map(|(_, effect)| *effect).collect();
        let state = resolver.inside(outer, effects, prefix)?;
        let value = resolver.value(state);
        // What holds around it already needs no saying.
        if value != resolver.value(outer) {
            prefix_count += 1;
            if prefix_count > MAX_PREFIXES {
                return Err(CompileError::TooManyPrefixes);
            }
            match prefix {
                IpNet::V4(net) => v4.add(net.network().into(), net.broadcast().into(), value),
                IpNet::V6(net) => v6.add(net.network().into(), net.broadcast().into(), value),
            }
        }
        around.push((prefix, state));
    }
    let ladders = resolver.rows.concat();
    let aliases = alias_indices(input, &ports)?;
    Ok(Tables {
        ports,
        aliases,
        sources: Sources { v4: v4.finish(), v6: v6.finish() },
        ladders,
        vias: columns.by_index().clone(),
        inside: input.inside.clone(),
    })
}

/// What holds for an address at a port at a moment (boot time in nanoseconds), and the rule that says so: by the interface that
/// lets it in, where it depends on the interface.
///
/// It scans all rules: for answering people.
#[must_use]
pub fn resolve(
    input: &Input,
    address: IpAddr,
    port: GuardedPort,
    now_ns: u64,
) -> (Ruling, Option<RuleId>) {
    let by = |ifindex| resolve_by(input, address, port, ifindex, now_ns);
    let elsewhere = by(None);
    if matches!(elsewhere.0, Ruling::Allow | Ruling::Local) {
        return elsewhere;
    }
    let lets_in = |answer: &(Ruling, _)| matches!(answer.0, Ruling::Allow | Ruling::Local);
    named_indices(input).map(|ifindex| by(Some(ifindex))).find(lets_in).unwrap_or(elsewhere)
}

/// As [`resolve`], at a socket, where nothing says by which interface a packet came: [`Ruling::Vouched`] where that matters.
#[must_use]
pub fn resolve_at_socket(
    input: &Input,
    address: IpAddr,
    port: GuardedPort,
    now_ns: u64,
) -> (Ruling, Option<RuleId>) {
    let by = |ifindex| resolve_by(input, address, port, ifindex, now_ns);
    let elsewhere = by(None);
    let is_here = input.local.iter().chain(&input.guests).any(|prefix| prefix.contains(&address));
    if is_here || named_indices(input).all(|ifindex| by(Some(ifindex)).0 == elsewhere.0) {
        return elsewhere;
    }
    (Ruling::Vouched, None)
}

/// One index for each set of interfaces that rules treat alike.
fn named_indices(input: &Input) -> impl Iterator<Item = u32> {
    // Where a policy has too many, it is not put in force.
    let columns = Columns::new(&input.vias).ok();
    let by_column: BTreeMap<u32, u32> = columns
        .iter()
        .flat_map(Columns::by_index)
        .map(|(ifindex, column)| (*column, *ifindex))
        .collect();
    by_column.into_values()
}

/// As [`resolve`], for a packet that a NIC's hook judges on the interface with this index; `None` for one that no rule names.
#[must_use]
pub fn resolve_by(
    input: &Input,
    address: IpAddr,
    port: GuardedPort,
    ifindex: Option<u32>,
    now_ns: u64,
) -> (Ruling, Option<RuleId>) {
    if is_loopback(IpNet::from(address)) {
        return (Ruling::Local, None);
    }
    let port = input.ruled_as(port);
    let comes_by = |name: &InterfaceName| {
        input.vias.iter().any(|via| {
            via.name == *name && ifindex.is_some_and(|ifindex| via.indices.contains(&ifindex))
        })
    };
    let mut typed: Option<(u8, &InputRule)> = None;
    let mut name: Option<&InputRule> = None;
    let mut set: Option<&InputRule> = None;
    let holds = |rule: &&InputRule| {
        now_ns < rule.until_ns && rule.is_for(port) && rule.via.as_ref().is_none_or(comes_by)
    };
    for rule in input.rules.iter().filter(holds) {
        let bits = rule
            .prefixes
            .iter()
            .filter(|prefix| prefix.contains(&address))
            .map(IpNet::prefix_len)
            .max();
        let Some(bits) = bits else { continue };
        let denies = rule.action == Action::Deny;
        match rule.kind {
            RuleKind::Typed => {
                if typed.is_none_or(|(best, by)| {
                    bits > best || (bits == best && denies && by.action == Action::Allow)
                }) {
                    typed = Some((bits, rule));
                }
            }
            RuleKind::Name => name = name.or(Some(rule)),
            RuleKind::Set => {
                if set.is_none_or(|by| denies && by.action == Action::Allow) {
                    set = Some(rule);
                }
            }
        }
    }
    if let Some(rule) = typed.map(|(_, rule)| rule).or(name).or(set) {
        return (ruling_of(rule.action), Some(rule.id.clone()));
    }
    if input.local.iter().any(|prefix| prefix.contains(&address)) {
        return (Ruling::Local, None);
    }
    (Ruling::NoRule, None)
}

impl Input {
    /// Every port that is guarded, and every alias.
    #[must_use]
    pub fn every_port(&self) -> Vec<GuardedPort> {
        self.ports.iter().chain(self.aliases.keys()).copied().collect()
    }

    /// The guarded port whose rules hold at a port: itself, unless it is an alias.
    fn ruled_as(&self, port: GuardedPort) -> GuardedPort {
        match self.aliases.get(&port) {
            Some(to) if !self.ports.contains(&port) => *to,
            _ => port,
        }
    }
}

impl Tables {
    /// Every guarded port, aliases among them.
    #[must_use]
    pub fn every_port(&self) -> Vec<GuardedPort> {
        self.ports.keys().chain(self.aliases.keys()).copied().collect()
    }
}

impl InputRule {
    fn is_for(&self, port: GuardedPort) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

fn ruling_of(action: Action) -> Ruling {
    match action {
        Action::Allow => Ruling::Allow,
        Action::Deny => Ruling::Deny,
    }
}

fn port_indices(ports: &[GuardedPort]) -> Result<BTreeMap<GuardedPort, PortIndex>, CompileError> {
    let mut indices: BTreeMap<GuardedPort, PortIndex> =
        ports.iter().map(|port| (*port, 0)).collect();
    if indices.len() > MAX_GUARDED_PORTS as usize {
        return Err(CompileError::TooManyPorts { count: indices.len() });
    }
    for (index, slot) in (0..).zip(indices.values_mut()) {
        *slot = index;
    }
    Ok(indices)
}

/// What leads to a port that is not guarded is none, and neither is a guarded port.
fn alias_indices(
    input: &Input,
    ports: &BTreeMap<GuardedPort, PortIndex>,
) -> Result<BTreeMap<GuardedPort, PortIndex>, CompileError> {
    let aliases: BTreeMap<_, _> = input
        .aliases
        .iter()
        .filter(|(alias, _)| !ports.contains_key(alias))
        .filter_map(|(alias, to)| Some((*alias, *ports.get(to)?)))
        .collect();
    let count = ports.len() + aliases.len();
    if count > MAX_GUARDED_PORTS as usize {
        return Err(CompileError::TooManyPorts { count });
    }
    Ok(aliases)
}

/// What a prefix adds for the addresses in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Effect {
    Rule { kind: RuleKind, action: Action, until_ns: u64, ports: PortSet, columns: ColumnSet },
    Local,
    Own,
    Guest,
    Loopback,
}

/// A set of port indices: bit N for index N.
type PortSet = u64;

const _: () = assert!(MAX_GUARDED_PORTS <= PortSet::BITS, "a port index is a bit of PortSet");

/// An index into the list of distinct effects.
type EffectId = usize;

/// The distinct effects, and which of them each prefix adds: sorted by prefix, outer prefixes before inner ones.
fn collect(
    input: &Input,
    ports: &BTreeMap<GuardedPort, PortIndex>,
    columns: &Columns,
) -> (Vec<Effect>, Vec<(IpNet, EffectId)>) {
    let mut ids = HashMap::new();
    let mut effects = Vec::new();
    let mut additions = Vec::new();
    let mut add = |effect: Effect, prefixes: &[IpNet]| {
        let id = *ids.entry(effect).or_insert_with(|| {
            effects.push(effect);
            effects.len() - 1
        });
        additions.extend(prefixes.iter().map(|prefix| (prefix.trunc(), id)));
    };
    for rule in &input.rules {
        let for_ports = ports
            .iter()
            .filter(|(port, _)| rule.is_for(**port))
            .fold(0, |set, (_, index)| set | 1 << index);
        let by_columns = columns.of(rule.via.as_ref());
        if for_ports != 0 && by_columns != 0 {
            let effect = Effect::Rule {
                kind: rule.kind,
                action: rule.action,
                until_ns: rule.until_ns,
                ports: for_ports,
                columns: by_columns,
            };
            add(effect, &rule.prefixes);
        }
    }
    add(Effect::Local, &input.local);
    add(Effect::Own, &input.own);
    add(Effect::Guest, &input.guests);
    add(Effect::Loopback, &loopback());
    additions.sort_unstable();
    additions.dedup();
    (effects, additions)
}

fn loopback() -> [IpNet; 2] {
    [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ]
}

/// All that matters of the prefixes around an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "a prefix may be in several of them")]
struct State {
    is_local: bool,
    is_own: bool,
    is_guest: bool,
    is_loopback: bool,
    /// Port after port, one for each column but the sockets'.
    cells: Vec<Cell>,
}

/// What the rules say at one port, by the interfaces of one column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cell {
    /// What the prefixes typed by hand say; `None` where none does.
    typed: Timeline<Option<Action>>,
    /// Until when some name allows; 0 for never.
    name_allow_until_ns: u64,
    /// Until when some set denies; 0 for never.
    set_deny_until_ns: u64,
    /// Until when some set allows; 0 for never.
    set_allow_until_ns: u64,
}

/// An index into a resolver's states.
type StateId = usize;

/// Finds out, once for each combination that comes up, what holds inside a prefix.
struct Resolver<'a> {
    input: &'a Input,
    ports: &'a BTreeMap<GuardedPort, PortIndex>,
    columns: &'a Columns,
    effects: Vec<Effect>,
    states: Vec<State>,
    values: Vec<SourceValue>,
    ids: HashMap<State, StateId>,
    /// The state inside a prefix that adds these effects below that state.
    known: HashMap<(StateId, Vec<EffectId>), StateId>,
    rows: Vec<Vec<Ladder>>,
    row_ids: HashMap<Vec<Ladder>, u16>,
}

impl<'a> Resolver<'a> {
    /// The state of an address that no prefix covers: row 0.
    const NOTHING: StateId = 0;

    fn new(
        input: &'a Input,
        ports: &'a BTreeMap<GuardedPort, PortIndex>,
        columns: &'a Columns,
        effects: Vec<Effect>,
    ) -> Self {
        let nothing = State {
            is_local: false,
            is_own: false,
            is_guest: false,
            is_loopback: false,
            cells: vec![
                Cell {
                    typed: Timeline::always(None),
                    name_allow_until_ns: 0,
                    set_deny_until_ns: 0,
                    set_allow_until_ns: 0,
                };
                ports.len() * columns.of_interfaces()
            ],
        };
        let row = vec![Ladder::always(Ruling::NoRule); ports.len() * columns.with_sockets()];
        Self {
            input,
            ports,
            columns,
            effects,
            states: vec![nothing.clone()],
            values: vec![SourceValue::default()],
            ids: HashMap::from([(nothing, Self::NOTHING)]),
            known: HashMap::new(),
            rows: vec![row.clone()],
            row_ids: HashMap::from([(row, 0)]),
        }
    }

    fn value(&self, state: StateId) -> SourceValue {
        self.values[state]
    }

    /// The state inside `prefix`, which adds these effects below the state `outer`.
    fn inside(
        &mut self,
        outer: StateId,
        effects: Vec<EffectId>,
        prefix: IpNet,
    ) -> Result<StateId, CompileError> {
        let combination = (outer, effects);
        if let Some(state) = self.known.get(&combination) {
            return Ok(*state);
        }
        let added: Vec<Effect> = combination.1.iter().map(|id| self.effects[*id]).collect();
        let state = self.states[outer].with(&added, self.columns.of_interfaces());
        let id = if let Some(id) = self.ids.get(&state) {
            *id
        } else {
            let value = self.make_value(&state, prefix)?;
            let id = self.states.len();
            self.values.push(value);
            self.states.push(state.clone());
            self.ids.insert(state, id);
            id
        };
        self.known.insert(combination, id);
        Ok(id)
    }

    fn make_value(&mut self, state: &State, prefix: IpNet) -> Result<SourceValue, CompileError> {
        let is_here = state.is_local || state.is_guest;
        let mut flags = if is_here { SOURCE_LOCAL } else { 0 };
        if state.is_own {
            flags |= SOURCE_OWN;
        }
        let mut row = Vec::with_capacity(self.ports.len() * self.columns.with_sockets());
        let cells = state.cells.chunks(self.columns.of_interfaces());
        for (port, at_port) in self.ports.keys().zip(cells) {
            let mut rulings: Vec<_> = at_port.iter().map(|cell| cell.rulings(state)).collect();
            if self.columns.with_sockets() > rulings.len() {
                // What comes from this host itself passes no NIC's hook.
                let by_any = if is_here { &rulings[..1] } else { &rulings };
                let at_socket = Timeline::agreed(by_any, Ruling::Vouched);
                if at_socket.has(Ruling::Vouched) {
                    flags |= SOURCE_BY_INTERFACE;
                }
                rulings.push(at_socket);
            }
            for rulings in rulings {
                row.push(rulings.ladder().ok_or_else(|| self.too_many_steps(prefix, *port))?);
            }
        }
        Ok(SourceValue::new(self.row_id(row)?, flags))
    }

    fn row_id(&mut self, row: Vec<Ladder>) -> Result<u16, CompileError> {
        if let Some(id) = self.row_ids.get(&row) {
            return Ok(*id);
        }
        let ladders = row.len();
        let id =
            u16::try_from(self.rows.len()).ok().filter(|id| usize::from(*id) < most_rows(ladders));
        let id = id.ok_or(CompileError::TooManyRows { ladders })?;
        self.rows.push(row.clone());
        self.row_ids.insert(row, id);
        Ok(id)
    }

    /// Names the rules whose ends make a source's verdict at a port change too often.
    fn too_many_steps(&self, prefix: IpNet, port: GuardedPort) -> CompileError {
        let ends_here = |rule: &&InputRule| {
            rule.until_ns != NO_END
                && rule.is_for(port)
                && rule.prefixes.iter().any(|outer| outer.trunc().contains(&prefix))
        };
        let rules = self.input.rules.iter().filter(ends_here).map(|rule| rule.id.clone()).collect();
        CompileError::TooManySteps { source_prefix: prefix, port, rules }
    }
}

impl State {
    /// This state with what a prefix inside it adds.
    fn with(&self, effects: &[Effect], columns: usize) -> Self {
        let mut inner = self.clone();
        for effect in effects {
            match effect {
                Effect::Local => inner.is_local = true,
                Effect::Own => inner.is_own = true,
                Effect::Guest => inner.is_guest = true,
                Effect::Loopback => (inner.is_local, inner.is_loopback) = (true, true),
                Effect::Rule { .. } => {}
            }
        }
        for (index, cell) in inner.cells.iter_mut().enumerate() {
            let (port, column) = (index / columns, index % columns);
            let (mut deny_until_ns, mut allow_until_ns) = (0, 0);
            for effect in effects {
                let Effect::Rule { kind, action, until_ns, ports, columns } = *effect else {
                    continue;
                };
                if ports & 1 << port == 0 || columns & 1 << column == 0 {
                    continue;
                }
                let latest = match (kind, action) {
                    (RuleKind::Typed, Action::Deny) => &mut deny_until_ns,
                    (RuleKind::Typed, Action::Allow) => &mut allow_until_ns,
                    (RuleKind::Name, Action::Allow) => &mut cell.name_allow_until_ns,
                    // No such rule is made, and it would say nothing.
                    (RuleKind::Name, Action::Deny) => continue,
                    (RuleKind::Set, Action::Deny) => &mut cell.set_deny_until_ns,
                    (RuleKind::Set, Action::Allow) => &mut cell.set_allow_until_ns,
                };
                *latest = until_ns.max(*latest);
            }
            // Between rules of one prefix deny wins; what has ended uncovers the less specific prefix.
            cell.typed = cell.typed.covered_by(&[
                (deny_until_ns, Some(Action::Deny)),
                (allow_until_ns, Some(Action::Allow)),
            ]);
        }
        inner
    }
}

impl Cell {
    /// The design's order, at one port: prefixes typed by hand, names, sets (deny wins), local sources, else no rule. Loopback
    /// stands above: it can't be denied.
    fn rulings(&self, state: &State) -> Timeline<Ruling> {
        if state.is_loopback {
            return Timeline::always(Ruling::Local);
        }
        let no_rule = if state.is_local { Ruling::Local } else { Ruling::NoRule };
        let below_typed = Timeline::always(no_rule).covered_by(&[
            (self.name_allow_until_ns, Ruling::Allow),
            (self.set_deny_until_ns, Ruling::Deny),
            (self.set_allow_until_ns, Ruling::Allow),
        ]);
        self.typed.over(&below_typed, ruling_of)
    }
}
