//! Puts a policy in force: from configuration, flags and commands to the kernel's tables and hooks.
//!
//! Whoever has an engine has the lock: the daemon as long as it lives, else one command. Every change goes the same way: a
//! changed copy of the rules is compiled, put in force, and only then kept.

mod coverage;
mod cutting;
mod drivers;
mod facts;
mod ladder;
mod settings;
mod start;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    path::{Path, PathBuf},
    time::Duration,
};

use guard_common::{
    abi::{
        FLAG_BACKSTOP, FLAG_FORWARDED, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP, FLAG_REJECT, NO_END,
        Ruling,
    },
    packet::Protocol,
    verdict::Hook,
};
use jiff::Timestamp;
use tokio::sync::watch;

pub use self::cutting::Ended;
use self::{
    facts::{Facts, documentation_address},
    settings::Settings,
};
use crate::{
    compile::{self, Input, Via},
    config::Forwarded,
    control::{
        AddRules, Change, Control, Explain, Explanation, Failure, InterfaceStatus, Mode,
        PlaceVerdict, RemoveRules, RuleView, SetMode, Status,
    },
    host::{
        bpffs,
        cgroup::{self, Scope},
        forwarders, reserved_ports,
    },
    kernel::{
        KernelError,
        attach::{self, Attacher},
        binds::Binds,
        explain::{Oracle, Question},
        links,
        lock::Lock,
        pins::Pins,
        probe,
        tables::{PolicyMaps, Terms},
    },
    output::{
        self,
        text::{count, count_of},
    },
    policy::{self, Clock, Policy, Sets},
    rule::{GuardedPort, InterfaceName},
    state::{RunFlags, State},
};

/// Which configuration an engine works from.
#[derive(Clone, Debug)]
pub struct Place {
    pub config: PathBuf,
    /// It was named, so it has to be there.
    pub is_named: bool,
}

/// Ends nearer to each other than this are the same.
const SAME_END_NS: u64 = 100_000_000;

/// What following the network came to, as lines for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    pub news: Vec<String>,
    /// What did not work, and was not told before.
    pub problems: Vec<String>,
    /// There is more to do than could be done while others wait: it is to be called again soon.
    pub is_unfinished: bool,
}

/// How long each part of covering interfaces may keep others waiting.
const SLICE: Duration = Duration::from_millis(400);

/// How many problems are remembered while there is more to do.
const MOST_TOLD: usize = 1_000;

/// One guard on this host.
pub struct Engine {
    place: Place,
    /// The configuration, with the flags of `guard run` laid over it.
    settings: Settings,
    state: State,
    pins: Pins,
    /// Why enforcement would not outlive the daemon.
    mortal: Option<String>,
    /// `None` while nothing is loaded.
    maps: Option<PolicyMaps>,
    /// The sets of files, as they were when they were read.
    sets: Sets,
    /// What the policy in force was compiled from, where this engine put it there.
    in_force: Option<Input>,
    /// Every port that is guarded stays guarded, whatever became of the flags of the daemon that guarded it: only a start and a
    /// reload say anew which ports are.
    keeps_ports: bool,
    /// What did not work when the network was last looked at.
    told: Vec<String>,
    refusals: coverage::Refusals,
    /// How many there were then.
    hooks: usize,
    is_daemon: bool,
    /// Counts the policies put in force.
    policies: watch::Sender<u64>,
    _lock: Lock,
}

