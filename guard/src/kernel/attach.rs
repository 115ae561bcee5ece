//! Attaches the programs: the ladder of hooks for each interface, the backstop at the cgroup root. What a call of the
//! kernel returned is no proof; what is in force is asked for afterwards.

use std::{
    collections::HashSet,
    fs::File,
    io, mem,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use guard_common::verdict::Hook;

use super::{
    KernelError,
    links::{self, LinkPlace, OwnLink},
    load::{Programs, chain},
    pins::Pins,
    seen::{Seen, SeenFilter},
    sys::Target,
};

/// A way to cover an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    XdpNative,
    XdpGeneric,
    Tcx,
    /// A `bpf` filter of the `clsact` queueing discipline, for kernels below 6.6.
    Clsact,
    /// TCX egress, behind NAT, of a device that leads to guests.
    EdgeTcx,
    /// As [`Way::EdgeTcx`], with `clsact`.
    EdgeClsact,
}

impl Way {
    /// The words of `guard status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp native",
            Self::XdpGeneric => "xdp generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::EdgeTcx => "edge tcx",
            Self::EdgeClsact => "edge clsact",
        }
    }

    /// The hook that this is a way to.
    #[must_use]
    pub const fn hook(self) -> Hook {
        match self {
            Self::XdpNative | Self::XdpGeneric => Hook::Xdp,
            Self::Tcx | Self::Clsact => Hook::Tcx,
            Self::EdgeTcx | Self::EdgeClsact => Hook::Edge,
        }
    }

    /// Where the link stands, of a way that has one.
    const fn link_place(self, ifindex: u32) -> Option<LinkPlace> {
        match self {
            Self::XdpNative | Self::XdpGeneric => Some(LinkPlace::Xdp { ifindex }),
            Self::Tcx => Some(LinkPlace::Tcx { ifindex }),
            Self::EdgeTcx => Some(LinkPlace::TcxEgress { ifindex }),
            Self::Clsact | Self::EdgeClsact => None,
        }
    }

    const fn is_clsact(self) -> bool {
        matches!(self, Self::Clsact | Self::EdgeClsact)
    }

    const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpNative | Self::XdpGeneric)
    }
}

/// An interface to be covered, and the ways in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub ifindex: u32,
    pub name: String,
    pub ladder: Vec<Way>,
}

/// How an interface is covered, as the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The first of our programs that a packet meets.
    pub way: Option<Way>,
    /// Programs of others that stand before ours.
    pub before_ours: Vec<String>,
}

/// Where our filters stand: before the kernel's own choice of 49152, and with a handle that is easy to see ("gu").
const CLSACT: NlOptions =
    NlOptions { priority: 1, handle: TcHandle::new(0, 0x6775), classid: None };

/// Attaches and detaches for one guard.
pub struct Attacher<'a> {
    pins: &'a Pins,
    programs: Programs,
    links: Vec<OwnLink>,
    own_programs: HashSet<u32>,
}

impl<'a> Attacher<'a> {
    /// # Errors
    /// When the pinned programs can't be opened or the kernel's lists not walked.
    pub fn new(pins: &'a Pins) -> Result<Self, KernelError> {
        Ok(Self {
            programs: Programs::open(pins)?,
            links: links::ours(pins)?,
            own_programs: links::own_programs(pins.instance)?,
            pins,
        })
    }

    /// Covers an interface by the first way of its ladder that the kernel takes, then takes off what else of ours is on
    /// it. Returns what did not work on the way.
    ///
    /// # Errors
    /// When what is no longer wanted can't be taken off.
    pub fn cover(&mut self, wanted: &Wanted, seen: &Seen) -> Result<Vec<String>, KernelError> {
        let mut failures = Vec::new();
        for way in &wanted.ladder {
            match self.attach(*way, wanted, seen) {
                Ok(()) => {
                    self.leave_only(Some(*way), wanted.ifindex, &wanted.name, seen)?;
                    return Ok(failures);
                }
                Err(error) => failures.push(format!("{}: {}", way.name(), reason(*way, &error))),
            }
        }
        if wanted.ladder.is_empty() {
            self.leave_only(None, wanted.ifindex, &wanted.name, seen)?;
        }
        Ok(failures)
    }

