//! `kill -9` at every kind of step of a start, of a change and of the end: what is enforced is what was or what was to be, and
//! the next start goes on from there.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
};

use guard::control::Enforcement;
use guard_tests::{
    interrupt::Interrupter,
    lab::{CLIENT, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR},
    listener::Listener,
    machine::Reply,
    on_each_hook,
    product::{Attach, Build, Guard, has_pins},
    traffic::while_outsiders_send,
    wait::until,
    wire,
};

/// The steps to be killed at: the first and the last that come after one of a certain other kind, and the last of each run of
/// equal ones.
fn points(seen: &[&str]) -> Vec<usize> {
    let mut points = BTreeSet::new();
    let mut lasts = HashMap::new();
    for (step, pair) in (1..).zip(seen.windows(2)) {
        if lasts.insert(pair, step).is_none() {
            points.insert(step);
        }
    }
    points.extend(lasts.into_values().chain([0, seen.len() - 1]));
    points.into_iter().collect()
}

/// The points of a start, up to the one at which the daemon can be asked: what comes after depends on the moment.
#[track_caller]
fn points_of_start(guard: &Guard<'_>, interrupter: &Interrupter) -> Vec<usize> {
    interrupter.begin(None);
    guard.start();
    let seen = interrupter.seen();
    let named = seen.iter().rposition(|step| *step == "rename");
    let named = named.unwrap_or_else(|| panic!("the control socket got no name: {seen:?}"));
    let points = points(&seen[..=named]);
    // The test would be none if what guard does were not seen.
    assert!(points.len() > 20, "{seen:?}");
    points
}

/// Every other one of those after the programs are loaded: until then starts are alike.
fn of_covering(points: &[usize], interrupter: &Interrupter) -> Vec<usize> {
    let loaded = interrupter.seen().iter().rposition(|step| *step == "load a program");
    points.iter().copied().filter(|point| Some(*point) > loaded).step_by(2).collect()
}

/// The points of a command, which is run a few times: the shortest has nothing in it that the daemon did by itself meanwhile, and
/// that other runs would not reach.
#[track_caller]
fn points_of(interrupter: &Interrupter, prepare: impl Fn(), work: impl Fn()) -> Vec<usize> {
    let runs = [(); 3].map(|()| {
        prepare();
        interrupter.wait_for_quiet();
        interrupter.begin(None);
        work();
        interrupter.seen()
    });
    let seen = runs.into_iter().min_by_key(Vec::len).unwrap_or_default();
    let points = points(&seen);
    assert!(points.len() > 10, "{seen:?}");
    points
}

/// Runs a command at one of whose steps the daemon is killed. At the last ones the command may have its answer already.
#[track_caller]
fn die_at(guard: &Guard<'_>, interrupter: &Interrupter, point: usize, command: &[&str]) {
    interrupter.wait_for_quiet();
    interrupter.begin(Some(point));
    let _ = guard.ask(command);
    guard.wait_for_end();
    assert!(
        interrupter.seen().len() > point,
        "it was not killed at {point}: {:?}",
        interrupter.seen()
    );
}

