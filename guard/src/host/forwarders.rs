//! The userland forwarders of container engines, and the ports they publish.
//!
//! At a forwarder's own socket stands the true client; at the service's stands the forwarder, which looks like this
//! machine. So a port that a forwarder listens on, and that leads to a guarded one, has to be guarded as well. Forwarders
//! are known by their process's name, their ports by the sockets they hold, in the network namespace of
//! the calling thread. Other relays are none of ours.

mod arguments;
mod listening;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
};

use guard_common::{abi::MAX_GUARDED_PORTS, packet::Protocol};
use procfs::{
    ProcError,
    process::{FDTarget, all_processes},
};

use self::{arguments::Kind, listening::Listening};
use crate::rule::GuardedPort;

/// How much of a command line is read. An engine's are far shorter.
const COMMAND_LINE_BYTES: u64 = 64 * 1024;

/// How often one looks again after something has changed: an engine may open a socket before the forwarder that inherits
/// it runs.
const LOOKS_AFTER_A_CHANGE: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    #[error("the sockets that listen can't be listed: {0}")]
    Sockets(io::Error),
    #[error("the processes in /proc can't be listed: {0}")]
    Processes(ProcError),
}

/// A TCP port that a forwarder listens on, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    pub port: u16,
    pub forwarder: &'static str,
    pub leads_to: LeadsTo,
    /// The forwarder is an ordinary user's, and another user listens on this number too.
    pub is_shared: bool,
    /// The forwarder is root's.
    pub is_of_root: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeadsTo {
    Port(u16),
    /// To one of these: what listens at its other end. Which one it does not say.
    OneOf(Vec<u16>),
}

impl Published {
    /// The forwarder's container has this host's own addresses too, so that packets between two of them may come to it by
    /// an interface.
    #[must_use]
    pub fn shares_addresses(&self) -> bool {
        self.forwarder == Kind::Pasta.name()
    }
}

impl LeadsTo {
    fn may_be(&self, port: u16) -> bool {
        match self {
            Self::Port(to) => *to == port,
            Self::OneOf(ports) => ports.contains(&port),
        }
    }
}

/// A published port that leads to a guarded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub to: GuardedPort,
    pub forwarder: &'static str,
}

/// What is to be guarded beside the guarded ports themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    pub taken: BTreeMap<GuardedPort, Alias>,
    /// Those that can't be guarded, one sentence each.
    pub left_out: Vec<String>,
}

/// Which published ports lead to guarded ones. A port that may lead to several takes the first.
#[must_use]
pub fn aliases(published: &[Published], guarded: &[GuardedPort]) -> Aliases {
    let mut aliases = Aliases::default();
    let room = (MAX_GUARDED_PORTS as usize).saturating_sub(guarded.len());
    let mut wanted: Vec<&Published> = published.iter().collect();
    // An ordinary user's must not take the room of the system's.
    wanted.sort_by_key(|published| (!published.is_of_root, published.port));
    for published in wanted {
        let port = tcp(published.port);
        let leads = |port: &&GuardedPort| {
            port.protocol == Protocol::Tcp && published.leads_to.may_be(port.number)
        };
        let Some(to) = guarded.iter().find(leads).copied() else { continue };
        if guarded.contains(&port) || aliases.taken.contains_key(&port) {
            continue;
        }
        let why = if published.is_shared {
            "another user's process listens on it too"
        } else if aliases.taken.len() == room {
            "too many ports are guarded already"
        } else {
            aliases.taken.insert(port, Alias { to, forwarder: published.forwarder });
            continue;
        };
        aliases.left_out.push(format!(
            "port {port}, published by {}, leads to {to} and is not guarded: {why}",
            published.forwarder
        ));
    }
    aliases
}

/// Of the published ports that were guarded, those that still lead to a guarded one.
#[must_use]
pub fn kept(
    mut held: BTreeMap<GuardedPort, GuardedPort>,
    guarded: &[GuardedPort],
) -> BTreeMap<GuardedPort, GuardedPort> {
    held.retain(|port, to| guarded.contains(to) && !guarded.contains(port));
    held.into_iter().take((MAX_GUARDED_PORTS as usize).saturating_sub(guarded.len())).collect()
}

