//! guard and its peers, installed on a lab's server with the same list of allowed prefixes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::lists::{Family, List, ListId};
use crate::{
    command,
    foreign::{Foreign, Place, XdpFilter},
    lab::{Lab, OLLAMA},
    machine::Machine,
    product::{Attach, Guard},
};

/// What stands between a sender and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Nothing,
    /// A program that gives every packet this answer.
    Bare(Place, i32),
    /// An XDP program that drops what is to the guarded port of an IPv4 header without options, and passes all else.
    BarePort,
    /// Of xdp-tools. It can't say "all but these prefixes": it drops the port for everyone.
    XdpFilter,
    /// With these lines of configuration before its rules.
    Guard(Attach, &'static str),
    NftIngress,
    NftPrerouting,
    NftInput,
    /// iptables in the raw table, with an ipset.
    Ipset,
}

pub enum Installed<'lab> {
    Nothing,
    Bare(Foreign),
    XdpFilter(XdpFilter),
    Guard(Guard<'lab>),
}

/// Lists, each made once, with the files that hold them.
#[derive(Debug)]
pub struct Library {
    directory: PathBuf,
    lists: Vec<List>,
}

impl Library {
    /// # Errors
    /// When the files can't be written.
    pub fn new(directory: &Path, ids: &[ListId]) -> Result<Self> {
        // guard takes files by their full path only.
        let directory = std::path::absolute(directory.join("lists"))?;
        fs::create_dir_all(&directory)
            .with_context(|| format!("{} can't be made", directory.display()))?;
        let mut library = Self { directory, lists: Vec::new() };
        for id in ids {
            if library.lists.iter().any(|list| list.id == *id) {
                continue;
            }
            let list = List::new(*id);
            let path = library.file(*id);
            fs::write(&path, list.lines())
                .with_context(|| format!("{} can't be written", path.display()))?;
            library.lists.push(list);
        }
        Ok(library)
    }

    /// The file of a list, one prefix a line.
    #[must_use]
    pub fn file(&self, id: ListId) -> PathBuf {
        self.directory.join(format!("{}.txt", id.to_string().replace(' ', "-")))
    }

    /// # Errors
    /// When it was not made.
    pub fn list(&self, id: ListId) -> Result<&List> {
        self.lists.iter().find(|list| list.id == id).with_context(|| format!("no list {id}"))
    }

    #[must_use]
    pub fn lists(&self) -> &[List] {
        &self.lists
    }

    /// guard's rule that allows a list; nothing without one.
    #[must_use]
    pub fn rule(&self, id: Option<ListId>) -> String {
        id.map(|id| format!("[[rule]]\nallow = \"@{}\"\n", self.file(id).display()))
            .unwrap_or_default()
    }

    /// A filter's rules: the port is dropped for all that the list does not hold.
    ///
    /// # Errors
    /// When the list was not made.
    pub fn nft(&self, filter: Filter, id: ListId) -> Result<String> {
        let hook = match filter {
            Filter::NftIngress => "ingress device \"eth0\" priority -500",
            Filter::NftPrerouting => "prerouting priority raw",
            Filter::NftInput => "input priority filter",
            _ => bail!("{filter:?} is none of nftables"),
        };
        let table = if filter == Filter::NftIngress { "netdev" } else { "inet" };
        let (kind, field) = match id.family {
            Family::V4 => ("ipv4_addr", "ip saddr"),
            Family::V6 => ("ipv6_addr", "ip6 saddr"),
        };
        let elements = self.list(id)?.elements();
        Ok(format!(
            "table {table} bench {{\n\
             set allowed {{ type {kind}; flags interval; elements = {{ {elements} }}; }}\n\
             chain guarded {{\n\
             type filter hook {hook}; policy accept;\n\
             tcp dport {OLLAMA} {field} != @allowed drop\n\
             }}\n\
             }}\n"
        ))
    }
}

