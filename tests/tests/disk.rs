//! A disk that is full, read-only or spoils what it holds: guard says so, and what is in force stays as it is.

use std::{fs, path::PathBuf};

use guard::control::Enforcement;
use guard_tests::{
    command,
    lab::{CLIENT, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR},
    product::{Attach, Guard},
    wait::until,
};

/// The state directory as the daemon sees it, which may have mounts of its own.
fn seen_by_the_daemon(guard: &Guard<'_>) -> PathBuf {
    let state = guard.state();
    let below_root = state.strip_prefix("/").expect("it is an absolute path");
    PathBuf::from(format!("/proc/{}/root", guard.pid())).join(below_root)
}

/// Files that are the state, and such as were put aside or are not finished.
fn names(guard: &Guard<'_>) -> Vec<String> {
    let entries = fs::read_dir(guard.state()).expect("there is state").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.contains("state.json")).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_refuses_rules_and_changes_nothing() {
    let lab = Lab::new("a_full_disk_refuses_rules_and_changes_nothing");
    let listener = lab.serve();
    let state = lab.directory().join("state");
    fs::create_dir(&state).expect("it can be made");
    let mount = format!("mount -t tmpfs -o size=256k tmpfs {}", state.display());
    let guard = lab.guard(Attach::Tcx, "").in_a_mount_namespace(&mount);
    guard.start();
    guard.tell(&["allow", "192.0.2.7"]);
    let (generation, rules) = (guard.generation(), guard.rules());

    let filler = seen_by_the_daemon(&guard).join("filler");
    let filled = fs::write(&filler, vec![0; 1 << 20]);
    assert!(filled.is_err(), "there is room for a megabyte");
    let client = CLIENT.v4.to_string();
    for refused in [&["allow", &client][..], &["remove", "192.0.2.7"], &["observe"], &["reload"]] {
        guard.expect_refusal(refused, &["can't be written", "No space left"]);
        assert_eq!(guard.rules(), rules, "{refused:?}");
        lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    }
    // What was in force is put in force again, so that the number may be another.
    assert!(guard.generation() >= generation);
    let left = fs::read_dir(seen_by_the_daemon(&guard)).expect("it is there").flatten();
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".new")));

    fs::remove_file(&filler).expect("it can be removed");
    guard.tell(&["allow", &client]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(listener.reached_by().len(), 1);
}

#[test]
fn a_read_only_disk_keeps_no_host_open() {
    let lab = Lab::new("a_read_only_disk_keeps_no_host_open");
    let listener = lab.serve();
    let state = lab.directory().join("state");
    fs::create_dir(&state).expect("it can be made");
    let mount = format!("mount -t tmpfs -o ro tmpfs {}", state.display());
    let guard = lab.guard(Attach::Tcx, "").in_a_mount_namespace(&mount);
    guard.start();

    assert!(guard.log().contains("rules can't be made by command"), "{}", guard.log());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.expect_refusal(&["allow", "192.0.2.7"], &["can't be written"]);
    assert!(guard.rules().is_empty());

    let enter = format!("--mount=/proc/{}/ns/mnt", guard.pid());
    let target = state.display().to_string();
    command::run("nsenter", &[&enter, "mount", "-o", "remount,rw", &target]);
    guard.tell(&["allow", &CLIENT.v4.to_string()]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(listener.reached_by().len(), 1);
}

#[test]
fn a_spoiled_state_file_changes_nothing_that_is_in_force() {
    let lab = Lab::new("a_spoiled_state_file_changes_nothing_that_is_in_force");
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "[[rule]]\nallow = \"10.0.0.0/8\"\n");
    guard.tell(&["deny", &CLIENT.v4.to_string()]);
    let (server, to_neighbour) = (SERVER.v4_at(OLLAMA), SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    let expect_as_it_was = || {
        lab.client.expect_silence(server);
        neighbour.expect_answer(to_neighbour);
    };
    expect_as_it_was();
    let file = guard.state().join("state.json");
    let copy = guard.state().join("state.json.copy");
    let good = fs::read(&file).expect("there is state");

    // One of two: the other is taken.
    for spoiled in [&good[..good.len() / 2], &vec![0; good.len()], b"", b"{\"name\": \"foreign\"}"]
    {
        guard.stop();
        fs::write(&file, spoiled).expect("it can be written");
        guard.start();
        assert!(guard.log().contains("its copy beside it is used"), "{}", guard.log());
        assert_eq!(guard.rules().len(), 2);
        expect_as_it_was();
    }
    assert!(names(&guard).iter().any(|name| name.contains(".bad-")), "{:?}", names(&guard));

    // Both: the kernel knows the rules, and nobody else. No command and no start takes them away.
    guard.kill();
    let (kept, kept_copy) = (fs::read(&file).expect("state"), fs::read(&copy).expect("its copy"));
    for path in [&file, &copy] {
        fs::write(path, b"\0\0\0").expect("it can be written");
    }
    guard.expect_no_start(&["nothing is changed", "state.json"]);
    // Nor does what was refused once go through the second time.
    for refused in [&["allow", "192.0.2.7"][..], &["reload"], &["observe"], &["allow", "192.0.2.7"]]
    {
        guard.expect_refusal(refused, &["nothing is changed", "state.json"]);
        assert_eq!(fs::read(&file).expect("it is there"), b"\0\0\0");
    }
    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Partial);
    assert!(status.missing.iter().any(|what| what.contains("state.json")), "{status:#?}");
    expect_as_it_was();

    // Put back from a copy, all goes on.
    fs::write(&file, kept).expect("it can be written");
    fs::write(&copy, kept_copy).expect("it can be written");
    guard.start();
    assert_eq!(guard.rules().len(), 2);
    expect_as_it_was();
    assert!(listener.reached_by().iter().all(|peer| NEIGHBOUR.has(peer.ip())));
}

#[test]
fn where_nothing_is_in_force_a_spoiled_state_file_keeps_no_host_open() {
    let lab = Lab::new("where_nothing_is_in_force_a_spoiled_state_file_keeps_no_host_open");
    let listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    fs::create_dir(guard.state()).expect("it can be made");
    for name in ["state.json", "state.json.copy"] {
        fs::write(guard.state().join(name), b"\0\0\0").expect("it can be written");
    }
    guard.start();
    assert!(guard.log().contains("rules made by command are gone"), "{}", guard.log());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.tell(&["allow", "192.0.2.7"]);
    guard.stop();
    guard.start();
    assert_eq!(guard.rules().len(), 1);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

#[test]
fn more_rules_than_are_kept_are_refused() {
    const AT_ONCE: usize = 10_000;
    let lab = Lab::new("more_rules_than_are_kept_are_refused");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    // Four bytes each.
    let comment = "🛡".repeat(200);
    let sources = |first: usize| -> Vec<String> {
        let prefix =
            |number: usize| format!("2001:db8:{:x}:{:x}::/64", number >> 16, number & 0xffff);
        (first..first + AT_ONCE).map(prefix).collect()
    };
    let mut made = 0;
    let refused = loop {
        let body = serde_json::json!({
            "action": "allow", "sources": sources(made), "comment": comment,
        });
        let answer =
            guard_tests::http::ask_api(&guard.socket(), "POST", "/v1/rules", &body.to_string());
        if answer.code != 200 {
            break answer;
        }
        made += AT_ONCE;
        assert!(made < 1_000_000, "there is no end");
    };
    assert!(refused.body.contains("may have"), "{refused:?}");
    println!("{made} rules were made");
    until("the daemon answers as before", || guard.status().rules == made);
    guard.kill();
    guard.start();
    assert_eq!(guard.status().rules, made);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}
