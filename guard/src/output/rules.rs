//! The rules, as a table.

use std::collections::HashSet;

use super::text::{Page, View, columns, escaped, ports};
use crate::{
    control::{Refresh, RuleView},
    rule::{Action, Origin},
};

/// What stands above each column of [`row`].
pub const HEAD: [&str; 7] = ["ID", "ACTION", "SOURCE", "PORTS", "ENDS", "FROM", "COMMENT"];

/// `guard rules`.
#[must_use]
pub fn rules(rules: &[RuleView], view: &View) -> String {
    if rules.is_empty() {
        return "no rules: only this machine is let in\nnext: guard allow SRC\n".to_owned();
    }
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(rules.iter().map(|rule| row(rule, view)));
    let mut page = Page::default();
    page.block(&columns(&rows));
    for sentence in rules.iter().filter_map(idle) {
        page.line(format!("{} {}", view.notable("note:"), escaped(&sentence)));
    }
    let mut told = HashSet::new();
    for rule in rules {
        if let Some(refresh) = &rule.refresh
            && told.insert(&rule.source)
        {
            page.line(refreshed(&rule.source, refresh, view));
        }
    }
    page.into_text()
}

/// `host.example.org: refreshed 12:00:00, again by 12:01:00; the resolver 192.0.2.53 does not answer`
#[must_use]
pub fn refreshed(source: &str, refresh: &Refresh, view: &View) -> String {
    let mut line = match refresh.at {
        Some(at) => format!("{}: refreshed {}", escaped(source), view.time(at)),
        None => format!("{}: not known yet", escaped(source)),
    };
    if let Some(next) = refresh.next {
        line = format!("{line}, again {}", view.time(next));
    }
    match &refresh.error {
        Some(error) => format!("{} {line}; {}", view.notable("note:"), escaped(error)),
        None => line,
    }
}

/// That no packet can match a rule at present, and why.
#[must_use]
pub fn idle(rule: &RuleView) -> Option<String> {
    let why = rule.idle.as_ref()?;
    Some(format!("rule {} matches nothing at present: {why}", rule.id))
}

/// `10.20.0.0/16 via wg0`: whom a rule is about.
#[must_use]
pub fn who(rule: &RuleView) -> String {
    let via = rule.via.as_deref().map(|via| format!(" via {}", escaped(via)));
    format!("{}{}", escaped(&rule.source), via.unwrap_or_default())
}

/// A rule's cells.
#[must_use]
pub fn row(rule: &RuleView, view: &View) -> Vec<String> {
    let mut source = who(rule);
    // An interface is one thing, whatever stands for it.
    if rule.prefixes != 1 && !rule.source.starts_with("if:") {
        source = format!("{source} ({} prefixes)", rule.prefixes);
    }
    let ends = match rule.until {
        None => "never".to_owned(),
        Some(until) if until <= view.now => format!("ended {}", view.time(until)),
        Some(until) => view.time(until),
    };
    let ports = if rule.ports.is_empty() { "all".to_owned() } else { ports(&rule.ports) };
    vec![
        escaped(&rule.id.0),
        action(rule.action).to_owned(),
        source,
        ports,
        ends,
        origin(&rule.origin),
        rule.comment.as_deref().map(escaped).unwrap_or_default(),
    ]
}

/// The word for what a rule does.
#[must_use]
pub const fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::File { file, line } => escaped(&format!("{}:{line}", file.display())),
        Origin::Flag => "guard run".to_owned(),
        Origin::Command => "command".to_owned(),
    }
}

/// `every guarded port`, `TCP 11434`: where a rule holds.
#[must_use]
pub fn scope(rule: &RuleView) -> String {
    if rule.ports.is_empty() { "every guarded port".to_owned() } else { ports(&rule.ports) }
}

