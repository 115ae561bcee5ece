//! Interfaces, addresses and routes of the calling thread's network namespace, asked over rtnetlink.
//!
//! Never `/sys/class/net`: it shows the namespace that `/sys` was mounted in, not the thread's.

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    task::Poll,
};

use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoTun, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia,
    },
};
use procfs::FromRead;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::Nla,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::interfaces::{Address, Link, Neighbour, Parent, Route, Snapshot};

/// `IFLA_TUN_TYPE` and its value for a tap, of `include/uapi/linux/if_link.h` and `if_tun.h` (Linux 4.20).
const IFLA_TUN_TYPE: u16 = 3;
const IFF_TAP: u8 = 2;

const ARPHRD_ETHER: u16 = 1;

/// The kind of an interface that the kernel names and netlink's answer could not be read for.
const UNREADABLE: &str = "unreadable";

/// The most neighbours that are kept: the kernel has so many at most unless its `gc_thresh3` was raised (1,024 by default).
const MAX_NEIGHBOURS: usize = 16_384;

/// Why the host's interfaces are not known.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("no netlink socket could be opened: {0}")]
    Socket(#[source] io::Error),
    #[error("the names of the interfaces could not be read: {0}")]
    Names(#[source] procfs::ProcError),
    #[error("the kernel did not list its {what}: {source}")]
    Dump { what: &'static str, source: rtnetlink::Error },
    #[error(
        "the netlink socket closed while the kernel listed its interfaces, addresses and routes"
    )]
    Closed,
}

impl NetlinkError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Socket(_) => {
                "Allow this process sockets of the family AF_NETLINK (RestrictAddressFamilies= in its unit)."
            }
            Self::Names(_) => "Mount /proc for this process.",
            Self::Dump { .. } | Self::Closed => {
                "Try again; if it stays, 'ip link' shows whether the kernel answers at all."
            }
        }
    }
}

/// Reads everything once.
///
/// A change while it reads may be seen by half: who keeps a snapshot subscribes with [`watch`] first, and reads again after
/// each change.
///
/// # Errors
/// When there is no netlink socket, or the kernel refuses to answer.
pub async fn snapshot() -> Result<Snapshot, NetlinkError> {
    // Everything that belongs to the thread's namespace is opened before the first await, after which another
    // thread may go on.
    let names = InterfaceNames::read()?;
    let (connection, handle, _) = new_connection().map_err(NetlinkError::Socket)?;
    tokio::select! {
        answer = ask(&handle, &names) => answer,
        () = connection => Err(NetlinkError::Closed),
    }
}

/// Yields after every burst of changes to interfaces, addresses or routes; also when notices of them were lost. It ends
/// when the socket breaks.
///
/// # Errors
/// When there is no netlink socket.
pub fn watch() -> Result<impl Stream<Item = ()> + Send + Unpin, NetlinkError> {
    let (mut connection, _, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .map_err(NetlinkError::Socket)?;
    // The connection is driven from here rather than by a task, so that dropping the stream closes the socket.
    let mut closed = false;
    Ok(stream::poll_fn(move |context| {
        closed = closed || connection.poll_unpin(context).is_ready();
        let mut changed = false;
        while let Poll::Ready(Some(_)) = messages.poll_next_unpin(context) {
            changed = true;
        }
        match (changed, closed) {
            (true, _) => Poll::Ready(Some(())),
            (false, true) => Poll::Ready(None),
            (false, false) => Poll::Pending,
        }
    }))
}

/// The neighbours that the kernel knows the Ethernet addresses of, of both families; at most [`MAX_NEIGHBOURS`].
///
/// # Errors
/// As [`snapshot`].
pub async fn neighbours() -> Result<Vec<Neighbour>, NetlinkError> {
    let (connection, handle, _) = new_connection().map_err(NetlinkError::Socket)?;
    let listed = async {
        let messages = handle.neighbours().get().execute();
        let found: Result<Vec<_>, _> =
            messages.try_filter_map(|message| ready(Ok(neighbour(&message)))).try_collect().await;
        found.map_err(|source| NetlinkError::Dump { what: "neighbours", source })
    };
    let mut found = tokio::select! {
        answer = listed => answer?,
        () = connection => return Err(NetlinkError::Closed),
    };
    found.truncate(MAX_NEIGHBOURS);
    Ok(found)
}

/// `None` for one whose address is not known now.
fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    use NeighbourState::{Failed, Incomplete};
    if matches!(message.header.state, Failed | Incomplete) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour { index: message.header.ifindex, address: address?, mac: mac? })
}

