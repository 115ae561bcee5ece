use proptest::prelude::*;

use super::*;

/// A host as `ip link`, `ip address` and `ip route` would set it up.
#[derive(Default)]
struct Host(Snapshot);

impl Host {
    /// With loopback.
    fn new() -> Self {
        let mut host = Self::default();
        host.0.links.push(Link {
            index: 1,
            name: "lo".into(),
            hardware_type: hardware::LOOPBACK,
            up: true,
            ..Link::default()
        });
        host.address("lo", "127.0.0.1/8").address("lo", "::1/128")
    }

    fn add(mut self, name: &str, kind: Option<&str>, change: impl FnOnce(&mut Link)) -> Self {
        let index = u32::try_from(self.0.links.len()).unwrap() + 1;
        let mut link = Link {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            hardware_type: hardware::ETHER,
            up: true,
            carrier: true,
            mtu: 1500,
            ..Link::default()
        };
        change(&mut link);
        self.0.links.push(link);
        self
    }

    fn nic(self, name: &str) -> Self {
        self.add(name, None, |_| {})
    }

    fn kind(self, name: &str, kind: &str) -> Self {
        self.add(name, Some(kind), |_| {})
    }

    fn headerless(self, name: &str, kind: Option<&str>, hardware_type: u16) -> Self {
        self.add(name, kind, |link| link.hardware_type = hardware_type)
    }

    fn above(self, name: &str, kind: &str, lower: &str) -> Self {
        let lower = self.index(lower);
        self.add(name, Some(kind), |link| link.lower = Some(lower))
    }

    /// A veth whose other end is in another namespace, where it happens to have this index.
    fn veth(self, name: &str, peer: u32) -> Self {
        self.add(name, Some("veth"), |link| {
            link.lower = Some(peer);
            link.lower_elsewhere = true;
        })
    }

    fn pair(mut self, left: &str, right: &str) -> Self {
        self = self.kind(left, "veth").kind(right, "veth");
        let (l, r) = (self.index(left), self.index(right));
        self.link(left).lower = Some(r);
        self.link(right).lower = Some(l);
        self
    }

    fn tap(self, name: &str) -> Self {
        self.add(name, Some("tun"), |link| link.is_tap = true)
    }

    fn port_of(mut self, name: &str, master: &str) -> Self {
        let master = self.index(master);
        self.link(name).master = Some(master);
        self
    }

    fn down(mut self, name: &str) -> Self {
        let link = self.link(name);
        (link.up, link.carrier) = (false, false);
        self
    }

    /// The address with its connected route, as the kernel adds it.
    fn address(mut self, name: &str, address: &str) -> Self {
        let (index, net) = (self.index(name), address.parse::<IpNet>().unwrap());
        self.0.addresses.push(Address {
            index,
            address: net.addr(),
            prefix_bits: net.prefix_len(),
            broadcast: None,
        });
        let only_in_local_table = net.addr().is_ipv4() && is_host(&net);
        if self.link(name).up && !only_in_local_table && name != "lo" {
            self = self.route(name, &net.trunc().to_string());
        }
        self
    }

    fn route(mut self, name: &str, destination: &str) -> Self {
        let (index, destination) = (self.index(name), destination.parse().unwrap());
        self.0.routes.push(Route { index, destination, has_gateway: false });
        self
    }

    fn default_route(mut self, name: &str) -> Self {
        let (index, destination) = (self.index(name), "0.0.0.0/0".parse().unwrap());
        self.0.routes.push(Route { index, destination, has_gateway: true });
        self
    }

    fn edit(mut self, name: &str, change: impl FnOnce(&mut Link)) -> Self {
        change(self.link(name));
        self
    }

    fn link(&mut self, name: &str) -> &mut Link {
        self.0.links.iter_mut().find(|link| link.name == name).unwrap()
    }

    fn index(&self, name: &str) -> u32 {
        self.0.links.iter().find(|link| link.name == name).unwrap().index
    }

