//! Who reaches a guarded port and who does not, at each hook.

use guard_tests::{
    command,
    lab::{
        BRIDGE, CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR,
        every_address,
    },
    listener::Service,
    machine::Reply,
    on_each_hook,
    product::{Attach, covered},
    wait::until,
    wire,
};

on_each_hook!(an_outsider_meets_silence, [auto, native, generic, tcx, clsact, socket]);
fn an_outsider_meets_silence(attach: Attach) {
    let lab = Lab::new(&format!("an_outsider_meets_silence {attach}"));
    let listener = lab.serve();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let guard = lab.start_guard(attach, "");

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }

    assert_eq!(listener.reached_by().len(), 1, "only the call from before guard was there");
    assert!(guard.counted(attach.hook(), "drop", "no-rule") >= 2, "{:#?}", guard.status());
}

on_each_hook!(an_allowed_source_gets_in_from_its_next_packet);
fn an_allowed_source_gets_in_from_its_next_packet(attach: Attach) {
    let lab = Lab::new(&format!("an_allowed_source_gets_in {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let dropped = guard.counted(attach.hook(), "drop", "no-rule");

    guard.tell(&["allow", "10.77.0.0/24"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    // The call did not have to be repeated.
    assert_eq!(guard.counted(attach.hook(), "drop", "no-rule"), dropped);
    lab.client.expect_silence(SERVER.v6_at(OLLAMA));

    guard.tell(&["allow", "fd77::/64"]);
    lab.client.expect_answer(SERVER.v6_at(OLLAMA));

    for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
        neighbour.expect_silence(server);
    }
    assert!(guard.counted(attach.hook(), "pass", "allowed") > 0, "{:#?}", guard.status());
}

on_each_hook!(a_removed_allow_shuts_out_again);
fn a_removed_allow_shuts_out_again(attach: Attach) {
    let lab = Lab::new(&format!("a_removed_allow_shuts_out_again {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.1"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));

    guard.tell(&["remove", "10.77.0.1"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.rules().is_empty(), "{:#?}", guard.rules());
}

on_each_hook!(the_most_specific_rule_wins);
fn the_most_specific_rule_wins(attach: Attach) {
    let lab = Lab::new(&format!("the_most_specific_rule_wins {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.0/16", "fd77::/48"]);
    guard.tell(&["deny", "10.77.0.0/24", "fd77::/64"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    assert!(guard.counted(attach.hook(), "drop", "denied") >= 2, "{:#?}", guard.status());

    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
}

on_each_hook!(deny_wins_a_tie);
fn deny_wins_a_tie(attach: Attach) {
    let lab = Lab::new(&format!("deny_wins_a_tie {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["deny", "10.77.0.0/24"]);
    guard.tell(&["allow", "10.77.0.0/24"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

on_each_hook!(a_rule_holds_for_the_ports_it_names);
fn a_rule_holds_for_the_ports_it_names(attach: Attach) {
    let lab = Lab::new(&format!("a_rule_holds_for_the_ports_it_names {attach}"));
    let _ollama = lab.serve();
    let _other = lab.listen(&lab.server, Service::Http, every_address(8081));
    let guard = lab.start_guard(attach, "ports = [11434, 8081]");

    guard.tell(&["allow", "10.77.0.0/24"]);
    guard.tell(&["deny", "10.77.0.1", "--port", "8081"]);

    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v4_at(8081));
}

on_each_hook!(other_ports_are_left_alone);
fn other_ports_are_left_alone(attach: Attach) {
    let lab = Lab::new(&format!("other_ports_are_left_alone {attach}"));
    let _ollama = lab.serve();
    let _web = lab.listen(&lab.server, Service::Http, every_address(8080));
    let _echo = lab.listen(&lab.server, Service::Echo, every_address(OLLAMA));
    let guard = lab.start_guard(attach, "");

    for server in SERVER.at(8080) {
        lab.client.expect_answer(server);
    }
    // The same number over UDP is another port.
    for server in SERVER.at(OLLAMA) {
        assert_eq!(lab.client.call_udp(server), Reply::Answered);
    }
    lab.client.expect_refusal(SERVER.v4_at(9));

    let status = guard.status();
    assert!(status.counters.iter().all(|counter| counter.packets == 0), "{status:#?}");
}

on_each_hook!(a_guarded_udp_port_is_closed);
fn a_guarded_udp_port_is_closed(attach: Attach) {
    let lab = Lab::new(&format!("a_guarded_udp_port_is_closed {attach}"));
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let guard = lab.start_guard(attach, "ports = [11434, \"udp/5353\"]");

    for server in SERVER.at(5353) {
        assert_eq!(lab.client.call_udp(server), Reply::Silent);
        assert_eq!(lab.server.call_udp(server), Reply::Answered);
    }
    assert_eq!(listener.reached_by().len(), 2, "the server's own datagrams only");
    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);

    guard.tell(&["allow", "10.77.0.1"]);
    assert_eq!(lab.client.call_udp(SERVER.v4_at(5353)), Reply::Answered);
}

on_each_hook!(the_host_and_its_containers_stay_in);
fn the_host_and_its_containers_stay_in(attach: Attach) {
    let lab = Lab::new(&format!("the_host_and_its_containers_stay_in {attach}"));
    let container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    for own in [SERVER, BRIDGE] {
        for server in own.at(OLLAMA) {
            lab.server.expect_answer(server);
            container.expect_answer(server);
        }
    }
    lab.server.expect_answer(([127, 0, 0, 1], OLLAMA).into());
    lab.server.expect_answer(([0, 0, 0, 0, 0, 0, 0, 1], OLLAMA).into());

    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted("cgroup", "pass", "local") > 0, "{:#?}", guard.status());
}

on_each_hook!(a_service_in_a_container_is_guarded);
fn a_service_in_a_container_is_guarded(attach: Attach) {
    let lab = Lab::new(&format!("a_service_in_a_container_is_guarded {attach}"));
    let container = lab.add_container();
    lab.let_server_forward();
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    lab.client.expect_answer(CONTAINER.v4_at(OLLAMA));
    let guard = lab.start_guard(attach, "");

    for address in CONTAINER.at(OLLAMA) {
        lab.client.expect_silence(address);
        lab.server.expect_answer(address);
    }
    assert_eq!(listener.reached_by().len(), 3, "{:?}", listener.reached_by());

    guard.tell(&["allow", "10.77.0.1"]);
    lab.client.expect_answer(CONTAINER.v4_at(OLLAMA));
}

on_each_hook!(a_denied_container_is_shut_out, [tcx, socket]);
fn a_denied_container_is_shut_out(attach: Attach) {
    let lab = Lab::new(&format!("a_denied_container_is_shut_out {attach}"));
    let container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["deny", "172.30.0.2"]);

    container.expect_silence(BRIDGE.v4_at(OLLAMA));
    container.expect_answer(BRIDGE.v6_at(OLLAMA));
    lab.server.expect_answer(BRIDGE.v4_at(OLLAMA));
    assert!(guard.counted("cgroup", "drop", "denied") > 0, "{:#?}", guard.status());
}

#[test]
fn containers_are_no_local_source_where_only_the_host_is() {
    let lab = Lab::new("containers_are_no_local_source_where_only_the_host_is");
    let container = lab.add_container();
    let _listener = lab.serve();
    let _guard = lab.start_guard(Attach::Tcx, "local = [\"host\"]");

    for server in BRIDGE.at(OLLAMA) {
        container.expect_silence(server);
        lab.server.expect_answer(server);
    }
}

on_each_hook!(a_spoofed_local_source_is_dropped, [native, generic, tcx, clsact]);
fn a_spoofed_local_source_is_dropped(attach: Attach) {
    let lab = Lab::new(&format!("a_spoofed_local_source_is_dropped {attach}"));
    let _container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    // No rule lets a spoofed source in.
    guard.tell(&["allow", "172.30.0.0/24", "10.77.0.0/24", "fd77::/64", "fd30::/64"]);

    let v4 = ["127.0.0.1", "10.77.0.2", "172.30.0.2", "172.30.0.77", "0.0.0.0", "224.0.0.1"];
    let v6 = ["::1", "fd77::2", "fd30::2", "::ffff:10.77.0.1", "::ffff:127.0.0.1", "::", "ff02::1"];
    let wire = lab.wire();
    for source in v4 {
        wire.send(&wire::syn(socket_address(source), SERVER.v4_at(OLLAMA)));
    }
    for source in v6 {
        wire.send(&wire::syn(socket_address(source), SERVER.v6_at(OLLAMA)));
    }

    guard.expect_counted(attach.hook(), "drop", "spoofed", (v4.len() + v6.len()) as u64);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

on_each_hook!(loopback_is_no_destination_from_outside, [native, generic, tcx, clsact]);
fn loopback_is_no_destination_from_outside(attach: Attach) {
    let lab = Lab::new(&format!("loopback_is_no_destination {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64"]);
    // The kernel would let 127.0.0.0/8 in from outside now.
    lab.server.set_sysctl("net/ipv4/conf/eth0/route_localnet", "1");

    let wire = lab.wire();
    let loopback = ["127.0.0.1", "::1"].map(|address| {
        let mut address = socket_address(address);
        address.set_port(OLLAMA);
        address
    });
    for (client, server) in CLIENT.at(4242).into_iter().zip(loopback) {
        wire.send(&wire::syn(client, server));
    }

    guard.expect_counted(attach.hook(), "drop", "spoofed", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(what_is_merely_forwarded_is_other_traffic);
fn what_is_merely_forwarded_is_other_traffic(attach: Attach) {
    let lab = Lab::new(&format!("what_is_merely_forwarded {attach}"));
    let neighbour = lab.add_neighbour();
    lab.let_server_forward();
    // Another machine's service: not in the cgroup that stands for this host.
    let elsewhere = guard_tests::cgroup::mount_point();
    let _theirs = lab.listen_in(&neighbour, Service::Http, every_address(OLLAMA), &elsewhere);
    let guard = lab.start_guard(attach, "");

    for address in NEIGHBOUR.at(OLLAMA) {
        lab.client.expect_answer(address);
    }
    let status = guard.status();
    assert!(status.counters.iter().all(|counter| counter.packets == 0), "{status:#?}");
}

on_each_hook!(forwarded_packets_are_judged_where_it_is_asked_for, [native, generic, tcx, clsact]);
fn forwarded_packets_are_judged_where_it_is_asked_for(attach: Attach) {
    let lab = Lab::new(&format!("forwarded_packets_are_judged {attach}"));
    let neighbour = lab.add_neighbour();
    lab.let_server_forward();
    let elsewhere = guard_tests::cgroup::mount_point();
    let _theirs = lab.listen_in(&neighbour, Service::Http, every_address(OLLAMA), &elsewhere);
    let _guard = lab.start_guard(attach, "forwarded = \"guard\"");

    for address in NEIGHBOUR.at(OLLAMA) {
        lab.client.expect_silence(address);
    }
}

#[test]
fn chosen_interfaces_never_narrow_what_is_guarded() {
    let lab = Lab::new("chosen_interfaces_never_narrow_what_is_guarded");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "interfaces = [\"eth0\"]");

    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted("tcx", "drop", "no-rule") > 0, "{:#?}", guard.status());

    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    assert!(guard.counted("cgroup", "drop", "no-rule") > 0, "{:#?}", guard.status());
}

on_each_hook!(an_interface_that_comes_later_is_covered, [native, generic, tcx, clsact]);
fn an_interface_that_comes_later_is_covered(attach: Attach) {
    let lab = Lab::new(&format!("an_interface_that_comes_later {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let hook =
        guard.status().interfaces.iter().find(|i| i.name == "eth0").and_then(|i| i.hook.clone());
    let hook = hook.unwrap_or_default();

    let neighbour = lab.add_neighbour();
    // Until the NIC's hook is there, the backstop is.
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    until("eth1 is covered too", || covered(&guard.status(), "eth1", &hook));

    let before = guard.counted(attach.hook(), "drop", "no-rule");
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v6_at(OLLAMA));
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > before, "{:#?}", guard.status());
}

on_each_hook!(an_address_that_comes_later_is_guarded, [native, tcx, socket]);
fn an_address_that_comes_later_is_guarded(attach: Attach) {
    let lab = Lab::new(&format!("an_address_that_comes_later {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    lab.server.ip("address add 10.77.0.9/24 dev eth0\n");
    let later = ([10, 77, 0, 9], OLLAMA).into();
    lab.client.ip("neighbour add 10.77.0.9 lladdr 02:00:00:00:77:02 dev eth0 nud permanent\n");
    // Until it has been learnt, the backstop guards it.
    lab.client.expect_silence(later);
    lab.server.expect_answer(later);
    until("the new address is known for this host's own", || {
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        lab.client.expect_silence(later);
        guard.counted(attach.hook(), "drop", "no-rule") > before
    });
}

on_each_hook!(a_priority_tag_is_no_way_in);
fn a_priority_tag_is_no_way_in(attach: Attach) {
    let lab = Lab::new(&format!("a_priority_tag_is_no_way_in {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    let wire = lab.wire();
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        wire.send_tagged(0, &wire::syn(client, server));
    }

    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(fragments_are_no_way_in);
fn fragments_are_no_way_in(attach: Attach) {
    let lab = Lab::new(&format!("fragments_are_no_way_in {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    let wire = lab.wire();
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        for fragment in wire::syn_in_fragments(client, server) {
            wire.send(&fragment);
        }
    }

    // The first fragment holds the ports. What is left of the packet is the backstop's business, and never whole there.
    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);
    if attach != Attach::Socket {
        guard.expect_counted(attach.hook(), "pass", "undecidable", 2);
    }
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(
    malformed_packets_are_dropped_or_left_to_the_backstop,
    [native, generic, tcx, clsact]
);
fn malformed_packets_are_dropped_or_left_to_the_backstop(attach: Attach) {
    let lab = Lab::new(&format!("malformed_packets_are_dropped {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64"]);

    let wire = lab.wire();
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        wire.send(&wire::with_short_tcp_header(wire::syn(client, server)));
    }
    guard.expect_counted(attach.hook(), "drop", "malformed", 2);

    wire.send(&wire::with_short_ipv4_header(wire::syn(CLIENT.v4_at(4243), SERVER.v4_at(OLLAMA))));
    guard.expect_counted(attach.hook(), "pass", "malformed", 1);

    wire.send(&wire::syn(CLIENT.v4_at(4244), SERVER.v4_at(OLLAMA))[..22]);
    guard.expect_counted(attach.hook(), "pass", "undecidable", 1);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(a_transparent_proxy_is_no_way_in, [tcx, socket]);
fn a_transparent_proxy_is_no_way_in(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("a_transparent_proxy_is_no_way_in {attach}"));
    let at_every_v4_address = ([0, 0, 0, 0], OLLAMA).into();
    let listener = lab.listen(&lab.server, Service::HttpTransparent, at_every_v4_address);
    lab.server.nft(
        "table ip divert {\n\
           chain prerouting {\n\
             type filter hook prerouting priority mangle;\n\
             tcp dport 8080 tproxy to :11434 meta mark set 1 accept;\n\
           }\n\
         }\n",
    );
    lab.server.ip("rule add fwmark 1 lookup 100\nroute add local default dev lo table 100\n");
    lab.client.expect_answer(SERVER.v4_at(8080));
    let guard = lab.start_guard(attach, "");

    // The packet says 8080, the socket that takes it is Ollama's.
    lab.client.expect_silence(SERVER.v4_at(8080));
    assert_eq!(listener.reached_by().len(), 1, "only the call from before guard was there");
    assert!(guard.counted("cgroup", "drop", "no-rule") > 0, "{:#?}", guard.status());

    guard.tell(&["allow", "10.77.0.1"]);
    lab.client.expect_answer(SERVER.v4_at(8080));
}

on_each_hook!(a_published_port_is_no_way_in);
fn a_published_port_is_no_way_in(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("a_published_port_is_no_way_in {attach}"));
    let container = lab.add_container();
    lab.let_server_forward();
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    lab.server.nft(
        "table ip publish {\n\
           chain prerouting {\n\
             type nat hook prerouting priority dstnat;\n\
             tcp dport { 8081, 11434 } dnat to 172.30.0.2:11434;\n\
           }\n\
         }\n",
    );
    lab.client.expect_answer(SERVER.v4_at(8081));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let guard = lab.start_guard(attach, "");

    // Published under another number, it is only behind NAT that the packet is for a guarded port.
    lab.client.expect_silence(SERVER.v4_at(8081));
    let behind_nat = if attach == Attach::Socket { "cgroup" } else { "edge" };
    assert!(guard.counted(behind_nat, "drop", "no-rule") > 0, "{:#?}", guard.status());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > 0, "{:#?}", guard.status());
    assert_eq!(listener.reached_by().len(), 2, "only the calls from before guard was there");

    guard.tell(&["allow", "10.77.0.1"]);
    lab.client.expect_answer(SERVER.v4_at(8081));
}

on_each_hook!(an_open_connection_falls_silent, [native, tcx, socket]);
fn an_open_connection_falls_silent(attach: Attach) {
    let lab = Lab::new(&format!("an_open_connection_falls_silent {attach}"));
    let _listener = lab.serve();
    let mut connection = lab.client.connect(SERVER.v4_at(OLLAMA));
    assert!(guard_tests::http::ask(&mut connection).is_ok());

    let guard = lab.guard(attach, "");
    guard.start_with(&["--yes"]);

    let limit = std::time::Duration::from_millis(800);
    assert!(connection.set_read_timeout(Some(limit)).is_ok());
    let asked = guard_tests::http::ask(&mut connection);
    assert!(asked.is_err(), "an open connection was answered after arming");
    until("the message names the peer, and the command that keeps it", || {
        guard.log().contains("guard allow 10.77.0.1")
    });
}

fn socket_address(address: &str) -> std::net::SocketAddr {
    let address: std::net::IpAddr =
        address.parse().unwrap_or_else(|error| panic!("{address} is no address: {error}"));
    (address, 4242).into()
}