async fn ask(handle: &Handle, names: &InterfaceNames) -> Result<Snapshot, NetlinkError> {
    let dump = |what| move |source| NetlinkError::Dump { what, source };
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(dump("interfaces"))?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(dump("addresses"))?;
    let mut routes: Vec<RouteMessage> = Vec::new();
    for request in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let answer = handle.route().get(request).execute();
        routes.extend(answer.try_collect::<Vec<_>>().await.map_err(dump("routes"))?);
    }

    let tables = tables(&links);
    let mut links: Vec<Link> = links.iter().map(link).collect();
    links.extend(names.missing(&links));
    Ok(Snapshot {
        links,
        addresses: addresses.iter().filter_map(address).collect(),
        routes: routes.iter().flat_map(|message| routes_of(message, &tables)).collect(),
        gateways: routes.iter().flat_map(|message| gateways_of(message, &tables)).collect(),
    })
}

/// The interfaces as `/proc` names them. The netlink crates pass over an answer they can't decode; an interface must not
/// go unguarded for that.
struct InterfaceNames {
    names: HashSet<String>,
    /// Of the namespace that the names were read in.
    socket: rustix::fd::OwnedFd,
}

impl InterfaceNames {
    fn read() -> Result<Self, NetlinkError> {
        let path = "/proc/thread-self/net/dev";
        let devices =
            procfs::net::InterfaceDeviceStatus::from_file(path).map_err(NetlinkError::Names)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| NetlinkError::Socket(errno.into()))?;
        Ok(Self { names: devices.0.into_keys().collect(), socket })
    }

    /// Those that are not among `links` and still exist.
    fn missing(&self, links: &[Link]) -> Vec<Link> {
        let known: HashSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let unknown = self.names.iter().filter(|name| !known.contains(name.as_str()));
        unknown
            .filter_map(|name| {
                let index = netdevice::name_to_index(&self.socket, name).ok()?;
                // Renamed since.
                if links.iter().any(|link| link.index == index) {
                    return None;
                }
                log::warn!("what the kernel says of the interface {name} could not be read");
                let kind = Some(UNREADABLE.to_owned());
                Some(Link { index, name: name.clone(), kind, up: true, ..Link::default() })
            })
            .collect()
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        hardware_type: message.header.link_layer_type.into(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let mut tun_type = None;
    let (mut bus, mut parent) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::ParentDevBusName(name) => bus = Some(name.clone()),
            LinkAttribute::ParentDevName(name) => parent = Some(name.clone()),
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = non_zero(*master),
            LinkAttribute::Link(lower) => link.lower = non_zero(*lower),
            // It stands in an answer only where the namespace is another.
            LinkAttribute::LinkNetNsId(_) => link.lower_elsewhere = true,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Tun(data)) => tun_type = find_tun_type(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.parent = bus.zip(parent).map(|(bus, name)| Parent { bus, name });
    let is_tun = link.kind.as_deref() == Some("tun");
    link.is_tap = is_tun
        && tun_type.map_or(link.hardware_type == ARPHRD_ETHER, |tun_type| tun_type == IFF_TAP);
    link
}

fn non_zero(index: u32) -> Option<u32> {
    Some(index).filter(|index| *index != 0)
}

/// The value of `IFLA_TUN_TYPE`: `None` before Linux 4.20.
fn find_tun_type(data: &[InfoTun]) -> Option<u8> {
    let attribute = data.iter().find(|attribute| attribute.kind() == IFLA_TUN_TYPE)?;
    let mut value = [0];
    (attribute.value_len() == value.len()).then(|| attribute.emit_value(&mut value))?;
    Some(value[0])
}

/// The tables whose routes say where machines are: the main one, and those of VRFs. What policy routing keeps in others
/// is about particular packets.
fn tables(links: &[LinkMessage]) -> HashSet<u32> {
    let attributes = links.iter().flat_map(|link| &link.attributes);
    let infos = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let vrf_table = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vrf(data)) => data.iter().find_map(|attribute| match attribute {
            InfoVrf::TableId(table) => Some(*table),
            _ => None,
        }),
        _ => None,
    });
    vrf_table.chain([u32::from(RouteHeader::RT_TABLE_MAIN)]).collect()
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut own, mut peer, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(IpAddr::V4(*address)),
            _ => {}
        }
    }
    // IFA_ADDRESS is the address itself where there is no IFA_LOCAL, and the other end's where they differ
    // (`include/uapi/linux/if_addr.h`); the prefix length is about the other end then.
    let address = own.or(peer)?;
    let prefix_bits = match peer {
        Some(peer) if peer != address => IpNet::from(address).prefix_len(),
        _ => message.header.prefix_len,
    };
    Some(Address { index: message.header.index, address, prefix_bits, broadcast })
}

