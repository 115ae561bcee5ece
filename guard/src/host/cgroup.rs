//! Where the cgroup v2 tree is mounted, and whether what is there is its root.
//!
//! The backstop sees every socket only from the tree's root. A path or a mount proves nothing of that: in a cgroup
//! namespace the root of the container stands there. The root directory's inode does: kernfs gives its root the number 1
//! (`kernfs_create_root` in `fs/kernfs/dir.c`), and no other directory.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

use procfs::{FromRead, process::MountInfos};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::filesystem_magic;

/// Where guard mounts the tree when nobody has.
pub const OWN_MOUNT: &str = "/run/guard/cgroup2";

const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const CGROUP2_MAGIC: u32 = 0x6367_7270;

const ROOT_INODE: u64 = 1;

/// A directory of the cgroup v2 tree to attach the backstop to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupRoot {
    pub path: PathBuf,
    pub scope: Scope,
}

impl CgroupRoot {
    /// The kernel's number for this cgroup: its directory's inode (`cgroup_id` in `include/linux/cgroup.h`).
    ///
    /// # Errors
    /// When the directory has gone.
    pub fn id(&self) -> io::Result<u64> {
        fs::metadata(&self.path).map(|directory| directory.ino())
    }
}

/// Whose sockets a directory of the tree stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every socket of the host.
    Root,
    /// Those of this container, or of this part of the tree.
    Subtree,
}

impl Scope {
    /// The words for people and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Subtree => "this container only",
        }
    }
}

/// Why there is no cgroup directory to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("the list of mounts could not be read: {0}")]
    Mounts(#[source] procfs::ProcError),
    #[error("no cgroup v2 tree is mounted, and it could not be mounted at {OWN_MOUNT}: {0}")]
    Mount(#[source] io::Error),
    #[error("{} could not be read: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("{} is no directory of a cgroup v2 tree", path.display())]
    NotCgroup2 { path: PathBuf },
}

impl CgroupError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Mounts(_) => "Mount /proc for this process.",
            Self::Mount(_) => {
                "Run guard as root, or mount the tree: mount -t cgroup2 cgroup2 DIRECTORY."
            }
            Self::Path { .. } | Self::NotCgroup2 { .. } => {
                "Name a directory below a mount of type cgroup2 ('findmnt -t cgroup2' lists them), or leave 'cgroup' out."
            }
        }
    }
}

/// Finds the root of the cgroup v2 tree, and mounts the tree at [`OWN_MOUNT`] where nobody has.
///
/// The root is preferred to a subtree; among equals the mount made first is.
///
/// # Errors
/// When mounts can't be listed, or the tree is mounted nowhere and can't be.
pub fn find_root() -> Result<CgroupRoot, CgroupError> {
    if let Some(root) = find_mounted()? {
        return Ok(root);
    }
    mount_own().map_err(CgroupError::Mount)?;
    at(Path::new(OWN_MOUNT))
}

/// As [`find_root`], and mounts nothing: `None` where the tree is mounted nowhere.
///
/// # Errors
/// When mounts can't be listed.
pub fn find_mounted() -> Result<Option<CgroupRoot>, CgroupError> {
    Ok(choose(&mount_points()?, inode))
}

/// Unmounts the tree where guard mounted it.
///
/// # Errors
/// When the kernel refuses; that it was not mounted there is no error.
pub fn unmount_own() -> io::Result<()> {
    // Not even asked for where it can't be mounted: a unit may be refused the call.
    if !Path::new(OWN_MOUNT).exists() {
        return Ok(());
    }
    match unmount(OWN_MOUNT, UnmountFlags::empty()) {
        Err(Errno::INVAL | Errno::NOENT) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The numbers of this cgroup and of all within it.
///
/// # Errors
/// When its directory can't be read.
pub fn ids_within(path: &Path) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::from([fs::metadata(path)?.ino()]);
    let mut unread = vec![path.to_owned()];
    while let Some(directory) = unread.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // One that was removed meanwhile holds no socket's process.
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory != path => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && ids.insert(entry.ino()) {
                unread.push(entry.path());
            }
        }
    }
    Ok(ids)
}

/// What a directory of the tree stands for.
///
/// # Errors
/// When it is none.
pub fn at(path: &Path) -> Result<CgroupRoot, CgroupError> {
    match inode(path) {
        Ok(Some(inode)) => Ok(CgroupRoot { path: path.to_owned(), scope: scope(inode) }),
        Ok(None) => Err(CgroupError::NotCgroup2 { path: path.to_owned() }),
        Err(source) => Err(CgroupError::Path { path: path.to_owned(), source }),
    }
}

fn mount_points() -> Result<Vec<PathBuf>, CgroupError> {
    let mounts = MountInfos::from_file(MOUNTS).map_err(CgroupError::Mounts)?;
    let cgroup2 = mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2");
    Ok(cgroup2.map(|mount| mount.mount_point).collect())
}

