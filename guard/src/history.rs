//! Who changed what: `changes.jsonl` in the state directory, one JSON object a line, newest last.
//!
//! Whoever has the lock writes, after the change is in force. The file has a bound: one that is full becomes
//! `changes.jsonl.1`, in place of the one before. A line that a crash has torn is skipped by whoever reads, and never spoils the
//! next one.

use std::{
    collections::HashSet,
    fmt, fs,
    fs::{DirBuilder, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    bounded_file,
    control::{AddRules, Mode, Reload, RemoveRules, SetMode},
    duration,
    rule::{Action, GuardedPort, InterfaceName, Rule, RuleId, Source},
    state::RunFlags,
};

/// The file's name in the state directory.
pub const FILE_NAME: &str = "changes.jsonl";

/// What it is called once it is full.
pub const FULL_NAME: &str = "changes.jsonl.1";

/// The most that one file holds.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The longest text that is kept of a command, a command line or a source.
pub const MAX_TEXT_BYTES: usize = 256;

/// Rules and ports that one change names; of more there is a number.
const MOST_NAMED: usize = 20;

/// By which road a change was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The control socket.
    Socket,
    /// A command that worked without a daemon, or `guard run` itself.
    Command,
    /// SIGHUP: nobody can say whose.
    Signal,
    /// guard by itself.
    Daemon,
}

impl Via {
    /// The word in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Command => "command",
            Self::Signal => "signal",
            Self::Daemon => "daemon",
        }
    }
}

/// Who asks for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    pub via: Via,
    pub uid: Option<u32>,
    /// As this process sees it: `None` where the kernel shows none.
    pub pid: Option<u32>,
    /// Who logged in, by the kernel's audit or else by what sudo says: a hint only.
    pub login_uid: Option<u32>,
    /// The asking process's command line. It is what the process claims: it can write there whatever it likes.
    pub claimed: Option<String>,
}

impl Requester {
    /// This process, which works without a daemon, or is one that starts.
    #[must_use]
    pub fn this_process() -> Self {
        let pid = std::process::id();
        let uid = rustix::process::getuid().as_raw();
        let sudo = || std::env::var("SUDO_UID").ok().and_then(|text| text.parse().ok());
        Self {
            via: Via::Command,
            uid: Some(uid),
            pid: Some(pid),
            login_uid: login_uid(pid).or_else(|| sudo().filter(|_| uid == 0)),
            claimed: command_line(pid),
        }
    }

    /// The process behind a connection to the control socket. To be called only for those who may change something: what is read
    /// of a process may be made to hang by its owner.
    #[must_use]
    pub fn peer(uid: u32, pid: Option<u32>) -> Self {
        Self {
            via: Via::Socket,
            uid: Some(uid),
            pid,
            login_uid: pid.and_then(login_uid),
            claimed: pid.and_then(command_line),
        }
    }

    /// Whoever has sent a signal.
    #[must_use]
    pub fn signal() -> Self {
        Self { via: Via::Signal, uid: None, pid: None, login_uid: None, claimed: None }
    }

    /// guard by itself.
    #[must_use]
    pub fn itself() -> Self {
        Self {
            via: Via::Daemon,
            uid: Some(rustix::process::getuid().as_raw()),
            pid: Some(std::process::id()),
            login_uid: None,
            claimed: None,
        }
    }
}

/// Whom the kernel's audit knows to have logged in (`/proc/PID/loginuid`), where it was told.
fn login_uid(pid: u32) -> Option<u32> {
    let text = first_bytes(Path::new(&format!("/proc/{pid}/loginuid")), 16)?;
    let uid: u32 = String::from_utf8(text).ok()?.trim().parse().ok()?;
    (uid != u32::MAX).then_some(uid)
}

/// A process's command line, its words one after the other, cut where it is long.
fn command_line(pid: u32) -> Option<String> {
    let path = format!("/proc/{pid}/cmdline");
    let bytes = first_bytes(Path::new(&path), MAX_TEXT_BYTES + 1)?;
    text_of(&bytes)
}

fn text_of(bytes: &[u8]) -> Option<String> {
    let words: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    (!words.is_empty()).then(|| bounded(&words.join(" ")))
}

fn first_bytes(path: &Path, most: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    File::open(path).ok()?.take(most as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A text of at most [`MAX_TEXT_BYTES`], which ends with `…` where something was cut off.
#[must_use]
pub fn bounded(text: &str) -> String {
    const MARK: char = '…';
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_TEXT_BYTES - MARK.len_utf8());
    format!("{}{MARK}", &text[..end])
}

/// What kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Start,
    Allow,
    Deny,
    Remove,
    Observe,
    Enforce,
    Reload,
    /// A trial was confirmed.
    Confirm,
    /// A trial was rolled back.
    Rollback,
    /// Ports that forwarders publish are guarded, or no longer.
    Published,
    Down,
}

