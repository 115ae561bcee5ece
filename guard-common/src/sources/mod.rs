//! The source table: from an address to what the policy says of it, in a number of steps that does not grow with the
//! policy.
//!
//! It is memory in lines of 64 bytes, a cache line each, which the kernel reads from maps and tests from a list:
//!
//! - Lines from [`V4_ROOT`] on: a node for each value of an IPv4 address's first eight bits. Lines from [`V6_ROOT`] on: the same for
//!   IPv6. They are small, so that a flood of random sources finds them in the cache.
//! - Lines [`V4_FILTER`] and [`V6_FILTER`]: in words 0 to 3 a bit for each value of the first eight bits, set where the *filter* is to
//!   be asked first; in words 4 and 5 where that begins and how it is asked.
//! - Other nodes and their entries, and the filters, in no order.
//!
//! A *filter* knows most addresses of which nothing is said by one line, where a walk takes several that random sources find in
//! no cache: it is a Bloom filter in blocks of one word, with two bits for each block of addresses (*key*) in which something is
//! said, or a plain bitmap where that is no longer. How large these blocks are goes by the policy, and addresses that large
//! ranges hold it is not asked about.
//!
//! A *node* has an *entry* of 32 bits for each value of eight bits of the address: the answer ([`SourceValue`]), or the line of the
//! node ([`NODE`]) for the bits that follow. It says where, over the 256 values, *runs* of equal entries
//! begin: a bit for each value (words 0 to 3), and how many runs begin in the words before (a byte each, in the low half of word 4).
//! The entry of a value is number "runs that began up to it".
//!
//! | node | the rest of its line | entries |
//! | --- | --- | --- |
//! | root: bits 8 to 15; IPv4, bits 16 to 23 | six entries in words 5 to 7; or [`FAR`] in word 4 | else from the line on that word 5 names |
//! | IPv4, bits 16 to 23, [`FLAT`] | it has no line of its own | one for each of the 256 values, in 16 lines |
//! | IPv4, bits 24 to 31 | twelve answers of 16 bits in words 5 to 7; or [`FAR`] in word 4 | else in the lines that follow |
//! | IPv6 | words 5 and 6: the address's bits before; word 7: how many these are, and the answer where they differ | in the lines that follow |
//!
//! An IPv6 node may skip bits that are the same in all that is below it, which is why it has them. All steps are compiled: where
//! a line is missing the answer is the default, which is closed.

#[cfg(any(test, feature = "user"))]
mod build;
#[cfg(any(test, feature = "user"))]
mod filter;
#[cfg(any(test, feature = "user"))]
mod ranges;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "user"))]
pub use self::{
    build::{TooLong, build},
    ranges::{Ranges, Sources, Sweep},
};
use crate::{
    abi::SourceValue,
    packet::{AddressBytes, Family},
};

/// 64 bytes, aligned to 64 where the kernel holds them.
pub type Line = [u64; 8];

/// Lines are written to the kernel a page at a time.
pub const LINES_PER_PAGE: u32 = 64;

/// 4096 bytes, line after line: an element of a chunk's map.
pub type Page = [u64; LINES_PER_PAGE as usize * size_of::<Line>() / 8];

/// Pages of a chunk: 2 MiB, which the kernel sets aside at once.
pub const PAGES_PER_CHUNK: u32 = 512;

/// Lines of a chunk.
pub const LINES_PER_CHUNK: u32 = LINES_PER_PAGE * PAGES_PER_CHUNK;

/// Chunks that one policy's table may have: 256 MiB.
pub const MAX_CHUNKS: u32 = 128;

/// Line of the first node for IPv4.
pub const V4_ROOT: u32 = 0;
/// Line of the first node for IPv6.
pub const V6_ROOT: u32 = ROOT_LINES;

/// Line that says how the filter for IPv4 is asked.
pub const V4_FILTER: u32 = 2 * ROOT_LINES;
/// Line that says how the filter for IPv6 is asked.
pub const V6_FILTER: u32 = V4_FILTER + 1;

#[cfg(any(test, feature = "user"))]
const FIRST_LINES: u32 = V6_FILTER + 1;

const ROOT_LINES: u32 = 256;
const ENTRIES_PER_LINE: u32 = 16;

