//! Holds what is in force, so that nothing of it goes with a pin that somebody removes, and sees what somebody takes off.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use guard_common::abi::{map, program};

use super::{
    KernelError,
    attach::Way,
    links::{self, LinkPlace, OwnLink},
    pins::Pins,
    seen::{self, Seen, SeenFilter},
    sys,
};

/// What was in force at a moment, and stays in the kernel as long as this lives.
pub struct Kept {
    pins: Pins,
    /// Maps and programs, each with its pin.
    objects: Vec<(PathBuf, OwnedFd)>,
    links: Vec<OwnLink>,
    /// By interface.
    filters: Vec<(u32, SeenFilter)>,
    /// The pin directories as they were.
    directories: [Option<Stamp>; 3],
}

/// What changes about a directory when something in it comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    /// Seconds, and nanoseconds of the second.
    modified: (i64, i64),
}

/// Something that somebody has taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// A program of this hook from an interface.
    Interface { ifindex: u32, hook: &'static str },
    /// The program at the cgroup.
    Backstop,
    /// Some of the pins.
    Pins,
}

impl Kept {
    /// What is in force now. `seen` is what is attached to the interfaces of this network namespace, by index.
    ///
    /// # Errors
    /// When the kernel's lists can't be walked.
    pub fn now<'a>(
        pins: &Pins,
        seen: impl IntoIterator<Item = (&'a u32, &'a Seen)>,
    ) -> Result<Self, KernelError> {
        // Before the pins are opened: what goes meanwhile is seen the next time.
        let directories = stamps(pins);
        let own = links::own_programs(pins.instance)?;
        let paths = map::ALL.iter().map(|name| pins.map(name));
        let paths = paths.chain(program::ALL.iter().map(|name| pins.program(name)));
        let objects = paths.filter_map(|path| Some((path.clone(), sys::pinned(&path).ok()?)));
        let filters = seen.into_iter().flat_map(|(ifindex, seen)| {
            let ours = seen.filters.iter().filter(|filter| own.contains(&filter.program_id));
            ours.map(|filter| (*ifindex, *filter))
        });
        Ok(Self {
            objects: objects.collect(),
            links: links::ours(pins)?.into_iter().filter(|link| !link.is_dead()).collect(),
            filters: filters.collect(),
            directories,
            pins: pins.clone(),
        })
    }

    /// Whether anything but filters may have been taken off since: a few system calls that wait for nothing, to be asked often.
    #[must_use]
    pub fn has_lapsed(&self) -> bool {
        self.directories != stamps(&self.pins) || self.links.iter().any(|link| !link.is_in_place())
    }

    #[must_use]
    pub fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether a filter has been taken off since. Must not be called within a runtime.
    #[must_use]
    pub fn have_filters_lapsed(&self) -> bool {
        !self.lapsed_filters().is_empty()
    }

    /// What has been taken off. Must not be called within a runtime.
    #[must_use]
    pub fn lapses(&self) -> Vec<Lapse> {
        let gone = self.links.iter().filter(|link| !link.is_in_place());
        let mut lapses: Vec<Lapse> = gone.filter_map(|link| lapse(link.place)).collect();
        lapses.extend(self.lapsed_filters());
        if self.are_pins_missing() {
            lapses.push(Lapse::Pins);
        }
        lapses
    }

    /// Filters are not links: netlink is asked for them.
    fn lapsed_filters(&self) -> Vec<Lapse> {
        if self.filters.is_empty() {
            return Vec::new();
        }
        let indices: Vec<u32> = self.filters.iter().map(|(ifindex, _)| *ifindex).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Where netlink does not answer, the next look says so.
        let Some(seen) = runtime.ok().and_then(|it| it.block_on(seen::seen(&indices)).ok()) else {
            return Vec::new();
        };
        let is_there = |ifindex: &u32, filter: &SeenFilter| {
            seen.get(ifindex).is_some_and(|seen| seen.filters.contains(filter))
        };
        let gone = self.filters.iter().filter(|(ifindex, filter)| !is_there(ifindex, filter));
        gone.map(|(ifindex, filter)| {
            let way = if filter.is_egress { Way::EdgeClsact } else { Way::Clsact };
            Lapse::Interface { ifindex: *ifindex, hook: way.name() }
        })
        .collect()
    }

    fn are_pins_missing(&self) -> bool {
        self.objects.iter().any(|(path, _)| !path.exists())
            || self.links.iter().any(|link| link.is_in_place() && !link.is_pinned(&self.pins))
    }

    /// Makes the pins that are missing anew, of what is held.
    ///
    /// # Errors
    /// When one can't be made.
    pub fn restore_pins(&self) -> Result<(), KernelError> {
        self.pins.make_directories()?;
        for (path, object) in self.objects.iter().filter(|(path, _)| !path.exists()) {
            sys::pin(object.as_fd(), path).map_err(|source| KernelError::Pin {
                what: "pinning again at",
                path: path.clone(),
                source,
            })?;
        }
        let in_place = self.links.iter().filter(|link| link.is_in_place());
        in_place.map(|link| link.keep(&self.pins)).fold(Ok(()), Result::and)
    }
}

const fn lapse(place: LinkPlace) -> Option<Lapse> {
    let (ifindex, hook) = match place {
        LinkPlace::Xdp { ifindex } => (ifindex, "xdp"),
        LinkPlace::Tcx { ifindex } => (ifindex, Way::Tcx.name()),
        LinkPlace::TcxEgress { ifindex } => (ifindex, Way::EdgeTcx.name()),
        LinkPlace::Cgroup { .. } => return Some(Lapse::Backstop),
        LinkPlace::Other => return None,
    };
    Some(Lapse::Interface { ifindex, hook })
}

/// The kernel changes a directory's time with each pin that comes or goes (`simple_unlink` in `fs/libfs.c`,
/// `bpf_dentry_finalize` in `kernel/bpf/inode.c`).
fn stamps(pins: &Pins) -> [Option<Stamp>; 3] {
    pins.directories().map(|directory| {
        let metadata = fs::metadata(directory).ok()?;
        Some(Stamp { inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    })
}
