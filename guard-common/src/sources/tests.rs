use std::{cell::Cell, collections::HashSet, vec, vec::Vec};

use proptest::{collection::vec, prelude::*};

use super::{build::build_within, *};
use crate::packet::Family;

/// Of the two smallest filters.
const FILTER_LINES: usize = 2;

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
    let behind = memory.0.len() - FIRST_LINES as usize;
    assert_eq!(behind, FILTER_LINES + 2, "one node and one line of entries");
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
    let roots = FIRST_LINES as usize + FILTER_LINES;
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

/// The same memory, which counts how often it is read.
struct Counting<'a>(&'a Memory, Cell<usize>);

impl Lines for Counting<'_> {
    fn line(&self, number: u32) -> Option<&Line> {
        self.1.set(self.1.get() + 1);
        self.0.line(number)
    }
}

/// The share of addresses that are told from those of which something is said by two lines, where nothing is said of any.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn share_of_short_ways(memory: &Memory, addresses: &[(Family, AddressBytes)]) -> f64 {
    let is_short = |(family, address): &&(Family, AddressBytes)| {
        let counting = Counting(memory, Cell::new(0));
        find(&counting, *family, address) == SourceValue::default() && counting.1.get() == 2
    };
    addresses.iter().filter(is_short).count() as f64 / addresses.len() as f64
}

/// Numbers that look like drawn ones, the same each time.
fn drawn(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(|number| {
        let mixed = number.wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
    })
}

#[test]
fn most_of_what_no_rule_names_takes_two_lines() {
    // Beside what nearly every policy says of large ranges, and a private network of middling size.
    let large = [(0x7f00_0000, 8, 9), (0x0a00_0000, 8, 9), (0xc0a8_0000, 16, 9)];
    // Single addresses and small networks, all over IPv4 and in a single /8.
    for mask in [u32::MAX, 0x00ff_ffff] {
        let place = |drawn: u64| 0xc600_0000 & !mask | drawn as u32 & mask;
        let said: Vec<Said<u32>> = drawn(20_000)
            .map(|drawn| (place(drawn), [32, 32, 30, 28][drawn as usize >> 40 & 3], 1))
            .chain(large)
            .collect();
        let memory = table(v4_ranges(&said), Ranges::default());
        let others: Vec<_> = drawn(60_000)
            .skip(40_000)
            .map(|drawn| (Family::V4, v4_bytes(place(drawn))))
            .filter(|(_, address)| address[0] != 10 && address[0] != 127)
            .collect();
        let share = share_of_short_ways(&memory, &others);
        assert!(share > 0.9, "{mask:08x}: {share}");
        // Large ranges are walked to.
        let local = Counting(&memory, Cell::new(0));
        assert_eq!(find(&local, Family::V4, &v4_bytes(0x7f00_0001)), value(9));
    }

    let place = |drawn: u64| {
        let high = 0x2000_0000_0000_0000 | drawn >> 3;
        u128::from(high) << 64 | u128::from(drawn.rotate_left(9))
    };
    let said: Vec<Said<u128>> = drawn(20_000)
        .map(|drawn| (place(drawn), [48, 56, 64, 128][drawn as usize >> 40 & 3], 1))
        .chain([(0xfe80 << 112, 10, 9), (0xfd << 120, 8, 9), (1, 128, 9)])
        .collect();
    let memory = table(Ranges::default(), v6_ranges(&said));
    let others: Vec<_> =
        drawn(60_000).skip(40_000).map(|drawn| (Family::V6, place(drawn).to_be_bytes())).collect();
    let share = share_of_short_ways(&memory, &others);
    assert!(share > 0.9, "{share}");
    assert_eq!(find(&memory, Family::V6, &(0xfe80_u128 << 112).to_be_bytes()), value(9));
}

#[test]
fn a_filter_of_many_networks_is_asked_about_larger_blocks() {
    // As many addresses as would take 16 filters.
    let said: Vec<Said<u32>> = (0..32).map(|low| (0x2000_0000 | low << 23, 13, 3)).collect();
    check_v4(&said, drawn(5_000).map(|drawn| drawn as u32));
    let memory = table(v4_ranges(&said), Ranges::default());
    assert!(memory.0.len() < FIRST_LINES as usize + 20_000, "{}", memory.0.len());
    let others: Vec<_> =
        drawn(20_000).map(|drawn| (Family::V4, v4_bytes(0x8000_0000 | drawn as u32))).collect();
    let share = share_of_short_ways(&memory, &others);
    assert!(share > 0.9, "{share}");
}

#[test]
fn no_filter_is_asked_about_what_large_ranges_hold() {
    let everything = table(v4_ranges(&[(0, 0, 3)]), v6_ranges(&[(0, 0, 3)]));
    for filter in [V4_FILTER, V6_FILTER] {
        assert_eq!(everything.0[filter as usize][..4], [0; 4]);
    }
    // A range from what is asked about into what is not.
    let across = [(0x09ff_ffff, 32, 1), (0x0a00_0000, 32, 1), (0x0a80_0000, 9, 2)];
    check_v4(&across, []);
    let across = [(0x24_u128 << 120 | ((1 << 120) - 1), 128, 1), (0x25 << 120, 128, 1)];
    check_v6(&[&across[..], &[(0x258 << 116, 12, 2)]].concat(), []);
}

/// Three quarters of all that there is lie in ranges that are not large, and no key is smaller than they are.
#[test]
fn a_filter_of_very_much_is_a_bitmap() {
    let said: Vec<Said<u32>> = (0..1 << 15).map(|number| (number << 17, 16, 3)).collect();
    let halves: Vec<Said<u32>> =
        (0..1 << 15).map(|number| (number << 17 | 1 << 16, 17, 3)).collect();
    let said = [said, halves].concat();
    let memory = table(v4_ranges(&said), Ranges::default());
    assert_eq!(memory.0[V4_FILTER as usize][5], 1 << 44, "the key itself is the number of the bit");
    for (family, address) in drawn(20_000).map(|drawn| (Family::V4, v4_bytes(drawn as u32))) {
        let is_said = address[1] & 1 == 0 || address[2] < 128;
        assert_eq!(find(&memory, family, &address), value(if is_said { 3 } else { 0 }));
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
    assert_eq!([V4_FILTER, V6_FILTER], [512, 513]);
    assert_eq!(
        [LINES_PER_PAGE, PAGES_PER_CHUNK, LINES_PER_CHUNK, MAX_CHUNKS],
        [64, 512, 32_768, 128]
    );
    assert_eq!(size_of::<Page>(), 4096);
    const { assert!(MAX_CHUNKS * LINES_PER_CHUNK <= LINE_MASK) };
    assert_eq!(HashSet::from([NODE, FLAT, NODE | FLAT]).len(), 3);
    assert_eq!(vec![0_u64; 8].len(), Line::default().len());
}
