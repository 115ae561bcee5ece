//! What kind of machine a source seems to be, from what this host knows of its own network.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;

use super::pairs::Pairs;
use crate::host::interfaces::{self, Class, Neighbour, Snapshot};

/// What a source seems to be. Addresses can be forged, and who stands behind one can only be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceClass {
    /// One of this host's own addresses.
    ThisHost,
    /// A container or virtual machine of this host.
    Container,
    /// It came through a tunnel, or is reached through one.
    Vpn,
    /// A router that this host sends packets to: where it translates addresses, its clients hide behind it.
    Gateway,
    /// On one of this host's links.
    Lan,
    /// As [`Self::Lan`]: an IPv6 address of a host that is allowed by its IPv4 address.
    Ipv6OfAllowed,
    /// An address for private use that is on none of this host's links.
    Private,
    Public,
}

impl SourceClass {
    /// As JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThisHost => "this-host",
            Self::Container => "container",
            Self::Vpn => "vpn",
            Self::Gateway => "gateway",
            Self::Lan => "lan",
            Self::Ipv6OfAllowed => "ipv6-of-allowed",
            Self::Private => "private",
            Self::Public => "public",
        }
    }
}

/// Which way a source is reached.
#[derive(Clone, Copy, Debug)]
struct Way {
    index: u32,
    class: Option<Class>,
    has_gateway: bool,
}

/// This host's network at one moment, arranged for the question of what a source is.
#[derive(Debug, Default)]
pub struct Network {
    own: HashSet<IpAddr>,
    gateways: BTreeSet<IpAddr>,
    containers: JointPrefixMap<IpNet, ()>,
    /// Without those that lead to everybody.
    routes: JointPrefixMap<IpNet, Way>,
    interfaces: HashMap<String, (u32, Class)>,
    pairs: Pairs,
}

impl Network {
    /// `is_allowed` says whether the policy lets an address in.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        neighbours: &[Neighbour],
        is_allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> Self {
        let interfaces = interfaces::classify(snapshot);
        let own = interfaces::local_sources(snapshot, &interfaces, false);
        let mut network = Self {
            own: own.iter().map(IpNet::addr).collect(),
            gateways: snapshot.gateways.clone(),
            pairs: Pairs::new(neighbours, &snapshot.gateways, is_allowed),
            ..Self::default()
        };
        for prefix in interfaces::local_sources(snapshot, &interfaces, true) {
            if !own.contains(&prefix) {
                network.containers.insert(prefix, ());
            }
        }
        let by_index: HashMap<u32, Class> =
            interfaces.iter().map(|interface| (interface.index, interface.class)).collect();
        for route in &snapshot.routes {
            let destination = route.destination.trunc();
            if !interfaces::is_default(&destination) {
                let class = by_index.get(&route.index).copied();
                let way = Way { index: route.index, class, has_gateway: route.has_gateway };
                network.routes.entry(destination).or_insert(way);
            }
        }
        network.interfaces = interfaces
            .into_iter()
            .map(|interface| (interface.name, (interface.index, interface.class)))
            .collect();
        network
    }

    /// What a source is whose packet came by this interface; `None` where that is not known.
    #[must_use]
    pub fn class(&self, source: IpAddr, came_by: Option<&str>) -> SourceClass {
        if source.is_loopback() || self.own.contains(&source) {
            return SourceClass::ThisHost;
        }
        let source_prefix = IpNet::from(source);
        let by = came_by.and_then(|name| self.interfaces.get(name)).map(|(_, class)| *class);
        let way = self.routes.get_lpm(&source_prefix).map(|(_, way)| *way);
        let is_guest = match by {
            Some(by) => matches!(by, Class::LocalBridge | Class::Container),
            None => self.containers.get_lpm(&source_prefix).is_some(),
        };
        if is_guest {
            return SourceClass::Container;
        }
        // A tunnel may also be what leads to the Internet: then it says nothing of a public source.
        let is_behind_tunnel = way.is_some_and(|way| way.class == Some(Class::Tunnel));
        let came_by_tunnel = by == Some(Class::Tunnel);
        if came_by_tunnel && !is_public(source)
            || is_behind_tunnel && by.is_none_or(|_| came_by_tunnel)
        {
            return SourceClass::Vpn;
        }
        if self.gateways.contains(&source) {
            return SourceClass::Gateway;
        }
        let is_on_link = interfaces::is_link_local(source)
            || way.is_some_and(|way| {
                !way.has_gateway && matches!(way.class, Some(Class::Outside | Class::Covered))
            });
        match (is_on_link, self.allowed_ipv4_of(source, came_by)) {
            (true, Some(_)) => SourceClass::Ipv6OfAllowed,
            (true, None) => SourceClass::Lan,
            (false, _) if is_public(source) => SourceClass::Public,
            (false, _) => SourceClass::Private,
        }
    }

    /// The IPv4 address by which the host is allowed that seems to have this IPv6 address.
    #[must_use]
    pub fn allowed_ipv4_of(&self, source: IpAddr, came_by: Option<&str>) -> Option<Ipv4Addr> {
        let IpAddr::V6(source) = source else { return None };
        self.pairs.allowed_ipv4_of(source, self.link_of(source, came_by)?)
    }

    /// Whether one would have to look at the neighbours again to know this source's Ethernet address.
    #[must_use]
    pub fn misses_neighbour(&self, source: IpAddr) -> bool {
        matches!(source, IpAddr::V6(source) if !self.pairs.knows(source))
    }

    /// The link that an address is on: by its route, since what a bridge, bond or VLAN receives comes by the device below it.
    /// Every link has the same link-local prefix.
    fn link_of(&self, source: std::net::Ipv6Addr, came_by: Option<&str>) -> Option<u32> {
        if source.is_unicast_link_local() {
            return Some(self.interfaces.get(came_by?)?.0);
        }
        self.routes.get_lpm(&IpNet::from(IpAddr::V6(source))).map(|(_, way)| way.index)
    }
}

