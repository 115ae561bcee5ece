use std::{collections::HashSet, vec, vec::Vec};

use proptest::{collection::vec, prelude::*};

use super::{build::build_within, *};
use crate::packet::Family;

struct Memory(Vec<Line>);

impl Lines for Memory {
    fn line(&self, number: u32) -> Option<&Line> {
        self.0.get(number as usize)
    }
}

fn value(number: u16) -> SourceValue {
    SourceValue::from_number(number)
}

/// A prefix by its first address, its length, and what is said of it.
type Said<N> = (N, u32, u16);

fn v4_bytes(address: u32) -> AddressBytes {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&address.to_be_bytes());
    bytes
}

fn v4_mask(bits: u32) -> u32 {
    u32::MAX.checked_shl(32 - bits).unwrap_or(0)
}

fn v6_mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}

/// In order, host bits cleared; of equal prefixes the last one holds.
fn v4_ranges(said: &[Said<u32>]) -> Ranges<u32> {
    let mut said: Vec<Said<u32>> =
        said.iter().map(|(address, bits, said)| (address & v4_mask(*bits), *bits, *said)).collect();
    said.sort_by_key(|(address, bits, _)| (*address, *bits));
    let mut sweep = Sweep::default();
    for (address, bits, said) in said {
        sweep.add(address, address | !v4_mask(bits), value(said));
    }
    sweep.finish()
}

fn v6_ranges(said: &[Said<u128>]) -> Ranges<u128> {
    let mut said: Vec<Said<u128>> =
        said.iter().map(|(address, bits, said)| (address & v6_mask(*bits), *bits, *said)).collect();
    said.sort_by_key(|(address, bits, _)| (*address, *bits));
    let mut sweep = Sweep::default();
    for (address, bits, said) in said {
        sweep.add(address, address | !v6_mask(bits), value(said));
    }
    sweep.finish()
}

/// The longest prefix that holds an address, by a look at all of them.
fn scan<N: Copy + PartialEq>(said: &[Said<N>], holds: impl Fn(N, u32) -> bool) -> SourceValue {
    let holding = said.iter().filter(|(address, bits, _)| holds(*address, *bits));
    // Of equal lengths the last one.
    holding.max_by_key(|(_, bits, _)| *bits).map_or_else(SourceValue::default, |said| value(said.2))
}

fn table(v4: Ranges<u32>, v6: Ranges<u128>) -> Memory {
    Memory(build(&Sources { v4, v6 }).expect("it fits"))
}

/// Every address at which something may change, and its neighbours.
fn edges_v4(said: &[Said<u32>]) -> Vec<u32> {
    let edges = said.iter().flat_map(|(address, bits, _)| {
        let (first, last) = (address & v4_mask(*bits), address | !v4_mask(*bits));
        [first.wrapping_sub(1), first, *address, last, last.wrapping_add(1)]
    });
    edges.chain([0, u32::MAX]).collect()
}

fn edges_v6(said: &[Said<u128>]) -> Vec<u128> {
    let edges = said.iter().flat_map(|(address, bits, _)| {
        let (first, last) = (address & v6_mask(*bits), address | !v6_mask(*bits));
        [first.wrapping_sub(1), first, *address, last, last.wrapping_add(1)]
    });
    edges.chain([0, u128::MAX]).collect()
}

fn check_v4(said: &[Said<u32>], addresses: impl IntoIterator<Item = u32>) {
    let ranges = v4_ranges(said);
    let memory = table(ranges.clone(), Ranges::default());
    for address in edges_v4(said).into_iter().chain(addresses) {
        let expected = scan(said, |prefix, bits| (prefix ^ address) & v4_mask(bits) == 0);
        assert_eq!(ranges.find(address), expected, "{address:08x}");
        assert_eq!(find(&memory, Family::V4, &v4_bytes(address)), expected, "{address:08x}");
    }
}

fn check_v6(said: &[Said<u128>], addresses: impl IntoIterator<Item = u128>) {
    let ranges = v6_ranges(said);
    let memory = table(Ranges::default(), ranges.clone());
    for address in edges_v6(said).into_iter().chain(addresses) {
        let expected = scan(said, |prefix, bits| (prefix ^ address) & v6_mask(bits) == 0);
        assert_eq!(ranges.find(address), expected, "{address:032x}");
        let found = find(&memory, Family::V6, &address.to_be_bytes());
        assert_eq!(found, expected, "{address:032x}");
    }
}