impl Engine {
    /// Takes the lock, and reads configuration and state. Changes nothing in the kernel.
    ///
    /// # Errors
    /// When another process has the lock, a file is bad, or there is no bpffs for the pins.
    pub fn open(place: &Place) -> Result<Self, Failure> {
        let config = settings::load(place)?;
        probe::check_root()?;
        let lock = Lock::take(&config.paths.lock())?;
        let loaded = State::load(&config.paths.state)?;
        let root = bpffs::locate(&config.paths.pins)
            .map_err(|error| Failure::failed(error.to_string(), error.fix()))?;
        let pins = Pins::new(root.path, &config.paths.pins);
        let maps = pins.are_complete().then(|| PolicyMaps::open(&pins)).transpose()?;
        for warning in loaded.warning.iter().chain(&root.note) {
            log::warn!("{warning}");
        }
        Ok(Self {
            place: place.clone(),
            settings: Settings::new(config, &loaded.state.run)?,
            state: loaded.state,
            pins,
            mortal: (!root.outlives_us).then(|| root.note.unwrap_or_default()),
            maps,
            sets: Sets::default(),
            in_force: None,
            keeps_ports: true,
            told: Vec::new(),
            refusals: coverage::Refusals::default(),
            hooks: 0,
            is_daemon: false,
            policies: watch::Sender::new(0),
            _lock: lock,
        })
    }

    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.settings.config.paths.socket
    }

    /// Word of every stream socket of this host that is bound from now on; `None` where the kernel gives none of all.
    #[must_use]
    pub fn follow_binds(&self) -> Option<Binds> {
        let root = self.settings.mounted_cgroup().ok().flatten()?;
        if root.scope != Scope::Root {
            return None;
        }
        Binds::follow(&self.pins, &root.path)
            .inspect_err(|error| log::info!("published ports are looked for each second: {error}"))
            .ok()
    }

    /// Whether what is in force stays when the daemon ends.
    #[must_use]
    pub fn outlives_us(&self) -> bool {
        self.mortal.is_none()
    }

    /// Learns this host's new addresses, guards ports newly published, covers interfaces that have come, and mends what others
    /// have taken off. One part that fails keeps none of the others from being done.
    pub fn follow_network(&mut self) -> Followed {
        if self.maps.is_none() {
            return Followed::default();
        }
        let mut followed = Followed::default();
        match Facts::gather(&self.settings.config) {
            Ok(facts) => {
                followed.problems.extend(facts.published.as_ref().err().cloned());
                if let Err(failure) = self.mend_sockets() {
                    followed.problems.push(format!("the backstop is missing: {failure}"));
                }
                match self.follow_addresses(&facts) {
                    Ok(cut) => followed.news.extend(cut),
                    Err(failure) => {
                        followed
                            .problems
                            .push(format!("own addresses are not followed: {failure}"));
                    }
                }
                if let Err(failure) = self.follow_interfaces(&facts, &mut followed) {
                    followed.problems.push(format!("interfaces are not covered: {failure}"));
                }
            }
            Err(failure) => followed.problems.push(failure.to_string()),
        }
        let problems = followed.problems.clone();
        followed.problems.retain(|problem| !self.told.contains(problem));
        // A problem that stays is told once, and one that was not come to this time may well have stayed.
        if followed.is_unfinished && self.told.len() < MOST_TOLD {
            self.told.extend(followed.problems.clone());
        } else {
            self.told = problems;
        }
        followed
    }

    /// Attaches the backstop where somebody has taken it off. Where there is no tree to attach it to, the start has said so.
    fn mend_sockets(&self) -> Result<(), Failure> {
        match self.settings.mounted_cgroup()? {
            Some(root) => Ok(Attacher::new(&self.pins)?.cover_sockets(&root.path)?),
            None => Ok(()),
        }
    }

    /// Returns what is worth a line in the log: ports newly published or no longer, and the connections that were cut.
    fn follow_addresses(&mut self, facts: &Facts) -> Result<Vec<String>, Failure> {
        let policy = self.policy(&self.settings, &self.state)?;
        let mut input = self.input(&self.settings.clone(), &policy, facts)?;
        let terms = self.terms(&input, &self.settings, &self.state)?;
        let header = self.maps.as_ref().map(PolicyMaps::header).transpose()?.flatten();
        let same_flags = header.is_some_and(|header| header.flags == terms.flags);
        if let Some(in_force) = &self.in_force {
            keep_ends(&mut input, in_force);
        }
        if !same_flags || self.in_force.as_ref() != Some(&input) {
            let mut news = self.published_changes(&input.aliases)?;
            let generation = self.put(input, terms)?;
            log::debug!("generation {generation:?} follows the network");
            news.extend(cutting::notes(&self.cut()));
            return Ok(news);
        }
        Ok(Vec::new())
    }

    fn follow_interfaces(
        &mut self,
        facts: &Facts,
        followed: &mut Followed,
    ) -> Result<(), KernelError> {
        let (pins, config) = (&self.pins, &self.settings.config);
        let covered = coverage::cover_within(pins, config, facts, SLICE, &mut self.refusals)?;
        followed.news.extend(covered.gone);
        followed.problems.extend(covered.failures);
        followed.is_unfinished = covered.is_unfinished;
        if covered.is_unfinished {
            return Ok(());
        }
        let after = self.hooks_in_place()?;
        let before = mem::replace(&mut self.hooks, after);
        if after != before {
            followed.news.push(format!(
                "the network has changed: {after} hooks are in place, {before} were"
            ));
        }
        Ok(())
    }

    /// How many links of ours judge packets.
    fn hooks_in_place(&self) -> Result<usize, KernelError> {
        Ok(links::ours(&self.pins)?.iter().filter(|link| !link.is_dead()).count())
    }

    /// One sentence for each published port that is not yet guarded, or no longer to be.
    fn published_changes(
        &self,
        now: &BTreeMap<GuardedPort, GuardedPort>,
    ) -> Result<Vec<String>, KernelError> {
        let before = self.maps.as_ref().map(PolicyMaps::aliases_in_force).transpose()?;
        let before = before.unwrap_or_default();
        let come = now.iter().filter(|(port, to)| before.get(port) != Some(to));
        let gone = before.keys().filter(|port| !now.contains_key(port));
        Ok(come
            .map(|(port, to)| format!("port {port} is published and leads to {to}: guarded too"))
            .chain(gone.map(|port| format!("port {port} is no longer published: guarded no more")))
            .collect())
    }

    fn clock(&self) -> Clock {
        let wall = Timestamp::now();
        Clock { wall, boot_ns: probe::boot_ns(), trusted: wall >= self.state.newest_time }
    }

    /// All rules: the file's, the flags', and those made by command.
    fn policy(&self, settings: &Settings, state: &State) -> Result<Policy, Failure> {
        let mut ports = settings.config.ports.clone();
        if let (true, Some(maps)) = (self.keeps_ports, &self.maps) {
            ports.extend(maps.ports_in_force()?);
            ports.sort_unstable();
            ports.dedup();
        }
        Ok(Policy::new(ports, [&settings.config.rules, &settings.flag_rules, &state.rules]))
    }

    fn input(
        &mut self,
        settings: &Settings,
        policy: &Policy,
        facts: &Facts,
    ) -> Result<Input, Failure> {
        self.sets.complete(&policy.rules)?;
        let rules = policy.input_rules(&self.sets, &facts.lan, &self.clock())?;
        let names: BTreeSet<_> = rules.iter().filter_map(|rule| rule.via.clone()).collect();
        let via = |name| Via {
            indices: coverage::judged_at(&settings.config, facts, &name).unwrap_or_default(),
            name,
        };
        Ok(Input {
            ports: policy.ports.clone(),
            aliases: self.aliases(&policy.ports, facts)?,
            rules,
            vias: names.into_iter().map(via).collect(),
            local: facts.local.clone(),
            own: facts.own.clone(),
            guests: facts.guests.clone(),
            inside: facts.inside(),
        })
    }

    /// The published ports that lead to guarded ones, each with the one it leads to. Those in force stay while nobody knows
    /// what is published.
    fn aliases(
        &self,
        guarded: &[GuardedPort],
        facts: &Facts,
    ) -> Result<BTreeMap<GuardedPort, GuardedPort>, KernelError> {
        let Ok(published) = &facts.published else {
            let held = self.maps.as_ref().map(PolicyMaps::aliases_in_force).transpose()?;
            return Ok(forwarders::kept(held.unwrap_or_default(), guarded));
        };
        let aliases = forwarders::aliases(published, guarded);
        Ok(aliases.taken.into_iter().map(|(port, alias)| (port, alias.to)).collect())
    }

    fn terms(&self, input: &Input, settings: &Settings, state: &State) -> Result<Terms, Failure> {
        Ok(Terms {
            observe_until_ns: observe_until_ns(settings, state, &self.clock()),
            flags: self.flags(input, settings)?,
            rule_count: input.rules.len() as u32,
        })
    }

    /// Compiles and puts in force; `None` while nothing is loaded.
    fn put(&mut self, input: Input, terms: Terms) -> Result<Option<u64>, Failure> {
        // A policy that does not compile is refused whether or not something is loaded.
        let tables = compile::compile(&input)?;
        let Some(maps) = &mut self.maps else {
            return Ok(None);
        };
        let generation = maps.put_in_force(&tables, terms)?;
        self.in_force = Some(input);
        self.policies.send_modify(|policies| *policies += 1);
        Ok(Some(generation))
    }

    fn flags(&self, input: &Input, settings: &Settings) -> Result<u32, Failure> {
        let guards = |protocol| input.ports.iter().any(|port| port.protocol == protocol);
        let mut flags = 0;
        let parts = [
            (settings.config.forwarded == Forwarded::Guard, FLAG_FORWARDED),
            (self.backstop_is_whole(settings)?, FLAG_BACKSTOP),
            (guards(Protocol::Tcp), FLAG_GUARDS_TCP),
            (guards(Protocol::Udp), FLAG_GUARDS_UDP),
            (settings.config.reject, FLAG_REJECT),
        ];
        for (holds, flag) in parts {
            if holds {
                flags |= flag;
            }
        }
        Ok(flags)
    }

    /// Whether the backstop judges every socket that a packet from outside can reach: it is on the root of the cgroup
    /// tree, or on the cgroup that the configuration says holds the guarded services.
    fn backstop_is_whole(&self, settings: &Settings) -> Result<bool, Failure> {
        if self.maps.is_none() {
            return Ok(false);
        }
        let Some(attached) = attach::backstop(&links::ours(&self.pins)?) else {
            return Ok(false);
        };
        let Some(root) = settings.mounted_cgroup()? else {
            return Ok(false);
        };
        let is_whole = root.scope == Scope::Root || settings.config.paths.cgroup.is_some();
        Ok(is_whole && root.id().ok() == Some(attached))
    }

    /// Puts a changed state in force and keeps it. When it can't be kept, what was in force comes back.
    fn change(&mut self, settings: &Settings, mut state: State) -> Result<Option<u64>, Failure> {
        let facts = Facts::gather(&settings.config)?;
        let generation = self.put_settings(settings, &state, &facts)?;
        state.newest_time = state.newest_time.max(self.clock().wall);
        if let Err(error) = state.save(&settings.config.paths.state, Timestamp::now()) {
            let (settings, state) = (self.settings.clone(), self.state.clone());
            self.put_settings(&settings, &state, &facts)?;
            return Err(error.into());
        }
        self.state = state;
        Ok(generation)
    }

    fn put_settings(
        &mut self,
        settings: &Settings,
        state: &State,
        facts: &Facts,
    ) -> Result<Option<u64>, Failure> {
        let policy = self.policy(settings, state)?;
        let input = self.input(settings, &policy, facts)?;
        let terms = self.terms(&input, settings, state)?;
        self.put(input, terms)
    }

    fn views(&self, policy: &Policy, facts: &Facts) -> Result<Vec<RuleView>, Failure> {
        let config = &self.settings.config;
        let mut covered = HashSet::new();
        // The kernel is asked only where somebody names an interface.
        if policy.rules.iter().any(|rule| rule.interface().is_some()) {
            let (interfaces, _) =
                coverage::report(&self.pins, config, facts, &links::ours(&self.pins)?)?;
            let has_hook = |it: &InterfaceStatus| it.hook.is_some() || self.maps.is_none();
            covered.extend(interfaces.into_iter().filter(has_hook).map(|it| it.index));
        }
        let idle = |name: &InterfaceName| coverage::idle(config, facts, &covered, name);
        Ok(policy.views(&self.sets, &facts.lan, &self.clock(), idle))
    }

    fn changed(
        &self,
        generation: Option<u64>,
        rules: Vec<RuleView>,
        mut notes: Vec<String>,
    ) -> Change {
        notes.extend(cutting::notes(&self.cut()));
        if generation.is_none() {
            notes.push("nothing is loaded: this holds from the next `guard run` on".to_owned());
        } else if !self.is_daemon {
            notes.push(
                "no daemon is running: this was put in force in the kernel directly".to_owned(),
            );
        }
        Change { generation, rules, notes }
    }
}