/// Fails the test if anybody but these has reached the listener or waits to.
#[track_caller]
fn expect_reached_by_none_but(
    lab: &Lab,
    listener: &Listener,
    allowed: &[guard_tests::lab::Addresses],
) {
    let reached = listener.reached_by();
    let is_allowed = |peer: &std::net::SocketAddr| allowed.iter().any(|it| it.has(peer.ip()));
    let others: Vec<_> = reached.iter().filter(|peer| !is_allowed(peer)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

/// Fails the test if something is left beside the state file once it has been written again.
#[track_caller]
fn expect_no_litter(guard: &Guard<'_>) {
    let entries = fs::read_dir(guard.state()).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let kept = [
        "state.json",
        "state.json.copy",
        "changes.jsonl",
        "history.db",
        "history.db-wal",
        "history.db-shm",
    ];
    let is_kept = |name: &std::ffi::OsString| kept.iter().any(|kept| name == kept);
    let litter: Vec<_> = names.iter().filter(|name| !is_kept(name)).collect();
    assert!(litter.is_empty(), "{litter:?}");
}

on_each_hook!(a_start_that_dies_leaves_in_force_what_was, [native, tcx, clsact]);
fn a_start_that_dies_leaves_in_force_what_was(attach: Attach) {
    let lab = Lab::new(&format!("a_start_that_dies_leaves_in_force_what_was {attach}"));
    let listener = lab.serve();
    let interrupter = Interrupter::default();
    let guard = lab.guard(attach, "").interrupted_by(&interrupter);
    guard.start();
    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    guard.kill();
    let mut points = points_of_start(&guard, &interrupter);
    if attach != Attach::Tcx {
        points = of_covering(&points, &interrupter);
    }

    let sent = while_outsiders_send(&lab, || {
        for point in points {
            guard.kill();
            interrupter.begin(Some(point));
            guard.start_to_die();
            SERVER.at(OLLAMA).into_iter().for_each(|server| lab.client.expect_answer(server));
            interrupter.begin(None);
            guard.start();
            SERVER.at(OLLAMA).into_iter().for_each(|server| lab.client.expect_answer(server));
        }
    });

    // Every packet met the same hook, and the counters were kept.
    guard.expect_counted(attach.hook(), "drop", "no-rule", sent);
    expect_reached_by_none_but(&lab, &listener, &[CLIENT]);
    assert_eq!(guard.rules().len(), 2);
    expect_no_litter(&guard);
}

#[test]
fn a_first_start_that_dies_is_made_good_by_the_next() {
    let lab = Lab::new("a_first_start_that_dies_is_made_good_by_the_next");
    let _listener = lab.serve();
    let wire = lab.wire();
    let interrupter = Interrupter::default();
    let guard = lab.guard(Attach::Tcx, "").interrupted_by(&interrupter);
    let points = points_of_start(&guard, &interrupter);
    guard.tell(&["down"]);
    guard.wait_for_end();
    let knock = |number: usize| {
        let stranger = wire::stranger_v4(number as u16);
        wire.send(&wire::syn((stranger, 4242).into(), SERVER.v4_at(OLLAMA)));
    };

    for point in points {
        interrupter.begin(Some(point));
        guard.start_to_die();
        // What is said of it is so.
        let status = guard.status();
        let is_covered = status.interfaces.iter().any(|it| it.name == "eth0" && it.hook.is_some());
        if status.enforcement != Enforcement::None && is_covered {
            knock(point);
            guard.expect_counted("tcx", "drop", "no-rule", 1);
            assert_eq!(lab.server.half_open_connections(OLLAMA), 0, "{status:#?}");
        }

        interrupter.begin(None);
        guard.start();
        let before = guard.counted("tcx", "drop", "no-rule");
        knock(point);
        guard.expect_counted("tcx", "drop", "no-rule", before + 1);
        assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

        guard.tell(&["down"]);
        guard.wait_for_end();
        assert!(!has_pins(&lab.pins()));
        let status = guard.status();
        assert_eq!(status.enforcement, Enforcement::None, "{status:#?}");
        expect_no_litter(&guard);
    }
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn an_upgrade_that_dies_leaves_in_force_what_was() {
    let lab = Lab::new("an_upgrade_that_dies_leaves_in_force_what_was");
    let listener = lab.serve();
    let interrupter = Interrupter::default();
    let guard = lab.guard(Attach::Tcx, "").interrupted_by(&interrupter);
    guard.start();
    guard.tell(&["allow", "10.77.0.1"]);
    guard.kill();
    guard.use_build(Build::NextLayout);
    let points = points_of_start(&guard, &interrupter);
    let points = of_covering(&points, &interrupter);

    for point in points {
        guard.kill();
        interrupter.begin(None);
        guard.tell(&["down"]);
        guard.use_build(Build::Tested);
        guard.start();
        guard.kill();
        guard.use_build(Build::NextLayout);
        while_outsiders_send(&lab, || {
            interrupter.begin(Some(point));
            guard.start_to_die();
            lab.client.expect_answer(SERVER.v4_at(OLLAMA));
            interrupter.begin(None);
            guard.start();
            lab.client.expect_answer(SERVER.v4_at(OLLAMA));
        });
        assert!(!lab.pins().join("v1").exists(), "killed at {point}");
        assert_eq!(lab.server.half_open_connections(OLLAMA), 0, "killed at {point}");
    }
    expect_reached_by_none_but(&lab, &listener, &[CLIENT]);
    assert_eq!(guard.rules().len(), 1);
}

#[test]
fn a_reload_that_dies_leaves_the_old_policy_or_the_new_one() {
    let lab = Lab::new("a_reload_that_dies_leaves_the_old_policy_or_the_new_one");
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let interrupter = Interrupter::default();
    let allowed = [
        "[[rule]]\nallow = [\"10.77.0.1\", \"fd77::1\"]",
        "[[rule]]\nallow = [\"10.78.0.1\", \"fd78::1\"]",
    ];
    let guard = lab.guard(Attach::Tcx, allowed[0]).interrupted_by(&interrupter);
    guard.start();
    let points = points_of(&interrupter, || (), || drop(guard.tell(&["reload"])));

    while_outsiders_send(&lab, || {
        for (turn, point) in (1..).zip(points) {
            let (old, new) = (allowed[(turn + 1) % 2], allowed[turn % 2]);
            assert_ne!(old, new);
            guard.configure(new);
            die_at(&guard, &interrupter, point, &["reload"]);
            let replies = [
                lab.client.call(SERVER.v4_at(OLLAMA)),
                neighbour.call(SERVER_TO_NEIGHBOUR.v6_at(OLLAMA)),
            ];
            let is_whole = replies == [Reply::Answered, Reply::Silent]
                || replies == [Reply::Silent, Reply::Answered];
            assert!(is_whole, "killed at {point}: {replies:?}");

            interrupter.begin(None);
            guard.start();
            if turn % 2 == 0 {
                lab.client.expect_answer(SERVER.v4_at(OLLAMA));
            } else {
                neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
            }
        }
    });
    expect_reached_by_none_but(&lab, &listener, &[CLIENT, NEIGHBOUR]);
    expect_no_litter(&guard);
}

#[test]
fn a_command_that_dies_has_made_its_rule_or_not() {
    let lab = Lab::new("a_command_that_dies_has_made_its_rule_or_not");
    let listener = lab.serve();
    let interrupter = Interrupter::default();
    let guard = lab.guard(Attach::Tcx, "").interrupted_by(&interrupter);
    guard.start();
    guard.tell(&["allow", "10.77.0.1"]);
    let points = points_of(
        &interrupter,
        || drop(guard.ask(&["remove", "192.0.2.1"])),
        || drop(guard.tell(&["allow", "192.0.2.1"])),
    );

    while_outsiders_send(&lab, || {
        for point in points {
            let source = format!("192.0.2.{}", 100 + point);
            die_at(&guard, &interrupter, point, &["allow", &source]);
            lab.client.expect_answer(SERVER.v4_at(OLLAMA));

            interrupter.begin(None);
            guard.start();
            let rules = guard.rules();
            assert!(rules.iter().any(|rule| rule.source == "10.77.0.1"), "{rules:?}");
            // What is shown is in force, and what is not, is not.
            let is_kept = rules.iter().any(|rule| rule.source == source);
            let verdicts = guard.explain(&source, "11434").places;
            let passes = verdicts.iter().all(|place| place.verdict == "pass");
            assert_eq!(passes, is_kept, "killed at {point}: {verdicts:?}");
        }
    });
    expect_reached_by_none_but(&lab, &listener, &[CLIENT]);
    expect_no_litter(&guard);
}

#[test]
fn lifting_that_dies_can_be_ended_or_taken_back() {
    let lab = Lab::new("lifting_that_dies_can_be_ended_or_taken_back");
    let _listener = lab.serve();
    let interrupter = Interrupter::default();
    let guard = lab.guard(Attach::Tcx, "").interrupted_by(&interrupter);
    let points = points_of(
        &interrupter,
        || guard.start(),
        || {
            guard.tell(&["down"]);
            guard.wait_for_end();
        },
    );

    for point in points {
        for is_taken_back in [true, false] {
            interrupter.begin(None);
            guard.start();
            die_at(&guard, &interrupter, point, &["down"]);
            if is_taken_back {
                interrupter.begin(None);
                guard.start();
                lab.client.expect_silence(SERVER.v4_at(OLLAMA));
            }
            guard.tell(&["down"]);
            until("nothing is in force", || guard.status().enforcement == Enforcement::None);
            lab.client.expect_answer(SERVER.v4_at(OLLAMA));
            assert!(!has_pins(&lab.pins()));
            if is_taken_back {
                guard.wait_for_end();
            }
        }
    }
}
