//! What systemd is told of the daemon (`sd_notify(3)`), where it was started by it: nothing anywhere else.

use std::{env, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::engine::Engine;

/// How long one change may go on before the engine counts as hung: lists of a million prefixes take seconds.
const LONGEST_CHANGE: Duration = Duration::from_mins(5);

/// The policy is in force, and the socket answers. `in_force` is one line about it.
pub fn ready(in_force: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(in_force)]);
}

/// Takes what the daemon is at, where it was started by systemd and is not ready.
pub fn teller() -> Option<fn(&str)> {
    let tell: fn(&str) = |text| notify(&[NotifyState::Status(text)]);
    env::var_os("NOTIFY_SOCKET").map(|_| tell)
}

/// Configuration is read again, until [`reloaded`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("systemd was not told of the reload: {error}"),
    }
}

/// Whether or not what was read is in force: a policy is.
pub fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// The process ends; what the kernel enforces is for its log to say.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd that the daemon works, at half the time after which it would be started anew (`WatchdogSec=`). That it does
/// is found out by waiting for the engine, on a thread like those of requests: a loop that hangs says nothing any more, and so
/// does one whose engine or threads hang. A long change is no hang.
pub async fn watch(engine: Arc<Engine>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let pause = limit / 2;
    loop {
        let asked = engine.clone();
        let mut answer = spawn_blocking(move || asked.wait_until_idle());
        let began = Instant::now();
        loop {
            tokio::select! {
                answered = &mut answer => {
                    if answered.is_ok() {
                        notify(&[NotifyState::Watchdog]);
                    }
                    break;
                }
                () = sleep(pause) => {
                    if is_change(began.elapsed()) {
                        notify(&[NotifyState::Watchdog]);
                    } else {
                        log::error!("the engine hangs: systemd is left to start guard anew");
                    }
                }
            }
        }
        sleep(pause).await;
    }
}

/// Whether an engine that has not answered for this long is taken to be at work.
fn is_change(elapsed: Duration) -> bool {
    elapsed < LONGEST_CHANGE
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd could not be told {states:?}: {error}");
    }
}