/// A change as it was asked for, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub kind: Kind,
    /// The command that asks for it, without the program's name: `allow 10.0.0.0/24 for 2h`.
    pub command: String,
    pub by: Requester,
}

impl Asked {
    #[must_use]
    pub fn new(kind: Kind, command: &str, by: &Requester) -> Self {
        Self { kind, command: bounded(command), by: by.clone() }
    }

    #[must_use]
    pub fn start(flags: &RunFlags, by: &Requester) -> Self {
        let mut words = vec!["run".to_owned()];
        words.extend(flags.ports.iter().map(|port| format!("--port {port}")));
        words.extend(flags.allow.iter().map(|source| format!("--allow {source}")));
        words.extend(flags.interfaces.iter().map(|name| format!("--interface {name}")));
        words.extend(flags.attach.iter().map(|mode| format!("--attach {mode}")));
        words.extend(flags.observe.then(|| "--observe".to_owned()));
        words.extend(flags.reject.then(|| "--reject".to_owned()));
        Self::new(Kind::Start, &words.join(" "), by)
    }

    #[must_use]
    pub fn add(request: &AddRules, by: &Requester) -> Self {
        let kind = match request.action {
            Action::Allow => Kind::Allow,
            Action::Deny => Kind::Deny,
        };
        Self::new(kind, &words_of(request), by)
    }

    #[must_use]
    pub fn remove(request: &RemoveRules, by: &Requester) -> Self {
        Self::new(Kind::Remove, &format!("remove {}", request.rules.join(" ")), by)
    }

    #[must_use]
    pub fn mode(request: &SetMode, by: &Requester) -> Self {
        let (kind, word) = match request.mode {
            Mode::Observe => (Kind::Observe, "observe"),
            Mode::Enforce => (Kind::Enforce, "enforce"),
        };
        let words: Vec<String> =
            std::iter::once(word.to_owned()).chain(span("for", request.for_seconds)).collect();
        Self::new(kind, &words.join(" "), by)
    }

    #[must_use]
    pub fn reload(request: &Reload, by: &Requester) -> Self {
        let words: Vec<String> = std::iter::once("reload".to_owned())
            .chain(span("confirm", request.confirm_seconds))
            .collect();
        Self::new(Kind::Reload, &words.join(" "), by)
    }
}

/// A request for rules as a command: `allow 10.0.0.0/24 for 2h`.
#[must_use]
pub fn words_of(request: &AddRules) -> String {
    let mut words = vec![request.action.name().to_owned()];
    words.extend(request.sources.iter().take(MOST_NAMED).cloned());
    let left_out = request.sources.len().saturating_sub(MOST_NAMED);
    words.extend((left_out > 0).then(|| format!("and {left_out} more")));
    words.extend(request.ports.iter().take(MOST_NAMED).map(|port| format!("port {port}")));
    words.extend(request.via.iter().map(|via| format!("via {via}")));
    words.extend(span("for", request.for_seconds));
    words.extend(span("confirm", request.confirm_seconds));
    words.extend(request.comment.iter().map(|comment| format!("comment {comment:?}")));
    bounded(&words.join(" "))
}

fn span(word: &str, seconds: Option<u64>) -> Option<String> {
    seconds.map(|seconds| format!("{word} {}", duration::brief(seconds)))
}

/// What became of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Made,
    Removed,
    /// It is there as before, with another end or comment.
    Changed,
}

/// A rule that a change has made, removed or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleChange {
    pub change: Fate,
    pub id: RuleId,
    pub action: Action,
    pub source: String,
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// Ports that a change has begun or ceased to guard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortChanges {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// One change, as it is kept and shown: `guard history --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub time: Timestamp,
    pub uid: Option<u32>,
    pub pid: Option<u32>,
    /// Who logged in, where that is known: a hint only.
    #[serde(default)]
    pub login_uid: Option<u32>,
    /// What was asked.
    pub command: String,
    /// The asking process's command line, as it claims.
    #[serde(default)]
    pub claimed_command_line: Option<String>,
    pub via: Via,
    pub change: Kind,
    /// `None` where nothing was in force before, or is afterwards.
    pub old_generation: Option<u64>,
    pub new_generation: Option<u64>,
    #[serde(default)]
    pub rules: Vec<RuleChange>,
    /// Rules made, removed or changed that are not among these.
    #[serde(default)]
    pub rules_left_out: usize,
    #[serde(default)]
    pub ports: PortChanges,
    /// The mode from then on; `None` where it is as it was.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// When it is rolled back unless it is confirmed.
    #[serde(default)]
    pub trial_until: Option<Timestamp>,
}

