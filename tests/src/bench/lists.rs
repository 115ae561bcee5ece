//! Lists of prefixes, and sources that none of them holds: the same in every run.

use std::{
    fmt,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How a list's prefixes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// In one /8: hosts and very small networks side by side.
    Dense,
    /// The same lengths, over the whole of the address space.
    Spread,
    /// Lengths as the routing tables and the lists of countries and clouds have them: mostly /24, or /48 of IPv6, some much
    /// wider, and hosts between.
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListId {
    pub family: Family,
    pub shape: Shape,
    pub size: usize,
}

impl fmt::Display for ListId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match self.shape {
            Shape::Dense => "dense",
            Shape::Spread => "spread",
            Shape::Mixed => "mixed",
        };
        match (self.size, self.family) {
            (size @ ..1_000, _) => write!(f, "{size}")?,
            (size @ ..1_000_000, _) => write!(f, "{}k", size / 1_000)?,
            (size, _) => write!(f, "{}M", size / 1_000_000)?,
        }
        write!(f, " {shape}")?;
        if self.family == Family::V6 { f.write_str(" IPv6") } else { Ok(()) }
    }
}

/// Prefixes that have no address in common, in no order.
#[derive(Clone, Debug)]
pub struct List {
    pub id: ListId,
    pub prefixes: Vec<IpNet>,
}

impl List {
    #[must_use]
    pub fn new(id: ListId) -> Self {
        let mut random = Random(0x6c69_7374);
        let mut prefixes: Vec<IpNet> = Vec::with_capacity(id.size);
        let mut sum = 0;
        // From the widest on, so that none that is there has to go for another.
        for (length, percent) in lengths(id) {
            sum += percent;
            let wanted = id.size * sum / 100;
            while prefixes.len() < wanted {
                let missing = wanted - prefixes.len();
                prefixes.extend((0..missing).map(|_| draw(&mut random, id, *length)));
                // Stable, since what is there is in order and only has to be merged.
                prefixes.sort_by_key(|prefix| (prefix.network(), prefix.prefix_len()));
                let mut end = None;
                prefixes.retain(|prefix| {
                    let is_apart = end.is_none_or(|end| prefix.network() > end);
                    if is_apart {
                        end = Some(prefix.broadcast());
                    }
                    is_apart
                });
            }
        }
        random.shuffle(&mut prefixes);
        Self { id, prefixes }
    }

    /// One prefix a line, as guard reads them.
    #[must_use]
    pub fn lines(&self) -> String {
        self.joined("", "\n")
    }

    /// The elements of an nftables set.
    #[must_use]
    pub fn elements(&self) -> String {
        self.joined("", ",\n")
    }

    /// What `ipset restore` reads, for a set of this name.
    #[must_use]
    pub fn ipset(&self, name: &str) -> String {
        let family = match self.id.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        format!(
            "create {name} hash:net family {family} maxelem 2000000\n{}",
            self.joined(&format!("add {name} "), "\n")
        )
    }

    fn joined(&self, before: &str, after: &str) -> String {
        let mut text = String::new();
        for prefix in &self.prefixes {
            let _ = write!(text, "{before}{prefix}{after}");
        }
        text
    }
}

/// The /8 of the dense lists.
const DENSE: u32 = 20;

/// The lengths of a list's prefixes, the widest first, each with how many of a hundred have it.
const fn lengths(id: ListId) -> &'static [(u8, usize)] {
    match (id.family, id.shape) {
        (Family::V4, Shape::Dense | Shape::Spread) => &[(28, 10), (30, 20), (32, 70)],
        (Family::V4, Shape::Mixed) => {
            &[(16, 2), (19, 3), (20, 5), (21, 5), (22, 10), (23, 10), (24, 45), (32, 20)]
        }
        (Family::V6, _) => &[(36, 3), (40, 5), (44, 10), (48, 50), (56, 10), (64, 20), (128, 2)],
    }
}

fn draw(random: &mut Random, id: ListId, length: u8) -> IpNet {
    match id.family {
        Family::V4 => {
            let address = Ipv4Addr::from_bits(address_v4(random, id.shape));
            Ipv4Net::new_assert(address, length).trunc().into()
        }
        Family::V6 => {
            let address = Ipv6Addr::from_bits(address_v6(random));
            Ipv6Net::new_assert(address, length).trunc().into()
        }
    }
}

/// An address that a packet can come from: of no loopback, multicast or private network that a lab uses.
fn address_v4(random: &mut Random, shape: Shape) -> u32 {
    let address = random.next() as u32;
    let first = match (shape, 11 + random.below(212) as u32) {
        (Shape::Dense, _) => DENSE,
        (_, 127) => 126,
        (_, first) => first,
    };
    first << 24 | address >> 8
}

/// Of the part of IPv6 that is given out, 2000::/3.
fn address_v6(random: &mut Random) -> u128 {
    let address = u128::from(random.next()) << 64 | u128::from(random.next());
    0b001 << 125 | address >> 3
}

