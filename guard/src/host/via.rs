//! Which of guard's hooks judges the packets that come by an interface: pure functions.
//!
//! A packet is judged first on the lowest device that has a hook, and only that device's index is known there. So a bridge, bond
//! or VRF stands for its ports, and what comes by a VLAN can't be told from what else comes by the device below it.

use std::{collections::HashSet, fmt};

use super::interfaces::{Class, Interface, Link, Snapshot};
use crate::rule::{InterfaceName, listed};

/// Why no packet can be told to come by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    Absent {
        name: InterfaceName,
    },
    Loopback,
    /// Its packets are judged on these devices below it, among others.
    Below {
        name: InterfaceName,
        lower: Vec<String>,
    },
    /// Only containers and virtual machines are on it.
    Local {
        name: InterfaceName,
    },
    NoHook {
        name: InterfaceName,
    },
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { name } => write!(f, "there is no interface {name}"),
            Self::Loopback => f.write_str("what comes over loopback is this machine's own"),
            Self::Below { name, lower } => write!(
                f,
                "what comes by {name} is judged on {lower} and can't be told from what else comes there: name {lower}",
                lower = listed(lower)
            ),
            Self::Local { name } => write!(
                f,
                "what comes by {name} comes from this host's own containers and is judged at the sockets only: name \
                 their addresses"
            ),
            Self::NoHook { name } => write!(
                f,
                "{name} has no hook of guard's, and the sockets don't know by which interface a packet came"
            ),
        }
    }
}

/// The interfaces whose hook judges what comes by this one, and itself, in order. `hooked` are those that are to have a hook.
///
/// # Errors
/// When there is none on which its packets are judged by themselves.
pub fn judged_at(
    name: &InterfaceName,
    snapshot: &Snapshot,
    interfaces: &[Interface],
    hooked: &HashSet<u32>,
) -> Result<Vec<u32>, Unseen> {
    let links = Links { links: &snapshot.links, hooked };
    let Some(link) = snapshot.links.iter().find(|link| link.name == name.as_str()) else {
        return Err(Unseen::Absent { name: name.clone() });
    };
    let class = interfaces.iter().find(|it| it.index == link.index).map(|it| it.class);
    if class == Some(Class::Loopback) {
        return Err(Unseen::Loopback);
    }
    let Judged { mut here, mut below } = links.judged(link, 0);
    if !here.is_empty() {
        // Behind the hooks of its ports, a packet that is forwarded has come by the bridge or bond itself.
        here.push(link.index);
        here.sort_unstable();
        here.dedup();
        return Ok(here);
    }
    below.sort_unstable();
    below.dedup();
    Err(match class {
        _ if !below.is_empty() => Unseen::Below { name: name.clone(), lower: below },
        Some(Class::LocalBridge | Class::Container) => Unseen::Local { name: name.clone() },
        _ => Unseen::NoHook { name: name.clone() },
    })
}

/// Where what comes by a device is judged.
#[derive(Default)]
struct Judged {
    /// By indices: nothing else is judged there.
    here: Vec<u32>,
    /// By names: other packets are judged there as well.
    below: Vec<String>,
}

struct Links<'a> {
    links: &'a [Link],
    hooked: &'a HashSet<u32>,
}

/// As deep as the kernel nests devices (`MAX_NEST_DEV` in `include/linux/netdevice.h`), with a step more for each bridge between.
const MAX_DEPTH: usize = 16;

