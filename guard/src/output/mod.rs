//! What commands print: text for people, JSON for programs. Standard output is data, standard error is talk.
//!
//! The modules below are pure: an answer becomes text for a [`View`]. Only the functions here touch a stream.

mod attempts;
mod changes;
mod explanation;
mod history;
mod progress;
mod rules;
mod status;
pub mod text;

use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal, Write},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

pub use attempts::{attempt, lagged};
pub use changes::{added, checked, confirmed, down, mode, notes, reloaded, removed, rolled_back};
pub use explanation::explanation;
pub use history::change;
pub use progress::with_progress;
pub use rules::{HEAD as RULES_HEAD, action, ends, idle, row as rule_row, rules, scope, who};
pub use status::{backstop, headline, interfaces, native, status};
pub use text::View;

use self::text::{Page, escaped};
use crate::control::Failure;

/// Whether anybody still reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    Open,
    /// The reader has gone (`| head`). That is no error, but nothing more need be printed.
    Closed,
}

/// Prints data.
///
/// # Errors
/// When standard output takes nothing (a full disk, say).
pub fn print(text: &str) -> Result<Pipe, Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn written(result: io::Result<()>) -> Result<Pipe, Failure> {
    match result {
        Ok(()) => Ok(Pipe::Open),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Pipe::Closed),
        Err(error) => Err(Failure::failed(
            format!("standard output could not be written: {error}"),
            "look at where it leads: the disk may be full",
        )),
    }
}

/// Prints a line of talk. When standard error takes nothing, there is nobody left to tell.
pub fn talk(line: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(line.as_bytes()).and_then(|()| err.flush());
}

/// The view of those who read this stream.
#[must_use]
pub fn view_of(stream: &impl IsTerminal) -> View {
    let colour = wants_colour(
        stream.is_terminal(),
        env::var_os("NO_COLOR").as_deref(),
        env::var_os("TERM").as_deref(),
    );
    View { colour, now: Timestamp::now(), zone: TimeZone::system() }
}

/// Only a terminal gets colours, and not one that asks for none (`NO_COLOR`, when not empty) or knows none.
fn wants_colour(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb")
}

/// One line of JSON, with whatever a terminal would obey written as `\u001b`.
///
/// # Errors
/// When the value can't be written as JSON.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(|error| {
        Failure::failed(
            format!("the answer can't be written as JSON: {error}"),
            "report this as an error of guard",
        )
    })?;
    // Such characters stand only within strings, where JSON lets any character be written by its UTF-16 units.
    let mut safe = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if text::is_unprintable(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                safe.extend(["\\u", &format!("{unit:04x}")]);
            }
        } else {
            safe.push(c);
        }
    }
    safe.push('\n');
    Ok(safe)
}

/// A failure for people: what failed, and what to do. A failure of several lines (a configuration's errors) keeps them.
#[must_use]
pub fn failure(failure: &Failure, view: &View) -> String {
    let mut page = Page::default();
    let mut lines = failure.what.lines();
    page.line(format!("{} {}", view.bad("error:"), escaped(lines.next().unwrap_or_default())));
    for line in lines {
        page.line(format!("  {}", escaped(line)));
    }
    if let Some(fix) = &failure.fix {
        page.line(format!("{} {}", view.notable("hint:"), escaped(fix)));
    }
    page.into_text()
}

/// A failure for programs: `{"error":…,"hint":…}`.
///
/// # Errors
/// As [`json`].
pub fn failure_json(failure: &Failure) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Written<'a> {
        error: &'a str,
        hint: Option<&'a str>,
    }
    json(&Written { error: &failure.what, hint: failure.fix.as_deref() })
}

#[cfg(test)]
pub(crate) use {rules::tests::example as example_rule, status::tests::example};

#[cfg(test)]
mod tests {
    use super::{text::tests::view, *};

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(written(Err(closed)).unwrap(), Pipe::Closed);
        assert_eq!(written(Ok(())).unwrap(), Pipe::Open);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(written(Err(full)).unwrap_err().what.contains("standard output"));
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let os = |text: &'static str| Some(OsStr::new(text));
        assert!(wants_colour(true, None, os("xterm")));
        assert!(wants_colour(true, os(""), None));
        assert!(!wants_colour(true, os("1"), os("xterm")));
        assert!(!wants_colour(true, None, os("dumb")));
        assert!(!wants_colour(false, None, os("xterm")));
    }

    #[test]
    fn json_can_not_steer_a_terminal_and_means_the_same() {
        let value = "a\u{1b}[2J\u{9b}\u{202e}\u{7f}\"\\ü";
        let text = json(&value).unwrap();
        assert!(!text.trim_end().chars().any(text::is_unprintable), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }

    #[test]
    fn failures_say_what_failed_and_what_to_do() {
        let refused = Failure::bad_request("port 0 can't be guarded", "give 1 to 65535");
        assert_eq!(
            failure(&refused, &view()),
            "error: port 0 can't be guarded\nhint: give 1 to 65535\n"
        );
        assert_eq!(
            failure_json(&refused).unwrap(),
            "{\"error\":\"port 0 can't be guarded\",\"hint\":\"give 1 to 65535\"}\n"
        );
        let several = Failure { what: "a:1:2: x\nb\r:3:4: y".into(), ..refused.clone() };
        assert_eq!(
            failure(&several, &view()),
            "error: a:1:2: x\n  b\\u{d}:3:4: y\nhint: give 1 to 65535\n"
        );
        let bare = Failure { fix: None, what: "a\u{1b}b".into(), ..refused };
        assert_eq!(failure(&bare, &view()), "error: a\\u{1b}b\n");
        assert_eq!(failure_json(&bare).unwrap(), "{\"error\":\"a\\u001bb\",\"hint\":null}\n");
    }
}