/// Different sources that none of these lists holds.
#[must_use]
pub fn outside<'a>(
    lists: impl IntoIterator<Item = &'a List>,
    family: Family,
    shape: Shape,
    count: usize,
) -> Vec<IpAddr> {
    let prefixes = lists.into_iter().filter(|list| list.id.family == family);
    let mut ranges: Vec<(IpAddr, IpAddr)> = prefixes
        .flat_map(|list| &list.prefixes)
        .map(|prefix| (prefix.network(), prefix.broadcast()))
        .collect();
    ranges.sort_unstable();
    // The lists may hold the same addresses: ranges that meet become one.
    ranges.dedup_by(|next, kept| {
        let meets = next.0 <= kept.1;
        if meets {
            kept.1 = kept.1.max(next.1);
        }
        meets
    });
    let is_held = |address: IpAddr| {
        let after = ranges.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).is_some_and(|place| address <= ranges[place].1)
    };
    let mut random = Random(0x736f_7572);
    let mut sources = Vec::with_capacity(count + count / 8);
    while sources.len() < count {
        let missing = count - sources.len();
        let drawn = (0..missing).map(|_| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::from_bits(address_v4(&mut random, shape))),
            Family::V6 => Ipv6Addr::from_bits(address_v6(&mut random)).into(),
        });
        sources.extend(drawn.filter(|address| !is_held(*address)));
        sources.sort_unstable();
        sources.dedup();
    }
    random.shuffle(&mut sources);
    sources
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn every_kind(size: usize) -> impl Iterator<Item = List> {
        let shapes = [Shape::Dense, Shape::Spread, Shape::Mixed];
        let ids = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(move |family| shapes.map(|shape| ListId { family, shape, size }));
        ids.map(List::new)
    }

    #[test]
    fn a_list_has_its_size_and_no_address_twice() {
        for list in every_kind(10_000) {
            assert_eq!(list.prefixes.len(), 10_000, "{}", list.id);
            let mut sorted = list.prefixes.clone();
            sorted.sort_unstable();
            for pair in sorted.windows(2) {
                assert!(pair[0].broadcast() < pair[1].network(), "{}: {pair:?}", list.id);
            }
        }
    }

    #[test]
    fn the_lengths_make_a_hundred_from_the_widest_on() {
        for list in every_kind(1) {
            let lengths = lengths(list.id);
            assert_eq!(lengths.iter().map(|(_, percent)| percent).sum::<usize>(), 100);
            assert!(lengths.is_sorted_by(|one, next| one.0 < next.0));
        }
    }

    #[test]
    fn a_list_is_the_same_every_time() {
        for (one, other) in every_kind(100).zip(every_kind(100)) {
            assert_eq!(one.prefixes, other.prefixes);
        }
    }

    #[test]
    fn dense_lists_lie_in_one_place_and_others_do_not() {
        for (shape, most) in [(Shape::Dense, 1), (Shape::Spread, 211), (Shape::Mixed, 211)] {
            let list = List::new(ListId { family: Family::V4, shape, size: 10_000 });
            let first = |prefix: &IpNet| match prefix.network() {
                IpAddr::V4(address) => address.octets()[0],
                IpAddr::V6(_) => 0,
            };
            let places: BTreeSet<u8> = list.prefixes.iter().map(first).collect();
            assert_eq!(places.len(), most, "{shape:?}");
            assert!(places.iter().all(|first| (11..=222).contains(first) && *first != 127));
        }
    }

    #[test]
    fn sources_are_different_and_outside_of_all_lists() {
        let lists: Vec<List> = every_kind(10_000).collect();
        for (family, shape) in
            [(Family::V4, Shape::Dense), (Family::V4, Shape::Mixed), (Family::V6, Shape::Mixed)]
        {
            let sources = outside(&lists, family, shape, 4_096);
            assert!(sources.len() >= 4_096);
            assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
            for source in sources.iter().take(64) {
                let holds =
                    |list: &List| list.prefixes.iter().any(|prefix| prefix.contains(source));
                assert!(!lists.iter().any(holds), "{source}");
            }
        }
    }

    #[test]
    fn a_list_is_named_by_size_and_shape() {
        let name = |size, family| ListId { family, shape: Shape::Mixed, size }.to_string();
        assert_eq!(name(10, Family::V4), "10 mixed");
        assert_eq!(name(100_000, Family::V4), "100k mixed");
        assert_eq!(name(1_000_000, Family::V6), "1M mixed IPv6");
    }

    #[test]
    fn other_filters_get_the_same_prefixes() {
        let list = List::new(ListId { family: Family::V4, shape: Shape::Mixed, size: 3 });
        assert_eq!(list.lines().lines().count(), 3);
        assert_eq!(list.elements().matches(',').count(), 3);
        let ipset = list.ipset("allowed");
        assert!(ipset.starts_with("create allowed hash:net family inet "), "{ipset}");
        assert!(ipset.lines().skip(1).all(|line| line.starts_with("add allowed ")), "{ipset}");
    }
}
