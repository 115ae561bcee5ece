//! The configuration file `/etc/guard/guard.toml`, validated whole before any of it is used.
//!
//! Every error names its line and column, the value, and what would be right; all that are found are reported at once.
//! The file is walked by hand rather than deserialized, since deserialization stops at the first error.

mod read;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use guard_common::packet::Protocol;

use crate::{
    bounded_file::{self, ReadError},
    control::{Failure, FailureKind, Mode},
    rule::{GuardedPort, MAX_INTERFACE_NAME_BYTES, Rule, listed, quoted},
    sinks::JsonLines,
    store,
};

/// Where the configuration is looked for when no other file is named.
pub const DEFAULT_PATH: &str = "/etc/guard/guard.toml";

/// The port that is guarded when none is named: Ollama's.
pub const DEFAULT_PORT: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 11434 };

/// No sensible configuration is larger: long lists of prefixes stand in files of their own.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Errors that are reported at once.
const MAX_ERRORS: usize = 20;

/// The configuration, every key of it with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub mode: Mode,
    /// Sorted, each once; at least one.
    pub ports: Vec<GuardedPort>,
    pub interfaces: Interfaces,
    pub attach: AttachPolicy,
    /// What happens to packets that this host merely forwards.
    pub forwarded: Forwarded,
    pub local: LocalSources,
    /// Dropped TCP packets are answered with a reset.
    pub reject: bool,
    /// The file's rules, one for each source: `f1`, `f2`, … in their order.
    pub rules: Vec<Rule>,
    pub paths: Paths,
    pub enrich: Enrich,
    pub events: Events,
}

/// Where attempts are written to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A file of JSON lines; none where no path is named.
    pub jsonl: Option<JsonLines>,
    pub history: KeptHistory,
}

/// What is kept of attempts for those who ask later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptHistory {
    pub file: HistoryFile,
    /// What is older is removed.
    pub keep: Duration,
    /// Of a larger file the oldest is removed.
    pub max_bytes: u64,
}

/// Where it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HistoryFile {
    /// In the directory of the state file.
    #[default]
    BesideTheState,
    At(PathBuf),
    /// Nothing is kept.
    Off,
}

/// Where facts about addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrich {
    /// Local MMDB files: the networks of countries, cities and autonomous systems.
    pub mmdb: Vec<PathBuf>,
    /// Lists of prefixes with labels: paths, or patterns for some.
    pub labels: Vec<PathBuf>,
}

impl Default for Enrich {
    fn default() -> Self {
        let labels = ["/etc/guard/labels/*.txt", "/etc/guard/labels/*.json"];
        Self { mmdb: Vec::new(), labels: labels.map(PathBuf::from).to_vec() }
    }
}

/// Where packets are dropped early. It never narrows what is guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// On every outside interface.
    Outside,
    /// On those with a name that matches one of these.
    Named(Vec<InterfacePattern>),
}

/// An interface's name, or a pattern for names: `*`, `?` and `[…]` stand for what they stand for in a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePattern(glob::Pattern);

/// How the NIC's hooks are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Attach {
    /// What costs other traffic nothing.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP in the stack.
    Generic,
    /// TCX (Linux 6.6).
    Tcx,
    /// A filter on the clsact qdisc, for kernels without TCX.
    Clsact,
    /// Nothing at the NIC: the backstop only.
    Socket,
}

/// How to attach, by interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachPolicy {
    pub default: Attach,
    /// By the interface's whole name.
    pub by_interface: BTreeMap<String, Attach>,
}

/// What happens to packets for a guarded port that this host merely forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Forwarded {
    #[default]
    Pass,
    /// They are judged as if they were for this host.
    Guard,
}

/// Who is let in without a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LocalSources {
    /// This host, and the containers and virtual machines on its own networks.
    #[default]
    HostAndContainers,
    /// This host only.
    Host,
}

