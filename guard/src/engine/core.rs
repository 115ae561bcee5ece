//! What an engine holds: what the policy is made from, and what is in force. Whatever takes long only reads it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    path::PathBuf,
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

use super::{
    Place, coverage, cutting,
    facts::{Facts, documentation_address},
    settings::{self, Settings},
    start,
    status::{self, Missing},
};
use crate::{
    compile::{self, Input, Via},
    config::Forwarded,
    control::{
        Change, Explain, Explanation, Failure, InterfaceStatus, Mode, PlaceVerdict, RuleView,
        Status,
    },
    history::{Asked, Standing},
    host::{
        bpffs,
        cgroup::{self, Scope},
        forwarders, reserved_ports,
    },
    kept_names,
    kernel::{
        KernelError,
        attach::{self, Attacher},
        binds::Binds,
        explain::{Oracle, Question},
        links,
        lock::Lock,
        pins::Pins,
        probe,
        tables::{PolicyMaps, Ready, Terms},
    },
    output::text::{count, count_of},
    policy::{Clock, Policy, Sets, Unreadable, names::Answer},
    progress::{Progress, Step},
    rule::{DnsName, GuardedPort, InterfaceName},
    state::{RunFlags, State},
    trial::{self, Trial},
};

/// Ends nearer to each other than this are the same.
const SAME_END_NS: u64 = 100_000_000;

pub struct Core {
    pub place: Place,
    /// The configuration, with the flags of `guard run` laid over it.
    pub settings: Settings,
    pub state: State,
    pub pins: Pins,
    /// What was wrong with the state file, where nothing of it is known.
    pub lost: Option<String>,
    /// Why enforcement would not outlive the daemon.
    pub mortal: Option<String>,
    /// `None` while nothing is loaded.
    pub maps: Option<PolicyMaps>,
    /// The sets of files, as they were when they were read.
    pub(super) sets: Sets,
    /// What the policy in force was compiled from, where this engine put it there.
    in_force: Option<Input>,
    /// Every port that is guarded stays guarded, whatever became of the flags of the daemon that guarded it: only a start and a
    /// reload say anew which ports are.
    keeps_ports: bool,
    pub is_daemon: bool,
    /// Counts the policies put in force.
    pub policies: watch::Sender<u64>,
    /// The trial of this state, and when it is over in nanoseconds of boot time.
    pub(super) trial: Option<(Trial, u64)>,
    /// What a configuration on trial has taken the place of, where this engine put it in force.
    pub(super) before_trial: Option<(Settings, Sets)>,
    /// Of the change under way. A question has one of its own, which nobody sees.
    pub progress: Progress,
    _lock: Lock,
}

/// What a new policy takes over from the one before, whatever its rules say.
#[derive(Clone, Debug)]
pub struct Basis {
    sets: Sets,
    /// These stay guarded.
    ports: Vec<GuardedPort>,
    keeps_ports: bool,
    /// What is done with files that are not read yet and can't be.
    unreadable: Unreadable,
}

impl Basis {
    /// With what is said of names beside it.
    pub fn with_answers(mut self, answers: Vec<(DnsName, Answer)>) -> Self {
        self.sets.take(answers, Timestamp::now());
        self
    }

    /// For a start where nothing is in force: a host is not left open for want of a file.
    pub fn whatever_can_be_read(self) -> Self {
        Self { unreadable: Unreadable::Shown, ..self }
    }

    /// With files as they were read once.
    pub fn with_sets(self, sets: Sets) -> Self {
        Self { sets, ..self }
    }

    /// All rules: the file's, the flags', and those made by command.
    fn policy(&self, settings: &Settings, state: &State) -> Policy {
        let mut ports = [settings.config.ports.as_slice(), &self.ports].concat();
        ports.sort_unstable();
        ports.dedup();
        Policy::new(ports, [&settings.config.rules, &settings.flag_rules, &state.rules])
    }
}

