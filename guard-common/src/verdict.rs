//! The verdict: what happens to a packet, and why.

use crate::{
    abi::{PortIndex, Ruling, SourceValue},
    packet::{AddressBytes, Family, Known, Outcome, Packet, Protocol},
    rules::Rules,
};

/// Where a packet was judged. The numbers are part of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Hook {
    Xdp = 0,
    Tcx = 1,
    Edge = 2,
    Cgroup = 3,
}

/// What one packet got. The numbers are part of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Verdict {
    Pass = 0,
    Drop = 1,
    /// In observe mode: passed, and would have been dropped.
    WouldDrop = 2,
}

/// Why. The numbers are part of the layout: new ones are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Passed by a rule.
    Allowed = 0,
    /// Passed as this machine's own.
    Local = 1,
    /// No rule allows it.
    NoRule = 2,
    /// A rule denies it.
    Denied = 3,
    /// Its source or destination can't come from outside.
    Spoofed = 4,
    /// It came from outside and now carries a source of this host.
    Laundered = 5,
    /// A later fragment, a header cut short, or a longer chain of headers than is walked.
    Undecidable = 6,
    /// A header that contradicts itself.
    Malformed = 7,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Tcx, Self::Edge, Self::Cgroup];

    /// The word for people and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Edge => "edge",
            Self::Cgroup => "cgroup",
        }
    }

    /// The hook with this number in a record.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == number)
    }
}

impl Verdict {
    pub const ALL: [Self; 3] = [Self::Pass, Self::Drop, Self::WouldDrop];

    /// The word for people and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::WouldDrop => "would-drop",
        }
    }

    /// The verdict with this number in a record.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| *verdict as u8 == number)
    }
}

impl Reason {
    pub const ALL: [Self; 8] = [
        Self::Allowed,
        Self::Local,
        Self::NoRule,
        Self::Denied,
        Self::Spoofed,
        Self::Laundered,
        Self::Undecidable,
        Self::Malformed,
    ];

    /// The word for people and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Local => "local",
            Self::NoRule => "no-rule",
            Self::Denied => "denied",
            Self::Spoofed => "spoofed",
            Self::Laundered => "laundered",
            Self::Undecidable => "undecidable",
            Self::Malformed => "malformed",
        }
    }

    /// Whether a rule, or the lack of one, is what decided.
    #[must_use]
    pub const fn is_by_rule(self) -> bool {
        matches!(self, Self::Allowed | Self::Local | Self::NoRule | Self::Denied)
    }

    /// The reason with this number in a record.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// The outcome of judging a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No guarded port: passed, not counted.
    NotOurs,
    Judged(Verdict, Reason),
}

/// Whether a packet is to a port that is not guarded, as most are: asked before anything else, since all that other traffic
/// pays is paid up to here.
#[inline(always)]
pub fn is_to_another_port(
    outcome: Outcome,
    packet: &Packet,
    may_guard: impl FnOnce(Protocol, u16) -> bool,
) -> bool {
    matches!(outcome, Outcome::Whole | Outcome::Broken) && !may_guard(packet.protocol, packet.port)
}

/// Judges a packet that arrives by an outside interface and is not [to another port](is_to_another_port).
#[inline(always)]
pub fn from_outside<P: Rules>(outcome: Outcome, packet: &Packet, policy: &P) -> Decision {
    match outcome {
        Outcome::NotOurs => Decision::NotOurs,
        Outcome::Whole | Outcome::Broken => {
            if let Some(decision) = remembered(outcome, packet, 0, policy) {
                return decision;
            }
            kept(decided(outcome, packet, policy), packet, 0, policy)
        }
        Outcome::Undecidable(known) | Outcome::LaterFragment(known) => {
            undecided(Reason::Undecidable, known, packet, policy)
        }
        Outcome::Malformed(known) => undecided(Reason::Malformed, known, packet, policy),
    }
}

/// Judges a packet that came from outside and leaves for a guest of this host, behind NAT, and is not
/// [to another port](is_to_another_port).
///
/// No guest has a source of this host's from outside: NAT has put it there in place of the real one. What can't be decided is
/// stopped, whether or not there is a backstop, since a virtual machine has no socket here. A later fragment is no
/// risk: without the first one, whose ports are read here, nothing is reassembled.
#[inline(always)]
pub fn at_edge<P: Rules>(outcome: Outcome, packet: &Packet, policy: &P) -> Decision {
    let (reason, known) = match outcome {
        Outcome::NotOurs | Outcome::LaterFragment(_) => return Decision::NotOurs,
        Outcome::Whole | Outcome::Broken => {
            if let Some(decision) = remembered(outcome, packet, 0, policy) {
                return decision;
            }
            let source = policy.lookup(packet.family, &packet.source);
            if source.is_local() {
                return stopped(Reason::Laundered, policy);
            }
            if is_never_a_source(packet) {
                return stopped(Reason::Spoofed, policy);
            }
            if matches!(outcome, Outcome::Broken) {
                return stopped(Reason::Malformed, policy);
            }
            return kept(by_rules(packet, source, policy), packet, 0, policy);
        }
        Outcome::Undecidable(known) => (Reason::Undecidable, known),
        Outcome::Malformed(known) => (Reason::Malformed, known),
    };
    if may_be_guarded(known, packet, policy) { stopped(reason, policy) } else { Decision::NotOurs }
}

