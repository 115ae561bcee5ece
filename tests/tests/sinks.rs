//! Where the daemon writes attempts by itself: a file of JSON lines, and the journal.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use guard::{control::SinkStatus, events::Attempt};
use guard_tests::{
    lab::{Lab, OLLAMA, SERVER},
    product::{Attach, Guard},
    wait::until,
    wire,
};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../docs/attempt.schema.json");

/// Sends one packet of each of so many strangers, of both families, from this number on: so few that each is reported singly.
fn knock(lab: &Lab, first: u16, strangers: u16) {
    let wire = lab.wire();
    for low in first..first + strangers {
        wire.send(&wire::syn((wire::stranger_v4(low), 4242).into(), SERVER.v4_at(OLLAMA)));
        wire.send(&wire::syn((wire::stranger_v6(low), 4242).into(), SERVER.v6_at(OLLAMA)));
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[track_caller]
fn expect_lines(path: &Path, count: usize) -> Vec<Value> {
    until(&format!("{count} attempts are written"), || lines(path).len() >= count);
    let lines = lines(path);
    assert_eq!(lines.len(), count);
    lines
}

/// Asks a validator of another make.
fn expect_as_the_schema_has_it(lab: &Lab, attempts: &[Value]) {
    const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator, FormatChecker
schema, attempts = (json.load(open(path)) for path in sys.argv[1:])
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema, format_checker=FormatChecker())
for attempt in attempts:
    validator.validate(attempt)
    assert not validator.is_valid({**attempt, 'reason': 'whim'})
    assert not validator.is_valid({**attempt, 'source': 'somewhere'})
";
    let python = |script: &str, files: &[&Path]| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).args(files).output()
    };
    if !python("import jsonschema", &[]).is_ok_and(|answer| answer.status.success()) {
        println!("NOT RUN: the validation against the schema needs Debian's python3-jsonschema");
        return;
    }
    let files = ["schema.json", "attempts.json"].map(|name| lab.directory().join(name));
    fs::write(&files[0], SCHEMA).expect("it can be written");
    fs::write(&files[1], Value::from(attempts).to_string()).expect("it can be written");
    let answer = python(VALIDATE, &[&files[0], &files[1]]).expect("it can be run");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
}

fn sink(guard: &Guard<'_>, name: &str) -> SinkStatus {
    let sinks = guard.status().events.sinks;
    let sink = sinks.iter().find(|sink| sink.sink == name);
    sink.unwrap_or_else(|| panic!("{name} is none of {sinks:?}")).clone()
}

#[test]
fn each_attempt_is_a_line_of_the_file_as_the_schema_has_it() {
    let lab = Lab::new("each_attempt_is_a_line_of_the_file_as_the_schema_has_it");
    let path = lab.directory().join("log/attempts.jsonl");
    let at = |path: &Path| format!("[events]\njsonl = \"{}\"\n", path.display());
    let guard = lab.start_guard(Attach::Tcx, &at(&path));
    let follower = guard.follow();
    knock(&lab, 1, 5);
    let written = expect_lines(&path, 10);

    expect_as_the_schema_has_it(&lab, &written);
    until("who follows has seen them, too", || follower.attempts().len() == 10);
    let read = |line: &Value| serde_json::from_value::<Attempt>(line.clone()).expect("an attempt");
    assert_eq!(written.iter().map(read).collect::<Vec<_>>(), follower.attempts());

    // Renamed, as logrotate does it; copied and cut, as it does with copytruncate.
    let renamed = lab.directory().join("log/attempts.jsonl-20261127");
    fs::rename(&path, &renamed).expect("it can be renamed");
    knock(&lab, 100, 5);
    expect_lines(&path, 10);
    assert_eq!(lines(&renamed).len(), 10);
    fs::File::options().write(true).truncate(true).open(&path).expect("it can be cut");
    knock(&lab, 200, 5);
    expect_lines(&path, 10);

    // Elsewhere, from a reload on.
    let other = lab.directory().join("log/others.jsonl");
    guard.configure(&at(&other));
    guard.tell(&["reload"]);
    knock(&lab, 300, 5);
    expect_lines(&other, 10);
    assert_eq!(lines(&path).len(), 10);
    guard.configure("");
    guard.tell(&["reload"]);
    let is_there = || guard.status().events.sinks.iter().any(|sink| sink.sink == "jsonl");
    until("there is no such sink", || !is_there());
}

#[test]
fn a_file_that_can_t_be_written_is_named_and_nobody_else_misses_anything() {
    let lab = Lab::new("a_file_that_can_t_be_written_is_named_and_nobody_else_misses_anything");
    let path = lab.directory().join("attempts.jsonl");
    fs::create_dir(&path).expect("it can be made");
    let configuration = format!("[events]\njsonl = \"{}\"\n", path.display());
    let guard = lab.start_guard(Attach::Tcx, &configuration);
    let follower = guard.follow();
    knock(&lab, 1, 5);
    until("the follower has them", || follower.attempts().len() == 10);
    let name = "jsonl";
    until("status names it", || {
        sink(&guard, name).error.is_some_and(|error| error.contains("attempts.jsonl"))
    });
    until("what it has not is counted", || sink(&guard, name).left_out == 10);
    assert_eq!(guard.log().matches("attempts can't be written").count(), 1, "{}", guard.log());

    fs::remove_dir(&path).expect("it can be removed");
    knock(&lab, 100, 5);
    expect_lines(&path, 10);
    until("all is well", || sink(&guard, name).error.is_none());
    assert_eq!(follower.attempts().len(), 20);
}

/// Of systemd, which Debian's package of that name brings.
const JOURNALD: &str = "/lib/systemd/systemd-journald";

#[test]
fn the_journal_has_a_field_for_each_fact() {
    if !Path::new(JOURNALD).exists() {
        println!("NOT RUN: the journal needs {JOURNALD}, which is not here");
        return;
    }
    let lab = Lab::new("the_journal_has_a_field_for_each_fact");
    // A journal of its own, which ends with the daemon that takes the shell's place.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && mkdir -p /run/systemd/journal && {{ \
         setpriv --pdeathsig KILL {JOURNALD} >/dev/null 2>&1 & }} && \
         until test -S /run/systemd/journal/socket; do sleep 0.05; done && \
         export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)"
    );
    let guard = lab.guard(Attach::Tcx, "").in_a_mount_namespace(&script);
    guard.start();
    knock(&lab, 7, 1);
    let source = wire::stranger_v4(7).to_string();
    let entries = || {
        let answer = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", guard.pid()))
            .args(["journalctl", "--no-pager", "--quiet", "-o", "json"])
            .arg(format!("GUARD_SOURCE={source}"))
            .output()
            .expect("journalctl can be run");
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    until("the journal has it", || entries().len() == 1);
    let entry: BTreeMap<String, Value> =
        serde_json::from_value(entries().remove(0)).expect("it is an object");
    for (field, value) in [
        ("GUARD_VERDICT", "drop"),
        ("GUARD_REASON", "no-rule"),
        ("GUARD_PORT", "11434"),
        ("GUARD_PACKETS", "1"),
        ("GUARD_HOOK", "tcx"),
        ("SYSLOG_IDENTIFIER", "guard"),
    ] {
        assert_eq!(entry.get(field).and_then(Value::as_str), Some(value), "{entry:#?}");
    }
    let message = entry["MESSAGE"].as_str().expect("it is text");
    assert!(message.starts_with(&format!("drop no-rule {source}:4242")), "{message}");
    assert_eq!(sink(&guard, "journal").taken, 2);
}