    /// Classes by name; `?` after the class where it was in doubt.
    #[track_caller]
    fn is(self, expected: &[(&str, &str)]) -> Self {
        let found: Vec<(String, String)> = classify(&self.0)
            .into_iter()
            .filter(|interface| interface.class != Class::Loopback)
            .map(|interface| {
                let doubt = if interface.doubt.is_some() { "?" } else { "" };
                (interface.name, format!("{:?}{doubt}", interface.class))
            })
            .collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, class)| ((*name).into(), (*class).into())).collect();
        assert_eq!(found, expected);
        self
    }

    /// Local sources besides loopback's.
    #[track_caller]
    fn has_local(self, expected: &[&str]) -> Self {
        let found = local_sources(&self.0, &classify(&self.0), true);
        assert_same(found.iter().filter(|net| !net.addr().is_loopback()), expected);
        self
    }

    #[track_caller]
    fn has_lan(self, private: &[&str], global6: &[&str]) {
        let found = lan(&self.0, &classify(&self.0));
        assert_same(&found.private, private);
        assert_same(&found.global6, global6);
    }
}

#[track_caller]
fn assert_same<'a>(found: impl IntoIterator<Item = &'a IpNet>, expected: &[&str]) {
    let mut expected: Vec<IpNet> = expected.iter().map(|net| net.parse().unwrap()).collect();
    expected.sort_unstable();
    assert_eq!(found.into_iter().copied().collect::<Vec<_>>(), expected);
}

#[test]
fn loopback_is_loopback_and_always_local() {
    let host = Host::new();
    let interfaces = classify(&host.0);
    assert_eq!(interfaces[0].class, Class::Loopback);
    assert_same(&local_sources(&host.0, &interfaces, false), &["127.0.0.0/8", "::1/128"]);
    assert_same(&local_sources(&Snapshot::default(), &[], true), &["127.0.0.0/8", "::1/128"]);
}

#[test]
fn own_addresses_talk_over_loopback_unless_there_is_a_vrf() {
    let host = Host::new()
        .nic("eth0")
        .address("eth0", "198.51.100.4/24")
        .address("eth0", "fe80::4/64")
        .address("eth0", "2001:db8::4/64");
    assert_same(&own_by_loopback(&host.0), &["198.51.100.4/32", "2001:db8::4/128"]);
    assert_same(&own_by_loopback(&host.kind("red", "vrf").0), &[]);
}

#[test]
fn laptop_with_two_default_routes() {
    Host::new()
        .nic("eth0")
        .nic("wlan0")
        .address("eth0", "192.168.1.20/24")
        .address("wlan0", "192.168.1.21/24")
        .address("wlan0", "fe80::1:2/64")
        .address("wlan0", "2001:db8:1:2::21/64")
        .default_route("eth0")
        .default_route("wlan0")
        .is(&[("eth0", "Outside"), ("wlan0", "Outside")])
        .has_local(&[
            "192.168.1.20/32",
            "192.168.1.21/32",
            "192.168.1.255/32",
            "2001:db8:1:2::21/128",
        ])
        .has_lan(&["192.168.1.0/24", "fe80::/64"], &["2001:db8:1:2::/64"]);
}

#[test]
fn cloud_machine_with_a_host_address() {
    Host::new()
        .nic("ens4")
        .address("ens4", "10.128.0.9/32")
        .route("ens4", "10.128.0.1/32")
        .address("ens4", "203.0.113.7/24")
        .default_route("ens4")
        .is(&[("ens4", "Outside")])
        .has_local(&["10.128.0.9/32", "203.0.113.7/32", "203.0.113.255/32"])
        .has_lan(&["10.128.0.1/32"], &[]);
}