/// Prefixes that often lie in each other or beside each other.
fn any_v4() -> impl Strategy<Value = Said<u32>> {
    let near = (0_u32..0x2000).prop_map(|low| 0x0a00_0000 | low);
    (prop_oneof![near, any::<u32>()], 0_u32..=32, 0_u16..4)
}

fn any_v6() -> impl Strategy<Value = Said<u128>> {
    let base = 0x2001_0db8_u128 << 96;
    let low = (0_u128..0x400).prop_map(move |low| base | low);
    let middle = (0_u128..0x400).prop_map(move |middle| base | middle << 56);
    (prop_oneof![low, middle, any::<u128>()], 0_u32..=128, 0_u16..4)
}

proptest! {
    #[test]
    fn an_ipv4_address_gets_what_the_longest_prefix_says(
        said in vec(any_v4(), 0..60),
        addresses in vec(any::<u32>(), 20),
    ) {
        check_v4(&said, addresses);
    }

    #[test]
    fn an_ipv6_address_gets_what_the_longest_prefix_says(
        said in vec(any_v6(), 0..60),
        addresses in vec(any::<u128>(), 20),
    ) {
        check_v6(&said, addresses);
    }

    /// Ranges have no prefix's shape once they are ranges: the table is made of any.
    #[test]
    fn a_table_says_what_its_ranges_say(
        mut starts in vec((any::<u128>(), 0_u16..3), 0..40),
        shift in 0_u32..120,
    ) {
        starts.sort_unstable();
        starts.dedup_by_key(|(start, _)| *start >> shift << shift);
        let mut sweep = Sweep::default();
        for (start, said) in &starts {
            sweep.add(*start >> shift << shift, u128::MAX, value(*said));
        }
        let ranges = sweep.finish();
        let memory = table(Ranges::default(), ranges.clone());
        for (start, said) in ranges.as_slice() {
            for address in [start.wrapping_sub(1), *start, start.wrapping_add(1)] {
                prop_assert_eq!(
                    find(&memory, Family::V6, &address.to_be_bytes()),
                    ranges.find(address)
                );
            }
            prop_assert_eq!(ranges.find(*start), *said);
        }
    }
}

#[test]
fn nothing_is_said_by_an_empty_table() {
    check_v4(&[], [0x7f00_0001]);
    check_v6(&[], [1]);
    let nothing = Memory(Vec::new());
    for family in [Family::V4, Family::V6] {
        assert_eq!(find(&nothing, family, &[0xff; 16]), SourceValue::default());
    }
}

#[test]
fn families_are_apart() {
    let memory = table(v4_ranges(&[(0, 0, 5)]), v6_ranges(&[(0, 0, 7)]));
    assert_eq!(find(&memory, Family::V4, &[9; 16]), value(5));
    assert_eq!(find(&memory, Family::V6, &[9; 16]), value(7));
}

/// Each kind of node, up to and past where it becomes another kind: as many runs as there can be.
#[test]
fn nodes_of_every_number_of_runs_are_read() {
    for step in [1, 2, 3, 5, 10, 20, 21, 22, 43, 44, 128] {
        // Single addresses of a /24, and /24s of a /16.
        let leaf: Vec<Said<u32>> =
            (0..256).step_by(step).map(|low| (0xc000_0200 | low, 32, low as u16 % 7 + 1)).collect();
        check_v4(&leaf, 0xc000_01f0..0xc000_0310);
        let branch: Vec<Said<u32>> = (0..256)
            .step_by(step)
            .map(|low| (0xc002_0000 | low << 8, 24, low as u16 % 7 + 1))
            .collect();
        check_v4(&branch, (0xc001_ff00..0xc003_0100).step_by(64));
        let v6: Vec<Said<u128>> = (0..256_u128)
            .step_by(step)
            .map(|low| (0x2001_0db8 << 96 | low << 40, 88, low as u16 % 7 + 1))
            .collect();
        check_v6(&v6, []);
    }
}

