//! Attempts become rows: what came in one hour from one source, to one port, judged alike.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use jiff::Timestamp;

use super::Totals;
use crate::events::{Attempt, SourceFacts};

/// The most rows between two writes. With one a second, it bounds what a flood costs the processor and the disk.
pub const MOST_ROWS: usize = 4_096;

/// The most of them beyond that for sources without a row of their own: there is one for each hour, port and kind.
const MOST_ROWS_OF_OTHERS: usize = 1_024;

/// The most kinds: protocols, verdicts and reasons are few.
const MOST_KINDS: usize = 250;

pub const HOUR_MS: i64 = 60 * 60 * 1_000;

/// Who sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKey {
    V4(u32),
    /// The upper half of the address. Whoever has one address of a /64 has them all (RFC 6177), and can take another for each
    /// packet.
    V6(u64),
    /// All the sources that there was no room for.
    Others,
}

impl From<IpAddr> for SourceKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl SourceKey {
    /// As it stands in the database: in the order of addresses, and of another length for each kind.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::V4(bits) => bits.to_be_bytes().into(),
            Self::V6(bits) => bits.to_be_bytes().into(),
            Self::Others => Vec::new(),
        }
    }

    /// `None` for bytes that guard has not written.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            0 => Some(Self::Others),
            4 => bytes.try_into().ok().map(|bytes| Self::V4(u32::from_be_bytes(bytes))),
            8 => bytes.try_into().ok().map(|bytes| Self::V6(u64::from_be_bytes(bytes))),
            _ => None,
        }
    }

    /// As it is shown; `None` for the others.
    #[must_use]
    pub fn shown(self) -> Option<String> {
        (self != Self::Others).then(|| self.to_string())
    }
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(bits) => Ipv4Addr::from_bits(*bits).fmt(f),
            Self::V6(bits) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*bits) << 64)),
            Self::Others => f.write_str("other sources"),
        }
    }
}

/// What attempts have in common that are judged alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub protocol: String,
    pub verdict: String,
    pub reason: String,
}

impl Kind {
    fn is_of(&self, attempt: &Attempt) -> bool {
        self.protocol == attempt.protocol
            && self.verdict == attempt.verdict
            && self.reason == attempt.reason
    }
}

/// What a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Hours since 1970.
    pub hour: i64,
    pub source: SourceKey,
    /// 0 where it could not be read.
    pub port: u16,
    /// Its place among the [`Fold::kinds`].
    pub kind: usize,
}

/// What is known of the attempts of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// In milliseconds since 1970.
    pub first_ms: i64,
    pub last_ms: i64,
    pub totals: Totals,
}

impl Row {
    pub fn add(&mut self, other: Self) {
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
        self.totals += other.totals;
    }
}

/// Attempts that are not written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    pub rows: HashMap<Key, Row>,
    /// What is known of the sources among them of which anything is.
    pub facts: HashMap<SourceKey, SourceFacts>,
    /// Those seen so far. Grows only, so that a place among them stays good.
    pub kinds: Vec<Kind>,
    /// Attempts among the rows that are not in their own source's.
    pub of_others: u64,
    /// Attempts that are in no row.
    pub left_out: u64,
}

impl Fold {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.left_out == 0
    }

    /// How many attempts the rows stand for.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.rows.values().map(|row| row.totals.attempts).sum()
    }

    pub fn add(&mut self, attempt: &Attempt) {
        let Some(kind) = self.kind(attempt) else {
            self.left_out += 1;
            return;
        };
        let (key, row) = row_of(attempt, kind);
        self.add_row(key, row);
        if attempt.facts != SourceFacts::default()
            && self.facts.get(&key.source) != Some(&attempt.facts)
            && self.rows.contains_key(&key)
        {
            self.facts.insert(key.source, attempt.facts.clone());
        }
    }

    /// Takes what is there, and leaves the kinds.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let kinds = self.kinds.clone();
        std::mem::replace(self, Self { kinds, ..Self::default() })
    }

    /// Puts back what was taken earlier and could not be written.
    pub fn put_back(&mut self, older: Self) {
        for (key, row) in older.rows {
            self.add_row(key, row);
        }
        for (source, facts) in older.facts {
            if self.facts.len() < MOST_ROWS {
                self.facts.entry(source).or_insert(facts);
            }
        }
        self.of_others += older.of_others;
        self.left_out += older.left_out;
    }

    fn add_row(&mut self, key: Key, row: Row) {
        let has_room = self.rows.len() < MOST_ROWS;
        match self.rows.entry(key) {
            Entry::Occupied(held) => held.into_mut().add(row),
            Entry::Vacant(room) if has_room => {
                room.insert(row);
            }
            Entry::Vacant(_) => self.add_to_others(key, row),
        }
    }

    fn add_to_others(&mut self, key: Key, row: Row) {
        let has_room = self.rows.len() < MOST_ROWS + MOST_ROWS_OF_OTHERS;
        match self.rows.entry(Key { source: SourceKey::Others, ..key }) {
            Entry::Occupied(held) => held.into_mut().add(row),
            Entry::Vacant(room) if has_room => {
                room.insert(row);
            }
            Entry::Vacant(_) => {
                self.left_out += row.totals.attempts;
                return;
            }
        }
        self.of_others += row.totals.attempts;
    }

    fn kind(&mut self, attempt: &Attempt) -> Option<usize> {
        if let Some(place) = self.kinds.iter().position(|kind| kind.is_of(attempt)) {
            return Some(place);
        }
        (self.kinds.len() < MOST_KINDS).then(|| {
            self.kinds.push(Kind {
                protocol: attempt.protocol.clone(),
                verdict: attempt.verdict.clone(),
                reason: attempt.reason.clone(),
            });
            self.kinds.len() - 1
        })
    }
}

fn row_of(attempt: &Attempt, kind: usize) -> (Key, Row) {
    let time_ms = attempt.time.as_millisecond();
    let key = Key {
        hour: hour_of(attempt.time),
        source: attempt.source.into(),
        port: attempt.port.unwrap_or_default(),
        kind,
    };
    let totals = Totals { attempts: 1, packets: attempt.packets, bytes: attempt.bytes };
    (key, Row { first_ms: time_ms, last_ms: time_ms, totals })
}

/// The hour that a moment is in, since 1970.
pub fn hour_of(time: Timestamp) -> i64 {
    time.as_millisecond().div_euclid(HOUR_MS)
}
