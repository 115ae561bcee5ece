//! Ways into a socket that a NIC's hook does not see, or that look different there: the backstop is behind all of them.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream},
};

use guard_tests::{
    bpf, cgroup, command, http,
    lab::{CLIENT, Lab, NEIGHBOUR, OLLAMA, SERVER, every_address},
    listener::Service,
    machine::{Machine, Reply},
    on_each_hook,
    product::Attach,
    rows::{self, Counts, Row},
    wait::{PATIENCE, until},
    wire::{self, Shape},
};
use socket2::{Domain, Protocol, Socket, Type};

fn plain() -> Shape {
    Box::new(|packet| vec![wire::plain(packet)])
}

on_each_hook!(syn_cookies_are_for_nobody_else);
fn syn_cookies_are_for_nobody_else(attach: Attach) {
    // Never, and always.
    for cookies in ["0", "2"] {
        let lab = Lab::new(&format!("syn_cookies {cookies} {attach}"));
        lab.server.set_sysctl("net/ipv4/tcp_syncookies", cookies);
        let listener = lab.serve();
        let guard = lab.start_guard(attach, "");
        let rows = SERVER.at(OLLAMA).map(|to| Row::plain(format!("tcp_syncookies={cookies}"), to));
        rows::check(&lab, &guard, attach, &listener, &rows);
    }
}

on_each_hook!(fast_open_carries_nothing_in);
fn fast_open_carries_nothing_in(attach: Attach) {
    let lab = Lab::new(&format!("fast_open_carries_nothing_in {attach}"));
    // For servers, without a cookie, at every listener (`TFO_SERVER_*` of include/net/tcp.h).
    lab.server.set_sysctl("net/ipv4/tcp_fastopen", &(0x2 | 0x200 | 0x400).to_string());
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let rows = SERVER.at(OLLAMA).map(|to| Row::plain("a question in the SYN", to).fast_open());
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(a_listener_with_several_paths_is_guarded);
fn a_listener_with_several_paths_is_guarded(attach: Attach) {
    let lab = Lab::new(&format!("several_paths {attach}"));
    let listener = lab.listen(&lab.server, Service::HttpMultipath, every_address(OLLAMA));
    let guard = lab.start_guard(attach, "");
    let rows: Vec<_> = SERVER
        .at(OLLAMA)
        .into_iter()
        .flat_map(|to| [Row::plain("a single path", to), Row::plain("several", to).multipath()])
        .collect();
    rows::check(&lab, &guard, attach, &listener, &rows);

    // The real thing, from the first packet to the last.
    guard.tell(&["enforce"]);
    let wire = lab.wire();
    for (number, to) in SERVER.at(OLLAMA).into_iter().enumerate() {
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        wire.send(&wire::joining(outsider(to), to));
        guard.expect_counted(attach.hook(), "drop", "no-rule", before + 1);
        lab.client.expect_silence(to);
        guard.tell(&["allow", &CLIENT.at(0)[number].ip().to_string()]);
        let passed = guard.counted("cgroup", "pass", "allowed");
        let before = multipath_connections(&lab.server);
        let mut stream = lab.client.inside(|| connect_multipath(to));
        http::ask(&mut stream).expect("an allowed client is answered");
        assert_eq!(multipath_connections(&lab.server), before + 1, "it has fallen back to TCP");
        assert!(guard.counted("cgroup", "pass", "allowed") > passed, "{:#?}", guard.status());
    }
}

fn connect_multipath(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP));
    let socket = socket.expect("this kernel has Multipath TCP");
    socket.connect_timeout(&to.into(), PATIENCE).expect("an allowed client connects");
    socket.set_read_timeout(Some(PATIENCE)).expect("patience is bounded");
    socket.into()
}

