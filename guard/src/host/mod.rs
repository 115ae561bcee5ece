//! Facts about this host: its interfaces and addresses, its sockets, its cgroup tree. Nothing here changes the
//! policy or touches a kernel program.

pub mod bpffs;
pub mod cgroup;
mod conversation;
pub mod forwarders;
mod generic;
pub mod interfaces;
pub mod netlink;
pub mod netns;
pub mod nic;
pub mod reserved_ports;
pub mod resolver;
pub mod sockets;
pub mod via;
pub mod watched;

use std::{io, path::Path};

/// The number of the filesystem that a path lies on, of `include/uapi/linux/magic.h`.
fn filesystem_magic(path: &Path) -> io::Result<u32> {
    // `f_type` is a signed long: the number stands in its low 32 bits.
    let [a, b, c, d, ..] = rustix::fs::statfs(path)?.f_type.to_le_bytes();
    Ok(u32::from_le_bytes([a, b, c, d]))
}

/// Tests that make namespaces or write kernel settings ask for root and say so.
#[cfg(test)]
fn assert_root() {
    assert!(rustix::process::geteuid().is_root(), "needs root: run `cargo xtask test`");
}