/// The unicast routes in a message: one for each next hop.
fn routes_of(message: &RouteMessage, tables: &HashSet<u32>) -> Vec<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return Vec::new();
    }
    let mut table = u32::from(header.table);
    let mut destination = None;
    let mut output = None;
    let mut has_gateway = false;
    let mut hops = HashMap::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            RouteAttribute::Oif(index) => output = Some(*index),
            RouteAttribute::MultiPath(next_hops) => {
                hops.extend(
                    next_hops.iter().map(|hop| (hop.interface_index, leads_on(&hop.attributes))),
                );
            }
            _ => has_gateway |= leads_on(std::slice::from_ref(attribute)),
        }
    }
    let unspecified = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Vec::new(),
    };
    let bits = header.destination_prefix_length;
    let Ok(destination) = IpNet::new(destination.unwrap_or(unspecified), bits) else {
        return Vec::new();
    };
    if !tables.contains(&table) {
        return Vec::new();
    }
    hops.extend(output.map(|index| (index, has_gateway)));
    hops.into_iter().map(|(index, has_gateway)| Route { index, destination, has_gateway }).collect()
}

/// The routers among the next hops of a route.
fn gateways_of(message: &RouteMessage, tables: &HashSet<u32>) -> Vec<IpAddr> {
    if routes_of(message, tables).is_empty() {
        return Vec::new();
    }
    let hops = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let of_hops = hops.flatten().flat_map(|hop| &hop.attributes);
    let address = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address))
        | RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    message.attributes.iter().chain(of_hops).filter_map(address).collect()
}

