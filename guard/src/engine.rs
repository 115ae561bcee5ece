//! Puts a policy in force: from configuration, flags and commands to the kernel's tables and hooks.
//!
//! Whoever has an engine has the lock: the daemon as long as it lives, else one command. Every change goes the same way: a
//! changed copy of the rules is compiled, put in force, and only then kept. Changes wait for each other; questions are answered
//! meanwhile, and wait only for what is compiled to be put in force.

mod core;
mod coverage;
mod cutting;
mod drivers;
mod facts;
mod ladder;
mod settings;
mod sources;
mod start;
mod status;

use std::{
    mem,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::core::{Core, Planned};
pub use self::cutting::Ended;
use crate::{
    control::{
        AddRules, Change, Control, Explain, Explanation, Failure, Mode, RemoveRules, RuleView,
        SetMode, Status,
    },
    engine::facts::Facts,
    kernel::{KernelError, binds::Binds, pins::Pins},
    output, policy,
    startup::Startup,
    state::RunFlags,
};

/// Which configuration an engine works from.
#[derive(Clone, Debug)]
pub struct Place {
    pub config: PathBuf,
    /// It was named, so it has to be there.
    pub is_named: bool,
}

/// What following the network came to, as lines for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    pub news: Vec<String>,
    /// What did not work, and was not told before.
    pub problems: Vec<String>,
    /// There is more to do than could be done while others wait: it is to be called again soon.
    pub is_unfinished: bool,
}

/// How long each part of covering interfaces may keep other changes waiting.
const SLICE: Duration = Duration::from_millis(400);

/// How many problems are remembered while there is more to do.
const MOST_TOLD: usize = 1_000;

/// What is remembered of the network from one look to the next.
#[derive(Default)]
struct Following {
    /// What did not work when it was last looked at.
    told: Vec<String>,
    refusals: coverage::Refusals,
    /// How many hooks there were then.
    hooks: usize,
    /// When the answers for names were last kept in their file.
    names_kept: Option<Instant>,
}