    /// Takes off whatever of ours is on an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn uncover(&mut self, ifindex: u32, name: &str, seen: &Seen) -> Result<(), KernelError> {
        self.leave_only(None, ifindex, name, seen)
    }

    /// The interfaces that a link of ours is on.
    #[must_use]
    pub fn covered_by_links(&self) -> HashSet<u32> {
        self.links
            .iter()
            .filter_map(|link| match link.place {
                LinkPlace::Xdp { ifindex }
                | LinkPlace::Tcx { ifindex }
                | LinkPlace::TcxEgress { ifindex } => Some(ifindex),
                LinkPlace::Cgroup { .. } | LinkPlace::Other => None,
            })
            .filter(|ifindex| *ifindex != 0)
            .collect()
    }

    fn attach(&mut self, way: Way, wanted: &Wanted, seen: &Seen) -> io::Result<()> {
        let Some(place) = way.link_place(wanted.ifindex) else {
            return self.attach_clsact(way, wanted, seen);
        };
        let existing = self.links.iter().position(|link| link.place == place);
        if let Some(index) = existing {
            let wrong_mode = way.is_xdp()
                && seen.xdp.is_some_and(|xdp| xdp.is_native != (way == Way::XdpNative));
            if wrong_mode {
                // A device has one XDP slot: the backstop covers until the next call.
                let link = self.links.swap_remove(index);
                link.detach(self.pins).map_err(io::Error::other)?;
            } else {
                let link = &self.links[index];
                link.update(self.program(way)?).map_err(io::Error::other)?;
                return link.keep(self.pins).map_err(io::Error::other);
            }
        }
        let target = match way {
            Way::XdpNative => Target::XdpNative(wanted.ifindex),
            Way::XdpGeneric => Target::XdpGeneric(wanted.ifindex),
            Way::Tcx | Way::Clsact => Target::Tcx(wanted.ifindex),
            Way::EdgeTcx | Way::EdgeClsact => Target::TcxEgress(wanted.ifindex),
        };
        links::attach(self.program(way)?, target, self.pins)
    }

    fn program(&self, way: Way) -> io::Result<BorrowedFd<'_>> {
        let fd = match way {
            Way::XdpNative | Way::XdpGeneric => {
                self.programs.xdp.as_ref().ok_or(io::ErrorKind::Unsupported)?.fd()
            }
            Way::Tcx | Way::Clsact => self.programs.tcx.fd(),
            Way::EdgeTcx | Way::EdgeClsact => self.programs.edge.fd(),
        };
        fd.map(AsFd::as_fd).map_err(io::Error::other)
    }

    fn attach_clsact(&mut self, way: Way, wanted: &Wanted, seen: &Seen) -> io::Result<()> {
        match tc::qdisc_add_clsact(&wanted.name) {
            Err(error) if !is_existing(&error) => return Err(io::Error::other(chain(&error))),
            _ => {}
        }
        let is_egress = way == Way::EdgeClsact;
        let program: &mut SchedClassifier =
            if is_egress { &mut self.programs.edge } else { &mut self.programs.tcx };
        let ours = seen.filters.iter().find(|filter| {
            filter.is_egress == is_egress && self.own_programs.contains(&filter.program_id)
        });
        let attached = match ours {
            Some(filter) => clsact_link(&wanted.name, filter).and_then(|link| {
                program.attach_to_link(link).map_err(|error| io::Error::other(chain(&error)))
            }),
            None => program
                .attach_with_options(
                    &wanted.name,
                    side(is_egress),
                    TcAttachOptions::Netlink(CLSACT),
                )
                .map_err(|error| io::Error::other(chain(&error))),
        }?;
        let link = program.take_link(attached).map_err(io::Error::other)?;
        // Dropping it would detach. A filter holds its program by itself, so there is nothing to pin.
        mem::forget(link);
        Ok(())
    }

    fn leave_only(
        &mut self,
        way: Option<Way>,
        ifindex: u32,
        name: &str,
        seen: &Seen,
    ) -> Result<(), KernelError> {
        let wanted = way.and_then(|way| way.link_place(ifindex));
        let stays = |place| match place {
            LinkPlace::Xdp { ifindex: at }
            | LinkPlace::Tcx { ifindex: at }
            | LinkPlace::TcxEgress { ifindex: at } => at != ifindex || Some(place) == wanted,
            LinkPlace::Cgroup { .. } | LinkPlace::Other => true,
        };
        let mut kept = Vec::new();
        for link in self.links.drain(..) {
            if stays(link.place) {
                kept.push(link);
            } else {
                link.detach(self.pins)?;
            }
        }
        self.links = kept;
        for filter in &seen.filters {
            let is_wanted = way.is_some_and(|way| {
                way.is_clsact() && filter.is_egress == (way.hook() == Hook::Edge)
            });
            if !is_wanted && self.own_programs.contains(&filter.program_id) {
                detach_clsact(name, filter)?;
            }
        }
        Ok(())
    }

    /// Attaches the backstop to a cgroup v2 directory, and takes it off any other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cover_sockets(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        let failed = |source| KernelError::System { what: "attaching the backstop", source };
        let directory = File::open(cgroup).map_err(failed)?;
        let place = LinkPlace::Cgroup { cgroup_id: directory.metadata().map_err(failed)?.ino() };
        let program = self.programs.cgroup.fd().map_err(|source: ProgramError| {
            KernelError::Program { name: "guard_cgroup", source }
        })?;
        match self.links.iter().find(|link| link.place == place) {
            Some(link) => {
                link.update(program.as_fd())?;
                link.keep(self.pins)?;
            }
            None => {
                links::attach(program.as_fd(), Target::Cgroup(directory.as_fd()), self.pins)
                    .map_err(failed)?;
            }
        }
        for link in &self.links {
            if matches!(link.place, LinkPlace::Cgroup { .. }) && link.place != place {
                link.detach(self.pins)?;
            }
        }
        Ok(())
    }
}

