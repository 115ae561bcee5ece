//! The whole policy as the control plane holds it: the guarded ports and all rules, wherever they come from. Pure, but for the
//! reading of sets from files.

mod change;
mod countries;
pub mod names;
mod sets;

pub use change::{Added, add, confirm, end_after, remove};
pub use sets::{Reread, SetError, Sets, Unreadable};

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use guard_common::abi::NO_END;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::{SignedDuration, Timestamp};

use crate::{
    compile::{InputRule, RuleKind},
    control::{Failure, RuleView},
    host::interfaces::LanPrefixes,
    rule::{Action, GuardedPort, InterfaceName, Rule, RuleId, Source, is_wide},
};

/// Guarded ports and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Sorted, each once.
    pub ports: Vec<GuardedPort>,
    /// The file's, the flags', and those made by command, in this order.
    pub rules: Vec<Rule>,
}

/// Both clocks at one moment. Rules end by the wall clock, and the kernel checks ends against boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub wall: Timestamp,
    pub boot_ns: u64,
    /// The number of this boot, which no other has; `None` where the kernel does not tell it.
    pub boot_id: Option<u128>,
    /// The wall clock is not earlier than it once was.
    pub trusted: bool,
}

impl Clock {
    /// The boot time, in nanoseconds, at which the wall clock will show this; 0 for what is before boot.
    #[must_use]
    pub fn boot_at(&self, wall: Timestamp) -> u64 {
        let to_go_ns = wall.as_nanosecond() - self.wall.as_nanosecond();
        let at = i128::from(self.boot_ns) + to_go_ns;
        // One short of "never", which no calendar reaches.
        u64::try_from(at.clamp(0, i128::from(NO_END - 1))).unwrap_or_default()
    }

    /// What the wall clock showed, or would have, at boot.
    #[must_use]
    pub fn wall_at_boot(&self) -> SignedDuration {
        self.wall.as_duration() - SignedDuration::from_nanos_i128(self.boot_ns.into())
    }

    /// When a rule ends in boot time; `None` when it no longer holds.
    ///
    /// By a clock that is not trusted nobody knows how long there is to go: what allows is off, what denies stays.
    fn end_of(&self, rule: &Rule) -> Option<u64> {
        let Some(until) = rule.until else {
            return Some(NO_END);
        };
        match (self.trusted, rule.action) {
            (false, Action::Allow) => None,
            (false, Action::Deny) => Some(NO_END),
            (true, _) => (until > self.wall).then(|| self.boot_at(until)),
        }
    }
}

impl Policy {
    /// All rules of a policy.
    #[must_use]
    pub fn new(ports: Vec<GuardedPort>, parts: [&[Rule]; 3]) -> Self {
        Self { ports, rules: parts.concat() }
    }

    /// The rules that hold, with prefixes for sources and boot time for ends.
    ///
    /// # Errors
    /// When a set was not read, see [`Sets::completed`].
    pub fn input_rules(
        &self,
        sets: &Sets,
        lan: &LanPrefixes,
        clock: &Clock,
    ) -> Result<Vec<InputRule>, SetError> {
        let mut input = Vec::new();
        for rule in &self.rules {
            let Some(until_ns) = clock.end_of(rule) else { continue };
            let (kind, prefixes) = prefixes(&rule.source, sets, lan)?;
            input.push(InputRule {
                id: rule.id.clone(),
                action: rule.action,
                kind,
                prefixes,
                ports: rule.ports.clone(),
                via: rule.interface().cloned(),
                until_ns,
            });
        }
        Ok(input)
    }

    /// The rules as they are shown: those that have ended are left out. `idle` says why nothing can be told to come by an
    /// interface, if that is so.
    #[must_use]
    pub fn views(
        &self,
        sets: &Sets,
        lan: &LanPrefixes,
        clock: &Clock,
        idle: impl Fn(&InterfaceName) -> Option<String>,
    ) -> Vec<RuleView> {
        self.rules
            .iter()
            .filter(|rule| rule.until.is_none_or(|until| until > clock.wall))
            .map(|rule| RuleView {
                id: rule.id.clone(),
                action: rule.action,
                source: rule.source.to_string(),
                ports: rule.ports.iter().map(ToString::to_string).collect(),
                via: rule.via.as_ref().map(ToString::to_string),
                idle: rule.interface().and_then(&idle),
                until: rule.until,
                comment: rule.comment.clone(),
                origin: rule.origin.clone(),
                prefixes: prefixes(&rule.source, sets, lan)
                    .map_or(0, |(_, prefixes)| prefixes.len()),
                wide: is_wide_allow(rule),
                refresh: sets.refresh(&rule.source),
            })
            .collect()
    }

