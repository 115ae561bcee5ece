//! The design's *Rules, in order*, answered by a plain scan over lists: the oracle that compiled tables are tested against.
//!
//! It shares no code with a compiler and knows neither tries, rows nor ladders; it is slow, and meant to be
//! right at a glance. Nothing on a packet's path uses it: it stands behind the feature `model`, for tests.
//!
//! Loopback, which no rule can deny, is none of its business: the hooks pass what arrives over it before they ask
//! for a ruling.

use crate::{
    abi::{PortIndex, Ruling, SOURCE_LOCAL, SOURCE_OWN, SourceValue},
    packet::{AddressBytes, Family, Packet, Protocol},
    rules::Rules,
};

/// What a rule does with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

/// Where a rule ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A prefix typed by hand.
    Typed,
    /// A name typed by hand; it only allows.
    Name,
    /// One of a set's prefixes.
    Set,
}

/// The addresses that share their first `bits` bits with `address`; whatever stands behind these is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub family: Family,
    pub address: AddressBytes,
    pub bits: u8,
}

/// A guarded port, or a port that a rule holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    pub number: u16,
}

/// One prefix of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    pub action: Action,
    pub kind: Kind,
    pub prefix: Prefix,
    /// The ports it holds for; empty for all.
    pub ports: &'a [Port],
    /// The interfaces it holds for, by the indices of those whose hook judges their packets; `None` for all.
    pub via: Option<&'a [u32]>,
    /// Boot time in nanoseconds from which it no longer holds; [`crate::abi::NO_END`] for none.
    pub until_ns: u64,
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By a NIC's hook, on the interface with this index.
    Interface(u32),
    /// At its socket, where nothing says by which interface it came.
    Socket {
        /// A NIC's hook has let it in by a rule that names its interface.
        vouched: bool,
    },
}

impl Prefix {
    /// Whether this address of this family is in it.
    #[must_use]
    pub fn covers(&self, family: Family, address: &AddressBytes) -> bool {
        self.family == family
            && (0..usize::from(self.bits)).all(|at| bit(&self.address, at) == bit(address, at))
    }
}

/// Bit `at` of an address, counted from the first on the wire; there is none behind its end.
fn bit(address: &AddressBytes, at: usize) -> Option<bool> {
    address.get(at / 8).map(|octet| octet >> (7 - at % 8) & 1 == 1)
}

impl Rule<'_> {
    /// Whether it says something of a source at a port now, by an interface; `None` for one that no rule names.
    fn holds(
        &self,
        family: Family,
        address: &AddressBytes,
        port: Port,
        ifindex: Option<u32>,
        now_ns: u64,
    ) -> bool {
        now_ns < self.until_ns
            && (self.ports.is_empty() || self.ports.contains(&port))
            && self.via.is_none_or(|via| ifindex.is_some_and(|ifindex| via.contains(&ifindex)))
            && self.prefix.covers(family, address)
    }
}

