//! Waiting for what happens soon, on a machine that may be busy.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long something that must happen may take. It bounds a failing test, and says nothing about speed.
pub const PATIENCE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(40);

/// Asks again and again until the answer is yes; fails the test when it never is.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "after {PATIENCE:?} it still is not so that {what}");
        thread::sleep(INTERVAL);
    }
}
