//! Which interfaces are to be covered and how, and bringing the kernel there.

use std::{
    collections::{HashMap, HashSet},
    mem,
    time::{Duration, Instant},
};

use guard_common::verdict::Hook;

use crate::{
    config::{Attach, Config, Interfaces},
    control::{InterfaceStatus, Layer},
    engine::{
        facts::Facts,
        ladder::{self, Choice},
        status::Missing,
    },
    host::{
        interfaces::{Class, Interface},
        nic::{self, Nic},
        via::{self, Unseen},
    },
    kernel::{
        KernelError,
        attach::{Attacher, Coverage, Refused, Wanted, Way, coverage},
        links::{self, OwnLink},
        pins::Pins,
        seen::Seen,
    },
    rule::InterfaceName,
};

/// Whether packets from other machines come in by it first.
fn is_outside(interface: &Interface) -> bool {
    matches!(interface.class, Class::Outside | Class::Tunnel)
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

/// The interfaces to cover, each with a ladder. The choice of interfaces is one of where packets drop early; what leaves
/// for guests is judged wherever there are some.
///
/// The cards themselves are asked only for [`choice`].
pub fn wanted(config: &Config, facts: &Facts) -> Vec<Wanted> {
    let wanted = |interface: &Interface| {
        let mode = config.attach.of(&interface.name);
        let ladder = if interface.is_edge() {
            ladder::edge(mode)
        } else if is_chosen(interface, &config.interfaces) {
            let unasked = Nic { driver: interface.kind.clone(), ..Nic::default() };
            ladder::choose(mode, interface, &unasked).ladder
        } else {
            return None;
        };
        Some(Wanted {
            ifindex: interface.index,
            name: interface.name.clone(),
            is_ethernet: interface.is_ethernet,
            ladder,
            stays_native: ladder::stays_native(mode, interface.kind.as_deref()),
        })
    };
    facts.interfaces.iter().filter_map(wanted).collect()
}

/// The ladder of an interface by which packets come in, after its card has been asked.
fn choice(config: &Config, facts: &Facts, interface: &Interface) -> Choice {
    let mode = config.attach.of(&interface.name);
    let link = facts.snapshot.links.iter().find(|link| link.index == interface.index);
    // What was asked for is tried whatever there is.
    let nic = link.filter(|_| mode == Attach::Auto).map(nic::ask).unwrap_or_default();
    ladder::choose(mode, interface, &nic)
}

/// What covering came to.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    /// What did not work, by interface.
    pub failures: Vec<String>,
    /// One sentence about interfaces that had gone before they were covered.
    pub gone: Option<String>,
    /// There is more to do than there was time for.
    pub is_unfinished: bool,
}