impl Control for Engine {
    fn status(&mut self) -> Result<Status, Failure> {
        status::status(self)
    }

    fn rules(&mut self) -> Result<Vec<RuleView>, Failure> {
        let facts = Facts::gather(&self.settings.config)?;
        let policy = self.policy(&self.settings, &self.state)?;
        self.sets.complete(&policy.rules)?;
        self.views(&policy, &facts)
    }

    fn add_rules(&mut self, request: &AddRules) -> Result<Change, Failure> {
        let mut state = self.state.clone();
        let policy = self.policy(&self.settings, &state)?;
        let added = policy::add(&policy, request, &mut state, &self.clock())?;
        let generation = self.change(&self.settings.clone(), state)?;
        let all = self.rules()?;
        let rules: Vec<RuleView> =
            all.into_iter().filter(|rule| added.ids.contains(&rule.id)).collect();
        let mut notes = added.notes;
        notes.extend(rules.iter().filter_map(output::idle));
        Ok(self.changed(generation, rules, notes))
    }

    fn remove_rules(&mut self, request: &RemoveRules) -> Result<Change, Failure> {
        let mut state = self.state.clone();
        let all = self.rules()?;
        let policy = self.policy(&self.settings, &state)?;
        let removed = policy::remove(&policy, &request.rules, &mut state)?;
        let generation = self.change(&self.settings.clone(), state)?;
        let rules = all.into_iter().filter(|rule| removed.contains(&rule.id)).collect();
        Ok(self.changed(generation, rules, Vec::new()))
    }