#[test]
fn docker_with_and_without_containers() {
    Host::new()
        .nic("eth0")
        .address("eth0", "192.168.1.20/24")
        .default_route("eth0")
        .kind("docker0", "bridge")
        .address("docker0", "172.17.0.1/16")
        .kind("br-9f3a", "bridge")
        .address("br-9f3a", "172.18.0.1/16")
        .address("br-9f3a", "fd00:18::1/64")
        .address("br-9f3a", "fe80::1/64")
        .veth("veth12ab", 2)
        .port_of("veth12ab", "br-9f3a")
        .is(&[
            ("eth0", "Outside"),
            ("docker0", "LocalBridge"),
            ("br-9f3a", "LocalBridge"),
            ("veth12ab", "Container"),
        ])
        .has_local(&[
            "192.168.1.20/32",
            "192.168.1.255/32",
            "172.17.0.1/32",
            "172.17.255.255/32",
            "172.17.0.0/16",
            "172.18.0.1/32",
            "172.18.255.255/32",
            "172.18.0.0/16",
            "fd00:18::1/128",
            "fd00:18::/64",
        ])
        .has_lan(&["192.168.1.0/24"], &[]);
}

#[test]
fn containers_are_local_only_when_asked() {
    let host = Host::new().kind("docker0", "bridge").address("docker0", "172.17.0.1/16");
    let found = local_sources(&host.0, &classify(&host.0), false);
    assert_same(&found, &["127.0.0.0/8", "::1/128", "172.17.0.1/32", "172.17.255.255/32"]);
}

#[test]
fn libvirt_with_tap_and_with_its_old_dummy_ports() {
    Host::new()
        .nic("enp3s0")
        .kind("virbr0", "bridge")
        .address("virbr0", "192.168.122.1/24")
        .tap("virbr0-nic")
        .port_of("virbr0-nic", "virbr0")
        .tap("vnet0")
        .port_of("vnet0", "virbr0")
        .kind("virbr1", "bridge")
        .kind("virbr1-nic", "dummy")
        .port_of("virbr1-nic", "virbr1")
        .is(&[
            ("enp3s0", "Outside"),
            ("virbr0", "LocalBridge"),
            ("virbr0-nic", "Container"),
            ("vnet0", "Container"),
            ("virbr1", "LocalBridge"),
            ("virbr1-nic", "Silent"),
        ]);
}

#[test]
fn inside_a_container_the_veth_with_the_default_route_is_outside() {
    Host::new()
        .veth("eth0", 7)
        .address("eth0", "10.0.3.12/24")
        .default_route("eth0")
        .is(&[("eth0", "Outside")])
        .has_local(&["10.0.3.12/32", "10.0.3.255/32"])
        .has_lan(&["10.0.3.0/24"], &[]);
    Host::new().veth("eth0", 7).route("eth0", "::/0").is(&[("eth0", "Outside")]);
    Host::new().veth("eth0", 7).route("eth0", "2000::/3").is(&[("eth0", "Outside")]);
}

#[test]
fn inside_a_container_a_bridge_over_the_veth_is_outside() {
    Host::new()
        .veth("eth0", 7)
        .kind("br0", "bridge")
        .port_of("eth0", "br0")
        .address("br0", "10.0.3.12/24")
        .default_route("br0")
        .is(&[("eth0", "Covered"), ("br0", "Outside?")])
        .has_local(&["10.0.3.12/32", "10.0.3.255/32"])
        .has_lan(&["10.0.3.0/24"], &[]);
}

#[test]
fn inside_a_container_a_macvlan_is_outside() {
    for kind in ["macvlan", "ipvlan", "vlan"] {
        Host::new()
            .above("eth0", kind, "lo")
            .edit("eth0", |link| link.lower_elsewhere = true)
            .is(&[("eth0", "Outside")]);
    }
}

#[test]
fn hypervisor_with_bond_vlan_bridge_and_guests() {
    Host::new()
        .nic("eno1")
        .nic("eno2")
        .kind("bond0", "bond")
        .port_of("eno1", "bond0")
        .port_of("eno2", "bond0")
        .above("bond0.20", "vlan", "bond0")
        .kind("vmbr0", "bridge")
        .port_of("bond0.20", "vmbr0")
        .address("vmbr0", "10.20.0.5/24")
        .default_route("vmbr0")
        .tap("tap100")
        .port_of("tap100", "vmbr0")
        .veth("veth101", 2)
        .port_of("veth101", "vmbr0")
        .is(&[
            ("eno1", "Outside"),
            ("eno2", "Outside"),
            ("bond0", "Covered"),
            ("bond0.20", "Covered"),
            ("vmbr0", "Covered"),
            ("tap100", "Covered?"),
            ("veth101", "Covered?"),
        ])
        .has_local(&["10.20.0.5/32", "10.20.0.255/32"])
        .has_lan(&["10.20.0.0/24"], &[]);
}

