//! What this kernel must have before anything is tried.

use std::path::Path;

use super::KernelError;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// # Errors
/// When not root, or the kernel has no BTF.
pub fn check() -> Result<(), KernelError> {
    if !rustix::process::geteuid().is_root() {
        return Err(KernelError::NotRoot);
    }
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
