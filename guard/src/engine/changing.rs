//! What is kept of a change: who asked for it and what came of it, and what a trial needs to be rolled back.

use jiff::Timestamp;

use super::{
    core::{Core, Planned},
    settings::{self, Settings},
};
use crate::{
    control::Failure,
    history::{self, Asked, Entry, Standing},
    kernel::{KernelError, probe, tables::PolicyMaps},
    output::text::escaped,
    policy::Sets,
    trial::{self, Trial, Tried},
};

impl Core {
    /// What stands now.
    ///
    /// # Errors
    /// When the tables can't be read.
    pub fn standing(&self) -> Result<Standing, KernelError> {
        let policy = self.policy()?;
        let header = self.maps.as_ref().map(PolicyMaps::header).transpose()?.flatten();
        let published = self.maps.as_ref().map(PolicyMaps::aliases_in_force).transpose()?;
        let published = published.unwrap_or_default().into_keys();
        Ok(Standing {
            generation: header.map(|header| header.generation),
            rules: policy.rules,
            ports: policy.ports.into_iter().chain(published).collect(),
            mode: self.state.mode.unwrap_or(self.settings.config.mode),
            observe_until: self.state.observe_until,
            trial_until: self.state.trial.as_ref().map(|trial| trial.until),
        })
    }

    /// Keeps a change that has been made, in the history and in the log. A history that can't be written does not undo it.
    pub fn record(&self, asked: &Asked, before: &Standing, after: Result<Standing, KernelError>) {
        let after = after.unwrap_or_else(|error| {
            log::warn!("what a change has come to could not be looked up: {error}");
            before.clone()
        });
        let entry = Entry::new(Timestamp::now(), asked, before, &after);
        log::info!("{}", escaped(&entry.to_string()));
        if let Err(error) = history::append(&self.settings.config.paths.state, &entry) {
            log::warn!(
                "this change is in force and not in the history, which can't be written: {error}"
            );
        }
    }

    /// Follows the state: a trial that is new gets its end in boot time, which no clock moves.
    pub fn note_trial(&mut self) {
        let noted = self.trial.as_ref().map(|(trial, _)| trial);
        if noted != self.state.trial.as_ref() {
            let clock = self.clock();
            let trial = self.state.trial.clone();
            self.trial = trial.map(|trial| (trial.clone(), trial.ends_ns(&clock)));
        }
        if self.trial.is_none() {
            self.before_trial = None;
        }
    }

    /// How long the trial lasts from now, in nanoseconds; 0 once it is over. `None` where none is open.
    pub fn trial_left_ns(&self) -> Option<u64> {
        self.trial.as_ref().map(|(_, ends_ns)| ends_ns.saturating_sub(probe::boot_ns()))
    }

    /// A trial of the configuration that begins now.
    ///
    /// # Errors
    /// When nobody could roll it back, or its span is out of bounds.
    pub fn reload_on_trial(&self, seconds: u64, what: &str) -> Result<Trial, Failure> {
        self.refuse_nothing_to_try()?;
        if !self.is_daemon {
            return Err(Failure::failed(
                "without a daemon nobody would roll a configuration back",
                "Start one with `guard run` first, or reload without --confirm.",
            ));
        }
        Trial::begin(what.to_owned(), seconds, &self.clock(), Tried::Reload)
    }

    /// # Errors
    /// When nothing is in force.
    pub fn refuse_nothing_to_try(&self) -> Result<(), Failure> {
        if self.maps.is_some() {
            return Ok(());
        }
        Err(Failure::failed(
            "nothing is in force, so nothing can be tried",
            "Run `guard run` first, or leave --confirm out.",
        ))
    }

    /// Keeps what a trial of a configuration is rolled back to, before anything of it is in force: whoever starts after a crash in
    /// between finds it. Returns whether there is such a trial.
    pub(super) fn announce_trial(&mut self, planned: &Planned) -> Result<bool, Failure> {
        let begins = self.state.trial.is_none();
        let trial = planned.state.trial.as_ref().filter(|trial| trial.is_of_configuration());
        let Some(trial) = trial.filter(|_| begins) else {
            return Ok(false);
        };
        let directory = &self.settings.config.paths.state;
        trial::keep(directory, &self.settings.text, &planned.settings.text)?;
        let mut announced = self.state.clone();
        announced.trial = Some(trial.clone());
        announced.save(directory, Timestamp::now())?;
        self.before_trial = Some((self.settings.clone(), self.sets.clone()));
        Ok(true)
    }

    pub(super) fn withdraw_trial(&mut self) {
        self.before_trial = None;
        // Where it fails, a start rolls back to what is in force anyway.
        if let Err(error) = self.state.save(&self.settings.config.paths.state, Timestamp::now()) {
            log::warn!("a trial that did not begin is still in the state: {error}");
        }
    }

    /// What the policy is without the trial, and the trial.
    ///
    /// # Errors
    /// When none is open, or what was before can't be read or compiled.
    pub fn plan_rollback(&self) -> Result<(Planned, Trial), Failure> {
        let mut state = self.state.clone();
        let trial = trial::undo(&mut state).ok_or_else(trial::none_is_open)?;
        let (settings, basis) = if trial.is_of_configuration() {
            let (settings, sets) = self.before_trial()?;
            (settings, self.anew().with_sets(sets))
        } else {
            (self.settings.clone(), self.basis()?)
        };
        Ok((self.plan(settings, state, basis)?, trial))
    }

    fn before_trial(&self) -> Result<(Settings, Sets), Failure> {
        if let Some(before) = &self.before_trial {
            return Ok(before.clone());
        }
        let before = settings::before_trial(&self.place, &self.settings.config.paths.state)?;
        Ok((Settings::new(before, &self.state.run)?, self.sets.only_names()))
    }
}
