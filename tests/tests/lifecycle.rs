//! Start, crash, restart, reload and end: what stays in force and what does not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use guard::control::Enforcement;
use guard_tests::{
    lab::{Lab, OLLAMA, SERVER},
    on_each_hook,
    product::{Attach, counted, has_pins},
    traffic::while_outsiders_send,
    wait::until,
    wire,
};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

on_each_hook!(down_lifts_everything);
fn down_lifts_everything(attach: Attach) {
    let lab = Lab::new(&format!("down_lifts_everything {attach}"));
    let _listener = lab.serve();
    lab.server.set_sysctl(RESERVED, "8080,9000-9001");
    let guard = lab.start_guard(attach, "");
    assert_eq!(lab.server.sysctl(RESERVED), "8080,9000-9001,11434");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    // A kernel with tunnels built in gives every namespace some of its own, which are covered, too.
    let interfaces = guard.status().interfaces;
    let hooks = 1 + interfaces.iter().filter(|interface| interface.hook.is_some()).count();
    assert_eq!(hooks == 1, attach == Attach::Socket, "{interfaces:#?}");
    let hooks = format!("{hooks} {} taken off", if hooks == 1 { "hook" } else { "hooks" });
    let said = guard.tell(&["down"]).output;
    assert!(said.contains(&hooks), "{said}: {hooks}");

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    assert_eq!(lab.server.sysctl(RESERVED), "8080,9000-9001");
    assert!(!has_pins(&lab.pins()));
    guard.wait_for_end();
    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::None, "{status:#?}");
    assert_eq!(status.daemon, None);
}

