//! Ports that container engines publish: what their forwarders listen on is guarded where it leads to a guarded port. First
//! with forwarders made by hand, then with real engines, where the machine has them.

use std::net::SocketAddr;

use guard_tests::{
    engine::{self, Docker, Engine, Pasta, Podman},
    forwarder::Forwarder,
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR, every_address},
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

/// The server's published ports, on both families: IPv4 goes by DNAT, IPv6 through a forwarder.
fn doors() -> [SocketAddr; 4] {
    let [v4, v6] = SERVER.at(OLLAMA);
    let [published_v4, published_v6] = SERVER.at(PUBLISHED);
    [v4, v6, published_v4, published_v6]
}

/// Each door is closed to the client, which is counted where it should be; an allow opens each.
#[track_caller]
fn expect_guarded_doors(lab: &Lab, guard: &Guard<'_>, attach: Attach, doors: &[SocketAddr]) {
    let counted = || guard.counted(attach.hook(), "drop", "no-rule");
    for door in doors {
        let before = counted();
        lab.client.expect_silence(*door);
        assert!(counted() > before, "{door}: {:#?}", guard.status());
    }
    // Calls that are told to no one time out, and may be repeated: single packets are not.
    let before = counted();
    let wire = lab.wire();
    for (source, door) in (5000..).zip(doors) {
        let client = if door.is_ipv4() { CLIENT.v4_at(source) } else { CLIENT.v6_at(source) };
        wire.send(&wire::syn(client, *door));
    }
    guard.expect_counted(attach.hook(), "drop", "no-rule", before + doors.len() as u64);

    guard.tell(&["observe"]);
    for door in doors {
        lab.client.expect_answer(*door);
    }
    let judged = guard.counted(attach.hook(), "would-drop", "no-rule");
    assert!(judged >= doors.len() as u64, "{:#?}", guard.status());
    guard.tell(&["enforce"]);
    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    for door in doors {
        lab.client.expect_answer(*door);
    }
    assert!(guard.counted(attach.hook(), "pass", "allowed") > 0, "{:#?}", guard.status());
    guard.tell(&["remove", "10.77.0.1", "fd77::1"]);
    for door in doors {
        lab.client.expect_silence(*door);
    }
}

on_each_hook!(docker_s_published_ports_are_guarded, [native, tcx, socket]);
fn docker_s_published_ports_are_guarded(attach: Attach) {
    let test = format!("docker_s_published_ports {attach}");
    if !engine::have(&test, &[Engine::Docker]) {
        return;
    }
    let lab = Lab::new(&test);
    let docker = Docker::start(&lab);
    docker.run("ollama", &["-p", "11434:11434", "-p", "8081:11434"]);
    for door in doors() {
        engine::until_answered(&lab.client, door);
    }
    let guard = lab.start_guard(attach, "");
    assert_eq!(published(&guard), [("8081".to_owned(), "11434".to_owned())]);
    assert_eq!(guard.status().published[0].by.as_deref(), Some("docker-proxy"));

    expect_guarded_doors(&lab, &guard, attach, &doors());
    for door in doors() {
        lab.server.expect_answer(door);
    }

    docker.remove("ollama");
    until_not_published(&guard);
}

