//! Attempts as they are kept, and asked for later: `guard sources`, and `guard events --since`.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use guard::{
    control::{SinkStatus, Status},
    store::HistoryStatus,
};
use guard_common::abi::EVENT_INTERVAL_NS;
use guard_tests::{
    http::ask_api,
    lab::{Lab, OLLAMA, SERVER},
    product::{Attach, Guard, counted},
    wait::until,
    wire,
};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../docs/hour.schema.json");
const SOURCES_SCHEMA: &str = include_str!("../../docs/sources.schema.json");

/// Packets of each stranger, of both families: the further, the more, and one besides when its next event is due, which tells of
/// all. Returns how many they are: so few that none is passed over.
fn knock(lab: &Lab, strangers: u16) -> u64 {
    let wire = lab.wire();
    let send = |low| {
        wire.send(&wire::syn((wire::stranger_v4(low), 4242).into(), SERVER.v4_at(OLLAMA)));
        wire.send(&wire::syn((wire::stranger_v6(low), 4242).into(), SERVER.v6_at(OLLAMA)));
    };
    (1..=strangers).for_each(|low| (0..low).for_each(|_| send(low)));
    thread::sleep(Duration::from_nanos(EVENT_INTERVAL_NS) * 3 / 2);
    (1..=strangers).for_each(send);
    (1..=strangers).map(|low| 2 * u64::from(low + 1)).sum()
}

fn history(status: &Status) -> HistoryStatus {
    status.attempt_history.clone().unwrap_or_else(|| panic!("no history is kept: {status:#?}"))
}

fn sink(status: &Status) -> SinkStatus {
    let sinks = &status.events.sinks;
    let sink = sinks.iter().find(|sink| sink.sink == "history");
    sink.unwrap_or_else(|| panic!("the history is none of {sinks:?}")).clone()
}

/// Waits until the history has so many packets, and nothing is reported any more that it has not.
#[track_caller]
fn until_kept(guard: &Guard<'_>, packets: u64) {
    until(&format!("{packets} packets are kept"), || guard.sources(&[]).total.packets >= packets);
    assert_eq!(guard.sources(&[]).total.packets, packets);
}

fn lines(guard: &Guard<'_>, arguments: &[&str]) -> Vec<Value> {
    let answer = guard.tell(&[&["events", "--json"], arguments].concat());
    answer.output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Packets of lines of this kind, told by a member.
fn packets(lines: &[Value], member: &str) -> u64 {
    let of_kind = lines.iter().filter(|line| line.get(member).is_some());
    of_kind.map(|line| line["packets"].as_u64().expect("a number")).sum()
}

/// Asks a validator of another make.
fn expect_as_the_schema_has_it(lab: &Lab, schema: &str, value: &Value) {
    const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator, FormatChecker
schema, value = (json.load(open(path)) for path in sys.argv[1:])
Draft202012Validator.check_schema(schema)
Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)
";
    let python = |script: &str, files: &[&Path]| {
        Command::new("/usr/bin/python3").args(["-c", script]).args(files).output()
    };
    if !python("import jsonschema", &[]).is_ok_and(|answer| answer.status.success()) {
        println!("NOT RUN: the validation against the schema needs Debian's python3-jsonschema");
        return;
    }
    let files = ["schema.json", "value.json"].map(|name| lab.directory().join(name));
    fs::write(&files[0], schema).expect("it can be written");
    fs::write(&files[1], value.to_string()).expect("it can be written");
    let answer = python(VALIDATE, &[&files[0], &files[1]]).expect("it can be run");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
}

