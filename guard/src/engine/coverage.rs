//! Which interfaces are to be covered and how, and bringing the kernel there.

use crate::{
    config::{Attach, Config, Interfaces},
    control::InterfaceStatus,
    engine::facts::Facts,
    host::interfaces::{Class, Interface},
    kernel::{
        KernelError,
        attach::{Attacher, Coverage, Wanted, Way, coverage},
        links::{self, OwnLink},
        pins::Pins,
    },
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

/// The ways to judge what leaves for guests. `attach = "generic"` and `"native"` say how packets are judged that come in; here
/// there is no such choice.
fn edge_ladder(mode: Attach) -> Vec<Way> {
    match mode {
        Attach::Auto | Attach::Native | Attach::Generic | Attach::Tcx => {
            vec![Way::EdgeTcx, Way::EdgeClsact]
        }
        Attach::Clsact => vec![Way::EdgeClsact, Way::EdgeTcx],
        Attach::Socket => Vec::new(),
    }
}

/// What comes from this host's own guests is judged at the sockets: at a NIC's hook it would look like a stranger that
/// claims a local address.
fn is_chosen(interface: &Interface, choice: &Interfaces) -> bool {
    if matches!(interface.class, Class::Loopback | Class::LocalBridge | Class::Container) {
        return false;
    }
    match choice {
        Interfaces::Outside => is_outside(interface),
        Interfaces::Named(patterns) => {
            patterns.iter().any(|pattern| pattern.matches(&interface.name))
        }
    }
}

/// The interfaces to cover, each with its ladder. The choice of interfaces is one of where packets drop early; what leaves
/// for guests is judged wherever there are some.
pub fn wanted(config: &Config, facts: &Facts) -> Vec<Wanted> {
    let wanted = |interface: &Interface| {
        let mode = config.attach.of(&interface.name);
        let ladder = if interface.is_edge() {
            edge_ladder(mode)
        } else if is_chosen(interface, &config.interfaces) {
            ladder(mode, interface.is_ethernet)
        } else {
            return None;
        };
        Some(Wanted { ifindex: interface.index, name: interface.name.clone(), ladder })
    };
    facts.interfaces.iter().filter_map(wanted).collect()
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
            missing.push(if interface.is_edge() {
                format!(
                    "{} is not covered: what is forwarded to it is judged at the sockets only, where NAT may have hidden its source; the daemon's log says why",
                    interface.name
                )
            } else {
                format!(
                    "{} is not covered: its packets are stopped at the sockets only; the daemon's log says why",
                    interface.name
                )
            });
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
    use guard_common::verdict::Hook;

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
    fn what_leaves_for_guests_is_judged_at_the_edge_unless_only_sockets_are_asked_for() {
        use Attach::{Auto, Clsact, Generic, Native, Socket, Tcx};
        for mode in [Auto, Native, Generic, Tcx, Clsact] {
            let ways = edge_ladder(mode);
            assert!(ways.iter().all(|way| way.hook() == Hook::Edge), "{mode:?}");
            assert_eq!(ways.len(), 2, "{mode:?}");
        }
        assert!(edge_ladder(Socket).is_empty());
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
