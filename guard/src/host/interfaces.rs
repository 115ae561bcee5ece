//! What each interface is to guard, decided from what netlink says of it: pure functions.
//!
//! The order of the kernel's receive path decides who sees a packet first: a device's own XDP and TCX programs run
//! before it is handed to the bridge, bond, VLAN or macvlan above it (`__netif_receive_skb_core` in
//! `net/core/dev.c`). So the lowest device whose frames hold the whole packet is the outside one, and what stands
//! above it is covered. A device that decapsulates or decrypts is the lowest for what comes out of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What the kernel says of interfaces, addresses and routes, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// The routers that routes lead to, each once.
    pub gateways: BTreeSet<IpAddr>,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts, as netlink gives them")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `tun`, …; `None` for hardware.
    pub kind: Option<String>,
    /// `ARPHRD_*` of `include/uapi/linux/if_arp.h`.
    pub hardware_type: u16,
    /// The bridge, bond or VRF it is a port of.
    pub master: Option<u32>,
    /// The device it stands on (`IFLA_LINK`), for a VLAN, macvlan or tunnel; the peer for a veth.
    pub lower: Option<u32>,
    /// The device in `lower` is in another network namespace.
    pub lower_elsewhere: bool,
    pub up: bool,
    pub carrier: bool,
    pub mtu: u32,
    /// For a `tun` device: it carries Ethernet frames.
    pub is_tap: bool,
    /// The device of a bus that it belongs to (`IFLA_PARENT_DEV_NAME`, Linux 5.14): none for what is made of software.
    pub parent: Option<Parent>,
}

/// A device of a bus: `pci` and `0000:01:00.0`, `virtio` and `virtio0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    pub bus: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub address: IpAddr,
    pub prefix_bits: u8,
    /// The directed broadcast address, where there is one.
    pub broadcast: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub index: u32,
    pub destination: IpNet,
    pub has_gateway: bool,
}

/// A machine on one of the links: its IP and Ethernet addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub index: u32,
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Loopback,
    /// Other machines reach this host over it, and it is the lowest device that sees the whole packet.
    Outside,
    /// As outside, for what comes out of a tunnel; its packets may have no Ethernet header.
    Tunnel,
    /// Only containers and virtual machines of this host are on it.
    LocalBridge,
    /// A port of a local bridge, or a veth or tap whose only routes lead to one guest.
    Container,
    /// What arrives on it was seen on a lower device.
    Covered,
    /// Nothing arrives on it.
    Silent,
}

/// An interface and what it is.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub class: Class,
    /// Packets begin with an Ethernet header, so that XDP can read them.
    pub is_ethernet: bool,
    /// `veth`, `tun`, …; `None` for hardware.
    pub kind: Option<String>,
    pub up: bool,
    pub carrier: bool,
    pub mtu: u32,
    pub is_bridge_port: bool,
    /// Why, where it was in doubt.
    pub doubt: Option<String>,
}

impl Interface {
    /// Whether only guests of this host send over it. What a bridge's port receives comes in by the bridge, for the
    /// kernel's routing.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        matches!(self.class, Class::LocalBridge | Class::Container) && !self.is_bridge_port
    }

    /// Whether it is the first device that everything forwarded to some guest leaves by: what stands on a bridge sends through
    /// it, and its ports come after it.
    #[must_use]
    pub fn is_edge(&self) -> bool {
        let is_lowest = matches!(self.kind.as_deref(), Some("bridge" | "veth" | "netkit" | "tun"));
        self.is_inside() && is_lowest
    }
}

/// This host's own addresses, where packets from one to another take loopback and no other way. In a VRF they take its device,
/// as those from outside do there: then there are none.
#[must_use]
pub fn own_by_loopback(snapshot: &Snapshot) -> Vec<IpNet> {
    if snapshot.links.iter().any(|link| link.kind.as_deref() == Some("vrf")) {
        return Vec::new();
    }
    let own = snapshot.addresses.iter().map(|own| own.address);
    let own: BTreeSet<IpNet> =
        own.filter(|address| may_be_local(*address)).map(IpNet::from).collect();
    own.into_iter().collect()
}

