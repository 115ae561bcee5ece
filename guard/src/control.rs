//! What people and programs may ask of guard, and what it answers.
//!
//! [`Control`] has two implementations: the engine itself, and the client that speaks to a daemon over the socket. The
//! command line uses whichever is there, so that a command does the same with and without a daemon.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    history::{History, Requester},
    progress::Loading,
    rule::{Action, Origin, RuleId},
    store::{HistoryStatus, Sources, SourcesQuery},
};

/// Why a request was not carried out. The policy in force is as it was before.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{what}")]
pub struct Failure {
    pub kind: FailureKind,
    /// One sentence: what failed.
    pub what: String,
    /// One sentence: what to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

/// Decides the exit code and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request itself is wrong: HTTP 400, exit 2.
    BadRequest,
    /// The peer may not ask this: HTTP 403, exit 1.
    Forbidden,
    /// It needs the caller's confirmation (`--yes`): HTTP 409, exit 1.
    NeedsConfirmation,
    /// The system did not let it happen: HTTP 500, exit 1.
    Failed,
}

impl Failure {
    pub fn bad_request(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { kind: FailureKind::BadRequest, what: what.into(), fix: Some(fix.into()) }
    }

    pub fn needs_confirmation(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { kind: FailureKind::NeedsConfirmation, what: what.into(), fix: Some(fix.into()) }
    }

    pub fn failed(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { kind: FailureKind::Failed, what: what.into(), fix: Some(fix.into()) }
    }

    /// A request panicked: what the engine remembers may no longer be what is in force.
    pub(crate) fn panicked() -> Self {
        Self::failed(
            "the daemon met an error of its own while it carried out a request",
            "Restart the daemon: the kernel goes on enforcing meanwhile.",
        )
    }
}

/// Asks for rules, one for each source. Body of `POST /v1/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRules {
    pub action: Action,
    /// As typed: `SRC` of the design.
    pub sources: Vec<String>,
    /// As typed; empty for every guarded port.
    #[serde(default)]
    pub ports: Vec<String>,
    /// As typed: the interface that the sources' packets come by; every one where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// How long they hold; for ever where it is absent.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Confirms what would otherwise be refused with [`FailureKind::NeedsConfirmation`].
    #[serde(default)]
    pub yes: bool,
    /// The rules are on trial for so many seconds, see [`Control::confirm`].
    #[serde(rename = "confirm", default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
}

/// Asks to remove rules. Body of `DELETE /v1/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRules {
    /// Ids, or sources as typed.
    pub rules: Vec<String>,
}

/// Asks for a mode. Body of `POST /v1/mode`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMode {
    pub mode: Mode,
    /// For `observe`: when dropping resumes; never by itself where it is absent.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// Asks to read the configuration again. Body of `POST /v1/reload`, which may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// The configuration is on trial for so many seconds, see [`Control::confirm`].
    #[serde(rename = "confirm", default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
}

/// Asks what would happen. Body of `POST /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    pub source: IpAddr,
    /// As typed; the first guarded port where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Enforce,
    Observe,
}

/// A rule, as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    pub id: RuleId,
    pub action: Action,
    pub source: String,
    /// Empty for every guarded port.
    pub ports: Vec<String>,
    /// The interface that its packets come by; `None` for every one, or for the one that the source names.
    #[serde(default)]
    pub via: Option<String>,
    /// Why no packet can match it at present, in a few words, where that is so: nothing can be told to come by its interface.
    #[serde(default)]
    pub idle: Option<String>,
    pub until: Option<Timestamp>,
    pub comment: Option<String>,
    pub origin: Origin,
    /// How many prefixes it stands for at present; 1 where one was typed by hand.
    pub prefixes: usize,
    /// Wider than /8 (IPv4) or /16 (IPv6), or everyone by an interface.
    #[serde(default)]
    pub wide: bool,
    /// For a file, a country and a DNS name: when it was last refreshed.
    #[serde(default)]
    pub refresh: Option<Refresh>,
}

/// When what a source stands for was last found out, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// When it was last taken; `None` where it never was.
    pub at: Option<Timestamp>,
    /// When a name is asked for again. Files are read when they change.
    pub next: Option<Timestamp>,
    /// Why what it stands for was not taken since, in one sentence; what was taken before holds.
    pub error: Option<String>,
}

/// A file, a country or a DNS name that rules have as their source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    pub source: String,
    pub prefixes: usize,
    #[serde(flatten)]
    pub refresh: Refresh,
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The generation of the policy now in force; `None` when nothing is loaded, and the change only kept for the next start.
    pub generation: Option<u64>,
    /// The rules made or removed, or all rules after a reload.
    pub rules: Vec<RuleView>,
    /// Sentences worth knowing.
    pub notes: Vec<String>,
    /// It is rolled back unless it is confirmed in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialView>,
}

