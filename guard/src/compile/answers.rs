//! What a policy's tables say, asked in userspace: the same answers that the programs get from the kernel's copy.

use std::net::IpAddr;

use guard_common::abi::{NO_END, Ruling, SourceValue};
use ipnet::IpNet;

use super::{Prefix, Tables};
use crate::rule::GuardedPort;

impl Tables {
    /// What holds for a source at a guarded port at a moment (boot time in nanoseconds); `None` for a port that is not
    /// guarded.
    #[must_use]
    pub fn ruling(&self, source: IpAddr, port: GuardedPort, now_ns: u64) -> Option<Ruling> {
        let index = *self.ports.get(&port).or_else(|| self.aliases.get(&port))? as usize;
        let row = self.entry(source).row as usize;
        // A row that is missing is read as "no rule", as an array in the kernel reads: closed.
        let ladder = self.ladders.get(row * self.ports.len() + index).copied().unwrap_or_default();
        Some(ladder.at(|| now_ns))
    }

    /// Whether a packet from this source to this port is dropped, where packets are dropped at all.
    #[must_use]
    pub fn stops(&self, source: IpAddr, port: GuardedPort, now_ns: u64) -> bool {
        matches!(self.ruling(source, port, now_ns), Some(Ruling::NoRule | Ruling::Deny))
    }

    /// The next moment after this one (boot time in nanoseconds) at which some source's ruling ends.
    #[must_use]
    pub fn next_end(&self, after_ns: u64) -> Option<u64> {
        let ends = self.ladders.iter().flat_map(|ladder| &ladder.steps).map(|step| step.until_ns);
        ends.filter(|end| after_ns < *end && *end != NO_END).min()
    }

    /// The most specific entry that covers an address.
    pub(super) fn entry(&self, address: IpAddr) -> SourceValue {
        let whole = IpNet::from(address);
        (0..=whole.max_prefix_len())
            .rev()
            .filter_map(|bits| IpNet::new(address, bits).ok())
            .find_map(|prefix| self.sources.get(&Prefix::from(prefix)))
            .copied()
            .unwrap_or_default()
    }
}