#[test]
fn sources_are_what_was_sent_and_what_the_kernel_has_counted() {
    let lab = Lab::new("sources_are_what_was_sent_and_what_the_kernel_has_counted");
    let guard = lab.start_guard(Attach::Tcx, "");
    let sent = knock(&lab, 5);
    until_kept(&guard, sent);
    assert_eq!(guard.counted("tcx", "drop", "no-rule"), sent);

    let all = guard.sources(&[]);
    assert_eq!((all.matching, all.sources.len()), (10, 10));
    for low in 1..=5 {
        let v6 = wire::stranger_v6(low).to_string();
        let prefix = format!("{}::/64", v6.trim_end_matches("::1"));
        for source in [wire::stranger_v4(low).to_string(), prefix] {
            let line = all.sources.iter().find(|line| line.source == source);
            let line = line.unwrap_or_else(|| panic!("{source} is none of {all:#?}"));
            assert_eq!(line.totals.packets, u64::from(low) + 1, "{source}");
            assert_eq!(line.ports, ["11434"]);
        }
    }
    let top = guard.sources(&["--top", "2"]);
    assert_eq!(top.sources.iter().map(|line| line.totals.packets).collect::<Vec<_>>(), [6, 6]);
    assert_eq!(top.total, all.total);
    let one = wire::stranger_v4(5).to_string();
    for (filter, packets) in [
        (&["--source", &one][..], 6),
        (&["--source", "2001:db8::/32"], sent / 2),
        (&["--port", "11434"], sent),
        (&["--port", "udp/53"], 0),
        (&["--label", "nobody"], 0),
        (&["--country", "FR"], 0),
        (&["--since", "1h", "--source", &one, "--port", "11434"], 6),
    ] {
        assert_eq!(guard.sources(filter).total.packets, packets, "{filter:?}");
    }
    let value: Value = serde_json::from_str(&guard.tell(&["sources", "--json"]).output).unwrap();
    expect_as_the_schema_has_it(&lab, SOURCES_SCHEMA, &value);
    let text = guard.tell(&["sources", "--source", &one]).output;
    assert!(text.contains("1 source: 6 packets in "), "{text}");

    // What is not well formed is told by the daemon as by the command alone.
    for refused in [
        &["sources", "--source", "somewhere"][..],
        &["sources", "--top", "0"],
        &["events", "--port", "0"],
        &["events", "--country", "France"],
    ] {
        assert_eq!(guard.ask(refused).code, Some(2), "{refused:?}");
    }
    let answer = ask_api(&guard.socket(), "GET", "/v1/sources?top=0", "");
    assert_eq!(answer.code, 400, "{answer:?}");
    guard.stop();
    assert_eq!(guard.ask(&["sources", "--source", "somewhere"]).code, Some(2));
    assert_eq!(guard.sources(&[]), all, "the same without a daemon");
    assert_eq!(names(&guard), ["history.db"], "and nothing is left beside it");
}

/// Files of the history.
fn names(guard: &Guard<'_>) -> Vec<String> {
    let entries = fs::read_dir(guard.state()).expect("there is state").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("history")).collect();
    names.sort();
    names
}

#[test]
fn a_killed_daemon_has_lost_the_last_second_at_most() {
    let lab = Lab::new("a_killed_daemon_has_lost_the_last_second_at_most");
    let guard = lab.start_guard(Attach::Tcx, "");
    let sent = knock(&lab, 5);
    until_kept(&guard, sent);
    guard.kill();
    assert_eq!(guard.sources(&[]).total.packets, sent, "read beside what the dead one left");
    guard.start();
    assert_eq!(guard.sources(&[]).total.packets, sent);
    let more = knock(&lab, 3);
    let is_heard = || packets(&lines(&guard, &["--since", "1h"]), "time") == more;
    until("the daemon has heard of them", is_heard);
    // Whatever is left is written at an orderly end.
    guard.stop();
    assert_eq!(guard.sources(&[]).total.packets, sent + more);
    assert_eq!(names(&guard), ["history.db"]);

    // What the daemon before has heard of is in hours, what this one hears of by itself.
    guard.start();
    let newest = knock(&lab, 2);
    until_kept(&guard, sent + more + newest);
    let all = lines(&guard, &["--since", "1d"]);
    assert_eq!(packets(&all, "hour"), sent + more, "{all:#?}");
    assert_eq!(packets(&all, "time"), newest);
    let hours: Vec<Value> = all.into_iter().filter(|line| line.get("hour").is_some()).collect();
    for hour in &hours {
        expect_as_the_schema_has_it(&lab, SCHEMA, hour);
    }
    let source = wire::stranger_v4(5).to_string();
    let of_one = lines(&guard, &["--since", "1d", "--source", &source]);
    assert_eq!((packets(&of_one, "hour"), packets(&of_one, "time")), (6, 0));
    let text = guard.tell(&["events", "--since", "1d", "--source", &source]).output;
    assert!(text.contains(&format!("drop no-rule {source} → port 11434 tcp, 6 packets")), "{text}");
    assert!(lines(&guard, &["--since", "1d", "--port", "9"]).is_empty());
    // Whoever only follows is told nothing of what was.
    assert_eq!(packets(&lines(&guard, &[]), "hour"), 0);
}

