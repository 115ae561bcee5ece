//! Waiting for what happens soon, on a machine that may be busy.

use std::{
    env,
    fmt::Debug,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long something that must happen may take. It bounds a failing test, and says nothing about speed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tells how many times slower than an ordinary machine this one is: a virtual one without KVM.
const SLOWNESS: &str = "GUARD_TEST_SLOWNESS";

/// [`PATIENCE`], as it must be on this machine.
#[must_use]
pub fn patience() -> Duration {
    match env::var(SLOWNESS) {
        Ok(times) => {
            PATIENCE
                * times.parse::<u32>().unwrap_or_else(|_| panic!("{SLOWNESS}={times} is no number"))
        }
        Err(_) => PATIENCE,
    }
}

const INTERVAL: Duration = Duration::from_millis(40);

/// Asks again and again until the answer is yes; fails the test when it never is.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = patience();
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "after {patience:?} it still is not so that {what}");
        thread::sleep(INTERVAL);
    }
}

/// Asks again and again until nothing is left of what should not be; fails the test with what never goes.
#[track_caller]
pub fn until_none<T: Debug>(what: &str, mut left: impl FnMut() -> Vec<T>) {
    let patience = patience();
    let deadline = Instant::now() + patience;
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "after {patience:?} it still is not so that none {what}: {left:?}"
        );
        thread::sleep(INTERVAL);
    }
}

/// Tells what goes on beside a test that it is over, also when the test fails: it would be waited for else.
#[derive(Debug)]
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
