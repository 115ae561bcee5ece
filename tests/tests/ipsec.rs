//! IPsec between client and server. Guard sees ESP, which is not its own, and then what came out of it: of a tunnel at the
//! interface once more, of transport mode at the socket alone.

use std::net::{IpAddr, SocketAddr};

use guard_tests::{
    kernel,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    on_each_hook,
    product::Attach,
};

/// The addresses in a tunnel, as IPv4 and as IPv6.
const INNER_SERVER: [&str; 2] = ["10.91.0.2", "fd91::2"];
const INNER_CLIENT: [&str; 2] = ["10.91.0.1", "fd91::1"];
/// One that server and client both call their own.
const CLAIMED: [&str; 2] = ["10.91.0.9", "fd91::9"];
const INNER: [&str; 2] = ["10.91.0.0/24", "fd91::/64"];

/// Both security associations of a machine's, for each family. The key is no secret.
fn associations(mode: &str) -> String {
    let mut commands = String::new();
    for (server, client) in outer() {
        for (from, to, index) in [(server, client, 1), (client, server, 2)] {
            commands += &format!(
                "xfrm state add src {from} dst {to} proto esp spi {index} mode {mode} \
                 aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128\n"
            );
        }
    }
    commands
}

fn outer() -> [(IpAddr, IpAddr); 2] {
    [(SERVER.v4.into(), CLIENT.v4.into()), (SERVER.v6.into(), CLIENT.v6.into())]
}

/// What goes through the associations, seen from one end: from and to these, as this mode has it.
fn policies(is_server: bool, mode: &str, inner: [(String, String); 2]) -> String {
    let mut commands = String::new();
    let (outwards, inwards) = if is_server { ("out", "in") } else { ("in", "out") };
    for ((server, client), (inner_server, inner_client)) in outer().into_iter().zip(inner) {
        commands += &format!(
            "xfrm policy add dir {outwards} src {inner_server} dst {inner_client} proto 6 tmpl src {server} dst {client} proto esp mode {mode}\n\
             xfrm policy add dir {inwards} src {inner_client} dst {inner_server} proto 6 tmpl src {client} dst {server} proto esp mode {mode}\n"
        );
    }
    commands
}

/// Whether this kernel has what the commands are about.
fn is_set_up(lab: &Lab, test: &str, mode: &str, inner: &[(String, String); 2]) -> bool {
    for (machine, is_server) in [(&lab.server, true), (&lab.client, false)] {
        let commands = associations(mode) + &policies(is_server, mode, inner.clone());
        if let Err(missing) = machine.try_ip(&commands) {
            kernel::skip(test, &format!("this kernel has no IPsec: {missing}"));
            return false;
        }
    }
    true
}

on_each_hook!(what_comes_out_of_an_ipsec_tunnel_is_judged, [auto, native]);
fn what_comes_out_of_an_ipsec_tunnel_is_judged(attach: Attach) {
    let test = format!("what_comes_out_of_an_ipsec_tunnel {attach}");
    let lab = Lab::new(&test);
    let _listener = lab.serve();
    let inner = [0, 1].map(|family| (INNER_SERVER[family].to_owned(), INNER[family].to_owned()));
    if !is_set_up(&lab, &test, "tunnel", &inner) {
        return;
    }
    let servers = INNER_SERVER.map(|address| SocketAddr::new(address.parse().unwrap(), OLLAMA));
    for family in [0, 1] {
        let (server, client) = (INNER_SERVER[family], INNER_CLIENT[family]);
        let (bits, nodad) = if family == 0 { (32, "") } else { (128, "nodad") };
        let claimed = CLAIMED[family];
        lab.server.ip(&format!(
            "address add {server}/{bits} dev lo\naddress add {claimed}/{bits} dev lo\n\
             route add {client}/{bits} via {} dev eth0\n",
            outer()[family].1
        ));
        lab.client.ip(&format!(
            "address add {client}/{bits} dev eth0 {nodad}\naddress add {claimed}/{bits} dev eth0 {nodad}\n"
        ));
    }
    let come_from = |sources: [&str; 2]| {
        for family in [0, 1] {
            let (server, via, source) = (INNER_SERVER[family], outer()[family].0, sources[family]);
            lab.client.ip(&format!("route replace {server} via {via} dev eth0 src {source}\n"));
        }
    };
    come_from(INNER_CLIENT);
    for server in servers {
        lab.client.expect_answer(server);
    }
    let guard = lab.start_guard(attach, "");
    // The interface gives what was in the tunnel to its queueing disciplines once more; XDP has been before.
    let hook = if attach == Attach::Native { "cgroup" } else { attach.hook() };

    for server in servers {
        lab.client.expect_silence(server);
    }
    assert!(guard.counted(hook, "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert_eq!(guard.counted(hook, "drop", "spoofed"), 0);
    guard.tell(&["allow", INNER[0], INNER[1]]);
    for server in servers {
        lab.client.expect_answer(server);
    }

    come_from(CLAIMED);
    for server in servers {
        lab.client.expect_silence(server);
    }
    // An own address as a source of IPv4 is refused by the kernel before any socket.
    let least = if attach == Attach::Native { 1 } else { 2 };
    assert!(guard.counted(hook, "drop", "spoofed") >= least, "{:#?}", guard.status());

    come_from(INNER_CLIENT);
    guard.tell(&["remove", INNER[0], INNER[1]]);
    guard.tell(&["observe", "--for", "1h"]);
    for server in servers {
        lab.client.expect_answer(server);
    }
    assert!(guard.counted(hook, "would-drop", "no-rule") >= 2, "{:#?}", guard.status());
}

on_each_hook!(what_ipsec_only_wraps_is_judged_at_the_socket, [auto, native]);
fn what_ipsec_only_wraps_is_judged_at_the_socket(attach: Attach) {
    let test = format!("what_ipsec_only_wraps {attach}");
    let lab = Lab::new(&test);
    let _listener = lab.serve();
    let inner = outer().map(|(server, client)| (server.to_string(), client.to_string()));
    if !is_set_up(&lab, &test, "transport", &inner) {
        return;
    }
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    let guard = lab.start_guard(attach, "");

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    assert!(guard.counted("cgroup", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert_eq!(guard.counted(attach.hook(), "drop", "no-rule"), 0);

    guard.tell(&["allow", &CLIENT.v4.to_string(), &CLIENT.v6.to_string()]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    guard.tell(&["remove", &CLIENT.v4.to_string(), &CLIENT.v6.to_string()]);
    guard.tell(&["observe", "--for", "1h"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    assert!(guard.counted("cgroup", "would-drop", "no-rule") >= 2, "{:#?}", guard.status());
}
