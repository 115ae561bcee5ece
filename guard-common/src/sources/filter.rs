//! Fills a filter, see the module above for how it is asked.

#![expect(clippy::cast_precision_loss, reason = "what a filter costs is an estimate")]

use std::{vec, vec::Vec};

use super::{Asked, BLOCK_SHIFT, KEY_SHIFT, Line, build::Piece};
use crate::abi::SourceValue;

/// 2 MiB: a line of it is one miss of the nearer caches, a walk some [`WALK`].
const MAX_BITS: u64 = 1 << 24;
const MIN_BITS: u64 = 64 * BLOCKS_PER_LINE;

/// With so many for each key one in 20 others is taken for one. Half of them are no faster: one in 6 is.
const BITS_PER_KEY: u64 = 8;

/// What a line costs that lies in no near cache is 1: so many a walk takes, where many random sources come.
const WALK: f64 = 3.0;

/// From this size on, a filter itself lies in none.
const FAR_BITS: f64 = (8_u64 << 20) as f64;

const BLOCKS_PER_LINE: u64 = 8;

/// 2^64 over the golden ratio, which takes neighbours far apart (Knuth, The Art of Computer Programming, section 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A filter, and what it is asked about.
pub(super) struct Filter {
    /// One bit for each value of the first eight bits of an address.
    octets: [u64; 4],
    shape: Shape,
    pub(super) lines: Vec<Line>,
}

/// Addresses with the same bits before the last `key_shift` are one key.
#[derive(Clone, Copy)]
struct Shape {
    key_shift: u32,
    bits: u64,
    multiplier: u64,
}

/// A range of which something is said, by the numbers that its first and last address begin with.
type Said = (u64, u64);

impl Filter {
    pub(super) fn of_v4(ranges: Piece<'_>) -> Self {
        // A prefix of 12 bits or fewer is large.
        Self::of(&said(ranges, u128::from(u32::MAX), 0), 32, 20)
    }

    /// By the first half of an address.
    pub(super) fn of_v6(ranges: Piece<'_>) -> Self {
        // One of 28 bits or fewer.
        Self::of(&said(ranges, u128::MAX, 64), 64, 36)
    }

    /// For numbers of `width` bits. It is not asked about ranges of at least `2^large` numbers, nor about others that begin
    /// with the same eight bits.
    fn of(said: &[Said], width: u32, large: u32) -> Self {
        let octet = |number: u64| number >> (width - 8);
        let (mut octets, mut used) = ([u64::MAX; 4], [0; 4]);
        for (first, last) in said {
            let is_large = last - first >= (1 << large) - 1;
            for octet in octet(*first)..=octet(*last) {
                let (word, bit) = ((octet >> 6) as usize, 1 << (octet & 63));
                used[word] |= bit;
                if is_large {
                    octets[word] &= !bit;
                }
            }
        }
        let is_asked =
            |number: u64| octets[(octet(number) >> 6) as usize] >> (octet(number) & 63) & 1 != 0;
        let asked: Vec<Said> = said
            .iter()
            .filter(|(first, last)| is_asked(*first) || is_asked(*last))
            .copied()
            .collect();
        let used: u32 =
            used.iter().zip(octets).map(|(used, asked)| (used & asked).count_ones()).sum();
        let all = f64::from(used) * 2_f64.powi(width.cast_signed() - 8);
        let held: f64 = asked.iter().map(|(first, last)| (last - first) as f64 + 1.0).sum();

        let shapes = (0..=large).step_by(4).filter_map(|key_shift| {
            let keys = keys(&asked, key_shift).map(|(first, last)| last - first + 1).sum();
            let in_keys = keys as f64 * 2_f64.powi(key_shift.cast_signed());
            let beside = (in_keys - held) / (all - held).max(1.0);
            let shape = Shape::of(keys, width - key_shift, key_shift)?;
            let cost = shape.cost(keys, beside.clamp(0.0, 1.0));
            (cost < WALK).then_some((shape, cost))
        });
        let Some((shape, _)) = shapes.min_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            let shape = Shape { key_shift: 0, bits: MIN_BITS, multiplier: 0 };
            return Self { octets: [0; 4], shape, lines: Vec::new() };
        };
        let lines = vec![Line::default(); (shape.bits / 64 / BLOCKS_PER_LINE) as usize];
        let mut filter = Self { octets, shape, lines };
        for key in keys(&asked, shape.key_shift).flat_map(|(first, last)| first..=last) {
            let asked = Asked::new(key, shape.multiplier, shape.block_shift().into());
            let line = &mut filter.lines[(asked.block / BLOCKS_PER_LINE) as usize];
            line[(asked.block % BLOCKS_PER_LINE) as usize] |= asked.mask;
        }
        filter
    }

    /// What says how it is asked, when it begins with this line.
    pub(super) fn first_line(&self, first: u32) -> Line {
        let [a, b, c, d] = self.octets;
        let how = u64::from(first)
            | u64::from(self.shape.block_shift()) << BLOCK_SHIFT
            | u64::from(self.shape.key_shift) << KEY_SHIFT;
        [a, b, c, d, how, self.shape.multiplier, 0, 0]
    }
}

impl Shape {
    /// A filter of so many keys. `None` where it would be too full.
    fn of(keys: u64, key_bits: u32, key_shift: u32) -> Option<Self> {
        let bits = keys.checked_mul(BITS_PER_KEY)?.checked_next_power_of_two()?;
        let bits = bits.clamp(MIN_BITS, MAX_BITS);
        if key_bits <= bits.ilog2() {
            // The key itself is the number of its bit; the second one is the first of the block, for all keys.
            let (bits, multiplier) = ((1 << key_bits).max(MIN_BITS), 1 << (64 - key_bits));
            return Some(Self { key_shift, bits, multiplier });
        }
        (keys <= bits).then_some(Self { key_shift, bits, multiplier: GOLDEN })
    }

    /// What it costs about to learn by it that nothing is said of an address. Of such addresses a share lies `beside` others of
    /// which something is said, in one key with them.
    fn cost(&self, keys: u64, beside: f64) -> f64 {
        let bits = self.bits as f64;
        let set =
            if self.multiplier == GOLDEN { 1.0 - (-2.0 * keys as f64 / bits).exp() } else { 0.0 };
        (bits / FAR_BITS).min(1.0) + WALK * (beside + set * set).min(1.0)
    }

    /// By how much a hash is shifted to a block's number.
    fn block_shift(&self) -> u32 {
        64 - (self.bits / 64).ilog2()
    }
}

/// Ranges of which something is said, by the bits of their addresses before the last `shift`. `end` is the last address.
fn said(ranges: Piece<'_>, end: u128, shift: u32) -> Vec<Said> {
    let lasts = ranges.iter().skip(1).map(|(next, _)| next - 1).chain([end]);
    ranges
        .iter()
        .zip(lasts)
        .filter(|((_, value), _)| *value != SourceValue::default())
        .map(|((first, _), last)| ((first >> shift) as u64, (last >> shift) as u64))
        .collect()
}

/// The keys of ranges from first to last, each once.
fn keys(said: &[Said], shift: u32) -> impl Iterator<Item = Said> {
    let mut before = None;
    said.iter().filter_map(move |(first, last)| {
        let (first, last) = (first >> shift, last >> shift);
        let is_given = before == Some(first);
        before = Some(last);
        let first = first.checked_add(is_given.into())?;
        (first <= last).then_some((first, last))
    })
}
