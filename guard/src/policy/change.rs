//! Making and removing rules by command.

use jiff::SignedDuration;

use super::{Clock, Policy, check_wide, denied_by, is_same};
use crate::{
    control::{AddRules, Failure},
    history,
    rule::{
        Action, GuardedPort, InterfaceName, Origin, Rule, RuleId, Source, check_action, check_via,
        comment_problem, listed, parse_port_list, quoted,
    },
    state::State,
    trial::{Trial, Tried, TriedRule},
};

/// Sources one request may name.
const MAX_SOURCES: usize = 10_000;

/// The rules that a request has made or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    pub ids: Vec<RuleId>,
    /// Sentences worth knowing.
    pub notes: Vec<String>,
}

/// Makes the rules of a request in `state`. `policy` holds all rules that there are.
///
/// A rule for the same source, ports and interface that a command has made is renewed; an allow is never shortened.
///
/// # Errors
/// When anything in the request is not well formed, or needs confirmation. `state` may hold part of it then: the caller
/// hands in a copy.
pub fn add(
    policy: &Policy,
    request: &AddRules,
    state: &mut State,
    clock: &Clock,
) -> Result<Added, Failure> {
    let ports = ports(policy, &request.ports)?;
    let via: Option<InterfaceName> = request.via.as_deref().map(str::parse).transpose()?;
    let until = match request.for_seconds {
        None => None,
        Some(seconds) => Some(end_after(clock, seconds)?),
    };
    if let Some((what, fix)) = request.comment.as_deref().and_then(comment_problem) {
        return Err(Failure::bad_request(what, fix));
    }
    if request.sources.is_empty() || request.sources.len() > MAX_SOURCES {
        return Err(Failure::bad_request(
            format!("{} sources were named", request.sources.len()),
            format!("Name at least one and at most {MAX_SOURCES}."),
        ));
    }
    let mut added = Added::default();
    let trial = match request.confirm_seconds {
        None => None,
        Some(seconds) => {
            let what = history::words_of(request);
            Some(Trial::begin(what, seconds, clock, Tried::Rules(Vec::new()))?)
        }
    };
    let mut tried = Vec::new();
    for text in &request.sources {
        let source: Source = text.parse()?;
        check_action(request.action, &source)?;
        check_via(&source, via.as_ref())?;
        check_wide(request.action, &source, request.yes)?;
        let rule = Rule {
            id: RuleId::command(state.next_rule),
            action: request.action,
            source,
            ports: ports.clone(),
            via: via.clone(),
            until,
            comment: request.comment.clone(),
            origin: Origin::Command,
        };
        if let Some(by) = denied_by(&policy.rules, &rule) {
            added.notes.push(format!("rule {by} denies {} and wins", rule.source));
        }
        match &trial {
            None => added.ids.push(put(state, rule, clock, &mut added.notes)),
            Some(trial) => tried.extend(put_on_trial(state, rule, trial, &tried, &mut added.notes)),
        }
    }
    if let Some(trial) = trial {
        added.ids.extend(tried.iter().map(|tried| tried.id.clone()));
        state.trial = Some(Trial { change: Tried::Rules(tried), ..trial });
    }
    added.ids.dedup();
    Ok(added)
}

/// Adds a rule that ends with the trial, if not before. What is there is left alone, and holds beneath it and afterwards.
fn put_on_trial(
    state: &mut State,
    mut rule: Rule,
    trial: &Trial,
    tried: &[TriedRule],
    notes: &mut Vec<String>,
) -> Option<TriedRule> {
    for held in state.rules.iter().filter(|held| is_same(held, &rule)) {
        if tried.iter().any(|tried| tried.id == held.id) {
            return None;
        }
        notes.push(format!("rule {} for {} stays as it is meanwhile", held.id, held.source));
    }
    let tried = TriedRule { id: rule.id.clone(), until: rule.until };
    rule.until = Some(rule.until.map_or(trial.until, |until| until.min(trial.until)));
    state.next_rule += 1;
    state.rules.push(rule);
    Some(tried)
}

/// Makes what is on trial what was asked for: its rules become rules as any, or renew those that were there. `None` where nothing
/// is on trial.
pub fn confirm(state: &mut State, clock: &Clock) -> Option<Added> {
    let trial = state.trial.take()?;
    let mut added = Added::default();
    if let Tried::Rules(tried) = trial.change {
        for tried in tried {
            let Some(place) = state.rules.iter().position(|rule| rule.id == tried.id) else {
                continue;
            };
            let rule = Rule { until: tried.until, ..state.rules.remove(place) };
            if rule.until.is_none_or(|until| until > clock.wall) {
                added.ids.push(put(state, rule, clock, &mut added.notes));
            }
        }
        added.ids.dedup();
    }
    Some(added)
}