/// `, until 14:00:00`, or nothing.
#[must_use]
pub fn ends(rule: &RuleView, view: &View) -> String {
    rule.until.map(|until| format!(", until {}", view.time(until))).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::{super::text::tests::view, *};
    use crate::rule::RuleId;

    pub(crate) fn example() -> RuleView {
        rule("3", Action::Allow, "203.0.113.9")
    }

    pub(crate) fn rule(id: &str, action: Action, source: &str) -> RuleView {
        RuleView {
            id: RuleId(id.into()),
            action,
            source: source.into(),
            ports: Vec::new(),
            via: None,
            idle: None,
            until: None,
            comment: None,
            origin: Origin::Command,
            prefixes: 1,
            wide: false,
            refresh: None,
        }
    }

    #[test]
    fn rules_are_a_table() {
        let listed = [
            RuleView {
                origin: Origin::File { file: PathBuf::from("/etc/guard/guard.toml"), line: 12 },
                comment: Some("office".into()),
                ..rule("f1", Action::Allow, "10.20.0.0/16")
            },
            RuleView {
                ports: vec!["11434".into(), "udp/53".into()],
                until: Some("2026-11-25T14:00:00Z".parse().unwrap()),
                ..rule("3", Action::Deny, "10.20.3.7")
            },
            RuleView {
                prefixes: 3120,
                until: Some("2026-11-24T14:00:00Z".parse().unwrap()),
                origin: Origin::Flag,
                ..rule("g1", Action::Allow, "@/etc/guard/office.txt")
            },
        ];
        assert_eq!(
            rules(&listed, &view()),
            "  ID  ACTION  SOURCE                                  PORTS                 ENDS                       FROM                      COMMENT\n  \
               f1  allow   10.20.0.0/16                            all                   never                      /etc/guard/guard.toml:12  office\n  \
               3   deny    10.20.3.7                               TCP 11434 and UDP 53  14:00:00                   command\n  \
               g1  allow   @/etc/guard/office.txt (3120 prefixes)  all                   ended 2026-11-24 14:00:00  guard run\n"
        );
    }

    #[test]
    fn an_interface_stands_with_the_source_and_what_matches_nothing_is_said() {
        let listed = [
            RuleView {
                via: Some("wg0".into()),
                idle: Some("there is no interface wg0".into()),
                ..rule("1", Action::Allow, "10.20.0.0/16")
            },
            RuleView { prefixes: 2, ..rule("2", Action::Allow, "if:eth1") },
        ];
        assert_eq!(
            rules(&listed, &view()),
            "  ID  ACTION  SOURCE                PORTS  ENDS   FROM     COMMENT\n  \
               1   allow   10.20.0.0/16 via wg0  all    never  command\n  \
               2   allow   if:eth1               all    never  command\n\
             note: rule 1 matches nothing at present: there is no interface wg0\n"
        );
    }

    #[test]
    fn what_is_refreshed_is_told_once_for_each_source() {
        let name = RuleView {
            prefixes: 2,
            refresh: Some(Refresh {
                at: Some("2026-11-25T13:00:00Z".parse().unwrap()),
                next: Some("2026-11-25T13:01:00Z".parse().unwrap()),
                error: None,
            }),
            ..rule("1", Action::Allow, "host.example.org")
        };
        let file = RuleView {
            prefixes: 0,
            refresh: Some(Refresh {
                error: Some("it is\u{1b}[2J bad".into()),
                ..Refresh::default()
            }),
            ..rule("3", Action::Allow, "@/etc/guard/office.txt")
        };
        let again = RuleView { id: RuleId("2".into()), ..name.clone() };
        let text = rules(&[name, again, file], &view());
        assert!(
            text.ends_with(
                "\nhost.example.org: refreshed 13:00:00, again 13:01:00\n\
                 note: @/etc/guard/office.txt: not known yet; it is\\u{1b}[2J bad\n"
            ),
            "{text}"
        );
        assert!(text.contains("host.example.org (2 prefixes)"), "{text}");
    }

    #[test]
    fn without_rules_the_next_command_is_named() {
        assert_eq!(
            rules(&[], &view()),
            "no rules: only this machine is let in\nnext: guard allow SRC\n"
        );
    }

    #[test]
    fn a_comment_can_not_forge_a_row() {
        let forged = RuleView {
            comment: Some("x\n  9 allow 0.0.0.0/0".into()),
            ..rule("1", Action::Deny, "192.0.2.7")
        };
        assert_eq!(rules(&[forged], &view()).lines().count(), 2);
    }
}
