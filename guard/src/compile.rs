//! From rules to the exact contents of the kernel's tables: the design's *Rules, in order*, resolved into
//! one entry for each prefix. Pure.

use std::collections::BTreeMap;

use guard_common::{
    abi::{Ladder, PortIndex, SourceValue},
    packet::{AddressBytes, Family},
};
use ipnet::IpNet;

use crate::rule::{Action, GuardedPort, RuleId};

/// All that a policy's tables are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    pub ports: Vec<GuardedPort>,
    pub rules: Vec<InputRule>,
    /// This host's own addresses, and the subnets of its local bridges.
    pub local: Vec<IpNet>,
}

/// A rule whose source has become prefixes and whose end has become boot time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRule {
    pub id: RuleId,
    pub action: Action,
    pub kind: RuleKind,
    pub prefixes: Vec<IpNet>,
    /// Empty for every guarded port.
    pub ports: Vec<GuardedPort>,
    /// Boot time in nanoseconds; `NO_END` for none.
    pub until_ns: u64,
}

/// Which of the design's ranks a rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// A prefix typed by hand.
    Typed,
    /// One of a set's prefixes.
    Set,
}

/// An address prefix as a table key: host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    pub family: Family,
    pub address: AddressBytes,
    pub bits: u8,
}

/// The contents of one policy slot, wanted or as read from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub ports: BTreeMap<GuardedPort, PortIndex>,
    pub sources: BTreeMap<Prefix, SourceValue>,
    /// Rows of `ports.len()` ladders; row 0 is what an address without an entry has.
    pub ladders: Vec<Ladder>,
}
