//! Whatever is missing is said: by `status`, by metrics, by one line of the log for each change. What somebody takes off is
//! back soon, and meanwhile nobody gets in.

use std::{fs, path::Path};

use guard::control::{Enforcement, Layer};
use guard_tests::{
    command,
    foreign::{Foreign, Place, TCX_NEXT, detach_guard},
    http::ask_api,
    lab::{Lab, OLLAMA, SERVER},
    on_each_hook,
    product::{Attach, Guard, covered},
    traffic::while_outsiders_send,
    wait::until,
};

/// A value of `/metrics`.
#[track_caller]
fn metric(guard: &Guard<'_>, name: &str) -> u64 {
    let answer = ask_api(&guard.socket(), "GET", "/metrics", "");
    assert_eq!(answer.code, 200, "{answer:?}");
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{name} is not in:\n{}", answer.body));
    value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}"))
}

fn is_enforced(guard: &Guard<'_>, layer: Layer) -> bool {
    let by_status = guard.status().layers.into_iter().find(|status| status.layer == layer);
    by_status.is_some_and(|status| status.enforced)
}

/// How many lines of the log hold this.
fn lines(guard: &Guard<'_>, words: &str) -> usize {
    guard.log().lines().filter(|line| line.contains(words)).count()
}

fn pins_below(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.extend(pins_below(&entry.path()));
        } else {
            names.push(entry.path().display().to_string());
        }
    }
    names.sort();
    names
}

on_each_hook!(pins_that_somebody_removes_take_nothing_with_them, [native, tcx, clsact, socket]);
fn pins_that_somebody_removes_take_nothing_with_them(attach: Attach) {
    let lab = Lab::new(&format!("removed_pins {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "192.0.2.7"]);
    let pinned = pins_below(&lab.pins());
    let generation = guard.generation();

    let sent = while_outsiders_send(&lab, || {
        fs::remove_dir_all(lab.pins()).expect("the pins can be removed");
        let said = "somebody has removed pins of guard's: put back";
        until("that is said and they are back", || lines(&guard, said) == 1);
        assert_eq!(pins_below(&lab.pins()), pinned);
        // They are those of what is in force: the next guard goes on from there.
        guard.kill();
        guard.start();
    });

    assert!(guard.generation() > generation, "it began anew");
    guard.expect_counted(attach.hook(), "drop", "no-rule", sent);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

#[test]
fn what_somebody_takes_off_has_one_line_and_is_back() {
    let lab = Lab::new("what_somebody_takes_off_has_one_line_and_is_back");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    assert!(is_enforced(&guard, Layer::Interfaces) && is_enforced(&guard, Layer::Pins));

    let mut told = 0;
    for (hook, said) in [
        ("tcx", "somebody has taken guard's program off eth0 (tcx): put back"),
        ("cgroup", "somebody has taken off the backstop: put back"),
    ] {
        while_outsiders_send(&lab, || {
            assert_eq!(detach_guard(&lab.pins(), hook), 1);
            until("it is said and put back", || lines(&guard, said) == 1);
        });
        told += 1;
        assert_eq!(lines(&guard, "somebody has"), told, "{}", guard.log());
    }
    // What guard takes off itself is nobody else's doing.
    let text = fs::read_to_string(guard.configuration()).expect("it is text");
    for attach in ["native", "tcx"] {
        let text = text.replace("attach = \"tcx\"", &format!("attach = \"{attach}\""));
        fs::write(guard.configuration(), text).expect("it is written");
        guard.tell(&["reload"]);
    }
    let _neighbour = lab.add_neighbour();
    until("guard has looked", || covered(&guard.status(), "eth1", "tcx"));
    assert_eq!(lines(&guard, "somebody has"), told, "{}", guard.log());
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

#[test]
fn what_can_not_be_put_back_is_loud_until_it_can() {
    let lab = Lab::new("what_can_not_be_put_back_is_loud_until_it_can");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    assert_eq!(metric(&guard, "guard_enforced{layer=\"interfaces\"}"), 1);

    // All that an interface has room for is taken.
    let netns = format!("--net={}", lab.server.netns_path().display());
    let tc = |words: &str| {
        let words = ["tc"].into_iter().chain(words.split(' '));
        let words: Vec<String> = words.map(|word| word.replace('\u{a0}', " ")).collect();
        let words = [netns.as_str()].into_iter().chain(words.iter().map(String::as_str));
        command::run("nsenter", &words.collect::<Vec<_>>());
    };
    tc("qdisc add dev eth0 clsact");
    // A program of one instruction, which matches nothing.
    tc(
        "filter add dev eth0 ingress prio 1 handle 0x6775 protocol all bpf bytecode 1,6\u{a0}0\u{a0}0\u{a0}0 classid 1:1",
    );
    let mut rivals = Vec::new();
    loop {
        // Guard may have been there in between.
        let freed = detach_guard(&lab.pins(), "tcx");
        match Foreign::uncounted(&lab.server, "eth0", Place::Tcx, TCX_NEXT) {
            Ok(rival) => rivals.push(rival),
            Err(_) if freed == 0 => break,
            Err(_) => {}
        }
    }

    let line = "not in force: eth0 is not covered";
    until("it is said", || lines(&guard, line) > 0);
    let said = lines(&guard, line);
    assert!(guard.log().contains("`guard reload` tries again"), "{}", guard.log());
    let status = guard.status();
    assert_eq!(status.enforcement, Enforcement::Partial);
    assert!(!is_enforced(&guard, Layer::Interfaces) && is_enforced(&guard, Layer::Policy));
    assert_eq!(metric(&guard, "guard_enforced{layer=\"interfaces\"}"), 0);
    assert_eq!(metric(&guard, "guard_hook_attached{interface=\"eth0\",hook=\"none\"}"), 0);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.tell(&["reload"]);
    assert_eq!(lines(&guard, line), said, "{}", guard.log());

    rivals.pop();
    guard.tell(&["reload"]);
    assert_eq!(metric(&guard, "guard_enforced{layer=\"interfaces\"}"), 1);
    until("that is said", || lines(&guard, "no longer so: eth0 is not covered") == said);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}