/// Where guard keeps what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The directory on bpffs below which programs, links and maps are pinned.
    pub pins: PathBuf,
    /// The cgroup whose sockets the backstop judges; `None` for the root, which is looked for.
    pub cgroup: Option<PathBuf>,
    /// The directory of the state file.
    pub state: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            ports: vec![DEFAULT_PORT],
            interfaces: Interfaces::Outside,
            attach: AttachPolicy::default(),
            forwarded: Forwarded::default(),
            local: LocalSources::default(),
            reject: false,
            rules: Vec::new(),
            paths: Paths::default(),
            enrich: Enrich::default(),
            events: Events::default(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            pins: PathBuf::from("/sys/fs/bpf/guard"),
            cgroup: None,
            state: PathBuf::from("/var/lib/guard"),
            socket: PathBuf::from("/run/guard/guard.sock"),
        }
    }
}

impl Default for KeptHistory {
    fn default() -> Self {
        Self {
            file: HistoryFile::default(),
            keep: Duration::from_hours(90 * 24),
            max_bytes: 1 << 30,
        }
    }
}

impl Paths {
    /// The file whose lock is held by whoever changes the policy: beside the socket.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.socket.with_extension("lock")
    }
}

impl Interfaces {
    /// Whether packets are to be dropped early on an outside interface of this name.
    #[must_use]
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Self::Outside => true,
            Self::Named(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }
}

impl AttachPolicy {
    /// How to attach to an interface of this name.
    #[must_use]
    pub fn of(&self, interface: &str) -> Attach {
        self.by_interface.get(interface).copied().unwrap_or(self.default)
    }
}

/// Why a text is not an interface's name or a pattern for some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} can't be the name of an interface", quoted(.text))]
pub struct InterfaceError {
    text: String,
}

impl InterfaceError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        "Write a name such as eth0 or a pattern such as eth*."
    }
}

impl From<InterfaceError> for Failure {
    fn from(error: InterfaceError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

/// Patterns that are longer than names make sense (`[abc]`), but not much longer.
const MAX_PATTERN_BYTES: usize = 64;

impl FromStr for InterfacePattern {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let error = || InterfaceError { text: text.to_owned() };
        let never_in_names = |character: char| {
            matches!(character, '/' | ':') || character.is_whitespace() || character.is_control()
        };
        let most = if is_name(text) { MAX_INTERFACE_NAME_BYTES } else { MAX_PATTERN_BYTES };
        if text.is_empty() || text.len() > most || text.contains(never_in_names) {
            return Err(error());
        }
        glob::Pattern::new(text).map(Self).map_err(|_| error())
    }
}

/// Whether a text has no character that stands for others.
fn is_name(text: &str) -> bool {
    !text.contains(['*', '?', '['])
}

impl InterfacePattern {
    /// Whether it stands for one name only.
    #[must_use]
    pub fn is_name(&self) -> bool {
        is_name(self.0.as_str())
    }

    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl Attach {
    pub const ALL: [Self; 6] =
        [Self::Auto, Self::Native, Self::Generic, Self::Tcx, Self::Clsact, Self::Socket];

    /// The word in the file and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Socket => "socket",
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no way to attach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a way to attach", quoted(.text))]
pub struct AttachError {
    text: String,
}

impl AttachError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        format!("Write one of {}.", listed(&Attach::ALL))
    }
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

impl FromStr for Attach {
    type Err = AttachError;

    fn from_str(text: &str) -> Result<Self, AttachError> {
        Self::ALL
            .into_iter()
            .find(|attach| attach.name() == text)
            .ok_or_else(|| AttachError { text: text.to_owned() })
    }
}

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub file: PathBuf,
    /// `None` where it is the file as a whole.
    pub position: Option<Position>,
    /// One sentence: what is wrong.
    pub what: String,
    /// One sentence: what would be right.
    pub fix: String,
}

/// A place in a text, both counted from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl ConfigError {
    /// `FILE:LINE:COL`, or the file where it is the whole.
    #[must_use]
    pub fn place(&self) -> String {
        let file = self.file.display();
        match self.position {
            Some(Position { line, column }) => format!("{file}:{line}:{column}"),
            None => file.to_string(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.place(), self.what, self.fix)
    }
}

/// Everything that was found wrong with a configuration file, in its order: at least one error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    pub errors: Vec<ConfigError>,
    /// Errors that were found and are not among them.
    pub left_out: usize,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.errors.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        if self.left_out > 0 {
            write!(f, "\nThere are {} errors more.", self.left_out)?;
        }
        Ok(())
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        match &errors.errors[..] {
            [only] => Self::failed(format!("{}: {}", only.place(), only.what), only.fix.as_str()),
            // Each line has its own fix.
            _ => Self { kind: FailureKind::Failed, what: errors.to_string(), fix: None },
        }
    }
}

