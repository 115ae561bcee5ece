//! What a change came to.

use std::path::Path;

use super::{
    rules::{self, ends, scope, who},
    text::{Page, View, count, count_of, escaped},
};
use crate::{
    control::{Change, Mode, RuleView, SetMode},
    rule::Action,
};

/// `guard allow` and `guard deny`.
#[must_use]
pub fn added(change: &Change, view: &View) -> String {
    let mut page = Page::default();
    for rule in &change.rules {
        let done = match rule.action {
            Action::Allow => view.good("allowed"),
            Action::Deny => view.bad("denied"),
        };
        page.line(format!(
            "{done} {} at {}{} (rule {})",
            who(rule),
            scope(rule),
            ends(rule, view),
            escaped(&rule.id.0),
        ));
    }
    on_trial(change, view, &mut page);
    in_force(change, &mut page);
    page.into_text()
}

fn on_trial(change: &Change, view: &View, page: &mut Page) {
    if let Some(trial) = &change.trial {
        page.line(format!(
            "{}: it holds until {} unless `guard confirm` is run",
            view.notable("on trial"),
            view.time(trial.until),
        ));
    }
}

/// `guard confirm`.
#[must_use]
pub fn confirmed(change: &Change, view: &View) -> String {
    let mut page = Page::default();
    page.line(format!("{}: nothing is on trial any more", view.good("confirmed")));
    for rule in &change.rules {
        page.line(format!("kept {}", described(rule, view)));
    }
    in_force(change, &mut page);
    page.into_text()
}

/// `guard rollback`.
#[must_use]
pub fn rolled_back(change: &Change, view: &View) -> String {
    let mut page = Page::default();
    page.line(format!("{}: what was on trial holds no more", view.notable("rolled back")));
    in_force(change, &mut page);
    page.into_text()
}

/// `guard remove`.
#[must_use]
pub fn removed(change: &Change, view: &View) -> String {
    let mut page = Page::default();
    for rule in &change.rules {
        page.line(format!("removed {}", described(rule, view)));
    }
    in_force(change, &mut page);
    page.into_text()
}

/// `allow 192.0.2.7 at every guarded port (rule 3)`
fn described(rule: &RuleView, view: &View) -> String {
    format!(
        "{} {} at {}{} (rule {})",
        rules::action(rule.action),
        who(rule),
        scope(rule),
        ends(rule, view),
        escaped(&rule.id.0),
    )
}

/// `guard observe` and `guard enforce`.
#[must_use]
pub fn mode(request: &SetMode, change: &Change, view: &View) -> String {
    let resumes = request
        .for_seconds
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| view.now.checked_add(jiff::SignedDuration::from_secs(seconds)).ok());
    let mut page = Page::default();
    match (request.mode, resumes) {
        (Mode::Enforce, _) => {
            page.line(format!("{}: what no rule allows is dropped", view.good("enforcing")));
        }
        (Mode::Observe, Some(time)) => {
            page.line(format!(
                "{}: nothing is dropped until {}; then dropping resumes by itself",
                view.notable("observing"),
                view.time(time),
            ));
            page.line("next: guard events --follow; guard enforce resumes now");
        }
        (Mode::Observe, None) => {
            page.line(format!(
                "{}: nothing is dropped any more, and dropping does not resume by itself",
                view.notable("observing"),
            ));
            page.line("next: guard events --follow; guard enforce resumes");
        }
    }
    if change.generation.is_none() {
        in_force(change, &mut page);
    }
    page.into_text()
}

/// `guard reload`.
#[must_use]
pub fn reloaded(change: &Change, view: &View) -> String {
    let mut page = Page::default();
    page.line(format!("read {}", count_of(&change.rules, "rule")));
    on_trial(change, view, &mut page);
    in_force(change, &mut page);
    page.into_text()
}

fn in_force(change: &Change, page: &mut Page) {
    if let Some(generation) = change.generation {
        page.line(format!("in force from the next packet on (generation {generation})"));
    } else {
        page.line("NOT IN FORCE: guard is not loaded, so this is kept for the next start");
        page.line("next: guard run");
    }
}

/// `guard down`.
#[must_use]
pub fn down(lifted: &[String], view: &View) -> String {
    let mut page = Page::default();
    for sentence in lifted {
        page.line(escaped(sentence));
    }
    page.line(format!("{}: nothing is guarded any more", view.bad("down")));
    page.line("next: guard run");
    page.into_text()
}

/// `guard check`.
#[must_use]
pub fn checked(file: &Path, mode: Mode, ports: usize, rules: usize) -> String {
    let mode = match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    format!(
        "{} is valid: mode {mode}, {}, {}\n",
        escaped(&file.display().to_string()),
        count(ports as u64, "guarded port"),
        count(rules as u64, "rule"),
    )
}

