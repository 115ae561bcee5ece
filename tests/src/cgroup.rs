//! A cgroup of a test's own, to which its listeners belong and its backstop is attached.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::wait::until;

/// Where the cgroup v2 tree is mounted; a host with v1 controllers has it beside them.
#[must_use]
pub fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .unwrap_or_else(|error| panic!("/proc/self/mounts can't be read: {error}"));
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map_or_else(
            || panic!("no cgroup2 is mounted: `mount -t cgroup2 none DIRECTORY` mounts it"),
            |fields| PathBuf::from(fields[1]),
        )
}

/// Makes the cgroup of this name.
#[must_use]
pub fn create(name: &str) -> PathBuf {
    let path = mount_point().join(name);
    fs::create_dir(&path)
        .unwrap_or_else(|error| panic!("the cgroup {} can't be made: {error}", path.display()));
    path
}

/// Removes a cgroup that nobody is in any more; that it is not there is fine.
///
/// # Errors
/// When a process stays in it.
pub fn remove(path: &Path) -> io::Result<()> {
    let Ok(processes) = fs::read_to_string(path.join("cgroup.procs")) else {
        return Ok(());
    };
    if !processes.is_empty() {
        return Err(io::Error::other(format!("processes are left in it: {}", processes.trim())));
    }
    // A process that has just ended may hold on to its cgroup for a moment.
    until(&format!("the cgroup {} can be removed", path.display()), || {
        fs::remove_dir(path).is_ok() || !path.exists()
    });
    Ok(())
}