    fn set_mode(&mut self, request: &SetMode) -> Result<Change, Failure> {
        let mut state = self.state.clone();
        state.mode = Some(request.mode);
        state.observe_until = match (request.mode, request.for_seconds) {
            (Mode::Observe, Some(seconds)) => Some(policy::end_after(self.clock().wall, seconds)?),
            (Mode::Observe, None) => None,
            (Mode::Enforce, None) => None,
            (Mode::Enforce, Some(_)) => {
                return Err(Failure::bad_request(
                    "enforcing has no end",
                    "Leave out how long, or observe for that time.",
                ));
            }
        };
        let generation = self.change(&self.settings.clone(), state)?;
        Ok(self.changed(generation, Vec::new(), Vec::new()))
    }

    fn explain(&mut self, request: &Explain) -> Result<Explanation, Failure> {
        if self.maps.is_none() {
            return Err(KernelError::NotLoaded.into());
        }
        let facts = Facts::gather(&self.settings.config)?;
        let policy = self.policy(&self.settings, &self.state)?;
        let input = self.input(&self.settings.clone(), &policy, &facts)?;
        let port: GuardedPort = match &request.port {
            Some(text) => text.parse()?,
            None => *policy.ports.first().ok_or(KernelError::NotLoaded)?,
        };
        let source = request.source.to_canonical();
        let views = self.views(&policy, &facts)?;
        let now_ns = probe::boot_ns();

        let mut oracle = Oracle::open(&self.pins)?;
        let mut places = Vec::new();
        let (interfaces, _) =
            coverage::report(&self.pins, &self.settings.config, &facts, &links::ours(&self.pins)?)?;
        for interface in interfaces {
            let Some(way) = &interface.hook else { continue };
            let hook =
                [Hook::Xdp, Hook::Edge].into_iter().find(|hook| way.starts_with(hook.name()));
            let hook = hook.unwrap_or(Hook::Tcx);
            let destination = facts
                .own_address(source, interface.index)
                .unwrap_or_else(|| documentation_address(source));
            let place = match hook {
                Hook::Edge => format!("forwarded to {}", interface.name),
                Hook::Xdp | Hook::Tcx | Hook::Cgroup => interface.name,
            };
            places.push((place, hook, interface.index, destination));
        }
        if attach::backstop(&links::ours(&self.pins)?).is_some() {
            let destination =
                facts.any_own_address(source).unwrap_or_else(|| documentation_address(source));
            places.push(("socket".to_owned(), Hook::Cgroup, 0, destination));
        }
        let places = places
            .into_iter()
            .map(|(place, hook, ifindex, destination)| {
                let question = Question { source, destination, port, ifindex };
                let answer = oracle.ask(hook, &question)?;
                let by_rule = answer.is_some_and(|(_, reason)| reason.is_by_rule());
                let (ruling, decisive) = match hook {
                    Hook::Cgroup => compile::resolve_at_socket(&input, source, port, now_ns),
                    _ => compile::resolve_by(&input, source, port, Some(ifindex), now_ns),
                };
                Ok(PlaceVerdict {
                    place,
                    hook: hook.name().to_owned(),
                    verdict: answer.map_or("not-guarded", |(verdict, _)| verdict.name()).to_owned(),
                    reason: answer.map(|(_, reason)| reason.name().to_owned()),
                    rule: decisive
                        .filter(|_| by_rule)
                        .and_then(|id| views.iter().find(|view| view.id == id).cloned()),
                    by_interface: ruling == Ruling::Vouched,
                })
            })
            .collect::<Result<_, KernelError>>()?;
        Ok(Explanation { source, port: port.to_string(), places })
    }

