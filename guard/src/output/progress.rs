//! How far a change has come, on the terminal of whoever waits for it.

use std::{
    io::{self, IsTerminal},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::{bytes, count};
use crate::progress::{Loading, Step};

/// What is over sooner shows nothing.
const PATIENCE: Duration = Duration::from_millis(200);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// `reading lists: 3.2 MB of 12.0 MB`
#[must_use]
pub fn loading(loading: &Loading) -> String {
    let of = |done, total| format!("{} of {}", bytes(done), bytes(total));
    match loading.step {
        Step::Reading => format!("reading lists: {}", of(loading.done, loading.total)),
        Step::Compiling => format!("compiling {}", count(loading.total, "prefix")),
        Step::Writing => format!("writing tables: {}", of(loading.done, loading.total)),
    }
}

/// Does what may take long. A terminal on standard error shows meanwhile how far it has come, and `tell` gets that in words
/// wherever the output goes.
pub fn with_progress<T>(
    ask: impl Fn() -> Option<Loading> + Send,
    tell: Option<fn(&str)>,
    work: impl FnOnce() -> T,
) -> T {
    if tell.is_none() && !io::stderr().is_terminal() {
        return work();
    }
    let (is_working, working) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut pause = PATIENCE;
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // Without a style of its own it would count steps.
            let style = ProgressStyle::with_template("{wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            while working.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = PAUSE;
                // Between two steps the last one stands.
                let Some(now) = ask() else { continue };
                let text = loading(&now);
                bar.set_message(text.clone());
                bar.tick();
                if let Some(tell) = tell {
                    tell(&text);
                }
            }
            bar.finish_and_clear();
        });
        let result = work();
        drop(is_working);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_says_how_far_it_is() {
        let (done, total) = (3_200_000, 12_000_000);
        let texts = [
            (Step::Reading, "reading lists: 3.2 MB of 12.0 MB"),
            (Step::Compiling, "compiling 12,000,000 prefixes"),
            (Step::Writing, "writing tables: 3.2 MB of 12.0 MB"),
        ];
        for (step, text) in texts {
            assert_eq!(loading(&Loading { step, done, total }), text);
        }
    }

    #[test]
    fn work_is_done_once_whether_or_not_anybody_sees_it() {
        let loading = Loading { step: Step::Writing, done: 1, total: 2 };
        let ask = move || Some(loading);
        assert_eq!(with_progress(ask, None, || 7), 7);
        assert_eq!(with_progress(ask, Some(|_| {}), || 7), 7);
    }
}
