//! What this host forwards to its guests is judged behind NAT, on its way out to them.

use std::net::SocketAddr;

use guard_tests::{
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, OLLAMA, SERVER, every_address},
    listener::Service,
    machine::Machine,
    on_each_hook,
    product::{Attach, Guard, covered},
    tap::Tap,
    wait::until,
    wire,
};

/// Published for the container's port 11434.
const PUBLISHED: u16 = 8081;

const NOBODY_HERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 9)), OLLAMA);

/// Publishes a guest's Ollama port as another number, as container engines do.
fn publish(server: &Machine, [v4, v6]: [SocketAddr; 2]) {
    server.nft(&format!(
        "table ip published {{
             chain in {{ type nat hook prerouting priority dstnat; tcp dport {PUBLISHED} dnat to {v4}; }}
         }}
         table ip6 published {{
             chain in {{ type nat hook prerouting priority dstnat; tcp dport {PUBLISHED} dnat to {v6}; }}
         }}"
    ));
}

/// Hides every source from the guests on the bridge, as kube-proxy does for a NodePort with the `Cluster` policy.
fn masquerade(server: &Machine) {
    for family in ["ip", "ip6"] {
        server.nft(&format!(
            "table {family} hidden {{
                 chain out {{ type nat hook postrouting priority srcnat; oifname br0 masquerade; }}
             }}"
        ));
    }
}

/// One first packet of each family, from the client to the published port.
fn knock(lab: &Lab, source_port: u16) {
    let wire = lab.wire();
    for (client, server) in CLIENT.at(source_port).into_iter().zip(SERVER.at(PUBLISHED)) {
        wire.send(&wire::syn(client, server));
    }
}

#[track_caller]
fn expect_nothing_at_the_nic(guard: &Guard<'_>, attach: Attach) {
    let status = guard.status();
    let at_the_nic: u64 = status
        .counters
        .iter()
        .filter(|counter| counter.hook == attach.hook())
        .map(|counter| counter.packets)
        .sum();
    assert_eq!(at_the_nic, 0, "the NIC sees another port: {status:#?}");
}

on_each_hook!(a_port_published_as_another_is_judged_at_the_edge, [auto, native, generic, clsact]);
fn a_port_published_as_another_is_judged_at_the_edge(attach: Attach) {
    let lab = Lab::new(&format!("a_port_published_as_another {attach}"));
    let container = lab.add_container();
    lab.let_server_forward();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    lab.client.expect_answer(SERVER.v4_at(PUBLISHED));
    let guard = lab.start_guard(attach, "");
    let way = if attach == Attach::Clsact { "edge clsact" } else { "edge tcx" };
    assert!(covered(&guard.status(), "br0", way), "{:#?}", guard.status());

    knock(&lab, 4242);
    guard.expect_counted("edge", "drop", "no-rule", 2);
    for server in SERVER.at(PUBLISHED) {
        lab.client.expect_silence(server);
    }
    assert_eq!(listener.reached_by().len(), 1, "only the call from before guard was there");
    expect_nothing_at_the_nic(&guard, attach);

    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64"]);
    for server in SERVER.at(PUBLISHED) {
        lab.client.expect_answer(server);
    }
    assert!(guard.counted("edge", "pass", "allowed") > 0, "{:#?}", guard.status());

    guard.tell(&["deny", "10.77.0.1", "fd77::1"]);
    knock(&lab, 4243);
    guard.expect_counted("edge", "drop", "denied", 2);
}

#[test]
fn in_observe_the_edge_only_counts_and_reports_once() {
    let lab = Lab::new("in_observe_the_edge_only_counts_and_reports_once");
    let container = lab.add_container();
    lab.let_server_forward();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    let _listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let guard = lab.start_guard(Attach::Tcx, "mode = \"observe\"");

    let follower = guard.follow();
    knock(&lab, 4242);
    // Each is answered, and the client refuses an answer that it never asked for.
    guard.expect_counted("edge", "would-drop", "no-rule", 4);
    until("both are reported", || follower.attempts().len() == 2);
    let attempts = follower.attempts();
    assert!(attempts.iter().all(|attempt| attempt.hook == "edge"), "{attempts:#?}");
    assert!(attempts.iter().all(|attempt| attempt.port == Some(OLLAMA)), "{attempts:#?}");

    // By its own address the NIC sees the guarded port: the attempt is the NIC's, whatever later hooks see of it.
    let wire = lab.wire();
    for (client, container) in CLIENT.at(4243).into_iter().zip(CONTAINER.at(OLLAMA)) {
        wire.send(&wire::syn(client, container));
    }
    guard.expect_counted("tcx", "would-drop", "no-rule", 4);
    guard.expect_counted("edge", "would-drop", "no-rule", 8);
    // The socket's of the first four, and both later hooks' of the other four.
    until("what later hooks see is counted as repeated", || guard.status().events.repeated == 12);
}