/// `guard history`. Answer of `GET /v1/history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Newest last.
    pub changes: Vec<Entry>,
    /// Lines that are no changes: torn, or of something else.
    pub damaged_lines: usize,
}

/// What stands before a change or after it.
#[derive(Clone, Debug)]
pub struct Standing {
    pub generation: Option<u64>,
    pub rules: Vec<Rule>,
    pub ports: Vec<GuardedPort>,
    pub mode: Mode,
    pub observe_until: Option<Timestamp>,
    pub trial_until: Option<Timestamp>,
}

impl Entry {
    /// What a change has come to.
    #[must_use]
    pub fn new(time: Timestamp, asked: &Asked, before: &Standing, after: &Standing) -> Self {
        let mut rules = changed_rules(&before.rules, &after.rules);
        let rules_left_out = rules.len().saturating_sub(MOST_NAMED);
        rules.truncate(MOST_NAMED);
        let new_mode = (before.mode, before.observe_until) != (after.mode, after.observe_until)
            || matches!(asked.kind, Kind::Start);
        Self {
            time,
            uid: asked.by.uid,
            pid: asked.by.pid,
            login_uid: asked.by.login_uid,
            command: bounded(&asked.command),
            claimed_command_line: asked.by.claimed.as_deref().map(bounded),
            via: asked.by.via,
            change: asked.kind,
            old_generation: before.generation,
            new_generation: after.generation,
            rules,
            rules_left_out,
            ports: PortChanges {
                added: ports_without(&after.ports, &before.ports),
                removed: ports_without(&before.ports, &after.ports),
            },
            mode: (new_mode && after.generation.is_some()).then_some(after.mode),
            trial_until: after.trial_until.filter(|_| before.trial_until.is_none()),
        }
    }
}

/// Everything about a rule but its id and its comment. The file's ids are places, and move.
fn said_by(
    rule: &Rule,
) -> (Action, &Source, &[GuardedPort], Option<&InterfaceName>, Option<Timestamp>) {
    (rule.action, &rule.source, &rule.ports, rule.via.as_ref(), rule.until)
}

fn changed_rules(before: &[Rule], after: &[Rule]) -> Vec<RuleChange> {
    let said_before: HashSet<_> = before.iter().map(said_by).collect();
    let said_after: HashSet<_> = after.iter().map(said_by).collect();
    let made = after.iter().filter(|rule| !said_before.contains(&said_by(rule)));
    let removed = before.iter().filter(|rule| !said_after.contains(&said_by(rule)));
    let id_of = |rule: &Rule| (rule.id.clone(), rule.source.clone());
    let renewed: HashSet<_> = {
        let removed: HashSet<_> = removed.clone().map(id_of).collect();
        made.clone().map(id_of).filter(|id| removed.contains(id)).collect()
    };
    let change = |fate, rule: &Rule| RuleChange {
        change: fate,
        id: rule.id.clone(),
        action: rule.action,
        source: bounded(&rule.source.to_string()),
        until: rule.until,
    };
    let fate_of_new =
        |rule: &Rule| if renewed.contains(&id_of(rule)) { Fate::Changed } else { Fate::Made };
    made.map(|rule| change(fate_of_new(rule), rule))
        .chain(
            removed
                .filter(|rule| !renewed.contains(&id_of(rule)))
                .map(|rule| change(Fate::Removed, rule)),
        )
        .collect()
}

fn ports_without(ports: &[GuardedPort], others: &[GuardedPort]) -> Vec<String> {
    let others: HashSet<_> = others.iter().collect();
    ports
        .iter()
        .filter(|port| !others.contains(port))
        .take(MOST_NAMED)
        .map(ToString::to_string)
        .collect()
}

/// One line, for the log. Not escaped.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("unknown".into(), |it| it.to_string());
        let generation =
            |number: Option<u64>| number.map_or("none".into(), |number| number.to_string());
        write!(
            f,
            "changed by {:?}: uid {}, pid {}, by {}, generation {} → {}",
            self.command,
            number(self.uid),
            number(self.pid),
            self.via.name(),
            generation(self.old_generation),
            generation(self.new_generation),
        )
    }
}

/// Appends an entry to the file in a directory, which is made where it is absent.
///
/// # Errors
/// When it can't be written; what was there is as it was then.
pub fn append(directory: &Path, entry: &Entry) -> io::Result<()> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    append_line(directory, &line, MAX_FILE_BYTES)
}