    fn reload(&mut self) -> Result<Change, Failure> {
        let settings = self.settings.reload(&self.place, &self.state.run)?;
        let mut state = self.state.clone();
        // Only a policy that is in force with the files' new contents makes them the ones to go by.
        let held = (mem::take(&mut self.sets), mem::replace(&mut self.keeps_ports, false));
        let generation = match self.change_settings(&settings) {
            Ok(generation) => generation,
            Err(failure) => {
                (self.sets, self.keeps_ports) = held;
                return Err(failure);
            }
        };
        self.settings = settings;
        let mut notes = Vec::new();
        if self.maps.is_some() {
            notes.extend(start::reserve_ports(&self.settings, &mut state));
            self.state.reserved_ports = state.reserved_ports;
            self.state.save(&self.settings.config.paths.state, Timestamp::now())?;
            let facts = Facts::gather(&self.settings.config)?;
            self.refusals.clear();
            notes.extend(coverage::cover(&self.pins, &self.settings.config, &facts)?);
        }
        let rules = self.rules()?;
        notes.extend(rules.iter().filter_map(output::idle));
        Ok(self.changed(generation, rules, notes))
    }

    fn down(&mut self) -> Result<Vec<String>, Failure> {
        let mut lifted = Vec::new();
        let facts = Facts::gather(&self.settings.config)?;
        let hooks = attach::uncover_all(&self.pins, &facts.attached())?;
        self.maps = None;
        self.in_force = None;
        self.pins.remove_all()?;
        if hooks > 0 {
            lifted.push(format!(
                "{} taken off; nothing is guarded any more",
                count(hooks as u64, "hook")
            ));
        }
        let reserved = mem::take(&mut self.state.reserved_ports);
        if !reserved.is_empty() {
            reserved_ports::release(&reserved).map_err(|error| {
                Failure::failed(
                    format!("the ports that guard reserved could not be released: {error}"),
                    "Take them out of net.ipv4.ip_local_reserved_ports by hand.",
                )
            })?;
            lifted.push(format!("{} no longer reserved", count_of(&reserved, "port")));
        }
        if let Err(error) = cgroup::unmount_own() {
            log::warn!("the cgroup tree that guard mounted stays mounted: {error}");
        }
        self.state.mode = None;
        self.state.observe_until = None;
        self.state.run = RunFlags::default();
        self.state.save(&self.settings.config.paths.state, Timestamp::now())?;
        if lifted.is_empty() {
            lifted.push("nothing was in force".to_owned());
        }
        if !self.state.rules.is_empty() {
            lifted.push(format!(
                "{} made by command kept for the next `guard run`",
                count_of(&self.state.rules, "rule")
            ));
        }
        Ok(lifted)
    }
}

