//! The IPv6 header and its extension headers (RFC 8200).

use crate::{
    packet::{Known, Outcome, Packet, Protocol},
    parse::Next,
    reader::Reader,
};

const HEADER_BYTES: usize = 40;
const MORE_FRAGMENTS: usize = 1;
const FRAGMENT_OFFSET_MASK: usize = 0xfff8;

/// Extension headers that are walked. RFC 8200 section 4.1 recommends at most seven places, two of them for the
/// same destination options; a longer chain is undecidable.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// Extension headers, by IANA protocol number. ESP is not among them: what follows it is encrypted, and is judged at the socket.
mod next_header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

#[inline(always)]
pub(super) fn read<R: Reader + ?Sized>(reader: &R, offset: usize, packet: &mut Packet) -> Next {
    let Some(header) = reader.read::<HEADER_BYTES>(offset) else {
        return Next::End(Outcome::Undecidable(Known::Nothing));
    };
    packet.set_ipv6(header.last_chunk().unwrap_or(&[0; 32]));
    if header[0] >> 4 != 6 {
        return Next::End(Outcome::Malformed(Known::Addresses));
    }

    let mut next = header[6];
    let mut offset = offset + HEADER_BYTES;
    let mut more_fragments = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let Some(extension) = reader.read::<4>(offset) else {
            return Next::End(Outcome::Undecidable(Known::Addresses));
        };
        let is_fragment_header = ones_if_equal::<R>(next, next_header::FRAGMENT);
        let is_authentication = ones_if_equal::<R>(next, next_header::AUTHENTICATION);
        let length = usize::from(extension[1]);
        offset += (8 & is_fragment_header)
            | (((length + 2) * 4) & is_authentication)
            | (((length + 1) * 8) & !is_fragment_header & !is_authentication);
        let fragment =
            usize::from(u16::from_be_bytes([extension[2], extension[3]])) & is_fragment_header;
        more_fragments |= fragment & MORE_FRAGMENTS;
        next = extension[0];
        // Of a later fragment only the fragment header itself is here: what follows is the middle of
        // something, and `next` names the first header of the whole.
        if fragment & FRAGMENT_OFFSET_MASK != 0 {
            return later_fragment(next, packet);
        }
    }
    let is_fragment = more_fragments != 0;
    if is_extension(next) {
        return Next::End(Outcome::Undecidable(Known::Addresses));
    }
    let Some(protocol) = Protocol::from_number(next) else {
        return Next::End(Outcome::NotOurs);
    };
    packet.protocol = protocol;
    Next::Transport { offset, is_fragment }
}

/// All bits set where two header numbers are equal, else none.
///
/// Without a branch, which the verifier would follow both ways from every header on, and out of an opaque number, from which the
/// compiler can't make one.
#[inline(always)]
fn ones_if_equal<R: Reader + ?Sized>(one: u8, other: u8) -> usize {
    let difference = R::opaque(u32::from(one ^ other));
    // Only zero less one has the highest bit set.
    0_usize.wrapping_sub((difference.wrapping_sub(1) >> 31) as usize)
}

#[inline(always)]
fn later_fragment(next: u8, packet: &mut Packet) -> Next {
    if is_extension(next) {
        return Next::End(Outcome::LaterFragment(Known::Addresses));
    }
    let Some(protocol) = Protocol::from_number(next) else {
        return Next::End(Outcome::NotOurs);
    };
    packet.protocol = protocol;
    Next::End(Outcome::LaterFragment(Known::Protocol))
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        next_header::HOP_BY_HOP
            | next_header::ROUTING
            | next_header::FRAGMENT
            | next_header::AUTHENTICATION
            | next_header::DESTINATION_OPTIONS
    )
}