/// Loading programs, and reading files and compiling what they hold, takes far more memory than what is kept of it.
pub fn give_memory_back() {
    // SAFETY: it touches nothing but what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// One guard on this host.
pub struct Engine {
    /// Held through every change, from the reading of what is to change to the last word about it, so that nothing else changes
    /// in between. It is always taken first.
    changes: Mutex<Following>,
    core: RwLock<Core>,
    /// Held while the programs are asked: there is one place for their answers (`EXPLAINED`).
    oracle: Mutex<()>,
}

impl Engine {
    /// Takes the lock, and reads configuration and state. Changes nothing in the kernel.
    ///
    /// # Errors
    /// When another process has the lock, a file is bad, or there is no bpffs for the pins.
    pub fn open(place: &Place) -> Result<Self, Failure> {
        Ok(Self {
            changes: Mutex::default(),
            core: RwLock::new(Core::open(place)?),
            oracle: Mutex::default(),
        })
    }

    /// Loads or adopts the programs, puts the policy in force, and covers sockets and interfaces, in this order: tables are
    /// whole before anything is armed. Returns what to tell whoever started it.
    ///
    /// # Errors
    /// When something is bad (nothing has changed then), or the kernel refuses the programs. An interface or a backstop
    /// that could not be covered is no error: it is named in the message and by `guard status`.
    pub fn start(&mut self, flags: RunFlags, yes: bool) -> Result<Startup, Failure> {
        let core = self.core.get_mut().unwrap_or_else(PoisonError::into_inner);
        let following = self.changes.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (startup, problems) = core.start(flags, yes)?;
        following.told = problems;
        following.hooks = core.hooks_in_place()?;
        Ok(startup)
    }

    #[must_use]
    pub fn pins(&self) -> Pins {
        self.core().pins.clone()
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.core().settings.config.paths.socket.clone()
    }

    /// Whether what is in force stays when the daemon ends.
    #[must_use]
    pub fn outlives_us(&self) -> bool {
        self.core().mortal.is_none()
    }

    /// Word of every stream socket of this host that is bound from now on; `None` where the kernel gives none of all.
    #[must_use]
    pub fn follow_binds(&self) -> Option<Binds> {
        self.core().follow_binds()
    }

    /// Counts the policies that this engine has put in force.
    #[must_use]
    pub fn policies(&self) -> watch::Receiver<u64> {
        self.core().policies.subscribe()
    }

    /// Ends the open connections that the policy in force stops, when a rule or the time of observing has ended in the kernel
    /// since a moment; none while packets are only counted. Says when something ends next.
    ///
    /// # Errors
    /// When the tables can't be read.
    pub fn cut_ended(&self, since_ns: u64) -> Result<Ended, Failure> {
        self.core().cut_ended(since_ns)
    }

    /// Learns this host's new addresses, guards ports newly published, covers interfaces that have come, and mends what others
    /// have taken off. One part that fails keeps none of the others from being done.
    pub fn follow_network(&self) -> Followed {
        // A panic elsewhere leaves everything as it was between two changes: each is put in force whole or not at all.
        let mut following = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut followed = Followed::default();
        if self.core().maps.is_none() {
            return followed;
        }
        let gathered = Facts::gather(&self.core().settings.config);
        match gathered {
            Ok(facts) => {
                followed.problems.extend(facts.published.as_ref().err().cloned());
                if let Err(failure) = self.core().mend_sockets() {
                    followed.problems.push(format!("the backstop is missing: {failure}"));
                }
                match self.follow_addresses(&facts) {
                    Ok(news) => followed.news.extend(news),
                    Err(failure) => {
                        followed
                            .problems
                            .push(format!("own addresses are not followed: {failure}"));
                    }
                }
                if let Err(failure) =
                    self.core().follow_interfaces(&facts, &mut following, &mut followed)
                {
                    followed.problems.push(format!("interfaces are not covered: {failure}"));
                }
            }
            Err(failure) => followed.problems.push(failure.to_string()),
        }
        let problems = followed.problems.clone();
        followed.problems.retain(|problem| !following.told.contains(problem));
        // A problem that stays is told once, and one that was not come to this time may well have stayed.
        if followed.is_unfinished && following.told.len() < MOST_TOLD {
            following.told.extend(followed.problems.clone());
        } else {
            following.told = problems;
        }
        followed
    }

    /// Returns what is worth a line in the log: ports newly published or no longer, and the connections that were cut.
    fn follow_addresses(&self, facts: &Facts) -> Result<Vec<String>, Failure> {
        let planned = self.core().plan_following(facts)?;
        let Some((ready, mut news)) = planned else {
            return Ok(Vec::new());
        };
        let generation = self.core_to_change().put(ready)?;
        log::debug!("generation {generation:?} follows the network");
        news.extend(cutting::notes(&self.core().cut()));
        Ok(news)
    }

    /// For what goes on whatever has become of a request.
    fn core(&self) -> RwLockReadGuard<'_, Core> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn core_to_change(&self) -> RwLockWriteGuard<'_, Core> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a question; at most one at a time.
    fn read(&self) -> Result<RwLockReadGuard<'_, Core>, Failure> {
        self.core.read().map_err(|_| Failure::panicked())
    }

    /// For as long as what is ready is put in force.
    fn write(&self) -> Result<RwLockWriteGuard<'_, Core>, Failure> {
        self.core.write().map_err(|_| Failure::panicked())
    }

    fn begin_change(&self) -> Result<MutexGuard<'_, Following>, Failure> {
        self.changes.lock().map_err(|_| Failure::panicked())
    }

    /// Puts in force what was planned in this change.
    fn carry_out(&self, planned: Planned) -> Result<Option<u64>, Failure> {
        self.write()?.carry_out(planned)
    }
}

impl Control for Engine {
    fn status(&self) -> Result<Status, Failure> {
        self.read()?.status()
    }

    fn rules(&self) -> Result<Vec<RuleView>, Failure> {
        self.read()?.rules()
    }