impl Engine {
    /// Puts other settings in force, unless they would cut somebody off who was not asked.
    fn change_settings(&mut self, settings: &Settings) -> Result<Option<u64>, Failure> {
        let facts = Facts::gather(&settings.config)?;
        let policy = self.policy(settings, &self.state)?;
        let input = self.input(settings, &policy, &facts)?;
        if self.maps.is_some() {
            let tables = compile::compile(&input)?;
            start::check_sessions(&self.newly_guarded(settings)?, &tables, settings, false)?;
        }
        self.change(settings, self.state.clone())
    }

    /// Ports that these settings guard and the policy in force does not.
    fn newly_guarded(&self, settings: &Settings) -> Result<Vec<GuardedPort>, Failure> {
        let in_force = self.maps.as_ref().map(PolicyMaps::ports_in_force).transpose()?;
        let in_force = in_force.unwrap_or_default();
        let ports = settings.config.ports.iter();
        Ok(ports.filter(|port| !in_force.contains(port)).copied().collect())
    }
}

/// Wall clock and boot time are read one after the other, so that the same end comes out a little different each time.
/// What differs by more is another end, or a clock that was set.
fn keep_ends(input: &mut Input, in_force: &Input) {
    for (rule, held) in input.rules.iter_mut().zip(&in_force.rules) {
        if rule.until_ns.abs_diff(held.until_ns) < SAME_END_NS {
            rule.until_ns = held.until_ns;
        }
    }
}

