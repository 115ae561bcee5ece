//! The lab itself, without a guard: what the other tests find stopped does arrive here.

use std::{fs, net::SocketAddr, path::Path};

use guard_tests::{
    cgroup,
    lab::{
        BRIDGE, CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR,
        every_address,
    },
    listener::Service,
    machine::Reply,
    wait::until,
    wire,
};

#[test]
fn everyone_reaches_an_unguarded_server() {
    let lab = Lab::new("everyone_reaches_an_unguarded_server");
    let neighbour = lab.add_neighbour();
    let container = lab.add_container();
    let listener = lab.serve();

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
        lab.server.expect_answer(server);
        container.expect_answer(server);
    }
    for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
        neighbour.expect_answer(server);
    }
    for server in BRIDGE.at(OLLAMA) {
        container.expect_answer(server);
    }

    let callers = listener.reached_by();
    assert_eq!(callers.len(), 10, "{callers:?}");
    for machine in [CLIENT, SERVER, NEIGHBOUR, CONTAINER] {
        let calls = callers.iter().filter(|caller| machine.has(caller.ip())).count();
        assert!(calls >= 2, "{machine:?} is not among {callers:?}");
    }
}

#[test]
fn packets_are_forwarded_once_they_may_be() {
    let lab = Lab::new("packets_are_forwarded_once_they_may_be");
    let neighbour = lab.add_neighbour();
    let container = lab.add_container();
    let _at_the_neighbour = lab.listen(&neighbour, Service::Http, every_address(OLLAMA));
    let _in_the_container = lab.listen(&container, Service::Http, every_address(OLLAMA));

    lab.client.expect_silence(NEIGHBOUR.v4_at(OLLAMA));
    lab.let_server_forward();
    for address in NEIGHBOUR.at(OLLAMA).into_iter().chain(CONTAINER.at(OLLAMA)) {
        lab.client.expect_answer(address);
    }
}

#[test]
fn replies_tell_a_closed_port_from_a_silent_one() {
    let lab = Lab::new("replies_tell_a_closed_port_from_a_silent_one");
    lab.client.expect_refusal(SERVER.v4_at(OLLAMA));
    // Nobody has this address: the server's answer goes nowhere.
    let nobody: SocketAddr = ([10, 77, 0, 99], OLLAMA).into();
    lab.client.ip("neighbour add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent\n");
    assert_eq!(lab.client.call(nobody), Reply::Silent);
}

#[test]
fn datagrams_are_echoed() {
    let lab = Lab::new("datagrams_are_echoed");
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    for server in SERVER.at(5353) {
        assert_eq!(lab.client.call_udp(server), Reply::Answered);
    }
    assert_eq!(listener.reached_by().len(), 2);
}

#[test]
fn packets_made_by_hand_reach_the_listener() {
    let lab = Lab::new("packets_made_by_hand_reach_the_listener");
    let _listener = lab.serve();
    let wire = lab.wire();
    let strangers = |port: u16| -> [SocketAddr; 2] {
        [(wire::stranger_v4(1), port).into(), (wire::stranger_v6(1), port).into()]
    };
    let mut expected = 0;
    let mut expect_more = |packets: usize| {
        expected += packets;
        until("each packet made by hand is half a connection", || {
            lab.server.half_open_connections(OLLAMA) == expected
        });
    };

    for number in 2..102 {
        let stranger = (wire::stranger_v4(number), 1000).into();
        wire.send(&wire::syn(stranger, SERVER.v4_at(OLLAMA)));
    }
    expect_more(100);

    for (stranger, server) in strangers(1001).into_iter().zip(SERVER.at(OLLAMA)) {
        wire.send(&wire::syn(stranger, server));
    }
    expect_more(2);

    for (stranger, server) in strangers(1002).into_iter().zip(SERVER.at(OLLAMA)) {
        for fragment in wire::syn_in_fragments(stranger, server) {
            wire.send(&fragment);
        }
    }
    expect_more(2);

    for (stranger, server) in strangers(1003).into_iter().zip(SERVER.at(OLLAMA)) {
        wire.send_tagged(0, &wire::syn(stranger, server));
    }
    expect_more(2);
}

#[test]
fn a_listener_is_in_its_labs_cgroup() {
    let lab = Lab::new("a_listener_is_in_its_labs_cgroup");
    let listener = lab.serve();
    let members = fs::read_to_string(lab.cgroup().join("cgroup.procs"));
    assert_eq!(members.ok(), Some(format!("{}\n", listener.pid())));
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::new("a_lab_leaves_nothing_behind");
    let name = lab.name().to_owned();
    let directory = lab.directory().to_owned();
    let _container = lab.add_container();
    let _neighbour = lab.add_neighbour();
    drop(lab.serve());
    drop(lab);

    assert!(!directory.exists());
    assert!(!cgroup::mount_point().join(&name).exists());
    assert!(!Path::new("/run/lock").join(format!("{name}.lock")).exists());
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let netns = entry.file_name().to_string_lossy().into_owned();
        assert!(!netns.starts_with(&name), "{netns}");
    }
}

#[test]
fn a_failing_test_leaves_nothing_behind_either() {
    let failing = std::panic::catch_unwind(|| {
        let lab = Lab::new("a_failing_test_leaves_nothing_behind_either");
        let _listener = lab.serve();
        lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    });
    assert!(failing.is_err());
    // The name is free again, and so is everything that goes by it.
    drop(Lab::new("a_failing_test_leaves_nothing_behind_either"));
}
