//! Changes on trial: they are rolled back unless they are confirmed in time.
//!
//! Rules on trial are rules of their own with an end, which the kernel keeps by itself; nothing that was there is touched. A
//! configuration on trial leaves two texts in the state directory, the one from before and its own, so that whoever starts next
//! can go back, and does not take for granted what nobody has confirmed.

use std::{io, ops::RangeInclusive, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bounded_file::{self, ReadError},
    config,
    control::{Failure, TrialView},
    duration,
    policy::{self, Clock},
    rule::RuleId,
    state::State,
};

/// How long a trial may last, in seconds.
pub const SPAN_SECONDS: RangeInclusive<u64> = 5..=3600;

/// The text of the configuration that was in force before the trial.
pub const BEFORE_NAME: &str = "before-trial.toml";

/// The text of the configuration on trial, or of the one that was rolled back.
pub const UNCONFIRMED_NAME: &str = "unconfirmed.toml";

/// A change that is on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The command that began it.
    pub what: String,
    /// When it is rolled back, by the wall clock.
    pub until: Timestamp,
    /// How long it was to last: a clock that was set does not make it longer.
    pub seconds: u64,
    pub change: Tried,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tried {
    Rules(Vec<TriedRule>),
    /// The configuration's file.
    Reload,
}

/// A rule on trial, which ends with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriedRule {
    pub id: RuleId,
    /// When it ends once it is confirmed.
    pub until: Option<Timestamp>,
}

impl Trial {
    /// A trial that begins now.
    ///
    /// # Errors
    /// When it would be too short or too long, or nobody can say when it ends.
    pub fn begin(
        what: String,
        seconds: u64,
        clock: &Clock,
        change: Tried,
    ) -> Result<Self, Failure> {
        if !SPAN_SECONDS.contains(&seconds) {
            return Err(Failure::bad_request(
                format!("a trial of {} is too short or too long", duration::brief(seconds)),
                format!(
                    "Give {} to {}.",
                    duration::brief(*SPAN_SECONDS.start()),
                    duration::brief(*SPAN_SECONDS.end())
                ),
            ));
        }
        let until = policy::end_after(clock, seconds)?;
        Ok(Self { what, until, seconds, change })
    }

    /// When it is over, in nanoseconds of boot time. By a clock that can't be believed it is over at once.
    #[must_use]
    pub fn ends_ns(&self, clock: &Clock) -> u64 {
        if !clock.trusted {
            return 0;
        }
        let longest_ns = self.seconds.saturating_mul(1_000_000_000);
        clock.boot_at(self.until).min(clock.boot_ns.saturating_add(longest_ns))
    }

    /// Its end, and those of its rules once it is confirmed.
    pub fn ends(&self) -> impl Iterator<Item = Timestamp> {
        let rules = match &self.change {
            Tried::Rules(rules) => rules.as_slice(),
            Tried::Reload => &[],
        };
        rules.iter().filter_map(|rule| rule.until).chain([self.until])
    }

    /// Its end, and those of its rules, as a clock that was set has them.
    pub fn move_ends(&mut self, moved: impl Fn(Timestamp) -> Timestamp) {
        self.until = moved(self.until);
        if let Tried::Rules(rules) = &mut self.change {
            for rule in rules {
                rule.until = rule.until.map(&moved);
            }
        }
    }

    #[must_use]
    pub fn is_of_configuration(&self) -> bool {
        self.change == Tried::Reload
    }

    #[must_use]
    pub fn view(&self) -> TrialView {
        TrialView { what: self.what.clone(), until: self.until }
    }

    /// Why another change is refused meanwhile.
    #[must_use]
    pub fn refusal(&self, left_ns: u64) -> Failure {
        let left = duration::brief(left_ns.div_ceil(1_000_000_000));
        Failure::needs_confirmation(
            format!("a change is on trial for another {left}: {}", self.what),
            "Run `guard confirm` to keep it or `guard rollback` to take it back, then try again.",
        )
    }
}

/// There is nothing to confirm or to roll back.
#[must_use]
pub fn none_is_open() -> Failure {
    Failure::failed(
        "no change is on trial",
        "`guard history` shows what has been changed, confirmed and rolled back.",
    )
}

/// Takes back what a trial has done to the state. `None` where none is open.
pub fn undo(state: &mut State) -> Option<Trial> {
    let trial = state.trial.take()?;
    match &trial.change {
        Tried::Rules(tried) => {
            state.rules.retain(|rule| tried.iter().all(|tried| tried.id != rule.id));
        }
        Tried::Reload => state.rolled_back = true,
    }
    Some(trial)
}

/// Keeps the texts of both configurations in the state directory.
///
/// # Errors
/// When they can't be written.
pub fn keep(directory: &Path, before: &str, unconfirmed: &str) -> Result<(), Failure> {
    let kept = bounded_file::replace(directory, BEFORE_NAME, before.as_bytes())
        .and_then(|()| bounded_file::replace(directory, UNCONFIRMED_NAME, unconfirmed.as_bytes()));
    kept.map_err(|error| {
        Failure::failed(
            format!(
                "the configuration from before can't be kept in {}: {error}",
                directory.display()
            ),
            "See that it is writable and its file system has room, or leave --confirm out.",
        )
    })
}