/// Connections of Multipath TCP that have come in (`MPCapableACKRX` of net/mptcp/mib.c).
fn multipath_connections(machine: &Machine) -> u64 {
    let counters = machine.inside(|| fs::read_to_string("/proc/thread-self/net/netstat"));
    let counters = counters.expect("the kernel counts");
    let lines: Vec<_> = counters.lines().filter(|line| line.starts_with("MPTcpExt:")).collect();
    let [names, values] = lines.as_slice() else { panic!("no MPTcpExt: {counters}") };
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "MPCapableACKRX");
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.unwrap_or_else(|| panic!("no MPCapableACKRX: {counters}"))
}

fn outsider(to: SocketAddr) -> SocketAddr {
    if to.is_ipv4() {
        (wire::stranger_v4(77), 4242).into()
    } else {
        (wire::stranger_v6(77), 4242).into()
    }
}

/// Has the server translate what this rule names, before it is routed.
fn redirect(lab: &Lab, rule: &str) {
    lab.server.nft(&format!(
        "table inet elsewhere {{\n\
           chain prerouting {{\n\
             type nat hook prerouting priority dstnat;\n\
             {rule};\n\
           }}\n\
         }}\n"
    ));
}

on_each_hook!(a_redirected_port_is_no_way_in);
fn a_redirected_port_is_no_way_in(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("a_redirected_port_is_no_way_in {attach}"));
    let listener = lab.serve();
    redirect(&lab, "tcp dport 8080 redirect to :11434");
    let guard = lab.start_guard(attach, "");
    // It is only at the socket that the packet is for a guarded port.
    let rows = SERVER.at(8080).map(|to| Row::plain("redirected", to).at_the_nic(0, 0));
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(a_socket_that_is_looked_up_is_guarded);
fn a_socket_that_is_looked_up_is_guarded(attach: Attach) {
    let lab = Lab::new(&format!("looked_up {attach}"));
    let listener = lab.listen(&lab.server, Service::Http, every_address(OLLAMA));
    let _diverted = bpf::look_up(&lab.server, 8080, &listener);
    let guard = lab.start_guard(attach, "");
    let rows = SERVER.at(8080).map(|to| Row::plain("looked up", to).at_the_nic(0, 0));
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(an_own_address_from_outside_is_spoofed_at_the_socket_too);
fn an_own_address_from_outside_is_spoofed_at_the_socket_too(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("an_own_address_from_outside {attach}"));
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    // A NIC's hook sees another port than the guarded one.
    redirect(&lab, "udp dport 8080 redirect to :5353");
    // The kernel would not take such a source of IPv4; of IPv6 it takes it.
    for interface in ["all", "eth0"] {
        lab.server.set_sysctl(&format!("net/ipv4/conf/{interface}/accept_local"), "1");
        lab.server.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
    }
    let guard = lab.start_guard(attach, "ports = [\"udp/5353\"]");
    let wire = lab.wire();
    let send = || {
        for to in SERVER.at(8080) {
            wire.send(&wire::datagram(SocketAddr::new(to.ip(), 4242), to));
        }
    };
    send();
    guard.expect_counted("cgroup", "drop", "spoofed", 2);
    assert_eq!(listener.reached_by(), []);

    // This host itself calls by loopback.
    for to in SERVER.at(5353) {
        assert_eq!(lab.server.call_udp(to), Reply::Answered, "{to}");
    }
    guard.tell(&["observe"]);
    send();
    guard.expect_counted("cgroup", "would-drop", "spoofed", 2);
    // Beside the two calls of the host's own.
    until("they have come through", || listener.reached_by().len() == 4);
}

on_each_hook!(a_raw_socket_beside_changes_nothing);
fn a_raw_socket_beside_changes_nothing(attach: Attach) {
    let lab = Lab::new(&format!("a_raw_socket_beside {attach}"));
    let listener = lab.listen(&lab.server, Service::Http, every_address(OLLAMA));
    let beside = [([0, 0, 0, 0], 0).into(), every_address(0)]
        .map(|address| lab.listen(&lab.server, Service::Raw, address));
    let guard = lab.start_guard(attach, "");
    // Counted to the packet: the copies are not.
    let rows = SERVER.at(OLLAMA).map(|to| Row::plain("beside a raw socket", to));
    rows::check(&lab, &guard, attach, &listener, &rows);
    assert!(beside.iter().all(|raw| !raw.reached_by().is_empty()), "they got copies");
}

