//! What this kernel must have before anything is tried.

use std::{fs, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::KernelError;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// # Errors
/// [`KernelError::NotRoot`].
pub fn check_root() -> Result<(), KernelError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(KernelError::NotRoot) }
}

/// # Errors
/// When not root, the kernel has no BTF, or this binary no programs.
pub fn check() -> Result<(), KernelError> {
    check_root()?;
    if !Path::new(BTF).exists() {
        return Err(KernelError::NoBtf { path: BTF });
    }
    super::object::object().map(|_| ())
}

/// The number of this boot (`/proc/sys/kernel/random/boot_id`), which no other has.
#[must_use]
pub fn boot_id() -> Option<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// Raises the limit of open files as far as it goes: a hook that is held, or only looked at, is one, and a host has one for
/// each container.
pub fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it can't be had, what needs it fails and says so.
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::debug!("the limit of open files stays: {error}");
    }
}

/// Nanoseconds since boot, time asleep included: the clock in which the kernel programs check ends.
#[must_use]
pub fn boot_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative for a clock that starts at boot.
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