on_each_hook!(a_source_that_nat_has_hidden_is_laundered, [auto, native, clsact]);
fn a_source_that_nat_has_hidden_is_laundered(attach: Attach) {
    let lab = Lab::new(&format!("a_source_that_nat_has_hidden {attach}"));
    let container = lab.add_container();
    lab.let_server_forward();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    masquerade(&lab.server);
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    lab.client.expect_answer(SERVER.v4_at(PUBLISHED));
    assert!(BRIDGE.has(listener.reached_by()[0].ip()), "the service sees the bridge's address");
    let guard = lab.start_guard(attach, "");

    knock(&lab, 4242);
    guard.expect_counted("edge", "drop", "laundered", 2);
    // Nobody can say any more whose packet it is: a rule for the client, or for the bridge, lets nothing in.
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64", "172.30.0.1", "fd30::1"]);
    knock(&lab, 4243);
    guard.expect_counted("edge", "drop", "laundered", 4);
    assert_eq!(listener.reached_by().len(), 1);
    expect_nothing_at_the_nic(&guard, attach);

    // What the host itself sends there came in by no interface.
    for container in CONTAINER.at(OLLAMA) {
        lab.server.expect_answer(container);
    }

    guard.tell(&["observe", "--for", "1h"]);
    knock(&lab, 4244);
    // Each is answered, and the client refuses an answer that it never asked for.
    guard.expect_counted("edge", "would-drop", "laundered", 4);
    lab.client.expect_answer(SERVER.v6_at(PUBLISHED));
}

#[test]
fn a_virtual_machine_without_a_socket_here_is_guarded_at_the_edge() {
    let lab = Lab::new("a_virtual_machine_without_a_socket_here");
    let _container = lab.add_container();
    lab.let_server_forward();
    let tap = Tap::add(&lab.server, "tap0");
    lab.server.ip("link set tap0 master br0\n\
         neighbour add 172.30.0.9 lladdr 02:00:00:00:00:09 dev br0 nud permanent\n\
         neighbour add fd30::9 lladdr 02:00:00:00:00:09 dev br0 nud permanent\n");
    let guest = [NOBODY_HERE, "[fd30::9]:11434".parse().expect("an address")];
    publish(&lab.server, guest);
    knock(&lab, 4241);
    let mut reached = 0;
    until("a knock reaches the guest", || {
        reached += tap.tcp_packets_to(OLLAMA);
        reached == 2
    });
    let guard = lab.start_guard(Attach::Auto, "");

    knock(&lab, 4242);
    guard.expect_counted("edge", "drop", "no-rule", 2);
    assert_eq!(tap.tcp_packets_to(OLLAMA), 0);

    // What can't be decided is nobody else's business here.
    let wire = lab.wire();
    let [tiny, rest] = wire::syn_in_fragments(CLIENT.v4_at(4243), SERVER.v4_at(PUBLISHED));
    wire.send(&tiny);
    wire.send(&rest);
    guard.expect_counted("edge", "drop", "no-rule", 3);
    assert_eq!(tap.tcp_packets_to(OLLAMA), 0);

    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    knock(&lab, 4244);
    let mut reached = 0;
    until("an allowed knock reaches the guest", || {
        reached += tap.tcp_packets_to(OLLAMA);
        reached == 2
    });
}

