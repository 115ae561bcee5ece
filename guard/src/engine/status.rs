//! `guard status`: what the kernel says is in force, held against what should be.

use std::collections::HashSet;

use guard_common::abi::{NO_END, PolicyHeader};

use super::{core::Core, coverage, facts::Facts};
use crate::{
    control::{
        BackstopStatus, Enforcement, EventTotals, Failure, InterfaceStatus, Layer, LayerStatus,
        Mode, PublishedPort, RuleView, SourceStatus, Status,
    },
    events::BootClock,
    host::{
        cgroup::Scope,
        forwarders::{self, Aliases},
    },
    kernel::{KernelError, attach, counters::Counters, links, probe, tables::PolicyMaps},
    output,
    policy::Policy,
    rule::{Action, GuardedPort},
    trial::Trial,
};

/// Something that should be in force and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub layer: Layer,
    /// One sentence, which names what mends it.
    pub what: String,
}

impl Missing {
    pub fn new(layer: Layer, what: impl Into<String>) -> Self {
        Self { layer, what: what.into() }
    }
}

/// What is in force, held against what should be.
pub struct Health {
    pub missing: Vec<Missing>,
    interfaces: Vec<InterfaceStatus>,
    backstop: BackstopStatus,
    published: Vec<PublishedPort>,
    header: Option<PolicyHeader>,
    is_older: bool,
}

/// # Errors
/// When the kernel's lists can't be walked or the host not be asked.
pub fn health(core: &Core, policy: &Policy, facts: &Facts) -> Result<Health, Failure> {
    let config = &core.settings.config;
    let links = links::ours(&core.pins)?;
    let header = core.maps.as_ref().map(PolicyMaps::header).transpose()?.flatten();
    let (interfaces, uncovered) = coverage::report(&core.pins, config, facts, &links)?;
    let backstop = backstop(core, attach::backstop(&links));

    let mut missing = Vec::new();
    let older = core.pins.refuse_older().err().filter(|_| header.is_none());
    match &older {
        Some(older) => {
            missing
                .push(Missing::new(Layer::Policy, format!("{older}: `guard run` takes it over")));
        }
        None if header.is_none() => missing
            .push(Missing::new(Layer::Policy, "no policy is in force: `guard run` puts one there")),
        None => {}
    }
    missing.extend(uncovered);
    if !backstop.attached {
        missing.push(Missing::new(
            Layer::Sockets,
            "the backstop is missing, so that what does not pass a covered interface reaches the sockets: `guard reload` tries again",
        ));
    } else if backstop.scope != ROOT {
        let what = format!(
            "the backstop judges {} only: `guard run` on the host judges every socket",
            backstop.scope
        );
        missing.push(Missing::new(Layer::Sockets, what));
    }
    if let Err(failure) = core.refuse_what_is_lost() {
        missing.push(Missing::new(Layer::Policy, failure.to_string()));
    }
    if let Some(why) = &core.mortal {
        missing.push(Missing::new(Layer::Pins, format!("enforcement ends with the daemon: {why}")));
    }
    if core.pins.are_complete() != core.maps.is_some() {
        missing.push(Missing::new(
            Layer::Pins,
            "some of guard's pins are missing: `guard run` makes them anew",
        ));
    }
    missing.extend(unread(core, policy));
    let (published, open) = published(core, facts, &policy.ports)?;
    missing.extend(open.into_iter().map(|what| Missing::new(Layer::Policy, what)));
    Ok(Health { missing, interfaces, backstop, published, header, is_older: older.is_some() })
}

/// # Errors
/// When the kernel's lists can't be walked or the host not be asked.
pub fn status(core: &Core) -> Result<Status, Failure> {
    let config = &core.settings.config;
    let facts = Facts::gather(config)?;
    let policy = core.policy()?;
    let Health { missing, mut interfaces, backstop, published, header, is_older } =
        health(core, &policy, &facts)?;
    coverage::explain(&mut interfaces, config, &facts);

    let now_ns = probe::boot_ns();
    let observe_until_ns = header.map_or(0, |header| header.observe_until_ns);
    let is_observing = observe_until_ns > now_ns;
    let has_hooks =
        backstop.attached || interfaces.iter().any(|interface| interface.hook.is_some());
    let is_in_force = (header.is_some() || is_older) && has_hooks;
    let enforcement = match (is_in_force, missing.is_empty(), is_observing) {
        (false, _, _) => Enforcement::None,
        (true, false, _) => Enforcement::Partial,
        (true, true, true) => Enforcement::Observe,
        (true, true, false) => Enforcement::Full,
    };
    let counters = core.maps.is_some().then(|| Counters::open(&core.pins)).transpose()?;
    let views = core.views(&policy, &facts)?;
    Ok(Status {
        enforcement,
        layers: layers(&missing, enforcement),
        missing: missing.into_iter().map(|missing| missing.what).collect(),
        mode: if is_observing { Mode::Observe } else { Mode::Enforce },
        observe_until: (is_observing && observe_until_ns != NO_END)
            .then(|| BootClock::sample().wall(observe_until_ns))
            .flatten(),
        generation: header.map(|header| header.generation),
        source_table_bytes: core.maps.as_ref().map_or(0, PolicyMaps::source_table_bytes),
        tables: core.maps.as_ref().map_or_else(Vec::new, PolicyMaps::fill),
        daemon: core.is_daemon.then(std::process::id),
        ports: policy.ports.iter().map(ToString::to_string).collect(),
        published,
        interfaces,
        backstop,
        outlives_daemon: core.mortal.is_none(),
        rules: policy.rules.len(),
        wide_rules: policy
            .wide_rules()
            .into_iter()
            .map(|rule| format!("{} (rule {})", rule.source, rule.id))
            .collect(),
        idle_rules: views.iter().filter_map(output::idle).collect(),
        sources: sources(&views),
        counters: counters.as_ref().map_or_else(|| Ok(Vec::new()), Counters::totals)?,
        events: counters.as_ref().map_or_else(|| Ok(EventTotals::default()), Counters::events)?,
        attempt_history: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trial: core.state.trial.as_ref().map(Trial::view),
        rolled_back: core.state.rolled_back,
        enrich_problems: Vec::new(),
    })
}

