//! Changes, one a line.

use super::text::{View, count, escaped, list};
use crate::{
    control::Mode,
    history::{Entry, Fate, RuleChange},
};

/// `01:02:03 "allow 10.0.0.0/24 for 2h" by uid 0 (login 1000), pid 812, socket: generation 3 → 4; made rule 4 (allow 10.0.0.0/24)`
#[must_use]
pub fn change(entry: &Entry, view: &View) -> String {
    let login = entry.login_uid.map(|uid| format!(" (login {uid})")).unwrap_or_default();
    let mut line = format!(
        "{} {} by uid {}{login}, pid {}, {}: generation {} → {}",
        view.time(entry.time),
        quoted(&entry.command),
        known(entry.uid),
        known(entry.pid),
        entry.via.name(),
        known(entry.old_generation),
        known(entry.new_generation),
    );
    for part in parts(entry, view) {
        line.push_str("; ");
        line.push_str(&part);
    }
    line.push('\n');
    line
}

fn known<T: ToString>(number: Option<T>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

fn parts(entry: &Entry, view: &View) -> Vec<String> {
    let mut parts: Vec<String> = entry.rules.iter().map(|change| rule(change, view)).collect();
    if entry.rules_left_out > 0 {
        parts.push(format!("and {}", count(entry.rules_left_out as u64, "more rule")));
    }
    let ports = [("guards", &entry.ports.added), ("no longer guards", &entry.ports.removed)];
    for (done, ports) in ports.into_iter().filter(|(_, ports)| !ports.is_empty()) {
        let ports: Vec<String> = ports.iter().map(|port| escaped(port)).collect();
        parts.push(format!("{done} {}", list(&ports)));
    }
    parts.extend(entry.mode.map(|mode| match mode {
        Mode::Enforce => "mode enforce".to_owned(),
        Mode::Observe => "mode observe".to_owned(),
    }));
    parts.extend(entry.trial_until.map(|until| format!("on trial until {}", view.time(until))));
    parts.extend(
        entry.claimed_command_line.as_deref().map(|text| format!("claims {}", quoted(text))),
    );
    parts
}

/// `made rule 4 (allow 10.0.0.0/24, until 14:00:00)`
fn rule(change: &RuleChange, view: &View) -> String {
    let done = match change.change {
        Fate::Made => "made",
        Fate::Removed => "removed",
        Fate::Changed => "changed",
    };
    let until = change.until.map(|until| format!(", until {}", view.time(until)));
    format!(
        "{done} rule {} ({} {}{})",
        escaped(&change.id.0),
        change.action,
        escaped(&change.source),
        until.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::{super::text::tests::view, *};
    use crate::history::{PortChanges, tests::example};

    #[test]
    fn a_change_is_one_line() {
        let expected = "01:02:03 \"allow 10.0.0.0/24 for 2h confirm 1m\" by uid 0 (login 1000), pid 812, socket: \
             generation 3 → 4; made rule 4 (allow 10.0.0.0/24); claims \"guard allow 10.0.0.0/24\"\n";
        assert_eq!(change(&example(), &view()), expected);
        let more = Entry {
            uid: None,
            pid: None,
            login_uid: None,
            rules: Vec::new(),
            rules_left_out: 3,
            ports: PortChanges { added: vec!["8080".into()], removed: vec!["11434".into()] },
            mode: Some(Mode::Observe),
            trial_until: Some("2026-11-25T12:01:00Z".parse().unwrap()),
            old_generation: None,
            claimed_command_line: None,
            ..example()
        };
        let text = change(&more, &view());
        assert!(
            text.ends_with(
                "by uid none, pid none, socket: generation none → 4; and 3 more rules; guards 8080; \
                 no longer guards 11434; mode observe; on trial until 12:01:00\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn nothing_in_it_steers_a_terminal() {
        let hostile = "x\u{1b}[2J\n\u{202e}y".to_owned();
        let entry = Entry {
            command: hostile.clone(),
            claimed_command_line: Some(hostile.clone()),
            rules: vec![RuleChange { source: hostile, ..example().rules[0].clone() }],
            ..example()
        };
        let text = change(&entry, &view());
        assert_eq!(text.matches("x\\u{1b}[2J\\u{a}\\u{202e}y").count(), 3, "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