fn append_line(directory: &Path, line: &[u8], most: u64) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(FILE_NAME);
    let mut file = open(&path)?;
    let mut length = file.metadata()?.len();
    if length > 0 && length + line.len() as u64 > most {
        fs::rename(&path, directory.join(FULL_NAME))?;
        file = open(&path)?;
        length = 0;
    }
    bounded_file::append_lines(&mut file, line, File::sync_all)?;
    if length == 0 {
        // The name must survive a power cut as well.
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    bounded_file::open_to_append(path, 0o600)
}

/// The changes since a moment, or all that are kept.
///
/// # Errors
/// When a file is there and can't be read.
pub fn read(directory: &Path, oldest: Option<Timestamp>) -> io::Result<History> {
    let mut history = History::default();
    for name in [FULL_NAME, FILE_NAME] {
        let bytes = match newest_bytes(&directory.join(name), MAX_FILE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            bytes => bytes?,
        };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) if oldest.is_none_or(|oldest| entry.time >= oldest) => {
                    history.changes.push(entry);
                }
                Ok(_) => {}
                Err(_) => history.damaged_lines += 1,
            }
        }
    }
    Ok(history)
}

/// The last bytes of a file, which somebody else may have made larger than it should be.
fn newest_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The moment so many seconds before another. A span longer than the calendar reaches behind everything.
#[must_use]
pub fn seconds_before(now: Timestamp, seconds: u64) -> Timestamp {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok())
        .unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::rule::Origin;

    pub(crate) fn rule(id: &str, source: &str) -> Rule {
        Rule {
            id: RuleId(id.to_owned()),
            action: Action::Allow,
            source: source.parse().unwrap(),
            ports: Vec::new(),
            via: None,
            until: None,
            comment: None,
            origin: Origin::Command,
        }
    }

    fn standing(generation: u64, rules: Vec<Rule>) -> Standing {
        Standing {
            generation: Some(generation),
            rules,
            ports: vec!["11434".parse().unwrap()],
            mode: Mode::Enforce,
            observe_until: None,
            trial_until: None,
        }
    }

    fn by() -> Requester {
        Requester {
            via: Via::Socket,
            uid: Some(0),
            pid: Some(812),
            login_uid: Some(1000),
            claimed: Some("guard allow 10.0.0.0/24".to_owned()),
        }
    }

    fn request(sources: Vec<String>) -> AddRules {
        AddRules {
            action: Action::Allow,
            sources,
            ports: Vec::new(),
            via: None,
            for_seconds: Some(7200),
            comment: None,
            yes: false,
            confirm_seconds: Some(60),
        }
    }

    pub(crate) fn example() -> Entry {
        let asked = Asked::add(&request(vec!["10.0.0.0/24".into()]), &by());
        let after = standing(4, vec![rule("1", "192.0.2.1"), rule("4", "10.0.0.0/24")]);
        let before = standing(3, vec![rule("1", "192.0.2.1")]);
        Entry::new("2026-11-25T01:02:03Z".parse().unwrap(), &asked, &before, &after)
    }

    #[test]
    fn the_fields_of_an_entry_are_fixed() {
        let expected = serde_json::json!({
            "time": "2026-11-25T01:02:03Z",
            "uid": 0,
            "pid": 812,
            "login_uid": 1000,
            "command": "allow 10.0.0.0/24 for 2h confirm 1m",
            "claimed_command_line": "guard allow 10.0.0.0/24",
            "via": "socket",
            "change": "allow",
            "old_generation": 3,
            "new_generation": 4,
            "rules": [{
                "change": "made", "id": "4", "action": "allow", "source": "10.0.0.0/24",
                "until": null,
            }],
            "rules_left_out": 0,
            "ports": {"added": [], "removed": []},
            "mode": null,
            "trial_until": null,
        });
        assert_eq!(serde_json::to_value(example()).unwrap(), expected);
    }

    #[test]
    fn a_rule_that_only_moved_is_none_and_one_with_another_end_is_changed() {
        let mut longer = rule("2", "192.0.2.2");
        longer.until = Some(Timestamp::UNIX_EPOCH);
        let before = [rule("f1", "192.0.2.1"), rule("2", "192.0.2.2"), rule("3", "192.0.2.3")];
        let after = [rule("f2", "192.0.2.1"), longer, rule("4", "192.0.2.4")];
        let changes = changed_rules(&before, &after);
        let changes: Vec<_> =
            changes.iter().map(|change| (change.change, change.id.0.as_str())).collect();
        assert_eq!(changes, [(Fate::Changed, "2"), (Fate::Made, "4"), (Fate::Removed, "3")]);
    }

    #[test]
    fn what_is_long_is_cut_and_counted() {
        let many: Vec<Rule> = (0..300)
            .map(|n| rule(&n.to_string(), &format!("10.0.{}.{}", n / 256, n % 256)))
            .collect();
        let sources = many.iter().map(|rule| rule.source.to_string()).collect();
        let mut asker = by();
        asker.claimed = Some("ü\u{1b}".repeat(1 << 20));
        let asked = Asked::add(&request(sources), &asker);
        let entry =
            Entry::new(Timestamp::UNIX_EPOCH, &asked, &standing(1, Vec::new()), &standing(2, many));
        assert_eq!((entry.rules.len(), entry.rules_left_out), (20, 280));
        assert!(entry.command.len() <= MAX_TEXT_BYTES, "{}", entry.command);
        let claimed = entry.claimed_command_line.clone().unwrap();
        assert!(claimed.len() <= MAX_TEXT_BYTES && claimed.ends_with('…'), "{claimed:?}");
        assert!(serde_json::to_vec(&entry).unwrap().len() < 8 << 10);
    }

    #[test]
    fn a_command_line_is_words() {
        assert_eq!(text_of(b"guard\0allow\0a b\0").as_deref(), Some("guard allow a b"));
        assert_eq!(text_of(b"\xffx\0\0").as_deref(), Some("\u{fffd}x"));
        assert_eq!(text_of(b""), None);
        assert_eq!(text_of(&[b'x'; 5000]).map(|text| text.len()), Some(MAX_TEXT_BYTES));
        assert!(command_line(std::process::id()).is_some());
    }

    #[test]
    fn what_is_appended_is_read_and_only_its_owner_reads_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("lib/guard");
        assert_eq!(read(&directory, None).unwrap(), History::default());
        let second = Entry { time: "2026-11-25T02:00:00Z".parse().unwrap(), ..example() };
        append(&directory, &example()).unwrap();
        append(&directory, &second).unwrap();
        let history = read(&directory, None).unwrap();
        assert_eq!(history, History { changes: vec![example(), second.clone()], damaged_lines: 0 });
        assert_eq!(read(&directory, Some(second.time)).unwrap().changes, [second]);
        let mode = fs::metadata(directory.join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_torn_or_foreign_line_is_skipped_and_spoils_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        append(directory, &example()).unwrap();
        let whole = fs::read(directory.join(FILE_NAME)).unwrap();
        for torn in 1..whole.len() {
            let mut bytes = whole.clone();
            bytes.extend_from_slice(&whole[..torn]);
            fs::write(directory.join(FILE_NAME), &bytes).unwrap();
            append(directory, &example()).unwrap();
            let history = read(directory, None).unwrap();
            // All but the line's end is the whole of it.
            let is_whole = torn == whole.len() - 1;
            assert_eq!(history.changes.len(), 2 + usize::from(is_whole), "torn at {torn}");
            assert_eq!(history.damaged_lines, usize::from(!is_whole), "torn at {torn}");
        }
        fs::write(directory.join(FILE_NAME), b"{}\n\xff\xfe\n[1]\n\n").unwrap();
        append(directory, &example()).unwrap();
        let history = read(directory, None).unwrap();
        assert_eq!((history.changes.len(), history.damaged_lines), (1, 3));
    }

    #[test]
    fn there_are_at_most_two_files_of_a_bounded_size() {
        let directory = tempfile::tempdir().unwrap();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        for _ in 0..25 {
            append_line(directory.path(), &line, 1000).unwrap();
        }
        let length = |name| fs::metadata(directory.path().join(name)).unwrap().len();
        assert_eq!((length(FULL_NAME), length(FILE_NAME)), (1000, 500));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert_eq!(read(directory.path(), None).unwrap().damaged_lines, 15);
        // One line may be longer than a file should be: it is kept all the same.
        append_line(directory.path(), &[b'x'; 2000], 1000).unwrap();
        assert_eq!(length(FILE_NAME), 2000);
    }

    #[test]
    fn nothing_but_a_file_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, directory.path().join(FILE_NAME)).unwrap();
        assert!(append(directory.path(), &example()).is_err());
        assert!(read(directory.path(), None).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_span_longer_than_the_calendar_asks_for_everything() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(seconds_before(now, 60), Timestamp::from_second(-60).unwrap());
        assert_eq!(seconds_before(now, u64::MAX), Timestamp::MIN);
    }
}