/// A change on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialView {
    /// The command that began it.
    pub what: String,
    /// When it is rolled back unless it is confirmed.
    pub until: Timestamp,
}

/// How much of the promise is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// Exit 0.
    Full,
    /// Everything is in place, and only counts. Exit 3.
    Observe,
    /// A part is missing; each is named. Exit 4.
    Partial,
    /// Exit 5.
    None,
}

/// A part of what guard promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The tables that every hook asks, and the ports in them.
    Policy,
    /// The hooks by which packets come in.
    Interfaces,
    /// The hooks by which they leave for guests.
    Edge,
    /// The backstop at the sockets.
    Sockets,
    /// What makes enforcement outlive the daemon.
    Pins,
}

impl Layer {
    pub const ALL: [Self; 5] =
        [Self::Policy, Self::Interfaces, Self::Edge, Self::Sockets, Self::Pins];

    /// As JSON and metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Interfaces => "interfaces",
            Self::Edge => "edge",
            Self::Sockets => "sockets",
            Self::Pins => "pins",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    pub layer: Layer,
    pub enforced: bool,
}

/// `guard status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub enforcement: Enforcement,
    /// What is missing, one sentence each.
    pub missing: Vec<String>,
    /// Whether each part of the promise is in force whole.
    #[serde(default)]
    pub layers: Vec<LayerStatus>,
    pub mode: Mode,
    /// In observe: when dropping resumes.
    pub observe_until: Option<Timestamp>,
    pub generation: Option<u64>,
    /// What the table of sources takes of the kernel's memory, in bytes.
    #[serde(default)]
    pub source_table_bytes: u64,
    /// How full the kernel's tables are, where the asked process has filled them. A policy that needs more is refused.
    #[serde(default)]
    pub tables: Vec<TableUse>,
    /// The daemon's process id, when one is alive.
    pub daemon: Option<u32>,
    pub ports: Vec<String>,
    /// Ports guarded because a container engine's forwarder leads from them to a guarded one.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    pub interfaces: Vec<InterfaceStatus>,
    pub backstop: BackstopStatus,
    /// Whether enforcement stays when the daemon ends.
    pub outlives_daemon: bool,
    pub rules: usize,
    /// Allow rules wider than /8 (IPv4) or /16 (IPv6), and those that let in everyone by an interface.
    pub wide_rules: Vec<String>,
    /// Rules that no packet can match at present, and why, one sentence each.
    #[serde(default)]
    pub idle_rules: Vec<String>,
    /// The files, countries and DNS names that rules name, each once.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    pub counters: Vec<CounterView>,
    pub events: EventTotals,
    /// Where the daemon keeps attempts for later, and how that goes; `None` without a daemon, and where it keeps none.
    #[serde(default)]
    pub attempt_history: Option<HistoryStatus>,
    pub version: String,
    /// The change that is rolled back unless it is confirmed.
    #[serde(default)]
    pub trial: Option<TrialView>,
    /// The configuration in force is not the file's: that was tried, and not confirmed. `guard reload` takes it.
    #[serde(default)]
    pub rolled_back: bool,
    /// What is wrong with the files of facts about sources (`[enrich]`), one sentence each. Nothing else suffers from it.
    #[serde(default)]
    pub enrich_problems: Vec<String>,
}

/// What the policy in force takes of one of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUse {
    pub table: String,
    pub used: u64,
    pub room: u64,
}

/// A port that a forwarder publishes and that leads to a guarded one, whose rules hold for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub port: String,
    /// The guarded port.
    pub to: String,
    /// The forwarder's name; `None` when it has just ended.
    pub by: Option<String>,
}

/// One interface and what guards it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub index: u32,
    /// `outside`, `tunnel`, `local bridge`, … as classified.
    pub class: String,
    /// How it is covered, as the kernel says: `xdp native`, `xdp generic`, `tcx`, `clsact`, and of what leads to guests
    /// `edge tcx` or `edge clsact`; `None` when it is not.
    pub hook: Option<String>,
    /// What is out of the ordinary about it.
    pub note: Option<String>,
    /// Why it is covered in this way, in a few words, where packets come in by it.
    #[serde(default)]
    pub reason: Option<String>,
    /// What native XDP (`guard run --attach native`) would cost other traffic there, where it was not chosen for that.
    #[serde(default)]
    pub native_price: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackstopStatus {
    pub attached: bool,
    /// `root`, or what else it is attached to.
    pub scope: String,
    pub path: Option<String>,
}

