//! `guard explain`: one line for each place of arrival.

use super::{
    rules::{action, who},
    text::{Page, View, columns, escaped, spoken_port},
};
use crate::{
    control::{Explanation, PlaceVerdict, RuleView},
    rule::listed,
};

/// What would happen to a packet from there.
#[must_use]
pub fn explanation(answer: &Explanation, view: &View) -> String {
    // A socket that goes by what an interface has let in has no say of its own beside one.
    let has_say = |place: &&PlaceVerdict| !place.by_interface;
    let mut is_stopped = answer.places.iter().filter(has_say).any(|place| place.verdict == "drop");
    let would_be = answer.places.iter().filter(has_say).any(|place| place.verdict == "would-drop");
    let lets_in: Vec<String> = answer
        .places
        .iter()
        .filter(has_say)
        .filter(|place| place.verdict == "pass")
        .map(|place| escaped(&place.place))
        .collect();
    let by_interface = answer.places.iter().any(|place| place.by_interface);
    is_stopped |= by_interface && lets_in.is_empty() && !would_be;
    let outcome = if answer.places.is_empty() {
        view.bad("is judged nowhere")
    } else if by_interface && is_stopped && !lets_in.is_empty() {
        view.notable(&format!("gets in by {} only", listed(&lets_in)))
    } else if is_stopped {
        view.bad("does not get in")
    } else if would_be {
        view.notable("gets in, because guard only observes")
    } else {
        view.good("gets in")
    };
    let mut page = Page::default();
    page.line(format!("{} to {} {outcome}", answer.source, spoken_port(&answer.port)));
    let rows: Vec<Vec<String>> = answer.places.iter().map(row).collect();
    page.block(&columns(&rows));
    if answer.places.is_empty() {
        page.line("next: guard status");
    } else if is_stopped || would_be {
        page.line(format!("next: guard allow {}", answer.source));
    }
    page.into_text()
}

fn row(place: &PlaceVerdict) -> Vec<String> {
    let says = match &place.rule {
        Some(by) => rule(by),
        None if place.by_interface => "and what an interface has let in passes".to_owned(),
        None => String::new(),
    };
    vec![
        escaped(&place.place),
        escaped(&place.hook),
        escaped(&place.verdict),
        place.reason.as_deref().map(escaped).unwrap_or_default(),
        says,
    ]
}

fn rule(rule: &RuleView) -> String {
    format!("rule {}: {} {}", escaped(&rule.id.0), action(rule.action), who(rule))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{rules::tests::rule, text::tests::view},
        *,
    };
    use crate::rule::Action;

    fn place(place: &str, hook: &str, verdict: &str, reason: &str) -> PlaceVerdict {
        PlaceVerdict {
            place: place.into(),
            hook: hook.into(),
            verdict: verdict.into(),
            reason: Some(reason.into()),
            rule: None,
            by_interface: false,
        }
    }

    fn answer(places: Vec<PlaceVerdict>) -> Explanation {
        Explanation { source: "203.0.113.9".parse().unwrap(), port: "11434".into(), places }
    }

    #[test]
    fn each_place_of_arrival_is_a_line() {
        let denied = PlaceVerdict {
            rule: Some(rule("3", Action::Deny, "203.0.113.0/24")),
            ..place("eth0", "tcx", "drop", "denied")
        };
        assert_eq!(
            explanation(
                &answer(vec![denied, place("socket", "cgroup", "drop", "no-rule")]),
                &view()
            ),
            "203.0.113.9 to TCP 11434 does not get in\n  \
               eth0    tcx     drop  denied   rule 3: deny 203.0.113.0/24\n  \
               socket  cgroup  drop  no-rule\n\
             next: guard allow 203.0.113.9\n"
        );
    }

    #[test]
    fn a_rule_for_one_interface_lets_in_by_that_only() {
        let allowed = PlaceVerdict {
            rule: Some(RuleView {
                via: Some("eth1".into()),
                ..rule("3", Action::Allow, "203.0.113.0/24")
            }),
            ..place("eth1", "tcx", "pass", "allowed")
        };
        let socket =
            || PlaceVerdict { by_interface: true, ..place("socket", "cgroup", "drop", "no-rule") };
        let stopped = || place("eth0", "tcx", "drop", "no-rule");
        assert_eq!(
            explanation(&answer(vec![stopped(), allowed.clone(), socket()]), &view()),
            "203.0.113.9 to TCP 11434 gets in by eth1 only\n  \
               eth0    tcx     drop  no-rule\n  \
               eth1    tcx     pass  allowed  rule 3: allow 203.0.113.0/24 via eth1\n  \
               socket  cgroup  drop  no-rule  and what an interface has let in passes\n\
             next: guard allow 203.0.113.9\n"
        );
        let first =
            |places| explanation(&answer(places), &view()).lines().next().unwrap().to_owned();
        assert!(first(vec![allowed, socket()]).ends_with("gets in"));
        assert!(first(vec![stopped(), socket()]).ends_with("does not get in"));
        assert!(first(vec![socket()]).ends_with("does not get in"));
    }

    #[test]
    fn the_first_line_says_what_it_comes_to() {
        let first =
            |places| explanation(&answer(places), &view()).lines().next().unwrap().to_owned();
        assert!(first(vec![place("eth0", "tcx", "pass", "allowed")]).ends_with("gets in"));
        assert!(
            first(vec![place("eth0", "tcx", "would-drop", "no-rule")])
                .ends_with("gets in, because guard only observes")
        );
        assert!(
            first(vec![
                place("eth0", "xdp", "pass", "undecidable"),
                place("socket", "cgroup", "drop", "no-rule")
            ])
            .ends_with("does not get in")
        );
        assert!(first(Vec::new()).ends_with("is judged nowhere"));
    }
}
