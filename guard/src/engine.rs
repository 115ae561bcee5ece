//! Puts a policy in force: from configuration, flags and commands to the kernel's tables and hooks.
//!
//! Whoever has an engine has the lock: the daemon as long as it lives, else one command. Every change goes the same way: a
//! changed copy of the rules is compiled, put in force, and only then kept. Changes wait for each other; questions are answered
//! meanwhile, and wait only for what is compiled to be put in force.

mod changing;
mod core;
mod coverage;
mod cutting;
mod drivers;
mod facts;
mod knowing;
mod ladder;
mod settings;
mod sources;
mod start;
mod status;

use std::{
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;

use self::core::{Core, Planned};
pub use self::cutting::Ended;
use crate::{
    control::{
        AddRules, Change, Control, Explain, Explanation, Failure, Layer, Mode, Reload, RemoveRules,
        RuleView, SetMode, Status,
    },
    engine::{facts::Facts, status::Missing},
    enrich::Enrichment,
    history::{self, Asked, History, Kind, Requester},
    host::bpffs,
    kernel::{
        KernelError,
        binds::Binds,
        keep::{Kept, Lapse},
        pins::Pins,
    },
    output, policy,
    progress::{Loading, Progress},
    sinks::JsonLines,
    startup::Startup,
    state::{RunFlags, State},
    trial::{self, Trial},
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
    /// What is not in force as it should be, and was when it was last looked at.
    pub missing: Vec<String>,
    /// What somebody has taken off, and what has become of it.
    pub lapses: Vec<String>,
    /// There is more to do than could be done while others wait: it is to be called again soon.
    pub is_unfinished: bool,
}

/// How long each part of covering interfaces may keep other changes waiting.
const SLICE: Duration = Duration::from_millis(400);

/// How often the time is kept while there is something that ends.
const KEEP_TIME: Duration = Duration::from_hours(1);

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
    /// What was missing then.
    missing: Vec<Missing>,
    /// When the time was last kept.
    time_kept: Option<Instant>,
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

/// Threads that work now and then get heaps of their own from the allocator, and each keeps what it once needed most: a daemon that
/// is changed a lot had 50 MiB at rest that way, and has 20 with one heap for all. To be called before there are threads.
pub fn share_one_heap() {
    // SAFETY: it sets a number of the allocator's (mallopt(3)), and nobody else allocates meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
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
    /// What was in force after the last look, where this is the daemon's engine.
    kept: Mutex<Option<Kept>>,
    /// The core's, to be had while that is being changed.
    progress: Progress,
    /// What is known of sources, where this is the daemon's engine.
    enrichment: Arc<Enrichment>,
}

impl Engine {
    /// Takes the lock, and reads configuration and state. Changes nothing in the kernel.
    ///
    /// # Errors
    /// When another process has the lock, a file is bad, or there is no bpffs for the pins.
    pub fn open(place: &Place) -> Result<Self, Failure> {
        let core = Core::open(place)?;
        Ok(Self {
            changes: Mutex::default(),
            progress: core.progress.clone(),
            core: RwLock::new(core),
            oracle: Mutex::default(),
            kept: Mutex::default(),
            enrichment: Arc::default(),
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
        let asked = Asked::start(&flags, &Requester::this_process());
        let (startup, problems) = core.start(flags, yes, &asked)?;
        following.told = problems;
        following.hooks = core.hooks_in_place()?;
        let facts = Facts::gather(&core.settings.config)?;
        following.missing = core.missing(&facts)?;
        self.kept = Mutex::new(Some(Kept::now(&core.pins, &facts.seen)?));
        Ok(startup)
    }

    /// How far a change has come that takes long, also while nothing else is answered.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    #[must_use]
    pub fn pins(&self) -> Pins {
        self.core().pins.clone()
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.core().settings.config.paths.socket.clone()
    }

    /// The file of JSON lines that attempts are written to.
    #[must_use]
    pub fn json_lines(&self) -> Option<JsonLines> {
        self.core().settings.config.events.jsonl.clone()
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

    /// Comes back when a change could be begun and a question answered: whatever was under way has come to its end then.
    pub fn wait_until_idle(&self) {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.core());
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
        self.follow_clock();
        if following.time_kept.is_none_or(|kept| kept.elapsed() >= KEEP_TIME) {
            following.time_kept = Some(Instant::now());
            if self.core().state.has_ends() {
                self.core_to_change().keep_time();
            }
        }
        let lapses = self.mend_pins(&mut followed);
        let gathered = Facts::gather(&self.core().settings.config);
        match gathered {
            Ok(facts) => {
                self.mend(&facts, &mut following, &mut followed);
                if !followed.is_unfinished
                    && let Err(failure) =
                        self.take_stock(facts, &lapses, &mut following, &mut followed)
                {
                    followed.problems.push(format!("what is in force is not known: {failure}"));
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

    /// Whether somebody may have taken off what was in force after the last look: asked often, so that it is back soon. It waits for
    /// nothing: while somebody looks it says no, and `None` where netlink has to be asked ([`Self::have_filters_lapsed`]).
    #[must_use]
    pub fn has_lapsed(&self) -> Option<bool> {
        let Ok(kept) = self.kept.try_lock() else { return Some(false) };
        let Some(kept) = kept.as_ref() else { return Some(false) };
        let has_lapsed = kept.has_lapsed();
        (has_lapsed || !kept.has_filters()).then_some(has_lapsed)
    }

    /// As [`Self::has_lapsed`], of filters. Must not be called within a runtime.
    #[must_use]
    pub fn have_filters_lapsed(&self) -> bool {
        self.kept().as_ref().is_some_and(Kept::have_filters_lapsed)
    }

    /// Says what somebody has taken off, and makes the pins anew, by which the programs are found.
    fn mend_pins(&self, followed: &mut Followed) -> Vec<Lapse> {
        let kept = self.kept();
        let Some(kept) = kept.as_ref() else { return Vec::new() };
        let lapses = kept.lapses();
        if lapses.contains(&Lapse::Pins) {
            // There may be no bpffs any more.
            let pins = &self.core().settings.config.paths.pins;
            if let Err(error) = bpffs::locate(pins) {
                followed.problems.push(format!("guard's pins can't be made anew: {error}"));
            } else if let Err(error) = kept.restore_pins() {
                followed.problems.push(format!("guard's pins can't be made anew: {error}"));
            }
        }
        lapses
    }

    fn mend(&self, facts: &Facts, following: &mut Following, followed: &mut Followed) {
        followed.problems.extend(facts.published.as_ref().err().cloned());
        if let Err(failure) = self.core().mend_sockets() {
            followed.problems.push(format!("the backstop can't be attached: {failure}"));
        }
        match self.follow_addresses(facts) {
            Ok(news) => followed.news.extend(news),
            Err(failure) => {
                followed.problems.push(format!("own addresses are not followed: {failure}"));
            }
        }
        if let Err(failure) = self.core().follow_interfaces(facts, following, followed) {
            followed.problems.push(format!("interfaces are not covered: {failure}"));
        }
    }

    /// Finds out what is in force after a look, and says what of it has changed. `facts` are those from before it.
    fn take_stock(
        &self,
        mut facts: Facts,
        lapses: &[Lapse],
        following: &mut Following,
        followed: &mut Followed,
    ) -> Result<(), Failure> {
        let core = self.core();
        let mut missing = core.missing(&facts)?;
        if !missing.is_empty() {
            // What they tell may have been put right since.
            facts = Facts::gather(&core.settings.config)?;
            missing = core.missing(&facts)?;
        }
        let is_new = |one: &&Missing| !following.missing.contains(one);
        let new: Vec<_> = missing.iter().filter(is_new).collect();
        followed.missing.extend(new.iter().map(|one| one.what.clone()));
        followed.lapses.extend(lapses.iter().filter_map(|lapse| told(*lapse, &facts, &new)));
        let is_over = |one: &&Missing| !missing.contains(one);
        let over = following.missing.iter().filter(is_over);
        followed.news.extend(over.map(|one| format!("no longer so: {}", one.what)));
        following.missing = missing;
        *self.kept() = Some(Kept::now(&core.pins, &facts.seen)?);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rolls back the trial that is over, and says how long the one that is open lasts from now, in nanoseconds; `None` where none
    /// is.
    ///
    /// # Errors
    /// When it can't be rolled back; it stays open then, and whatever of it the kernel ends has ended.
    pub fn end_trial(&self) -> Result<Option<u64>, Failure> {
        let left_ns = self.core().trial_left_ns();
        match left_ns {
            None => Ok(None),
            Some(0) => {
                let mut following = self.begin_change()?;
                self.settle_trial(&mut following)?;
                Ok(self.core().trial_left_ns())
            }
            Some(_) => Ok(left_ns),
        }
    }

    /// Rolls back the trial that is over, if one is.
    fn settle_trial(&self, following: &mut Following) -> Result<(), Failure> {
        if self.read()?.trial_left_ns() != Some(0) {
            return Ok(());
        }
        let what = self.read()?.state.trial.as_ref().map(|trial| trial.what.clone());
        let what = format!("not confirmed: {}", what.unwrap_or_default());
        let asked = Asked::new(Kind::Rollback, &what, &Requester::itself());
        let change = self.roll_back(following, &asked)?;
        log::warn!("rolled back, {}", output::text::escaped(&what));
        change.notes.iter().for_each(|note| log::info!("{}", output::text::escaped(note)));
        Ok(())
    }

    /// For a change that no trial is to be mixed up with: takes back one that is over, and is refused while one is open.
    fn begin_change_without_trial(&self) -> Result<MutexGuard<'_, Following>, Failure> {
        let mut following = self.begin_change()?;
        self.settle_trial(&mut following)?;
        let core = self.read()?;
        match (&core.state.trial, core.trial_left_ns()) {
            (Some(trial), Some(left_ns)) => Err(trial.refusal(left_ns)),
            _ => Ok(following),
        }
    }

    fn roll_back(&self, following: &mut Following, asked: &Asked) -> Result<Change, Failure> {
        let (planned, trial) = self.read()?.plan_rollback()?;
        let generation = self.carry_out(planned, asked)?;
        let mut notes = Vec::new();
        if trial.is_of_configuration() {
            notes.push(format!(
                "the configuration in force is not that of {}: `guard reload` takes it",
                self.read()?.place.config.display()
            ));
            // The old policy is in force whatever becomes of the rest, which following the network mends.
            if generation.is_some() {
                notes.extend(
                    self.apply_settings(following)
                        .unwrap_or_else(|failure| vec![failure.to_string()]),
                );
            }
        }
        Ok(self.read()?.changed(generation, Vec::new(), notes))
    }

    /// Reserves ports and covers interfaces as new settings say. Returns what did not work.
    fn apply_settings(&self, following: &mut Following) -> Result<Vec<String>, Failure> {
        let mut notes: Vec<String> = self.write()?.reserve_ports()?.into_iter().collect();
        let core = self.read()?;
        let facts = Facts::gather(&core.settings.config)?;
        following.refusals.clear();
        if let Err(failure) = core.mend_sockets() {
            notes.push(format!("the backstop can't be attached: {failure}"));
        }
        notes.extend(coverage::cover(&core.pins, &core.settings.config, &facts)?);
        if core.is_daemon {
            // What is held of links is asked of them; filters stand in the facts, which may be others now.
            let has_filters = facts.seen.values().any(|seen| !seen.filters.is_empty());
            let facts = if has_filters { Facts::gather(&core.settings.config)? } else { facts };
            *self.kept() = Some(Kept::now(&core.pins, &facts.seen)?);
        }
        Ok(notes)
    }

    /// Returns what is worth a line in the log: ports newly published or no longer, and the connections that were cut.
    fn follow_addresses(&self, facts: &Facts) -> Result<Vec<String>, Failure> {
        let planned = self.core().plan_following(facts)?;
        let Some((ready, mut news)) = planned else {
            return Ok(Vec::new());
        };
        let asked = (!news.is_empty())
            .then(|| Asked::new(Kind::Published, &news.join("; "), &Requester::itself()));
        let before = self.core().standing()?;
        let generation = self.core_to_change().put(ready)?;
        log::debug!("generation {generation:?} follows the network");
        if let Some(asked) = asked {
            let core = self.core();
            core.record(&asked, &before, core.standing());
        }
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
        let following = self.changes.lock().map_err(|_| Failure::panicked())?;
        self.follow_clock();
        Ok(following)
    }

    /// To be called within a change, before anything is made of the time.
    fn follow_clock(&self) {
        let is_other = {
            let core = self.core();
            let clock = core.clock();
            core.state.clock_step(&clock).is_some() || core.state.is_new_to(&clock)
        };
        if is_other {
            self.core_to_change().follow_clock();
        }
    }

    /// Keeps the time in the state, for the next start.
    pub fn keep_time(&self) {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.core_to_change().keep_time();
    }

    /// Puts in force what was planned in this change.
    fn carry_out(&self, planned: Planned, asked: &Asked) -> Result<Option<u64>, Failure> {
        self.write()?.carry_out(planned, asked)
    }
}

/// What has become of something that somebody took off; nothing where its interface has gone. `missing` is what is since then.
fn told(lapse: Lapse, facts: &Facts, missing: &[&Missing]) -> Option<String> {
    let (what, layer) = match lapse {
        Lapse::Interface { ifindex, hook } => {
            let interface = facts.interfaces.iter().find(|it| it.index == ifindex)?;
            let layer = if interface.is_edge() { Layer::Edge } else { Layer::Interfaces };
            (format!("somebody has taken guard's program off {} ({hook})", interface.name), layer)
        }
        Lapse::Backstop => ("somebody has taken off the backstop".to_owned(), Layer::Sockets),
        Lapse::Pins => ("somebody has removed pins of guard's".to_owned(), Layer::Pins),
    };
    // What is missing now has a line of its own, which names the command.
    let is_back = missing.iter().all(|missing| missing.layer != layer);
    Some(if is_back { format!("{what}: put back") } else { what })
}

impl Control for Engine {
    fn status(&self) -> Result<Status, Failure> {
        Ok(Status { enrich_problems: self.enrichment.problems(), ..self.read()?.status()? })
    }

    fn rules(&self) -> Result<Vec<RuleView>, Failure> {
        self.read()?.rules()
    }

    fn add_rules(&self, request: &AddRules, by: &Requester) -> Result<Change, Failure> {
        // Before anything else waits for it.
        let answers = sources::ask(request);
        let mut following = self.begin_change_without_trial()?;
        let (planned, added) = {
            let core = self.read()?;
            if request.confirm_seconds.is_some() {
                core.refuse_nothing_to_try()?;
            }
            let mut state = core.state.clone();
            let policy = core.policy()?;
            let added = policy::add(&policy, request, &mut state, &core.clock())?;
            let basis = core.basis()?.with_answers(answers.clone());
            (core.plan(core.settings.clone(), state, basis)?, added)
        };
        let generation = self.carry_out(planned, &Asked::add(request, by))?;
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

    fn remove_rules(&self, request: &RemoveRules, by: &Requester) -> Result<Change, Failure> {
        let _change = self.begin_change_without_trial()?;
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
        let generation = self.carry_out(planned, &Asked::remove(request, by))?;
        Ok(self.read()?.changed(generation, removed, Vec::new()))
    }

    fn set_mode(&self, request: &SetMode, by: &Requester) -> Result<Change, Failure> {
        let _change = self.begin_change_without_trial()?;
        let planned = {
            let core = self.read()?;
            let mut state = core.state.clone();
            state.mode = Some(request.mode);
            state.observe_until = match (request.mode, request.for_seconds) {
                (Mode::Observe, Some(seconds)) => Some(policy::end_after(&core.clock(), seconds)?),
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
        let generation = self.carry_out(planned, &Asked::mode(request, by))?;
        Ok(self.read()?.changed(generation, Vec::new(), Vec::new()))
    }

    fn explain(&self, request: &Explain) -> Result<Explanation, Failure> {
        let core = self.read()?;
        // Whoever has failed has left nothing that the next does not write anew.
        let _alone = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        core.explain(request)
    }

    fn reload(&self, request: &Reload, by: &Requester) -> Result<Change, Failure> {
        let mut following = self.begin_change_without_trial()?;
        let asked = Asked::reload(request, by);
        let planned = {
            let core = self.read()?;
            let settings = core.settings.reload(&core.place, &core.state.run)?;
            let trial = request
                .confirm_seconds
                .map(|seconds| core.reload_on_trial(seconds, &asked.command))
                .transpose()?;
            let state = State { trial, rolled_back: false, ..core.state.clone() };
            let planned = core.plan(settings, state, core.anew())?;
            core.refuse_to_cut_sessions(&planned)?;
            planned
        };
        let generation = self.carry_out(planned, &asked)?;
        give_memory_back();
        let mut notes = Vec::new();
        if generation.is_some() {
            notes.extend(self.apply_settings(&mut following)?);
        }
        let core = self.read()?;
        if core.state.trial.is_none() {
            trial::forget(&core.settings.config.paths.state);
        }
        let rules = core.rules()?;
        notes.extend(rules.iter().filter_map(output::idle));
        Ok(core.changed(generation, rules, notes))
    }

    fn down(&self, by: &Requester) -> Result<Vec<String>, Failure> {
        let _change = self.begin_change()?;
        *self.kept() = None;
        self.write()?.down(&Asked::new(Kind::Down, "down", by))
    }

    fn confirm(&self, by: &Requester) -> Result<Change, Failure> {
        let mut following = self.begin_change()?;
        let over = self.read()?.state.trial.as_ref().map(Trial::view);
        self.settle_trial(&mut following)?;
        let core = self.read()?;
        let mut state = core.state.clone();
        let Some(confirmed) = policy::confirm(&mut state, &core.clock()) else {
            return Err(over.map_or_else(trial::none_is_open, |over| {
                Failure::failed(
                    format!("too late: this was rolled back, its time was over: {}", over.what),
                    "Make the change again.",
                )
            }));
        };
        let planned = core.plan(core.settings.clone(), state, core.basis()?)?;
        drop(core);
        let generation = self.carry_out(planned, &Asked::new(Kind::Confirm, "confirm", by))?;
        let core = self.read()?;
        if !core.state.rolled_back {
            trial::forget(&core.settings.config.paths.state);
        }
        let mut rules = core.rules()?;
        rules.retain(|rule| confirmed.ids.contains(&rule.id));
        Ok(core.changed(generation, rules, confirmed.notes))
    }

    fn rollback(&self, by: &Requester) -> Result<Change, Failure> {
        let mut following = self.begin_change()?;
        self.roll_back(&mut following, &Asked::new(Kind::Rollback, "rollback", by))
    }

    fn loading(&self) -> Result<Option<Loading>, Failure> {
        Ok(self.progress.now())
    }

    fn history(&self, since_seconds: Option<u64>) -> Result<History, Failure> {
        let directory = self.read()?.settings.config.paths.state.clone();
        let oldest = since_seconds.map(|it| history::seconds_before(Timestamp::now(), it));
        history::read(&directory, oldest).map_err(|error| {
            Failure::failed(
                format!("the history in {} can't be read: {error}", directory.display()),
                format!("Make {} a file that root can read, or move it away.", history::FILE_NAME),
            )
        })
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
