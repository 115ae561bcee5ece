//! The few facts about a packet that a verdict needs.

/// An address family, with its IP version as the number that stands in every table key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    V4 = 4,
    V6 = 6,
}

impl Family {
    /// The family of a record's `family` field.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// Bits in an address.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A transport protocol whose ports can be guarded, with its IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
}

impl Protocol {
    /// The protocol with this IANA number, when its ports can be guarded.
    #[inline]
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// The name in rules, events and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// An address of either family: an IPv4 address stands in the first four bytes, the rest is zero.
///
/// The family is always beside it: `::ffff:192.0.2.1` from the wire must never match a rule for `192.0.2.1`.
pub type AddressBytes = [u8; 16];

/// What was read from a packet. Which of the fields hold something is said by the [`Outcome`].
///
/// Aligned, since BPF reads and writes what is not aligned byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Packet {
    pub source: AddressBytes,
    pub destination: AddressBytes,
    pub family: Family,
    pub protocol: Protocol,
    /// Host byte order; 0 where the ports could not be read.
    pub source_port: u16,
    /// Destination port, host byte order; 0 where the ports could not be read.
    pub port: u16,
    /// The TCP flags octet (RFC 9293 section 3.1); 0 for UDP, for a first fragment, and where it could not be read.
    pub tcp_flags: u8,
}

impl Packet {
    /// A packet nothing has been read from yet.
    pub const EMPTY: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        family: Family::V4,
        protocol: Protocol::Tcp,
        source_port: 0,
        port: 0,
        tcp_flags: 0,
    };

    /// Sets the family and both addresses, which stand in the header one behind the other.
    ///
    /// Each address is stored as whole words. A processor that loads a word of which it has just stored a part waits until all
    /// before that store is done, a packet's first bytes from another processor's cache among it.
    #[inline(always)]
    pub const fn set_ipv4(&mut self, addresses: [u8; 8]) {
        let both = u64::from_le_bytes(addresses);
        self.family = Family::V4;
        self.source = ((both & 0xffff_ffff) as u128).to_le_bytes();
        self.destination = ((both >> 32) as u128).to_le_bytes();
    }

    /// The same for IPv6.
    #[inline(always)]
    pub fn set_ipv6(&mut self, addresses: &[u8; 32]) {
        self.family = Family::V6;
        self.source.copy_from_slice(&addresses[..16]);
        self.destination.copy_from_slice(&addresses[16..]);
    }
}

/// What parsing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not TCP or UDP over IP: nothing that guard judges. The packet's fields mean nothing.
    NotOurs,
    /// Addresses, protocol and ports are known: a packet, or the first fragment of one.
    Whole,
    /// As [`Outcome::Whole`], and the transport header contradicts itself (a TCP data offset below five words, a UDP
    /// length below eight bytes), so that no socket would take it.
    Broken,
    /// A header cut short, or more headers than the walk follows: it may belong to a guarded port.
    Undecidable(Known),
    /// A later fragment: its ports stand in the first one only. Undecidable too.
    LaterFragment(Known),
    /// An IP header that contradicts itself (its version, or an IPv4 header length below five words): the kernel's
    /// own stack refuses it.
    Malformed(Known),
}

/// How much of a packet that could not be read to its ports is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing but that it claims to be IP.
    Nothing,
    /// The addresses; the protocol may be any.
    Addresses,
    /// The addresses and the protocol.
    Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pinned() {
        assert_eq!([Family::V4 as u8, Family::V6 as u8], [4, 6]);
        assert_eq!([Family::V4.bits(), Family::V6.bits()], [32, 128]);
        assert_eq!([Protocol::Tcp as u8, Protocol::Udp as u8], [6, 17]);
    }

    #[test]
    fn only_known_numbers_are_read() {
        for number in 0..=u8::MAX {
            let family = match number {
                4 => Some(Family::V4),
                6 => Some(Family::V6),
                _ => None,
            };
            assert_eq!(Family::from_number(number), family);
            let protocol = match number {
                6 => Some(Protocol::Tcp),
                17 => Some(Protocol::Udp),
                _ => None,
            };
            assert_eq!(Protocol::from_number(number), protocol);
        }
    }
}