#[test]
fn addresses_on_bond_and_vlan_are_the_lan_s() {
    Host::new()
        .nic("eno1")
        .kind("bond0", "bond")
        .port_of("eno1", "bond0")
        .address("bond0", "192.168.7.2/24")
        .above("vlan10", "vlan", "bond0")
        .address("vlan10", "10.10.0.2/16")
        .address("vlan10", "fd12::2/64")
        .has_lan(&["192.168.7.0/24", "10.10.0.0/16", "fd12::/64"], &[]);
}

#[test]
fn calico_node_has_host_routes_to_its_containers() {
    Host::new()
        .nic("eth0")
        .address("eth0", "10.1.0.4/24")
        .default_route("eth0")
        .veth("cali12ab", 3)
        .address("cali12ab", "fe80::ecee:eeff:feee:eeee/64")
        .route("cali12ab", "10.244.9.65/32")
        .route("cali12ab", "fd00:10::41/128")
        .veth("cali34cd", 3)
        .is(&[("eth0", "Outside"), ("cali12ab", "Container"), ("cali34cd", "Outside?")])
        .has_local(&["10.1.0.4/32", "10.1.0.255/32", "10.244.9.65/32", "fd00:10::41/128"])
        .has_lan(&["10.1.0.0/24"], &[]);
}

#[test]
fn own_host_address_on_a_container_veth_does_not_count_as_a_route() {
    Host::new().veth("veth7", 2).address("veth7", "fd00::1/128").is(&[("veth7", "Outside?")]);
    Host::new()
        .veth("veth7", 2)
        .address("veth7", "fd00::1/128")
        .route("veth7", "fd00::5/128")
        .is(&[("veth7", "Container")])
        .has_local(&["fd00::1/128", "fd00::5/128"]);
}

#[test]
fn tap_with_host_routes_leads_to_a_virtual_machine() {
    Host::new()
        .tap("tap0")
        .route("tap0", "192.168.127.9/32")
        .is(&[("tap0", "Container")])
        .has_local(&["192.168.127.9/32"]);
}

#[test]
fn guests_are_reached_last_through_bridges_and_devices_of_their_own() {
    let host = Host::new()
        .nic("eth0")
        .default_route("eth0")
        .kind("docker0", "bridge")
        .address("docker0", "172.17.0.1/16")
        .veth("veth1", 2)
        .port_of("veth1", "docker0")
        .above("docker0.7", "vlan", "docker0")
        .veth("cali12ab", 3)
        .route("cali12ab", "10.244.9.65/32")
        .kind("vrf1", "vrf")
        .veth("cali34cd", 4)
        .route("cali34cd", "10.244.9.66/32")
        .port_of("cali34cd", "vrf1");
    let interfaces = classify(&host.0);
    let named = |choose: fn(&Interface) -> bool| -> Vec<&str> {
        interfaces.iter().filter(|one| choose(one)).map(|one| one.name.as_str()).collect()
    };
    assert_eq!(named(Interface::is_edge), ["docker0", "cali12ab", "cali34cd"]);
    // A bridge's port hands what it receives to the bridge; a VLAN on it hands on by itself.
    assert_eq!(named(Interface::is_inside), ["docker0", "docker0.7", "cali12ab", "cali34cd"]);
}

#[test]
fn flannel_node_has_a_tunnel_and_a_local_bridge() {
    Host::new()
        .nic("eth0")
        .default_route("eth0")
        .above("flannel.1", "vxlan", "eth0")
        .address("flannel.1", "10.42.0.0/32")
        .route("flannel.1", "10.42.1.0/24")
        .kind("cni0", "bridge")
        .address("cni0", "10.42.0.1/24")
        .veth("veth1", 2)
        .port_of("veth1", "cni0")
        .is(&[
            ("eth0", "Outside"),
            ("flannel.1", "Tunnel"),
            ("cni0", "LocalBridge"),
            ("veth1", "Container"),
        ])
        .has_local(&["10.42.0.0/32", "10.42.0.1/32", "10.42.0.255/32", "10.42.0.0/24"])
        .has_lan(&[], &[]);
}

