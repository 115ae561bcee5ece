//! Ends the open connections of those whom the policy in force stops: a service goes on generating for a connection that is
//! merely silenced.

use super::{core::Core, settings::Settings};
use crate::{
    control::Failure,
    host::{
        cgroup::{self, CgroupRoot, Scope},
        sockets::{
            Peer,
            open::{self, Cut, Elsewhere, Search},
        },
    },
    kernel::{attach, links, probe},
    output::text::{count, count_of, escaped, list},
};

/// Peers that one sentence names.
const MOST_NAMED: usize = 5;

/// What ended by itself up to a moment, and when something ends next; in nanoseconds of boot time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub until_ns: u64,
    pub next_ns: Option<u64>,
    /// What came of it.
    pub notes: Vec<String>,
}

impl Core {
    /// Ends the open connections that the policy in force stops; none while packets are only counted. To be called once it
    /// is in force: who is cut does not come back then.
    pub(super) fn cut(&self) -> Cut {
        self.cut_stopped().unwrap_or_else(|failure| Cut {
            peers: Vec::new(),
            problems: vec![format!("open connections of outsiders were not ended: {failure}")],
        })
    }

    fn cut_stopped(&self) -> Result<Cut, Failure> {
        let Some(maps) = &self.maps else {
            return Ok(Cut::default());
        };
        let (Some(header), Some(tables)) = (maps.header()?, maps.put_tables()) else {
            return Ok(Cut::default());
        };
        let now_ns = probe::boot_ns();
        if now_ns < header.observe_until_ns {
            return Ok(Cut::default());
        }
        let ports = tables.every_port();
        Ok(open::cut(&Search {
            ports: &ports,
            elsewhere: &self.elsewhere()?,
            is_stopped: &|source, port| tables.stops(source, port, now_ns),
        }))
    }

    /// As [`Core::cut`], when a rule or the time of observing has ended in the kernel since a moment. Says when something ends
    /// next.
    ///
    /// # Errors
    /// When the tables can't be read.
    pub fn cut_ended(&self, since_ns: u64) -> Result<Ended, Failure> {
        let until_ns = probe::boot_ns();
        let next_after = |after_ns| self.next_end(after_ns);
        let has_ended = next_after(since_ns)?.is_some_and(|end_ns| end_ns <= until_ns);
        let notes = if has_ended { notes(&self.cut()) } else { Vec::new() };
        Ok(Ended { until_ns, next_ns: next_after(until_ns)?, notes })
    }

    fn next_end(&self, after_ns: u64) -> Result<Option<u64>, Failure> {
        let Some(maps) = &self.maps else {
            return Ok(None);
        };
        let (Some(header), Some(tables)) = (maps.header()?, maps.put_tables()) else {
            return Ok(None);
        };
        let observing = Some(header.observe_until_ns).filter(|end_ns| *end_ns > after_ns);
        Ok(observing.into_iter().chain(tables.next_end(after_ns)).min())
    }

    /// Where the backstop that is attached judges.
    fn elsewhere(&self) -> Result<Elsewhere, Failure> {
        let Some(attached) = attach::backstop(&links::ours(&self.pins)?) else {
            return Ok(Elsewhere::Nothing);
        };
        let root = self.settings.mounted_cgroup()?;
        elsewhere(root.filter(|root| root.id().ok() == Some(attached)))
    }
}

/// Where the backstop is going to judge.
pub(super) fn planned(settings: &Settings) -> Result<Elsewhere, Failure> {
    elsewhere(settings.mounted_cgroup()?)
}

fn elsewhere(backstop: Option<CgroupRoot>) -> Result<Elsewhere, Failure> {
    match backstop {
        None => Ok(Elsewhere::Nothing),
        Some(CgroupRoot { scope: Scope::Root, .. }) => Ok(Elsewhere::Everything),
        Some(CgroupRoot { scope: Scope::Subtree, path }) => {
            let ids = cgroup::ids_within(&path).map_err(|error| {
                Failure::failed(
                    format!("the cgroups in {} could not be listed: {error}", path.display()),
                    "Name a directory of a cgroup v2 tree that this process may read.",
                )
            })?;
            Ok(Elsewhere::Cgroups(ids))
        }
    }
}

/// What to say of it.
pub(super) fn notes(cut: &Cut) -> Vec<String> {
    let named = (!cut.peers.is_empty()).then(|| sentence(&cut.peers));
    named.into_iter().chain(cut.problems.iter().cloned()).collect()
}

fn sentence(peers: &[Peer]) -> String {
    let mut whom: Vec<String> = peers.iter().map(name).collect();
    whom.sort_unstable();
    whom.dedup();
    if let Some(more) = whom.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        whom.truncate(MOST_NAMED);
        whom.push(count(more as u64, "other"));
    }
    format!("cut {}: {}", count_of(peers, "open connection"), list(&whom))
}

fn name(peer: &Peer) -> String {
    let source = peer.remote.ip();
    match &peer.process {
        Some(process) => format!("{source} to {} (pid {})", escaped(&process.name), process.pid),
        None => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use guard_common::packet::Protocol;

    use super::*;
    use crate::{host::sockets::Process, rule::GuardedPort};

    fn peer(remote: &str, process: Option<&str>) -> Peer {
        Peer {
            port: GuardedPort { protocol: Protocol::Tcp, number: 11434 },
            local: "198.51.100.4:11434".parse().unwrap(),
            remote: remote.parse().unwrap(),
            process: process.map(|name| Process { pid: 812, name: name.into() }),
        }
    }

    #[test]
    fn who_was_cut_is_named_once() {
        let peers = [
            peer("203.0.113.9:5", Some("ollama")),
            peer("[2001:db8::7]:1", None),
            peer("203.0.113.9:6", Some("ollama")),
        ];
        let cut = Cut { peers: peers.to_vec(), problems: vec!["and something else".into()] };
        assert_eq!(
            notes(&cut),
            [
                "cut 3 open connections: 2001:db8::7 and 203.0.113.9 to ollama (pid 812)",
                "and something else"
            ]
        );
        assert_eq!(
            notes(&Cut { problems: Vec::new(), peers: peers[..1].to_vec() }),
            ["cut 1 open connection: 203.0.113.9 to ollama (pid 812)"]
        );
        assert!(notes(&Cut::default()).is_empty());
    }

    #[test]
    fn a_sentence_is_bounded_and_steers_no_terminal() {
        let many: Vec<Peer> = (0..9).map(|n| peer(&format!("203.0.113.{n}:5"), None)).collect();
        let text = sentence(&many);
        assert!(text.starts_with("cut 9 open connections: 203.0.113.0, "), "{text}");
        assert!(text.ends_with("203.0.113.4 and 4 others"), "{text}");
        let text = sentence(&[peer("203.0.113.9:5", Some("x\u{1b}[2J"))]);
        assert!(text.ends_with("to x\\u{1b}[2J (pid 812)"), "{text}");
    }

    #[test]
    fn where_no_tree_is_mounted_no_other_namespace_is_entered() {
        assert_eq!(elsewhere(None).unwrap(), Elsewhere::Nothing);
        let root = CgroupRoot { path: "/nowhere".into(), scope: Scope::Root };
        assert_eq!(elsewhere(Some(root)).unwrap(), Elsewhere::Everything);
        let gone = CgroupRoot { path: "/nowhere".into(), scope: Scope::Subtree };
        assert!(elsewhere(Some(gone)).unwrap_err().what.contains("/nowhere"));
    }
}