/// The prefixes that `lan` and `lan6` stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanPrefixes {
    /// On-link IPv4 private, ULA and link-local prefixes of outside interfaces.
    pub private: Vec<IpNet>,
    /// Their on-link global /64s.
    pub global6: Vec<IpNet>,
}

/// Hardware types (`ARPHRD_*` of `include/uapi/linux/if_arp.h`).
mod hardware {
    pub const ETHER: u16 = 1;
    pub const INFINIBAND: u16 = 32;
    pub const CAN: u16 = 280;
    pub const PPP: u16 = 512;
    pub const RAWIP: u16 = 519;
    pub const TUNNEL: u16 = 768;
    pub const TUNNEL6: u16 = 769;
    pub const LOOPBACK: u16 = 772;
    pub const SIT: u16 = 776;
    pub const IPGRE: u16 = 778;
    pub const IEEE80211: u16 = 801;
    pub const IEEE80211_PRISM: u16 = 802;
    pub const IEEE80211_RADIOTAP: u16 = 803;
    pub const IP6GRE: u16 = 823;
    pub const NETLINK: u16 = 824;
    pub const VSOCKMON: u16 = 826;
}

/// Kinds whose packets arrive wrapped or encrypted at the devices below them.
const TUNNEL_KINDS: [&str; 27] = [
    "amneziawg",
    "amt",
    "bareudp",
    "batadv",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "gtp",
    "hsr",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "macsec",
    "ovpn",
    "ovpn-dco",
    "pfcp",
    "ppp",
    "rmnet",
    "sit",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
];

/// The kernel nests devices eight deep (`MAX_NEST_DEV` in `include/linux/netdevice.h`); a port on the way to its bridge
/// takes a step more. What is deeper is a loop that only a snapshot taken amid changes can hold.
const MAX_DEPTH: usize = 16;

/// A route at most this short carries a default route by another name, such as `0.0.0.0/1` of some VPNs and
/// `2000::/3` of IPv6.
const DEFAULT_BITS_V4: u8 = 1;
const DEFAULT_BITS_V6: u8 = 3;

/// The shortest prefix of a local bridge that is a local source.
const SHORTEST_LOCAL_V4: u8 = 12;
const SHORTEST_LOCAL_V6: u8 = 48;

/// Whoever made a tunnel to a program can give it any type (`TUNSETLINK` in `drivers/net/tun.c`); its packets begin with the IP
/// header all the same.
fn has_ethernet_header(link: &Link) -> bool {
    let is_tunnel = link.kind.as_deref() == Some("tun") && !link.is_tap;
    link.hardware_type == hardware::ETHER && !is_tunnel
}

/// Says what each interface is, in the order of the snapshot's links.
#[must_use]
pub fn classify(snapshot: &Snapshot) -> Vec<Interface> {
    let topology = Topology::new(snapshot);
    let interface = |link: &Link| {
        let place = topology.place(link, 0);
        Interface {
            index: link.index,
            name: link.name.clone(),
            class: place.class,
            is_ethernet: has_ethernet_header(link),
            kind: link.kind.clone(),
            up: link.up,
            carrier: link.carrier,
            mtu: link.mtu,
            is_bridge_port: topology.is_bridge_port(link),
            doubt: place.doubt,
        }
    };
    snapshot.links.iter().map(interface).collect()
}

/// The addresses that are this machine: loopback, its own, and with `containers` those of its local bridges and of the
/// containers it has host routes to.
///
/// Directed broadcast addresses stand among its own: packets to them are for this host, and none comes from them. An
/// on-link prefix of an outside interface that lies in a bridge's subnet is cut out of it: there the
/// other machines live.
#[must_use]
pub fn local_sources(
    snapshot: &Snapshot,
    interfaces: &[Interface],
    containers: bool,
) -> Vec<IpNet> {
    let mut sources = BTreeSet::from([
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ]);
    for own in &snapshot.addresses {
        let addresses = [Some(own.address), own.broadcast, directed_broadcast(own)];
        let listed = addresses.into_iter().flatten().filter(|address| may_be_local(*address));
        sources.extend(listed.map(IpNet::from));
    }
    if containers {
        sources.extend(container_sources(snapshot, interfaces));
    }
    sources.into_iter().collect()
}

