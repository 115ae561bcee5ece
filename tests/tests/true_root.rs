//! The backstop on the root of the cgroup tree, as on a real host: the one test that has this machine for itself.

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
