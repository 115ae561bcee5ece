//! Changes on trial, which go back by themselves unless they are confirmed, whether or not the daemon is alive.

use std::time::Duration;

use guard::history::{Kind, Via};
use guard_tests::{
    http,
    lab::{Lab, OLLAMA, SERVER, every_address},
    listener::Service,
    machine::Reply,
    on_each_hook,
    product::{Attach, Guard},
    wait::{patience, until},
};

/// Long enough for this machine to make a call or two before it is over.
fn a_while() -> String {
    format!("{}s", (patience() / 6).as_secs())
}

/// Where the second service listens.
const OTHER: u16 = 8080;

fn expect_rolled_back(guard: &Guard<'_>) {
    until("the history has the rollback", || {
        guard.history().last().is_some_and(|entry| entry.change == Kind::Rollback)
    });
    let last = guard.history().pop();
    assert!(
        last.as_ref().is_some_and(|last| last.via == Via::Daemon
            && last.command.starts_with("not confirmed: ")
            && last.old_generation < last.new_generation),
        "{last:#?}"
    );
    assert_eq!(guard.status().trial, None);
}

on_each_hook!(an_allow_on_trial_goes_back, [tcx, socket]);
fn an_allow_on_trial_goes_back(attach: Attach) {
    let lab = Lab::new(&format!("an_allow_on_trial_goes_back {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    let said = guard.tell(&["allow", "10.77.0.1", "--confirm", &a_while()]).output;
    assert!(said.contains("on trial: it holds until") && said.contains("guard confirm"), "{said}");
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let status = guard.status();
    let trial = status.trial.as_ref().map(|trial| (trial.what.as_str(), Some(trial.until)));
    assert_eq!(trial.map(|(_, until)| until), Some(guard.rules()[0].until), "{status:#?}");
    assert!(trial.is_some_and(|(what, _)| what.starts_with("allow 10.77.0.1")), "{status:#?}");
    let other: &[&[&str]] = &[
        &["allow", "10.77.0.2"],
        &["deny", "10.77.0.2", "--confirm", "60s"],
        &["remove", "1"],
        &["observe"],
        &["reload"],
    ];
    for command in other {
        guard.expect_refusal(command, &["on trial for another", "guard confirm"]);
    }

    until("the client is shut out again", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
    expect_rolled_back(&guard);
    assert!(guard.rules().is_empty());
    assert!(guard.log().contains("rolled back, not confirmed: allow 10.77.0.1"), "{}", guard.log());
    guard.expect_refusal(&["confirm"], &["no change is on trial"]);
    guard.expect_refusal(&["rollback"], &["no change is on trial"]);
}

on_each_hook!(an_allow_on_trial_goes_back_without_the_daemon, [native, tcx, socket]);
fn an_allow_on_trial_goes_back_without_the_daemon(attach: Attach) {
    let lab = Lab::new(&format!("an_allow_on_trial_without_the_daemon {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.1", "--confirm", &a_while()]);
    guard.kill();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    guard.expect_refusal(&["allow", "10.77.0.2"], &["on trial for another"]);
    until("the client is shut out again", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
    // The next to change something clears it away.
    until("it is too late to confirm", || guard.ask(&["confirm"]).errors.contains("rolled back"));
    expect_rolled_back(&guard);
    guard.tell(&["allow", "10.77.0.2"]);
    assert_eq!(guard.rules().len(), 1);
    guard.start();
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let kinds: Vec<_> = guard.history().iter().map(|entry| entry.change).collect();
    assert_eq!(kinds, [Kind::Start, Kind::Allow, Kind::Rollback, Kind::Allow, Kind::Start]);
}

#[test]
fn what_is_confirmed_stays_as_it_was_asked_for() {
    let lab = Lab::new("what_is_confirmed_stays");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");

    guard.tell(&["allow", "10.77.0.1", "--for", "1h", "--confirm", &a_while()]);
    let over = guard.status().trial.map(|trial| trial.until);
    let said = guard.tell(&["confirm"]).output;
    assert!(said.contains("kept allow 10.77.0.1"), "{said}");
    let end = guard.rules()[0].until;
    assert!(end > over && over.is_some(), "{end:?} {over:?}");
    until("the trial's time is over", || over < Some(jiff::Timestamp::now()));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(guard.rules()[0].until, end);

    // The rule that is there already is left alone, and renewed once it is confirmed: here without a daemon.
    guard.tell(&["allow", "10.77.0.1", "--confirm", "1h"]);
    assert_eq!(guard.rules().len(), 2);
    guard.kill();
    guard.tell(&["confirm"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let rules = guard.rules();
    assert_eq!(rules.iter().map(|rule| rule.until).collect::<Vec<_>>(), [None], "{rules:#?}");
    let last = guard.history().pop();
    assert!(last.is_some_and(|last| last.change == Kind::Confirm && last.via == Via::Command));
}

on_each_hook!(a_deny_on_trial_cuts_and_goes_back, [tcx, socket]);
fn a_deny_on_trial_cuts_and_goes_back(attach: Attach) {
    let lab = Lab::new(&format!("a_deny_on_trial_cuts_and_goes_back {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.1"]);

    for is_killed in [false, true] {
        let mut stream = lab.client.connect(SERVER.v4_at(OLLAMA));
        assert!(http::ask(&mut stream).is_ok());
        guard.tell(&["deny", "10.77.0.1", "--confirm", &a_while()]);
        assert!(stream.set_read_timeout(Some(Duration::from_millis(200))).is_ok());
        until("the connection is over", || http::ask(&mut stream).is_err());
        if is_killed {
            guard.kill();
        }
        assert_eq!(lab.client.call(SERVER.v4_at(OLLAMA)), Reply::Silent);
        until("the allow beneath holds again", || {
            lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Answered
        });
        if !is_killed {
            expect_rolled_back(&guard);
        }
    }
}

#[test]
fn a_trial_can_be_taken_back_at_once() {
    let lab = Lab::new("a_trial_can_be_taken_back_at_once");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.1", "--confirm", "1h"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    guard.tell(&["rollback"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let last = guard.history().pop();
    assert!(last.is_some_and(|last| last.via == Via::Socket && last.command == "rollback"));

    // Lifting ends a trial as well, and leaves nothing of it for the next start.
    guard.tell(&["allow", "10.77.0.1", "--confirm", "1h"]);
    guard.tell(&["down"]);
    guard.wait_for_end();
    guard.expect_refusal(&["confirm"], &["no change is on trial"]);
    guard.expect_refusal(&["allow", "10.77.0.1", "--confirm", "60s"], &["nothing is in force"]);
    assert!(guard.rules().is_empty());
}

#[test]
fn spans_out_of_bounds_are_refused() {
    let lab = Lab::new("spans_out_of_bounds_are_refused");
    let guard = lab.start_guard(Attach::Tcx, "");
    let generation = guard.generation();
    for span in ["4s", "61m", "7d"] {
        guard.expect_refusal(&["allow", "10.77.0.1", "--confirm", span], &["5s to 1h"]);
        guard.expect_refusal(&["reload", "--confirm", span], &["5s to 1h"]);
    }
    guard.expect_refusal(&["reload", "--confirm", "soon"], &["soon"]);
    assert_eq!(guard.generation(), generation);
    assert_eq!(guard.status().trial, None);
}

/// Both services, the client let in to the first by the file, and the second not guarded yet.
const ONE_PORT: &str = "[[rule]]\nallow = \"10.77.0.1\"";
/// The second is guarded as well, and the client shut out.
const TWO_PORTS: &str = "ports = [11434, 8080]";

fn expect_one_port(lab: &Lab) {
    for port in [OLLAMA, OTHER] {
        lab.client.expect_answer(SERVER.v4_at(port));
    }
}

fn expect_two_ports(lab: &Lab) {
    for port in [OLLAMA, OTHER] {
        lab.client.expect_silence(SERVER.v4_at(port));
    }
}

#[test]
fn a_reload_on_trial_goes_back() {
    let lab = Lab::new("a_reload_on_trial_goes_back");
    let _listener = lab.serve();
    let _other = lab.listen(&lab.server, Service::Http, every_address(OTHER));
    let guard = lab.start_guard(Attach::Tcx, ONE_PORT);
    expect_one_port(&lab);

    guard.configure(TWO_PORTS);
    let said = guard.tell(&["reload", "--confirm", &a_while()]).output;
    assert!(said.contains("on trial: it holds until"), "{said}");
    expect_two_ports(&lab);
    until("the old configuration holds again", || {
        [OLLAMA, OTHER].map(|port| lab.client.call(SERVER.v4_at(port))) == [Reply::Answered; 2]
    });
    expect_rolled_back(&guard);
    let status = guard.status();
    assert!(status.rolled_back && status.ports == ["11434"], "{status:#?}");
    let last = guard.history().pop();
    assert!(last.is_some_and(|last| last.ports.removed == ["8080"] && last.rules.len() == 1));
    assert!(guard.ask(&["status"]).output.contains("guard reload takes it"));
    assert!(guard.log().contains("`guard reload` takes it"), "{}", guard.log());

    // Rules are made as ever, and do not bring the file in.
    guard.tell(&["allow", "10.77.0.9"]);
    expect_one_port(&lab);
    guard.tell(&["reload", "--confirm", "1h"]);
    expect_two_ports(&lab);
    guard.tell(&["confirm"]);
    expect_two_ports(&lab);
    let status = guard.status();
    assert!(!status.rolled_back && status.trial.is_none(), "{status:#?}");
    guard.stop();
    guard.start();
    expect_two_ports(&lab);
}

#[test]
fn a_reload_on_trial_is_rolled_back_by_the_next_start() {
    let lab = Lab::new("a_reload_on_trial_by_the_next_start");
    let _listener = lab.serve();
    let _other = lab.listen(&lab.server, Service::Http, every_address(OTHER));
    let guard = lab.start_guard(Attach::Tcx, TWO_PORTS);

    guard.configure(ONE_PORT);
    guard.tell(&["reload", "--confirm", "1h"]);
    guard.kill();
    // The kernel goes on, and nobody else changes anything.
    expect_one_port(&lab);
    guard.expect_refusal(&["allow", "10.77.0.2"], &["on trial", "guard confirm"]);
    let mut stream = lab.client.connect(SERVER.v4_at(OTHER));
    assert!(stream.set_read_timeout(Some(Duration::from_millis(200))).is_ok());
    assert!(http::ask(&mut stream).is_ok());

    // Nobody is asked about the connection that this cuts: the port was guarded before.
    guard.start();
    expect_two_ports(&lab);
    assert!(http::ask(&mut stream).is_err());
    let status = guard.status();
    assert!(status.rolled_back && status.trial.is_none(), "{status:#?}");
    let kinds: Vec<_> = guard.history().iter().map(|entry| (entry.change, entry.via)).collect();
    let expected = [
        (Kind::Start, Via::Command),
        (Kind::Reload, Via::Socket),
        (Kind::Rollback, Via::Daemon),
        (Kind::Start, Via::Command),
    ];
    assert_eq!(kinds, expected);

    // Nor does the start after that take the file that nobody has confirmed; one that was changed since then, it does.
    for _ in 0..2 {
        guard.kill();
        guard.start();
        expect_two_ports(&lab);
        assert!(guard.status().rolled_back);
    }
    guard.stop();
    guard.expect_refusal(&["reload", "--confirm", "60s"], &["without a daemon"]);
    guard.configure(&format!("# looked at again\n{ONE_PORT}"));
    guard.start();
    expect_one_port(&lab);
    assert!(!guard.status().rolled_back);
}

#[test]
fn a_reload_on_trial_can_be_confirmed_without_the_daemon() {
    let lab = Lab::new("a_reload_on_trial_confirmed_without_the_daemon");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, ONE_PORT);

    guard.configure("");
    guard.tell(&["reload", "--confirm", "1h"]);
    guard.kill();
    // It is the configuration on trial that is confirmed, whatever has become of the file.
    guard.configure(ONE_PORT);
    guard.tell(&["confirm"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    guard.start();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}
