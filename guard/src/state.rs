//! What guard remembers across restarts and reboots: `state.json` in the state directory.
//!
//! The file is replaced whole, so that it is the old one or the new one after a crash. One that can't be understood is moved
//! aside and said, never overwritten and never half believed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    bounded_file::{self, ReadError},
    control::{Failure, Mode},
    policy::Clock,
    rule::{
        Action, GuardedPort, InterfaceName, Origin, Rule, RuleId, Source, check_action, check_via,
        comment_problem,
    },
    trial::Trial,
};

/// The file's name in the state directory.
pub const FILE_NAME: &str = "state.json";

/// What it says stands beside it once more: a disk that spoils one file may have left the other.
const COPY_NAME: &str = "state.json.copy";

/// The newest format that is known.
const VERSION: u32 = 2;

/// The format without what trials need. It is written while there is nothing of that, so that an older guard can read it.
const VERSION_WITHOUT_TRIALS: u32 = 1;

/// No sensible state is larger.
const MAX_BYTES: u64 = 16 << 20;

/// All that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Rules made by command.
    pub rules: Vec<Rule>,
    /// The number of the next rule made by command; none is given twice.
    pub next_rule: u64,
    /// The mode that a command set; `None` where the configuration's holds.
    pub mode: Option<Mode>,
    /// In observe: when dropping resumes.
    pub observe_until: Option<Timestamp>,
    /// The newest time the wall clock ever showed: a clock that is earlier is not believed.
    pub newest_time: Timestamp,
    /// How the wall clock stood to boot time when this was last written and the clock was believed.
    pub clock: Option<KnownClock>,
    /// Ports that guard added to `net.ipv4.ip_local_reserved_ports`.
    pub reserved_ports: Vec<u16>,
    /// What the newest `guard run` was told, so that commands without a daemon go by it as well.
    pub run: RunFlags,
    /// The change that is rolled back unless it is confirmed.
    pub trial: Option<Trial>,
    /// A configuration was tried, and is not in force: the one from before is, though the file is another.
    pub rolled_back: bool,
}

/// How the wall clock stood to boot time in one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownClock {
    /// See [`Clock::boot_id`]; in hexadecimal.
    boot_id: String,
    /// What it showed, or would have, at boot: nanoseconds since 1970.
    wall_at_boot_ns: i64,
    /// The ends that were there before this boot. They are the wall clock's: nobody knows how long the machine was off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    of_earlier_boots: Vec<Timestamp>,
}

/// A clock that runs a little fast or slow is put right without a step (adjtime(3)); less than this is no step.
const STEP: SignedDuration = SignedDuration::from_secs(1);

/// The flags of `guard run`, as typed. Each stands in place of its key of the configuration where it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFlags {
    pub ports: Vec<String>,
    pub allow: Vec<String>,
    pub interfaces: Vec<String>,
    pub attach: Option<String>,
    pub observe: bool,
    #[serde(default)]
    pub reject: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            next_rule: 1,
            mode: None,
            observe_until: None,
            newest_time: Timestamp::UNIX_EPOCH,
            clock: None,
            reserved_ports: Vec::new(),
            run: RunFlags::default(),
            trial: None,
            rolled_back: false,
        }
    }
}

/// A state as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub state: State,
    /// What was wrong with the file, in one sentence.
    pub warning: Option<String>,
    /// Nothing of it is known, nor of its copy: the state is empty.
    pub is_lost: bool,
}

/// Why the state could not be loaded or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state file {} can't be read: {error}", .path.display())]
    Unreadable { path: PathBuf, error: String },
    #[error("the state file {} is damaged and can't be moved to {}: {source}", .path.display(), .to.display())]
    NotMoved { path: PathBuf, to: PathBuf, source: io::Error },
    #[error("the state file {} can't be written: {source}", .path.display())]
    NotWritten { path: PathBuf, source: io::Error },
    #[error("the state would take {bytes} bytes, and {} may have {MAX_BYTES}", .path.display())]
    TooLarge { path: PathBuf, bytes: usize },
    #[error("the state file {} is a newer guard's (version {version} of the format, and this one knows {VERSION})", .path.display())]
    Newer { path: PathBuf, version: u32 },
}

