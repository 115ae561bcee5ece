//! The backstop where nobody names its cgroup, as on a real host: these tests have this machine for themselves.

use guard::control::Enforcement;
use guard_tests::{
    cgroup,
    lab::{Lab, NEIGHBOUR, OLLAMA, SERVER, every_address},
    listener::Service,
    product::Attach,
};

#[test]
fn the_root_backstop_guards_every_namespace() {
    let lab = Lab::alone("the_root_backstop_guards_every_namespace");
    let elsewhere = lab.add_neighbour();
    lab.let_server_forward();
    let root = cgroup::mount_point();
    let here = lab.listen(&lab.server, Service::Http, every_address(OLLAMA));
    // In another namespace of this machine, and not in a cgroup that guard was told of. The server's hooks take its packets
    // for another machine's, and let them through.
    let there = lab.listen_in(&elsewhere, Service::Http, every_address(OLLAMA), &root);
    for address in SERVER.at(OLLAMA).into_iter().chain(NEIGHBOUR.at(OLLAMA)) {
        lab.client.expect_answer(address);
    }

    let guard = lab.guard(Attach::Tcx, "").at_the_root("");
    guard.start();

    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Full, "{status:#?}");
    assert!(status.missing.is_empty(), "{status:#?}");
    assert_eq!(status.backstop.scope, "root", "{status:#?}");

    for address in SERVER.at(OLLAMA).into_iter().chain(NEIGHBOUR.at(OLLAMA)) {
        lab.client.expect_silence(address);
    }
    assert_eq!((here.reached_by().len(), there.reached_by().len()), (2, 2));
    assert!(guard.counted("tcx", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert!(guard.counted("cgroup", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    for address in SERVER.at(OLLAMA) {
        lab.server.expect_answer(address);
    }
    elsewhere.expect_answer(([127, 0, 0, 1], OLLAMA).into());

    // Observing is not enforcing, and the exit code says so.
    guard.tell(&["observe"]);
    assert_eq!(guard.status().enforcement, Enforcement::Observe);
    for address in SERVER.at(OLLAMA).into_iter().chain(NEIGHBOUR.at(OLLAMA)) {
        lab.client.expect_answer(address);
    }
    guard.tell(&["enforce"]);
    assert_eq!(guard.status().enforcement, Enforcement::Full);

    guard.tell(&["down"]);
    for address in SERVER.at(OLLAMA).into_iter().chain(NEIGHBOUR.at(OLLAMA)) {
        lab.client.expect_answer(address);
    }
}

/// As on a host that mounts cgroup v1 only.
#[test]
fn the_tree_is_mounted_where_nobody_has() {
    let lab = Lab::alone("the_tree_is_mounted_where_nobody_has");
    let listener = lab.serve();
    let tree = cgroup::mount_point();
    let guard = lab
        .guard(Attach::Socket, "")
        .at_the_root("")
        .in_a_mount_namespace(&format!("umount -l {}", tree.display()));
    guard.start();

    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Full, "{status:#?}");
    assert_eq!(status.backstop.scope, "root", "{status:#?}");
    assert_eq!(status.backstop.path.as_deref(), Some("/run/guard/cgroup2"), "{status:#?}");
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_silence(address);
    }
    assert!(listener.reached_by().is_empty());
    guard.tell(&["down"]);
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_answer(address);
    }
}

/// A container's root of the tree is no root: what guard can't see from there it does not claim.
#[test]
fn a_cgroup_namespace_is_not_taken_for_the_machine() {
    let lab = Lab::alone("a_cgroup_namespace_is_not_taken_for_the_machine");
    let listener = lab.serve();
    let guard = lab.guard(Attach::Socket, "").at_the_root("").in_a_cgroup_namespace();
    guard.start();

    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Partial, "{status:#?}");
    assert_eq!(status.backstop.scope, "this container", "{status:#?}");
    assert!(status.missing.iter().any(|part| part.contains("this container")), "{status:#?}");
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_silence(address);
    }
    assert!(listener.reached_by().is_empty());
    guard.tell(&["down"]);
    guard.wait_for_end();
}