#[test]
fn tunnels_are_tunnels_whatever_their_header() {
    for kind in TUNNEL_KINDS {
        for hardware_type in [hardware::ETHER, 65534] {
            let host = Host::new().headerless("t0", Some(kind), hardware_type);
            let interfaces = classify(&host.0);
            assert_eq!(interfaces[1].class, Class::Tunnel, "{kind}");
            assert_eq!(interfaces[1].is_ethernet, hardware_type == hardware::ETHER);
            assert_eq!(interfaces[1].doubt, None);
        }
    }
}

#[test]
fn vpns_are_tunnels_and_no_lan() {
    Host::new()
        .nic("eth0")
        .headerless("wg0", Some("wireguard"), 65534)
        .address("wg0", "10.8.0.1/24")
        .headerless("tailscale0", Some("tun"), 65534)
        .address("tailscale0", "100.90.1.2/32")
        .address("tailscale0", "fd7a:115c:a1e0::7/128")
        .headerless("ppp0", None, hardware::PPP)
        .route("wg0", "0.0.0.0/1")
        .route("wg0", "128.0.0.0/1")
        .above("wg0.5", "vlan", "wg0")
        .is(&[
            ("eth0", "Outside"),
            ("wg0", "Tunnel"),
            ("tailscale0", "Tunnel"),
            ("ppp0", "Tunnel"),
            ("wg0.5", "Covered"),
        ])
        .has_lan(&[], &[]);
}

#[test]
fn pppoe_over_a_nic() {
    Host::new()
        .nic("eth0")
        .headerless("ppp0", Some("ppp"), hardware::PPP)
        .default_route("ppp0")
        .is(&[("eth0", "Outside"), ("ppp0", "Tunnel")]);
}

#[test]
fn vrf_macvlan_and_vlan_above_a_nic_are_covered() {
    Host::new()
        .nic("eth0")
        .nic("eth1")
        .kind("mgmt", "vrf")
        .port_of("eth1", "mgmt")
        .above("macvlan0", "macvlan", "eth0")
        .above("macvtap0", "macvtap", "eth0")
        .above("ipvlan0", "ipvlan", "eth0")
        .above("eth0.4", "vlan", "eth0")
        .above("eth0.4.5", "vlan", "eth0.4")
        .veth("c0", 2)
        .port_of("c0", "mgmt")
        .route("c0", "10.9.9.9/32")
        .is(&[
            ("eth0", "Outside"),
            ("eth1", "Outside"),
            ("mgmt", "Covered"),
            ("macvlan0", "Covered"),
            ("macvtap0", "Covered"),
            ("ipvlan0", "Covered"),
            ("eth0.4", "Covered"),
            ("eth0.4.5", "Covered"),
            ("c0", "Container"),
        ]);
}

#[test]
fn what_stands_on_something_inside_is_inside() {
    Host::new()
        .kind("docker0", "bridge")
        .above("docker0.7", "vlan", "docker0")
        .address("docker0.7", "172.30.7.1/24")
        .kind("dummy0", "dummy")
        .above("dummy0.7", "vlan", "dummy0")
        .is(&[
            ("docker0", "LocalBridge"),
            ("docker0.7", "LocalBridge"),
            ("dummy0", "Silent"),
            ("dummy0.7", "Silent"),
        ])
        .has_local(&["172.30.7.1/32", "172.30.7.255/32", "172.30.7.0/24"]);
}

#[test]
fn laboratory_veth_is_outside_and_said() {
    Host::new()
        .veth("lab0", 2)
        .address("lab0", "10.99.0.1/24")
        .is(&[("lab0", "Outside?")])
        .has_local(&["10.99.0.1/32", "10.99.0.255/32"]);
    Host::new().headerless("nk0", Some("netkit"), 65534).is(&[("nk0", "Outside?")]);
}