#[test]
fn a_full_address_is_as_good_as_any_prefix() {
    check_v4(&[(0, 32, 1), (u32::MAX, 32, 2), (0x7fff_ffff, 32, 3), (0x8000_0000, 32, 4)], []);
    check_v6(&[(0, 128, 1), (u128::MAX, 128, 2), (1 << 127, 128, 3), ((1 << 127) - 1, 128, 4)], []);
    check_v6(&[(1, 128, 1)], [0, 2, 1 << 64]);
}

#[test]
fn an_ipv6_node_skips_what_is_the_same_below_it() {
    let deep: Vec<Said<u128>> =
        (0..4).map(|low| (0xfd00_u128 << 112 | low << 8, 120, low as u16 + 1)).collect();
    let memory = table(Ranges::default(), v6_ranges(&deep));
    let nodes_and_entries = memory.0.len() - 2 * ROOT_LINES as usize;
    assert_eq!(nodes_and_entries, 2, "one node and one line of entries");
    check_v6(&deep, [0xfd00 << 112 | 1 << 64, 0xfd00 << 112 | 1 << 16]);
}

#[test]
fn a_root_holds_six_entries_and_names_the_line_of_more() {
    for count in [5, 6, 7, 100, 256] {
        let v4: Vec<Said<u32>> =
            (0..count).map(|second| (0x0a00_0000 | second << 16, 16, second as u16 + 1)).collect();
        let ends =
            (0..256).flat_map(|second| [0x0a00_0000 | second << 16, 0x0a00_ffff | second << 16]);
        check_v4(&v4, ends);
        let v6: Vec<Said<u128>> = (0..u128::from(count))
            .map(|second| (0x20 << 120 | second << 112, 16, second as u16 + 1))
            .collect();
        check_v6(&v6, (0..256).map(|second| 0x20 << 120 | second << 112 | 1));
    }
}

#[test]
fn answers_are_whole() {
    check_v4(
        &[(0x0a00_0000, 8, u16::MAX), (0x0a00_0001, 32, 0x8000), (0x0a01_0000, 24, 0x7fff)],
        [],
    );
    check_v6(&[(0xfd << 120, 8, u16::MAX), (0xfd << 120 | 1, 128, 0x8000)], []);
}

#[test]
fn what_fits_no_more_is_refused() {
    let roots = 2 * ROOT_LINES as usize;
    // A branch and a leaf; a node and its entries.
    for (sources, lines) in [
        (Sources { v4: v4_ranges(&[(0x0a00_0001, 32, 1)]), ..Sources::default() }, 2),
        (Sources { v6: v6_ranges(&[(1, 128, 1)]), ..Sources::default() }, 2),
        (Sources::default(), 0),
    ] {
        assert_eq!(
            build_within(&sources, roots + lines).map(|lines| lines.len()),
            Ok(roots + lines)
        );
        if lines > 0 {
            assert_eq!(build_within(&sources, roots + lines - 1), Err(TooLong));
        }
    }
}

#[test]
fn ranges_say_nothing_twice() {
    let ranges = v4_ranges(&[(0x0a00_0000, 8, 1), (0x0a01_0000, 16, 1), (0x0b00_0000, 8, 1)]);
    let expected = [(0, value(0)), (0x0a00_0000, value(1)), (0x0c00_0000, value(0))];
    assert_eq!(ranges.as_slice(), expected);
    let inside = v4_ranges(&[(0, 0, 2), (0, 32, 3), (u32::MAX, 32, 4)]);
    assert_eq!(inside.as_slice(), [(0, value(3)), (1, value(2)), (u32::MAX, value(4))]);
}

#[test]
fn numbers_are_pinned() {
    assert_eq!([V4_ROOT, V6_ROOT, ROOT_LINES], [0, 256, 256]);
    assert_eq!(
        [LINES_PER_PAGE, PAGES_PER_CHUNK, LINES_PER_CHUNK, MAX_CHUNKS],
        [64, 512, 32_768, 128]
    );
    assert_eq!(size_of::<Page>(), 4096);
    const { assert!(MAX_CHUNKS * LINES_PER_CHUNK <= LINE_MASK) };
    assert_eq!(HashSet::from([NODE, FLAT, NODE | FLAT]).len(), 3);
    assert_eq!(vec![0_u64; 8].len(), Line::default().len());
}