impl StateError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Unreadable { path, .. } => {
                format!("Make {} a file that root can read, or move it away.", path.display())
            }
            Self::TooLarge { .. } => {
                "Remove rules, or write long lists to a file and name that with @.".to_owned()
            }
            Self::NotMoved { path, .. } => format!("Move {} away by hand.", path.display()),
            Self::NotWritten { path, .. } => format!(
                "See that {} is writable and its file system has room.",
                directory_of(path).display()
            ),
            Self::Newer { path, .. } => format!(
                "Use the newer guard, or move {} away: the rules made by command are in it.",
                path.display()
            ),
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::failed(error.to_string(), error.fix())
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The file's contents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    next_rule: u64,
    mode: Option<Mode>,
    observe_until: Option<Timestamp>,
    newest_time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<KnownClock>,
    reserved_ports: Vec<u16>,
    run: RunFlags,
    rules: Vec<StoredRule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    rolled_back: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRule {
    id: RuleId,
    action: Action,
    source: Source,
    ports: Vec<GuardedPort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<InterfaceName>,
    until: Option<Timestamp>,
    comment: Option<String>,
}

/// What every version of the format begins with.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

impl State {
    /// Reads the state in a directory; it is empty where there is none. Where it can't be read or understood, its copy is taken,
    /// and where that can't either, it is empty. The files are left as they are: whoever only asks changes nothing.
    ///
    /// # Errors
    /// When the file is a newer guard's.
    pub fn load(directory: &Path) -> Result<Loaded, StateError> {
        let path = directory.join(FILE_NAME);
        let why = match read(&path) {
            Ok(Ok(state)) => {
                let state = state.unwrap_or_default();
                return Ok(Loaded { state, warning: None, is_lost: false });
            }
            Ok(Err(why)) => format!("The state file {} is not understood ({why})", path.display()),
            Err(newer @ StateError::Newer { .. }) => return Err(newer),
            Err(error) => error.to_string(),
        };
        let aside = format!("The next change keeps the file aside as {FILE_NAME}.bad-<time>.");
        Ok(match read(&directory.join(COPY_NAME)) {
            Ok(Ok(Some(state))) => Loaded {
                state,
                warning: Some(format!("{why}: its copy beside it is used. {aside}")),
                is_lost: false,
            },
            _ => Loaded {
                state: Self::default(),
                warning: Some(format!(
                    "{why}: rules made by command are gone until they are made again. {aside}"
                )),
                is_lost: true,
            },
        })
    }

    /// Writes the state to a directory, which is made where it is absent.
    ///
    /// A file that can't be understood is kept as `state.json.bad-<unix seconds>`, by the clock `now`.
    ///
    /// # Errors
    /// When it can't be written, or what is there not be kept; the file is as it was then.
    pub fn save(&self, directory: &Path, now: Timestamp) -> Result<(), StateError> {
        let path = directory.join(FILE_NAME);
        let held = read(&path);
        if let Err(newer @ StateError::Newer { .. }) = held {
            return Err(newer);
        }
        let text = self.text().map_err(|source| StateError::NotWritten {
            path: path.clone(),
            source: source.into(),
        })?;
        if text.len() as u64 > MAX_BYTES {
            return Err(StateError::TooLarge { path, bytes: text.len() });
        }
        if matches!(held, Ok(Err(_))) {
            let to = directory.join(format!("{FILE_NAME}.bad-{}", now.as_second()));
            if let Err(source) = fs::rename(&path, &to) {
                return Err(StateError::NotMoved { path, to, source });
            }
        }
        bounded_file::replace(directory, FILE_NAME, text.as_bytes())
            .map_err(|source| StateError::NotWritten { path, source })?;
        if let Err(error) = bounded_file::replace_some_time(directory, COPY_NAME, text.as_bytes()) {
            log::warn!("the state is kept, and its copy {COPY_NAME} is not: {error}");
        }
        Ok(())
    }