fn ports(policy: &Policy, texts: &[String]) -> Result<Vec<GuardedPort>, Failure> {
    let ports = parse_port_list(texts)?;
    match ports.iter().find(|port| !policy.ports.contains(port)) {
        Some(port) => Err(Failure::bad_request(
            format!("port {port} is not guarded, so a rule for it would do nothing"),
            format!("Name one of {}, or leave the port out.", listed(&policy.ports)),
        )),
        None => Ok(ports),
    }
}

/// Renews the rule that is there, or makes a new one.
fn put(state: &mut State, rule: Rule, clock: &Clock, notes: &mut Vec<String>) -> RuleId {
    // What has ended makes room: it says nothing any more.
    state.rules.retain(|held| held.until.is_none_or(|until| until > clock.wall));
    let Some(held) = state.rules.iter_mut().find(|held| is_same(held, &rule)) else {
        let id = rule.id.clone();
        if id == RuleId::command(state.next_rule) {
            state.next_rule += 1;
        }
        state.rules.push(rule);
        return id;
    };
    let is_shorter = match (held.until, rule.until) {
        (None, Some(_)) => true,
        (Some(held), Some(new)) => new < held,
        (_, None) => false,
    };
    if rule.action == Action::Allow && is_shorter {
        let end = held.until.map_or("has no end".to_owned(), |until| format!("ends at {until}"));
        notes.push(format!(
            "rule {} for {} {end}, which is later, and stays as it is: remove it to shorten it",
            held.id, held.source
        ));
    } else {
        held.until = rule.until;
    }
    if rule.comment.is_some() {
        held.comment = rule.comment;
    }
    held.id.clone()
}

/// Removes rules made by command, by id or by source as typed. Returns their ids.
///
/// # Errors
/// When a word names no rule, several, or one that no command has made. `state` may hold part of it then: the caller hands in a
/// copy.
pub fn remove(
    policy: &Policy,
    words: &[String],
    state: &mut State,
) -> Result<Vec<RuleId>, Failure> {
    let mut removed = Vec::new();
    for word in words {
        let rule = named(policy, word)?;
        match &rule.origin {
            Origin::Command => {}
            Origin::File { file, line } => {
                return Err(Failure::bad_request(
                    format!("rule {} stands in {}:{line}", rule.id, file.display()),
                    "Take it out there, then run `guard reload`.",
                ));
            }
            Origin::Flag => {
                return Err(Failure::bad_request(
                    format!("rule {} was given to `guard run`", rule.id),
                    "Start it again without that flag.",
                ));
            }
        }
        state.rules.retain(|held| held.id != rule.id);
        removed.push(rule.id.clone());
    }
    removed.dedup();
    Ok(removed)
}

fn named<'a>(policy: &'a Policy, word: &str) -> Result<&'a Rule, Failure> {
    if let Some(rule) = policy.rules.iter().find(|rule| rule.id.0 == word) {
        return Ok(rule);
    }
    let none = || {
        Failure::bad_request(
            format!("no rule is called {}", quoted(word)),
            "`guard rules` lists them with their ids.",
        )
    };
    let source: Source = word.parse().map_err(|_| none())?;
    let by_source: Vec<&Rule> = policy.rules.iter().filter(|rule| rule.source == source).collect();
    match by_source[..] {
        [] => Err(none()),
        [rule] => Ok(rule),
        _ => {
            let ids: Vec<&RuleId> = by_source.iter().map(|rule| &rule.id).collect();
            Err(Failure::bad_request(
                format!("{source} is the source of several rules: {}", listed(&ids)),
                "Name one of them by its id.",
            ))
        }
    }
}

