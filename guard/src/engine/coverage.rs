//! Which interfaces are to be covered and how, and bringing the kernel there.

use std::collections::HashSet;

use crate::{
    config::{Attach, Config, Interfaces},
    control::InterfaceStatus,
    engine::facts::Facts,
    host::{
        interfaces::{Class, Interface},
        via::{self, Unseen},
    },
    kernel::{
        KernelError,
        attach::{Attacher, Coverage, Wanted, Way, coverage},
        links::{self, OwnLink},
        pins::Pins,
    },
    rule::InterfaceName,
};

/// The ways to try, in order. Native XDP only where it was asked for: on several NICs attaching it costs other traffic something.
fn ladder(mode: Attach, is_ethernet: bool) -> Vec<Way> {
    use Way::{Clsact, Tcx, XdpGeneric, XdpNative};
    let mut ways = match mode {
        Attach::Auto => vec![Tcx, Clsact, XdpGeneric],
        Attach::Native => vec![XdpNative, Tcx, Clsact, XdpGeneric],
        Attach::Generic => vec![XdpGeneric, Tcx, Clsact],
        Attach::Tcx => vec![Tcx, Clsact],
        Attach::Clsact => vec![Clsact, Tcx],
        Attach::Socket => Vec::new(),
    };
    if !is_ethernet {
        ways.retain(|way| !matches!(way, XdpNative | XdpGeneric));
    }
    ways
}

/// Whether packets from other machines come in by it first.
fn is_outside(interface: &Interface) -> bool {
    matches!(interface.class, Class::Outside | Class::Tunnel)
}

fn is_chosen(interface: &Interface, choice: &Interfaces) -> bool {
    match choice {
        Interfaces::Outside => is_outside(interface),
        Interfaces::Named(patterns) => {
            patterns.iter().any(|pattern| pattern.matches(&interface.name))
        }
    }
}

/// The interfaces to cover, each with its ladder.
pub fn wanted(config: &Config, facts: &Facts) -> Vec<Wanted> {
    facts
        .interfaces
        .iter()
        .filter(|interface| interface.class != Class::Loopback)
        .filter(|interface| is_chosen(interface, &config.interfaces))
        .map(|interface| Wanted {
            ifindex: interface.index,
            name: interface.name.clone(),
            ladder: ladder(config.attach.of(&interface.name), interface.is_ethernet),
        })
        .collect()
}

/// What comes by an interface that rules name, by the indices of the interfaces that are to be covered for it: where one is
/// not, none of its packets is judged there.
///
/// # Errors
/// Why no packet can be told to come by it.
pub fn judged_at(config: &Config, facts: &Facts, name: &InterfaceName) -> Result<Vec<u32>, Unseen> {
    let hooked = wanted(config, facts)
        .into_iter()
        .filter(|wanted| !wanted.ladder.is_empty())
        .map(|wanted| wanted.ifindex)
        .collect();
    via::judged_at(name, &facts.snapshot, &facts.interfaces, &hooked)
}

/// Why no packet matches a rule for this interface at present, if that is so. `covered` are the interfaces that have a hook now.
pub fn idle(
    config: &Config,
    facts: &Facts,
    covered: &HashSet<u32>,
    name: &InterfaceName,
) -> Option<String> {
    match judged_at(config, facts, name) {
        Err(unseen) => Some(unseen.to_string()),
        Ok(indices) if indices.iter().any(|ifindex| covered.contains(ifindex)) => None,
        Ok(_) => Some(format!("the hook that {name} should have is missing (guard status)")),
    }
}