/// Judges a packet at a socket whose own local port is `socket_port`.
///
/// It is for a guarded port when either that port or the packet's destination port is guarded (under TPROXY and
/// `sk_lookup` they differ); where both are, both must let it in. The packet's source is always known here; when
/// its ports are not, the socket's decides alone.
///
/// What comes by loopback is not asked about: no other way leads from an own address to an own address.
#[inline(always)]
pub fn at_socket<P: Rules>(packet: &Packet, socket_port: u16, policy: &P) -> Decision {
    if let Some(decision) = remembered(Outcome::Whole, packet, socket_port, policy) {
        return decision;
    }
    kept(by_both_ports(packet, socket_port, policy), packet, socket_port, policy)
}

#[inline(always)]
fn by_both_ports<P: Rules>(packet: &Packet, socket_port: u16, policy: &P) -> Decision {
    // Numbers all the way, for kernel 5.10 refuses a program that keeps what it has not set.
    const NONE: PortIndex = PortIndex::MAX;
    let index = |port| policy.guarded(packet.protocol, port).unwrap_or(NONE);
    let by_socket = index(socket_port);
    let by_packet = if packet.port == socket_port { by_socket } else { index(packet.port) };
    let first = if by_socket == NONE { by_packet } else { by_socket };
    let second = if by_packet == NONE { first } else { by_packet };
    if first == NONE {
        return Decision::NotOurs;
    }
    let value = policy.lookup(packet.family, &packet.source);
    if value.is_own() && policy.lookup(packet.family, &packet.destination).is_own() {
        return stopped(Reason::Spoofed, policy);
    }
    let mut ruling = policy.ruling(packet, value, first);
    if second != first && matches!(ruling, Ruling::Allow | Ruling::Local) {
        ruling = policy.ruling(packet, value, second);
    }
    by_ruling(ruling, policy)
}

/// What was said of an equal packet, where that is known. One that is broken is equal to none; one that opens a connection
/// goes through the tables, so that a flood of them does not pay for what is never found.
#[inline(always)]
fn remembered<P: Rules>(
    outcome: Outcome,
    packet: &Packet,
    socket_port: u16,
    policy: &P,
) -> Option<Decision> {
    if matches!(outcome, Outcome::Broken) || is_opening(packet) {
        return None;
    }
    let reason = policy.remembered(packet, socket_port)?;
    Some(Decision::Judged(Verdict::Pass, reason))
}

/// Whether it asks for a TCP connection (RFC 9293 section 3.1: SYN).
#[inline(always)]
fn is_opening(packet: &Packet) -> bool {
    const SYN: u8 = 0x02;
    packet.tcp_flags & SYN != 0
}

/// The decision, which is remembered where it lets the packet in.
#[inline(always)]
fn kept<P: Rules>(decision: Decision, packet: &Packet, socket_port: u16, policy: &P) -> Decision {
    if let Decision::Judged(Verdict::Pass, reason) = decision
        && !is_opening(packet)
    {
        policy.remember(packet, socket_port, reason);
    }
    decision
}

/// A packet to a guarded port.
#[inline(always)]
fn decided<P: Rules>(outcome: Outcome, packet: &Packet, policy: &P) -> Decision {
    let source = match by_addresses(packet, policy) {
        Ok(source) => source,
        Err(decision) => return decision,
    };
    if matches!(outcome, Outcome::Broken) {
        return stopped(Reason::Malformed, policy);
    }
    by_rules(packet, source, policy)
}

/// What the rules make of a source at the packet's port.
#[inline(always)]
fn by_rules<P: Rules>(packet: &Packet, source: SourceValue, policy: &P) -> Decision {
    // Most who try: of such a one it does not matter at which port.
    if source.has_no_rule() {
        return stopped(Reason::NoRule, policy);
    }
    // There is one, or the port would not be guarded; without one nothing allows it.
    match policy.guarded(packet.protocol, packet.port) {
        Some(port) => by_ruling(policy.ruling(packet, source, port), policy),
        None => stopped(Reason::NoRule, policy),
    }
}

