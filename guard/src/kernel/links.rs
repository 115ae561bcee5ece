//! Which of our programs are attached where, found by walking the kernel's own list: a pin can be lost, a link can't hide.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    maps::{MapData, MapType},
    programs::loaded_programs,
};
use guard_common::abi::{POLICY_SLOTS, PolicyHeader, map, program};

pub use super::sys::LinkPlace;
use super::{KernelError, pins::Pins, seen::Seen, sys};

/// One link of ours.
#[derive(Debug)]
pub struct OwnLink {
    pub id: u32,
    pub place: LinkPlace,
    pub program_id: u32,
    fd: OwnedFd,
}

impl OwnLink {
    fn of(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::link_info(fd.as_fd())?;
        Ok(Self { id: info.id, place: info.place, program_id: info.program_id, fd })
    }

    /// Whether it is on this interface of the calling thread's network namespace.
    ///
    /// A link goes along when its interface moves to another namespace (`__dev_change_net_namespace` in
    /// `net/core/dev.c` takes off queueing disciplines only), and from then on tells the number that the interface has
    /// there, which another one may have here. So the interface has the last word.
    #[must_use]
    pub fn is_on(&self, ifindex: u32, seen: &Seen) -> bool {
        match self.place {
            LinkPlace::Xdp { ifindex: at } => {
                at == ifindex && seen.xdp.is_some_and(|xdp| xdp.program_id == self.program_id)
            }
            LinkPlace::Tcx { ifindex: at } => {
                at == ifindex && seen.tcx.iter().any(|program| program.link_id == self.id)
            }
            LinkPlace::TcxEgress { ifindex: at } => {
                at == ifindex && seen.tcx_egress.iter().any(|program| program.link_id == self.id)
            }
            LinkPlace::Cgroup { .. } | LinkPlace::Other => false,
        }
    }

    /// Its interface or cgroup is gone; nothing passes it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(
            self.place,
            LinkPlace::Xdp { ifindex: 0 }
                | LinkPlace::Tcx { ifindex: 0 }
                | LinkPlace::TcxEgress { ifindex: 0 }
                | LinkPlace::Cgroup { cgroup_id: 0 }
        )
    }

    /// Whether it is still where it was when it was found, as the kernel says now.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        sys::link_info(self.fd.as_fd()).is_ok_and(|info| info.place == self.place)
    }

    /// Takes it from its hook, pinned or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self, pins: &Pins) -> Result<(), KernelError> {
        sys::link_detach(self.fd.as_fd())
            .map_err(|source| KernelError::System { what: "detaching a program", source })?;
        remove_pin(pins.links().join(self.pin_name()))
    }

    /// Puts this program in the place of the one it holds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&self, program: std::os::fd::BorrowedFd<'_>) -> Result<(), KernelError> {
        sys::link_update(self.fd.as_fd(), program)
            .map_err(|source| KernelError::System { what: "replacing an attached program", source })
    }

    /// Pins it where it is not pinned yet.
    ///
    /// # Errors
    /// When the pin can't be made.
    pub fn keep(&self, pins: &Pins) -> Result<(), KernelError> {
        if self.is_pinned(pins) {
            return Ok(());
        }
        let path = pins.links().join(self.pin_name());
        remove_pin(path.clone())?;
        sys::pin(self.fd.as_fd(), &path).map_err(|source| KernelError::Pin {
            what: "pinning a link at",
            path,
            source,
        })
    }

    #[must_use]
    pub fn is_pinned(&self, pins: &Pins) -> bool {
        let path = pins.links().join(self.pin_name());
        sys::pinned(&path).and_then(Self::of).is_ok_and(|held| held.id == self.id)
    }

    /// By the link's number, since an interface's name and number may change under it.
    fn pin_name(&self) -> String {
        let hook = match self.place {
            LinkPlace::Xdp { .. } => "xdp",
            LinkPlace::Tcx { .. } => "tcx",
            LinkPlace::TcxEgress { .. } => "edge",
            LinkPlace::Cgroup { .. } => "cgroup",
            LinkPlace::Other => "link",
        };
        format!("{hook}-{}", self.id)
    }
}

/// Attaches a program and pins the link.
///
/// # Errors
/// The kernel's own error, for the ladder to judge. A link that could not be pinned is not left attached.
pub fn attach(
    program: std::os::fd::BorrowedFd<'_>,
    target: sys::Target<'_>,
    pins: &Pins,
) -> io::Result<()> {
    let link = OwnLink::of(sys::link_create(program, target)?)?;
    link.keep(pins).map_err(io::Error::other)
}

/// Every link of this guard's, in whatever namespace its interface is.
///
/// # Errors
/// When the kernel's lists can't be walked.
pub fn ours(pins: &Pins) -> Result<Vec<OwnLink>, KernelError> {
    let failed = |source| KernelError::System { what: "listing attached programs", source };
    let programs = own_programs(pins.instance)?;
    let mut links = Vec::new();
    let mut id = 0;
    while let Some(next) = sys::link_next_id(id).map_err(failed)? {
        id = next;
        // It may have gone since.
        let Ok(fd) = sys::link_by_id(id) else { continue };
        let Ok(link) = OwnLink::of(fd) else { continue };
        if programs.contains(&link.program_id) && link.place != LinkPlace::Other {
            links.push(link);
        }
    }
    Ok(links)
}

/// The ids of this guard's programs, of this and earlier starts.
///
/// # Errors
/// When the kernel's list can't be walked.
pub fn own_programs(instance: u64) -> Result<HashSet<u32>, KernelError> {
    let mut ids = HashSet::new();
    for info in loaded_programs() {
        // It may have gone since.
        let Ok(info) = info else { continue };
        if !info.name_as_str().is_some_and(|name| program::ALL.contains(&name)) {
            continue;
        }
        let maps = info.map_ids().ok().flatten().unwrap_or_default();
        if maps.into_iter().any(|id| is_policy_of(instance, id)) {
            ids.insert(info.id());
        }
    }
    Ok(ids)
}

/// Whether a map is a policy map of this guard's, in whatever layout.
fn is_policy_of(instance: u64, map_id: u32) -> bool {
    let Ok(map) = MapData::from_id(map_id) else { return false };
    let Ok(info) = map.info() else { return false };
    if info.name_as_str() != Some(map::POLICY) || info.map_type().ok() != Some(MapType::Array) {
        return false;
    }
    // A slot that was never written holds zeros.
    (0..info.max_entries().min(POLICY_SLOTS)).any(|slot| {
        let value = sys::array_value(map.fd().as_fd(), slot, info.value_size());
        let stands_at = PolicyHeader::INSTANCE_AT..PolicyHeader::INSTANCE_AT + size_of::<u64>();
        value.is_ok_and(|value| value.get(stands_at) == Some(&instance.to_ne_bytes()))
    })
}

/// Removes the pins of links whose interface is gone.
///
/// # Errors
/// When a pin can't be removed.
pub fn forget_dead(pins: &Pins) -> Result<(), KernelError> {
    for entry in fs::read_dir(pins.links()).into_iter().flatten().flatten() {
        let path = entry.path();
        if sys::pinned(&path).and_then(OwnLink::of).is_ok_and(|link| link.is_dead()) {
            remove_pin(path)?;
        }
    }
    Ok(())
}

fn remove_pin(path: PathBuf) -> Result<(), KernelError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { what: "removing", path, source })
        }
        _ => Ok(()),
    }
}