/// An entry that has this bit names a node's line in its low bits.
const NODE: u32 = 1 << 31;
/// Of an IPv4 node: it has an entry for each value.
const FLAT: u32 = 1 << 30;
const LINE_MASK: u32 = FLAT - 1;

/// In word 4 of a node: its entries do not stand in its line.
const FAR: u64 = 1 << 32;

const ANSWERS_PER_LINE: u32 = 32;

/// Nodes on an IPv6 address's way behind the root: 14 times eight bits follow its 16.
const MAX_V6_NODES: u32 = 14;

/// The memory of one source table.
pub trait Lines {
    /// `None` where nothing has been written.
    fn line(&self, number: u32) -> Option<&Line>;
}

/// What the table says of an address.
#[inline(always)]
pub fn find<L: Lines>(lines: &L, family: Family, address: &AddressBytes) -> SourceValue {
    match family {
        Family::V4 => {
            let address = v4_number(address);
            if may_be_said_v4(lines, address) { walk_v4(lines, address) } else { None }
        }
        Family::V6 => {
            let (high, low) = v6_numbers(address);
            if may_be_said_v6(lines, high) { walk_v6(lines, high, low) } else { None }
        }
    }
    .unwrap_or_default()
}

/// An IPv4 address as a number.
#[inline(always)]
#[must_use]
pub fn v4_number(address: &AddressBytes) -> u32 {
    u32::from_be_bytes([address[0], address[1], address[2], address[3]])
}

/// An IPv6 address as two numbers.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "each half is what is wanted")]
pub fn v6_numbers(address: &AddressBytes) -> (u64, u64) {
    let both = u128::from_be_bytes(*address);
    ((both >> 64) as u64, both as u64)
}

/// Asks the filter: whether [`walk_v4`] may come to another answer than the default.
#[inline(always)]
pub fn may_be_said_v4<L: Lines>(lines: &L, address: u32) -> bool {
    may_be_said(lines, V4_FILTER, address >> 24, address.into())
}

/// Asks the filter: whether [`walk_v6`] may come to another answer than the default.
#[inline(always)]
pub fn may_be_said_v6<L: Lines>(lines: &L, high: u64) -> bool {
    may_be_said(lines, V6_FILTER, (high >> 56) as u32, high)
}

/// Whether something may be said of an address with these first eight bits, which begins with this number.
#[inline(always)]
fn may_be_said<L: Lines>(lines: &L, filter: u32, octet: u32, number: u64) -> bool {
    let Some(filter) = lines.line(filter) else { return true };
    if filter[(octet as usize >> 6) & 3] >> (octet & 63) & 1 == 0 {
        return true;
    }
    let asked =
        Asked::new(number >> (filter[4] >> KEY_SHIFT & 63), filter[5], filter[4] >> BLOCK_SHIFT);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the first line's number, and one that is added to it"
    )]
    let line = (filter[4] as u32).wrapping_add((asked.block >> 3) as u32);
    lines.line(line).is_none_or(|line| asked.is_in(line[asked.block as usize & 7]))
}

/// In word 4 of a filter's first line: the line where it begins stands in the low half; by how much a hash is shifted to the block's
/// number (46 to 61); by how much an address is, to the key that is hashed.
const BLOCK_SHIFT: u32 = 32;
const KEY_SHIFT: u32 = 40;

/// Where a filter has a key: in one block of 64 bits, by the highest bits of its hash, two bits, by those that follow.
#[derive(Clone, Copy)]
struct Asked {
    block: u64,
    mask: u64,
}

impl Asked {
    #[inline(always)]
    const fn new(key: u64, multiplier: u64, block_shift: u64) -> Self {
        let hash = key.wrapping_mul(multiplier);
        let shift = block_shift & 63;
        let one = hash >> (shift.wrapping_sub(6) & 63) & 63;
        let other = hash >> (shift.wrapping_sub(12) & 63) & 63;
        Self { block: hash >> shift, mask: 1 << one | 1 << other }
    }

    #[inline(always)]
    const fn is_in(self, block: u64) -> bool {
        block & self.mask == self.mask
    }
}