#[test]
fn a_guest_on_a_device_of_its_own_is_guarded_at_the_edge() {
    let lab = Lab::new("a_guest_on_a_device_of_its_own");
    lab.let_server_forward();
    let tap = Tap::add(&lab.server, "tap0");
    lab.server.ip("route add 192.168.127.9/32 dev tap0\n\
         route add fd31::9/128 dev tap0\n\
         neighbour add 192.168.127.9 lladdr 02:00:00:00:00:09 dev tap0 nud permanent\n\
         neighbour add fd31::9 lladdr 02:00:00:00:00:09 dev tap0 nud permanent\n");
    let guest =
        ["192.168.127.9:11434", "[fd31::9]:11434"].map(|text| text.parse().expect("an address"));
    publish(&lab.server, guest);
    let guard = lab.start_guard(Attach::Auto, "");
    assert!(covered(&guard.status(), "tap0", "edge tcx"), "{:#?}", guard.status());

    knock(&lab, 4242);
    guard.expect_counted("edge", "drop", "no-rule", 2);
    assert_eq!(tap.tcp_packets_to(OLLAMA), 0);
    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    knock(&lab, 4243);
    let mut reached = 0;
    until("an allowed knock reaches the guest", || {
        reached += tap.tcp_packets_to(OLLAMA);
        reached == 2
    });
}

#[test]
fn what_guests_and_the_host_say_to_each_other_passes_the_edge_unseen() {
    let lab = Lab::new("what_guests_and_the_host_say_to_each_other");
    let container = lab.add_container();
    lab.let_server_forward();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    masquerade(&lab.server);
    let _listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let _web = lab.listen(&container, Service::Http, every_address(8080));
    // A second network of the engine's, with a container that calls the first one's published port.
    let other = lab.add_guest("br1", "172.31.0", "fd31:");
    let guard = lab.start_guard(Attach::Auto, "");

    for address in CONTAINER.at(OLLAMA).into_iter().chain(BRIDGE.at(PUBLISHED)) {
        other.expect_answer(address);
    }
    for address in CONTAINER.at(OLLAMA) {
        lab.server.expect_answer(address);
    }
    // Another port of the guest's is nobody's business, whoever calls it.
    for address in CONTAINER.at(8080) {
        lab.client.expect_answer(address);
    }
    let status = guard.status();
    let at_the_edge = status.counters.iter().filter(|counter| counter.hook == "edge");
    assert_eq!(at_the_edge.map(|counter| counter.packets).sum::<u64>(), 0, "{status:#?}");
}

#[test]
fn a_bridge_that_comes_later_gets_its_edge_and_down_takes_it_off() {
    let lab = Lab::new("a_bridge_that_comes_later_gets_its_edge");
    lab.let_server_forward();
    let guard = lab.start_guard(Attach::Auto, "");
    let container = lab.add_container();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    until("the bridge has an edge hook", || covered(&guard.status(), "br0", "edge tcx"));
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    knock(&lab, 4242);
    guard.expect_counted("edge", "drop", "no-rule", 2);

    let explanation = guard.explain("10.77.0.1", "11434");
    let edge = explanation.places.iter().find(|place| place.place == "forwarded to br0");
    let edge = edge.unwrap_or_else(|| panic!("no edge in {explanation:#?}"));
    assert_eq!((edge.hook.as_str(), edge.verdict.as_str()), ("edge", "drop"));

    // The kernel goes on without the daemon.
    guard.kill();
    knock(&lab, 4243);
    guard.expect_counted("edge", "drop", "no-rule", 4);
    guard.start();
    knock(&lab, 4244);
    guard.expect_counted("edge", "drop", "no-rule", 6);

    guard.tell(&["down"]);
    assert_eq!(listener.reached_by().len(), 0);
    for server in SERVER.at(PUBLISHED) {
        lab.client.expect_answer(server);
    }
}

#[test]
fn sockets_only_means_no_edge() {
    let lab = Lab::new("sockets_only_means_no_edge");
    let container = lab.add_container();
    lab.let_server_forward();
    publish(&lab.server, CONTAINER.at(OLLAMA));
    let _listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let guard = lab.start_guard(Attach::Socket, "");
    let status = guard.status();
    assert!(status.interfaces.iter().all(|interface| interface.hook.is_none()), "{status:#?}");

    knock(&lab, 4242);
    guard.expect_counted("cgroup", "drop", "no-rule", 2);
}