on_each_hook!(down_needs_no_daemon);
fn down_needs_no_daemon(attach: Attach) {
    let lab = Lab::new(&format!("down_needs_no_daemon {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.kill();
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.tell(&["down"]);

    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(lab.server.sysctl(RESERVED), "");
    assert!(!has_pins(&lab.pins()));
    // Once more: there is nothing to lift, and that is fine.
    guard.tell(&["down"]);
}

#[test]
fn a_port_that_was_reserved_before_stays_reserved() {
    let lab = Lab::new("a_port_that_was_reserved_before_stays_reserved");
    lab.server.set_sysctl(RESERVED, "11434");
    let guard = lab.start_guard(Attach::Tcx, "ports = [11434, 11436]");
    assert_eq!(lab.server.sysctl(RESERVED), "11434,11436");

    guard.tell(&["down"]);
    assert_eq!(lab.server.sysctl(RESERVED), "11434");
}

on_each_hook!(a_killed_daemon_changes_nothing);
fn a_killed_daemon_changes_nothing(attach: Attach) {
    let lab = Lab::new(&format!("a_killed_daemon_changes_nothing {attach}"));
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.78.0.0/24"]);

    guard.kill();

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
        lab.server.expect_answer(server);
    }
    neighbour.expect_answer(guard_tests::lab::SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    assert_eq!(listener.reached_by().len(), 3, "{:?}", listener.reached_by());
    let status = guard.status();
    assert_eq!(status.daemon, None);
    assert_ne!(status.enforcement, Enforcement::None, "{status:#?}");
    assert!(status.outlives_daemon, "{status:#?}");
    assert!(counted(&status, attach.hook(), "drop", "no-rule") >= 2, "{status:#?}");

    // Rules are made the same way, and hold at once.
    guard.tell(&["allow", "10.77.0.1"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn a_stopped_daemon_says_that_the_port_stays_closed() {
    let lab = Lab::new("a_stopped_daemon_says_that_the_port_stays_closed");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Auto, "");
    let said = guard.log().len();

    guard.stop();

    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.log()[said..].contains("guard down"), "{}", guard.log());
}

on_each_hook!(a_restart_leaves_no_gap);
fn a_restart_leaves_no_gap(attach: Attach) {
    let lab = Lab::new(&format!("a_restart_leaves_no_gap {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    let sent = while_outsiders_send(&lab, || {
        guard.kill();
        guard.start();
        guard.stop();
        guard.start();
    });

    // The counters were kept, and every packet met the same hook throughout.
    guard.expect_counted(attach.hook(), "drop", "no-rule", sent);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    assert!(listener.reached_by().is_empty());
}

#[test]
fn a_restart_can_change_the_hook() {
    let lab = Lab::new("a_restart_can_change_the_hook");
    let _listener = lab.serve();
    for attach in [
        Attach::Native,
        Attach::Tcx,
        Attach::Generic,
        Attach::Clsact,
        Attach::Native,
        Attach::Socket,
        Attach::Tcx,
    ] {
        let guard = lab.start_guard(attach, "");
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        lab.client.expect_silence(SERVER.v4_at(OLLAMA));
        assert!(guard.counted(attach.hook(), "drop", "no-rule") > before, "{attach}");
        guard.kill();
    }
}

#[test]
fn a_second_daemon_is_refused() {
    let lab = Lab::new("a_second_daemon_is_refused");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    let before = guard.status();

    let second = guard.ask(&["run"]);
    assert_eq!(second.code, Some(1), "{second:#?}");
    second.expect_refused(&[]);

    let after = guard.status();
    assert_eq!(after.daemon, before.daemon);
    assert_eq!(after.generation, before.generation);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn the_start_is_told() {
    let lab = Lab::new("the_start_is_told");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Auto, "[[rule]]\nallow = \"192.0.2.0/24\"");
    until("the start-up message is whole", || guard.log().contains("guard events --follow"));

    let log = guard.log();
    for word in ["11434", "eth0", "guard-lab", &listener.pid().to_string(), "guard down"] {
        assert!(log.contains(word), "{word} is not in the start-up message:\n{log}");
    }
    // What native XDP would cost on this link, and how to ask for it.
    assert!(log.contains("--attach native"), "{log}");
}

#[test]
fn a_good_file_is_in_force_after_a_reload() {
    let lab = Lab::new("a_good_file_is_in_force_after_a_reload");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.configure("[[rule]]\nallow = \"10.77.0.0/24\"\ncomment = \"office\"");
    guard.hang_up();
    until("the file's rule is in force", || guard.rules().len() == 1);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));

    guard.configure("[[rule]]\ndeny = \"10.77.0.1\"");
    guard.tell(&["reload"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.configure("ports = [8081]");
    guard.tell(&["reload"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn a_bad_file_changes_nothing() {
    let lab = Lab::new("a_bad_file_changes_nothing");
    let _listener = lab.serve();
    let rule = "[[rule]]\nallow = \"10.77.0.0/24\"";
    let guard = lab.start_guard(Attach::Tcx, rule);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let generation = guard.generation();
    let said = guard.log().len();

    guard.configure("[[rule]]\nallow = \"10.77.0.1/24\"");
    guard.hang_up();
    // The rule's source stands on the third line, behind `attach` and `[[rule]]`.
    until("the file's fault is named", || guard.log()[said..].contains("guard.toml:3:"));
    guard.expect_refusal(&["reload"], &["guard.toml:3:", "10.77.0.1/24"]);

    assert_eq!(guard.generation(), generation);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));

    // No daemon starts from it either; and the one there was has left its policy in force.
    guard.kill();
    guard.expect_refusal(&["run"], &["guard.toml:3:", "10.77.0.1/24"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn sets_are_read_again_on_a_reload() {
    let lab = Lab::new("sets_are_read_again_on_a_reload");
    let _listener = lab.serve();
    let office = lab.directory().join("office.txt");
    write(&office, "# the office\n192.0.2.0/24\n");
    let guard =
        lab.start_guard(Attach::Tcx, &format!("[[rule]]\nallow = \"@{}\"", office.display()));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    write(&office, "192.0.2.0/24\n10.77.0.0/24\nfd77::/64\n");
    guard.tell(&["reload"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }

    write(&office, "192.0.2.0/24\n10.77.0.0/33\n");
    guard.expect_refusal(&["reload"], &["office.txt:2", "10.77.0.0/33"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));

    // A typed deny is above every set.
    guard.tell(&["deny", "10.0.0.0/8"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn the_lan_is_what_is_on_link() {
    let lab = Lab::new("the_lan_is_what_is_on_link");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");

    guard.tell(&["allow", "lan"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    neighbour.expect_answer(guard_tests::lab::SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    // Private, and not on any link of the server.
    lab.wire().send(&wire::syn(([10, 99, 0, 1], 4242).into(), SERVER.v4_at(OLLAMA)));
    guard.expect_counted("tcx", "drop", "no-rule", 1);
}

#[test]
fn rules_are_kept_over_down_and_run() {
    let lab = Lab::new("rules_are_kept_over_down_and_run");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.0/24", "--comment", "the office"]);
    let rules = guard.rules();
    guard.tell(&["down"]);
    guard.wait_for_end();

    // Without anything loaded a rule is kept for the next start.
    assert_eq!(guard.rules(), rules);
    let change = guard.change(&["allow", "fd77::/64"]);
    assert_eq!(change.generation, None, "{change:#?}");
    assert!(!has_pins(&lab.pins()));

    guard.start();
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    let kept = guard.rules();
    assert_eq!(kept.len(), 2, "{kept:#?}");
    assert!(kept.iter().any(|rule| rule.comment.as_deref() == Some("the office")), "{kept:#?}");
}

#[test]
fn flags_hold_for_one_run() {
    let lab = Lab::new("flags_hold_for_one_run");
    let _listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    guard.start_with(&["--allow", "10.77.0.1", "--port", "11434", "--port", "8081"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v6_at(OLLAMA));
    assert_eq!(guard.status().ports.len(), 2, "{:#?}", guard.status());

    guard.stop();
    guard.start();
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.rules().is_empty(), "{:#?}", guard.rules());
}

#[test]
fn a_torn_state_file_is_kept_aside_and_opens_nothing() {
    for (torn, text) in [("torn", None), ("foreign", Some("These are not the rules.\n"))] {
        let lab = Lab::new(&format!("a_torn_state_file {torn}"));
        let _listener = lab.serve();
        let guard = lab.start_guard(Attach::Tcx, "");
        guard.tell(&["allow", "10.77.0.0/24"]);
        guard.tell(&["down"]);
        guard.wait_for_end();

        let file = guard.state().join("state.json");
        let whole = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}"));
        let text = text.unwrap_or(&whole[..whole.len() / 2]);
        write(&file, text);
        write(&guard.state().join("state.json.copy"), text);
        // Who only asks is told, and leaves the file for the start to tell of as well.
        let asked = guard.ask(&["status"]);
        assert!(asked.errors.contains("state.json"), "{asked:#?}");
        assert_eq!(fs::read_to_string(&file).unwrap_or_default(), text);
        let said = guard.log().len();
        guard.start();

        lab.client.expect_silence(SERVER.v4_at(OLLAMA));
        assert!(guard.rules().is_empty(), "{:#?}", guard.rules());
        assert!(guard.log()[said..].contains("state.json"), "{}", guard.log());
        let aside: Vec<String> = files_in(&guard.state())
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .collect();
        assert!(aside.iter().any(|kept| kept == text), "{aside:#?}");
    }
}

#[test]
fn every_thread_of_the_daemon_has_only_what_is_needed() {
    let lab = Lab::new("every_thread_of_the_daemon_has_only_what_is_needed");
    let guard = lab.start_guard(Attach::Tcx, "");
    // Threads of requests and of a reload, too.
    guard.tell(&["allow", "192.0.2.1"]);
    guard.tell(&["reload"]);
    // The kernel's numbers of `include/uapi/linux/capability.h`: CHOWN 0, DAC_READ_SEARCH 2, NET_ADMIN 12, SYS_PTRACE 19, SYS_ADMIN 21.
    let kept: u64 = [0, 2, 12, 19, 21].iter().map(|number| 1 << number).sum();

    let tasks = fs::read_dir(format!("/proc/{}/task", guard.pid())).unwrap();
    let mut threads = 0;
    for task in tasks.flatten() {
        // One that has just ended says nothing.
        let Ok(text) = fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
        };
        let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        for name in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(set(name), kept, "{name}: {text}");
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(set(name), 0, "{name}: {text}");
        }
        assert_eq!(field("NoNewPrivs"), "1", "{text}");
        threads += 1;
    }
    assert!(threads > 1, "the daemon has no thread for requests");
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[track_caller]
fn write(path: &Path, text: &str) {
    fs::write(path, text)
        .unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
}

/// Each hook and pin is held open.
#[test]
fn a_low_limit_of_open_files_is_raised() {
    let lab = Lab::new("a_low_limit_of_open_files_is_raised");
    let guard = lab.guard(Attach::Tcx, "").in_a_mount_namespace("ulimit -S -n 24");
    guard.start();
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(!guard.log().contains("open files"), "{}", guard.log());
}