/// Packets that got one verdict at one hook for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterView {
    pub hook: String,
    pub verdict: String,
    pub reason: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Whose attempts there were, and what became of their events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventTotals {
    /// Packets that no event has reported singly.
    pub unreported: u64,
    /// Packets in observe that an earlier hook had judged already.
    pub repeated: u64,
    /// Packets of a flood that were counted and not looked at; the next that is stands for them.
    #[serde(default)]
    pub passed_over: u64,
    /// Events that found the ring full.
    pub ring_full: u64,
    /// Sources with attempts in the last five minutes, an IPv6 one by its /64; at most 65,536 are told apart, and in a flood only
    /// those of attempts that are looked at are known.
    #[serde(default)]
    pub sources: u64,
    /// Where the daemon writes attempts by itself.
    #[serde(default)]
    pub sinks: Vec<SinkStatus>,
}

/// Somewhere that the daemon writes attempts to, and how that goes. Counts begin with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// `jsonl`, `journal` or `history`.
    pub sink: String,
    /// Attempts that it has taken.
    pub taken: u64,
    /// Attempts that it has not: they came too fast, or could not be written.
    pub left_out: u64,
    /// What is wrong at present, in one sentence.
    pub error: Option<String>,
}

/// `guard explain`: one line per place of arrival.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub source: IpAddr,
    pub port: String,
    pub places: Vec<PlaceVerdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceVerdict {
    /// An interface's name, or `socket`.
    pub place: String,
    pub hook: String,
    /// `pass`, `drop` or `would-drop`; `not-guarded` when the port is not guarded there.
    pub verdict: String,
    pub reason: Option<String>,
    /// The rule that says so.
    pub rule: Option<RuleView>,
    /// At the socket: what a covered interface has let in by a rule for that interface gets in all the same.
    #[serde(default)]
    pub by_interface: bool,
}

/// Everything that can be asked, by several at once. Every change is kept with who asked for it (`by`); a client leaves that
/// to the daemon, which asks the kernel who the client is.
pub trait Control {
    /// # Errors
    /// When neither pins nor state can be read.
    fn status(&self) -> Result<Status, Failure>;

    /// # Errors
    /// As [`Control::status`].
    fn rules(&self) -> Result<Vec<RuleView>, Failure>;

    /// # Errors
    /// When a source, port or end is not well formed, needs confirmation, or the policy can't be put in force.
    fn add_rules(&self, request: &AddRules, by: &Requester) -> Result<Change, Failure>;

    /// # Errors
    /// When a word names no rule, several, or one of the file; or the policy can't be put in force.
    fn remove_rules(&self, request: &RemoveRules, by: &Requester) -> Result<Change, Failure>;

    /// # Errors
    /// When the policy can't be put in force.
    fn set_mode(&self, request: &SetMode, by: &Requester) -> Result<Change, Failure>;

    /// # Errors
    /// When nothing is loaded, or the port is not well formed.
    fn explain(&self, request: &Explain) -> Result<Explanation, Failure>;

    /// Reads the configuration and the files of sources again.
    ///
    /// # Errors
    /// When any of them is bad; nothing has changed then.
    fn reload(&self, request: &Reload, by: &Requester) -> Result<Change, Failure>;

    /// Lifts everything. Answers with one sentence for each thing lifted; a daemon ends afterwards.
    ///
    /// # Errors
    /// When something could not be lifted.
    fn down(&self, by: &Requester) -> Result<Vec<String>, Failure>;

    /// Keeps the change that is on trial. Until then any other change but [`Control::rollback`] and [`Control::down`] is refused.
    ///
    /// # Errors
    /// When none is, or it can't be kept.
    fn confirm(&self, by: &Requester) -> Result<Change, Failure>;

    /// Takes back the change that is on trial, as happens by itself when its time is over.
    ///
    /// # Errors
    /// When none is, or it can't be taken back.
    fn rollback(&self, by: &Requester) -> Result<Change, Failure>;

    /// How far a change has come that takes long; `None` where none is under way. Answered at once, whatever is.
    ///
    /// # Errors
    /// When the daemon does not answer.
    fn loading(&self) -> Result<Option<Loading>, Failure>;

    /// The changes of the last so many seconds, or all that are kept.
    ///
    /// # Errors
    /// When they can't be read.
    fn history(&self, since_seconds: Option<u64>) -> Result<History, Failure>;

    /// Who sent the most, by the history of attempts.
    ///
    /// # Errors
    /// When a word of the query is not well formed, no history is kept, or it can't be read.
    fn sources(&self, query: &SourcesQuery) -> Result<Sources, Failure>;
}