#[test]
fn free_standing_tap_is_outside_and_said() {
    Host::new().tap("tap0").is(&[("tap0", "Outside?")]);
}

#[test]
fn bridge_with_a_default_route_or_a_port_of_another_kind_is_not_local() {
    Host::new()
        .kind("br0", "bridge")
        .address("br0", "10.1.0.1/24")
        .default_route("br0")
        .is(&[("br0", "Outside?")])
        .has_local(&["10.1.0.1/32", "10.1.0.255/32"]);
    Host::new()
        .nic("eth0")
        .kind("br0", "bridge")
        .port_of("eth0", "br0")
        .address("br0", "10.1.0.1/24")
        .is(&[("eth0", "Outside"), ("br0", "Covered")])
        .has_local(&["10.1.0.1/32", "10.1.0.255/32"]);
    Host::new()
        .kind("vxlan7", "vxlan")
        .kind("br0", "bridge")
        .port_of("vxlan7", "br0")
        .address("br0", "10.1.0.1/24")
        .is(&[("vxlan7", "Tunnel"), ("br0", "Covered")])
        .has_local(&["10.1.0.1/32", "10.1.0.255/32"])
        .has_lan(&[], &[]);
    Host::new()
        .kind("docker0", "bridge")
        .above("docker0.7", "vlan", "docker0")
        .kind("br0", "bridge")
        .port_of("docker0.7", "br0")
        .is(&[("docker0", "LocalBridge"), ("docker0.7", "LocalBridge"), ("br0", "Outside?")]);
}

#[test]
fn bridge_joined_to_an_open_one_is_not_local() {
    Host::new()
        .nic("eth0")
        .kind("br0", "bridge")
        .port_of("eth0", "br0")
        .kind("br1", "bridge")
        .kind("br2", "bridge")
        .pair("a0", "a1")
        .port_of("a0", "br0")
        .port_of("a1", "br1")
        .pair("b0", "b1")
        .port_of("b0", "br1")
        .port_of("b1", "br2")
        .is(&[
            ("eth0", "Outside"),
            ("br0", "Covered"),
            ("br1", "Outside?"),
            ("br2", "Outside?"),
            ("a0", "Covered?"),
            ("a1", "Covered"),
            ("b0", "Covered"),
            ("b1", "Covered"),
        ]);
    Host::new()
        .kind("br1", "bridge")
        .kind("br2", "bridge")
        .pair("b0", "b1")
        .port_of("b0", "br1")
        .port_of("b1", "br2")
        .is(&[
            ("br1", "LocalBridge"),
            ("br2", "LocalBridge"),
            ("b0", "Container"),
            ("b1", "Container"),
        ]);
}

#[test]
fn open_vswitch_and_other_unknown_kinds_are_outside_and_said() {
    Host::new()
        .nic("eth0")
        .kind("ovs-system", "openvswitch")
        .port_of("eth0", "ovs-system")
        .tap("vnet0")
        .port_of("vnet0", "ovs-system")
        .headerless("odd0", Some("odd"), 65534)
        .headerless("odd1", None, 9999)
        .is(&[
            ("eth0", "Outside"),
            ("ovs-system", "Outside?"),
            ("vnet0", "Covered?"),
            ("odd0", "Tunnel?"),
            ("odd1", "Tunnel?"),
        ]);
}

#[test]
fn infiniband_and_cellular_are_outside_without_an_ethernet_header() {
    for (kind, hardware_type) in
        [(None, hardware::INFINIBAND), (Some("ipoib"), 32), (None, 519), (Some("wwan"), 519)]
    {
        let interfaces = classify(&Host::new().headerless("x0", kind, hardware_type).0);
        assert_eq!(interfaces[1].class, Class::Outside);
        assert!(!interfaces[1].is_ethernet);
    }
}

#[test]
fn a_tunnel_to_a_program_has_no_ethernet_header_whatever_its_type() {
    let is_ethernet = |host: Host| classify(&host.0)[1].is_ethernet;
    assert!(is_ethernet(Host::new().tap("x0")));
    assert!(!is_ethernet(Host::new().kind("x0", "tun")));
}