/// A policy that is compiled, and what it was made from.
pub struct Prepared {
    pub input: Input,
    pub ready: Ready,
    pub terms: Terms,
    sets: Sets,
    keeps_ports: bool,
}

/// A change that is ready to be made.
pub struct Planned {
    policy: Prepared,
    pub(super) settings: Settings,
    pub(super) state: State,
    facts: Facts,
}

impl Core {
    pub fn open(place: &Place) -> Result<Self, Failure> {
        let file = settings::load(place)?;
        let paths = &file.config.paths;
        probe::check_root()?;
        probe::allow_open_files();
        let lock = Lock::take(&paths.lock())?;
        let loaded = State::load(&paths.state)?;
        let root = bpffs::locate(&paths.pins)
            .map_err(|error| Failure::failed(error.to_string(), error.fix()))?;
        let pins = Pins::new(root.path, &paths.pins);
        pins.refuse_newer()?;
        let maps = pins.are_complete().then(|| PolicyMaps::open(&pins)).transpose()?;
        let (names, bad_names) = kept_names::load(&paths.state, Timestamp::now());
        for warning in loaded.warning.iter().chain(&root.note).chain(&bad_names) {
            log::warn!("{warning}");
        }
        let mut state = loaded.state;
        let in_force = settings::in_force(place, file, &mut state)?;
        let mut core = Self {
            place: place.clone(),
            settings: Settings::new(in_force, &state.run)?,
            state,
            pins,
            lost: loaded.warning.filter(|_| loaded.is_lost),
            mortal: (!root.outlives_us).then(|| root.note.unwrap_or_default()),
            maps,
            sets: Sets::with_names(names),
            in_force: None,
            keeps_ports: true,
            is_daemon: false,
            policies: watch::Sender::new(0),
            trial: None,
            before_trial: None,
            progress: Progress::default(),
            _lock: lock,
        };
        let clock = core.clock();
        core.state.follow_clock(&clock);
        core.note_trial();
        Ok(core)
    }

    /// Moves what ends after a span where the clock was set, and keeps it so. A clock that is believed at last is remembered.
    pub fn follow_clock(&mut self) {
        let clock = self.clock();
        if self.state.is_new_to(&clock) {
            self.state.note_clock(&clock);
            self.save_state();
        }
        let Some(step) = self.state.follow_clock(&clock) else { return };
        self.note_trial();
        log::info!("the clock was set by {step:#}: what ends after a time ends when it would have");
        self.save_state();
    }

    /// Keeps the time, so that a clock that is behind it after the next start is not believed.
    pub fn keep_time(&mut self) {
        let clock = self.clock();
        self.state.note_clock(&clock);
        self.save_state();
    }

    fn save_state(&self) {
        // What is in the place of a state that is lost has no rules: whoever read that would take those in force for gone.
        if self.lost.is_some() {
            return;
        }
        if let Err(error) = self.state.save(&self.settings.config.paths.state, Timestamp::now()) {
            log::warn!("{error}");
        }
    }

    pub fn follow_binds(&self) -> Option<Binds> {
        let root = self.settings.mounted_cgroup().ok().flatten()?;
        if root.scope != Scope::Root {
            return None;
        }
        Binds::follow(&self.pins, &root.path)
            .inspect_err(|error| log::info!("published ports are looked for each second: {error}"))
            .ok()
    }

    /// Attaches the backstop where somebody has taken it off. Where there is no tree to attach it to, the start has said so.
    pub fn mend_sockets(&self) -> Result<(), Failure> {
        match self.settings.mounted_cgroup()? {
            Some(root) => Ok(Attacher::new(&self.pins)?.cover_sockets(&root.path)?),
            None => Ok(()),
        }
    }

    /// What the network has made of the policy, and what is worth saying of it, where it is not what is in force.
    pub fn plan_following(
        &self,
        facts: &Facts,
    ) -> Result<Option<(Prepared, Vec<String>)>, Failure> {
        self.plan_with(facts, self.sets.clone())
    }