/// The prefixes that `lan` and `lan6` stand for: routes without a gateway over outside Ethernet-like interfaces
/// and over what stands on them (`bond0`, `br0`, a VLAN). Tunnels are not a LAN.
#[must_use]
pub fn lan(snapshot: &Snapshot, interfaces: &[Interface]) -> LanPrefixes {
    let topology = Topology::new(snapshot);
    let classes = class_by_index(interfaces);
    let mut private = BTreeSet::new();
    let mut global6 = BTreeSet::new();
    for route in snapshot.routes.iter().filter(|route| !route.has_gateway) {
        if !topology.stands_on_outside(&classes, route.index, 0) {
            continue;
        }
        let prefix = route.destination.trunc();
        if is_private(&prefix) {
            private.insert(prefix);
        } else if is_global6(&prefix) {
            global6.insert(prefix);
        }
    }
    LanPrefixes { private: private.into_iter().collect(), global6: global6.into_iter().collect() }
}

/// What an interface is, and why it was in doubt.
struct Place {
    class: Class,
    doubt: Option<String>,
}

impl Place {
    fn of(class: Class) -> Self {
        Self { class, doubt: None }
    }

    fn in_doubt(class: Class, doubt: impl Into<String>) -> Self {
        Self { class, doubt: Some(doubt.into()) }
    }
}

/// A snapshot, arranged for the questions that classifying asks.
struct Topology<'a> {
    links: HashMap<u32, &'a Link>,
    /// By their master.
    ports: HashMap<u32, Vec<&'a Link>>,
    default_routes: HashSet<u32>,
    /// Interfaces whose every route leads to one host.
    host_routes_only: HashSet<u32>,
    /// Bridges that are not local.
    open_bridges: HashSet<u32>,
}