/// Covers what is wanted and uncovers what no longer is. Returns what did not work, by interface.
///
/// # Errors
/// When the programs can't be opened or the kernel's lists not walked.
pub fn cover(pins: &Pins, config: &Config, facts: &Facts) -> Result<Vec<String>, KernelError> {
    let mut attacher = Attacher::new(pins)?;
    let wanted = wanted(config, facts);
    let mut failures = Vec::new();
    for interface in &wanted {
        match attacher.cover(interface, &facts.seen(interface.ifindex)) {
            Ok(tried) => {
                failures
                    .extend(tried.into_iter().map(|what| format!("{}: {what}", interface.name)));
            }
            Err(error) => failures.push(format!("{}: {error}", interface.name)),
        }
    }
    for interface in &facts.interfaces {
        if wanted.iter().all(|wanted| wanted.ifindex != interface.index) {
            attacher.uncover(interface.index, &interface.name, &facts.seen(interface.index))?;
        }
    }
    links::forget_dead(pins)?;
    Ok(failures)
}

/// Each interface that matters and how the kernel says it is covered, and one sentence for each that should be and is not.
///
/// # Errors
/// When the kernel's lists can't be walked.
pub fn report(
    pins: &Pins,
    config: &Config,
    facts: &Facts,
    links: &[OwnLink],
) -> Result<(Vec<InterfaceStatus>, Vec<String>), KernelError> {
    let own = links::own_programs(pins.instance)?;
    let wanted = wanted(config, facts);
    let mut interfaces = Vec::new();
    let mut missing = Vec::new();
    for interface in &facts.interfaces {
        let asked = wanted.iter().find(|wanted| wanted.ifindex == interface.index);
        if asked.is_none() && !is_outside(interface) && interface.class != Class::LocalBridge {
            continue;
        }
        let seen = facts.seen(interface.index);
        let covered = coverage(&own, links, interface.index, &interface.name, &seen);
        if let (Some(asked), None) = (asked, covered.way)
            && !asked.ladder.is_empty()
        {
            missing.push(format!(
                "{} is not covered: its packets are stopped at the sockets only; the daemon's log says why",
                interface.name
            ));
        }
        interfaces.push(InterfaceStatus {
            name: interface.name.clone(),
            index: interface.index,
            class: class_name(interface.class).to_owned(),
            hook: covered.way.map(|way| way.name().to_owned()),
            note: note(interface, asked, &covered),
        });
    }
    Ok((interfaces, missing))
}

fn note(interface: &Interface, asked: Option<&Wanted>, covered: &Coverage) -> Option<String> {
    let mut notes = Vec::new();
    if let Some(first) = asked.and_then(|asked| asked.ladder.first())
        && covered.way.is_some_and(|way| way != *first)
    {
        notes.push(format!("{} was not to be had", first.name()));
    }
    if asked.is_none() && is_outside(interface) {
        notes.push("not chosen: stopped at the sockets only".to_owned());
    }
    if !covered.before_ours.is_empty() {
        notes.push(format!(
            "{} stands before guard and may pass packets unseen",
            covered.before_ours.join(", ")
        ));
    }
    notes.extend(interface.doubt.clone());
    (!notes.is_empty()).then(|| notes.join("; "))
}

const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Loopback => "loopback",
        Class::Outside => "outside",
        Class::Tunnel => "tunnel",
        Class::LocalBridge => "local bridge",
        Class::Container => "container",
        Class::Covered => "covered below",
        Class::Silent => "silent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_xdp_is_tried_only_where_it_was_asked_for() {
        use Attach::{Auto, Clsact, Generic, Native, Socket, Tcx};
        for mode in [Auto, Generic, Tcx, Clsact, Socket] {
            assert!(!ladder(mode, true).contains(&Way::XdpNative), "{mode:?}");
        }
        assert_eq!(ladder(Native, true)[0], Way::XdpNative);
        assert_eq!(ladder(Auto, true)[0], Way::Tcx);
    }

    #[test]
    fn every_ladder_has_a_step_that_needs_no_ethernet_header() {
        use Attach::{Auto, Clsact, Generic, Native, Tcx};
        for mode in [Auto, Native, Generic, Tcx, Clsact] {
            let ways = ladder(mode, false);
            assert!(!ways.is_empty(), "{mode:?}");
            assert!(ways.iter().all(|way| matches!(way, Way::Tcx | Way::Clsact)), "{mode:?}");
        }
        assert!(ladder(Attach::Socket, true).is_empty());
    }
}
