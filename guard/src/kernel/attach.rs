//! Attaches the programs: the ladder of hooks for each interface, the backstop at the cgroup root. What a call of the
//! kernel returned is no proof; what is in force is asked for afterwards.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io, mem,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya::programs::{
    ProgramError, TcAttachType, loaded_programs,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with},
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

    #[must_use]
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::XdpNative | Self::XdpGeneric)
    }
}

/// An interface to be covered, and the ways in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub ifindex: u32,
    pub name: String,
    /// Its packets stand behind an Ethernet header.
    pub is_ethernet: bool,
    pub ladder: Vec<Way>,
    /// Native XDP of ours that is there already comes before the ladder.
    pub stays_native: bool,
}

/// A way that the kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The way, and why.
    pub what: String,
    /// Another program held the XDP slot, at that moment.
    pub is_slot_taken: bool,
}

impl Refused {
    fn new(way: Way, error: &io::Error) -> Self {
        Self {
            what: format!("{}: {}", way.name(), reason(way, error)),
            is_slot_taken: is_slot_taken(way, error),
        }
    }
}

/// How an interface is covered, as the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The first of our programs that a packet meets.
    pub way: Option<Way>,
    /// Programs of others that stand before ours.
    pub before_ours: Vec<String>,
    /// The program of others in the XDP slot.
    pub slot_holder: Option<String>,
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
    /// it. What is there already and right is not touched. Returns what the kernel refused on the way; `None` when the
    /// interface has gone meanwhile.
    ///
    /// # Errors
    /// When what is no longer wanted can't be taken off.
    pub fn cover(
        &mut self,
        wanted: &Wanted,
        seen: &Seen,
    ) -> Result<Option<Vec<Refused>>, KernelError> {
        let mut refused = Vec::new();
        let is_native = wanted.stays_native
            && seen.xdp.is_some_and(|xdp| xdp.is_native)
            && self.links.iter().any(|link| {
                matches!(link.place, LinkPlace::Xdp { .. }) && link.is_on(wanted.ifindex, seen)
            });
        let stays = is_native.then_some(Way::XdpNative);
        for way in stays.into_iter().chain(wanted.ladder.iter().copied()) {
            match self.attach(way, wanted, seen) {
                Ok(()) => {
                    self.leave_only(Some(way), wanted.ifindex, &wanted.name, seen)?;
                    return Ok(Some(refused));
                }
                Err(_) if !exists(wanted.ifindex) => return Ok(None),
                Err(error) => refused.push(Refused::new(way, &error)),
            }
        }
        if wanted.ladder.is_empty() {
            self.leave_only(None, wanted.ifindex, &wanted.name, seen)?;
        }
        Ok(Some(refused))
    }

    /// Takes off whatever of ours is on an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn uncover(&mut self, ifindex: u32, name: &str, seen: &Seen) -> Result<(), KernelError> {
        self.leave_only(None, ifindex, name, seen)
    }

    /// Whether anything of ours is on an interface.
    #[must_use]
    pub fn is_on(&self, ifindex: u32, seen: &Seen) -> bool {
        self.links.iter().any(|link| link.is_on(ifindex, seen))
            || seen.filters.iter().any(|filter| self.own_programs.contains(&filter.program_id))
    }

    /// Our links on interfaces that are none of these: they have moved to another network namespace, where what is an
    /// own address here is none.
    #[must_use]
    pub fn take_strays(&mut self, interfaces: &HashMap<u32, Seen>) -> Vec<OwnLink> {
        let is_stray = |link: &mut OwnLink| {
            let at = match link.place {
                LinkPlace::Xdp { ifindex }
                | LinkPlace::Tcx { ifindex }
                | LinkPlace::TcxEgress { ifindex } => ifindex,
                LinkPlace::Cgroup { .. } | LinkPlace::Other => return false,
            };
            !link.is_dead() && !interfaces.get(&at).is_some_and(|seen| link.is_on(at, seen))
        };
        self.links.extract_if(.., is_stray).collect()
    }

    fn attach(&mut self, way: Way, wanted: &Wanted, seen: &Seen) -> io::Result<()> {
        let ifindex = wanted.ifindex;
        let Some(place) = way.link_place(ifindex) else {
            return self.attach_clsact(way, wanted, seen);
        };
        let mut standing: Vec<OwnLink> = self
            .links
            .extract_if(.., |link| link.place == place && link.is_on(ifindex, seen))
            .collect();
        // Of several in the one slot of a device, all but one are on others that have the same number elsewhere.
        let is_right = !way.is_xdp()
            || standing.len() == 1
                && seen.xdp.is_some_and(|xdp| xdp.is_native == (way == Way::XdpNative));
        let kept = if is_right { standing.pop() } else { None };
        // A device has one XDP slot: the backstop covers until the next call.
        detach_all(standing, self.pins).map_err(io::Error::other)?;
        if let Some(link) = kept {
            let program_id = self.program_id(way, wanted)?;
            if link.program_id != program_id {
                link.update(self.program(way, wanted)?).map_err(io::Error::other)?;
            }
            link.keep(self.pins).map_err(io::Error::other)?;
            self.links.push(link);
            return Ok(());
        }
        let target = match way {
            Way::XdpNative => Target::XdpNative(ifindex),
            Way::XdpGeneric => Target::XdpGeneric(ifindex),
            Way::Tcx | Way::Clsact => Target::Tcx(ifindex),
            Way::EdgeTcx | Way::EdgeClsact => Target::TcxEgress(ifindex),
        };
        links::attach(self.program(way, wanted)?, target, self.pins)
    }

    fn program_id(&self, way: Way, wanted: &Wanted) -> io::Result<u32> {
        let info = match way {
            Way::XdpNative | Way::XdpGeneric => {
                self.programs.xdp.as_ref().ok_or(io::ErrorKind::Unsupported)?.info()
            }
            Way::Tcx | Way::Clsact => self.programs.tcx.of(wanted.is_ethernet).info(),
            Way::EdgeTcx | Way::EdgeClsact => self.programs.edge.of(wanted.is_ethernet).info(),
        };
        info.map(|info| info.id()).map_err(io::Error::other)
    }

    fn program(&self, way: Way, wanted: &Wanted) -> io::Result<BorrowedFd<'_>> {
        let fd = match way {
            Way::XdpNative | Way::XdpGeneric => {
                self.programs.xdp.as_ref().ok_or(io::ErrorKind::Unsupported)?.fd()
            }
            Way::Tcx | Way::Clsact => self.programs.tcx.of(wanted.is_ethernet).fd(),
            Way::EdgeTcx | Way::EdgeClsact => self.programs.edge.of(wanted.is_ethernet).fd(),
        };
        fd.map(AsFd::as_fd).map_err(io::Error::other)
    }

    fn attach_clsact(&mut self, way: Way, wanted: &Wanted, seen: &Seen) -> io::Result<()> {
        let current = self.program_id(way, wanted)?;
        let is_egress = way == Way::EdgeClsact;
        let is_current =
            |filter: &SeenFilter| filter.is_egress == is_egress && filter.program_id == current;
        if seen.filters.iter().any(is_current) {
            return Ok(());
        }
        match tc::qdisc_add_clsact(&wanted.name) {
            Err(error) if !is_existing(&error) => return Err(io::Error::other(chain(&error))),
            _ => {}
        }
        let programs = if is_egress { &mut self.programs.edge } else { &mut self.programs.tcx };
        let program = programs.of_mut(wanted.is_ethernet);
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
            LinkPlace::Xdp { .. } | LinkPlace::Tcx { .. } | LinkPlace::TcxEgress { .. } => {
                Some(place) == wanted
            }
            LinkPlace::Cgroup { .. } | LinkPlace::Other => true,
        };
        let go = self
            .links
            .extract_if(.., |link| link.is_on(ifindex, seen) && !stays(link.place))
            .collect();
        detach_all(go, self.pins)?;
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
                let current = self
                    .programs
                    .cgroup
                    .info()
                    .map_err(|source| KernelError::Program { name: "guard_cgroup", source })?;
                if link.program_id != current.id() {
                    link.update(program.as_fd())?;
                }
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
    seen: &Seen,
) -> Coverage {
    let is_own = |program_id: &u32| own_programs.contains(program_id);
    let here = || links.iter().filter(|link| link.is_on(ifindex, seen)).map(|link| link.place);
    if here().any(|place| matches!(place, LinkPlace::Xdp { .. })) {
        let is_native = seen.xdp.is_some_and(|xdp| xdp.is_native);
        let way = if is_native { Way::XdpNative } else { Way::XdpGeneric };
        return Coverage { way: Some(way), ..Coverage::default() };
    }
    let by_link = here().find_map(|place| match place {
        LinkPlace::Tcx { .. } => Some(Way::Tcx),
        LinkPlace::TcxEgress { .. } => Some(Way::EdgeTcx),
        LinkPlace::Xdp { .. } | LinkPlace::Cgroup { .. } | LinkPlace::Other => None,
    });
    let by_filter = || {
        let filter = seen.filters.iter().find(|filter| is_own(&filter.program_id))?;
        Some(if filter.is_egress { Way::EdgeClsact } else { Way::Clsact })
    };
    let way = by_link.or_else(by_filter);
    // TCX comes before clsact (`sch_handle_ingress` in `net/core/dev.c`). A program that passes a packet with anything but
    // "next" keeps it from us; one that stands first could.
    let is_edge = way.is_some_and(|way| way.hook() == Hook::Edge);
    let tcx = if is_edge { &seen.tcx_egress } else { &seen.tcx };
    let tcx = tcx.iter().map(|program| program.program_id);
    let before_ours = tcx.take_while(|id| way.is_some() && !is_own(id)).map(in_words).collect();
    let slot_holder = seen.xdp.map(|xdp| xdp.program_id).filter(|id| !is_own(id)).map(in_words);
    Coverage { way, before_ours, slot_holder }
}

