//! Attempts, kept for those who ask later: one row for each source, port, kind and hour, in a database of `SQLite`.
//!
//! What comes is folded in memory ([`fold`]) and written once a second by a thread of its own ([`writer`]), so that a slow disk
//! holds up nobody. Readers ([`query`]) have connections of their own, which can write nothing and keep nobody from writing.
//! Everything has a bound: rows that are folded at once, rows of an hour, and the file. What finds no room as itself is counted
//! with [`SourceKey::Others`], so that the totals add up.

mod database;
mod filter;
mod fold;
pub mod query;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{ops::AddAssign, path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{
    database::{Database, DatabaseError},
    filter::{EventsQuery, Filter, SourcesQuery},
    fold::{Fold, SourceKey},
    writer::Writer,
};
use crate::events::SourceFacts;

/// The file's name in the state directory, where the configuration names no other.
pub const FILE_NAME: &str = "history.db";

/// Which file, and how much it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    /// Hours that ended longer ago are removed.
    pub keep: Duration,
    /// Of a file that would grow beyond it, the oldest hours are removed.
    pub max_bytes: u64,
}

/// How many attempts, and what was in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub attempts: u64,
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Totals {
    /// What is left of these without others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self {
            attempts: self.attempts.saturating_sub(others.attempts),
            packets: self.packets.saturating_sub(others.packets),
            bytes: self.bytes.saturating_sub(others.bytes),
        }
    }
}

/// All attempts of one hour from one source, to one port, judged alike: a line of `guard events --since`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourLine {
    /// When the hour began.
    pub hour: Timestamp,
    /// The first and the last of these attempts, to the millisecond.
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    pub verdict: String,
    pub reason: String,
    /// An IPv4 address or an IPv6 /64; `None` for all the sources that there was no room for.
    pub source: Option<String>,
    pub port: Option<u16>,
    pub protocol: String,
    #[serde(flatten)]
    pub totals: Totals,
    #[serde(flatten)]
    pub facts: SourceFacts,
}

/// `guard sources`: who sent the most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Most packets first.
    pub sources: Vec<SourceLine>,
    /// Sources that match, shown or not.
    pub matching: u64,
    /// What came from these.
    pub total: Totals,
    /// What came from sources that there was no room for. It is in no other number here.
    pub others: Totals,
}

/// One source, and what came from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// An IPv4 address or an IPv6 /64.
    pub source: String,
    /// When it was first and last heard of at all, as far as is known.
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    #[serde(flatten)]
    pub totals: Totals,
    /// As they are written in rules.
    pub ports: Vec<String>,
    #[serde(flatten)]
    pub facts: SourceFacts,
}

/// How the history fares. Part of `guard status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStatus {
    pub path: String,
    /// Of sources, ports, kinds and hours.
    pub rows: u64,
    /// The file's size.
    pub bytes: u64,
    /// When the oldest hour began that it has.
    pub oldest: Option<Timestamp>,
    /// Attempts since the daemon began that found no room as their source's own, and are counted with the others.
    pub folded_into_others: u64,
    /// What was found in its place and has another name now, in one sentence.
    pub set_aside: Option<String>,
    /// Why it can't be written at present, in one sentence.
    pub error: Option<String>,
}
