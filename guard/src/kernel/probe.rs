//! What this kernel must have before anything is tried.

use std::path::Path;

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

/// Nanoseconds since boot, time asleep included: the clock in which the kernel programs check ends.
#[must_use]
pub fn boot_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative for a clock that starts at boot.
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