/// A program of others, by its name where it is still loaded.
fn in_words(program_id: u32) -> String {
    let program = loaded_programs().flatten().find(|info| info.id() == program_id);
    let name = program.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty());
    match name {
        Some(name) => format!("{name} (program {program_id})"),
        None => format!("program {program_id}"),
    }
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

/// Takes off all that can be taken off.
///
/// # Errors
/// The first refusal of the kernel's.
fn detach_all(links: Vec<OwnLink>, pins: &Pins) -> Result<(), KernelError> {
    links.iter().map(|link| link.detach(pins)).fold(Ok(()), Result::and)
}

/// Whether the interface is still in the calling thread's network namespace.
fn exists(ifindex: u32) -> bool {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    // In doubt it is: what did not work is told then.
    socket.map_or(true, |socket| {
        !matches!(netdevice::index_to_name(socket, ifindex), Err(Errno::NODEV))
    })
}

fn is_existing(error: &tc::TcError) -> bool {
    match error {
        tc::TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

fn is_slot_taken(way: Way, error: &io::Error) -> bool {
    way.is_xdp() && matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Why a way did not work, in words where the number alone would mislead.
fn reason(way: Way, error: &io::Error) -> String {
    match (error.raw_os_error(), way) {
        _ if is_slot_taken(way, error) => {
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
