//! The backstop where nobody names its cgroup, as on a real host: these tests have this machine for themselves.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use guard::control::Enforcement;
use guard_tests::{
    cgroup,
    forwarder::Forwarder,
    lab::{CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, every_address},
    listener::Service,
    product::Attach,
    wait::until,
    wire,
};
use procfs::process::Process;

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
    let tree = cgroup::mount_point();
    let script = format!("umount -l {}", tree.display());
    the_root_is_found("the_tree_is_mounted_where_nobody_has", &script, "/run/guard/cgroup2");
}

/// As on a host without v1 controllers, where the tree itself is at `/sys/fs/cgroup`.
#[test]
fn the_tree_may_be_mounted_alone() {
    let tree = cgroup::mount_point();
    let script = format!("umount -l {} && mount -t cgroup2 cgroup2 /sys/fs/cgroup", tree.display());
    the_root_is_found("the_tree_may_be_mounted_alone", &script, "/sys/fs/cgroup");
}

/// After this script has run, the backstop stands at this path and guards every socket by itself.
#[track_caller]
fn the_root_is_found(test: &str, script: &str, path: &str) {
    let lab = Lab::alone(test);
    let listener = lab.serve();
    let guard = lab.guard(Attach::Socket, "").at_the_root("").in_a_mount_namespace(script);
    guard.start();

    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Full, "{status:#?}");
    assert_eq!(status.backstop.scope, "root", "{status:#?}");
    assert_eq!(status.backstop.path.as_deref(), Some(path), "{status:#?}");
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_silence(address);
    }
    assert!(listener.reached_by().is_empty());
    guard.tell(&["down"]);
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_answer(address);
    }
}

/// What is left then are the interfaces, and guard says so.
#[test]
fn without_cgroups_the_interfaces_are_still_covered() {
    let lab = Lab::alone("without_cgroups_the_interfaces_are_still_covered");
    let listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "").at_the_root("").without_cgroups();
    guard.start();

    assert!(guard.log().contains("no cgroup v2 tree is mounted"), "{}", guard.log());
    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Partial, "{status:#?}");
    assert!(status.missing.iter().any(|part| part.contains("backstop")), "{status:#?}");
    for address in SERVER.at(OLLAMA) {
        lab.client.expect_silence(address);
    }
    assert!(listener.reached_by().is_empty());
    // Nobody is behind the interface to decide what it can't: a later fragment is dropped there.
    let wire = lab.wire();
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        let [_, later] = wire::syn_in_fragments(client, server);
        wire.send(&later);
    }
    guard.expect_counted("tcx", "drop", "undecidable", 2);
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

/// Where nothing is to be done the daemon does not run, and it is there when it is needed.
#[test]
fn an_idle_daemon_sleeps_until_a_port_may_have_been_published() {
    let lab = Lab::alone("an_idle_daemon_sleeps");
    let container = lab.add_container();
    let _service = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let guard = lab.guard(Attach::Socket, "").at_the_root("");
    guard.start();

    // Every two seconds it looks whether what is in force is still there: a thread or two wake for that.
    let sleeps_through_three_seconds = || {
        let before = times_awake(guard.pid());
        sleep(Duration::from_secs(3));
        // Thread by thread: one that has ended meanwhile takes nothing from what the others did.
        let since = |(thread, times): (i32, u64)| times - before.get(&thread).unwrap_or(&0);
        let times: u64 = times_awake(guard.pid()).into_iter().map(since).sum();
        println!("awake {times} times");
        times <= 8
    };
    let falls_asleep = || (0..30).any(|_| sleeps_through_three_seconds());
    // What it does now and then anyway can't be it, three times on end.
    let stays_awake = || (0..3).all(|_| !sleeps_through_three_seconds());
    let mut bound = Vec::new();
    for address in SERVER.at(8082) {
        assert!(falls_asleep(), "it never sleeps");
        bound.push(lab.listen(&lab.server, Service::Http, address));
        assert!(stays_awake(), "nothing told it of {address}");
    }

    let _proxy = Forwarder::docker_proxy(&lab, every_address(8081), CONTAINER.v4_at(OLLAMA));
    until("the published port is guarded", || {
        guard.status().published.iter().any(|published| published.port == "8081")
    });
    lab.client.expect_silence(SERVER.v6_at(8081));
    guard.tell(&["down"]);
}

/// How often the process's threads have given up the processor, each by its number.
fn times_awake(pid: u32) -> BTreeMap<i32, u64> {
    let process = Process::new(pid.cast_signed()).expect("it runs");
    let threads = process.tasks().expect("its threads are listed").flatten();
    threads
        .filter_map(|thread| {
            let status = thread.status().ok()?;
            Some((thread.tid, status.voluntary_ctxt_switches?))
        })
        .collect()
}