/// What the table says of an IPv4 address, whatever its filter says. `None`, where a line is missing, is the default too.
#[inline(always)]
pub fn walk_v4<L: Lines>(lines: &L, address: u32) -> Option<SourceValue> {
    let mut entry = near_entry(lines, V4_ROOT + (address >> 24), address >> 16 & 0xff)?;
    if entry & NODE == 0 {
        return Some(answer(entry));
    }
    let value = address >> 8 & 0xff;
    entry = if entry & FLAT != 0 {
        far_entry(lines, entry & LINE_MASK, value)?
    } else {
        near_entry(lines, entry & LINE_MASK, value)?
    };
    if entry & NODE == 0 {
        return Some(answer(entry));
    }
    let number = entry & LINE_MASK;
    let node = lines.line(number)?;
    let run = run_of(node, address & 0xff);
    let word = if node[4] & FAR != 0 {
        let line = lines.line(number + 1 + run / ANSWERS_PER_LINE)?;
        line[(run as usize >> 2) & 7]
    } else {
        node[5 + (run as usize >> 2).min(2)]
    };
    #[expect(clippy::cast_possible_truncation, reason = "a quarter of the word is wanted")]
    Some(SourceValue::from_number((word >> ((run & 3) * 16)) as u16))
}

/// [`walk_v4`] for IPv6.
#[inline(always)]
pub fn walk_v6<L: Lines>(lines: &L, high: u64, low: u64) -> Option<SourceValue> {
    let mut entry = near_entry(lines, V6_ROOT + (high >> 56) as u32, (high >> 48) as u32 & 0xff)?;
    for _ in 0..MAX_V6_NODES {
        if entry & NODE == 0 {
            return Some(answer(entry));
        }
        let number = entry & LINE_MASK;
        let node = lines.line(number)?;
        #[expect(clippy::cast_possible_truncation, reason = "each half is what is wanted")]
        let (miss, depth) = (node[7] as u32, (node[7] >> 32) as u32);
        // The eight bits of this node, and those before them in their half, which must be the node's.
        let (half_high, differs, behind) = if depth < 64 {
            (high, high ^ node[5], 56 - depth)
        } else {
            (low, low ^ node[6], 120_u32.wrapping_sub(depth))
        };
        let before = (differs >> (behind & 63)) >> 8;
        if before != 0 || (depth >= 64 && high != node[5]) {
            return Some(answer(miss));
        }
        #[expect(clippy::cast_possible_truncation, reason = "eight bits are left")]
        let value = (half_high >> (behind & 63)) as u32 & 0xff;
        entry = far_entry(lines, number + 1, run_of(node, value))?;
    }
    if entry & NODE == 0 { Some(answer(entry)) } else { None }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "what is no node is an answer of 16 bits")]
fn answer(entry: u32) -> SourceValue {
    SourceValue::from_number(entry as u16)
}

/// The entry for a value of a node that holds up to six itself.
#[inline(always)]
fn near_entry<L: Lines>(lines: &L, number: u32, value: u32) -> Option<u32> {
    let node = lines.line(number)?;
    let run = run_of(node, value);
    if node[4] & FAR == 0 {
        return Some(half(node[5 + (run as usize >> 1).min(2)], run));
    }
    far_entry(lines, half(node[5], 0) & LINE_MASK, run)
}

/// Entry `index` of those that begin with a line.
#[inline(always)]
fn far_entry<L: Lines>(lines: &L, first_line: u32, index: u32) -> Option<u32> {
    let line = lines.line(first_line + index / ENTRIES_PER_LINE)?;
    Some(half(line[(index as usize >> 1) & 7], index))
}

/// The entry of two in a word that stands at an even or an odd place.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "half of the word is wanted")]
const fn half(word: u64, place: u32) -> u32 {
    (word >> ((place & 1) * 32)) as u32
}

/// The number of the run that a value is in.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a byte is left")]
const fn run_of(node: &Line, value: u32) -> u32 {
    let word = (value >> 6) & 3;
    let up_to_value = node[word as usize] & (u64::MAX >> (63 - (value & 63)));
    let before = (node[4] >> (word * 8)) as u32 & 0xff;
    (before + up_to_value.count_ones()).wrapping_sub(1) & 0xff
}