on_each_hook!(datagrams_to_connected_sockets_are_judged);
fn datagrams_to_connected_sockets_are_judged(attach: Attach) {
    let lab = Lab::new(&format!("datagrams {attach}"));
    let unconnected = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let guard = lab.start_guard(attach, "ports = [11434, \"udp/5353\"]");
    let rows = SERVER.at(5353).map(|to| Row::plain("a datagram", to).udp());
    rows::check(&lab, &guard, attach, &unconnected, &rows);
    drop(unconnected);

    guard.tell(&["enforce"]);
    let wire = lab.wire();
    for to in SERVER.at(5353) {
        let peer = outsider(to);
        let connected = lab.listen(&lab.server, Service::EchoTo(peer), to);
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        wire.send(&wire::datagram(peer, to));
        guard.expect_counted(attach.hook(), "drop", "no-rule", before + 1);
        assert_eq!(connected.reached_by(), []);
        guard.tell(&["allow", &peer.ip().to_string()]);
        assert!(wire.call_at_once(&wire::datagram(peer, to), peer, to, &plain()));
        assert_eq!(connected.reached_by(), [peer]);
    }
}

on_each_hook!(a_connection_that_is_not_open_yet_is_not_let_in);
fn a_connection_that_is_not_open_yet_is_not_let_in(attach: Attach) {
    let lab = Lab::new(&format!("not_open_yet {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let wire = lab.wire();
    for to in SERVER.at(OLLAMA) {
        let from = outsider(to);
        let source = from.ip().to_string();
        guard.tell(&["allow", &source]);
        let number = wire.greet(&wire::opening(from, to), from, to, &plain());
        let number = number.expect("an allowed source is welcomed");
        guard.tell(&["remove", &source]);
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        wire.send(&wire::asking(from, to, number));
        guard.expect_counted(attach.hook(), "drop", "no-rule", before + 1);
    }
    assert_eq!(listener.reached_by(), []);
}

on_each_hook!(a_closed_connection_is_not_opened_again, [tcx, socket]);
fn a_closed_connection_is_not_opened_again(attach: Attach) {
    let lab = Lab::new(&format!("not_opened_again {attach}"));
    let guard = lab.start_guard(attach, "");
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        guard.tell(&["allow", &client.ip().to_string()]);
        let first = lab.serve();
        let mut stream = lab.client.inside(|| connect_from(client, server, PATIENCE));
        let stream = stream.as_mut().expect("an allowed source connects");
        http::ask(stream).expect("and is answered");
        // Who closes first keeps the connection in mind.
        drop(first);
        assert_eq!(stream.read(&mut [0; 16]).expect("the server closes"), 0);
        let closed = stream.shutdown(std::net::Shutdown::Both);
        closed.expect("the client closes too");
        until("the connection is in TIME_WAIT", || lab.server.remembered_connections(OLLAMA) > 0);

        let again = lab.serve();
        guard.tell(&["remove", &client.ip().to_string()]);
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        let limit = std::time::Duration::from_millis(800);
        let refused = lab.client.inside(|| connect_from(client, server, limit));
        assert!(refused.is_err(), "an outsider got through");
        assert!(guard.counted(attach.hook(), "drop", "no-rule") > before, "{:#?}", guard.status());
        assert_eq!(again.reached_by(), []);

        guard.tell(&["allow", &client.ip().to_string()]);
        let stream = lab.client.inside(|| connect_from(client, server, PATIENCE));
        http::ask(&mut stream.expect("an allowed source connects again")).expect("and is answered");
        guard.tell(&["remove", &client.ip().to_string()]);
    }
}

fn connect_from(
    from: SocketAddr,
    to: SocketAddr,
    limit: std::time::Duration,
) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), limit)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Whoever made the socket, and wherever: at the root of the tree it is judged all the same.
#[test]
fn a_socket_is_guarded_whoever_made_it() {
    for service in [Service::HttpMadeBefore, Service::HttpInherited, Service::HttpMultipath] {
        let lab = Lab::alone(&format!("whoever_made_it {service:?}"));
        let listener = lab.listen(&lab.server, service, every_address(OLLAMA));
        let guard = lab.guard(Attach::Socket, "").at_the_root("");
        guard.start();
        let rows = SERVER.at(OLLAMA).map(|to| Row::plain(format!("{service:?}"), to));
        rows::check(&lab, &guard, Attach::Socket, &listener, &rows);
    }
}