/// What comes by an interface that rules name, by the indices of the interfaces that are to be covered for it: where one is
/// not, none of its packets is judged there.
///
/// # Errors
/// Why no packet can be told to come by it.
pub fn judged_at(config: &Config, facts: &Facts, name: &InterfaceName) -> Result<Vec<u32>, Unseen> {
    let hooked = wanted(config, facts)
        .into_iter()
        .filter(|wanted| wanted.ladder.first().is_some_and(|way| way.hook() != Hook::Edge))
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

/// Covers what is wanted and uncovers what no longer is. Returns what did not work, by interface: none of it keeps the
/// others from being covered.
///
/// # Errors
/// When the programs can't be opened or the kernel's lists not walked.
pub fn cover(pins: &Pins, config: &Config, facts: &Facts) -> Result<Vec<String>, KernelError> {
    let covered = cover_within(pins, config, facts, Duration::MAX, &mut Refusals::default())?;
    Ok(covered.failures.into_iter().chain(covered.gone).collect())
}

/// As [`cover`], for about this long in each of its parts. The kernel waits for running programs on each TCX hook that
/// changes (`tcx_entry_sync` in `include/net/tcx.h`), some milliseconds every time; where hundreds come at once, others must
/// not wait for all of them. What matters most comes first, and something is done every time.
///
/// # Errors
/// When the programs can't be opened or the kernel's lists not walked.
pub fn cover_within(
    pins: &Pins,
    config: &Config,
    facts: &Facts,
    limit: Duration,
    refusals: &mut Refusals,
) -> Result<Covered, KernelError> {
    let mut attacher = Attacher::new(pins)?;
    let mut covered = Covered::default();
    let wanted = wanted(config, facts);
    let asked: HashSet<u32> = wanted.iter().map(|wanted| wanted.ifindex).collect();
    let (asked, others): (Vec<_>, Vec<_>) =
        facts.interfaces.iter().partition(|interface| asked.contains(&interface.index));
    // Both are in the order of the interfaces.
    let mut asked: Vec<_> = wanted.iter().zip(asked).collect();
    asked.sort_by_key(|(_, interface)| urgency(interface));

    let mut earlier = mem::take(refusals);
    let mut gone = Vec::new();
    let mut slice = Slice::new(limit);
    for (wanted, interface) in asked {
        let seen = facts.seen(wanted.ifindex);
        let is_on = attacher.is_on(wanted.ifindex, &seen);
        let circumstances = Circumstances::of(interface, &seen);
        if let Some(refusal) = earlier.remove(&wanted.ifindex)
            && is_on
            && refusal.circumstances == circumstances
        {
            covered.failures.extend(refusal.failures.iter().cloned());
            refusals.insert(wanted.ifindex, refusal);
            continue;
        }
        if !is_on && !slice.has_time() {
            covered.is_unfinished = true;
            continue;
        }
        let name = &wanted.name;
        // What is covered already stays as it is, whatever its card would say now.
        let asked = (!is_on && !interface.is_edge())
            .then(|| Wanted { ladder: choice(config, facts, interface).ladder, ..wanted.clone() });
        match attacher.cover(asked.as_ref().unwrap_or(wanted), &seen) {
            Ok(Some(refused)) if refused.is_empty() => {}
            Ok(Some(refused)) => {
                let failures: Vec<_> =
                    refused.iter().map(|refused| format!("{name}: {}", refused.what)).collect();
                covered.failures.extend(failures.iter().cloned());
                if !circumstances.were_others(&refused) {
                    refusals.insert(wanted.ifindex, Refusal { circumstances, failures });
                }
            }
            Ok(None) => gone.push(name.as_str()),
            Err(error) => covered.failures.push(format!("{name}: {error}")),
        }
    }
    let mut slice = Slice::new(limit);
    for interface in others {
        let seen = facts.seen(interface.index);
        if !attacher.is_on(interface.index, &seen) {
            continue;
        }
        if !slice.has_time() {
            covered.is_unfinished = true;
            break;
        }
        if let Err(error) = attacher.uncover(interface.index, &interface.name, &seen) {
            covered.failures.push(format!("{}: {error}", interface.name));
        }
    }
    let mut slice = Slice::new(limit);
    for stray in attacher.take_strays(&facts.seen) {
        if !slice.has_time() {
            covered.is_unfinished = true;
            break;
        }
        covered.failures.extend(stray.detach(pins).err().map(|error| error.to_string()));
    }
    covered.failures.extend(links::forget_dead(pins).err().map(|error| error.to_string()));
    covered.gone = went_away(&gone);
    Ok(covered)
}

/// What the kernel or a driver did not take on the way down a ladder, by interface. It is not asked for again until
/// something has changed: a driver may complain in the kernel's log every time, or do half the work before it refuses.
pub type Refusals = HashMap<u32, Refusal>;

#[derive(Clone, Debug)]
pub struct Refusal {
    circumstances: Circumstances,
    failures: Vec<String>,
}

/// What a refusal may have come from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Circumstances {
    name: String,
    up: bool,
    carrier: bool,
    mtu: u32,
    /// The program in the XDP slot.
    slot: Option<u32>,
}

impl Circumstances {
    fn of(interface: &Interface, seen: &Seen) -> Self {
        Self {
            name: interface.name.clone(),
            up: interface.up,
            carrier: interface.carrier,
            mtu: interface.mtu,
            slot: seen.xdp.map(|xdp| xdp.program_id),
        }
    }

    /// Whether they had changed by the time of the refusal: whoever took the slot in between may leave it unseen too.
    fn were_others(&self, refused: &[Refused]) -> bool {
        self.slot.is_none() && refused.iter().any(|refused| refused.is_slot_taken)
    }
}

/// Time for some work, of which the first piece is always done.
struct Slice {
    start: Instant,
    limit: Duration,
    is_begun: bool,
}

impl Slice {
    fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), limit, is_begun: false }
    }

    fn has_time(&mut self) -> bool {
        let has_time = !self.is_begun || self.start.elapsed() < self.limit;
        self.is_begun = true;
        has_time
    }
}

/// In this order: interfaces on which packets can arrive, and of them those that are outside for certain.
fn urgency(interface: &Interface) -> (bool, bool) {
    (!(interface.up && interface.carrier), interface.doubt.is_some())
}

/// One sentence, however many there were.
fn went_away(gone: &[&str]) -> Option<String> {
    match gone {
        [] => None,
        [only] => Some(format!("{only} went away before it was covered")),
        [first, others @ ..] => {
            Some(format!("{first} and {} more went away before they were covered", others.len()))
        }
    }
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
) -> Result<(Vec<InterfaceStatus>, Vec<Missing>), KernelError> {
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
        let covered = coverage(&own, links, interface.index, &seen);
        if let (Some(asked), None) = (asked, covered.way)
            && !asked.ladder.is_empty()
        {
            let name = &interface.name;
            missing.push(if interface.is_edge() {
                Missing::new(
                    Layer::Edge,
                    format!("{name} is not covered: what is forwarded to it is judged at the sockets only, where NAT may have hidden its source; the daemon's log says why, and `guard reload` tries again"),
                )
            } else {
                Missing::new(
                    Layer::Interfaces,
                    format!("{name} is not covered: its packets are stopped at the sockets only; the daemon's log says why, and `guard reload` tries again"),
                )
            });
        }
        if !covered.before_ours.is_empty() {
            let layer = if interface.is_edge() { Layer::Edge } else { Layer::Interfaces };
            missing.push(Missing::new(
                layer,
                format!(
                    "{} before guard on {}: what is let pass there is stopped at the sockets only; `bpftool net` shows whose it is",
                    stands(&covered.before_ours),
                    interface.name
                ),
            ));
        }
        interfaces.push(InterfaceStatus {
            name: interface.name.clone(),
            index: interface.index,
            class: class_name(interface.class).to_owned(),
            hook: covered.way.map(|way| way.name().to_owned()),
            note: note(interface, asked, &covered),
            reason: None,
            native_price: None,
        });
    }
    Ok((interfaces, missing))
}

