//! The configuration with the flags of `guard run` laid over it.

use std::path::Path;

use crate::{
    config::{Config, Interfaces},
    control::{Failure, Mode},
    engine::Place,
    host::cgroup::{self, CgroupError, CgroupRoot},
    rule::{Action, Origin, Rule, RuleId, parse_port_list},
    state::{RunFlags, State},
    trial::{self, Trial},
};

/// What the policy is made from, beside the rules made by command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With the flags' ports, interfaces, attach mode and mode in place of the file's.
    pub config: Config,
    /// Of `--allow`.
    pub flag_rules: Vec<Rule>,
    /// The configuration's own text.
    pub text: String,
}

/// A configuration as it was read.
pub struct Loaded {
    pub config: Config,
    pub text: String,
}

/// Reads the configuration.
///
/// # Errors
/// When it is bad, or was named and is not there.
pub fn load(place: &Place) -> Result<Loaded, Failure> {
    parse(place, Config::text(&place.config, place.is_named)?)
}

fn parse(place: &Place, text: String) -> Result<Loaded, Failure> {
    Ok(Loaded { config: Config::parse(&text, &place.config)?, text })
}

/// The configuration that this state goes by: the file's as it was loaded, unless one is on trial, or the file's is the very one
/// that was rolled back. A file that was changed since then is taken, and the state no longer says that it was.
///
/// # Errors
/// When a text that was kept can't be read.
pub fn in_force(place: &Place, file: Loaded, state: &mut State) -> Result<Loaded, Failure> {
    let kept = |name| trial::kept(&file.config.paths.state, name);
    if state.trial.as_ref().is_some_and(Trial::is_of_configuration) {
        return match kept(trial::UNCONFIRMED_NAME)? {
            Some(text) => parse(place, text),
            None => Ok(file),
        };
    }
    if !state.rolled_back {
        return Ok(file);
    }
    if kept(trial::UNCONFIRMED_NAME)?.as_ref() == Some(&file.text) {
        if let Some(text) = kept(trial::BEFORE_NAME)? {
            return parse(place, text);
        }
        log::warn!(
            "the configuration from before the trial is no longer in {}: the file's is taken",
            file.config.paths.state.display()
        );
    }
    state.rolled_back = false;
    Ok(file)
}

/// The configuration from before the one on trial.
///
/// # Errors
/// When it was not kept or can't be read.
pub fn before_trial(place: &Place, state_directory: &Path) -> Result<Loaded, Failure> {
    let text = trial::kept(state_directory, trial::BEFORE_NAME)?.ok_or_else(|| {
        Failure::failed(
            format!(
                "the configuration from before the trial is not in {}, so the trial can't be rolled back",
                state_directory.display()
            ),
            "`guard confirm` keeps the one on trial; then put the right one in force with `guard reload`.",
        )
    })?;
    parse(place, text)
}

impl Settings {
    /// # Errors
    /// When a flag is not well formed.
    pub fn new(loaded: Loaded, flags: &RunFlags) -> Result<Self, Failure> {
        let Loaded { mut config, text } = loaded;
        if !flags.ports.is_empty() {
            config.ports = parse_port_list(&flags.ports)?;
        }
        if !flags.interfaces.is_empty() {
            let patterns = flags.interfaces.iter().map(|text| text.parse());
            config.interfaces = Interfaces::Named(patterns.collect::<Result<_, _>>()?);
        }
        if let Some(attach) = &flags.attach {
            config.attach.default = attach.parse()?;
            config.attach.by_interface.clear();
        }
        if flags.observe {
            config.mode = Mode::Observe;
        }
        config.reject |= flags.reject;
        let flag_rules = (1..)
            .zip(&flags.allow)
            .map(|(place, text)| {
                Ok(Rule {
                    id: RuleId::flag(place),
                    action: Action::Allow,
                    source: text.parse()?,
                    ports: Vec::new(),
                    via: None,
                    until: None,
                    comment: None,
                    origin: Origin::Flag,
                })
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self { config, flag_rules, text })
    }

    /// These settings with the configuration read again.
    ///
    /// # Errors
    /// When it is bad, or moves what must stay where it is while guard is in force.
    pub fn reload(&self, place: &Place, flags: &RunFlags) -> Result<Self, Failure> {
        let settings = Self::new(load(place)?, flags)?;
        if settings.config.paths != self.config.paths {
            return Err(Failure::failed(
                format!("{}: [paths] can't change while guard is in force", place.config.display()),
                "Put the old paths back, or run `guard down` first.",
            ));
        }
        Ok(settings)
    }

    /// Where the backstop goes. Mounts the tree where nobody has.
    ///
    /// # Errors
    /// When there is no cgroup v2 tree and none can be mounted, or the one configured is none.
    pub fn cgroup(&self) -> Result<CgroupRoot, Failure> {
        let root = match &self.config.paths.cgroup {
            Some(path) => cgroup::at(path),
            None => cgroup::find_root(),
        };
        root.map_err(failure)
    }

    /// Where the backstop is to be, if the tree is mounted.
    ///
    /// # Errors
    /// When mounts can't be listed, or the cgroup configured is none.
    pub fn mounted_cgroup(&self) -> Result<Option<CgroupRoot>, Failure> {
        match &self.config.paths.cgroup {
            Some(path) => cgroup::at(path).map(Some).map_err(failure),
            None => cgroup::find_mounted().map_err(failure),
        }
    }
}

fn failure(error: CgroupError) -> Failure {
    Failure::failed(error.to_string(), error.fix())
}
