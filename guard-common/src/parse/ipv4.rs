//! The IPv4 header (RFC 791).

use crate::{
    packet::{Known, Outcome, Packet, Protocol},
    parse::Next,
    reader::Reader,
};

const HEADER_BYTES: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;

#[inline(always)]
pub(super) fn read<R: Reader + ?Sized>(reader: &R, offset: usize, packet: &mut Packet) -> Next {
    let Some(header) = reader.read::<HEADER_BYTES>(offset) else {
        return Next::End(Outcome::Undecidable(Known::Nothing));
    };
    let Some(protocol) = Protocol::from_number(header[9]) else {
        return Next::End(Outcome::NotOurs);
    };
    packet.protocol = protocol;
    packet.set_ipv4(header.last_chunk().copied().unwrap_or_default());

    let header_words = usize::from(header[0] & 0x0f);
    if header[0] >> 4 != 4 || header_words < HEADER_BYTES / 4 {
        return Next::End(Outcome::Malformed(Known::Protocol));
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if fragment & FRAGMENT_OFFSET_MASK != 0 {
        return Next::End(Outcome::LaterFragment(Known::Protocol));
    }
    let is_fragment = fragment & MORE_FRAGMENTS != 0;
    Next::Transport { offset: offset + header_words * 4, is_fragment }
}