impl Links<'_> {
    fn judged(&self, link: &Link, depth: usize) -> Judged {
        let mut judged = Judged::default();
        if depth > MAX_DEPTH {
            return judged;
        }
        if let Some(lower) = self.stands_on(link) {
            judged.below = self.hooked_below(lower, depth + 1);
            if !judged.below.is_empty() {
                return judged;
            }
        }
        if self.hooked.contains(&link.index) {
            judged.here.push(link.index);
        }
        for port in self.links.iter().filter(|port| port.master == Some(link.index)) {
            let at_port = self.judged(port, depth + 1);
            judged.here.extend(at_port.here);
            judged.below.extend(at_port.below);
        }
        judged
    }

    /// The device below a VLAN, macvlan or the like, where it is in this namespace. A veth's peer and what a tunnel's packets are
    /// wrapped for are not below.
    fn stands_on(&self, link: &Link) -> Option<&Link> {
        let is_stacked = matches!(
            link.kind.as_deref(),
            Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "virt_wifi")
        );
        let lower = link.lower.filter(|_| is_stacked && !link.lower_elsewhere)?;
        self.links.iter().find(|link| link.index == lower)
    }

    /// The names of the devices with a hook from this one on downwards.
    fn hooked_below(&self, link: &Link, depth: usize) -> Vec<String> {
        if depth > MAX_DEPTH {
            return Vec::new();
        }
        if self.hooked.contains(&link.index) {
            return vec![link.name.clone()];
        }
        let ports = self.links.iter().filter(|port| port.master == Some(link.index));
        ports
            .chain(self.stands_on(link))
            .flat_map(|lower| self.hooked_below(lower, depth + 1))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::interfaces::classify;

    const ETHER: u16 = 1;
    const LOOPBACK: u16 = 772;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            hardware_type: if name == "lo" { LOOPBACK } else { ETHER },
            ..Link::default()
        }
    }

    fn port_of(master: u32, link: Link) -> Link {
        Link { master: Some(master), ..link }
    }

    fn on(lower: u32, link: Link) -> Link {
        Link { lower: Some(lower), ..link }
    }

    /// Two ports of a bond with a VLAN on it, a bridge with a NIC and a guest, a tunnel, a VLAN on a NIC, a local bridge.
    fn snapshot() -> Snapshot {
        Snapshot {
            links: vec![
                link(1, "lo", None),
                port_of(4, link(2, "eth0", None)),
                port_of(4, link(3, "eth1", None)),
                link(4, "bond0", Some("bond")),
                on(4, link(5, "bond0.7", Some("vlan"))),
                link(6, "br0", Some("bridge")),
                port_of(6, link(7, "eth2", None)),
                Link { lower_elsewhere: true, ..port_of(6, link(8, "veth0", Some("veth"))) },
                link(9, "wg0", Some("wireguard")),
                link(10, "eth3", None),
                on(10, link(11, "eth3.5", Some("vlan"))),
                link(12, "docker0", Some("bridge")),
                Link { lower_elsewhere: true, ..port_of(12, link(13, "veth1", Some("veth"))) },
                link(14, "dummy0", Some("dummy")),
            ],
            ..Snapshot::default()
        }
    }

    fn judged(name: &str, hooked: &[u32]) -> Result<Vec<u32>, String> {
        let snapshot = snapshot();
        let interfaces = classify(&snapshot);
        let hooked = hooked.iter().copied().collect();
        judged_at(&name.parse().unwrap(), &snapshot, &interfaces, &hooked)
            .map_err(|unseen| unseen.to_string())
    }

    /// As guard covers them by itself.
    const HOOKED: &[u32] = &[2, 3, 7, 9, 10];

    #[test]
    fn an_outside_interface_or_a_tunnel_stands_for_itself() {
        assert_eq!(judged("eth3", HOOKED), Ok(vec![10]));
        assert_eq!(judged("wg0", HOOKED), Ok(vec![9]));
        assert_eq!(judged("eth0", HOOKED), Ok(vec![2]));
    }

    #[test]
    fn a_bond_or_bridge_stands_for_its_outside_ports() {
        assert_eq!(judged("bond0", HOOKED), Ok(vec![2, 3, 4]));
        assert_eq!(judged("br0", HOOKED), Ok(vec![6, 7]));
        // Chosen by name, it has a hook of its own as well.
        assert_eq!(judged("bond0", &[2, 3, 4]), Ok(vec![2, 3, 4]));
        assert_eq!(judged("bond0", &[4]), Ok(vec![4]));
    }

    #[test]
    fn what_stands_on_a_judged_device_can_not_be_told_apart() {
        let error = judged("eth3.5", HOOKED).unwrap_err();
        assert!(error.ends_with("name eth3"), "{error}");
        let error = judged("bond0.7", HOOKED).unwrap_err();
        assert!(error.ends_with("name eth0 and eth1"), "{error}");
        // Where only the VLAN has a hook, that judges it.
        assert_eq!(judged("eth3.5", &[11]), Ok(vec![11]));
        assert_eq!(judged("bond0.7", &[5]), Ok(vec![5]));
    }

    #[test]
    fn what_no_hook_sees_matches_nothing_and_says_why() {
        for (name, hooked, why) in [
            ("eth9", HOOKED, "there is no interface eth9"),
            ("lo", HOOKED, "loopback"),
            ("docker0", HOOKED, "name their addresses"),
            ("veth1", HOOKED, "name their addresses"),
            ("dummy0", HOOKED, "dummy0 has no hook"),
            ("eth3", &[], "eth3 has no hook"),
            ("br0", &[], "br0 has no hook"),
        ] {
            let error = judged(name, hooked).unwrap_err();
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn a_loop_of_devices_ends() {
        let links = vec![
            on(2, link(1, "a", Some("vlan"))),
            on(1, link(2, "b", Some("vlan"))),
            port_of(3, link(3, "c", Some("bridge"))),
        ];
        let snapshot = Snapshot { links, ..Snapshot::default() };
        for name in ["a", "b", "c"] {
            let name = name.parse().unwrap();
            assert!(judged_at(&name, &snapshot, &[], &HashSet::new()).is_err());
        }
    }
}