#[test]
fn what_is_no_history_is_set_aside_at_the_start() {
    let lab = Lab::new("what_is_no_history_is_set_aside_at_the_start");
    let listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    fs::create_dir(guard.state()).expect("it can be made");
    fs::write(guard.state().join("history.db"), [7; 9_000]).expect("it can be written");
    guard.start();
    until("it is said", || guard.log().contains("and a new one is begun"));
    let sent = knock(&lab, 2);
    until_kept(&guard, sent);
    let status = guard.status();
    let said = history(&status).set_aside.expect("status says so");
    assert!(said.contains("history.db can't be used"), "{said}");
    assert!(guard.ask(&["status"]).output.contains(&said));
    assert_eq!((sink(&status).taken > 0, sink(&status).left_out), (true, 0));
    assert!(names(&guard).iter().any(|name| name.starts_with("history.db.aside-")));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(listener.reached_by().is_empty());
}

#[test]
fn a_read_only_directory_is_named_and_what_came_is_written_once_it_can_be() {
    let lab = Lab::new("a_read_only_directory_is_named");
    let directory = lab.directory().join("kept");
    fs::create_dir(&directory).expect("it can be made");
    let path = directory.join("attempts.db");
    let configuration = format!("[events]\nhistory = \"{}\"\n", path.display());
    let mount = format!("mount -t tmpfs -o ro tmpfs {}", directory.display());
    let guard = lab.guard(Attach::Tcx, &configuration).in_a_mount_namespace(&mount);
    guard.start();
    let follower = guard.follow();
    let sent = knock(&lab, 3);
    until("nobody else misses anything", || follower.reported() == sent);
    until("status names it", || {
        sink(&guard.status()).error.is_some_and(|error| error.contains("attempts.db"))
    });
    assert_eq!(guard.log().matches("attempts.db can't be written").count(), 1, "{}", guard.log());
    assert_eq!(counted(&guard.status(), "tcx", "drop", "no-rule"), sent);

    let enter = format!("--mount=/proc/{}/ns/mnt", guard.pid());
    let target = directory.display().to_string();
    guard_tests::command::run("nsenter", &[&enter, "mount", "-o", "remount,rw", &target]);
    until_kept(&guard, sent);
    until("all is well", || sink(&guard.status()).error.is_none());
    assert_eq!(sink(&guard.status()).left_out, 0);
}

#[test]
fn it_is_where_the_configuration_says_or_nowhere() {
    let lab = Lab::new("it_is_where_the_configuration_says_or_nowhere");
    let guard = lab.start_guard(Attach::Tcx, "[events]\nhistory = false\n");
    let none = |guard: &Guard<'_>| guard.status().attempt_history.is_none();
    assert!(none(&guard));
    guard.expect_refusal(&["sources"], &["no history of attempts is kept"]);
    knock(&lab, 2);
    thread::sleep(Duration::from_secs(2));
    assert!(names(&guard).is_empty());

    let path = lab.directory().join("elsewhere/attempts.db");
    guard.configure(&format!("[events]\nhistory = \"{}\"\nkeep = \"7d\"\n", path.display()));
    guard.tell(&["reload"]);
    until("it is there", || !none(&guard));
    let sent = knock(&lab, 1);
    until_kept(&guard, sent);
    assert_eq!(history(&guard.status()).path, path.display().to_string());
    guard.configure("[events]\nhistory = false\n");
    guard.tell(&["reload"]);
    until("it is closed", || none(&guard));
    assert!(path.exists() && !path.with_extension("db-wal").exists());
}