/// Adds why each interface by which packets come in is covered as it is, and what native XDP would cost there.
pub fn explain(interfaces: &mut [InterfaceStatus], config: &Config, facts: &Facts) {
    for status in interfaces {
        let interface = facts.interfaces.iter().find(|interface| interface.index == status.index);
        let chosen = interface.filter(|it| !it.is_edge() && is_chosen(it, &config.interfaces));
        let (Some(interface), Some(hook)) = (chosen, status.hook.as_deref()) else { continue };
        let Choice { ladder, reason, price } = choice(config, facts, interface);
        let is_on = |way: &Way| way.name() == hook;
        if ladder.first().is_some_and(is_on) {
            status.reason = Some(reason);
            status.native_price = price;
        } else if config.attach.of(&interface.name) == Attach::Auto {
            // The note says what was not to be had.
            status.reason = Some(if hook == Way::XdpNative.name() {
                "it was there already, and taking it off may cost other traffic something"
                    .to_owned()
            } else {
                reason
            });
        }
    }
}

fn note(interface: &Interface, asked: Option<&Wanted>, covered: &Coverage) -> Option<String> {
    let mut notes = Vec::new();
    if let Some(first) = asked.and_then(|asked| asked.ladder.first())
        && covered.way.is_some_and(|way| way != *first && way != Way::XdpNative)
    {
        let why = covered.slot_holder.as_ref().filter(|_| first.is_xdp());
        let why = why.map(|holder| format!(": {holder} holds the XDP slot, and is left there"));
        notes.push(format!("{} was not to be had{}", first.name(), why.unwrap_or_default()));
    }
    if asked.is_none() && is_outside(interface) {
        notes.push("not chosen: stopped at the sockets only".to_owned());
    }
    if !covered.before_ours.is_empty() {
        notes.push(format!("{} before guard", stands(&covered.before_ours)));
    }
    notes.extend(interface.doubt.clone());
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn stands(programs: &[String]) -> String {
    let verb = if programs.len() == 1 { "stands" } else { "stand" };
    format!("{} {verb}", programs.join(", "))
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
    fn the_first_piece_of_work_always_has_time() {
        let mut slice = Slice::new(Duration::ZERO);
        assert!(slice.has_time());
        assert!(!slice.has_time());
        let mut slice = Slice::new(Duration::MAX);
        assert!((0..3).all(|_| slice.has_time()));
    }

    #[test]
    fn what_packets_arrive_on_comes_first() {
        let interface = |up, carrier, doubt: Option<&str>| Interface {
            index: 1,
            name: "eth1".into(),
            class: Class::Outside,
            is_ethernet: true,
            kind: None,
            up,
            carrier,
            is_bridge_port: false,
            mtu: 1500,
            doubt: doubt.map(str::to_owned),
        };
        let order = [
            interface(true, true, None),
            interface(true, true, Some("who knows")),
            interface(true, false, None),
            interface(false, false, Some("who knows")),
        ];
        assert!(order.is_sorted_by_key(urgency));
        assert!(urgency(&order[0]) < urgency(&order[1]) && urgency(&order[1]) < urgency(&order[2]));
    }

    #[test]
    fn a_slot_that_was_taken_between_two_looks_is_asked_for_again() {
        let circumstances =
            |slot| Circumstances { name: "eth1".into(), up: true, carrier: true, mtu: 1500, slot };
        let refused = |is_slot_taken| [Refused { what: "xdp native: no".into(), is_slot_taken }];
        assert!(circumstances(None).were_others(&refused(true)));
        assert!(!circumstances(Some(7)).were_others(&refused(true)));
        assert!(!circumstances(None).were_others(&refused(false)));
    }

    #[test]
    fn what_has_gone_is_one_sentence() {
        assert_eq!(went_away(&[]), None);
        let said = |gone: &[&str]| went_away(gone).unwrap();
        assert_eq!(said(&["eth1"]), "eth1 went away before it was covered");
        assert_eq!(
            said(&["eth1", "eth2", "eth3"]),
            "eth1 and 2 more went away before they were covered"
        );
    }
}