    /// The allow rules that let in more than a /8 (IPv4) or /16 (IPv6), or everyone by an interface.
    #[must_use]
    pub fn wide_rules(&self) -> Vec<&Rule> {
        self.rules.iter().filter(|rule| is_wide_allow(rule)).collect()
    }
}

/// Refuses an allow that lets in more than a /8 (IPv4) or /16 (IPv6), unless it is confirmed.
///
/// # Errors
/// `NeedsConfirmation`.
pub fn check_wide(action: Action, source: &Source, is_confirmed: bool) -> Result<(), Failure> {
    match (action, source) {
        (Action::Allow, Source::Prefix(prefix)) if is_wide(*prefix) && !is_confirmed => {
            Err(Failure::needs_confirmation(
                format!("{source} lets in a large part of the Internet"),
                "Name a narrower prefix, or add --yes.",
            ))
        }
        _ => Ok(()),
    }
}

/// An interface needs no confirmation: it is named for being narrower than its addresses. How wide it is nobody here knows, so it
/// is shown.
fn is_wide_allow(rule: &Rule) -> bool {
    matches!(rule.source, Source::Interface(_))
        || check_wide(rule.action, &rule.source, false).is_err()
}

/// Every address of both families.
fn everyone() -> [IpNet; 2] {
    [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    ]
}

fn prefixes(
    source: &Source,
    sets: &Sets,
    lan: &LanPrefixes,
) -> Result<(RuleKind, Arc<[IpNet]>), SetError> {
    Ok(match source {
        Source::Prefix(prefix) => (RuleKind::Typed, [*prefix].into()),
        Source::File(_) | Source::Country(_) => (RuleKind::Set, sets.prefixes(source)?),
        Source::Name(_) => (RuleKind::Name, sets.prefixes(source)?),
        Source::Lan => (RuleKind::Set, lan.private.as_slice().into()),
        Source::Interface(_) => (RuleKind::Name, everyone().into()),
        Source::Lan6 => (RuleKind::Set, [lan.private.as_slice(), &lan.global6].concat().into()),
    })
}

/// Whether two rules are one and the same but for how long they hold and what is said of them.
fn is_same(one: &Rule, other: &Rule) -> bool {
    (one.action, &one.source, &one.ports, &one.via)
        == (other.action, &other.source, &other.ports, &other.via)
}