/// A packet that can't be read to its ports: the backstop's business where there is one.
///
/// A spoofed one is not left to it. At the socket an own address or a container's is local, and nothing there says
/// by which way the packet came.
#[inline(always)]
fn undecided<P: Rules>(reason: Reason, known: Known, packet: &Packet, policy: &P) -> Decision {
    if !may_be_guarded(known, packet, policy) {
        return Decision::NotOurs;
    }
    if !matches!(known, Known::Nothing)
        && let Err(decision) = by_addresses(packet, policy)
    {
        return decision;
    }
    if policy.has_backstop() {
        return Decision::Judged(Verdict::Pass, reason);
    }
    stopped(reason, policy)
}

/// Whether a packet whose ports are not known may be for a guarded one.
#[inline(always)]
fn may_be_guarded<P: Rules>(known: Known, packet: &Packet, policy: &P) -> bool {
    match known {
        Known::Protocol => policy.guards(packet.protocol),
        Known::Addresses | Known::Nothing => {
            policy.guards(Protocol::Tcp) || policy.guards(Protocol::Udp)
        }
    }
}

/// What the addresses of a packet from outside decide before any rule; else the source's entry, for the rules.
#[inline(always)]
fn by_addresses<P: Rules>(packet: &Packet, policy: &P) -> Result<SourceValue, Decision> {
    if is_loopback(packet.family, &packet.destination) {
        return Err(stopped(Reason::Spoofed, policy));
    }
    // Wherever it is sent to: this hook takes a packet for transit too that the kernel takes for this host by a local route or as
    // anycast, and behind it a local source is let in.
    let source = policy.lookup(packet.family, &packet.source);
    if source.is_local() {
        return Err(stopped(Reason::Spoofed, policy));
    }
    if is_transit(packet, policy) {
        return Err(Decision::NotOurs);
    }
    if is_never_a_source(packet) {
        return Err(stopped(Reason::Spoofed, policy));
    }
    Ok(source)
}

#[inline(always)]
fn by_ruling<P: Rules>(ruling: Ruling, policy: &P) -> Decision {
    match ruling {
        Ruling::Allow => Decision::Judged(Verdict::Pass, Reason::Allowed),
        Ruling::Local => Decision::Judged(Verdict::Pass, Reason::Local),
        Ruling::NoRule | Ruling::Vouched => stopped(Reason::NoRule, policy),
        Ruling::Deny => stopped(Reason::Denied, policy),
    }
}

#[inline(always)]
fn stopped<P: Rules>(reason: Reason, policy: &P) -> Decision {
    let verdict = if policy.observing() { Verdict::WouldDrop } else { Verdict::Drop };
    Decision::Judged(verdict, reason)
}

/// Whether this host only forwards the packet, and forwarded packets are left alone.
#[inline(always)]
fn is_transit<P: Rules>(packet: &Packet, policy: &P) -> bool {
    !policy.guards_forwarded()
        && !is_for_every_host(packet.family, &packet.destination)
        && !policy.is_here(packet.family, &packet.destination)
}

/// A source that no packet from another machine has (RFC 1122 section 3.2.1.3, RFC 4291 sections 2.5 and 2.7).
///
/// `::/96` holds the unspecified address, loopback and the IPv4-compatible addresses; a socket shows a source in
/// `::ffff:0:0/96` as the IPv4 host embedded in it.
#[inline(always)]
fn is_never_a_source(packet: &Packet) -> bool {
    let s = &packet.source;
    match packet.family {
        Family::V4 => matches!(s[0], 0 | 127 | 224..),
        Family::V6 => {
            s[0] == 0xff
                || (starts_with_zeros(s, 10) && matches!((s[10], s[11]), (0, 0) | (0xff, 0xff)))
        }
    }
}

#[inline(always)]
fn is_loopback(family: Family, address: &AddressBytes) -> bool {
    match family {
        Family::V4 => address[0] == 127,
        Family::V6 => starts_with_zeros(address, 15) && address[15] == 1,
    }
}

/// A destination that is this host's without being one of its addresses: multicast, broadcast, and
/// link-local, which no router forwards (RFC 3927 section 2.7, RFC 4291 section 2.5.6).
///
/// The kernel takes 0.0.0.0 for a broadcast when the source is 0.0.0.0 too, and refuses it otherwise
/// (`ip_route_input_slow` in `net/ipv4/route.c`).
#[inline(always)]
fn is_for_every_host(family: Family, address: &AddressBytes) -> bool {
    match family {
        Family::V4 => matches!(
            address,
            [224..=239, ..] | [169, 254, ..] | [255, 255, 255, 255, ..] | [0, 0, 0, 0, ..]
        ),
        Family::V6 => address[0] == 0xff || (address[0] == 0xfe && address[1] & 0xc0 == 0x80),
    }
}

#[inline(always)]
fn starts_with_zeros(address: &AddressBytes, count: usize) -> bool {
    let mut i = 0;
    while i < count {
        if address[i] != 0 {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests;