/// The end of something that begins now.
///
/// # Errors
/// When no calendar holds it.
pub fn end_after(clock: &Clock, seconds: u64) -> Result<jiff::Timestamp, Failure> {
    if seconds == 0 {
        return Err(Failure::bad_request("0 seconds is no time at all", "Give a longer time."));
    }
    if !clock.trusted {
        return Err(Failure::failed(
            format!(
                "the clock shows {:.0}, which is earlier than it once was: nobody can say when a time from now is over",
                clock.wall
            ),
            "Set the clock, or leave the time out.",
        ));
    }
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| clock.wall.checked_add(SignedDuration::from_secs(seconds)).ok())
        .ok_or_else(|| {
            Failure::bad_request(
                format!("{seconds} seconds from now is beyond the calendar"),
                "Choose a shorter time.",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{clock, rule};

    fn request(action: Action, sources: &[&str]) -> AddRules {
        AddRules {
            action,
            sources: sources.iter().map(ToString::to_string).collect(),
            ports: Vec::new(),
            via: None,
            for_seconds: None,
            comment: None,
            yes: false,
            confirm_seconds: None,
        }
    }

    fn policy(state: &State) -> Policy {
        let file = Rule {
            origin: Origin::File { file: "/etc/guard/guard.toml".into(), line: 7 },
            ..rule("f1", Action::Deny, "198.51.100.0/24")
        };
        let ports = vec!["11434".parse().unwrap()];
        Policy::new(ports, [&[file], &[], &state.rules])
    }

    fn added(state: &mut State, request: &AddRules) -> Result<Added, Failure> {
        add(&policy(state), request, state, &clock())
    }

    #[test]
    fn numbers_are_given_once() {
        let mut state = State::default();
        let first =
            added(&mut state, &request(Action::Allow, &["192.0.2.1", "192.0.2.2"])).unwrap();
        assert_eq!(first.ids, [RuleId::command(1), RuleId::command(2)]);
        remove(&policy(&state), &["2".to_owned()], &mut state).unwrap();
        let second = added(&mut state, &request(Action::Allow, &["192.0.2.3"])).unwrap();
        assert_eq!(second.ids, [RuleId::command(3)]);
    }

    #[test]
    fn an_allow_is_never_shortened_and_a_deny_is() {
        let mut state = State::default();
        for (action, source) in [(Action::Allow, "192.0.2.1"), (Action::Deny, "192.0.2.9")] {
            let long = AddRules { for_seconds: Some(60), ..request(action, &[source]) };
            added(&mut state, &long).unwrap();
            let short = AddRules { for_seconds: Some(10), ..request(action, &[source]) };
            let notes = added(&mut state, &short).unwrap().notes;
            assert_eq!(notes.len(), usize::from(action == Action::Allow), "{notes:?}");
        }
        let left: Vec<i64> = state
            .rules
            .iter()
            .map(|rule| rule.until.unwrap().duration_since(clock().wall).as_secs())
            .collect();
        assert_eq!(left, [60, 10]);
        added(&mut state, &request(Action::Allow, &["192.0.2.1"])).unwrap();
        assert_eq!(state.rules[0].until, None);
    }

    #[test]
    fn rules_on_trial_end_with_it_and_leave_alone_what_is_there() {
        let seconds_left = |state: &State| {
            let left = |until: jiff::Timestamp| until.duration_since(clock().wall).as_secs();
            let of = |rule: &Rule| (rule.id.0.clone(), rule.until.map(left));
            state.rules.iter().map(of).collect::<Vec<_>>()
        };
        let own = |id: &str, left| (id.to_owned(), left);
        let on_trial = |request| AddRules { confirm_seconds: Some(60), ..request };
        let short = AddRules { for_seconds: Some(600), ..request(Action::Allow, &["192.0.2.1"]) };
        let mut state = State::default();
        added(&mut state, &short).unwrap();
        let before = state.clone();

        // Renewed without an end, and one that is new, named twice.
        let asked = request(Action::Allow, &["192.0.2.1", "192.0.2.2", "192.0.2.2"]);
        let tried = added(&mut state, &on_trial(asked)).unwrap();
        assert_eq!(tried.ids, [RuleId::command(2), RuleId::command(3)]);
        assert_eq!(tried.notes, ["rule 1 for 192.0.2.1 stays as it is meanwhile"]);
        let expected = [own("1", Some(600)), own("2", Some(60)), own("3", Some(60))];
        assert_eq!(seconds_left(&state), expected);
        assert_eq!(
            state.trial.as_ref().unwrap().what,
            "allow 192.0.2.1 192.0.2.2 192.0.2.2 confirm 1m"
        );

        let mut undone = state.clone();
        crate::trial::undo(&mut undone);
        assert_eq!(undone.rules, before.rules);
        assert_eq!(undone.next_rule, 4, "no number is given twice");

        let kept = confirm(&mut state, &clock()).unwrap();
        assert_eq!(kept.ids, [RuleId::command(1), RuleId::command(3)]);
        assert_eq!(seconds_left(&state), [own("1", None), own("3", None)]);
        assert_eq!(state.next_rule, 4);
        assert_eq!(confirm(&mut state, &clock()), None);

        // A rule's own end holds, before and after.
        let ending = AddRules { for_seconds: Some(30), ..request(Action::Deny, &["192.0.2.9"]) };
        added(&mut state, &on_trial(ending.clone())).unwrap();
        assert_eq!(seconds_left(&state)[2], own("4", Some(30)));
        confirm(&mut state, &clock());
        assert_eq!(seconds_left(&state)[2], own("4", Some(30)));
        let longer = AddRules { for_seconds: Some(300), ..ending };
        added(&mut state, &on_trial(longer)).unwrap();
        confirm(&mut state, &clock());
        assert_eq!(seconds_left(&state)[2], own("4", Some(300)));
        assert_eq!(state.rules.len(), 3);
    }

    #[test]
    fn a_rule_for_another_interface_is_another_rule() {
        let mut state = State::default();
        let via = |action, name: &str| AddRules {
            via: Some(name.to_owned()),
            ..request(action, &["192.0.2.1"])
        };
        for request in [
            request(Action::Allow, &["192.0.2.1"]),
            via(Action::Allow, "eth0"),
            via(Action::Allow, "eth1"),
            via(Action::Allow, "eth1"),
        ] {
            added(&mut state, &request).unwrap();
        }
        let interfaces: Vec<_> =
            state.rules.iter().map(|rule| rule.interface().map(InterfaceName::as_str)).collect();
        assert_eq!(interfaces, [None, Some("eth0"), Some("eth1")]);
        let error = remove(&policy(&state), &["192.0.2.1".to_owned()], &mut state).unwrap_err();
        assert!(error.what.contains("1, 2 and 3"), "{}", error.what);

        // A deny hides an allow that holds for no more interfaces.
        added(&mut state, &via(Action::Deny, "eth1")).unwrap();
        assert!(added(&mut state, &via(Action::Allow, "eth0")).unwrap().notes.is_empty());
        let notes = added(&mut state, &via(Action::Allow, "eth1")).unwrap().notes;
        assert_eq!(notes, ["rule 4 denies 192.0.2.1 and wins"]);
        assert!(
            added(&mut state, &request(Action::Allow, &["192.0.2.1"])).unwrap().notes.is_empty()
        );
    }

    #[test]
    fn a_hidden_allow_is_said() {
        let mut state = State::default();
        let notes = added(&mut state, &request(Action::Allow, &["198.51.100.0/24"])).unwrap().notes;
        assert_eq!(notes, ["rule f1 denies 198.51.100.0/24 and wins"]);
    }

    #[test]
    fn what_is_removed_must_be_clear_and_made_by_command() {
        let mut state = State::default();
        added(&mut state, &request(Action::Allow, &["192.0.2.1"])).unwrap();
        added(&mut state, &request(Action::Deny, &["192.0.2.1"])).unwrap();
        let refused = |state: &mut State, word: &str| {
            remove(&policy(state), &[word.to_owned()], state).unwrap_err().what
        };
        assert!(refused(&mut state, "192.0.2.1").contains("1 and 2"));
        assert!(refused(&mut state, "f1").contains("/etc/guard/guard.toml:7"));
        assert!(refused(&mut state, "198.51.100.0/24").contains("guard.toml:7"));
        assert!(refused(&mut state, "203.0.113.1").contains("203.0.113.1"));
        assert!(refused(&mut state, "nonsense").contains("nonsense"));
        assert_eq!(state.rules.len(), 2);
        assert_eq!(
            remove(&policy(&state), &["2".to_owned(), "192.0.2.1".to_owned()], &mut state)
                .unwrap_err()
                .kind,
            crate::control::FailureKind::BadRequest
        );
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        let mut state = State::default();
        let good = request(Action::Allow, &["192.0.2.1"]);
        let bad = [
            AddRules { sources: Vec::new(), ..good.clone() },
            AddRules { sources: vec!["192.0.2.1/24".to_owned()], ..good.clone() },
            AddRules { ports: vec!["8080".to_owned()], ..good.clone() },
            AddRules { ports: vec!["x".to_owned()], ..good.clone() },
            AddRules { via: Some("eth*".to_owned()), ..good.clone() },
            AddRules { via: Some(String::new()), ..good.clone() },
            AddRules { comment: Some("a\nb".to_owned()), ..good.clone() },
            AddRules { for_seconds: Some(u64::MAX), ..good.clone() },
            AddRules { for_seconds: Some(0), ..good.clone() },
            AddRules { confirm_seconds: Some(4), ..good.clone() },
            AddRules { confirm_seconds: Some(3601), ..good.clone() },
            AddRules { sources: vec!["0.0.0.0/0".to_owned()], ..good },
            request(Action::Deny, &["127.0.0.1"]),
            request(Action::Deny, &["if:eth0"]),
            AddRules { via: Some("eth1".to_owned()), ..request(Action::Allow, &["if:eth0"]) },
        ];
        for request in bad {
            assert!(added(&mut state, &request).is_err(), "{request:?}");
        }
    }
}