impl<'a> Topology<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut ports: HashMap<u32, Vec<&Link>> = HashMap::new();
        for link in &snapshot.links {
            if let Some(master) = link.master {
                ports.entry(master).or_default().push(link);
            }
        }
        let defaults = snapshot.routes.iter().filter(|route| is_default(&route.destination));
        let mut topology = Self {
            links: snapshot.links.iter().map(|link| (link.index, link)).collect(),
            ports,
            default_routes: defaults.map(|route| route.index).collect(),
            host_routes_only: host_routes_only(snapshot),
            open_bridges: HashSet::new(),
        };
        topology.find_open_bridges();
        topology
    }

    /// A bridge is open when it carries a default route, has a port of another kind than a guest's, or is joined by
    /// a veth pair to one that is open, or to something that is no bridge.
    fn find_open_bridges(&mut self) {
        let bridges: Vec<u32> =
            self.links.values().filter(|link| is_bridge(link)).map(|link| link.index).collect();
        loop {
            let found = bridges.iter().copied().find(|&bridge| {
                !self.open_bridges.contains(&bridge)
                    && (self.default_routes.contains(&bridge)
                        || self.ports_of(bridge).any(|port| self.opens(port, bridge)))
            });
            let Some(bridge) = found else { return };
            self.open_bridges.insert(bridge);
        }
    }

    fn opens(&self, port: &Link, bridge: u32) -> bool {
        if !is_guest_port(port) {
            return true;
        }
        let Some(peer) = self.peer_here(port) else { return false };
        match peer.master.filter(|master| *master != bridge) {
            None => false,
            Some(other) => {
                self.open_bridges.contains(&other)
                    || !self.links.get(&other).is_some_and(|link| is_bridge(link))
            }
        }
    }

    /// The other end of a veth or netkit pair, where it is in this namespace.
    fn peer_here(&self, link: &Link) -> Option<&'a Link> {
        if !is_pair(link) || link.lower_elsewhere {
            return None;
        }
        self.links.get(&link.lower?).copied()
    }

    fn ports_of(&self, master: u32) -> impl Iterator<Item = &'a Link> + '_ {
        self.ports.get(&master).into_iter().flatten().copied()
    }

    fn is_bridge_port(&self, link: &Link) -> bool {
        link.master.and_then(|master| self.links.get(&master)).is_some_and(|above| is_bridge(above))
    }

    fn place(&self, link: &Link, depth: usize) -> Place {
        if link.hardware_type == hardware::LOOPBACK {
            return Place::of(Class::Loopback);
        }
        if depth > MAX_DEPTH {
            return Place::in_doubt(
                Class::Outside,
                "its stack of devices is too deep: taken as outside",
            );
        }
        match link.kind.as_deref() {
            None => by_hardware(link),
            Some("bridge") => self.place_bridge(link, depth),
            // Whatever is a port of these is outside or a tunnel itself.
            Some("bond" | "team" | "vrf") => Place::of(Class::Covered),
            Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "virt_wifi") => {
                self.place_stacked(link, depth)
            }
            Some("veth" | "netkit") => self.place_pair(link, depth),
            Some("tun") if link.is_tap => self.place_tap(link, depth),
            Some("tun") => Place::of(Class::Tunnel),
            Some(kind) if TUNNEL_KINDS.contains(&kind) => Place::of(Class::Tunnel),
            Some("dsa" | "ipoib" | "netdevsim" | "wwan") => Place::of(Class::Outside),
            Some("can" | "dummy" | "ifb" | "nlmon" | "vcan" | "vsockmon" | "vxcan") => {
                Place::of(Class::Silent)
            }
            Some(kind) => Place::in_doubt(
                outside_by_header(link),
                format!("kind '{kind}' is not known: taken as outside"),
            ),
        }
    }

    fn place_bridge(&self, link: &Link, depth: usize) -> Place {
        if !self.open_bridges.contains(&link.index) {
            return Place::of(Class::LocalBridge);
        }
        let mut foreign = self.ports_of(link.index).filter(|port| !is_guest_port(port));
        if foreign.any(|port| is_seen_below(self.place(port, depth + 1).class)) {
            return Place::of(Class::Covered);
        }
        let doubt = if self.default_routes.contains(&link.index) {
            "bridge with a default route and no port that is outside itself: taken as outside"
        } else {
            "bridge joined to devices that may lead to other machines: taken as outside"
        };
        Place::in_doubt(Class::Outside, doubt)
    }

    fn place_stacked(&self, link: &Link, depth: usize) -> Place {
        // A container's own macvlan, ipvlan or VLAN: nobody below it can be asked here.
        if link.lower_elsewhere {
            return Place::of(Class::Outside);
        }
        let Some(lower) = link.lower.and_then(|index| self.links.get(&index)) else {
            return Place::in_doubt(
                outside_by_header(link),
                "the device it stands on is not to be found: taken as outside",
            );
        };
        match self.place(lower, depth + 1).class {
            Class::Outside | Class::Tunnel | Class::Covered => Place::of(Class::Covered),
            Class::Loopback | Class::Silent => Place::of(Class::Silent),
            class @ (Class::LocalBridge | Class::Container) => Place::of(class),
        }
    }

    fn place_pair(&self, link: &Link, depth: usize) -> Place {
        if let Some(place) = self.place_port(link, depth) {
            return place;
        }
        if self.default_routes.contains(&link.index) {
            return Place::of(Class::Outside);
        }
        if link.lower_elsewhere && self.host_routes_only.contains(&link.index) {
            return Place::of(Class::Container);
        }
        let kind = link.kind.as_deref().unwrap_or_default();
        Place::in_doubt(
            Class::Outside,
            format!("{kind} with neither a default route nor only host routes: taken as outside"),
        )
    }

    fn place_tap(&self, link: &Link, depth: usize) -> Place {
        if let Some(place) = self.place_port(link, depth) {
            return place;
        }
        if self.host_routes_only.contains(&link.index) {
            return Place::of(Class::Container);
        }
        Place::in_doubt(
            Class::Outside,
            "tap that is no port of a bridge and has more than host routes: taken as outside",
        )
    }

    /// What a guest's device is by its master; `None` where that does not decide.
    ///
    /// A guest on an open bridge is another machine on that network. Its packets to this host are judged at the bridge
    /// where that is taken as outside, else at the socket only: to attach a program to every such port
    /// would cost what the guests say to each other.
    fn place_port(&self, link: &Link, depth: usize) -> Option<Place> {
        let master = link.master?;
        let Some(above) = self.links.get(&master) else {
            return Some(Place::in_doubt(
                Class::Outside,
                "its master is not to be found: taken as outside",
            ));
        };
        match above.kind.as_deref() {
            Some("vrf") => None,
            Some("bond" | "team") => Some(Place::in_doubt(
                Class::Outside,
                format!("virtual port of {}: taken as outside", above.name),
            )),
            Some("bridge") if !self.open_bridges.contains(&master) => {
                Some(Place::of(Class::Container))
            }
            Some("bridge") if self.place_bridge(above, depth + 1).class == Class::Outside => {
                Some(Place::of(Class::Covered))
            }
            _ => Some(Place::in_doubt(
                Class::Covered,
                format!(
                    "port of {}, which other machines share: judged at the socket only",
                    above.name
                ),
            )),
        }
    }

    fn stands_on_outside(&self, classes: &HashMap<u32, Class>, index: u32, depth: usize) -> bool {
        let Some(link) = self.links.get(&index).filter(|_| depth <= MAX_DEPTH) else {
            return false;
        };
        match classes.get(&index) {
            Some(Class::Outside) => true,
            Some(Class::Covered) => {
                let lower = link.lower.filter(|_| !is_pair(link));
                lower.is_some_and(|lower| self.stands_on_outside(classes, lower, depth + 1))
                    || self
                        .ports_of(index)
                        .any(|port| self.stands_on_outside(classes, port.index, depth + 1))
            }
            _ => false,
        }
    }
}