/// Each layer, and whether all of it is in force.
fn layers(missing: &[Missing], enforcement: Enforcement) -> Vec<LayerStatus> {
    let is_whole = |layer| {
        enforcement != Enforcement::None && missing.iter().all(|missing| missing.layer != layer)
    };
    Layer::ALL.map(|layer| LayerStatus { layer, enforced: is_whole(layer) }).into()
}

/// Denied files and countries that stand for nobody, since they could not be read when nothing was in force.
fn unread(core: &Core, policy: &Policy) -> Vec<Missing> {
    let denied = policy.rules.iter().filter(|rule| rule.action == Action::Deny);
    denied
        .filter_map(|rule| {
            let refresh =
                core.sets().refresh(&rule.source).filter(|refresh| refresh.at.is_none())?;
            let what = format!(
                "rule {} denies nobody: {}; `guard reload` reads it again",
                rule.id, refresh.error?
            );
            Some(Missing::new(Layer::Policy, what))
        })
        .collect()
}

/// What rules have as their source and is refreshed, each once.
fn sources(views: &[RuleView]) -> Vec<SourceStatus> {
    let mut sources: Vec<SourceStatus> = Vec::new();
    let mut known = HashSet::new();
    for view in views {
        if let Some(refresh) = &view.refresh
            && known.insert(&view.source)
        {
            sources.push(SourceStatus {
                source: view.source.clone(),
                prefixes: view.prefixes,
                refresh: refresh.clone(),
            });
        }
    }
    sources
}

/// The published ports that are guarded, as the kernel says, and one sentence for each that should be and is not.
fn published(
    core: &Core,
    facts: &Facts,
    guarded: &[GuardedPort],
) -> Result<(Vec<PublishedPort>, Vec<String>), KernelError> {
    let Some(maps) = &core.maps else {
        return Ok((Vec::new(), Vec::new()));
    };
    let in_force = maps.aliases_in_force()?;
    let (found, unknown) = match &facts.published {
        Ok(published) => (forwarders::aliases(published, guarded), None),
        Err(why) => (Aliases::default(), Some(why.clone())),
    };
    let published = in_force
        .iter()
        .map(|(port, to)| PublishedPort {
            port: port.to_string(),
            to: to.to_string(),
            by: found.taken.get(port).map(|alias| alias.forwarder.to_owned()),
        })
        .collect();
    let not_yet = found.taken.iter().filter(|(port, alias)| in_force.get(port) != Some(&alias.to));
    let open = not_yet
        .map(|(port, alias)| {
            format!(
                "port {port}, published by {}, leads to {} and is not guarded yet: a daemon does that within a second, `guard reload` at once",
                alias.forwarder, alias.to
            )
        })
        .chain(found.left_out)
        .chain(unknown)
        .collect();
    Ok((published, open))
}

/// The scope of a backstop that judges every socket of the machine.
const ROOT: &str = "root";

/// What the backstop is attached to, which is asked of the kernel.
fn backstop(core: &Core, attached: Option<u64>) -> BackstopStatus {
    let nothing = BackstopStatus { attached: false, scope: ROOT.to_owned(), path: None };
    let (Some(attached), Ok(Some(root))) = (attached, core.settings.mounted_cgroup()) else {
        return nothing;
    };
    if root.id().ok() != Some(attached) {
        return BackstopStatus {
            attached: true,
            scope: "another cgroup than it should".to_owned(),
            path: None,
        };
    }
    let path = root.path.display().to_string();
    BackstopStatus {
        attached: true,
        scope: match root.scope {
            Scope::Root => ROOT.to_owned(),
            Scope::Subtree if core.settings.config.paths.cgroup.is_some() => path.clone(),
            Scope::Subtree => "this container".to_owned(),
        },
        path: Some(path),
    }
}