#[test]
fn nothing_arrives_on_these() {
    for kind in ["can", "dummy", "ifb", "nlmon", "vcan", "vsockmon", "vxcan"] {
        Host::new().kind("x0", kind).is(&[("x0", "Silent")]);
    }
    for hardware_type in [hardware::CAN, hardware::NETLINK, hardware::IEEE80211_RADIOTAP] {
        Host::new().headerless("x0", None, hardware_type).is(&[("x0", "Silent")]);
    }
}

#[test]
fn interface_that_is_down_keeps_its_class() {
    let host = Host::new().nic("eth0").down("eth0").address("eth0", "192.168.1.2/24");
    let interfaces = classify(&host.0);
    assert_eq!(interfaces[1].class, Class::Outside);
    assert!(!interfaces[1].up && !interfaces[1].carrier);
    host.has_local(&["192.168.1.2/32", "192.168.1.255/32"]).has_lan(&[], &[]);
}

#[test]
fn lower_device_or_master_that_is_missing_leaves_it_outside() {
    Host::new()
        .add("vlan9", Some("vlan"), |link| link.lower = Some(99))
        .add("veth9", Some("veth"), |link| link.master = Some(99))
        .is(&[("vlan9", "Outside?"), ("veth9", "Outside?")]);
}

#[test]
fn impossible_loops_end() {
    Host::new()
        .kind("a", "vlan")
        .above("b", "vlan", "a")
        .edit("a", |link| link.lower = Some(3))
        .is(&[("a", "Covered"), ("b", "Covered")])
        .has_lan(&[], &[]);
    Host::new()
        .kind("br0", "bridge")
        .veth("v0", 9)
        .port_of("v0", "br0")
        .above("v0.5", "vlan", "v0")
        .port_of("v0.5", "br0")
        .is(&[("br0", "Covered"), ("v0", "Covered?"), ("v0.5", "Covered")]);
}

#[test]
fn wide_shared_and_link_local_subnets_of_bridges_are_not_local() {
    for address in ["10.0.0.1/8", "172.16.0.1/11", "169.254.9.1/16", "fd00::1/47", "fe80::1/64"] {
        let host = Host::new().kind("br0", "bridge").address("br0", address);
        let found = local_sources(&host.0, &classify(&host.0), true);
        assert!(found.iter().all(|net| is_host(net) || net.addr().is_loopback()), "{found:?}");
    }
    for address in ["10.0.0.1/12", "fd00::1/48"] {
        let subnet = address.parse::<IpNet>().unwrap().trunc();
        let host = Host::new().kind("br0", "bridge").address("br0", address);
        assert!(local_sources(&host.0, &classify(&host.0), true).contains(&subnet));
    }
}

#[test]
fn lan_inside_a_bridge_s_subnet_is_cut_out_of_it() {
    Host::new()
        .nic("eth0")
        .address("eth0", "192.168.1.20/24")
        .kind("br0", "bridge")
        .address("br0", "192.168.0.1/22")
        .has_local(&[
            "192.168.1.20/32",
            "192.168.1.255/32",
            "192.168.0.1/32",
            "192.168.3.255/32",
            "192.168.0.0/24",
            "192.168.2.0/23",
        ]);
    // The same subnet on both sides: in doubt, outside.
    Host::new()
        .nic("eth0")
        .address("eth0", "192.168.1.20/24")
        .kind("br0", "bridge")
        .address("br0", "192.168.1.1/24")
        .has_local(&["192.168.1.20/32", "192.168.1.255/32", "192.168.1.1/32"]);
    // A wider LAN around the bridge's subnet: the bridge's route is the more specific.
    Host::new()
        .nic("eth0")
        .address("eth0", "10.0.0.20/8")
        .kind("br0", "bridge")
        .address("br0", "10.5.0.1/16")
        .has_local(&[
            "10.0.0.20/32",
            "10.255.255.255/32",
            "10.5.0.1/32",
            "10.5.255.255/32",
            "10.5.0.0/16",
        ]);
}

