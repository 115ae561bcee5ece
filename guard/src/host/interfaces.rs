//! What each interface is to guard, decided from what netlink says of it: pure functions.

use std::net::IpAddr;

use ipnet::IpNet;

/// What the kernel says of interfaces, addresses and routes, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

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
    /// A port of a local bridge, or a veth whose only routes lead to one container.
    Container,
    /// What arrives on it was seen on a lower device.
    Covered,
    /// Nothing arrives on it.
    Silent,
}

/// An interface and what it is.
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
    /// Why, where it was in doubt.
    pub doubt: Option<String>,
}

/// The prefixes that `lan` and `lan6` stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanPrefixes {
    /// On-link IPv4 private, ULA and link-local prefixes of outside interfaces.
    pub private: Vec<IpNet>,
    /// Their on-link global /64s.
    pub global6: Vec<IpNet>,
}
