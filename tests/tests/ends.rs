//! What ends by itself: rules with an end, and observing. Both end in the kernel, whether or not the daemon is alive.

use std::time::Duration;

use guard::control::Mode;
use guard_tests::{
    http,
    lab::{Lab, OLLAMA, SERVER},
    machine::Reply,
    on_each_hook,
    product::Attach,
    wait::{patience, until},
};

/// Long enough for this machine to make a call or two before it is over.
fn a_while() -> String {
    format!("{}s", (patience() / 6).as_secs())
}

on_each_hook!(an_allow_ends);
fn an_allow_ends(attach: Attach) {
    let lab = Lab::new(&format!("an_allow_ends {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.1", "--for", &a_while()]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    until("the client is shut out again", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
}

on_each_hook!(an_allow_ends_without_the_daemon);
fn an_allow_ends_without_the_daemon(attach: Attach) {
    let lab = Lab::new(&format!("an_allow_ends_without_the_daemon {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.1", "--for", &a_while()]);
    guard.kill();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    until("the client is shut out again", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
}

on_each_hook!(an_open_stream_falls_silent_with_its_allow_without_the_daemon);
fn an_open_stream_falls_silent_with_its_allow_without_the_daemon(attach: Attach) {
    let lab = Lab::new(&format!("an_open_stream_falls_silent {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.1", "--for", &a_while()]);
    let mut stream = lab.client.connect(SERVER.v4_at(OLLAMA));
    guard.kill();
    stream.set_read_timeout(Some(Duration::from_millis(800))).expect("a time limit");
    // Again and again, so that it is no newcomer whose packets the end meets.
    for _ in 0..3 {
        http::ask(&mut stream).expect("an answer");
    }
    until("nothing is answered any more", || http::ask(&mut stream).is_err());
    assert!(
        guard.counted("cgroup", "drop", "no-rule")
            + guard.counted(attach.hook(), "drop", "no-rule")
            > 0
    );
}

on_each_hook!(an_end_uncovers_the_rule_beneath, [native, tcx, socket]);
fn an_end_uncovers_the_rule_beneath(attach: Attach) {
    let lab = Lab::new(&format!("an_end_uncovers_the_rule_beneath {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.0/24"]);
    guard.tell(&["deny", "10.77.0.1", "--for", &a_while()]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.kill();
    until("the deny is over, and the allow beneath it holds", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Answered
    });
}

#[test]
fn a_wider_allow_does_not_outlive_its_own_end() {
    let lab = Lab::new("a_wider_allow_does_not_outlive_its_own_end");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");

    guard.tell(&["deny", "10.77.0.0/16"]);
    guard.tell(&["allow", "10.77.0.0/24", "--for", &a_while()]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let denied = guard.counted("tcx", "drop", "denied");
    until("the wider deny holds again", || lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent);
    assert!(guard.counted("tcx", "drop", "denied") > denied, "{:#?}", guard.status());
}

#[test]
fn an_allow_never_shortens_an_end() {
    let lab = Lab::new("an_allow_never_shortens_an_end");
    let guard = lab.start_guard(Attach::Tcx, "");

    guard.tell(&["allow", "10.77.0.1", "--for", "2h"]);
    let end = guard.rules()[0].until;
    assert!(end.is_some());
    let change = guard.change(&["allow", "10.77.0.1", "--for", "1s"]);
    assert!(!change.notes.is_empty(), "{change:#?}");
    assert_eq!(guard.rules().len(), 1, "{:#?}", guard.rules());
    assert!(guard.rules()[0].until >= end, "{:#?}", guard.rules());

    guard.tell(&["allow", "10.77.0.2"]);
    guard.tell(&["allow", "10.77.0.2", "--for", "1s"]);
    let rules = guard.rules();
    let for_ever = rules.iter().find(|rule| rule.source.contains("10.77.0.2"));
    assert_eq!(for_ever.map(|rule| rule.until), Some(None), "{rules:#?}");
}

on_each_hook!(observing_lets_everything_in_and_counts_it);
fn observing_lets_everything_in_and_counts_it(attach: Attach) {
    let lab = Lab::new(&format!("observing_lets_everything_in {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    guard.tell(&["observe", "--for", "1h"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    let status = guard.status();
    assert_eq!(status.mode, Mode::Observe);
    assert!(status.observe_until.is_some(), "{status:#?}");
    assert!(guard.counted(attach.hook(), "would-drop", "no-rule") > 0, "{status:#?}");

    guard.tell(&["enforce"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert_eq!(guard.status().mode, Mode::Enforce);
}

on_each_hook!(observing_ends);
fn observing_ends(attach: Attach) {
    let lab = Lab::new(&format!("observing_ends {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["observe", "--for", &a_while()]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    guard.kill();
    until("guard drops again, though nobody told it to", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
    assert_eq!(guard.status().mode, Mode::Enforce);
}

#[test]
fn guard_can_start_by_observing() {
    let lab = Lab::new("guard_can_start_by_observing");
    let _listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "mode = \"observe\"");
    guard.start();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(guard.status().mode, Mode::Observe);

    guard.tell(&["enforce"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}