const fn tcp(number: u16) -> GuardedPort {
    GuardedPort { protocol: Protocol::Tcp, number }
}

/// The ports that forwarders publish, each once, in order.
///
/// # Errors
/// When sockets or processes can't be listed.
pub fn find() -> Result<Vec<Published>, ForwarderError> {
    Ok(scan(&sockets_here()?)?.published)
}

/// Tells when what [`find`] finds has changed. Looking costs one short read of the listening sockets as long as nothing has.
#[derive(Debug, Default)]
pub struct Watch {
    sockets: Option<Vec<Listening>>,
    found: Scan,
    looks_to_go: u32,
}

impl Watch {
    /// Whether the last look found all as the looks before it did.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.sockets.is_some() && self.looks_to_go == 0
    }

    /// Whether published ports have come or gone since the last look.
    ///
    /// # Errors
    /// As [`find`].
    pub fn look(&mut self) -> Result<bool, ForwarderError> {
        let sockets = sockets_here()?;
        let is_same_inside = || self.found.inside.iter().all(|(pid, ports)| inside(*pid) == *ports);
        if self.sockets.as_ref() != Some(&sockets) || !is_same_inside() {
            self.looks_to_go = LOOKS_AFTER_A_CHANGE;
        } else if self.looks_to_go == 0 {
            return Ok(false);
        }
        self.looks_to_go -= 1;
        let found = scan(&sockets)?;
        let has_changed = found.published != self.found.published;
        self.sockets = Some(sockets);
        self.found = found;
        Ok(has_changed)
    }
}

fn sockets_here() -> Result<Vec<Listening>, ForwarderError> {
    listening::here().map_err(ForwarderError::Sockets)
}

/// What one walk over all processes has found.
#[derive(Debug, Default)]
struct Scan {
    published: Vec<Published>,
    /// Processes at the other end of forwarders that don't say where they lead, and the ports that listen there.
    inside: Vec<(u32, BTreeSet<u16>)>,
}

/// A process that bears a forwarder's name.
struct Forwarder {
    pid: u32,
    uid: u32,
    kind: Kind,
    arguments: Vec<String>,
    /// Of the sockets that were asked for, those it holds.
    ports: BTreeSet<u16>,
}

/// Who of all processes forwards from these sockets. One that ends meanwhile forwards nothing.
fn scan(sockets: &[Listening]) -> Result<Scan, ForwarderError> {
    let mut scan = Scan::default();
    if sockets.is_empty() {
        return Ok(scan);
    }
    let by_inode: HashMap<u64, u16> =
        sockets.iter().map(|socket| (socket.inode, socket.port)).collect();
    let mut forwarders = Vec::new();
    let mut children: HashMap<i32, Vec<u32>> = HashMap::new();
    for process in all_processes().map_err(ForwarderError::Processes)?.flatten() {
        let Ok(stat) = process.stat() else { continue };
        let pid = process.pid().unsigned_abs();
        children.entry(stat.ppid).or_default().push(pid);
        let may_be = stat.comm == "exe" || Kind::of(&stat.comm, "").is_some();
        if !may_be {
            continue;
        }
        let arguments = command_line(pid);
        let first_word = arguments.first().map_or("", String::as_str);
        let (Some(kind), Ok(uid)) = (Kind::of(&stat.comm, first_word), process.uid()) else {
            continue;
        };
        let ports = held_by(&process, &by_inode);
        forwarders.push(Forwarder { pid, uid, kind, arguments, ports });
    }
    for forwarder in &forwarders {
        let ends =
            if forwarder.ports.is_empty() { Vec::new() } else { other_ends(forwarder, &children) };
        let listening: Vec<_> = ends.into_iter().map(|pid| (pid, inside(pid))).collect();
        let inside = listening.iter().flat_map(|(_, ports)| ports).copied().collect();
        scan.inside.extend(listening);
        for port in &forwarder.ports {
            scan.published.push(Published {
                port: *port,
                forwarder: forwarder.kind.name(),
                leads_to: leads_to(forwarder, *port, &forwarders, &inside),
                is_shared: is_shared(*port, forwarder.uid, sockets),
                is_of_root: forwarder.uid == 0,
            });
        }
    }
    scan.published.sort_unstable();
    scan.published.dedup();
    Ok(scan)
}

