//! Flows that were let in a moment ago, as each CPU remembers them.

use crate::{
    packet::{AddressBytes, Family, Packet},
    verdict::{Hook, Reason},
};

/// Flows that a CPU remembers; a power of two. One takes another's place where both come to the same.
pub const MAX_PASSED: u32 = 512;

/// Value of `PASSED`: a packet that the policy of one generation lets in for as long as that is in force. 64 bytes.
///
/// It holds all that the verdict came from, so that a packet of which all is equal gets the same again without a walk through the
/// tables. Only the CPU itself writes it. Where one program interrupts another there (`PREEMPT_RT`), `check` keeps words of two flows
/// from being taken for one flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    source: [u64; 2],
    destination: [u64; 2],
    /// From the lowest byte on: family, protocol, port, the socket's port, hook.
    what: u64,
    ifindex: u32,
    reason: u32,
    generation: u64,
    check: u64,
}

const _: () = assert!(size_of::<Passed>() == 64);

impl Passed {
    /// A packet at a hook, and the policy that is asked about it. `socket_port` is 0 where there is no socket.
    #[inline(always)]
    #[must_use]
    pub const fn of(
        packet: &Packet,
        hook: Hook,
        ifindex: u32,
        socket_port: u16,
        generation: u64,
    ) -> Self {
        let (source, destination) = (words(&packet.source), words(&packet.destination));
        let what = packet.family as u64
            | (packet.protocol as u64) << 8
            | (packet.port as u64) << 16
            | (socket_port as u64) << 32
            | (hook as u64) << 48;
        let mut check = mixed(generation, ifindex as u64);
        check = mixed(check, what);
        check = mixed(check, source[0]);
        check = mixed(check, source[1]);
        check = mixed(check, destination[0]);
        check = mixed(check, destination[1]);
        Self { source, destination, what, ifindex, reason: 0, generation, check }
    }

    /// Where it stands in `PASSED`.
    #[inline(always)]
    #[must_use]
    pub const fn place(&self) -> u32 {
        (self.check >> 32) as u32 % MAX_PASSED
    }

    /// Whether both are of the same flow, hook and policy. One that was never written is of none.
    #[inline(always)]
    #[must_use]
    pub const fn is_same(&self, other: &Self) -> bool {
        // In one go: arrays would be compared by a call.
        let differences = (self.source[0] ^ other.source[0])
            | (self.source[1] ^ other.source[1])
            | (self.destination[0] ^ other.destination[0])
            | (self.destination[1] ^ other.destination[1])
            | (self.what ^ other.what)
            | (self.ifindex ^ other.ifindex) as u64
            | (self.generation ^ other.generation)
            | (self.check ^ other.check);
        differences == 0
    }

    /// Why it was let in.
    #[inline(always)]
    #[must_use]
    pub const fn reason(&self) -> Reason {
        if self.reason == Reason::Local as u32 { Reason::Local } else { Reason::Allowed }
    }

    /// The same, with the reason why it was let in.
    #[inline(always)]
    #[must_use]
    pub const fn because(self, reason: Reason) -> Self {
        Self { reason: reason as u32, ..self }
    }
}

/// Value of `HERE`: an address of this host's, as the policy of one generation has it. 32 bytes.
///
/// Most packets that a CPU judges are to the same one, and so are all of a flood.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    address: [u64; 2],
    generation: u64,
    family: u64,
}

const _: () = assert!(size_of::<Here>() == 32);

impl Here {
    #[inline(always)]
    #[must_use]
    pub const fn new(family: Family, address: &AddressBytes, generation: u64) -> Self {
        Self { address: words(address), generation, family: family as u64 }
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_same(&self, other: &Self) -> bool {
        let differences = (self.address[0] ^ other.address[0])
            | (self.address[1] ^ other.address[1])
            | (self.generation ^ other.generation)
            | (self.family ^ other.family);
        differences == 0
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "each half is what is wanted")]
const fn words(address: &AddressBytes) -> [u64; 2] {
    let both = u128::from_ne_bytes(*address);
    [both as u64, (both >> 64) as u64]
}

/// FNV-1a's step over a whole word, with the upper half brought down.
#[inline(always)]
const fn mixed(hash: u64, word: u64) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let product = (hash ^ word).wrapping_mul(PRIME);
    product ^ product >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{abi::layout::layout, packet::Protocol};

