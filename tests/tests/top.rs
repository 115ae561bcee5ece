//! `guard top` in a real terminal.

use std::{env, fs, path::PathBuf, thread, time::Duration};

use guard::{rates::RatesView, top::terminal::Screen};
use guard_tests::{
    http,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    product::{Attach, Guard},
    tmux::Window,
    wait::until,
    wire,
};
use rustix::process::{Pid, Signal, kill_process};

const USUAL: (u16, u16) = (80, 24);

/// One packet of a stranger of this number, of each family.
fn knock(lab: &Lab, stranger: u16) {
    let wire = lab.wire();
    wire.send(&wire::syn((wire::stranger_v4(stranger), 4242).into(), SERVER.v4_at(OLLAMA)));
    wire.send(&wire::syn((wire::stranger_v6(stranger), 4242).into(), SERVER.v6_at(OLLAMA)));
}

/// Starts `guard top`, with these settings of the environment.
#[track_caller]
fn start(window: &Window, guard: &Guard<'_>, settings: &[&str]) -> u32 {
    let mut words: Vec<String> =
        ["env", "-u", "GUARD_CONFIG", "LC_ALL=C.UTF-8"].map(str::to_owned).into();
    words.extend(settings.iter().map(|&setting| setting.to_owned()));
    words.extend(guard.command_line(&["top"]));
    window.run(&words)
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
    kill_process(pid, signal).expect("it can be sent");
}

fn rates(guard: &Guard<'_>) -> RatesView {
    serde_json::from_value(http::ask_api(&guard.socket(), "GET", "/v1/rates", "").json())
        .expect("rates")
}

#[test]
fn who_knocks_is_shown_and_can_be_let_in_and_kept_out() {
    let lab = Lab::new("who_knocks_is_shown_and_can_be_let_in_and_kept_out");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    // Before anybody looks: what the daemon still has of it is shown as well.
    knock(&lab, 7);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let Some(window) = Window::open(&lab, USUAL) else { return };
    let _ = start(&window, &guard, &["NO_COLOR=1"]);

    // Within a test's cgroup guard is never all there is, and says so as `guard status` does.
    let status = guard.ask(&["status"]).output;
    window.expect(status.lines().next().expect("a line"));
    window.expect("missing: the backstop judges");
    let client = CLIENT.v4.to_string();
    for source in ["198.18.0.7", "2001:db8:0:7::/64", &client] {
        window.expect(source);
    }
    window.expect("last minute");
    knock(&lab, 8);
    window.expect("198.18.0.8");

    // Only who is looked for.
    window.type_in(&format!("/{client}"));
    window.expect_gone("198.18.0.7");
    window.press(&["Enter"]);
    window.expect(&format!("> {client}"));
    window.expect(&format!("filter: {client}"));

    // Nothing happens that is not confirmed.
    window.type_in("a");
    window.expect(&format!("guard allow {client}"));
    window.expect("at every guarded port (TCP 11434)");
    window.type_in("n");
    window.expect("nothing was changed");
    assert!(guard.rules().is_empty());
    window.type_in("a");
    window.expect("y  yes, until it is removed");
    window.type_in("y");
    window.expect(&format!("allowed {client} at every guarded port (rule 1)"));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    window.type_in("4");
    window.expect("1    allow  10.77.0.1");

    window.type_in("1d");
    window.expect(&format!("guard deny {client}"));
    window.type_in("h");
    window.expect(&format!("denied {client}"));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let denied = guard.rules().into_iter().find(|rule| rule.until.is_some());
    assert_eq!(denied.map(|rule| rule.source), Some(client));

    window.press(&["Escape"]);
    window.expect("198.18.0.7");
    window.type_in("q");
    assert_eq!(window.ended(), 0);
}

#[test]
fn keys_lead_through_the_panes_and_any_size_will_do() {
    let lab = Lab::new("keys_lead_through_the_panes_and_any_size_will_do");
    let guard = lab.start_guard(Attach::Tcx, "");
    knock(&lab, 7);
    let Some(window) = Window::open(&lab, USUAL) else { return };
    let _ = start(&window, &guard, &[]);
    window.expect("198.18.0.7");

    window.type_in("?");
    window.expect("Keys (any key closes this)");
    window.expect("q, Ctrl-C        quit: the kernel goes on enforcing");
    window.type_in("x");
    window.expect_gone("Keys (any key closes this)");

    window.type_in("f");
    window.expect("FROZEN:");
    knock(&lab, 9);
    thread::sleep(Duration::from_secs(2));
    assert!(!window.shown().contains("198.18.0.9"), "{}", window.shown());
    window.type_in("f");
    window.expect("198.18.0.9");
    window.expect_gone("FROZEN:");

    window.press(&["Tab"]);
    window.expect("[2 Attempts]");
    window.expect("eth0 (tcx)");
    window.press(&["Tab"]);
    window.expect("[3 Hooks]");
    window.expect("tcx    drop");
    window.expect("eth0             outside");
    window.type_in("1sss");
    window.expect("by address");
    window.press(&["Down"]);
    window.expect("> 198.18.0.9");

    window.resize((120, 40));
    window.expect_that_lines_are(40);
    window.resize((50, 12));
    window.expect("guard top needs 60x16 characters");
    window.resize(USUAL);
    window.expect("> 198.18.0.9");

    window.press(&["C-c"]);
    assert_eq!(window.ended(), 0);
}