#[test]
fn broadcast_addresses_as_set_and_as_derived() {
    let mut host = Host::new().nic("eth0").address("eth0", "10.0.0.2/31");
    host.0.addresses.push(Address {
        index: 2,
        address: "10.3.0.4".parse().unwrap(),
        prefix_bits: 24,
        broadcast: Some("10.3.255.255".parse().unwrap()),
    });
    host.has_local(&["10.0.0.2/32", "10.3.0.4/32", "10.3.0.255/32", "10.3.255.255/32"]);
}

#[test]
fn private_and_global_prefixes() {
    for prefix in ["10.0.0.0/8", "172.31.0.0/16", "169.254.0.0/16", "fd00::/8", "fe80::/64"] {
        assert!(is_private(&prefix.parse().unwrap()), "{prefix}");
    }
    for prefix in ["10.0.0.0/7", "172.0.0.0/8", "100.64.0.0/10", "0.0.0.0/0", "::/0", "f000::/4"] {
        assert!(!is_private(&prefix.parse().unwrap()), "{prefix}");
    }
    for (prefix, is) in [("2001:db8::/64", true), ("2001:db8::/63", false), ("fd00::/64", false)] {
        assert_eq!(is_global6(&prefix.parse().unwrap()), is, "{prefix}");
    }
}

proptest! {
    #[test]
    fn cutting_out_leaves_exactly_the_rest(
        bits in 8u8..=32,
        holes in proptest::collection::vec((any::<u8>(), any::<u8>(), 20u8..=32), 0..6),
        probes in proptest::collection::vec(any::<u16>(), 32),
    ) {
        let net = |c, d, bits| {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 1, c, d), bits).unwrap().trunc())
        };
        let prefix = net(0, 0, bits);
        let holes: Vec<IpNet> = holes.into_iter().map(|(c, d, bits)| net(c, d, bits)).collect();
        let rest = without(prefix, &holes);
        for probe in probes {
            let [c, d] = probe.to_be_bytes();
            let address = IpAddr::V4(Ipv4Addr::new(10, 1, c, d));
            let in_hole = holes.iter().any(|h| prefix.contains(h) && h.contains(&address));
            let times = rest.iter().filter(|net| net.contains(&address)).count();
            prop_assert_eq!(times, usize::from(prefix.contains(&address) && !in_hole));
        }
    }

    /// Whatever netlink says, classifying ends, names each link once, and never takes hardware for silent.
    #[test]
    fn any_snapshot_is_classified(
        links in proptest::collection::vec(
            (
                proptest::sample::select(vec![
                    "", "bridge", "veth", "vlan", "bond", "tun", "macvlan", "vrf", "vxlan", "odd",
                ]),
                proptest::option::of(0u32..12),
                proptest::option::of(0u32..12),
                any::<bool>(),
                any::<bool>(),
            ),
            0..12,
        ),
        routes in proptest::collection::vec((0u32..12, 0u8..=32, any::<bool>()), 0..12),
    ) {
        let links = links.into_iter().zip(0..).map(
            |((kind, master, lower, lower_elsewhere, is_tap), index)| Link {
                index,
                name: format!("if{index}"),
                kind: Some(kind.to_owned()).filter(|kind| !kind.is_empty()),
                hardware_type: hardware::ETHER,
                master,
                lower,
                lower_elsewhere,
                is_tap,
                ..Link::default()
            },
        );
        let routes = routes.into_iter().map(|(index, bits, has_gateway)| Route {
            index,
            destination: IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 2, 3, 4), bits).unwrap()),
            has_gateway,
        });
        let snapshot =
            Snapshot { links: links.collect(), routes: routes.collect(), ..Snapshot::default() };
        let interfaces = classify(&snapshot);
        prop_assert_eq!(interfaces.len(), snapshot.links.len());
        for (interface, link) in interfaces.iter().zip(&snapshot.links) {
            prop_assert_eq!(interface.index, link.index);
            if link.kind.is_none() {
                prop_assert_eq!(interface.class, Class::Outside);
            }
        }
        prop_assert!(lan(&snapshot, &interfaces).global6.is_empty());
    }
}