/// The id of a rule that denies just what this one allows, and wins.
fn denied_by<'a>(rules: &'a [Rule], rule: &Rule) -> Option<&'a RuleId> {
    let covers_ports = |other: &Rule| {
        let is_narrower =
            rule.ports.is_empty() || !rule.ports.iter().all(|port| other.is_for(*port));
        other.ports.is_empty() || !is_narrower
    };
    let covers_interface = |other: &Rule| other.via.is_none() || other.via == rule.via;
    let denies = |other: &&Rule| {
        other.action == Action::Deny
            && other.source == rule.source
            && covers_ports(other)
            && covers_interface(other)
    };
    (rule.action == Action::Allow).then(|| rules.iter().find(denies)).flatten().map(|rule| &rule.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Origin;

    pub(super) fn rule(id: &str, action: Action, source: &str) -> Rule {
        Rule {
            id: RuleId(id.to_owned()),
            action,
            source: source.parse().unwrap(),
            ports: Vec::new(),
            via: None,
            until: None,
            comment: None,
            origin: Origin::Command,
        }
    }

    pub(super) fn clock() -> Clock {
        Clock {
            wall: "2026-11-25T01:00:00Z".parse().unwrap(),
            boot_ns: 5_000_000_000,
            boot_id: Some(7),
            trusted: true,
        }
    }

    fn ends(rules: &[Rule], clock: &Clock) -> Vec<(String, u64)> {
        let policy = Policy::new(Vec::new(), [rules, &[], &[]]);
        let input = policy.input_rules(&Sets::default(), &LanPrefixes::default(), clock).unwrap();
        input.into_iter().map(|rule| (rule.id.0, rule.until_ns)).collect()
    }

    fn until(mut rule: Rule, end: &str) -> Rule {
        rule.until = Some(end.parse().unwrap());
        rule
    }

    #[test]
    fn ends_become_boot_time_and_what_has_ended_is_left_out() {
        let rules = [
            rule("1", Action::Allow, "192.0.2.1"),
            until(rule("2", Action::Allow, "192.0.2.2"), "2026-11-25T01:00:02Z"),
            until(rule("3", Action::Deny, "192.0.2.3"), "2026-11-25T01:00:00Z"),
        ];
        let expected = [("1".to_owned(), NO_END), ("2".to_owned(), 7_000_000_000)];
        assert_eq!(ends(&rules, &clock()), expected);
    }

    #[test]
    fn an_untrusted_clock_keeps_denies_and_drops_allows_with_an_end() {
        let rules = [
            rule("1", Action::Allow, "192.0.2.1"),
            until(rule("2", Action::Allow, "192.0.2.2"), "2027-11-25T01:00:02Z"),
            until(rule("3", Action::Deny, "192.0.2.3"), "2027-11-25T01:00:00Z"),
        ];
        let untrusted = Clock { trusted: false, ..clock() };
        let expected = [("1".to_owned(), NO_END), ("3".to_owned(), NO_END)];
        assert_eq!(ends(&rules, &untrusted), expected);
    }

    #[test]
    fn a_time_before_boot_is_zero_and_none_is_never() {
        let clock = clock();
        assert_eq!(clock.boot_at("1970-01-01T00:00:00Z".parse().unwrap()), 0);
        assert_eq!(clock.boot_at(Timestamp::MAX), NO_END - 1);
    }

    #[test]
    fn lan_and_its_wider_sister_stand_for_what_is_on_link() {
        let lan = LanPrefixes {
            private: vec!["192.168.1.0/24".parse().unwrap()],
            global6: vec!["2001:db8::/64".parse().unwrap()],
        };
        let rules = [rule("1", Action::Allow, "lan"), rule("2", Action::Allow, "lan6")];
        let policy = Policy::new(Vec::new(), [&rules, &[], &[]]);
        let input = policy.input_rules(&Sets::default(), &lan, &clock()).unwrap();
        assert_eq!(*input[0].prefixes, *lan.private);
        assert_eq!(*input[1].prefixes, [lan.private[0], lan.global6[0]]);
        assert!(input.iter().all(|rule| rule.kind == RuleKind::Set));
    }

    #[test]
    fn an_interface_stands_for_everyone_who_comes_by_it() {
        let mut by_eth1 = rule("2", Action::Deny, "192.0.2.0/24");
        by_eth1.via = Some("eth1".parse().unwrap());
        let rules = [rule("1", Action::Allow, "if:wg0"), by_eth1];
        let policy = Policy::new(Vec::new(), [&rules, &[], &[]]);
        let (sets, lan) = (Sets::default(), LanPrefixes::default());
        let input = policy.input_rules(&sets, &lan, &clock()).unwrap();
        assert_eq!(input[0].kind, RuleKind::Name);
        assert_eq!(*input[0].prefixes, everyone());
        let names = input.iter().map(|rule| rule.via.as_ref().map(InterfaceName::as_str));
        assert_eq!(names.collect::<Vec<_>>(), [Some("wg0"), Some("eth1")]);

        let idle = |name: &InterfaceName| (name.as_str() == "wg0").then(|| "absent".to_owned());
        let views = policy.views(&sets, &lan, &clock(), idle);
        let shown: Vec<_> = views
            .iter()
            .map(|view| {
                (view.source.as_str(), view.via.as_deref(), view.idle.as_deref(), view.wide)
            })
            .collect();
        assert_eq!(
            shown,
            [("if:wg0", None, Some("absent"), true), ("192.0.2.0/24", Some("eth1"), None, false)]
        );
        assert!(check_wide(Action::Allow, &rules[0].source, false).is_ok());
    }

    #[test]
    fn a_wide_allow_needs_confirmation_and_a_wide_deny_does_not() {
        let all: Source = "0.0.0.0/0".parse().unwrap();
        assert!(check_wide(Action::Allow, &all, false).is_err());
        assert!(check_wide(Action::Allow, &all, true).is_ok());
        assert!(check_wide(Action::Deny, &all, false).is_ok());
        assert!(check_wide(Action::Allow, &"10.0.0.0/8".parse().unwrap(), false).is_ok());
    }
}
