//! Writes a source table, see the module above for how it is laid out.

use std::{vec, vec::Vec};

use super::{
    ANSWERS_PER_LINE, ENTRIES_PER_LINE, FAR, FIRST_LINES, FLAT, LINES_PER_CHUNK, Line, MAX_CHUNKS,
    NODE, ROOT_LINES, Ranges, Sources, V4_FILTER, V4_ROOT, V6_FILTER, V6_ROOT, filter::Filter,
    ranges::Number,
};
use crate::abi::SourceValue;

/// An IPv4 node with more runs than this has an entry for each value: it is read in one step less, and has at most four
/// times the size.
const MAX_RUNS: usize = 48;

/// Entries, and answers of 16 bits, that a node holds itself.
const NEAR_ENTRIES: u32 = 6;
const NEAR_ANSWERS: u32 = 12;

const MAX_LINES: usize = (LINES_PER_CHUNK * MAX_CHUNKS) as usize;

/// A table that takes more memory than there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// The lines of the table that says the same as these ranges.
///
/// # Errors
/// When it takes more than [`MAX_CHUNKS`].
pub fn build(sources: &Sources) -> Result<Vec<Line>, TooLong> {
    build_within(sources, MAX_LINES)
}

pub(super) fn build_within(sources: &Sources, most_lines: usize) -> Result<Vec<Line>, TooLong> {
    let mut table = Table { lines: vec![Line::default(); FIRST_LINES as usize], most_lines };
    let v4 = widened(&sources.v4);
    let v6 = widened(&sources.v6);
    table.filter(V4_FILTER, Filter::of_v4(&v4))?;
    table.filter(V6_FILTER, Filter::of_v6(&v6))?;
    table.root(V4_ROOT, 16, &v4, Table::v4_branch)?;
    table.root(V6_ROOT, 112, &v6, |table, piece, first| table.v6_node(piece, first, 16))?;
    Ok(table.lines)
}

/// Ranges, or those of them that meet a block of addresses: the first one holds the block's first address.
pub(super) type Piece<'a> = &'a [(u128, SourceValue)];

fn widened<N: Number>(ranges: &Ranges<N>) -> Vec<(u128, SourceValue)> {
    ranges.as_slice().iter().map(|(first, value)| ((*first).into(), *value)).collect()
}

/// Runs of equal entries: where each begins among a node's values.
type Runs = Vec<(u32, u32)>;

struct Table {
    lines: Vec<Line>,
    most_lines: usize,
}