on_each_hook!(services_of_others_are_left_alone);
fn services_of_others_are_left_alone(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("services_of_others {attach}"));
    let neighbour = lab.add_neighbour();
    let container = lab.add_container();
    lab.let_server_forward();
    masquerade(&lab, "");
    // Not in the cgroup that stands for this host.
    let elsewhere = cgroup::mount_point();
    let theirs = lab.listen_in(&lab.client, Service::Http, every_address(OLLAMA), &elsewhere);
    let guard = lab.start_guard(attach, "");

    for to in CLIENT.at(OLLAMA) {
        lab.server.expect_answer(to);
        container.expect_answer(to);
        neighbour.expect_answer(to);
    }
    let callers: Vec<_> = theirs.reached_by().iter().map(SocketAddr::ip).collect();
    for (number, own) in SERVER.at(0).into_iter().enumerate() {
        let neighbour = NEIGHBOUR.at(0)[number];
        // The container's calls come from the server.
        assert_eq!(callers[3 * number..][..3], [own.ip(), own.ip(), neighbour.ip()]);
    }
    assert_eq!(rows::counts(&guard), Counts::new());
}

/// What leaves the server for the client from a container, as if it were the server's own; `to` may say from which port.
fn masquerade(lab: &Lab, to: &str) {
    lab.server.nft(&format!(
        "table inet hide {{\n\
           chain postrouting {{\n\
             type nat hook postrouting priority srcnat;\n\
             ip saddr 172.30.0.0/24 meta l4proto tcp masquerade {to};\n\
             ip6 saddr fd30::/64 meta l4proto tcp masquerade {to};\n\
           }}\n\
         }}\n"
    ));
}

/// The limit that the README states: at the NIC nothing tells the replies to such a connection from attempts.
#[test]
fn replies_to_a_masqueraded_guarded_port_need_a_rule() {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new("replies_to_a_masqueraded_guarded_port");
    let container = lab.add_container();
    lab.let_server_forward();
    masquerade(&lab, "to :11434");
    let elsewhere = cgroup::mount_point();
    let theirs = lab.listen_in(&lab.client, Service::Http, every_address(8080), &elsewhere);
    let guard = lab.start_guard(Attach::Tcx, "");
    for (number, to) in CLIENT.at(8080).into_iter().enumerate() {
        container.expect_silence(to);
        assert!(guard.counted("tcx", "drop", "no-rule") > 0, "{:#?}", guard.status());
        guard.tell(&["allow", &to.ip().to_string()]);
        container.expect_answer(to);
        assert_eq!(theirs.reached_by().last(), Some(&SERVER.at(OLLAMA)[number]));
    }
    guard.tell(&["remove", "10.77.0.1", "fd77::1"]);
    guard.tell(&["down"]);
    guard.wait_for_end();

    // The backstop has nothing to do with them. From the same port to the same place NAT would not let another connection leave.
    let _more_of_theirs =
        lab.listen_in(&lab.client, Service::Http, every_address(8081), &elsewhere);
    let guard = lab.start_guard(Attach::Socket, "");
    for to in CLIENT.at(8081) {
        container.expect_answer(to);
    }
    assert_eq!(rows::counts(&guard), Counts::new());
}
