//! One rule: a source that is allowed or denied, as people write it and as the policy holds it.
//!
//! [`Source`] and [`GuardedPort`] are read with `FromStr` and written with `Display`; what is written reads back as
//! the same value.

mod interface;
mod name;
mod port;
mod source;

use std::{fmt, path::PathBuf};

use guard_common::packet::Protocol;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use self::source::parse_prefix;
pub use self::{
    interface::{InterfaceName, InterfaceNameError, MAX_INTERFACE_NAME_BYTES},
    name::{Country, DnsName, DnsNameError},
    port::{PortError, parse_port_list, parse_ports},
    source::{SourceError, check_action, check_via, is_loopback, is_wide},
};

/// The longest comment of a rule, in characters.
pub const MAX_COMMENT_CHARS: usize = 200;

/// What a rule does with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// The source of a rule, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// An address or a prefix typed by hand.
    Prefix(IpNet),
    /// `@FILE`: a set of prefixes, one a line.
    File(PathBuf),
    /// `lan`: the on-link IPv4 private, ULA and link-local prefixes of the outside interfaces.
    Lan,
    /// `lan6`: as `lan`, and the on-link global /64s.
    Lan6,
    /// `if:NAME`: everyone who comes by this interface.
    Interface(InterfaceName),
    /// `host.example.org`: the addresses that DNS says it has.
    Name(DnsName),
    /// `country:FR`: a set of prefixes from the MMDB files.
    Country(Country),
}

/// A port that is guarded, or that a rule holds for. Written `11434`, `tcp/11434` or `udp/53`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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
    /// The interface its packets come by; `None` for every one, or for the one that the source names.
    pub via: Option<InterfaceName>,
    /// When it ends, by the wall clock.
    pub until: Option<Timestamp>,
    pub comment: Option<String>,
    pub origin: Origin,
}

impl Action {
    /// The word in commands, files and output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RuleId {
    /// The id of a rule made by command.
    #[must_use]
    pub fn command(number: u64) -> Self {
        Self(number.to_string())
    }

    /// The id of the file's rule with this place, counted from 1.
    #[must_use]
    pub fn file(place: usize) -> Self {
        Self(format!("f{place}"))
    }

    /// The id of the rule with this place among those of `guard run`'s flags, counted from 1.
    #[must_use]
    pub fn flag(place: usize) -> Self {
        Self(format!("g{place}"))
    }
}

impl Rule {
    /// Whether it holds for this guarded port.
    #[must_use]
    pub fn is_for(&self, port: GuardedPort) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// The interface it holds for; `None` for every one.
    #[must_use]
    pub fn interface(&self) -> Option<&InterfaceName> {
        match &self.source {
            Source::Interface(name) => Some(name),
            _ => self.via.as_ref(),
        }
    }
}

/// Why a comment is refused: one sentence and what to do, or `None` when it is well formed.
#[must_use]
pub fn comment_problem(comment: &str) -> Option<(String, String)> {
    if comment.chars().count() > MAX_COMMENT_CHARS {
        return Some((
            format!(
                "the comment {} is longer than {MAX_COMMENT_CHARS} characters",
                quoted(comment)
            ),
            "Shorten it.".to_owned(),
        ));
    }
    if comment.chars().any(char::is_control) {
        return Some((
            format!("the comment {} holds control characters", quoted(comment)),
            "Write it as one line of plain text.".to_owned(),
        ));
    }
    None
}

/// A value as it stands in a message: in quotes, control characters escaped (it may come from a file
/// somebody else wrote), and cut when it is long.
#[must_use]
pub fn quoted(text: &str) -> String {
    const MOST_CHARS: usize = 80;
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
        None => format!("{text:?}"),
    }
}

/// The words of a list in a sentence: `a`, `a and b`, `a, b and c`.
#[must_use]
pub fn listed<T: fmt::Display>(words: &[T]) -> String {
    match words {
        [] => String::new(),
        [only] => only.to_string(),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(T::to_string).collect();
            format!("{} and {last}", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_escapes_and_cuts() {
        assert_eq!(quoted("a\u{1b}[31m\n"), r#""a\u{1b}[31m\n""#);
        let long = quoted(&"ä".repeat(100));
        assert_eq!(long.chars().count(), 80 + "\"\"…".chars().count());
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(listed::<u8>(&[]), "");
        assert_eq!(listed(&[1]), "1");
        assert_eq!(listed(&[1, 2, 3]), "1, 2 and 3");
    }

    #[test]
    fn comments_are_one_short_line() {
        assert!(comment_problem("office, second floor").is_none());
        assert!(comment_problem("two\nlines").is_some());
        assert!(comment_problem(&"x".repeat(MAX_COMMENT_CHARS)).is_none());
        assert!(comment_problem(&"x".repeat(MAX_COMMENT_CHARS + 1)).is_some());
    }
}