impl Table {
    /// Fills a root, whose entries are for blocks of `2^bits` addresses.
    fn root(
        &mut self,
        first_line: u32,
        bits: u32,
        ranges: Piece<'_>,
        node: impl Fn(&mut Self, Piece<'_>, u128) -> Result<u32, TooLong>,
    ) -> Result<(), TooLong> {
        for byte in 0..ROOT_LINES {
            let first = u128::from(byte) << (bits + 8);
            let runs = self.runs(ranges, first, bits, &node)?;
            self.lines[(first_line + byte) as usize] = self.with_entries(&runs)?;
        }
        Ok(())
    }

    /// The entries for 256 blocks of `2^bits` addresses, the first of which begins with `first`.
    fn runs(
        &mut self,
        piece: Piece<'_>,
        first: u128,
        bits: u32,
        node: impl Fn(&mut Self, Piece<'_>, u128) -> Result<u32, TooLong>,
    ) -> Result<Runs, TooLong> {
        let count = 256;
        let mut runs = Runs::new();
        let (mut block, mut from) = (0, 0);
        while block < count {
            let block_first = first + (u128::from(block) << bits);
            let block_last = block_first + ((1 << bits) - 1);
            // The range that holds the block's first address, and those that begin behind it in the block.
            from += piece[from..].partition_point(|(start, _)| *start <= block_first) - 1;
            let inside = piece[from + 1..].partition_point(|(start, _)| *start <= block_last);
            let entry = if inside == 0 {
                u32::from(piece[from].1.number())
            } else {
                node(self, &piece[from..=from + inside], block_first)?
            };
            if runs.last().is_none_or(|(_, said)| *said != entry) {
                runs.push((block, entry));
            }
            block = match piece.get(from + 1) {
                _ if inside > 0 => block + 1,
                // Until something begins, nothing changes.
                Some((start, _)) => block_number(*start - first, bits),
                None => count,
            };
        }
        Ok(runs)
    }

    /// For bits 16 to 23 of an IPv4 address.
    fn v4_branch(&mut self, piece: Piece<'_>, first: u128) -> Result<u32, TooLong> {
        let runs = self.runs(piece, first, 8, Self::v4_leaf)?;
        if runs.len() > MAX_RUNS {
            let number = self.add_lines(256 / ENTRIES_PER_LINE)?;
            self.fill(number, &runs, 256);
            return Ok(NODE | FLAT | number);
        }
        let number = self.add_lines(1)?;
        self.lines[number as usize] = self.with_entries(&runs)?;
        Ok(NODE | number)
    }

    /// A node that has its entries too, or names the line where they begin.
    fn with_entries(&mut self, runs: &Runs) -> Result<Line, TooLong> {
        let mut node = with_runs(runs);
        if runs.len() <= NEAR_ENTRIES as usize {
            for (place, (_, entry)) in runs.iter().enumerate() {
                node[5 + place / 2] |= u64::from(*entry) << (place % 2 * 32);
            }
        } else {
            node[4] |= FAR;
            node[5] = self.add_entries(runs)?.into();
        }
        Ok(node)
    }

    /// For bits 24 to 31 of an IPv4 address.
    fn v4_leaf(&mut self, piece: Piece<'_>, first: u128) -> Result<u32, TooLong> {
        let runs: Runs = piece
            .iter()
            .map(|(start, value)| {
                (block_number(start.saturating_sub(first), 0), u32::from(value.number()))
            })
            .collect();
        let mut node = with_runs(&runs);
        let number = self.add_lines(1)?;
        let answer = |place: usize| u64::from(runs[place].1) << (place % 4 * 16);
        if runs.len() <= NEAR_ANSWERS as usize {
            for place in 0..runs.len() {
                node[5 + place / 4] |= answer(place);
            }
        } else {
            node[4] |= FAR;
            let per_line = ANSWERS_PER_LINE as usize;
            for first in (0..runs.len()).step_by(per_line) {
                let line = self.add_lines(1)?;
                for place in first..runs.len().min(first + per_line) {
                    self.lines[line as usize][place % per_line / 4] |= answer(place);
                }
            }
        }
        self.lines[number as usize] = node;
        Ok(NODE | number)
    }

    /// For eight bits of an IPv6 address behind the first `depth`, or further behind where all that changes lies in a smaller
    /// block.
    fn v6_node(&mut self, piece: Piece<'_>, first: u128, depth: u32) -> Result<u32, TooLong> {
        let (depth, base, miss) = smallest_block(piece, first, depth);
        // Of the ranges, those that meet the smaller block.
        let last = base + (u128::MAX >> depth);
        let from = piece.partition_point(|(start, _)| *start <= base).saturating_sub(1);
        let to = piece.partition_point(|(start, _)| *start <= last);
        let runs = self.runs(&piece[from..to], base, 120 - depth, |table, piece, first| {
            table.v6_node(piece, first, depth + 8)
        })?;
        let mut node = with_runs(&runs);
        let number = self.add_lines(1)?;
        self.add_entries(&runs)?;
        node[5] = (base >> 64) as u64;
        node[6] = base as u64;
        node[7] = u64::from(depth) << 32 | u64::from(miss.number());
        self.lines[number as usize] = node;
        Ok(NODE | number)
    }

    fn filter(&mut self, number: u32, filter: Filter) -> Result<(), TooLong> {
        let count = u32::try_from(filter.lines.len()).map_err(|_| TooLong)?;
        let first = self.add_lines(count)?;
        self.lines[first as usize..].copy_from_slice(&filter.lines);
        self.lines[number as usize] = filter.first_line(first);
        Ok(())
    }

    fn add_lines(&mut self, count: u32) -> Result<u32, TooLong> {
        let number = self.lines.len();
        if number + count as usize > self.most_lines {
            return Err(TooLong);
        }
        self.lines.resize(number + count as usize, Line::default());
        u32::try_from(number).map_err(|_| TooLong)
    }

    /// The runs' entries one after another, in lines of their own.
    fn add_entries(&mut self, runs: &Runs) -> Result<u32, TooLong> {
        let count = u32::try_from(runs.len()).map_err(|_| TooLong)?;
        let line = self.add_lines(count.div_ceil(ENTRIES_PER_LINE))?;
        let each: Runs = (0..).zip(runs).map(|(place, (_, entry))| (place, *entry)).collect();
        self.fill(line, &each, count);
        Ok(line)
    }

    /// `count` entries from the beginning of a line on.
    fn fill(&mut self, first_line: u32, runs: &Runs, count: u32) {
        let ends = runs.iter().skip(1).map(|(start, _)| *start).chain([count]);
        for ((start, entry), end) in runs.iter().zip(ends) {
            for place in *start..end {
                let line = &mut self.lines[(first_line + place / ENTRIES_PER_LINE) as usize];
                line[(place % ENTRIES_PER_LINE / 2) as usize] |=
                    u64::from(*entry) << (place % 2 * 32);
            }
        }
    }
}

/// The smallest block of whole bytes, of at least eight bits, in which all changes of a larger one lie; where it begins, and
/// what is said of every address of the larger one outside it.
fn smallest_block(piece: Piece<'_>, first: u128, depth: u32) -> (u32, u128, SourceValue) {
    let end = first | (u128::MAX >> depth);
    let (head, tail) = (piece[0].1, piece[piece.len() - 1].1);
    let (first_change, last_change) = (piece[1].0, piece[piece.len() - 1].0);
    let block = |from: u128, to: u128| {
        let common = (from ^ to).leading_zeros() / 8 * 8;
        (common.clamp(depth, 120), from)
    };
    let ((depth, from), miss) = if head == tail {
        (block(first_change, last_change - 1), head)
    } else {
        // Either what is before the changes or what is behind them is inside; the smaller block wins.
        let with_head = block(first, last_change - 1);
        let with_tail = block(first_change, end);
        if with_head.0 > with_tail.0 { (with_head, tail) } else { (with_tail, head) }
    };
    (depth, from & !(u128::MAX >> depth), miss)
}

/// A node that has its runs' beginnings, and nothing else.
fn with_runs(runs: &Runs) -> Line {
    let mut node = Line::default();
    for (start, _) in runs {
        node[(start / 64) as usize] |= 1 << (start % 64);
    }
    let mut begun = 0;
    for word in 0..4 {
        node[4] |= u64::from(begun) << (word * 8);
        begun += node[word].count_ones();
    }
    node
}

/// The number of the block of `2^bits` addresses that holds an address.
fn block_number(address: u128, bits: u32) -> u32 {
    // Callers count 256 blocks; what lies behind them all has any other number.
    u32::try_from(address >> bits).unwrap_or(u32::MAX)
}