impl Filter {
    /// What this machine lacks for it.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        let lacks = |program| !command::is_installed(program);
        match self {
            Self::XdpFilter if lacks("xdp-filter") => Some("xdp-filter (package xdp-tools)"),
            Self::NftIngress | Self::NftPrerouting | Self::NftInput if lacks("nft") => {
                Some("nft (package nftables)")
            }
            Self::Ipset if lacks("ipset") => Some("ipset"),
            Self::Ipset if iptables().is_none() => Some("iptables"),
            Self::Guard(attach, _) => attach.missing(),
            Self::Bare(Place::Tcx, _) => Attach::Tcx.missing(),
            _ => None,
        }
    }

    /// Puts it between the lab's client and its server.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn install<'lab>(
        self,
        lab: &'lab Lab,
        library: &Library,
        list: Option<ListId>,
    ) -> Result<Installed<'lab>> {
        let allowed = || list.context("a list of prefixes is missing");
        match self {
            Self::Nothing => {}
            Self::Bare(place, answer) => {
                let bare = Foreign::uncounted(&lab.server, "eth0", place, answer);
                return bare.map(Installed::Bare).context("a bare program can't be attached");
            }
            Self::BarePort => {
                let bare = Foreign::dropping(&lab.server, "eth0", OLLAMA);
                return bare.map(Installed::Bare).context("a bare program can't be attached");
            }
            Self::XdpFilter => {
                let filter = XdpFilter::on(&lab.server, "eth0", OLLAMA).map_err(anyhow::Error::msg);
                return filter.map(Installed::XdpFilter).context("xdp-filter can't be started");
            }
            Self::Guard(attach, lines) => {
                let configuration = format!("{lines}\n{}", library.rule(list));
                return Ok(Installed::Guard(lab.start_guard(attach, &configuration)));
            }
            Self::NftIngress | Self::NftPrerouting | Self::NftInput => {
                lab.server.nft(&library.nft(self, allowed()?)?);
            }
            Self::Ipset => install_ipset(&lab.server, library.list(allowed()?)?)?,
        }
        Ok(Installed::Nothing)
    }
}

/// The older of the two, where both are installed: it is the faster one.
fn iptables() -> Option<&'static str> {
    ["iptables-legacy", "iptables"].into_iter().find(|program| command::is_installed(program))
}

fn install_ipset(machine: &Machine, list: &List) -> Result<()> {
    let netns = format!("--net={}", machine.netns_path().display());
    let run = |words: &[&str], input: &str| {
        let output = command::output(Command::new("nsenter").arg(&netns).args(words), input);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { bail!("`{}`: {errors}", words.join(" ")) }
    };
    run(&["ipset", "restore"], &list.ipset("allowed"))?;
    let port = OLLAMA.to_string();
    let rule = ["-w", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", &port];
    let matches = ["-m", "set", "!", "--match-set", "allowed", "src", "-j", "DROP"];
    let program = iptables().context("there is no iptables")?;
    run(&[&[program], &rule[..], &matches[..]].concat(), "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lists::Shape;

    fn id(family: Family) -> ListId {
        ListId { family, shape: Shape::Mixed, size: 10 }
    }

    #[test]
    fn all_filters_have_the_same_list() {
        let directory = tempfile::tempdir().unwrap();
        let ids = [id(Family::V4), id(Family::V6), id(Family::V4)];
        let library = Library::new(directory.path(), &ids).unwrap();
        assert_eq!(library.lists().len(), 2);
        for id in [id(Family::V4), id(Family::V6)] {
            let list = library.list(id).unwrap();
            assert_eq!(fs::read_to_string(library.file(id)).unwrap(), list.lines());
            assert!(library.rule(Some(id)).contains(&library.file(id).display().to_string()));
            for filter in [Filter::NftIngress, Filter::NftPrerouting, Filter::NftInput] {
                let rules = library.nft(filter, id).unwrap();
                assert!(rules.contains(&list.elements()), "{rules}");
            }
        }
        assert_eq!(library.rule(None), "");
    }

    #[test]
    fn nftables_drops_what_the_set_does_not_hold() {
        let directory = tempfile::tempdir().unwrap();
        let library = Library::new(directory.path(), &[id(Family::V4), id(Family::V6)]).unwrap();
        let rules = library.nft(Filter::NftIngress, id(Family::V4)).unwrap();
        assert!(rules.contains("tcp dport 11434 ip saddr != @allowed drop"), "{rules}");
        assert!(rules.starts_with("table netdev"), "{rules}");
        let rules = library.nft(Filter::NftInput, id(Family::V6)).unwrap();
        assert!(rules.contains("tcp dport 11434 ip6 saddr != @allowed drop"), "{rules}");
        assert!(rules.starts_with("table inet"), "{rules}");
        assert!(library.nft(Filter::Ipset, id(Family::V4)).is_err());
    }
}