    /// Remembers how the clock stands, so that a step of it is seen later. One that is not believed is not remembered: what ends by
    /// the wall clock then ends by a better one.
    pub fn note_clock(&mut self, clock: &Clock) {
        self.newest_time = self.newest_time.max(clock.wall);
        let wall_at_boot_ns = i64::try_from(clock.wall_at_boot().as_nanos()).ok();
        let (true, Some(boot_id), Some(wall_at_boot_ns)) =
            (clock.trusted, clock.boot_id, wall_at_boot_ns)
        else {
            self.clock = None;
            return;
        };
        let boot_id = format!("{boot_id:x}");
        let mut of_earlier_boots = self.ends();
        if let Some(known) = self.clock.take_if(|known| known.boot_id == boot_id) {
            of_earlier_boots.retain(|end| known.of_earlier_boots.contains(end));
        }
        self.clock = Some(KnownClock { boot_id, wall_at_boot_ns, of_earlier_boots });
    }

    /// Whether the clock is to be remembered: it is believed, and was not yet in this boot.
    #[must_use]
    pub fn is_new_to(&self, clock: &Clock) -> bool {
        let boot_id = clock.boot_id.map(|boot_id| format!("{boot_id:x}"));
        clock.trusted && self.clock.as_ref().map(|known| &known.boot_id) != boot_id.as_ref()
    }

    /// All that ends by itself.
    fn ends(&self) -> Vec<Timestamp> {
        let rules = self.rules.iter().filter_map(|rule| rule.until);
        let trial = self.trial.iter().flat_map(Trial::ends);
        rules.chain(self.observe_until).chain(trial).collect()
    }

    /// Whether anything of it ends by itself.
    #[must_use]
    pub fn has_ends(&self) -> bool {
        !self.ends().is_empty()
    }

    /// By how much the clock was set in this boot since it was last remembered. In another boot nobody knows how long the machine
    /// was off, and the wall clock alone says what has ended.
    #[must_use]
    pub fn clock_step(&self, clock: &Clock) -> Option<SignedDuration> {
        let boot_id = format!("{:x}", clock.boot_id?);
        let known = self.clock.as_ref().filter(|known| known.boot_id == boot_id)?;
        let step = clock.wall_at_boot() - SignedDuration::from_nanos(known.wall_at_boot_ns);
        (step.abs() >= STEP).then_some(step)
    }

    /// Where the clock was set ([`Self::clock_step`]), moves what ends after a span that began in this boot with it, so that the
    /// span stays what it was.
    pub fn follow_clock(&mut self, clock: &Clock) -> Option<SignedDuration> {
        let step = self.clock_step(clock)?;
        let fixed = self.clock.as_ref().map(|known| known.of_earlier_boots.clone());
        let fixed = fixed.unwrap_or_default();
        // A time that no calendar has is one that never comes.
        let later = |time: Timestamp| time.saturating_add(step).unwrap_or(time);
        let moved = |end: Timestamp| if fixed.contains(&end) { end } else { later(end) };
        for rule in &mut self.rules {
            rule.until = rule.until.map(moved);
        }
        self.observe_until = self.observe_until.map(moved);
        if let Some(trial) = &mut self.trial {
            trial.move_ends(moved);
        }
        self.newest_time = later(self.newest_time);
        self.note_clock(&Clock { trusted: true, ..*clock });
        Some(step)
    }

    fn text(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(&self.to_stored())?;
        text.push('\n');
        Ok(text)
    }

    fn to_stored(&self) -> Stored {
        let rules = self.rules.iter().map(|rule| StoredRule {
            id: rule.id.clone(),
            action: rule.action,
            source: rule.source.clone(),
            ports: rule.ports.clone(),
            via: rule.via.clone(),
            until: rule.until,
            comment: rule.comment.clone(),
        });
        let has_trials = self.trial.is_some() || self.rolled_back;
        Stored {
            version: if has_trials { VERSION } else { VERSION_WITHOUT_TRIALS },
            next_rule: self.next_rule,
            mode: self.mode,
            observe_until: self.observe_until,
            newest_time: self.newest_time,
            clock: self.clock.clone(),
            reserved_ports: self.reserved_ports.clone(),
            run: self.run.clone(),
            rules: rules.collect(),
            trial: self.trial.clone(),
            rolled_back: self.rolled_back,
        }
    }
}