/// Takes every link and filter of this guard's off, also where its pins are gone. Returns how many there were.
///
/// # Errors
/// When the kernel refuses.
pub fn uncover_all(pins: &Pins, interfaces: &[(String, Seen)]) -> Result<usize, KernelError> {
    let links = links::ours(pins)?;
    for link in &links {
        link.detach(pins)?;
    }
    let own = links::own_programs(pins.instance)?;
    let mut hooks = links.len();
    for (name, seen) in interfaces {
        for filter in seen.filters.iter().filter(|filter| own.contains(&filter.program_id)) {
            detach_clsact(name, filter)?;
            hooks += 1;
        }
    }
    Ok(hooks)
}

/// How an interface is covered now.
#[must_use]
pub fn coverage(
    own_programs: &HashSet<u32>,
    links: &[OwnLink],
    ifindex: u32,
    name: &str,
    seen: &Seen,
) -> Coverage {
    let has = |place| links.iter().any(|link| link.place == place);
    if has(LinkPlace::Xdp { ifindex })
        && let Some(xdp) = seen.xdp.filter(|xdp| own_programs.contains(&xdp.program_id))
    {
        let way = if xdp.is_native { Way::XdpNative } else { Way::XdpGeneric };
        return Coverage { way: Some(way), before_ours: Vec::new() };
    }
    for way in [Way::Tcx, Way::EdgeTcx] {
        if !way.link_place(ifindex).is_some_and(has) {
            continue;
        }
        // A program that passes a packet with anything but "next" keeps it from us; one that stands first could.
        let programs = SchedClassifier::query_tcx(name, side(way == Way::EdgeTcx))
            .map(|(_, programs)| programs)
            .unwrap_or_default();
        let before_ours = programs
            .iter()
            .take_while(|program| !own_programs.contains(&program.id()))
            .map(|program| {
                format!("{} (id {})", program.name_as_str().unwrap_or("?"), program.id())
            })
            .collect();
        return Coverage { way: Some(way), before_ours };
    }
    let filter = seen.filters.iter().find(|filter| own_programs.contains(&filter.program_id));
    let way = filter.map(|filter| if filter.is_egress { Way::EdgeClsact } else { Way::Clsact });
    Coverage { way, before_ours: Vec::new() }
}

/// The cgroup that the backstop is attached to, by its inode.
#[must_use]
pub fn backstop(links: &[OwnLink]) -> Option<u64> {
    links.iter().find_map(|link| match link.place {
        LinkPlace::Cgroup { cgroup_id } if cgroup_id != 0 => Some(cgroup_id),
        _ => None,
    })
}

const fn side(is_egress: bool) -> TcAttachType {
    if is_egress { TcAttachType::Egress } else { TcAttachType::Ingress }
}

fn clsact_link(name: &str, filter: &SeenFilter) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::from(filter.handle);
    SchedClassifierLink::attached(name, side(filter.is_egress), filter.priority, handle, None)
}

fn detach_clsact(name: &str, filter: &SeenFilter) -> Result<(), KernelError> {
    use aya::programs::links::Link;
    let failed = |source| KernelError::System { what: "removing a clsact filter", source };
    clsact_link(name, filter)
        .map_err(failed)?
        .detach()
        .map_err(|error| failed(io::Error::other(chain(&error))))
}

fn is_existing(error: &tc::TcError) -> bool {
    match error {
        tc::TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// Why a way did not work, in words where the number alone would mislead.
fn reason(way: Way, error: &io::Error) -> String {
    match (error.raw_os_error(), way) {
        (Some(libc::EBUSY | libc::EEXIST), Way::XdpNative | Way::XdpGeneric) => {
            "another XDP program is attached there, and guard never evicts one".to_owned()
        }
        (Some(libc::EOPNOTSUPP), Way::XdpNative) => "the driver has no native XDP".to_owned(),
        (Some(libc::EINVAL), Way::Tcx | Way::EdgeTcx) => {
            "this kernel has no TCX (6.6 or newer)".to_owned()
        }
        (Some(libc::ERANGE), Way::XdpNative) => {
            "the MTU is too large for this driver's XDP".to_owned()
        }
        _ if error.kind() == io::ErrorKind::Unsupported => {
            "this kernel did not take guard's XDP program".to_owned()
        }
        _ => error.to_string(),
    }
}