fn by_hardware(link: &Link) -> Place {
    match link.hardware_type {
        hardware::ETHER | hardware::INFINIBAND | hardware::RAWIP => Place::of(Class::Outside),
        hardware::PPP
        | hardware::TUNNEL
        | hardware::TUNNEL6
        | hardware::SIT
        | hardware::IPGRE
        | hardware::IP6GRE => Place::of(Class::Tunnel),
        hardware::CAN
        | hardware::IEEE80211
        | hardware::IEEE80211_PRISM
        | hardware::IEEE80211_RADIOTAP
        | hardware::NETLINK
        | hardware::VSOCKMON => Place::of(Class::Silent),
        other => Place::in_doubt(
            Class::Tunnel,
            format!("hardware type {other} is not known: taken as outside"),
        ),
    }
}

/// The class of an interface taken as outside: without an Ethernet header, XDP can't read it.
fn outside_by_header(link: &Link) -> Class {
    if link.hardware_type == hardware::ETHER { Class::Outside } else { Class::Tunnel }
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

fn is_pair(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit"))
}

/// A device that a local bridge may have as its port.
fn is_guest_port(link: &Link) -> bool {
    is_pair(link)
        || link.kind.as_deref() == Some("dummy")
        || (link.kind.as_deref() == Some("tun") && link.is_tap)
}

fn is_seen_below(class: Class) -> bool {
    matches!(class, Class::Outside | Class::Tunnel | Class::Covered)
}

pub(crate) fn is_default(destination: &IpNet) -> bool {
    let longest = match destination {
        IpNet::V4(_) => DEFAULT_BITS_V4,
        IpNet::V6(_) => DEFAULT_BITS_V6,
    };
    destination.prefix_len() <= longest
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// Interfaces with at least one route to a host and no other: what Calico, the ptp plugin and cloud CNIs make for each
/// container, and some hypervisors for each virtual machine. Link-local prefixes and routes to the interface's own addresses say nothing.
fn host_routes_only(snapshot: &Snapshot) -> HashSet<u32> {
    let own: HashSet<(u32, IpAddr)> =
        snapshot.addresses.iter().map(|own| (own.index, own.address)).collect();
    let mut to_hosts = HashSet::new();
    let mut to_more = HashSet::new();
    for route in &snapshot.routes {
        let destination = route.destination;
        if is_link_local(destination.addr()) {
            continue;
        }
        if !is_host(&destination) || route.has_gateway {
            to_more.insert(route.index);
        } else if !own.contains(&(route.index, destination.addr())) {
            to_hosts.insert(route.index);
        }
    }
    to_hosts.difference(&to_more).copied().collect()
}

fn class_by_index(interfaces: &[Interface]) -> HashMap<u32, Class> {
    interfaces.iter().map(|interface| (interface.index, interface.class)).collect()
}

fn container_sources(snapshot: &Snapshot, interfaces: &[Interface]) -> Vec<IpNet> {
    let classes = class_by_index(interfaces);
    let on_link = snapshot.routes.iter().filter(|route| !route.has_gateway);
    let outside: Vec<IpNet> = on_link
        .clone()
        .filter(|route| classes.get(&route.index).copied().is_some_and(is_seen_below))
        .map(|route| route.destination.trunc())
        .collect();
    let subnets = snapshot
        .addresses
        .iter()
        .filter(|own| classes.get(&own.index) == Some(&Class::LocalBridge))
        .filter_map(|own| IpNet::new(own.address, own.prefix_bits).ok())
        .map(|subnet| subnet.trunc())
        .filter(|subnet| may_be_local(subnet.addr()) && is_narrow_enough(subnet))
        .flat_map(|subnet| without(subnet, &outside));
    let hosts = on_link
        .filter(|route| classes.get(&route.index) == Some(&Class::Container))
        .map(|route| route.destination)
        .filter(|host| is_host(host) && may_be_local(host.addr()));
    subnets.chain(hosts).collect()
}

fn is_narrow_enough(subnet: &IpNet) -> bool {
    let shortest = match subnet {
        IpNet::V4(_) => SHORTEST_LOCAL_V4,
        IpNet::V6(_) => SHORTEST_LOCAL_V6,
    };
    subnet.prefix_len() >= shortest
}

/// A prefix less those of `holes` that lie in it.
fn without(prefix: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    let inside: Vec<IpNet> = holes.iter().copied().filter(|hole| prefix.contains(hole)).collect();
    if inside.is_empty() {
        return vec![prefix];
    }
    if inside.contains(&prefix) {
        return Vec::new();
    }
    // A hole is longer than the prefix here, so that the prefix can be halved.
    let halves = prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, &inside)).collect()
}

