//! The configuration with the flags of `guard run` laid over it.

use crate::{
    config::{Config, Interfaces},
    control::{Failure, Mode},
    engine::Place,
    host::cgroup::{self, CgroupError, CgroupRoot},
    rule::{Action, Origin, Rule, RuleId, parse_port_list},
    state::RunFlags,
};

/// What the policy is made from, beside the rules made by command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With the flags' ports, interfaces, attach mode and mode in place of the file's.
    pub config: Config,
    /// Of `--allow`.
    pub flag_rules: Vec<Rule>,
}

/// Reads the configuration.
///
/// # Errors
/// When it is bad, or was named and is not there.
pub fn load(place: &Place) -> Result<Config, Failure> {
    Ok(Config::load(&place.config, place.is_named)?)
}

impl Settings {
    /// # Errors
    /// When a flag is not well formed.
    pub fn new(mut config: Config, flags: &RunFlags) -> Result<Self, Failure> {
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
        Ok(Self { config, flag_rules })
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
