//! Word of sockets that take a port.

use std::{
    fs::File,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{CgroupAttachMode, CgroupSock, cgroup_sock::CgroupSockLink},
};
use guard_common::abi::{map, program};

use super::{KernelError, load, object, pins::Pins};

/// Readable once a stream socket has been bound by a process of a cgroup or of those below it. Its programs are attached for as
/// long as it lives, and leave no pins.
pub struct Binds {
    ring: RingBuf<MapData>,
    _links: [CgroupSockLink; 2],
}

impl Binds {
    /// Follows those of a cgroup v2 directory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn follow(pins: &Pins, cgroup: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::System { what: "following binds", source };
        let directory = File::open(cgroup).map_err(failed)?;
        let mut ebpf = load::over_pinned_maps(object::object()?, pins)?;
        let links = [
            attach(&mut ebpf, program::BIND4, &directory)?,
            attach(&mut ebpf, program::BIND6, &directory)?,
        ];
        let ring = ebpf.take_map(map::BINDS).ok_or(KernelError::NoObject)?;
        let failed = |source| KernelError::Map { name: map::BINDS, what: "opened", source };
        Ok(Self { ring: ring.try_into().map_err(failed)?, _links: links })
    }

    /// Forgets those that were told so far.
    pub fn forget(&mut self) {
        while self.ring.next().is_some() {}
    }
}

impl AsRawFd for Binds {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    directory: &File,
) -> Result<CgroupSockLink, KernelError> {
    let failed = |source| KernelError::Program { name, source };
    let program = ebpf.program_mut(name).ok_or(KernelError::NoObject)?;
    let program: &mut CgroupSock = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    // A link stands beside others whatever is said here, and the kernel takes no other word with one (`cgroup_bpf_link_attach`
    // in `kernel/bpf/cgroup.c`).
    let link = program.attach(directory, CgroupAttachMode::Single).map_err(failed)?;
    program.take_link(link).map_err(failed)
}