/// See `PolicyHeader::observe_until_ns`. What a command set comes before the flag, and that before the file.
fn observe_until_ns(settings: &Settings, state: &State, clock: &Clock) -> u64 {
    match (state.mode.unwrap_or(settings.config.mode), state.observe_until) {
        (Mode::Enforce, _) => 0,
        (Mode::Observe, None) => NO_END,
        // A clock that can't be believed can't say how long there is to go.
        (Mode::Observe, Some(until)) if clock.trusted => clock.boot_at(until),
        (Mode::Observe, Some(_)) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{InputRule, RuleKind},
        rule::{Action, RuleId},
    };

    fn input(ends: &[u64]) -> Input {
        let rule = |until_ns: &u64| InputRule {
            id: RuleId::flag(1),
            action: Action::Allow,
            kind: RuleKind::Typed,
            prefixes: Vec::new(),
            ports: Vec::new(),
            via: None,
            until_ns: *until_ns,
        };
        Input { rules: ends.iter().map(rule).collect(), ..Input::default() }
    }

    #[test]
    fn an_end_that_clocks_give_anew_is_the_same_and_a_clock_that_was_set_is_not() {
        let second = 1_000_000_000;
        let in_force = input(&[7 * second, 9 * second, NO_END]);
        let mut wanted = input(&[7 * second + 20_000, 9 * second - 20_000, NO_END]);
        keep_ends(&mut wanted, &in_force);
        assert_eq!(wanted, in_force);
        let mut wanted = input(&[8 * second, 0, NO_END, 5]);
        keep_ends(&mut wanted, &in_force);
        assert_eq!(wanted, input(&[8 * second, 0, NO_END, 5]));
    }
}
