//! Open connections to guarded ports, in every network namespace that can be entered, and their end.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    net::IpAddr,
};

use guard_common::packet::Protocol;

use super::{
    Peer, Process,
    diag::{Connection, Diag, Routes},
    holders, owners, peers,
};
use crate::{
    host::netns::{self, Namespace},
    rule::GuardedPort,
};

/// Connections of one namespace that are taken at a time. Those beyond have their turn next.
const MOST_AT_ONCE: usize = 16_384;

/// How often the connections of one namespace are listed: one whose handshake was under way when the policy came in force is
/// met the second time.
const MOST_ROUNDS: usize = 16;

/// Which sockets of other network namespaces the policy holds for. In the thread's own it holds for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// None: no backstop judges there.
    Nothing,
    /// Those of these cgroups.
    Cgroups(HashSet<u64>),
    Everything,
}

impl Elsewhere {
    /// A connection that is only being opened has no cgroup yet; its handshake does not come to an end.
    fn holds_for(&self, connection: &Connection) -> bool {
        match self {
            Self::Nothing => false,
            Self::Cgroups(ids) => connection.cgroup.is_some_and(|id| ids.contains(&id)),
            Self::Everything => true,
        }
    }
}

/// What ending connections came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The other ends of those that were ended.
    pub peers: Vec<Peer>,
    /// What could not be done, in sentences: such connections are silenced, as their packets are dropped.
    pub problems: Vec<String>,
}

/// Which connections are meant.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    pub ports: &'a [GuardedPort],
    pub elsewhere: &'a Elsewhere,
    /// Whether the policy stops what comes from this address to this port.
    pub is_stopped: &'a (dyn Fn(IpAddr, GuardedPort) -> bool + Sync),
}

/// Those whose open connections to guarded ports the policy stops.
#[must_use]
pub fn outsiders(search: &Search<'_>) -> Vec<Peer> {
    match find(search) {
        Ok(found) => {
            let owners = owners_of(&found);
            let connections = found.into_iter().flat_map(|place| place.connections);
            connections.filter_map(|connection| peer(&connection, &owners)).collect()
        }
        Err(error) => {
            log::info!("{}: /proc shows those of this namespace", not_listed(&error));
            search.shown_in_proc()
        }
    }
}

/// Ends the open connections to guarded ports that the policy stops. It must be in force: nobody comes back then.
#[must_use]
pub fn cut(search: &Search<'_>) -> Cut {
    let found = match find(search) {
        Ok(found) => found,
        Err(error) => {
            let mut cut = Cut::default();
            if !search.shown_in_proc().is_empty() {
                cut.problems.push(format!(
                    "open connections of outsiders are silenced, and not ended ({})",
                    not_listed(&error)
                ));
            }
            return cut;
        }
    };
    // Asked before: a service that finds its connection ended may close it at once.
    let owners = owners_of(&found);
    let mut cut = Cut::default();
    for Place { namespace, .. } in &found {
        let ended = within(namespace.as_ref(), || Ok(search.end_all(namespace.is_some())));
        let (connections, problem) = ended.unwrap_or_else(|error| (Vec::new(), Some(error)));
        cut.peers.extend(connections.iter().filter_map(|connection| peer(connection, &owners)));
        cut.problems.extend(problem.map(|error| not_ended(&error)));
    }
    cut.problems.dedup();
    cut
}

fn not_ended(error: &io::Error) -> String {
    let why = if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        "this kernel can't end them: CONFIG_INET_DIAG_DESTROY is off".to_owned()
    } else {
        error.to_string()
    };
    format!("open connections of outsiders are silenced, and not ended ({why})")
}

fn not_listed(error: &io::Error) -> String {
    if error.raw_os_error() == Some(libc::ENOENT) {
        "this kernel lists no connections: it has neither CONFIG_INET_DIAG nor its module"
            .to_owned()
    } else {
        format!("connections could not be listed: {error}")
    }
}

/// Connections of one namespace.
struct Place {
    /// `None` for the thread's own.
    namespace: Option<Namespace>,
    connections: Vec<Connection>,
}

fn find(search: &Search<'_>) -> io::Result<Vec<Place>> {
    let mut places = Vec::new();
    let connections = search.list(false)?;
    if !connections.is_empty() {
        places.push(Place { namespace: None, connections });
    }
    if *search.elsewhere != Elsewhere::Nothing {
        for namespace in netns::others() {
            match within(Some(&namespace), || search.list(true)) {
                Ok(connections) if connections.is_empty() => {}
                Ok(connections) => places.push(Place { namespace: Some(namespace), connections }),
                // It has gone, or belongs to somebody whose namespaces this process may not enter.
                Err(error) => log::info!(
                    "the connections in {} could not be listed: {error}",
                    namespace.path().display()
                ),
            }
        }
    }
    Ok(places)
}