/// The state in a file, or why it is none; `None` where there is no file.
fn read(path: &Path) -> Result<Result<Option<State>, String>, StateError> {
    Ok(match bounded_file::read(path, MAX_BYTES) {
        Ok(bytes) => match newer_version(&bytes) {
            Some(version) => {
                return Err(StateError::Newer { path: path.to_owned(), version });
            }
            None => understand(&bytes).map(Some),
        },
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error @ ReadError::TooLarge { .. }) => Err(error.to_string()),
        Err(error @ (ReadError::Io(_) | ReadError::NotRegular)) => {
            return Err(StateError::Unreadable { path: path.to_owned(), error: error.to_string() });
        }
    })
}

/// The version of a file that a newer guard has written: it is not damaged, and not ours to put aside.
fn newer_version(bytes: &[u8]) -> Option<u32> {
    let AnyVersion { version } = serde_json::from_slice(bytes).ok()?;
    (version > VERSION).then_some(version)
}

/// The state in a file's bytes, or why it is none. The bytes are not quoted: they may be anything.
fn understand(bytes: &[u8]) -> Result<State, String> {
    let place = |error: serde_json::Error| {
        format!("it breaks off or is wrong at line {}, column {}", error.line(), error.column())
    };
    let AnyVersion { version } = serde_json::from_slice(bytes).map_err(place)?;
    if !(VERSION_WITHOUT_TRIALS..=VERSION).contains(&version) {
        return Err(format!(
            "it has version {version} of the format, and this guard knows {VERSION}"
        ));
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(place)?;
    let mut numbers = BTreeSet::new();
    for rule in &stored.rules {
        let number: Option<u64> = rule.id.0.parse().ok();
        let is_new = number.is_some_and(|number| {
            RuleId::command(number) == rule.id
                && numbers.insert(number)
                && number < stored.next_rule
        });
        if !is_new {
            return Err("a rule's number is used twice or was never given".to_owned());
        }
        let is_rule = check_action(rule.action, &rule.source)
            .and_then(|()| check_via(&rule.source, rule.via.as_ref()));
        if let Err(error) = is_rule {
            return Err(error.to_string());
        }
        if let Some((what, _)) = rule.comment.as_deref().and_then(comment_problem) {
            return Err(what);
        }
    }
    let rules = stored.rules.into_iter().map(|rule| Rule {
        id: rule.id,
        action: rule.action,
        source: rule.source,
        ports: rule.ports,
        via: rule.via,
        until: rule.until,
        comment: rule.comment,
        origin: Origin::Command,
    });
    Ok(State {
        rules: rules.collect(),
        next_rule: stored.next_rule,
        mode: stored.mode,
        observe_until: stored.observe_until,
        newest_time: stored.newest_time,
        clock: stored.clock,
        reserved_ports: stored.reserved_ports,
        run: stored.run,
        trial: stored.trial,
        rolled_back: stored.rolled_back,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::trial::{Tried, TriedRule};

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn full() -> State {
        let rule = |number, source: &str| Rule {
            id: RuleId::command(number),
            action: Action::Allow,
            source: source.parse().unwrap(),
            ports: vec!["11434".parse().unwrap(), "udp/53".parse().unwrap()],
            via: Some("wg0".parse().unwrap()),
            until: Some(time("2027-01-31T00:00:00.5Z")),
            comment: Some("office \"north\"".to_owned()),
            origin: Origin::Command,
        };
        let mut plain = rule(5, "@/etc/guard/office.txt");
        (plain.ports, plain.via, plain.until, plain.comment) = (vec![], None, None, None);
        plain.action = Action::Deny;
        let everyone = Rule { via: None, ..rule(6, "if:wg0") };
        State {
            rules: vec![rule(2, "192.0.2.0/24"), rule(3, "lan6"), plain, everyone],
            next_rule: 9,
            mode: Some(Mode::Observe),
            observe_until: Some(time("2026-11-25T01:02:03Z")),
            newest_time: time("2026-11-25T01:00:00Z"),
            clock: Some(KnownClock {
                boot_id: "ff".to_owned(),
                wall_at_boot_ns: -5,
                of_earlier_boots: vec![],
            }),
            reserved_ports: vec![11434, 8081],
            run: RunFlags {
                ports: vec!["8081".to_owned()],
                allow: vec!["192.0.2.7".to_owned()],
                interfaces: vec!["eth*".to_owned()],
                attach: Some("native".to_owned()),
                observe: true,
                reject: true,
            },
            trial: None,
            rolled_back: false,
        }
    }

    /// With a trial of its first rule.
    fn on_trial() -> State {
        let tried = TriedRule { id: RuleId::command(2), until: None };
        let trial = Trial {
            what: "allow 192.0.2.0/24 confirm 1m".to_owned(),
            until: time("2026-11-25T01:03:03Z"),
            seconds: 60,
            change: Tried::Rules(vec![tried]),
        };
        State { trial: Some(trial), rolled_back: true, ..full() }
    }

    fn load(directory: &Path) -> Result<Loaded, StateError> {
        State::load(directory)
    }

    fn save(state: &State, directory: &Path) -> Result<(), StateError> {
        state.save(directory, time("2026-11-25T01:02:03Z"))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("lib/guard");
        let reload = |trial: Trial| Trial { change: Tried::Reload, ..trial };
        let of_file = State { trial: on_trial().trial.map(reload), ..full() };
        for state in [State::default(), on_trial(), of_file, full()] {
            save(&state, &directory).unwrap();
            assert_eq!(load(&directory).unwrap(), Loaded { state, warning: None, is_lost: false });
        }
        assert_eq!(names(&directory), [FILE_NAME, COPY_NAME]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(FILE_NAME)), 0o600);
    }

    #[test]
    fn a_rule_that_was_kept_before_interfaces_could_be_named_holds_for_every_one() {
        let text = saved();
        let via = "\n      \"via\": \"wg0\",";
        assert!(text.contains(via), "{text}");
        let state = understand(text.replace(via, "").as_bytes()).unwrap();
        assert!(state.rules.iter().all(|rule| rule.via.is_none()));
        assert_eq!(state.rules.len(), full().rules.len());
    }

    #[test]
    fn where_there_is_none_the_state_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let empty = Loaded { state: State::default(), warning: None, is_lost: false };
        assert_eq!(load(directory.path()).unwrap(), empty);
        assert_eq!(load(&directory.path().join("missing")).unwrap(), empty);
    }

    fn assert_moved_aside(bytes: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE_NAME), bytes).unwrap();
        let loaded = load(directory.path()).unwrap();
        assert_eq!((loaded.state, loaded.is_lost), (State::default(), true));
        assert_eq!(names(directory.path()), [FILE_NAME]);
        save(&full(), directory.path()).unwrap();
        assert_eq!(load(directory.path()).unwrap().state, full());
        assert_eq!(names(directory.path()), [FILE_NAME, "state.json.bad-1795568523", COPY_NAME]);
        let aside = directory.path().join("state.json.bad-1795568523");
        assert_eq!(fs::read(aside).unwrap(), bytes);
        loaded.warning.unwrap()
    }

    fn saved() -> String {
        let directory = tempfile::tempdir().unwrap();
        save(&full(), directory.path()).unwrap();
        fs::read_to_string(directory.path().join(FILE_NAME)).unwrap()
    }

    #[test]
    fn a_torn_file_is_moved_aside_wherever_it_is_torn() {
        let text = saved();
        let whole = text.trim_end().len();
        for length in 0..whole {
            assert!(understand(&text.as_bytes()[..length]).is_err(), "{length}");
        }
        let warning = assert_moved_aside(&text.as_bytes()[..whole / 2]);
        assert!(warning.contains("breaks off or is wrong at line"), "{warning}");
    }

    #[test]
    fn an_older_guard_reads_what_has_no_trials_and_only_that() {
        let version = |state: State| {
            let directory = tempfile::tempdir().unwrap();
            save(&state, directory.path()).unwrap();
            let text = fs::read(directory.path().join(FILE_NAME)).unwrap();
            serde_json::from_slice::<AnyVersion>(&text).unwrap().version
        };
        assert_eq!(version(full()), 1);
        assert_eq!(version(on_trial()), 2);
        assert_eq!(version(State { rolled_back: true, ..full() }), 2);
        assert!(!saved().contains("trial") && !saved().contains("rolled_back"));
    }

    #[test]
    fn a_newer_guards_file_is_refused_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let text = saved().replace("\"version\": 1", "\"more\": [], \"version\": 3");
        fs::write(directory.path().join(FILE_NAME), &text).unwrap();
        let refusals =
            [load(directory.path()).map(drop), save(&full(), directory.path())].map(Result::err);
        for refusal in refusals {
            assert!(matches!(refusal, Some(StateError::Newer { version: 3, .. })), "{refusal:?}");
        }
        assert_eq!(fs::read_to_string(directory.path().join(FILE_NAME)).unwrap(), text);
        assert_eq!(names(directory.path()), [FILE_NAME]);
    }

    #[test]
    fn a_foreign_file_is_moved_aside_whole() {
        let text = saved();
        assert_moved_aside(b"");
        assert_moved_aside(b"[]");
        assert_moved_aside(b"\xff\xfe");
        let warning =
            assert_moved_aside(text.replace("\"version\": 1", "\"version\": 0").as_bytes());
        assert!(warning.contains("version 0 of the format"), "{warning}");
        assert_moved_aside(text.replace("\"next_rule\"", "\"next\"").as_bytes());
        assert_moved_aside(text.replace("\"version\"", "\"more\": 1, \"version\"").as_bytes());
    }

    #[test]
    fn a_file_with_an_invalid_rule_is_moved_aside_whole() {
        let text = saved();
        for (good, bad, why) in [
            ("192.0.2.0/24", "192.0.2.7/24", "is wrong at line"),
            ("@/etc/guard/office.txt", "127.0.0.1", "loopback can't be denied"),
            ("\"id\": \"3\"", "\"id\": \"2\"", "used twice"),
            ("\"id\": \"3\"", "\"id\": \"9\"", "never given"),
            ("\"id\": \"3\"", "\"id\": \"03\"", "never given"),
            ("\"id\": \"3\"", "\"id\": \"f1\"", "never given"),
            ("\"via\": \"wg0\"", "\"via\": \"wg*\"", "is wrong at line"),
            ("lan6", "if:wg0", "names its interface already"),
            ("udp/53", "udp/0", "is wrong at line"),
            ("north", "north\\u0007", "control characters"),
        ] {
            assert!(text.contains(good), "{good}");
            let warning = assert_moved_aside(text.replace(good, bad).as_bytes());
            assert!(warning.contains(why), "{bad}: {warning}");
        }
    }

    fn clock(wall: &str, boot_seconds: u64, boot_id: u128, trusted: bool) -> Clock {
        Clock {
            wall: time(wall),
            boot_ns: boot_seconds * 1_000_000_000,
            boot_id: Some(boot_id),
            trusted,
        }
    }

    #[test]
    fn a_clock_that_is_set_shortens_and_lengthens_no_span() {
        let mut state = State { clock: None, ..full() };
        let ends = |state: &State| (state.rules[0].until, state.observe_until);
        state.note_clock(&clock("2026-11-25T01:00:00Z", 100, 1, true));
        let before = ends(&state);
        // It runs, and is put right by less than a second.
        assert_eq!(state.follow_clock(&clock("2026-11-25T02:00:00.9Z", 3_700, 1, true)), None);
        assert_eq!(ends(&state), before);
        // Back, and forth again. It is believed all the time.
        let back = clock("1970-01-01T02:00:00Z", 3_700, 1, false);
        assert!(state.follow_clock(&back).is_some_and(|step| step.is_negative()));
        assert!(state.newest_time <= back.wall);
        assert_eq!(state.follow_clock(&back), None);
        let forth = clock("2026-11-25T03:00:00Z", 7_300, 1, true);
        assert!(state.follow_clock(&forth).is_some_and(|step| step.is_positive()));
        assert_eq!(ends(&state), before);
    }

    #[test]
    fn in_another_boot_the_wall_clock_alone_counts() {
        let mut state = State { clock: None, ..full() };
        state.note_clock(&clock("2026-11-25T01:00:00Z", 100, 1, true));
        let before = state.clone();
        assert_eq!(state.follow_clock(&clock("2026-11-25T05:00:00Z", 10, 2, true)), None);
        assert_eq!(state, before);
        // What was there before is the wall clock's, and what is made since keeps its span.
        state.note_clock(&clock("2026-11-25T05:00:00Z", 10, 2, true));
        let made = time("2026-11-25T06:00:00Z");
        state.rules[1].until = Some(made);
        let later = clock("2026-11-25T08:00:00Z", 10, 2, true);
        state.note_clock(&clock("2026-11-25T05:00:01Z", 11, 2, true));
        assert!(state.follow_clock(&later).is_some());
        let ends: Vec<_> = state.rules.iter().map(|rule| rule.until).collect();
        let before_ends: Vec<_> = before.rules.iter().map(|rule| rule.until).collect();
        assert_eq!(
            (ends[0], ends[3], state.observe_until),
            (before_ends[0], before_ends[3], before.observe_until)
        );
        assert_eq!(
            ends[1].map(|end| end.duration_since(made)),
            Some(SignedDuration::from_hours(3))
        );
        state.rules[1].until = before.rules[1].until;
        // One that is not believed is nothing to go by later.
        state.note_clock(&clock("1970-01-01T00:00:10Z", 10, 2, false));
        assert_eq!(state.follow_clock(&clock("2026-11-25T05:00:00Z", 20, 2, true)), None);
        assert_eq!(state.rules, before.rules);
    }

    #[test]
    fn a_copy_stands_in_for_a_file_that_is_spoiled() {
        let directory = tempfile::tempdir().unwrap();
        save(&full(), directory.path()).unwrap();
        let path = directory.path().join(FILE_NAME);
        for spoiled in [&b""[..], b"\0\0\0\0", b"{\"version\": 1"] {
            fs::write(&path, spoiled).unwrap();
            let loaded = load(directory.path()).unwrap();
            assert_eq!((loaded.state, loaded.is_lost), (full(), false));
            assert!(loaded.warning.unwrap().contains("its copy beside it is used"));
        }
        // Whoever takes the file away wants to begin anew.
        fs::remove_file(&path).unwrap();
        assert_eq!(load(directory.path()).unwrap().state, State::default());
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        save(&full(), directory.path()).unwrap();
        let mut large = full();
        let rule = large.rules[0].clone();
        large.rules.resize(100_000, rule);
        assert!(matches!(save(&large, directory.path()), Err(StateError::TooLarge { .. })));
        assert_eq!(load(directory.path()).unwrap().state, full());
    }

    #[test]
    fn a_file_too_large_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join(FILE_NAME)).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        let loaded = load(directory.path()).unwrap();
        assert!(loaded.warning.unwrap().contains("larger than 16777216 bytes"));
    }

    #[test]
    fn what_can_not_be_read_or_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(FILE_NAME)).unwrap();
        let loaded = load(directory.path()).unwrap();
        assert!(loaded.is_lost && loaded.warning.unwrap().contains("it is not a regular file"));
        assert!(matches!(
            save(&State::default(), directory.path()),
            Err(StateError::NotWritten { .. })
        ));
        assert_eq!(names(directory.path()), [FILE_NAME], "no temporary file is left");

        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(load(&file).unwrap().is_lost);
        assert!(matches!(save(&State::default(), &file), Err(StateError::NotWritten { .. })));
    }

    #[test]
    fn saving_replaces_a_symbolic_link_and_not_what_it_points_to() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, directory.path().join(FILE_NAME)).unwrap();
        save(&State::default(), directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}