/// The first candidate that is the root, else the first that is a directory of the tree at all.
fn choose(
    candidates: &[PathBuf],
    inode: impl Fn(&Path) -> io::Result<Option<u64>>,
) -> Option<CgroupRoot> {
    let mut subtree = None;
    for path in candidates {
        // Another mount may hide it, or it may be gone: the next one, then.
        let Ok(Some(inode)) = inode(path) else { continue };
        let root = CgroupRoot { path: path.clone(), scope: scope(inode) };
        match root.scope {
            Scope::Root => return Some(root),
            Scope::Subtree => subtree = subtree.or(Some(root)),
        }
    }
    subtree
}

fn scope(inode: u64) -> Scope {
    if inode == ROOT_INODE { Scope::Root } else { Scope::Subtree }
}

/// The inode of a directory of the tree; `None` for what is none.
fn inode(path: &Path) -> io::Result<Option<u64>> {
    let metadata = fs::metadata(path)?;
    let is_cgroup2 = filesystem_magic(path)? == CGROUP2_MAGIC;
    Ok((is_cgroup2 && metadata.is_dir()).then(|| metadata.ino()))
}

fn mount_own() -> io::Result<()> {
    fs::create_dir_all(OWN_MOUNT)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("cgroup2", OWN_MOUNT, "cgroup2", flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates with their inodes: `None` for what is hidden by another filesystem, 0 for what can't be read.
    #[track_caller]
    fn chosen(candidates: &[(&str, Option<u64>)]) -> Option<(String, Scope)> {
        let paths: Vec<PathBuf> = candidates.iter().map(|(path, _)| PathBuf::from(path)).collect();
        let inode = |path: &Path| match candidates
            .iter()
            .find(|(known, _)| Path::new(known) == path)
            .unwrap()
            .1
        {
            Some(0) => Err(io::ErrorKind::PermissionDenied.into()),
            inode => Ok(inode),
        };
        choose(&paths, inode).map(|root| (root.path.display().to_string(), root.scope))
    }

    #[test]
    fn root_is_preferred_wherever_it_is_mounted() {
        for (candidates, expected) in [
            // Only v2; v2 beside v1.
            (vec![("/sys/fs/cgroup", Some(1))], Some(("/sys/fs/cgroup", Scope::Root))),
            (
                vec![("/sys/fs/cgroup/unified", Some(1))],
                Some(("/sys/fs/cgroup/unified", Scope::Root)),
            ),
            // Only v1.
            (vec![], None),
            // In a cgroup namespace.
            (vec![("/sys/fs/cgroup", Some(4711))], Some(("/sys/fs/cgroup", Scope::Subtree))),
            // A container with a part of the tree and, elsewhere, the host's.
            (
                vec![("/sys/fs/cgroup", Some(4711)), ("/host/cgroup", Some(1))],
                Some(("/host/cgroup", Scope::Root)),
            ),
            // Mounted twice.
            (vec![("/a", Some(1)), ("/b", Some(1))], Some(("/a", Scope::Root))),
            (vec![("/a", Some(7)), ("/b", Some(8))], Some(("/a", Scope::Subtree))),
            // Hidden, unreadable.
            (vec![("/a", None), ("/b", Some(0)), ("/c", Some(7))], Some(("/c", Scope::Subtree))),
            (vec![("/a", None), ("/b", Some(0))], None),
        ] {
            let expected = expected.map(|(path, scope)| (path.to_owned(), scope));
            assert_eq!(chosen(&candidates), expected, "{candidates:?}");
        }
    }

    #[test]
    fn path_that_is_no_cgroup_is_refused() {
        assert!(matches!(at(Path::new("/proc")), Err(CgroupError::NotCgroup2 { .. })));
        assert!(matches!(at(Path::new("/no/such/path")), Err(CgroupError::Path { .. })));
    }

    #[test]
    fn directory_and_file_of_the_mounted_tree() {
        // Where no tree is mounted there is nothing to look at, and a unit test doesn't mount one.
        let Some(root) = choose(&mount_points().unwrap(), inode) else { return };
        assert_eq!(at(&root.path).unwrap(), root);
        let control = root.path.join("cgroup.procs");
        assert!(matches!(at(&control), Err(CgroupError::NotCgroup2 { .. })));
    }

    #[test]
    fn below_the_root_it_is_a_subtree() {
        crate::host::assert_root();
        let root = find_root().unwrap();
        assert_eq!(root.scope, Scope::Root);
        let below = root.path.join(format!("guard-test-{}", std::process::id()));
        fs::create_dir(&below).unwrap();
        let found = at(&below);
        fs::remove_dir(&below).unwrap();
        assert_eq!(found.unwrap(), CgroupRoot { path: below, scope: Scope::Subtree });
    }

    #[test]
    fn a_cgroup_s_numbers_are_those_of_all_within_it() {
        let tree = tempfile::tempdir().unwrap();
        let within = ["", "a", "a/b", "c"].map(|name| tree.path().join(name));
        for directory in &within {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(tree.path().join("a/cgroup.procs"), "1").unwrap();
        let expected = within.map(|directory| fs::metadata(directory).unwrap().ino());
        assert_eq!(ids_within(tree.path()).unwrap(), HashSet::from(expected));
        assert!(ids_within(&tree.path().join("gone")).is_err());
    }
}