/// The last address of an IPv4 subnet, which the kernel takes as its broadcast address whether or not one was set
/// (`fib_add_ifaddr` in `net/ipv4/fib_frontend.c`); prefixes of 31 and 32 bits have none (RFC 3021).
fn directed_broadcast(own: &Address) -> Option<IpAddr> {
    match IpNet::new(own.address, own.prefix_bits).ok()? {
        IpNet::V4(subnet) if subnet.prefix_len() < 31 => Some(subnet.broadcast().into()),
        _ => None,
    }
}

/// Whether a local source may have this address: an address that many links share says nothing of who has it, and
/// loopback's are listed whole.
fn may_be_local(address: IpAddr) -> bool {
    !(is_link_local(address)
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_loopback()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST))
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// In a range of RFC 1918, RFC 3927, RFC 4193 or RFC 4291 section 2.5.6, with all of its addresses.
fn is_private(prefix: &IpNet) -> bool {
    let first = prefix.network();
    let in_range = |first: IpAddr| match first {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    };
    let last = prefix.broadcast();
    in_range(first) && in_range(last)
}

/// A global unicast prefix (RFC 4291 section 2.4: `2000::/3`) of at least 64 bits.
fn is_global6(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(_) => false,
        IpNet::V6(prefix) => prefix.prefix_len() >= 64 && prefix.addr().octets()[0] >> 5 == 1,
    }
}

#[cfg(test)]
mod tests;