/// What the rules say of a source at a port, at a place.
///
/// `local` holds this host's own addresses and the subnets of its local bridges. Their packets never pass a NIC's hook, so at
/// the socket they come by an interface that no rule names. Of other sources the socket knows what holds by every
/// interface; what does not needs somebody who vouches.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "each is a fact of its own")]
pub fn ruling(
    rules: &[Rule<'_>],
    local: &[Prefix],
    family: Family,
    address: &AddressBytes,
    protocol: Protocol,
    port: u16,
    place: Place,
    now_ns: u64,
) -> Ruling {
    let port = Port { protocol, number: port };
    let by = |ifindex| by_interface(rules, local, family, address, port, ifindex, now_ns);
    let vouched = match place {
        Place::Interface(ifindex) => return by(Some(ifindex)),
        Place::Socket { vouched } => vouched,
    };
    let is_local = local.iter().any(|prefix| prefix.covers(family, address));
    let mut named = rules.iter().filter_map(|rule| rule.via).flatten();
    if is_local || named.all(|ifindex| by(Some(*ifindex)) == by(None)) {
        return by(None);
    }
    if vouched { Ruling::Allow } else { Ruling::NoRule }
}

/// What the rules say of a source at a port, by an interface; `None` for one that no rule names.
fn by_interface(
    rules: &[Rule<'_>],
    local: &[Prefix],
    family: Family,
    address: &AddressBytes,
    port: Port,
    ifindex: Option<u32>,
    now_ns: u64,
) -> Ruling {
    let any = |kind, action, bits: Option<u8>| {
        rules.iter().any(|rule| {
            rule.kind == kind
                && rule.action == action
                && bits.is_none_or(|bits| rule.prefix.bits == bits)
                && rule.holds(family, address, port, ifindex, now_ns)
        })
    };

    // Prefixes typed by hand, the most specific first; of one prefix, deny wins.
    for bits in (0..=family.bits()).rev() {
        if any(Kind::Typed, Action::Deny, Some(bits)) {
            return Ruling::Deny;
        }
        if any(Kind::Typed, Action::Allow, Some(bits)) {
            return Ruling::Allow;
        }
    }
    if any(Kind::Name, Action::Allow, None) {
        return Ruling::Allow;
    }
    // Sets: deny wins, whatever the lengths.
    if any(Kind::Set, Action::Deny, None) {
        return Ruling::Deny;
    }
    if any(Kind::Set, Action::Allow, None) {
        return Ruling::Allow;
    }
    if local.iter().any(|prefix| prefix.covers(family, address)) {
        return Ruling::Local;
    }
    Ruling::NoRule
}

/// A whole policy as plain lists, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The guarded ports; a port's place here is its [`PortIndex`].
    pub ports: &'a [Port],
    pub rules: &'a [Rule<'a>],
    /// This host's own addresses, and the subnets of its local bridges.
    pub local: &'a [Prefix],
    /// Its own addresses that only loopback takes packets between.
    pub own: &'a [Prefix],
    /// Where its packets are judged.
    pub place: Place,
    /// Boot time.
    pub now_ns: u64,
    /// Packets that would be dropped are only counted.
    pub observing: bool,
    /// Packets that this host merely forwards are judged as well.
    pub forwarded: bool,
    /// The backstop is in force.
    pub backstop: bool,
}

impl<'a> Policy<'a> {
    /// The policy's answers about one packet, for [`crate::verdict`].
    #[must_use]
    pub fn about(&'a self, packet: &'a Packet) -> About<'a> {
        About { policy: self, packet }
    }
}

/// A policy's answers about one packet.
///
/// [`Rules`] hands a source's entry from `lookup` to `ruling`, and an entry has no room for an address. So the
/// entries' rows are numbers of the packet's own addresses: row 1 is its source, row 2 its destination, and row 0
/// any other address, which nothing is known of, as in compiled tables.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    policy: &'a Policy<'a>,
    packet: &'a Packet,
}

impl Rules for About<'_> {
    fn guarded(&self, protocol: Protocol, port: u16) -> Option<PortIndex> {
        let wanted = Port { protocol, number: port };
        (0..).zip(self.policy.ports).find(|(_, port)| **port == wanted).map(|(index, _)| index)
    }

    fn guards(&self, protocol: Protocol) -> bool {
        self.policy.ports.iter().any(|port| port.protocol == protocol)
    }

    fn lookup(&self, family: Family, address: &AddressBytes) -> SourceValue {
        let row = if family != self.packet.family {
            0
        } else if *address == self.packet.source {
            1
        } else if *address == self.packet.destination {
            2
        } else {
            0
        };
        let is_local = self.policy.local.iter().any(|prefix| prefix.covers(family, address));
        let is_own = self.policy.own.iter().any(|prefix| prefix.covers(family, address));
        let flags = [(is_local, SOURCE_LOCAL), (is_own, SOURCE_OWN)];
        let flags = flags.iter().filter(|(holds, _)| *holds).fold(0, |all, (_, flag)| all | flag);
        SourceValue::new(row, flags)
    }

    fn ruling(&self, _packet: &Packet, value: SourceValue, port: PortIndex) -> Ruling {
        let address = match value.row() {
            1 => &self.packet.source,
            2 => &self.packet.destination,
            _ => return Ruling::NoRule,
        };
        let Some((_, port)) = (0..).zip(self.policy.ports).find(|(index, _)| *index == port) else {
            return Ruling::NoRule;
        };
        ruling(
            self.policy.rules,
            self.policy.local,
            self.packet.family,
            address,
            port.protocol,
            port.number,
            self.policy.place,
            self.policy.now_ns,
        )
    }

    fn observing(&self) -> bool {
        self.policy.observing
    }

    fn guards_forwarded(&self) -> bool {
        self.policy.forwarded
    }

    fn has_backstop(&self) -> bool {
        self.policy.backstop
    }
}

#[cfg(test)]
mod tests;
