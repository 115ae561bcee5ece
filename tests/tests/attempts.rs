//! The history of attempts: who tried, asked for later, with and without a daemon.

use std::fs;

use guard::{
    events::Line,
    store::{Sources, Totals},
};
use guard_tests::{
    lab::{Lab, OLLAMA, SERVER},
    product::{Attach, Guard},
    wait::until,
    wire,
};
use ipnet::IpNet;

/// Sends so many packets of each of so many strangers, of both families, from this number on.
fn knock(lab: &Lab, first: u16, strangers: u16) {
    let wire = lab.wire();
    for low in first..first + strangers {
        wire.send(&wire::syn((wire::stranger_v4(low), 4242).into(), SERVER.v4_at(OLLAMA)));
        wire.send(&wire::syn((wire::stranger_v6(low), 4242).into(), SERVER.v6_at(OLLAMA)));
    }
}

fn sources(guard: &Guard<'_>, arguments: &[&str]) -> Sources {
    let arguments = [&["sources", "--json"], arguments].concat();
    serde_json::from_str(&guard.tell(&arguments).output).expect("it is JSON")
}

fn lines(guard: &Guard<'_>, arguments: &[&str]) -> Vec<Line> {
    let arguments = [&["events", "--json"], arguments].concat();
    let output = guard.tell(&arguments).output;
    output.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// Waits until so many packets are in the history, from sources that have a row of their own.
#[track_caller]
fn expect_packets(guard: &Guard<'_>, packets: u64) -> Sources {
    until("all packets are in the history", || sources(guard, &[]).total.packets >= packets);
    let sources = sources(guard, &[]);
    assert_eq!((sources.total.packets, sources.others), (packets, Totals::default()));
    sources
}

#[test]
fn who_tried_is_kept_and_adds_up_to_what_was_sent() {
    let lab = Lab::new("who_tried_is_kept_and_adds_up_to_what_was_sent");
    let guard = lab.start_guard(Attach::Tcx, "");
    knock(&lab, 1, 4);
    guard.expect_counted("tcx", "drop", "no-rule", 8);

    let kept = expect_packets(&guard, 8);
    assert_eq!(kept.total.attempts, 8);
    let shown: Vec<IpNet> = kept
        .sources
        .iter()
        .map(|it| {
            let is_whole = !it.source.contains('/');
            let text = if is_whole { format!("{}/32", it.source) } else { it.source.clone() };
            text.parse().expect("a prefix")
        })
        .collect();
    for low in 1..5 {
        for source in [wire::stranger_v4(low).into(), wire::stranger_v6(low).into()] {
            let source: std::net::IpAddr = source;
            assert!(shown.iter().any(|prefix| prefix.contains(&source)), "{source}: {shown:?}");
        }
    }
    assert!(kept.sources.iter().all(|it| it.ports == ["11434"] && it.first_seen <= it.last_seen));

    let one = wire::stranger_v4(2).to_string();
    let of = |arguments: &[&str]| sources(&guard, arguments).total.packets;
    assert_eq!(of(&["--source", &one]), 1);
    assert_eq!(of(&["--source", "0.0.0.0/0", "--port", "11434"]), 4);
    assert_eq!(of(&["--source", "::/0", "--since", "1h"]), 4);
    assert_eq!(
        (of(&["--port", "11435"]), of(&["--label", "office"]), of(&["--country", "FR"])),
        (0, 0, 0)
    );
    let top = sources(&guard, &["--top", "1"]);
    assert_eq!((top.sources.len(), top.matching), (1, kept.matching));

    // What the daemon still has singly is shown singly, and once.
    let all = lines(&guard, &["--since", "1h"]);
    assert_eq!(all.len(), 8);
    assert!(all.iter().all(|line| matches!(line, Line::Attempt(_))), "{all:?}");
    let of_one = lines(&guard, &["--since", "1h", "--source", &one]);
    let [Line::Attempt(attempt)] = &of_one[..] else { panic!("{of_one:?}") };
    assert_eq!(attempt.source.to_string(), one);
    assert!(lines(&guard, &["--since", "1h", "--port", "udp/11434"]).is_empty());

    guard.expect_refusal(&["sources", "--source", "nobody"], &["nobody"]);
    guard.expect_refusal(&["events", "--country", "Atlantis"], &["Atlantis"]);
    guard.expect_refusal(&["sources", "--port", "99999"], &["99999"]);
}

#[test]
fn a_kill_takes_nothing_that_was_written() {
    let lab = Lab::new("a_kill_takes_nothing_that_was_written");
    let guard = lab.start_guard(Attach::Tcx, "");
    knock(&lab, 1, 4);
    let before = expect_packets(&guard, 8);
    guard.kill();
    // Without a daemon, and whoever asks leaves nothing behind.
    assert_eq!(sources(&guard, &[]), before);

    guard.start();
    knock(&lab, 100, 2);
    expect_packets(&guard, 12);
    let lines = lines(&guard, &["--since", "1h"]);
    let (mut folded, mut singly) = (0, 0);
    for line in &lines {
        match line {
            Line::Hour(hour) => folded += hour.totals.packets,
            Line::Attempt(attempt) => singly += attempt.packets,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((folded, singly), (8, 4));
    assert!(guard.tell(&["events", "--since", "1h"]).output.contains("(history)"));
    let status = guard.status().attempt_history.expect("it keeps one");
    assert_eq!((status.error, status.set_aside, status.folded_into_others), (None, None, 0));

    // An end in order writes the last second, too.
    knock(&lab, 200, 1);
    guard.expect_counted("tcx", "drop", "no-rule", 14);
    until("both are reported", || guard.status().events.sources >= 7);
    guard.stop();
    assert_eq!(sources(&guard, &[]).total.packets, 14);
}

#[test]
fn what_is_no_history_is_set_aside_and_the_guard_runs_on() {
    let lab = Lab::new("what_is_no_history_is_set_aside_and_the_guard_runs_on");
    let guard = lab.guard(Attach::Tcx, "");
    fs::create_dir_all(guard.state()).expect("it can be made");
    let path = guard.state().join("history.db");
    fs::write(&path, "not a database, but somebody's only copy of something else\n".repeat(200))
        .expect("it can be written");
    guard.start();
    knock(&lab, 1, 1);
    expect_packets(&guard, 2);
    let said = guard.status().attempt_history.and_then(|it| it.set_aside).expect("it is said");
    assert!(said.contains(&path.display().to_string()), "{said}");
    let entries = fs::read_dir(guard.state()).expect("it is there").flatten();
    let aside = entries.map(|it| it.path()).find(|it| it.to_string_lossy().contains("aside"));
    let aside = fs::read_to_string(aside.expect("it is kept")).expect("it is as it was");
    assert!(aside.starts_with("not a database"));
}

#[test]
fn a_history_that_can_t_be_written_is_named_until_it_can() {
    let lab = Lab::new("a_history_that_can_t_be_written_is_named_until_it_can");
    let directory = lab.directory().join("kept");
    fs::write(&directory, "no directory").expect("it can be written");
    let path = directory.join("history.db");
    let guard =
        lab.start_guard(Attach::Tcx, &format!("[events]\nhistory = \"{}\"\n", path.display()));
    knock(&lab, 1, 1);
    until("it is said", || guard.status().attempt_history.is_some_and(|it| it.error.is_some()));
    let text = guard.ask(&["status"]).output;
    assert!(text.contains(&path.display().to_string()), "{text}");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    fs::remove_file(&directory).expect("it can be removed");
    until("what came meanwhile is written", || sources(&guard, &[]).total.packets >= 2);
    until("all is well", || guard.status().attempt_history.is_some_and(|it| it.error.is_none()));

    guard.configure("[events]\nhistory = false\n");
    guard.tell(&["reload"]);
    guard.expect_refusal(&["sources"], &["no history of attempts is kept"]);
    until("none is kept", || guard.status().attempt_history.is_none());
}
