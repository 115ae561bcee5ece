//! The questions a verdict asks of a compiled policy. The kernel programs answer them from maps, tests from plain lists.

use crate::{
    abi::{PortIndex, Ruling, SourceValue},
    packet::{AddressBytes, Family, Packet, Protocol},
    verdict::Reason,
};

/// A compiled policy. One value answers for one packet: it stands for one whole policy throughout.
pub trait Rules {
    /// The index of the guarded port whose rules hold at this port, or `None` when it is not guarded.
    fn guarded(&self, protocol: Protocol, port: u16) -> Option<PortIndex>;

    /// Whether any port of this protocol is guarded.
    fn guards(&self, protocol: Protocol) -> bool;

    /// The most specific entry that covers an address; the default (no rule, not local) where none does.
    fn lookup(&self, family: Family, address: &AddressBytes) -> SourceValue;

    /// What holds now for this packet, whose source has this entry, at this guarded port. Where rules name interfaces,
    /// it goes by the one the packet came by.
    fn ruling(&self, packet: &Packet, value: SourceValue, port: PortIndex) -> Ruling;

    /// Whether an address is this host's own or in a local bridge's subnet.
    fn is_here(&self, family: Family, address: &AddressBytes) -> bool {
        self.lookup(family, address).is_local()
    }

    /// Why an equal packet was let in under this policy, where that lasts as long as the policy does and is still known.
    /// `socket_port` is 0 where there is no socket.
    fn remembered(&self, _packet: &Packet, _socket_port: u16) -> Option<Reason> {
        None
    }

    /// Takes note of a packet that is let in, for [`Rules::remembered`].
    fn remember(&self, _packet: &Packet, _socket_port: u16, _reason: Reason) {}

    /// Whether packets that would be dropped are only counted, now.
    fn observing(&self) -> bool;

    /// Whether packets that this host merely forwards are judged as well.
    fn guards_forwarded(&self) -> bool;

    /// Whether the backstop at the sockets is in force, so that the NIC's hooks may leave to it what they can't decide.
    fn has_backstop(&self) -> bool;
}
