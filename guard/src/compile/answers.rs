//! What a policy's tables say, asked in userspace: the same answers that the programs get from the kernel's copy.

use std::net::IpAddr;

use guard_common::abi::{NO_END, Ruling, SourceValue};

use super::Tables;
use crate::rule::GuardedPort;

impl Tables {
    /// What holds for a source at a guarded port at a moment (boot time in nanoseconds), at its socket: [`Ruling::Vouched`] where
    /// it goes by the interface. `None` for a port that is not guarded.
    #[must_use]
    pub fn ruling(&self, source: IpAddr, port: GuardedPort, now_ns: u64) -> Option<Ruling> {
        // The last column is the sockets'.
        self.column_rulings(source, port, now_ns)
            .map(|rulings| *rulings.last().unwrap_or(&Ruling::NoRule))
    }

    /// Whether a packet from this source to this port is dropped by whatever interface it comes, where packets are dropped at
    /// all.
    #[must_use]
    pub fn stops(&self, source: IpAddr, port: GuardedPort, now_ns: u64) -> bool {
        let lets_in = |ruling: &Ruling| matches!(ruling, Ruling::Allow | Ruling::Local);
        self.column_rulings(source, port, now_ns)
            .is_some_and(|rulings| !rulings.iter().any(lets_in))
    }

    /// As [`Tables::stops`], and also where it depends on the interface.
    #[must_use]
    pub fn may_stop(&self, source: IpAddr, port: GuardedPort, now_ns: u64) -> bool {
        let ruling = self.ruling(source, port, now_ns);
        ruling.is_some_and(|ruling| !matches!(ruling, Ruling::Allow | Ruling::Local))
    }

    /// What holds in each column; `None` for a port that is not guarded.
    fn column_rulings(
        &self,
        source: IpAddr,
        port: GuardedPort,
        now_ns: u64,
    ) -> Option<Vec<Ruling>> {
        let index = *self.ports.get(&port).or_else(|| self.aliases.get(&port))? as usize;
        let row = self.value(source).row() as usize;
        let columns = self.columns() as usize;
        let first = (row * self.ports.len() + index) * columns;
        // A row that is missing is read as "no rule", as an array in the kernel reads: closed.
        let ladder = |place| self.ladders.get(place).copied().unwrap_or_default();
        Some((first..first + columns).map(|place| ladder(place).at(|| now_ns)).collect())
    }

    /// The next moment after this one (boot time in nanoseconds) at which some source's ruling ends.
    #[must_use]
    pub fn next_end(&self, after_ns: u64) -> Option<u64> {
        let ends = self.ladders.iter().flat_map(|ladder| &ladder.steps).map(|step| step.until_ns);
        ends.filter(|end| after_ns < *end && *end != NO_END).min()
    }

    /// What the source table says of an address.
    #[must_use]
    pub fn value(&self, address: IpAddr) -> SourceValue {
        match address {
            IpAddr::V4(address) => self.sources.v4.find(address.into()),
            IpAddr::V6(address) => self.sources.v6.find(address.into()),
        }
    }
}
