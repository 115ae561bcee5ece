//! The wall clock is set, forth and back, while guard runs, while it does not, and over a reboot. Only on machines that are the
//! tests' own: `cargo xtask vmtest`.

use std::{env, fs, time::Duration};

use guard_tests::{
    kernel,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    machine::Reply,
    product::{Attach, Guard},
    wait::{patience, until},
};
use jiff::{SignedDuration, Timestamp};
use rustix::{
    fs::Timespec,
    time::{ClockId, clock_settime},
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Sets the machine's clock, so much from what it shows.
#[track_caller]
fn set_clock(step: SignedDuration) {
    let to = Timestamp::now().saturating_add(step).expect("a time");
    let to = Timespec { tv_sec: to.as_second(), tv_nsec: 0 };
    clock_settime(ClockId::Realtime, to).expect("the clock can be set");
}

/// Makes it look as if the state had been written before a reboot.
#[track_caller]
fn pretend_a_reboot(guard: &Guard<'_>) {
    let path = guard.state().join("state.json");
    let text = fs::read_to_string(&path).expect("there is state");
    let (before, rest) = text.split_once("\"boot_id\": \"").expect("it names the boot");
    let (_, after) = rest.split_once('"').expect("which ends");
    fs::write(&path, format!("{before}\"boot_id\": \"1\"{after}")).expect("it can be written");
}

#[test]
fn what_ends_after_a_time_ends_then_whatever_the_clock_shows() {
    const NAME: &str = "what_ends_after_a_time_ends_then_whatever_the_clock_shows";
    if env::var_os("GUARD_TEST_SLOWNESS").is_none() {
        return kernel::skip(
            NAME,
            "it sets the clock, which only a virtual machine's is there for",
        );
    }
    let lab = Lab::new(NAME);
    let _listener = lab.serve();
    let server = SERVER.v4_at(OLLAMA);
    let client = CLIENT.v4.to_string();
    let file = |until: Timestamp| format!("[[rule]]\nallow = \"{client}\"\nuntil = {until:.0}\n");
    let is_out = || lab.client.call(server) == Reply::Silent;
    let steps = |guard: &Guard<'_>| guard.log().matches("the clock was set").count();

    // While it runs: neither forth nor back makes the time shorter or longer.
    let guard = lab.start_guard(Attach::Auto, "");
    let span = patience() / 4;
    guard.tell(&["allow", &client, "--for", &format!("{}s", span.as_secs())]);
    let began = std::time::Instant::now();
    lab.client.expect_answer(server);
    set_clock(DAY);
    until("guard has seen it", || steps(&guard) == 1);
    lab.client.expect_answer(server);
    set_clock(-DAY * 2);
    until("guard has seen that, too", || steps(&guard) == 2);
    lab.client.expect_answer(server);
    until("its time is over", is_out);
    assert!(began.elapsed() > span - Duration::from_secs(2), "it was over early");
    set_clock(DAY);

    // While it is stopped, in the same boot.
    guard.tell(&["allow", &client, "--for", "1h"]);
    guard.stop();
    set_clock(-DAY);
    guard.start();
    lab.client.expect_answer(server);
    let left = guard.rules()[0].until.expect("an end").duration_since(Timestamp::now());
    assert!(left > SignedDuration::ZERO && left <= HOUR, "{left}");

    // After a reboot a clock that is earlier than it once was is not believed: what is allowed for a time is not, until the clock
    // is right, and then only as long as there was to go.
    guard.stop();
    pretend_a_reboot(&guard);
    set_clock(-DAY);
    guard.start();
    lab.client.expect_silence(server);
    guard.expect_refusal(&["allow", "192.0.2.7", "--for", "1h"], &["the clock shows", "earlier"]);
    set_clock(DAY);
    until("it is believed again", || lab.client.call(server) == Reply::Answered);

    // A reboot does not begin a time again.
    guard.stop();
    pretend_a_reboot(&guard);
    set_clock(HOUR);
    guard.start();
    lab.client.expect_silence(server);
    assert!(guard.rules().is_empty(), "{:#?}", guard.rules());

    // A date is one of the wall clock's.
    guard.configure(&file(Timestamp::now().saturating_add(HOUR).expect("a time")));
    guard.tell(&["reload"]);
    lab.client.expect_answer(server);
    set_clock(HOUR * 2);
    until("its date has come", is_out);
    set_clock(-HOUR * 2);
    until("it has not yet come again", || lab.client.call(server) == Reply::Answered);
}