/// Whether a next hop with these attributes is a router.
fn leads_on(attributes: &[RouteAttribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use netlink_packet_route::{
        AddressFamily,
        link::{InfoKind, LinkLayerType},
        route::{RouteNextHop, RouteProtocol},
    };
    use rtnetlink::{LinkUnspec, LinkVeth, packet_core::DefaultNla};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    fn link_message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = attributes;
        message
    }

    fn tun_message(layer: LinkLayerType, data: Vec<InfoTun>) -> LinkMessage {
        let infos = vec![LinkInfo::Kind(InfoKind::Tun), LinkInfo::Data(InfoData::Tun(data))];
        let mut message = link_message(vec![LinkAttribute::LinkInfo(infos)]);
        message.header.link_layer_type = layer;
        message
    }

    fn tun_type(value: u8) -> InfoTun {
        InfoTun::Other(DefaultNla::new(IFLA_TUN_TYPE, vec![value]))
    }

    #[test]
    fn link_of_a_veth() {
        let found = link(&link_message(vec![
            LinkAttribute::IfName("veth1".into()),
            LinkAttribute::Mtu(1400),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(2),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ]));
        let expected = Link {
            index: 7,
            name: "veth1".into(),
            kind: Some("veth".into()),
            hardware_type: 1,
            master: Some(3),
            lower: Some(2),
            lower_elsewhere: true,
            up: true,
            carrier: true,
            mtu: 1400,
            is_tap: false,
            parent: None,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn link_of_hardware_stands_on_nothing() {
        let found = link(&link_message(vec![
            LinkAttribute::Link(0),
            LinkAttribute::ParentDevName("0000:01:00.0".into()),
            LinkAttribute::ParentDevBusName("pci".into()),
        ]));
        assert_eq!((found.kind, found.lower, found.master), (None, None, None));
        let parent = Parent { bus: "pci".into(), name: "0000:01:00.0".into() };
        assert_eq!(found.parent, Some(parent));
    }

    #[test]
    fn kind_that_the_crate_does_not_know_keeps_its_name() {
        let kind = LinkInfo::Kind(InfoKind::Other("openvswitch".into()));
        let found = link(&link_message(vec![LinkAttribute::LinkInfo(vec![kind])]));
        assert_eq!(found.kind.as_deref(), Some("openvswitch"));
    }

    #[test]
    fn tap_by_its_type_and_without_one_by_its_header() {
        for (layer, data, is_tap) in [
            (LinkLayerType::Ether, vec![tun_type(2)], true),
            (LinkLayerType::None, vec![tun_type(1)], false),
            (LinkLayerType::Ether, vec![tun_type(1)], false),
            (LinkLayerType::Ether, vec![], true),
            (LinkLayerType::None, vec![], false),
        ] {
            assert_eq!(
                link(&tun_message(layer, data.clone())).is_tap,
                is_tap,
                "{layer:?} {data:?}"
            );
        }
    }

    fn address_message(bits: u8, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = 4;
        message.header.prefix_len = bits;
        message.attributes = attributes;
        message
    }

    #[test]
    fn own_address_and_the_other_end_s() {
        use AddressAttribute::{Address as Peer, Broadcast, Local};
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let of = |bits, attributes| {
            let found = address(&address_message(bits, attributes)).unwrap();
            (found.address, found.prefix_bits, found.broadcast)
        };
        let lan = vec![
            Peer(ip("10.0.0.2")),
            Local(ip("10.0.0.2")),
            Broadcast(Ipv4Addr::new(10, 0, 0, 255)),
        ];
        assert_eq!(of(24, lan), (ip("10.0.0.2"), 24, Some(ip("10.0.0.255"))));
        let point_to_point = vec![Peer(ip("10.8.0.1")), Local(ip("10.9.0.2"))];
        assert_eq!(of(24, point_to_point), (ip("10.9.0.2"), 32, None));
        assert_eq!(of(64, vec![Peer(ip("fd00::1"))]), (ip("fd00::1"), 64, None));
        assert_eq!(address(&address_message(24, vec![])), None);
    }

    fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Kernel;
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    fn routes(message: &RouteMessage) -> Vec<(u32, String, bool)> {
        let mut found: Vec<_> = routes_of(message, &HashSet::from([254, 1000]))
            .into_iter()
            .map(|route| (route.index, route.destination.to_string(), route.has_gateway))
            .collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn default_route_has_no_destination() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        let mut message = route_message(RouteType::Unicast, vec![gateway, RouteAttribute::Oif(2)]);
        assert_eq!(routes(&message), [(2, "0.0.0.0/0".into(), true)]);
        message.header.address_family = AddressFamily::Inet6;
        assert_eq!(routes(&message), [(2, "::/0".into(), true)]);
    }

    #[test]
    fn every_next_hop_is_a_route() {
        let hop = |index, attributes| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = attributes;
            hop
        };
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        let hops = RouteAttribute::MultiPath(vec![hop(2, vec![gateway]), hop(3, vec![])]);
        let message = route_message(RouteType::Unicast, vec![hops]);
        assert_eq!(
            routes(&message),
            [(2, "0.0.0.0/0".into(), true), (3, "0.0.0.0/0".into(), false)]
        );
    }

    #[test]
    fn routers_are_told_from_routes_without_one() {
        let v4 = |last| Ipv4Addr::new(10, 0, 0, last);
        let gateway = |last| RouteAttribute::Gateway(RouteAddress::Inet(v4(last)));
        let of = |message: &RouteMessage| gateways_of(message, &HashSet::from([254]));
        let by_one = route_message(RouteType::Unicast, vec![gateway(1), RouteAttribute::Oif(2)]);
        assert_eq!(of(&by_one), [IpAddr::from(v4(1))]);
        let router = "fe80::1".parse().unwrap();
        let via = RouteAttribute::Via(RouteVia::Inet6(router));
        let mut hop = RouteNextHop::default();
        hop.interface_index = 3;
        hop.attributes = vec![gateway(2)];
        let hops = vec![via, RouteAttribute::Oif(2), RouteAttribute::MultiPath(vec![hop])];
        let expected = [IpAddr::V6(router), v4(2).into()];
        assert_eq!(of(&route_message(RouteType::Unicast, hops)), expected);
        let none = route_message(RouteType::Unicast, vec![RouteAttribute::Oif(2)]);
        assert!(of(&none).is_empty());
        let blackhole = route_message(RouteType::BlackHole, vec![gateway(1)]);
        assert!(of(&blackhole).is_empty());
    }

    #[test]
    fn neighbours_are_those_whose_ethernet_address_is_known() {
        let mac = [2, 0, 0, 0, 0, 7];
        let of = |state, address: IpAddr, mac: &[u8]| {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = 2;
            message.header.state = state;
            let address = match address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            };
            message.attributes = vec![
                NeighbourAttribute::Destination(address),
                NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            ];
            neighbour(&message)
        };
        for address in ["10.0.0.7", "fe80::7"] {
            let address = address.parse().unwrap();
            let expected = Some(Neighbour { index: 2, address, mac });
            assert_eq!(of(NeighbourState::Stale, address, &mac), expected);
            assert_eq!(of(NeighbourState::Permanent, address, &mac), expected);
            assert_eq!(of(NeighbourState::Failed, address, &mac), None);
            // InfiniBand's are longer, tunnels' as long as an IP address.
            assert_eq!(of(NeighbourState::Stale, address, &[1; 20]), None);
            assert_eq!(of(NeighbourState::Noarp, address, &[10, 0, 0, 7]), None);
        }
    }

    #[test]
    fn only_unicast_routes_of_the_tables_asked_for() {
        let destination =
            RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 1, 0, 0)));
        let attributes = vec![destination, RouteAttribute::Oif(2)];
        let mut unicast = route_message(RouteType::Unicast, attributes.clone());
        unicast.header.destination_prefix_length = 16;
        assert_eq!(routes(&unicast), [(2, "10.1.0.0/16".into(), false)]);

        let mut vrf = unicast.clone();
        vrf.header.table = RouteHeader::RT_TABLE_UNSPEC;
        vrf.attributes.push(RouteAttribute::Table(1000));
        assert_eq!(routes(&vrf).len(), 1);

        let mut other_table = unicast.clone();
        other_table.attributes.push(RouteAttribute::Table(255));
        let mut cached = unicast.clone();
        cached.header.flags = RouteFlags::Cloned;
        let mut too_long = unicast;
        too_long.header.destination_prefix_length = 33;
        let blackhole = route_message(RouteType::BlackHole, attributes);
        for message in [other_table, cached, too_long, blackhole] {
            assert_eq!(routes(&message), []);
        }
    }

    #[test]
    fn vrf_tables_are_read_with_the_main_one() {
        let infos = vec![
            LinkInfo::Kind(InfoKind::Vrf),
            LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(1000)])),
        ];
        let links = [link_message(vec![LinkAttribute::LinkInfo(infos)])];
        assert_eq!(tables(&links), HashSet::from([254, 1000]));
    }

    #[test]
    fn interface_that_netlink_left_out_is_added() {
        let names = InterfaceNames::read().unwrap();
        let all = names.missing(&[]);
        let lo = all.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.kind.as_deref()), (1, Some(UNREADABLE)));
        assert_eq!(names.missing(&all), []);
        // Renamed between the two answers.
        let mut renamed = all.clone();
        for link in &mut renamed {
            link.name.push_str("-new");
        }
        assert_eq!(names.missing(&renamed), []);
    }

    #[tokio::test]
    async fn this_host_has_loopback() {
        let found = snapshot().await.unwrap();
        let lo = found.links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.hardware_type), (1, 772));
        let has = |address: &str, prefix_bits| {
            let address: IpAddr = address.parse().unwrap();
            found.addresses.iter().any(|own| {
                own.index == 1 && own.address == address && own.prefix_bits == prefix_bits
            })
        };
        assert!(has("127.0.0.1", 8));
        assert!(found.links.iter().all(|link| link.kind.as_deref() != Some(UNREADABLE)));
    }

    /// Runs in a network namespace of its own, which ends with the thread.
    fn in_new_namespace<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            // SAFETY: only the network namespace is left; file descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(task)
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_thread_s_namespace_is_read_and_watched() {
        crate::host::assert_root();
        in_new_namespace(async {
            let mut changes = watch().unwrap();
            assert_eq!(snapshot().await.unwrap().links.len(), 1);
            assert_eq!(changes.next().now_or_never(), None);

            let (connection, handle, _) = new_connection().unwrap();
            tokio::spawn(connection);
            let veth = LinkVeth::new("left", "right").build();
            handle.link().add(veth).execute().await.unwrap();
            for index in snapshot().await.unwrap().links.iter().map(|link| link.index) {
                let up = LinkUnspec::new_with_index(index).up().build();
                handle.link().set(up).execute().await.unwrap();
            }
            let found = snapshot().await.unwrap();
            let left = found.links.iter().find(|link| link.name == "left").unwrap();
            let address = "10.7.0.1".parse().unwrap();
            handle.address().add(left.index, address, 24).execute().await.unwrap();

            tokio::time::timeout(std::time::Duration::from_secs(5), changes.next())
                .await
                .unwrap()
                .unwrap();
            let found = snapshot().await.unwrap();
            let left = found.links.iter().find(|link| link.name == "left").unwrap();
            let right = found.links.iter().find(|link| link.name == "right").unwrap();
            assert_eq!((left.kind.as_deref(), left.lower), (Some("veth"), Some(right.index)));
            assert!(left.up && left.carrier && !left.lower_elsewhere);
            let own = found.addresses.iter().find(|own| own.address.to_string() == "10.7.0.1");
            assert_eq!(own.map(|own| (own.index, own.prefix_bits)), Some((left.index, 24)));
            let connected = Route {
                index: left.index,
                destination: "10.7.0.0/24".parse().unwrap(),
                has_gateway: false,
            };
            assert!(found.routes.contains(&connected), "{:?}", found.routes);
        });
    }

    #[test]
    fn lost_notices_are_a_change_and_no_end() {
        crate::host::assert_root();
        in_new_namespace(async {
            let mut changes = watch().unwrap();
            let (connection, handle, _) = new_connection().unwrap();
            tokio::spawn(connection);
            // Nobody reads meanwhile, and the socket has room for some hundred notices.
            for number in 0..500 {
                let pair = LinkVeth::new(&format!("a{number}"), &format!("b{number}")).build();
                handle.link().add(pair).execute().await.unwrap();
            }

            assert_eq!(changes.next().await, Some(()));
            while let Some(Some(())) = changes.next().now_or_never() {}
            handle.link().add(LinkVeth::new("left", "right").build()).execute().await.unwrap();
            let later = std::time::Duration::from_secs(5);
            assert_eq!(tokio::time::timeout(later, changes.next()).await, Ok(Some(())));
        });
    }
}