/// Not for private use: RFC 1918, RFC 6598 (shared by the customers of a provider), RFC 3927, RFC 4193 and RFC 4291 section 2.5.6.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && second & 0b1100_0000 == 64;
            !(address.is_private() || address.is_link_local() || is_shared)
        }
        IpAddr::V6(address) => !(address.is_unique_local() || address.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use crate::host::interfaces::{Address, Link, Route};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str, kind: Option<&str>, hardware_type: u16) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            hardware_type,
            up: true,
            ..Link::default()
        }
    }

    fn route(index: u32, destination: &str, has_gateway: bool) -> Route {
        Route { index, destination: destination.parse().unwrap(), has_gateway }
    }

    fn address(index: u32, address: &str, prefix_bits: u8) -> Address {
        Address { index, address: ip(address), prefix_bits, broadcast: None }
    }

    /// A NIC, a bridge with a container, and a tunnel.
    fn network(default_by_tunnel: bool) -> Network {
        let snapshot = Snapshot {
            links: vec![
                link(1, "lo", None, 772),
                link(2, "eth0", None, 1),
                link(3, "br0", Some("bridge"), 1),
                Link {
                    master: Some(3),
                    lower: Some(2),
                    lower_elsewhere: true,
                    ..link(4, "veth0", Some("veth"), 1)
                },
                link(5, "wg0", Some("wireguard"), 0xfffe),
            ],
            addresses: vec![
                address(1, "127.0.0.1", 8),
                address(2, "192.168.1.2", 24),
                address(2, "2001:db8:1::2", 64),
                address(3, "172.18.0.1", 16),
                address(5, "100.64.0.2", 32),
            ],
            routes: vec![
                route(if default_by_tunnel { 5 } else { 2 }, "0.0.0.0/0", !default_by_tunnel),
                route(2, "192.168.1.0/24", false),
                route(2, "2001:db8:1::/64", false),
                route(2, "10.9.0.0/16", true),
                route(3, "172.18.0.0/16", false),
                route(5, "100.64.0.0/10", false),
                route(5, "198.18.5.0/24", false),
            ],
            gateways: [ip("192.168.1.1"), ip("fe80::1")].into(),
        };
        let neighbour = |address: &str, mac: u8| Neighbour {
            index: 2,
            address: ip(address),
            mac: [2, 0, 0, 0, 0, mac],
        };
        let neighbours = [
            neighbour("192.168.1.7", 7),
            neighbour("2001:db8:1::7", 7),
            neighbour("fe80::7", 7),
            neighbour("192.168.1.8", 8),
            neighbour("2001:db8:1::8", 8),
        ];
        Network::new(&snapshot, &neighbours, |address| address == Ipv4Addr::new(192, 168, 1, 7))
    }

    #[test]
    fn every_source_has_a_class() {
        let network = network(false);
        for (source, came_by, name) in [
            ("127.0.0.1", None, "this-host"),
            ("192.168.1.2", Some("eth0"), "this-host"),
            ("172.18.0.4", Some("br0"), "container"),
            ("172.18.0.4", None, "container"),
            ("10.1.1.1", Some("veth0"), "container"),
            ("100.64.0.9", Some("wg0"), "vpn"),
            ("100.64.0.9", None, "vpn"),
            ("10.3.3.3", Some("wg0"), "vpn"),
            ("198.18.5.5", Some("wg0"), "vpn"),
            // It claims an address of the tunnel's, and came by another way.
            ("100.64.0.9", Some("eth0"), "private"),
            ("203.0.113.9", Some("wg0"), "public"),
            ("192.168.1.1", Some("eth0"), "gateway"),
            ("fe80::1", Some("eth0"), "gateway"),
            ("192.168.1.7", Some("eth0"), "lan"),
            ("192.168.1.7", None, "lan"),
            ("2001:db8:1::9", Some("eth0"), "lan"),
            ("fe80::9", Some("eth0"), "lan"),
            ("2001:db8:1::7", Some("eth0"), "ipv6-of-allowed"),
            ("2001:db8:1::7", None, "ipv6-of-allowed"),
            ("fe80::7", Some("eth0"), "ipv6-of-allowed"),
            ("fe80::7", None, "lan"),
            ("2001:db8:1::8", Some("eth0"), "lan"),
            ("10.9.1.1", Some("eth0"), "private"),
            ("fd00::1", Some("eth0"), "private"),
            ("203.0.113.9", Some("eth0"), "public"),
            ("203.0.113.9", None, "public"),
            ("2001:db8:2::1", Some("gone"), "public"),
            ("100.128.0.1", Some("eth0"), "public"),
        ] {
            assert_eq!(network.class(ip(source), came_by).name(), name, "{source} by {came_by:?}");
        }
    }

    #[test]
    fn a_tunnel_to_the_internet_makes_nobody_a_vpn_peer() {
        let network = network(true);
        assert_eq!(network.class(ip("203.0.113.9"), Some("wg0")), SourceClass::Public);
        assert_eq!(network.class(ip("203.0.113.9"), None), SourceClass::Public);
        assert_eq!(network.class(ip("10.3.3.3"), Some("wg0")), SourceClass::Vpn);
    }

    #[test]
    fn nothing_is_known_of_an_unknown_network() {
        let network = Network::default();
        assert_eq!(network.class(ip("203.0.113.9"), Some("eth0")), SourceClass::Public);
        assert_eq!(network.class(ip("10.0.0.1"), None), SourceClass::Private);
        assert!(network.misses_neighbour(ip("2001:db8::1")));
    }
}