#[test]
fn a_port_that_docker_publishes_later_is_guarded() {
    let test = "a_port_that_docker_publishes_later";
    if !engine::have(test, &[Engine::Docker]) {
        return;
    }
    let lab = Lab::new(test);
    let docker = Docker::start(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    docker.run("ollama", &["-p", "8081:11434"]);
    until_published(&guard, PUBLISHED);
    for door in SERVER.at(PUBLISHED) {
        lab.client.expect_silence(door);
        engine::until_answered(&lab.server, door);
    }
}

#[test]
fn docker_walks_around_ufw_and_not_around_guard() {
    let test = "docker_walks_around_ufw";
    if !engine::have(test, &[Engine::Docker, Engine::Ufw]) {
        return;
    }
    let lab = Lab::new(test);
    engine::enable_ufw(&lab);
    let docker = Docker::start(&lab);
    docker.run("ollama", &["-p", "11434:11434", "-p", "8081:11434"]);
    let _host = lab.listen(&lab.server, Service::Http, every_address(9000));
    // What ufw is there for, and what it does not see.
    lab.client.expect_silence(SERVER.v4_at(9000));
    let doors = [SERVER.v4_at(OLLAMA), SERVER.v4_at(PUBLISHED)];
    for door in doors {
        engine::until_answered(&lab.client, door);
    }
    let guard = lab.start_guard(Attach::Tcx, "");

    expect_guarded_doors(&lab, &guard, Attach::Tcx, &doors);
    lab.client.expect_silence(SERVER.v4_at(9000));
}

on_each_hook!(a_neighbour_does_not_walk_past_a_port_published_to_loopback, [tcx, socket]);
fn a_neighbour_does_not_walk_past_a_port_published_to_loopback(attach: Attach) {
    let test = format!("published_to_loopback {attach}");
    if !engine::have(&test, &[Engine::Docker]) {
        return;
    }
    let lab = Lab::new(&test);
    let neighbour = lab.add_neighbour();
    let docker = Docker::start(&lab);
    docker.run("ollama", &["-p", "127.0.0.1:11434:11434"]);
    let container = SocketAddr::new(docker.address("ollama"), OLLAMA);
    // The neighbour's default route leads to the server. From version 28 on Docker itself stops this.
    if docker.version() < 28 {
        neighbour.expect_answer(container);
    }
    neighbour.expect_refusal(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    let guard = lab.start_guard(attach, "");

    neighbour.expect_silence(container);
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > 0, "{:#?}", guard.status());
    lab.server.expect_answer(container);
    lab.server.expect_answer(([127, 0, 0, 1], OLLAMA).into());

    guard.tell(&["allow", "10.78.0.1"]);
    if docker.version() < 28 {
        neighbour.expect_answer(container);
    }
}

#[test]
fn a_container_on_the_host_s_network_is_guarded() {
    let test = "a_container_on_the_host_s_network";
    if !engine::have(test, &[Engine::Docker]) {
        return;
    }
    let lab = Lab::new(test);
    let docker = Docker::start(&lab);
    docker.run("ollama", &["--network", "host"]);
    let doors = SERVER.at(OLLAMA);
    for door in doors {
        lab.client.expect_answer(door);
    }
    let guard = lab.start_guard(Attach::Tcx, "");
    expect_guarded_doors(&lab, &guard, Attach::Tcx, &doors);
}

on_each_hook!(rootless_podman_s_published_ports_are_guarded, [tcx, socket]);
fn rootless_podman_s_published_ports_are_guarded(attach: Attach) {
    let test = format!("rootless_podman_s_published_ports {attach}");
    if !engine::have(&test, &[Engine::RootlessPodman]) {
        return;
    }
    let lab = Lab::new(&test);
    let podman = Podman::new(&lab);
    podman.run("ollama", &["-p", "11434:11434", "-p", "8081:11434"]);
    for door in doors() {
        lab.client.expect_answer(door);
    }
    let guard = lab.start_guard(attach, "");
    assert_eq!(published(&guard), [("8081".to_owned(), "11434".to_owned())]);
    assert_eq!(guard.status().published[0].by.as_deref(), Some("rootlessport"));

    expect_guarded_doors(&lab, &guard, attach, &doors());
}

#[test]
fn what_pasta_publishes_is_guarded() {
    let test = "what_pasta_publishes";
    if !engine::have(test, &[Engine::Pasta]) {
        return;
    }
    let lab = Lab::new(test);
    let _pasta = Pasta::start(&lab, &["-t", "8081:11434"]);
    let doors = SERVER.at(PUBLISHED);
    for door in doors {
        engine::until_answered(&lab.client, door);
    }
    let guard = lab.start_guard(Attach::Tcx, "");
    assert_eq!(guard.status().published[0].by.as_deref(), Some("pasta"));
    expect_guarded_doors(&lab, &guard, Attach::Tcx, &doors);
}
