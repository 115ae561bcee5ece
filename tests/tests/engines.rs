//! Ports that container engines publish: what their forwarders listen on is guarded where it leads to a guarded port.

use std::net::SocketAddr;

use guard_tests::{
    forwarder::Forwarder,
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, OLLAMA, SERVER, every_address},
    listener::{Listener, Service},
    machine::Machine,
    on_each_hook,
    product::{Attach, Guard},
    wait::until,
    wire,
};

/// A published port with another number than the service's.
const PUBLISHED: u16 = 8081;

/// A lab with an AI server in a container, which outsiders can't reach but through a forwarder.
fn contained(test: &str) -> (Lab, Machine, Listener) {
    let lab = Lab::new(test);
    let container = lab.add_container();
    let service = lab.listen(&container, Service::Http, every_address(OLLAMA));
    (lab, container, service)
}

/// Docker's forwarder for IPv6, where the container has IPv4 only.
fn docker_proxy(lab: &Lab) -> Forwarder {
    Forwarder::docker_proxy(lab, every_address(PUBLISHED), CONTAINER.v4_at(OLLAMA))
}

/// The published ports in force: each with the guarded one it leads to.
fn published(guard: &Guard<'_>) -> Vec<(String, String)> {
    guard.status().published.into_iter().map(|port| (port.port, port.to)).collect()
}

fn until_published(guard: &Guard<'_>, port: u16) {
    until(&format!("port {port} is guarded as published"), || {
        published(guard) == [(port.to_string(), OLLAMA.to_string())]
    });
}

fn until_not_published(guard: &Guard<'_>) {
    until("no published port is guarded", || published(guard).is_empty());
}

on_each_hook!(a_published_port_is_guarded_at_its_forwarder);
fn a_published_port_is_guarded_at_its_forwarder(attach: Attach) {
    let (lab, container, service) = contained(&format!("a_published_port {attach}"));
    let _proxy = docker_proxy(&lab);
    let there = SERVER.v6_at(PUBLISHED);
    lab.client.expect_answer(there);
    assert!(BRIDGE.has(service.reached_by()[0].ip()), "{:?}", service.reached_by());
    let guard = lab.start_guard(attach, "");
    assert_eq!(guard.status().ports, ["11434"]);
    assert_eq!(published(&guard), [("8081".to_owned(), "11434".to_owned())]);

    lab.client.expect_silence(there);
    assert_eq!(service.reached_by().len(), 1, "only the call from before guard was there");
    let dropped = guard.counted(attach.hook(), "drop", "no-rule");
    assert!(dropped > 0, "{:#?}", guard.status());
    let wire = lab.wire();
    for source in [4242, 4243] {
        wire.send(&wire::syn(CLIENT.v6_at(source), there));
    }
    guard.expect_counted(attach.hook(), "drop", "no-rule", dropped + 2);
    assert_eq!(lab.server.half_open_connections(PUBLISHED), 0);

    // This machine and its containers stay in.
    for caller in [&lab.server, &container] {
        caller.expect_answer(there);
    }
    // The rules are those of the port it leads to.
    guard.tell(&["allow", "fd77::1", "--port", "11434"]);
    lab.client.expect_answer(there);
    assert!(guard.counted(attach.hook(), "pass", "allowed") > 0, "{:#?}", guard.status());
    let explanation = guard.explain("fd77::1", "8081");
    let places: Vec<_> = explanation.places.iter().map(|place| place.verdict.as_str()).collect();
    assert!(!places.is_empty() && places.iter().all(|verdict| *verdict == "pass"), "{places:?}");
}

#[test]
fn a_port_published_later_is_guarded_and_left_alone_again_afterwards() {
    let (lab, _container, service) = contained("a_port_published_later");
    let guard = lab.start_guard(Attach::Tcx, "");
    assert_eq!(published(&guard), []);

    let proxy = docker_proxy(&lab);
    until_published(&guard, PUBLISHED);
    assert_eq!(guard.status().published[0].by.as_deref(), Some("docker-proxy"));
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
    assert_eq!(service.reached_by(), []);
    assert!(
        guard.log().contains("port 8081 is published and leads to 11434: guarded too"),
        "{}",
        guard.log()
    );
    let text = guard.ask(&["status"]).output;
    assert!(text.contains("published: 8081 leads to 11434 (docker-proxy)"), "{text}");

    drop(proxy);
    until_not_published(&guard);
    let _other = lab.listen(&lab.server, Service::Http, every_address(PUBLISHED));
    for server in SERVER.at(PUBLISHED) {
        lab.client.expect_answer(server);
    }
}

