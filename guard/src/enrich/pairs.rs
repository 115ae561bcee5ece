//! Which IPv6 addresses seem to be those of a host that is allowed by its IPv4 address.
//!
//! Two addresses on one link with the same Ethernet address are taken to be one host's. That is a guess: a neighbour can
//! take another's Ethernet address, and a router that answers for others has theirs. So it is only ever said, and lets nobody
//! in; and Ethernet addresses of routers, or with many IPv4 addresses, are left out.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::host::interfaces::Neighbour;

/// Who has more IPv4 addresses on a link than this answers for others (proxy ARP).
const MOST_IPV4: usize = 4;

/// An Ethernet address, and the link it is on.
type Station = (u32, [u8; 6]);

#[derive(Debug, Default)]
pub struct Pairs {
    allowed: HashMap<Station, Ipv4Addr>,
    known: HashMap<(u32, Ipv6Addr), [u8; 6]>,
    /// On whatever link.
    ipv6: HashSet<Ipv6Addr>,
}

impl Pairs {
    #[must_use]
    pub fn new(
        neighbours: &[Neighbour],
        gateways: &BTreeSet<IpAddr>,
        is_allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> Self {
        let mut ipv4: HashMap<Station, BTreeSet<Ipv4Addr>> = HashMap::new();
        let mut routers: HashSet<Station> = HashSet::new();
        let mut pairs = Self::default();
        for Neighbour { index, address, mac } in neighbours {
            if gateways.contains(address) {
                routers.insert((*index, *mac));
            }
            match address {
                IpAddr::V4(address) => {
                    ipv4.entry((*index, *mac)).or_default().insert(*address);
                }
                IpAddr::V6(address) => {
                    pairs.known.insert((*index, *address), *mac);
                    pairs.ipv6.insert(*address);
                }
            }
        }
        for (station, addresses) in ipv4 {
            if routers.contains(&station) || addresses.len() > MOST_IPV4 {
                continue;
            }
            if let Some(allowed) = addresses.into_iter().find(|address| is_allowed(*address)) {
                pairs.allowed.insert(station, allowed);
            }
        }
        pairs
    }

    /// The IPv4 address, if any, by which the host is allowed that has this address on a link.
    #[must_use]
    pub fn allowed_ipv4_of(&self, source: Ipv6Addr, link: u32) -> Option<Ipv4Addr> {
        let mac = self.known.get(&(link, source)).copied().or_else(|| mac_in(source))?;
        self.allowed.get(&(link, mac)).copied()
    }

    /// Whether the Ethernet address that belongs to a source can be told.
    #[must_use]
    pub fn knows(&self, source: Ipv6Addr) -> bool {
        self.ipv6.contains(&source) || mac_in(source).is_some()
    }
}

/// The Ethernet address that an interface identifier was made of (modified EUI-64, RFC 4291 appendix A).
fn mac_in(address: Ipv6Addr) -> Option<[u8; 6]> {
    let [.., flagged, second, third, 0xff, 0xfe, fourth, fifth, sixth] = address.octets() else {
        return None;
    };
    // The bit for addresses that are unique in the world is turned over.
    Some([flagged ^ 2, second, third, fourth, fifth, sixth])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(index: u32, address: &str, last: u8) -> Neighbour {
        Neighbour { index, address: address.parse().unwrap(), mac: [2, 0, 0, 0, 0, last] }
    }

    fn allowed(pairs: &Pairs, source: &str, link: u32) -> Option<String> {
        pairs.allowed_ipv4_of(source.parse().unwrap(), link).map(|address| address.to_string())
    }

    #[test]
    fn one_ethernet_address_on_one_link_is_one_host() {
        let neighbours = [
            neighbour(2, "10.0.0.7", 7),
            neighbour(2, "2001:db8::7", 7),
            neighbour(3, "2001:db8::77", 7),
            neighbour(2, "10.0.0.8", 8),
            neighbour(2, "2001:db8::8", 8),
        ];
        let is_allowed = |address: Ipv4Addr| address.octets()[3] == 7;
        let pairs = Pairs::new(&neighbours, &BTreeSet::new(), is_allowed);
        assert_eq!(allowed(&pairs, "2001:db8::7", 2).as_deref(), Some("10.0.0.7"));
        assert_eq!(allowed(&pairs, "2001:db8::77", 3), None);
        assert_eq!(allowed(&pairs, "2001:db8::8", 2), None);
        assert_eq!(allowed(&pairs, "2001:db8::9", 2), None);
        // By the address alone: EUI-64 of 02:00:00:00:00:07.
        assert_eq!(allowed(&pairs, "2001:db8::ff:fe00:7", 2).as_deref(), Some("10.0.0.7"));
        assert_eq!(allowed(&pairs, "2001:db8::ff:fe00:8", 2), None);
        let knows = |text: &str| pairs.knows(text.parse().unwrap());
        assert!(knows("2001:db8::8") && knows("2001:db8::ff:fe00:9") && !knows("2001:db8::9"));
    }

    #[test]
    fn who_answers_for_others_is_nobody_s_pair() {
        let mut neighbours = vec![neighbour(2, "10.0.0.1", 1), neighbour(2, "2001:db8::1", 1)];
        let gateways = BTreeSet::from(["10.0.0.1".parse().unwrap()]);
        let pairs = Pairs::new(&neighbours, &gateways, |_| true);
        assert_eq!(allowed(&pairs, "2001:db8::1", 2), None);
        // The same without routes through it.
        let pairs = Pairs::new(&neighbours, &BTreeSet::new(), |_| true);
        assert_eq!(allowed(&pairs, "2001:db8::1", 2).as_deref(), Some("10.0.0.1"));
        neighbours.extend((2..6).map(|last| neighbour(2, &format!("10.0.0.{last}"), 1)));
        let pairs = Pairs::new(&neighbours, &BTreeSet::new(), |_| true);
        assert_eq!(allowed(&pairs, "2001:db8::1", 2), None);
    }
}
