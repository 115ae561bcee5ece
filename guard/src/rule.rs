//! One rule: a source that is allowed or denied, as people write it and as the policy holds it.

use std::path::PathBuf;

use guard_common::packet::Protocol;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a rule does with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// The source of a rule, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An address or a prefix typed by hand.
    Prefix(IpNet),
    /// `@FILE`: a set of prefixes, one a line.
    File(PathBuf),
    /// `lan`: the on-link IPv4 private, ULA and link-local prefixes of the outside interfaces.
    Lan,
    /// `lan6`: as `lan`, and the on-link global /64s.
    Lan6,
}

/// A port that is guarded, or that a rule holds for. Written `11434`, `tcp/11434` or `udp/53`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuardedPort {
    pub protocol: Protocol,
    pub number: u16,
}

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Origin {
    File { file: PathBuf, line: usize },
    Flag,
    Command,
}

/// A rule's short name: a number for rules made by command (`7`), `f` and a number for the file's (`f2`), `g` and a number for
/// those of `guard run`'s flags (`g1`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub String);

/// One rule of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub id: RuleId,
    pub action: Action,
    pub source: Source,
    /// The ports it holds for; empty for every guarded port.
    pub ports: Vec<GuardedPort>,
    /// When it ends, by the wall clock.
    pub until: Option<Timestamp>,
    pub comment: Option<String>,
    pub origin: Origin,
}