fn within<T: Send>(
    namespace: Option<&Namespace>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match namespace {
        Some(namespace) => namespace.inside(work)?,
        None => work(),
    }
}

impl Search<'_> {
    /// What is left to know on a kernel without `sock_diag`.
    fn shown_in_proc(&self) -> Vec<Peer> {
        let mut peers = peers(self.ports);
        peers.retain(|peer| (self.is_stopped)(peer.remote.ip(), peer.port));
        peers
    }

    /// In the thread's namespace.
    fn list(&self, is_elsewhere: bool) -> io::Result<Vec<Connection>> {
        let mut diag = Diag::open()?;
        self.list_by(&mut diag, is_elsewhere)
    }

    fn list_by(&self, diag: &mut Diag, is_elsewhere: bool) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let guarded: Vec<u16> = self
                .ports
                .iter()
                .filter(|port| port.protocol == protocol)
                .map(|port| port.number)
                .collect();
            let asked_for = match guarded[..] {
                [] => continue,
                [port] => port,
                _ => 0,
            };
            diag.connections(protocol, asked_for, |connection| {
                if found.len() < MOST_AT_ONCE && self.is_meant(&connection, is_elsewhere) {
                    found.push(connection);
                }
            })?;
        }
        found.extend(self.list_diverted(diag, is_elsewhere)?);
        without_own(found)
    }

    /// TCP connections that a listener on a guarded port took at other ports (TPROXY): once established, neither their sockets
    /// nor their packets show the guarded one, so that no hook stops them. They are told by the process that holds both.
    fn list_diverted(&self, diag: &mut Diag, is_elsewhere: bool) -> io::Result<Vec<Connection>> {
        let mut listeners = Vec::new();
        diag.listeners(|listener| {
            if listener.is_transparent && self.ports.contains(&listener.port) {
                listeners.push(listener);
            }
        })?;
        let mut found = Vec::new();
        if listeners.is_empty() {
            return Ok(found);
        }
        diag.connections(Protocol::Tcp, 0, |connection| {
            let is_candidate = connection.is_transparent && !self.ports.contains(&connection.port);
            if is_candidate && found.len() < MOST_AT_ONCE {
                found.push(connection);
            }
        })?;
        let mut diverted = HashMap::new();
        for (_, held) in holders(found.iter().chain(&listeners).map(|socket| socket.inode)) {
            for connection in found.iter().filter(|connection| held.contains(&connection.inode)) {
                for listener in listeners.iter().filter(|socket| held.contains(&socket.inode)) {
                    let connection = connection.for_port(listener.port);
                    if self.is_meant(&connection, is_elsewhere) {
                        diverted.insert(connection.inode, connection);
                    }
                }
            }
        }
        Ok(diverted.into_values().collect())
    }

    fn is_meant(&self, connection: &Connection, is_elsewhere: bool) -> bool {
        let source = connection.remote.ip();
        self.ports.contains(&connection.port)
            && !source.is_loopback()
            && (!is_elsewhere || self.elsewhere.holds_for(connection))
            && (self.is_stopped)(source, connection.port)
    }

    /// Ends those of the thread's namespace, until none is found. Returns those it has ended, and the first error.
    fn end_all(&self, is_elsewhere: bool) -> (Vec<Connection>, Option<io::Error>) {
        let mut ended = Vec::new();
        let mut problem = None;
        let mut diag = match Diag::open() {
            Ok(diag) => diag,
            Err(error) => return (ended, Some(error)),
        };
        for _ in 0..MOST_ROUNDS {
            let found = match self.list_by(&mut diag, is_elsewhere) {
                Ok(found) => found,
                Err(error) => return (ended, problem.or(Some(error))),
            };
            let mut any = false;
            for connection in found {
                match diag.destroy(&connection) {
                    Ok(true) => {
                        any = true;
                        ended.push(connection);
                    }
                    Ok(false) => {}
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
            if !any {
                break;
            }
        }
        (ended, problem)
    }
}

/// Leaves out connections of the namespace to itself: they come over loopback, which is never judged.
fn without_own(mut connections: Vec<Connection>) -> io::Result<Vec<Connection>> {
    if connections.is_empty() {
        return Ok(connections);
    }
    let mut routes = Routes::open()?;
    let mut is_own = HashMap::new();
    for connection in &connections {
        let remote = (connection.remote.ip(), connection.interface());
        if let Entry::Vacant(entry) = is_own.entry(remote) {
            entry.insert(routes.lead_here(remote.0, remote.1)?);
        }
    }
    connections.retain(|connection| {
        !is_own.get(&(connection.remote.ip(), connection.interface())).copied().unwrap_or(false)
    });
    Ok(connections)
}

fn owners_of(found: &[Place]) -> HashMap<u64, Process> {
    let connections = found.iter().flat_map(|place| &place.connections);
    owners(connections.map(|connection| connection.inode))
}

/// The other end of a connection; `None` for one that is only being opened.
fn peer(connection: &Connection, owners: &HashMap<u64, Process>) -> Option<Peer> {
    connection.is_established.then(|| Peer {
        port: connection.port,
        local: connection.local,
        remote: connection.remote,
        process: owners.get(&connection.inode).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLLAMA: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 11434 };
    const DNS: GuardedPort = GuardedPort { protocol: Protocol::Udp, number: 53 };

    fn is_meant(connection: &Connection, elsewhere: Option<&Elsewhere>) -> bool {
        let allowed: IpAddr = "192.0.2.7".parse().unwrap();
        let search = Search {
            ports: &[OLLAMA, DNS],
            elsewhere: elsewhere.unwrap_or(&Elsewhere::Nothing),
            is_stopped: &|source, _| source != allowed,
        };
        search.is_meant(connection, elsewhere.is_some())
    }

    #[test]
    fn connections_of_outsiders_to_guarded_ports_are_meant() {
        use Protocol::{Tcp, Udp};
        for (protocol, local, remote, meant) in [
            (Tcp, "198.51.100.4:11434", "203.0.113.9:5000", true),
            (Tcp, "[2001:db8::4]:11434", "[2001:db8::9]:5000", true),
            (Tcp, "[::ffff:198.51.100.4]:11434", "[::ffff:203.0.113.9]:5000", true),
            // Allowed, on a socket of either family.
            (Tcp, "198.51.100.4:11434", "192.0.2.7:5000", false),
            (Tcp, "[::ffff:198.51.100.4]:11434", "[::ffff:192.0.2.7]:5000", false),
            (Tcp, "127.0.0.1:11434", "127.0.0.1:5000", false),
            (Tcp, "[::ffff:127.0.0.1]:11434", "[::ffff:127.0.0.1]:5000", false),
            (Tcp, "[::1]:11434", "[::1]:5000", false),
            // Other ports, and a client's connection to another machine's.
            (Tcp, "198.51.100.4:11435", "203.0.113.9:5000", false),
            (Tcp, "198.51.100.4:5000", "203.0.113.9:11434", false),
            (Tcp, "198.51.100.4:53", "203.0.113.9:5000", false),
            (Udp, "198.51.100.4:53", "203.0.113.9:5000", true),
            (Udp, "198.51.100.4:11434", "203.0.113.9:5000", false),
        ] {
            let connection = Connection::example(protocol, local, remote);
            assert_eq!(is_meant(&connection, None), meant, "{protocol:?} {local} {remote}");
        }
    }

    #[test]
    fn elsewhere_those_count_that_the_backstop_judges() {
        let mut connection =
            Connection::example(Protocol::Tcp, "172.17.0.2:11434", "203.0.113.9:5000");
        let cgroups = Elsewhere::Cgroups(HashSet::from([7, 8]));
        for (cgroup, of_root, of_cgroups) in
            [(None, true, false), (Some(7), true, true), (Some(9), true, false)]
        {
            connection.cgroup = cgroup;
            assert_eq!(is_meant(&connection, Some(&Elsewhere::Everything)), of_root);
            assert_eq!(is_meant(&connection, Some(&cgroups)), of_cgroups);
            assert!(!is_meant(&connection, Some(&Elsewhere::Nothing)));
            // In the own namespace the NIC's hooks judge, too.
            assert!(is_meant(&connection, None));
        }
    }

    #[test]
    fn what_could_not_be_ended_is_said_in_one_sentence() {
        let text = not_ended(&io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        assert!(text.contains("CONFIG_INET_DIAG_DESTROY is off"), "{text}");
        let text = not_ended(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(text.contains("silenced, and not ended (Operation not permitted"), "{text}");
        let text = not_listed(&io::Error::from_raw_os_error(libc::ENOENT));
        assert!(text.contains("CONFIG_INET_DIAG"), "{text}");
        let text = not_listed(&io::Error::from_raw_os_error(libc::EMFILE));
        assert!(text.contains("Too many open files"), "{text}");
    }

    #[test]
    fn nobody_is_outside_where_no_port_is_guarded() {
        let everything =
            Search { ports: &[], elsewhere: &Elsewhere::Nothing, is_stopped: &|_, _| true };
        assert!(outsiders(&everything).is_empty());
        assert_eq!(cut(&everything), Cut::default());
    }
}
