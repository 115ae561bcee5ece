//! systemd's journal, with a field for each fact of an attempt: `journalctl GUARD_SOURCE=203.0.113.9`.
//!
//! The journal drops what one service sends beyond its limit (`RateLimitBurst=` of journald.conf(5)), and then what guard says
//! of itself, too. So attempts keep well below it.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use rustix::fs::fstat;
use serde_json::Value;

use crate::{
    events::Attempt,
    output::{self, View},
};

/// Where the journal takes entries in its native protocol (systemd's `JOURNAL_NATIVE_PROTOCOL`).
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// By which `journalctl MESSAGE_ID=…` finds attempts.
const MESSAGE_ID: &str = "8f3c5d1e0b7a4c62945e1d20aa6b7f43";

/// The most attempts of one period. Whoever floods a port is not to push others' entries out of the journal, either.
const BUDGET: u32 = 100;

const PERIOD: Duration = Duration::from_secs(30);

/// Whether standard error is what systemd has connected to the journal (`JOURNAL_STREAM` of systemd.exec(5)).
#[must_use]
pub fn is_connected() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let errors = io::stderr();
    !errors.is_terminal()
        && fstat(&errors).is_ok_and(|it| stream == format!("{}:{}", it.st_dev, it.st_ino))
}

#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    period_began: Instant,
    sent: u32,
    left_out: u64,
}

impl Journal {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, socket: None, period_began: Instant::now(), sent: 0, left_out: 0 }
    }

    /// Whether it was sent; one beyond the budget is not.
    ///
    /// # Errors
    /// One sentence, when the journal takes nothing.
    pub fn send(&mut self, attempt: &Attempt) -> Result<bool, String> {
        if self.period_began.elapsed() >= PERIOD {
            self.period_began = Instant::now();
            self.sent = 0;
            if self.left_out > 0 {
                log::warn!(
                    "{} are not in the journal: they came faster than it may be filled (`guard events`, `guard status`)",
                    output::text::count(self.left_out, "attempt")
                );
                self.left_out = 0;
            }
        }
        if self.sent >= BUDGET {
            self.left_out += 1;
            return Ok(false);
        }
        self.sent += 1;
        self.deliver(&entry(attempt)).map(|()| true).map_err(|error| {
            self.socket = None;
            format!(
                "the journal at {} takes no attempts: {error}; they are counted, and `guard events` has the newest",
                self.path.display()
            )
        })
    }

    fn deliver(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = if let Some(socket) = self.socket.take() {
            socket
        } else {
            let socket = UnixDatagram::unbound()?;
            // A journal that hangs holds up nobody.
            socket.set_nonblocking(true)?;
            socket.connect(&self.path)?;
            socket
        };
        socket.send(entry)?;
        self.socket = Some(socket);
        Ok(())
    }
}

/// The fields of an entry: what people read, and each fact as JSON names it.
fn entry(attempt: &Attempt) -> Vec<u8> {
    let view = View { colour: false, now: attempt.time, zone: TimeZone::UTC };
    let line = output::attempt(attempt, &view);
    // The journal has a time of its own for each entry.
    let message = line.trim_end().split_once(' ').map_or("", |(_, rest)| rest);
    let mut fields = String::new();
    let mut field = |name: &str, value: &str| {
        // Values are one line each: whatever could end it has been escaped, or is no letter of theirs.
        let value: String = value.chars().filter(|c| !output::text::is_unprintable(*c)).collect();
        let _ = writeln!(fields, "{name}={value}");
    };
    field("MESSAGE", message);
    field("MESSAGE_ID", MESSAGE_ID);
    field("PRIORITY", "5");
    field("SYSLOG_IDENTIFIER", "guard");
    if let Ok(Value::Object(facts)) = serde_json::to_value(attempt) {
        for (name, value) in facts {
            let name = format!("GUARD_{}", name.to_uppercase());
            match value {
                Value::Null => {}
                Value::String(text) => field(&name, &text),
                // A field may be there several times.
                Value::Array(items) => {
                    items.iter().filter_map(Value::as_str).for_each(|item| field(&name, item));
                }
                other => field(&name, &other.to_string()),
            }
        }
    }
    fields.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{SourceFacts, tests::example};

    fn lines(attempt: &Attempt) -> Vec<String> {
        String::from_utf8(entry(attempt)).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_fact_is_a_field() {
        let facts = SourceFacts {
            asn: Some(64_500),
            labels: vec!["censys".into(), "mass-scan".into()],
            ..SourceFacts::default()
        };
        let lines = lines(&Attempt { facts, interface: None, ..example() });
        assert!(lines[0].starts_with("MESSAGE=drop no-rule 203.0.113.9:51234"), "{lines:?}");
        for expected in [
            "PRIORITY=5",
            "GUARD_SOURCE=203.0.113.9",
            "GUARD_PORT=11434",
            "GUARD_PACKETS=1",
            "GUARD_SAMPLED=false",
            "GUARD_ASN=64500",
            "GUARD_LABELS=censys",
            "GUARD_LABELS=mass-scan",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:?}");
        }
        assert!(!lines.iter().any(|line| line.starts_with("GUARD_INTERFACE")), "{lines:?}");
    }

    #[test]
    fn nothing_from_outside_makes_a_field_of_its_own() {
        let facts =
            SourceFacts { as_name: Some("A\nMESSAGE=owned\u{1b}[2J".into()), ..Default::default() };
        let lines = lines(&Attempt { facts, interface: Some("e\nPRIORITY=0".into()), ..example() });
        assert_eq!(lines.iter().filter(|line| line.starts_with("MESSAGE=")).count(), 1);
        assert_eq!(lines.iter().filter(|line| line.starts_with("PRIORITY=")).count(), 1);
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "{lines:?}");
    }

    #[test]
    fn a_journal_that_comes_later_is_found_and_a_flood_does_not_fill_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut journal = Journal::new(path.clone());
        let problem = journal.send(&example()).unwrap_err();
        assert!(problem.contains("takes no attempts"), "{problem}");
        let taker = UnixDatagram::bind(&path).unwrap();
        let mut bytes = [0; 4096];
        for _ in 1..BUDGET {
            assert_eq!(journal.send(&example()), Ok(true));
            let length = taker.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..length], entry(&example()));
        }
        assert_eq!(journal.send(&example()), Ok(false));
        assert_eq!(journal.left_out, 1);
    }
}