    /// As [`Self::plan_following`], with these sets.
    pub fn plan_with(
        &self,
        facts: &Facts,
        sets: Sets,
    ) -> Result<Option<(Prepared, Vec<String>)>, Failure> {
        let basis = Basis { sets, ..self.basis()? };
        let policy = basis.policy(&self.settings, &self.state);
        let sets =
            basis.sets.completed(&policy.rules, self.mmdb(), basis.unreadable, &self.progress)?;
        let mut input = self.input(&self.settings, &policy, &sets, facts)?;
        let terms = self.terms(&input, &self.settings, &self.state)?;
        let header = self.maps.as_ref().map(PolicyMaps::header).transpose()?.flatten();
        let same_flags = header.is_some_and(|header| header.flags == terms.flags);
        if let Some(in_force) = &self.in_force {
            keep_ends(&mut input, in_force);
        }
        if same_flags && self.in_force.as_ref() == Some(&input) {
            return Ok(None);
        }
        let news = self.published_changes(&input.aliases)?;
        let ready = self.compile(&input)?;
        Ok(Some((Prepared { input, ready, terms, sets, keeps_ports: basis.keeps_ports }, news)))
    }

    /// How many links of ours judge packets.
    pub fn hooks_in_place(&self) -> Result<usize, KernelError> {
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

    pub fn clock(&self) -> Clock {
        let wall = Timestamp::now();
        Clock {
            wall,
            boot_ns: probe::boot_ns(),
            boot_id: probe::boot_id(),
            trusted: wall >= self.state.newest_time,
        }
    }

    /// What a change takes over that neither reads files again nor says which ports are guarded.
    pub fn basis(&self) -> Result<Basis, KernelError> {
        let ports = match (&self.maps, self.keeps_ports) {
            (Some(maps), true) => maps.ports_in_force()?,
            _ => Vec::new(),
        };
        Ok(Basis {
            sets: self.sets.clone(),
            ports,
            keeps_ports: self.keeps_ports,
            unreadable: Unreadable::Refused,
        })
    }

    /// What a start and a reload begin from: files are read again, and which ports are guarded is said anew.
    pub fn anew(&self) -> Basis {
        Basis {
            sets: self.sets.only_names(),
            ports: Vec::new(),
            keeps_ports: false,
            unreadable: Unreadable::Refused,
        }
    }

    /// What sources stand for.
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// Keeps sets that make no other policy.
    pub fn keep_sets(&mut self, sets: Sets) {
        self.sets = sets;
    }

    /// The files that say which networks a country has.
    pub fn mmdb(&self) -> &[PathBuf] {
        &self.settings.config.enrich.mmdb
    }

    /// Keeps the answers for names across restarts.
    pub fn save_names(&self) -> Result<(), String> {
        let directory = &self.settings.config.paths.state;
        kept_names::save(directory, self.sets.names()).map_err(|error| {
            format!(
                "the answers for names can't be kept in {}, and after a restart they are asked for anew: {error}",
                directory.display()
            )
        })
    }

    /// The policy that these settings and this state come to now.
    pub fn policy(&self) -> Result<Policy, KernelError> {
        Ok(self.basis()?.policy(&self.settings, &self.state))
    }

    fn input(
        &self,
        settings: &Settings,
        policy: &Policy,
        sets: &Sets,
        facts: &Facts,
    ) -> Result<Input, Failure> {
        let rules = policy.input_rules(sets, &facts.lan, &self.clock())?;
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

    pub fn terms(
        &self,
        input: &Input,
        settings: &Settings,
        state: &State,
    ) -> Result<Terms, Failure> {
        Ok(Terms {
            observe_until_ns: observe_until_ns(settings, state, &self.clock()),
            flags: self.flags(input, settings)?,
            rule_count: input.rules.len() as u32,
        })
    }

    /// Compiles what a change comes to. A policy that does not compile is refused whether or not something is loaded.
    pub fn plan(&self, settings: Settings, state: State, basis: Basis) -> Result<Planned, Failure> {
        if self.maps.is_none() {
            self.pins.refuse_older()?;
        }
        self.refuse_what_is_lost()?;
        let facts = Facts::gather(&settings.config)?;
        let policy = self.prepare(&settings, &state, &facts, basis)?;
        Ok(Planned { policy, settings, state, facts })
    }

    pub fn prepare(
        &self,
        settings: &Settings,
        state: &State,
        facts: &Facts,
        basis: Basis,
    ) -> Result<Prepared, Failure> {
        let policy = basis.policy(settings, state);
        let mmdb = &settings.config.enrich.mmdb;
        let sets = basis.sets.completed(&policy.rules, mmdb, basis.unreadable, &self.progress)?;
        let input = self.input(settings, &policy, &sets, facts)?;
        let terms = self.terms(&input, settings, state)?;
        let ready = self.compile(&input)?;
        Ok(Prepared { input, ready, terms, sets, keeps_ports: basis.keeps_ports })
    }

    fn compile(&self, input: &Input) -> Result<Ready, Failure> {
        let prefixes = input.rules.iter().map(|rule| rule.prefixes.len() as u64).sum();
        let _compiling = self.progress.begin(Step::Compiling, prefixes);
        Ok(Ready::new(compile::compile(input)?)?)
    }

    /// Puts in force what was planned, keeps it, and keeps who asked for it.
    pub fn carry_out(&mut self, planned: Planned, asked: &Asked) -> Result<Option<u64>, Failure> {
        let before = self.standing()?;
        let is_announced = self.announce_trial(&planned)?;
        let puts = *self.policies.borrow();
        let generation = self.put_and_keep(planned);
        // One that was put and not taken back is in force, whatever else has failed.
        if generation.is_ok() || *self.policies.borrow() == puts + 1 {
            self.record(asked, &before, self.standing());
        }
        if generation.is_err() && is_announced {
            self.withdraw_trial();
        }
        generation
    }

    /// Puts in force what was planned, and keeps it. When it can't be kept, what was in force comes back.
    pub fn put_and_keep(&mut self, planned: Planned) -> Result<Option<u64>, Failure> {
        let Planned { policy, settings, mut state, facts } = planned;
        let before = self.basis()?;
        let generation = self.put(policy)?;
        state.note_clock(&self.clock());
        if let Err(error) = state.save(&settings.config.paths.state, Timestamp::now()) {
            let back = self.prepare(&self.settings, &self.state, &facts, before)?;
            self.put(back)?;
            return Err(error.into());
        }
        self.go_by(settings, state);
        Ok(generation)
    }

    /// As [`Self::put_and_keep`], for a start: a host is guarded also where nothing can be written. Returns why it was not kept.
    pub fn put_at_start(&mut self, planned: Planned) -> Result<Option<String>, Failure> {
        let Planned { policy, settings, mut state, .. } = planned;
        self.put(policy)?;
        state.note_clock(&self.clock());
        let kept = state.save(&settings.config.paths.state, Timestamp::now());
        self.go_by(settings, state);
        Ok(kept.err().map(|error| format!("rules can't be made by command: {error}")))
    }

    fn go_by(&mut self, settings: Settings, state: State) {
        self.state = state;
        self.settings = settings;
        self.lost = None;
        self.note_trial();
    }

    /// # Errors
    /// Where a policy is in force whose rules made by command nobody knows any more: whatever is put in its place would lack them.
    pub fn refuse_what_is_lost(&self) -> Result<(), Failure> {
        match &self.lost {
            Some(why) if self.maps.is_some() || self.pins.older()?.is_some() => {
                Err(Failure::failed(
                    format!(
                        "nothing is changed, since what is in force would lose its rules made by command. {why}"
                    ),
                    "Put the state file back from a copy; or lift everything with `guard down`, then start anew.",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Puts a policy in force; `None` while nothing is loaded.
    pub fn put(&mut self, policy: Prepared) -> Result<Option<u64>, Failure> {
        let generation = match &mut self.maps {
            Some(maps) => {
                let generation = maps.put_in_force(policy.ready, policy.terms, &self.progress)?;
                self.in_force = Some(policy.input);
                self.policies.send_modify(|policies| *policies += 1);
                Some(generation)
            }
            None => None,
        };
        // Only a policy that is in force with the files' new contents makes them the ones to go by.
        self.sets = policy.sets;
        self.keeps_ports = policy.keeps_ports;
        Ok(generation)
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

    pub fn views(&self, policy: &Policy, facts: &Facts) -> Result<Vec<RuleView>, Failure> {
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
        let sets = self.sets.clone().completed(
            &policy.rules,
            self.mmdb(),
            Unreadable::Shown,
            &Progress::default(),
        )?;
        Ok(policy.views(&sets, &facts.lan, &self.clock(), idle))
    }

    pub fn changed(
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
        Change { generation, rules, notes, trial: self.state.trial.as_ref().map(Trial::view) }
    }

    pub fn status(&self) -> Result<Status, Failure> {
        status::status(self)
    }

    /// What should be in force and is not.
    pub fn missing(&self, facts: &Facts) -> Result<Vec<Missing>, Failure> {
        Ok(status::health(self, &self.policy()?, facts)?.missing)
    }

    pub fn rules(&self) -> Result<Vec<RuleView>, Failure> {
        let facts = Facts::gather(&self.settings.config)?;
        let policy = self.policy()?;
        self.views(&policy, &facts)
    }

    pub fn explain(&self, request: &Explain) -> Result<Explanation, Failure> {
        if self.maps.is_none() {
            self.pins.refuse_older()?;
            return Err(KernelError::NotLoaded.into());
        }
        let facts = Facts::gather(&self.settings.config)?;
        let basis = self.basis()?;
        let policy = basis.policy(&self.settings, &self.state);
        let sets = basis.sets.completed(
            &policy.rules,
            self.mmdb(),
            basis.unreadable,
            &Progress::default(),
        )?;
        let input = self.input(&self.settings, &policy, &sets, &facts)?;
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

    pub fn down(&mut self, asked: &Asked) -> Result<Vec<String>, Failure> {
        let before = self.standing()?;
        let lifted = self.lift();
        // Whatever has failed: once the tables are let go of, nothing is decided by them any more.
        if lifted.is_ok() || self.maps.is_none() && before.generation.is_some() {
            let after = Standing { generation: None, ports: Vec::new(), ..before.clone() };
            self.record(asked, &before, Ok(after));
        }
        lifted
    }

    fn lift(&mut self) -> Result<Vec<String>, Failure> {
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
        trial::undo(&mut self.state);
        self.state.rolled_back = false;
        self.note_trial();
        self.state.save(&self.settings.config.paths.state, Timestamp::now())?;
        trial::forget(&self.settings.config.paths.state);
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
    /// Adds the ports guarded now to those that the kernel does not choose by itself, and keeps which.
    pub fn reserve_ports(&mut self) -> Result<Option<String>, Failure> {
        let problem = start::reserve_ports(&self.settings, &mut self.state);
        self.state.save(&self.settings.config.paths.state, Timestamp::now())?;
        Ok(problem)
    }

    /// Refuses what would cut somebody off who was not asked.
    pub fn refuse_to_cut_sessions(&self, planned: &Planned) -> Result<(), Failure> {
        if self.maps.is_none() {
            return Ok(());
        }
        let ports = self.newly_guarded(&planned.settings)?;
        start::check_sessions(&ports, planned.policy.ready.tables(), &planned.settings, false)
    }

    /// Ports that these settings guard and the policy in force does not.
    pub fn newly_guarded(&self, settings: &Settings) -> Result<Vec<GuardedPort>, Failure> {
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
            prefixes: [].into(),
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