/// Anyone can give a process a forwarder's name, and has no business with the ports of others.
fn is_shared(port: u16, uid: u32, sockets: &[Listening]) -> bool {
    uid != 0 && sockets.iter().any(|socket| socket.port == port && socket.uid != uid)
}

fn leads_to(
    forwarder: &Forwarder,
    port: u16,
    all: &[Forwarder],
    inside: &BTreeSet<u16>,
) -> LeadsTo {
    let arguments = &forwarder.arguments;
    match forwarder.kind {
        Kind::DockerProxy => match arguments::docker_proxy(arguments) {
            Some((_, to)) => LeadsTo::Port(to),
            None => LeadsTo::OneOf(Vec::new()),
        },
        // Rootless Docker's own proxies stand behind it, and take the port on from there.
        Kind::RootlessKit => LeadsTo::OneOf(
            all.iter()
                .filter(|other| other.kind == Kind::DockerProxy && other.uid == forwarder.uid)
                .filter_map(|other| arguments::docker_proxy(&other.arguments))
                .filter_map(|(from, to)| (from == port).then_some(to))
                .chain(arguments::rootlesskit(arguments, port))
                .collect(),
        ),
        Kind::Pasta => LeadsTo::Port(arguments::pasta(arguments, port)),
        Kind::RootlessPort | Kind::Slirp4netns => leads_inside(port, &forwarder.ports, inside),
    }
}

/// Where a port leads whose forwarder only shows what it publishes and what listens at its other end. A number that listens
/// there is taken to lead to itself; another leads to what is not published by its own number, where there is such.
fn leads_inside(port: u16, published: &BTreeSet<u16>, inside: &BTreeSet<u16>) -> LeadsTo {
    if inside.contains(&port) {
        return LeadsTo::Port(port);
    }
    let unpublished: Vec<u16> = inside.difference(published).copied().collect();
    if unpublished.is_empty() {
        return LeadsTo::OneOf(inside.iter().copied().collect());
    }
    LeadsTo::OneOf(unpublished)
}

/// Processes in the network namespace that a forwarder leads to, where its command line does not say the port.
fn other_ends(forwarder: &Forwarder, children: &HashMap<i32, Vec<u32>>) -> Vec<u32> {
    let candidates = match forwarder.kind {
        // Its child is in the container's namespace.
        Kind::RootlessPort => {
            let own = i32::try_from(forwarder.pid).ok();
            own.and_then(|pid| children.get(&pid)).cloned().unwrap_or_default()
        }
        Kind::Slirp4netns => arguments::slirp4netns(&forwarder.arguments).into_iter().collect(),
        Kind::DockerProxy | Kind::RootlessKit | Kind::Pasta => Vec::new(),
    };
    let here = network_namespace("/proc/thread-self");
    candidates
        .into_iter()
        .filter(|pid| {
            let there = network_namespace(&format!("/proc/{pid}"));
            there.is_some() && there != here
        })
        .collect()
}

fn network_namespace(process: &str) -> Option<u64> {
    fs::metadata(format!("{process}/ns/net")).ok().map(|namespace| namespace.ino())
}

/// The TCP ports that listen in a process's network namespace; none when it has gone.
fn inside(pid: u32) -> BTreeSet<u16> {
    let sockets = listening::of_process(pid).unwrap_or_default();
    sockets.iter().map(|socket| socket.port).collect()
}

fn held_by(process: &procfs::process::Process, sockets: &HashMap<u64, u16>) -> BTreeSet<u16> {
    let Ok(files) = process.fd() else { return BTreeSet::new() };
    files
        .flatten()
        .filter_map(|file| match file.target {
            FDTarget::Socket(inode) => sockets.get(&inode).copied(),
            _ => None,
        })
        .collect()
}

/// The words of a command line, as far as it is read.
fn command_line(pid: u32) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE_BYTES).read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