/// One of the kept texts; `None` where there is none.
///
/// # Errors
/// When it is there and can't be read.
pub fn kept(directory: &Path, name: &str) -> Result<Option<String>, Failure> {
    let path = directory.join(name);
    let failure = |what: String| {
        Failure::failed(
            format!("{}: {what}", path.display()),
            "Move it away: the configuration's file is taken then.",
        )
    };
    match bounded_file::read(&path, config::MAX_BYTES) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| failure("the file is not UTF-8".to_owned())),
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failure(format!("the file can't be read: {error}"))),
    }
}

/// Takes the kept texts away. What stays of them does no harm: without a word in the state nobody goes by them.
pub fn forget(directory: &Path) {
    for name in [BEFORE_NAME, UNCONFIRMED_NAME] {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::info!("{name} stays in the state directory: {error}");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::rule;

    fn clock() -> Clock {
        Clock {
            wall: "2026-11-25T01:00:00Z".parse().unwrap(),
            boot_ns: 5_000_000_000,
            boot_id: None,
            trusted: true,
        }
    }

    fn begin(seconds: u64, clock: &Clock) -> Result<Trial, Failure> {
        Trial::begin("reload confirm 1m".to_owned(), seconds, clock, Tried::Reload)
    }

    #[test]
    fn a_trial_has_bounds_and_needs_a_clock() {
        for seconds in [5, 60, 3600] {
            assert!(begin(seconds, &clock()).is_ok(), "{seconds}");
        }
        for seconds in [0, 4, 3601, u64::MAX] {
            let failure = begin(seconds, &clock()).unwrap_err();
            assert_eq!(failure.fix.as_deref(), Some("Give 5s to 1h."), "{seconds}");
        }
        let untrusted = Clock { trusted: false, ..clock() };
        assert!(begin(60, &untrusted).unwrap_err().what.contains("clock"));
    }

    #[test]
    fn no_clock_makes_a_trial_longer() {
        let trial = begin(60, &clock()).unwrap();
        assert_eq!(trial.ends_ns(&clock()), 65_000_000_000);
        let later = Clock { wall: "2026-11-25T01:00:50Z".parse().unwrap(), ..clock() };
        assert_eq!(trial.ends_ns(&later), 15_000_000_000);
        let set_back = Clock { wall: "2026-11-25T00:00:00Z".parse().unwrap(), ..clock() };
        assert_eq!(trial.ends_ns(&set_back), 65_000_000_000);
        assert_eq!(trial.ends_ns(&Clock { trusted: false, ..set_back }), 0);
        let over = Clock { wall: "2026-11-25T02:00:00Z".parse().unwrap(), ..clock() };
        assert!(trial.ends_ns(&over) <= over.boot_ns);
    }

    #[test]
    fn undoing_takes_back_the_trials_rules_and_no_others() {
        let mut state = State {
            rules: vec![rule("1", "192.0.2.1"), rule("2", "192.0.2.1"), rule("3", "192.0.2.2")],
            next_rule: 4,
            ..State::default()
        };
        assert_eq!(undo(&mut state), None);
        let tried = ["2", "3"].map(|id| TriedRule { id: RuleId(id.to_owned()), until: None });
        let trial = Trial { change: Tried::Rules(tried.into()), ..begin(60, &clock()).unwrap() };
        state.trial = Some(trial.clone());
        assert_eq!(undo(&mut state), Some(trial));
        assert_eq!(state.rules, [rule("1", "192.0.2.1")]);
        assert!(state.trial.is_none() && !state.rolled_back);

        state.trial = Some(begin(60, &clock()).unwrap());
        undo(&mut state);
        assert!(state.trial.is_none() && state.rolled_back);
    }

    #[test]
    fn both_texts_are_kept_until_they_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert_eq!(kept(directory, BEFORE_NAME).unwrap(), None);
        keep(directory, "ports = [1]\n", "").unwrap();
        assert_eq!(kept(directory, BEFORE_NAME).unwrap().as_deref(), Some("ports = [1]\n"));
        assert_eq!(kept(directory, UNCONFIRMED_NAME).unwrap().as_deref(), Some(""));
        std::fs::write(directory.join(BEFORE_NAME), b"\xff").unwrap();
        assert!(kept(directory, BEFORE_NAME).unwrap_err().what.contains("UTF-8"));
        forget(directory);
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
        forget(directory);
    }

    #[test]
    fn the_refusal_names_the_time_left_and_both_ways_out() {
        let failure = begin(60, &clock()).unwrap().refusal(41_200_000_000);
        assert!(failure.what.contains("another 42s: reload confirm 1m"), "{}", failure.what);
        let fix = failure.fix.unwrap();
        assert!(fix.contains("guard confirm") && fix.contains("guard rollback"), "{fix}");
    }
}
