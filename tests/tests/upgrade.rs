//! A new guard over what an old one has put in force, and the other way round. Of one layout every restart is an upgrade
//! (`a_restart_leaves_no_gap`); here the kernel tables have another one.

use guard::control::Enforcement;
use guard_tests::{
    http,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    on_each_hook,
    product::{Attach, Build, has_pins},
    traffic::while_outsiders_send,
};

on_each_hook!(another_layout_takes_over_without_a_gap);
fn another_layout_takes_over_without_a_gap(attach: Attach) {
    let lab = Lab::new(&format!("another_layout_takes_over_without_a_gap {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.1", "fd77::1", "--comment", "kept"]);
    let mut kept = SERVER.at(OLLAMA).map(|server| lab.client.connect(server));

    let sent = while_outsiders_send(&lab, || {
        guard.stop();
        guard.use_build(Build::NextLayout);
        guard.start();
    });

    // Counters and rules were kept, and each packet met one of the two.
    guard.expect_counted(attach.hook(), "drop", "no-rule", sent);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    assert!(listener.reached_by().iter().all(|peer| CLIENT.has(peer.ip())));
    let rules = guard.rules();
    assert_eq!(rules.len(), 2);
    assert!(rules.iter().all(|rule| rule.comment.as_deref() == Some("kept")), "{rules:?}");
    for stream in &mut kept {
        http::ask(stream).expect("the connection has survived");
    }
    SERVER.at(OLLAMA).into_iter().for_each(|server| lab.client.expect_answer(server));
    assert!(!lab.pins().join("v1").exists());

    guard.tell(&["remove", "10.77.0.1"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.tell(&["down"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert!(!has_pins(&lab.pins()));
}

#[test]
fn an_older_guard_touches_nothing_of_a_newer_one() {
    let lab = Lab::new("an_older_guard_touches_nothing_of_a_newer_one");
    let _listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    guard.use_build(Build::NextLayout);
    guard.start();
    guard.tell(&["allow", "10.77.0.1"]);
    guard.kill();
    let before = guard.status();

    guard.use_build(Build::Tested);
    guard.expect_no_start(&["newer guard", "layout 2", "guard down"]);
    for arguments in [&["status"][..], &["allow", "192.0.2.1"], &["reload"], &["down"]] {
        guard.expect_refusal(arguments, &["newer guard", "layout 2"]);
    }

    guard.use_build(Build::NextLayout);
    let after = guard.status();
    assert_eq!((before.interfaces, before.rules), (after.interfaces, after.rules));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v6_at(OLLAMA));
    guard.tell(&["down"]);
    guard.use_build(Build::Tested);
    guard.start();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v6_at(OLLAMA));
}

#[test]
fn commands_of_a_newer_guard_leave_an_older_one_to_its_start() {
    let lab = Lab::new("commands_of_a_newer_guard_leave_an_older_one_to_its_start");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.kill();

    guard.use_build(Build::NextLayout);
    for arguments in [&["allow", "10.77.0.1"][..], &["reload"], &["explain", "10.77.0.1"]] {
        guard.expect_refusal(arguments, &["older guard", "layout 1", "guard run"]);
    }
    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Partial, "{status:#?}");
    assert!(status.missing.iter().any(|part| part.contains("older guard")), "{status:#?}");
    assert!(guard.rules().is_empty());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.tell(&["down"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert!(!has_pins(&lab.pins()));
}