    fn add_rules(&self, request: &AddRules) -> Result<Change, Failure> {
        // Before anything else waits for it.
        let answers = sources::ask(request);
        let mut following = self.begin_change()?;
        let (planned, added) = {
            let core = self.read()?;
            let mut state = core.state.clone();
            let policy = core.policy()?;
            let added = policy::add(&policy, request, &mut state, &core.clock())?;
            let basis = core.basis()?.with_answers(answers.clone());
            (core.plan(core.settings.clone(), state, basis)?, added)
        };
        let generation = self.carry_out(planned)?;
        let core = self.read()?;
        following.keep_names(&core, !answers.is_empty());
        let all = core.rules()?;
        let rules: Vec<RuleView> =
            all.into_iter().filter(|rule| added.ids.contains(&rule.id)).collect();
        let mut notes = added.notes;
        notes.extend(sources::notes(&core, &answers));
        notes.extend(rules.iter().filter_map(output::idle));
        Ok(core.changed(generation, rules, notes))
    }

    fn remove_rules(&self, request: &RemoveRules) -> Result<Change, Failure> {
        let _change = self.begin_change()?;
        let (planned, removed) = {
            let core = self.read()?;
            let mut state = core.state.clone();
            let all = core.rules()?;
            let policy = core.policy()?;
            let removed = policy::remove(&policy, &request.rules, &mut state)?;
            let rules: Vec<RuleView> =
                all.into_iter().filter(|rule| removed.contains(&rule.id)).collect();
            (core.plan(core.settings.clone(), state, core.basis()?)?, rules)
        };
        let generation = self.carry_out(planned)?;
        Ok(self.read()?.changed(generation, removed, Vec::new()))
    }

    fn set_mode(&self, request: &SetMode) -> Result<Change, Failure> {
        let _change = self.begin_change()?;
        let planned = {
            let core = self.read()?;
            let mut state = core.state.clone();
            state.mode = Some(request.mode);
            state.observe_until = match (request.mode, request.for_seconds) {
                (Mode::Observe, Some(seconds)) => {
                    Some(policy::end_after(core.clock().wall, seconds)?)
                }
                (Mode::Observe | Mode::Enforce, None) => None,
                (Mode::Enforce, Some(_)) => {
                    return Err(Failure::bad_request(
                        "enforcing has no end",
                        "Leave out how long, or observe for that time.",
                    ));
                }
            };
            core.plan(core.settings.clone(), state, core.basis()?)?
        };
        let generation = self.carry_out(planned)?;
        Ok(self.read()?.changed(generation, Vec::new(), Vec::new()))
    }

    fn explain(&self, request: &Explain) -> Result<Explanation, Failure> {
        let core = self.read()?;
        // Whoever has failed has left nothing that the next does not write anew.
        let _alone = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        core.explain(request)
    }

    fn reload(&self) -> Result<Change, Failure> {
        let mut following = self.begin_change()?;
        let planned = {
            let core = self.read()?;
            let settings = core.settings.reload(&core.place, &core.state.run)?;
            let planned = core.plan(settings, core.state.clone(), core.anew())?;
            core.refuse_to_cut_sessions(&planned)?;
            planned
        };
        let generation = self.carry_out(planned)?;
        give_memory_back();
        let mut notes = Vec::new();
        if generation.is_some() {
            notes.extend(self.write()?.reserve_ports()?);
            let core = self.read()?;
            let facts = Facts::gather(&core.settings.config)?;
            following.refusals.clear();
            notes.extend(coverage::cover(&core.pins, &core.settings.config, &facts)?);
        }
        let core = self.read()?;
        let rules = core.rules()?;
        notes.extend(rules.iter().filter_map(output::idle));
        Ok(core.changed(generation, rules, notes))
    }

    fn down(&self) -> Result<Vec<String>, Failure> {
        let _change = self.begin_change()?;
        self.write()?.down()
    }
}

impl Core {
    fn follow_interfaces(
        &self,
        facts: &Facts,
        following: &mut Following,
        followed: &mut Followed,
    ) -> Result<(), KernelError> {
        let (pins, config) = (&self.pins, &self.settings.config);
        let covered = coverage::cover_within(pins, config, facts, SLICE, &mut following.refusals)?;
        followed.news.extend(covered.gone);
        followed.problems.extend(covered.failures);
        followed.is_unfinished = covered.is_unfinished;
        if covered.is_unfinished {
            return Ok(());
        }
        let after = self.hooks_in_place()?;
        let before = mem::replace(&mut following.hooks, after);
        if after != before {
            followed.news.push(format!(
                "the network has changed: {after} hooks are in place, {before} were"
            ));
        }
        Ok(())
    }
}
