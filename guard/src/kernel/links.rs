//! Which of our programs are attached where, found by walking the kernel's own list: a pin can be lost, a link can't hide.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    maps::{Array, Map, MapData},
    programs::loaded_programs,
};
use guard_common::abi::{POLICY_SLOTS, PolicyHeader, map, program};

pub use super::sys::LinkPlace;
use super::{KernelError, pins::Pins, sys};

/// One link of ours.
#[derive(Debug)]
pub struct OwnLink {
    pub place: LinkPlace,
    pub program_id: u32,
    fd: OwnedFd,
}

impl OwnLink {
    /// The name of its pin. By number, since an interface's name may change under a link.
    fn pin_name(&self) -> Option<String> {
        pin_name(self.place)
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

    /// Takes it from its hook, pinned or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self, pins: &Pins) -> Result<(), KernelError> {
        sys::link_detach(self.fd.as_fd())
            .map_err(|source| KernelError::System { what: "detaching a program", source })?;
        if let Some(name) = self.pin_name() {
            remove_pin(pins.links().join(name))?;
        }
        Ok(())
    }

    /// Puts the program that is pinned now in the place of the one it holds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&self, program: std::os::fd::BorrowedFd<'_>) -> Result<(), KernelError> {
        sys::link_update(self.fd.as_fd(), program)
            .map_err(|source| KernelError::System { what: "replacing an attached program", source })
    }

    /// Pins it where its pin is missing or holds another link.
    ///
    /// # Errors
    /// When the pin can't be made.
    pub fn keep(&self, pins: &Pins) -> Result<(), KernelError> {
        let Some(name) = self.pin_name() else {
            return Ok(());
        };
        let path = pins.links().join(name);
        let same = sys::pinned(&path)
            .and_then(|held| sys::link_info(held.as_fd()))
            .is_ok_and(|held| held.place == self.place && held.program_id == self.program_id);
        if same {
            return Ok(());
        }
        remove_pin(path.clone())?;
        sys::pin(self.fd.as_fd(), &path).map_err(|source| KernelError::Pin {
            what: "pinning a link at",
            path,
            source,
        })
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
    let fd = sys::link_create(program, target)?;
    let info = sys::link_info(fd.as_fd())?;
    let link = OwnLink { place: info.place, program_id: info.program_id, fd };
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
        let Ok(info) = sys::link_info(fd.as_fd()) else { continue };
        if programs.contains(&info.program_id) && info.place != LinkPlace::Other {
            links.push(OwnLink { place: info.place, program_id: info.program_id, fd });
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
        if maps
            .into_iter()
            .any(|id| policy_of(id).is_some_and(|header| header.instance == instance))
        {
            ids.insert(info.id());
        }
    }
    Ok(ids)
}

/// The newest header in a map, when it is a policy map.
fn policy_of(map_id: u32) -> Option<PolicyHeader> {
    let data = MapData::from_id(map_id).ok()?;
    if data.info().ok()?.name_as_str() != Some(map::POLICY) {
        return None;
    }
    let policy: Array<MapData, PolicyHeader> = Map::Array(data).try_into().ok()?;
    (0..POLICY_SLOTS)
        .filter_map(|slot| policy.get(&slot, 0).ok())
        .max_by_key(|header| header.generation)
}

/// Removes the pins of links whose interface is gone.
///
/// # Errors
/// When a pin can't be removed.
pub fn forget_dead(pins: &Pins) -> Result<(), KernelError> {
    let directory = pins.links();
    let Ok(entries) = fs::read_dir(&directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(fd) = sys::pinned(&path) else { continue };
        let Ok(info) = sys::link_info(fd.as_fd()) else { continue };
        let link = OwnLink { place: info.place, program_id: info.program_id, fd };
        if link.is_dead() {
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

fn pin_name(place: LinkPlace) -> Option<String> {
    match place {
        LinkPlace::Xdp { ifindex } => Some(format!("xdp-{ifindex}")),
        LinkPlace::Tcx { ifindex } => Some(format!("tcx-{ifindex}")),
        LinkPlace::TcxEgress { ifindex } => Some(format!("edge-{ifindex}")),
        LinkPlace::Cgroup { .. } => Some("cgroup".to_owned()),
        LinkPlace::Other => None,
    }
}