#[test]
fn published_ports_stay_guarded_without_a_daemon_and_over_its_return() {
    let (lab, _container, service) = contained("published_ports_without_a_daemon");
    let proxy = docker_proxy(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.kill();

    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
    // A command puts a whole policy in force.
    guard.tell(&["allow", "192.0.2.7"]);
    assert_eq!(published(&guard), [("8081".to_owned(), "11434".to_owned())]);
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));

    guard.start();
    // What is published is not taken for a port that somebody wants guarded.
    assert_eq!(guard.status().ports, ["11434"]);
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
    assert_eq!(service.reached_by(), []);

    guard.kill();
    drop(proxy);
    guard.tell(&["remove", "192.0.2.7"]);
    assert_eq!(published(&guard), []);
    assert_eq!(guard.status().ports, ["11434"]);
}

#[test]
fn without_a_daemon_a_port_published_later_is_said_to_be_open() {
    let (lab, _container, _service) = contained("published_and_said_to_be_open");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.kill();
    let _proxy = docker_proxy(&lab);

    let missing = guard.status().missing;
    let names = |line: &String| line.contains("port 8081, published by docker-proxy");
    assert!(missing.iter().any(names), "{missing:?}");
    guard.tell(&["reload"]);
    assert!(!guard.status().missing.iter().any(names), "{:?}", guard.status());
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
}

#[test]
fn published_ports_are_only_counted_in_observe() {
    let (lab, _container, service) = contained("published_ports_in_observe");
    let _proxy = docker_proxy(&lab);
    let guard = lab.start_guard(Attach::Tcx, "mode = \"observe\"");

    lab.client.expect_answer(SERVER.v6_at(PUBLISHED));
    assert_eq!(service.reached_by().len(), 1);
    assert!(guard.counted("tcx", "would-drop", "no-rule") > 0, "{:#?}", guard.status());
}

#[test]
fn a_port_guarded_by_itself_keeps_its_own_rules() {
    let (lab, _container, _service) = contained("a_port_guarded_by_itself");
    let _proxy = docker_proxy(&lab);
    let guard = lab.start_guard(Attach::Tcx, "ports = [11434, 8081]");
    assert_eq!(published(&guard), []);

    guard.tell(&["allow", "fd77::1", "--port", "11434"]);
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
    guard.tell(&["allow", "fd77::1", "--port", "8081"]);
    lab.client.expect_answer(SERVER.v6_at(PUBLISHED));
}

#[test]
fn what_leads_elsewhere_or_is_no_engine_s_is_left_alone() {
    let (lab, container, _service) = contained("what_leads_elsewhere");
    let _web = lab.listen(&container, Service::Http, every_address(8080));
    let guard = lab.start_guard(Attach::Tcx, "");
    let _to_web = Forwarder::docker_proxy(&lab, every_address(3000), CONTAINER.v4_at(8080));
    // Other relays are for the audit to find.
    let _relay = Forwarder::relay(&lab, "some-relay", every_address(3001), CONTAINER.v4_at(OLLAMA));
    // One that is followed, to know that the others were looked at.
    let _proxy = docker_proxy(&lab);
    until_published(&guard, PUBLISHED);

    for port in [3000, 3001] {
        lab.client.expect_answer(SERVER.v6_at(port));
    }
}

on_each_hook!(a_forwarder_that_names_no_port_leads_to_what_listens_inside, [tcx, socket]);
fn a_forwarder_that_names_no_port_leads_to_what_listens_inside(attach: Attach) {
    let lab = Lab::new(&format!("a_forwarder_that_names_no_port {attach}"));
    let container = lab.add_container();
    let to: SocketAddr = CONTAINER.v4_at(OLLAMA);
    let _forwarder = Forwarder::rootlessport(&lab, &container, every_address(PUBLISHED), to);
    let guard = lab.start_guard(attach, "");
    // Nothing listens inside yet.
    assert_eq!(published(&guard), []);

    let service = lab.listen(&container, Service::Http, every_address(OLLAMA));
    until_published(&guard, PUBLISHED);
    assert_eq!(guard.status().published[0].by.as_deref(), Some("rootlessport"));
    lab.client.expect_silence(SERVER.v6_at(PUBLISHED));
    assert_eq!(service.reached_by(), []);
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > 0, "{:#?}", guard.status());

    drop(service);
    until_not_published(&guard);
}