impl Config {
    /// Reads a file. One that is absent has all defaults, unless it was named `explicit`ly.
    ///
    /// # Errors
    /// When the file can't be read or anything in it is wrong.
    pub fn load(path: &Path, explicit: bool) -> Result<Self, ConfigErrors> {
        Self::parse(&Self::text(path, explicit)?, path)
    }

    /// The text of a file. One that is absent is empty, unless it was named `explicit`ly.
    ///
    /// # Errors
    /// When the file can't be read or is no text.
    pub fn text(path: &Path, explicit: bool) -> Result<String, ConfigErrors> {
        let bytes = match bounded_file::read(path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound && !explicit => {
                return Ok(String::new());
            }
            Err(error) => {
                let (what, fix) = match &error {
                    ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                        ("the file does not exist".to_owned(), "Name a file that exists.")
                    }
                    ReadError::Io(error) => {
                        (format!("the file can't be read: {error}"), "Make it readable.")
                    }
                    ReadError::NotRegular => {
                        ("this is not a regular file".to_owned(), "Name a regular file.")
                    }
                    ReadError::TooLarge { limit } => (
                        format!("the file is larger than {limit} bytes"),
                        "Write long lists of prefixes to files of their own, and name these with @.",
                    ),
                };
                return Err(ConfigErrors::whole_file(path, what, fix));
            }
        };
        String::from_utf8(bytes).map_err(|error| {
            let what = "the file is not UTF-8 from here on".to_owned();
            let mut errors = ConfigErrors::whole_file(path, what, "Save it as UTF-8.");
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes());
            errors.errors[0].position = Some(Places::new(&text).of(valid));
            errors
        })
    }

    /// Reads the text of a file; `path` is for messages and the origin of rules.
    ///
    /// # Errors
    /// When anything in it is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        read::config(text, path)
    }

    /// The history of attempts, where one is kept.
    #[must_use]
    pub fn attempt_history(&self) -> Option<store::Settings> {
        let KeptHistory { file, keep, max_bytes } = &self.events.history;
        let path = match file {
            HistoryFile::BesideTheState => self.paths.state.join(store::FILE_NAME),
            HistoryFile::At(path) => path.clone(),
            HistoryFile::Off => return None,
        };
        Some(store::Settings { path, keep: *keep, max_bytes: *max_bytes })
    }

    /// Where guard keeps what, by a file that may be bad elsewhere: a fault in a rule must not keep anybody from the daemon.
    ///
    /// # Errors
    /// As [`Config::load`], when the file's paths can't be read either.
    pub fn load_paths(path: &Path, explicit: bool) -> Result<Paths, ConfigErrors> {
        match Self::load(path, explicit) {
            Ok(config) => Ok(config.paths),
            Err(errors) => paths_alone(path).ok_or(errors),
        }
    }
}

/// The paths of a file that is TOML, whatever else is wrong with it.
fn paths_alone(path: &Path) -> Option<Paths> {
    let text = String::from_utf8(bounded_file::read(path, MAX_BYTES).ok()?).ok()?;
    let mut table: toml::Table = text.parse().ok()?;
    let only = toml::Table::from_iter([("paths".to_owned(), table.remove("paths")?)]);
    Config::parse(&only.to_string(), path).ok().map(|config| config.paths)
}

impl ConfigErrors {
    fn whole_file(path: &Path, what: String, fix: &str) -> Self {
        let error =
            ConfigError { file: path.to_path_buf(), position: None, what, fix: fix.to_owned() };
        Self { errors: vec![error], left_out: 0 }
    }
}

/// Finds places in a text.
struct Places<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { text, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The place of a byte, counted from 0.
    fn of(&self, offset: usize) -> Position {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        let line_start = self.line_starts[line - 1];
        Position { line, column: self.text[line_start..offset].chars().count() + 1 }
    }

    /// The line of a byte, without looking at the text of the line.
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }
}