    #[test]
    fn layout_is_pinned() {
        layout!(Passed, size 64, align 8, {
            source: 0, destination: 16, what: 32, ifindex: 40, reason: 44, generation: 48, check: 56,
        });
    }

    #[test]
    fn an_address_is_here_under_one_policy_only() {
        layout!(Here, size 32, align 8, { address: 0, generation: 16, family: 24 });
        let here = Here::new(Family::V4, &[7; 16], 5);
        assert!(here.is_same(&Here::new(Family::V4, &[7; 16], 5)));
        let mut low = [7; 16];
        low[15] = 8;
        let mut high = [7; 16];
        high[0] = 8;
        for other in [
            Here::new(Family::V6, &[7; 16], 5),
            Here::new(Family::V4, &[7; 16], 6),
            Here::new(Family::V4, &low, 5),
            Here::new(Family::V4, &high, 5),
            Here::default(),
        ] {
            assert!(!here.is_same(&other), "{other:?}");
        }
    }

    #[test]
    fn packets_differ_by_all_that_a_verdict_comes_from_and_by_nothing_else() {
        let packet = Packet {
            source: [7; 16],
            destination: [8; 16],
            source_port: 40_000,
            port: 11434,
            tcp_flags: 2,
            ..Packet::EMPTY
        };
        let of = |packet: &Packet| Passed::of(packet, Hook::Tcx, 2, 0, 5);
        let same = of(&packet).because(Reason::Local);
        let others_of_the_flow = Packet { source_port: 40_001, tcp_flags: 16, ..packet };
        assert!(same.is_same(&of(&others_of_the_flow)));
        assert_eq!(same.place(), of(&others_of_the_flow).place());
        let mut last_byte = packet;
        last_byte.source[15] ^= 1;
        let mut a_middle_byte = packet;
        a_middle_byte.destination[8] ^= 0x80;
        for other in [
            of(&last_byte),
            of(&a_middle_byte),
            of(&Packet { port: 11435, ..packet }),
            of(&Packet { family: Family::V6, ..packet }),
            of(&Packet { protocol: Protocol::Udp, ..packet }),
            of(&Packet { source: packet.destination, destination: packet.source, ..packet }),
            Passed::of(&packet, Hook::Edge, 2, 0, 5),
            Passed::of(&packet, Hook::Tcx, 3, 0, 5),
            Passed::of(&packet, Hook::Tcx, 2, 1, 5),
            Passed::of(&packet, Hook::Tcx, 2, 0, 6),
            Passed::default(),
        ] {
            assert!(!same.is_same(&other), "{other:?}");
        }
    }

    #[test]
    fn words_of_two_flows_are_no_flow() {
        let flow = |last: u8| {
            let packet = Packet { source: [last; 16], destination: [last; 16], ..Packet::EMPTY };
            Passed::of(&packet, Hook::Xdp, 2, 0, 5)
        };
        let torn = Passed { destination: flow(2).destination, ..flow(1) };
        let packet = Packet { source: [1; 16], destination: [2; 16], ..Packet::EMPTY };
        assert!(!torn.is_same(&Passed::of(&packet, Hook::Xdp, 2, 0, 5)));
    }

    #[test]
    fn neighbours_find_places_of_their_own() {
        let places: HashSet<u32> = (0..64)
            .map(|last| {
                let mut packet = Packet { port: 11434, ..Packet::EMPTY };
                packet.source[..4].copy_from_slice(&[10, 0, 0, last]);
                Passed::of(&packet, Hook::Tcx, 2, 0, 1).place()
            })
            .collect();
        assert!(places.len() > 50, "{}", places.len());
        assert!(places.iter().all(|place| *place < MAX_PASSED));
    }

    #[test]
    fn the_reason_is_kept() {
        let flow = Passed::of(&Packet::EMPTY, Hook::Cgroup, 0, 11434, 5);
        for reason in [Reason::Allowed, Reason::Local] {
            assert_eq!(flow.because(reason).reason(), reason);
        }
    }
}