#[test]
fn a_daemon_that_goes_is_missed_and_found_again() {
    let lab = Lab::new("a_daemon_that_goes_is_missed_and_found_again");
    let guard = lab.start_guard(Attach::Tcx, "");
    let Some(window) = Window::open(&lab, USUAL) else { return };
    let _ = start(&window, &guard, &[]);
    window.expect("nobody who is not allowed has tried lately");
    knock(&lab, 7);
    window.expect("198.18.0.7");

    guard.stop();
    window.expect("NO DAEMON:");
    window.expect("198.18.0.7");
    window.type_in("a");
    window.expect("nothing can be changed");
    guard.start();
    window.expect_gone("NO DAEMON:");
    knock(&lab, 8);
    window.expect("198.18.0.8");
    window.press(&["Escape"]);
    assert_eq!(window.ended(), 0);
}

#[test]
fn whatever_ends_it_the_terminal_is_as_it_was() {
    let lab = Lab::new("whatever_ends_it_the_terminal_is_as_it_was");
    let guard = lab.start_guard(Attach::Tcx, "");
    let Some(window) = Window::open(&lab, USUAL) else { return };
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let pid = start(&window, &guard, &[]);
        assert!(window.is_taken());
        window.expect("? help");
        send(pid, signal);
        assert_eq!(window.ended(), code, "{signal:?}");
    }

    let itself = env::current_exe().expect("a path");
    let go = lab.directory().join("panic-now");
    let words = [
        "env".to_owned(),
        format!("{PANIC_WHEN}={}", go.display()),
        itself.display().to_string(),
        "--exact".to_owned(),
        "panics_with_the_screen_taken".to_owned(),
        "--ignored".to_owned(),
        "--nocapture".to_owned(),
    ];
    let _ = window.run(&words);
    assert!(window.is_taken());
    fs::write(&go, "").expect("it can be written");
    assert_eq!(window.ended(), 101);
    window.expect("as it was asked to");
}

const PANIC_WHEN: &str = "GUARD_TEST_PANIC_WHEN";

#[test]
#[ignore = "whatever_ends_it_the_terminal_is_as_it_was runs it, in a terminal"]
fn panics_with_the_screen_taken() {
    let when = PathBuf::from(env::var_os(PANIC_WHEN).expect("it is run by another test"));
    let mut screen = Screen::take().expect("a terminal");
    screen.draw(|_| {}).expect("a terminal that can be drawn on");
    until("it is asked to panic", || when.exists());
    panic!("as it was asked to");
}

#[test]
fn where_there_is_nothing_to_show_it_on_or_nobody_to_ask_it_says_so() {
    let lab = Lab::new("where_there_is_nothing_to_show_it_on_or_nobody_to_ask_it_says_so");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.expect_refusal(&["top"], &["standard output is not a terminal", "guard events --follow"]);
    guard.expect_refusal(&["top", "--json"], &["guard top is for people"]);
    guard.stop();
    let Some(window) = Window::open(&lab, USUAL) else { return };
    let _ = start(&window, &guard, &[]);
    assert_eq!(window.ended(), 1);
    window.expect("error: no daemon is running");
    window.expect("guard run");
    let _ = start(&window, &guard, &["TERM=dumb"]);
    assert_eq!(window.ended(), 1);
    window.expect("no cursor to move");
}

/// Of what came before anybody asked, too, and each packet once.
#[test]
fn rates_are_the_kernels_counts() {
    let lab = Lab::new("rates_are_the_kernels_counts");
    let guard = lab.start_guard(Attach::Tcx, "");
    for stranger in 0..50 {
        knock(&lab, stranger);
    }
    guard.expect_counted("tcx", "drop", "no-rule", 100);
    let sum = |values: &[u64]| values.iter().sum::<u64>();
    until("they are among the last hour's", || rates(&guard).attempts.hour() == 100);
    let rates = rates(&guard);
    assert_eq!(sum(&rates.attempts.seconds), 100);
    let hooks: Vec<_> = rates.hooks.iter().map(|one| (&*one.hook, &*one.verdict)).collect();
    assert_eq!(hooks, [("tcx", "drop")]);
    assert_eq!(rates.hooks[0].series.hour(), 100);
}