/// What is worth knowing about a change, as talk.
#[must_use]
pub fn notes(notes: &[String]) -> String {
    const MOST: usize = 20;
    let mut page = Page::default();
    for note in notes.iter().take(MOST) {
        page.line(format!("note: {}", escaped(note)));
    }
    if notes.len() > MOST {
        page.line(format!("note: and {}", count_of(&notes[MOST..], "more note")));
    }
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{rules::tests::rule, text::tests::view},
        *,
    };
    use crate::control::TrialView;

    fn change(generation: Option<u64>, rules: Vec<RuleView>) -> Change {
        Change { generation, rules, notes: Vec::new(), trial: None }
    }

    #[test]
    fn an_added_rule_is_said_with_its_scope_end_and_id() {
        let rules = vec![
            RuleView {
                until: Some("2026-11-25T14:00:00Z".parse().unwrap()),
                ports: vec!["11434".into()],
                ..rule("4", Action::Allow, "192.0.2.7")
            },
            rule("5", Action::Deny, "2001:db8::/32"),
        ];
        assert_eq!(
            added(&change(Some(7), rules), &view()),
            "allowed 192.0.2.7 at TCP 11434, until 14:00:00 (rule 4)\n\
             denied 2001:db8::/32 at every guarded port (rule 5)\n\
             in force from the next packet on (generation 7)\n"
        );
    }

    #[test]
    fn what_is_on_trial_says_until_when_and_how_to_keep_it() {
        let until = "2026-11-25T12:01:00Z".parse().unwrap();
        let trial = Some(TrialView { what: "allow 192.0.2.7 confirm 1m".into(), until });
        let rules = vec![RuleView { until: Some(until), ..rule("4", Action::Allow, "192.0.2.7") }];
        let tried = Change { trial, ..change(Some(7), rules) };
        assert_eq!(
            added(&tried, &view()),
            "allowed 192.0.2.7 at every guarded port, until 12:01:00 (rule 4)\n\
             on trial: it holds until 12:01:00 unless `guard confirm` is run\n\
             in force from the next packet on (generation 7)\n"
        );
        assert!(reloaded(&tried, &view()).contains("on trial: it holds until 12:01:00"));
        assert_eq!(
            confirmed(&change(Some(8), vec![rule("4", Action::Allow, "192.0.2.7")]), &view()),
            "confirmed: nothing is on trial any more\n\
             kept allow 192.0.2.7 at every guarded port (rule 4)\n\
             in force from the next packet on (generation 8)\n"
        );
        assert_eq!(
            rolled_back(&change(Some(9), Vec::new()), &view()),
            "rolled back: what was on trial holds no more\n\
             in force from the next packet on (generation 9)\n"
        );
    }

    #[test]
    fn a_removed_rule_is_said_in_full() {
        let rules = vec![rule("4", Action::Allow, "192.0.2.7")];
        assert_eq!(
            removed(&change(Some(8), rules), &view()),
            "removed allow 192.0.2.7 at every guarded port (rule 4)\n\
             in force from the next packet on (generation 8)\n"
        );
    }

    #[test]
    fn a_change_without_programs_says_loudly_that_it_only_waits() {
        let rules = vec![rule("4", Action::Allow, "192.0.2.7")];
        assert_eq!(
            added(&change(None, rules), &view()),
            "allowed 192.0.2.7 at every guarded port (rule 4)\n\
             NOT IN FORCE: guard is not loaded, so this is kept for the next start\n\
             next: guard run\n"
        );
    }

    #[test]
    fn a_mode_says_when_it_ends() {
        let done = change(Some(9), Vec::new());
        let request = SetMode { mode: Mode::Observe, for_seconds: Some(600) };
        assert_eq!(
            mode(&request, &done, &view()),
            "observing: nothing is dropped until 12:10:00; then dropping resumes by itself\n\
             next: guard events --follow; guard enforce resumes now\n"
        );
        let request = SetMode { mode: Mode::Observe, for_seconds: None };
        assert!(mode(&request, &done, &view()).contains("does not resume by itself"));
        let request = SetMode { mode: Mode::Enforce, for_seconds: None };
        assert_eq!(mode(&request, &done, &view()), "enforcing: what no rule allows is dropped\n");
        assert!(mode(&request, &change(None, Vec::new()), &view()).contains("NOT IN FORCE"));
    }

    #[test]
    fn a_reload_counts_the_rules() {
        let rules = vec![rule("f1", Action::Allow, "192.0.2.7")];
        assert_eq!(
            reloaded(&change(Some(3), rules.clone()), &view()),
            "read 1 rule\nin force from the next packet on (generation 3)\n"
        );
        assert!(reloaded(&change(None, rules), &view()).starts_with("read 1 rule\nNOT IN FORCE"));
    }

    #[test]
    fn lifting_says_what_and_what_it_means() {
        assert_eq!(
            down(&["the program on eth0 is gone".to_owned()], &view()),
            "the program on eth0 is gone\ndown: nothing is guarded any more\nnext: guard run\n"
        );
    }

    #[test]
    fn a_valid_configuration_is_summed_up() {
        assert_eq!(
            checked(Path::new("/etc/guard/guard.toml"), Mode::Enforce, 1, 2),
            "/etc/guard/guard.toml is valid: mode enforce, 1 guarded port, 2 rules\n"
        );
    }

    #[test]
    fn notes_are_bounded() {
        assert_eq!(notes(&["rule 3 wins".to_owned()]), "note: rule 3 wins\n");
        let many = vec!["x".to_owned(); 25];
        assert_eq!(notes(&many).lines().count(), 21);
        assert!(notes(&many).ends_with("note: and 5 more notes\n"));
    }
}
