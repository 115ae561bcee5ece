//! What is counted and reported is what was sent: no packet twice, and none lost.

use std::{net::SocketAddr, thread, time::Duration};

use guard::{
    control::Status,
    events::{Attempt, SourceFacts},
};
use guard_common::abi::WHOLE_PER_TICK;
use guard_tests::{
    lab::{CLIENT, CONTAINER, Lab, OLLAMA, SERVER},
    machine::Reply,
    on_each_hook,
    product::{Attach, Follower, Guard, counted},
    wait::until,
    wire,
};

const PACKETS: u16 = 100;

on_each_hook!(each_packet_of_one_source_is_counted_once);
fn each_packet_of_one_source_is_counted_once(attach: Attach) {
    let lab = Lab::new(&format!("each_packet_of_one_source {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let events = guard.follow();

    let packets = (0..PACKETS).map(|i| (wire::stranger_v4(1), 2000 + i).into());
    send_all(&lab, packets);
    expect_all_counted(&guard, &events, attach.hook(), "drop");
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(each_packet_of_many_sources_is_counted_once);
fn each_packet_of_many_sources_is_counted_once(attach: Attach) {
    let lab = Lab::new(&format!("each_packet_of_many_sources {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let events = guard.follow();

    send_all(&lab, many_sources());
    expect_all_counted(&guard, &events, attach.hook(), "drop");
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

on_each_hook!(each_packet_is_counted_once_when_observing);
fn each_packet_is_counted_once_when_observing(attach: Attach) {
    let lab = Lab::new(&format!("each_packet_when_observing {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "mode = \"observe\"");
    let events = guard.follow();

    send_all(&lab, many_sources());
    expect_all_counted(&guard, &events, attach.hook(), "would-drop");
    until("every packet has come through", || {
        lab.server.half_open_connections(OLLAMA) == usize::from(PACKETS)
    });
    // The backstop has seen the same packets: it counts them under its own name, and reports none of them again.
    if attach != Attach::Socket {
        guard.expect_counted("cgroup", "would-drop", "no-rule", PACKETS.into());
        let status = guard.status();
        assert_eq!(status.events.repeated, u64::from(PACKETS), "{status:#?}");
    }
}

on_each_hook!(an_attempt_is_reported_as_it_was);
fn an_attempt_is_reported_as_it_was(attach: Attach) {
    let lab = Lab::new(&format!("an_attempt_is_reported_as_it_was {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let events = guard.follow();

    let wire = lab.wire();
    let senders = [(wire::stranger_v4(9), 4242).into(), (wire::stranger_v6(9), 4243).into()];
    for (sender, server) in senders.into_iter().zip(SERVER.at(OLLAMA)) {
        wire.send(&wire::syn(sender, server));
    }
    until("both attempts are reported", || events.attempts().len() >= 2);

    for (sender, (server, bytes)) in senders.iter().zip(SERVER.at(OLLAMA).iter().zip([40, 60])) {
        let attempts = events.attempts();
        let attempt = attempts.iter().find(|attempt| attempt.source == sender.ip());
        let attempt = attempt.unwrap_or_else(|| panic!("{sender} is not in {attempts:#?}"));
        let expected = Attempt {
            time: attempt.time,
            verdict: "drop".to_owned(),
            reason: "no-rule".to_owned(),
            hook: attach.hook().to_owned(),
            interface: (attach != Attach::Socket).then(|| "eth0".to_owned()),
            source: sender.ip(),
            source_port: Some(sender.port()),
            destination: server.ip(),
            port: Some(OLLAMA),
            protocol: "tcp".to_owned(),
            tcp_flags: "SYN".to_owned(),
            packets: 1,
            bytes,
            sampled: false,
            // A SYN without options, from nowhere near.
            facts: SourceFacts {
                class: Some("public".to_owned()),
                labels: vec!["mass-scan".to_owned()],
                ..SourceFacts::default()
            },
        };
        assert_eq!(*attempt, expected);
    }
}

on_each_hook!(a_flood_is_sampled_and_nothing_of_it_is_lost, [native, generic, tcx, clsact, socket]);
fn a_flood_is_sampled_and_nothing_of_it_is_lost(attach: Attach) {
    const FLOOD: u16 = 5000;
    let lab = Lab::new(&format!("a_flood_is_sampled {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let events = guard.follow();

    send_at_once(&lab, (0..FLOOD).map(|i| (wire::stranger_v4(i % 256), 2000 + i).into()));
    guard.expect_counted(attach.hook(), "drop", "no-rule", FLOOD.into());
    until("every packet is accounted for", || is_all_accounted_for(&events, &guard.status()));
    let attempts = events.attempts();
    assert!(attempts.iter().any(|attempt| attempt.sampled), "{attempts:#?}");
    // And it is over when it is over: who comes then is looked at by itself.
    thread::sleep(Duration::from_millis(20));
    let late = (wire::stranger_v6(1), 4242).into();
    send_at_once(&lab, [late].into_iter());
    until("the one that comes later is reported", || {
        let attempts = events.attempts();
        let found = attempts.iter().find(|attempt| attempt.source == late.ip());
        found.is_some_and(|attempt| attempt.source_port == Some(4242))
    });
}

#[test]
fn a_source_that_goes_on_is_reported_with_all_it_sent_meanwhile() {
    let lab = Lab::new("a_source_that_goes_on_is_reported");
    let guard = lab.start_guard(Attach::Tcx, "");
    let events = guard.follow();
    let wire = lab.wire();
    let mut sent = 0;
    // A source is reported once a second: the line after the first holds what came in between.
    until("a second line is there", || {
        sent += 1;
        let sender = (wire::stranger_v4(1), 2000 + sent).into();
        wire.send(&wire::syn(sender, SERVER.v4_at(OLLAMA)));
        events.attempts().len() >= 2
    });
    let attempts = events.attempts();
    assert_eq!(attempts[0].packets, 1, "{attempts:#?}");
    assert!(attempts[1].packets > 1, "{attempts:#?}");
    until("everything sent is reported or said to be unreported", || {
        let status = guard.status();
        is_all_accounted_for(&events, &status)
            && counted(&status, "tcx", "drop", "no-rule") == u64::from(sent)
    });
}

#[test]
fn attempts_are_lines_for_people_too() {
    let lab = Lab::new("attempts_are_lines_for_people_too");
    let guard = lab.start_guard(Attach::Tcx, "");
    let sender = (wire::stranger_v4(3), 4242).into();
    lab.wire().send(&wire::syn(sender, SERVER.v4_at(OLLAMA)));
    until("the attempt is printed", || {
        let printed = guard.tell(&["events", "--since", "1h"]).output;
        printed.lines().any(|line| {
            ["drop", "no-rule", "198.18.0.3", "11434", "eth0"]
                .iter()
                .all(|word| line.contains(word))
        })
    });
}

on_each_hook!(explain_agrees_with_what_happens);
fn explain_agrees_with_what_happens(attach: Attach) {
    let lab = Lab::new(&format!("explain_agrees_with_what_happens {attach}"));
    let container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let places: &[&str] = if attach == Attach::Socket { &["socket"] } else { &["eth0", "socket"] };
    let before = guard.status();

    // Nobody has allowed the client.
    for source in [CLIENT.v4.to_string(), CLIENT.v6.to_string()] {
        for place in places {
            assert_eq!(explained(&guard, &source, place), ("drop".into(), Some("no-rule".into())));
        }
    }
    // A container reaches the socket; its address in a packet from outside is spoofed.
    let source = CONTAINER.v4.to_string();
    assert_eq!(explained(&guard, &source, "socket"), ("pass".into(), Some("local".into())));
    if attach != Attach::Socket {
        assert_eq!(explained(&guard, &source, "eth0"), ("drop".into(), Some("spoofed".into())));
    }
    let after = guard.status();
    assert_eq!(after.counters, before.counters, "explaining was counted");
    assert_eq!(after.events, before.events, "explaining was reported");

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
        container.expect_answer(server);
    }

    guard.tell(&["allow", "10.77.0.0/24"]);
    let rule = guard.rules()[0].id.clone();
    for place in places {
        let source = CLIENT.v4.to_string();
        assert_eq!(explained(&guard, &source, place), ("pass".into(), Some("allowed".into())));
        let explanation = guard.explain(&source, "11434");
        let there = explanation.places.iter().find(|candidate| candidate.place == *place);
        let named = there.and_then(|there| there.rule.as_ref()).map(|rule| &rule.id);
        assert_eq!(named, Some(&rule), "{explanation:#?}");
    }
    assert_eq!(lab.client.call(SERVER.v4_at(OLLAMA)), Reply::Answered);

    guard.tell(&["deny", "10.77.0.1"]);
    for place in places {
        let source = CLIENT.v4.to_string();
        assert_eq!(explained(&guard, &source, place), ("drop".into(), Some("denied".into())));
    }
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.tell(&["observe"]);
    for place in places {
        let source = CLIENT.v4.to_string();
        assert_eq!(explained(&guard, &source, place), ("would-drop".into(), Some("denied".into())));
    }
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn explain_says_when_a_port_is_not_guarded() {
    let lab = Lab::new("explain_says_when_a_port_is_not_guarded");
    let guard = lab.start_guard(Attach::Tcx, "");
    let explanation = guard.explain("10.77.0.1", "8080");
    assert!(!explanation.places.is_empty());
    for place in &explanation.places {
        assert_eq!(place.verdict, "not-guarded", "{explanation:#?}");
    }
}

fn many_sources() -> impl Iterator<Item = SocketAddr> {
    (0..PACKETS).map(|i| {
        if i % 2 == 0 {
            (wire::stranger_v4(i), 4242).into()
        } else {
            (wire::stranger_v6(i), 4242).into()
        }
    })
}

/// Sends a SYN from each, slowly enough for each to be looked at by itself.
#[track_caller]
fn send_all(lab: &Lab, senders: impl Iterator<Item = SocketAddr>) {
    // The longest tick is 10 ms (`CONFIG_HZ`), and a pause spans a whole one.
    const PAUSE: Duration = Duration::from_millis(20);
    let senders: Vec<_> = senders.collect();
    for few in senders.chunks(WHOLE_PER_TICK as usize / 2) {
        send_at_once(lab, few.iter().copied());
        thread::sleep(PAUSE);
    }
}

#[track_caller]
fn send_at_once(lab: &Lab, senders: impl Iterator<Item = SocketAddr>) {
    let wire = lab.wire();
    for sender in senders {
        let server = if sender.is_ipv4() { SERVER.v4_at(OLLAMA) } else { SERVER.v6_at(OLLAMA) };
        wire.send(&wire::syn(sender, server));
    }
}

/// Checks that every packet sent is counted at this hook, and either reported or counted as in no report.
#[track_caller]
fn expect_all_counted(guard: &Guard<'_>, events: &Follower, hook: &str, verdict: &str) {
    guard.expect_counted(hook, verdict, "no-rule", PACKETS.into());
    until("every packet is accounted for", || is_all_accounted_for(events, &guard.status()));
    let attempts = events.attempts();
    assert!(!attempts.is_empty());
    for attempt in &attempts {
        assert_eq!((attempt.hook.as_str(), attempt.verdict.as_str()), (hook, verdict));
    }
}

/// Whether each packet that a hook has stopped, or would have, is in an attempt, or among those that are in none.
fn is_all_accounted_for(events: &Follower, status: &Status) -> bool {
    let reported = events.reported();
    let totals = &status.events;
    let counters = status.counters.iter().filter(|counter| counter.verdict != "pass");
    reported + totals.unreported + totals.repeated + totals.passed_over
        == counters.map(|counter| counter.packets).sum::<u64>()
}

#[track_caller]
fn explained(guard: &Guard<'_>, source: &str, place: &str) -> (String, Option<String>) {
    let explanation = guard.explain(source, "11434");
    let there = explanation.places.iter().find(|candidate| candidate.place == place);
    let there = there.unwrap_or_else(|| panic!("{place} is not in {explanation:#?}"));
    (there.verdict.clone(), there.reason.clone())
}
