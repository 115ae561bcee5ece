//! Where programs and maps are pinned, so that they stay when guard ends.
//!
//! A bpffs lives as long as some mount namespace has it mounted. In a private one (a unit with `PrivateTmp=`,
//! `ip netns exec`, a container) it ends with guard, and takes every pin along. So the pins belong in PID 1's: what is
//! compared is the device number, since each mounted bpffs has its own and copies of one mount share it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use procfs::{FromRead, process::MountInfos};
use rustix::{
    mount::{MountFlags, mount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use super::filesystem_magic;

/// Where bpffs is mounted by everyone.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// The root directory of PID 1, through which its mounts are reached from another namespace.
const INIT_ROOT: &str = "/proc/1/root";

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPFFS_MAGIC: u32 = 0xcafe_4a11;

/// Where to pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRoot {
    /// On a bpffs; the directory itself may not exist yet.
    pub path: PathBuf,
    /// The pins stay when guard ends.
    pub outlives_us: bool,
    /// A sentence worth knowing.
    pub note: Option<String>,
}

/// Why there is nowhere to pin.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error("{} could not be read: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("{} does not lie on a bpffs", path.display())]
    NotBpffs { path: PathBuf },
    #[error("no bpffs could be mounted at {MOUNT_POINT}: {0}")]
    Mount(#[source] io::Error),
}

impl BpffsError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Path { .. } | Self::NotBpffs { .. } => {
                "Name a directory on a mount of type bpf, or leave 'pins' out."
            }
            Self::Mount(_) => "Run guard as root, or mount it: mount -t bpf bpf /sys/fs/bpf.",
        }
    }
}

/// Says where `pins` is to be, and mounts a bpffs at `/sys/fs/bpf` where there is none yet. Creates no directory.
///
/// Below `/sys/fs/bpf` it is PID 1's bpffs wherever that can be reached. Any other path is used as it is, and must lie on
/// a bpffs.
///
/// # Errors
/// When no bpffs is there and none can be mounted.
pub fn locate(pins: &Path) -> Result<PinRoot, BpffsError> {
    let here = bpffs_below(Path::new("/"), pins)
        .map_err(|source| BpffsError::Path { path: pins.to_owned(), source })?;
    if !pins.starts_with(MOUNT_POINT) && here.is_none() {
        return Err(BpffsError::NotBpffs { path: pins.to_owned() });
    }
    let (facts, obstacle) = gather(pins, here);
    match decide(&facts) {
        Plan::UseHere { outlives_us } => Ok(as_is(pins, outlives_us, obstacle)),
        Plan::MountHere { outlives_us } => {
            mount_bpffs().map_err(BpffsError::Mount)?;
            Ok(as_is(pins, outlives_us, obstacle))
        }
        Plan::UseThroughInit => Ok(through_init(pins)),
        Plan::MountForInit => match mount_for_init() {
            Ok(()) => Ok(through_init(pins)),
            Err(error) => {
                if here.is_none() {
                    mount_bpffs().map_err(BpffsError::Mount)?;
                }
                let obstacle = format!("no bpffs could be mounted for it: {error}");
                Ok(as_is(pins, false, Some(obstacle)))
            }
        },
    }
}

/// A filesystem's device number.
type Device = u64;

/// What a decision is made from.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts: decide() is what they come to"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    /// The path lies below `/sys/fs/bpf`.
    is_standard: bool,
    /// The bpffs that the path lies on, as this process sees it.
    here: Option<Device>,
    /// The bpffs that the path lies on, as PID 1 sees it.
    init: Option<Device>,
    /// This process and PID 1 share their mounts.
    shares_mounts: bool,
    /// PID 1's directories can be reached from here.
    reaches_init: bool,
    /// This process is PID 1: all ends with it.
    is_init: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    UseHere { outlives_us: bool },
    MountHere { outlives_us: bool },
    UseThroughInit,
    MountForInit,
}

fn decide(facts: &Facts) -> Plan {
    let is_init_s = facts.shares_mounts || (facts.here.is_some() && facts.here == facts.init);
    let outlives_us = is_init_s && !facts.is_init;
    if is_init_s || !facts.is_standard || !facts.reaches_init {
        return match facts.here {
            Some(_) => Plan::UseHere { outlives_us },
            None => Plan::MountHere { outlives_us },
        };
    }
    match facts.init {
        Some(_) => Plan::UseThroughInit,
        None => Plan::MountForInit,
    }
}

fn as_is(pins: &Path, outlives_us: bool, obstacle: Option<String>) -> PinRoot {
    let note = (!outlives_us).then(|| {
        let obstacle = obstacle.unwrap_or_else(|| "it has other mounts".into());
        format!(
            "{} is not on a bpffs of PID 1's, so that enforcement ends with guard ({obstacle}).",
            pins.display()
        )
    });
    PinRoot { path: pins.to_owned(), outlives_us, note }
}

fn through_init(pins: &Path) -> PinRoot {
    let path = below(Path::new(INIT_ROOT), pins);
    let note = format!("The pins are on PID 1's bpffs: from here, at {}.", path.display());
    PinRoot { path, outlives_us: true, note: Some(note) }
}

/// The facts, and what stands in the way of PID 1's mounts.
fn gather(pins: &Path, here: Option<Device>) -> (Facts, Option<String>) {
    let mut facts = Facts {
        is_standard: pins.starts_with(MOUNT_POINT),
        here,
        init: None,
        shares_mounts: shares_mounts_with_init(),
        reaches_init: false,
        is_init: std::process::id() == 1,
    };
    if facts.is_init {
        return (facts, Some("guard is PID 1 here".into()));
    }
    match bpffs_below(Path::new(INIT_ROOT), pins) {
        Ok(init) => {
            (facts.init, facts.reaches_init) = (init, true);
            (facts, None)
        }
        // Its list of mounts may be read all the same.
        Err(error) => {
            facts.init = listed_for_init(pins);
            (facts, Some(format!("{INIT_ROOT} can't be reached: {error}")))
        }
    }
}

/// The bpffs that a path lies on, seen from a root directory: that of its nearest directory that exists.
fn bpffs_below(root: &Path, path: &Path) -> io::Result<Option<Device>> {
    for directory in path.ancestors() {
        let directory = below(root, directory);
        match fs::metadata(&directory) {
            Ok(metadata) => {
                let is_bpffs = filesystem_magic(&directory)? == BPFFS_MAGIC;
                return Ok(is_bpffs.then(|| metadata.dev()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Whether this thread is in PID 1's mount namespace. Where the kernel doesn't let us compare the namespaces, the mounts
/// at their roots are: the number of a mount is unique among all namespaces (`mnt_alloc_id` in `fs/namespace.c`).
fn shares_mounts_with_init() -> bool {
    let links = ["/proc/thread-self/ns/mnt", "/proc/1/ns/mnt"].map(fs::read_link);
    if let [Ok(ours), Ok(init_s)] = links {
        return ours == init_s;
    }
    let roots = ["/proc/thread-self/mountinfo", "/proc/1/mountinfo"].map(root_mount);
    matches!(roots, [Some(ours), Some(init_s)] if ours == init_s)
}

fn root_mount(mountinfo: &str) -> Option<i32> {
    let mounts = MountInfos::from_file(mountinfo).ok()?;
    mounts.iter().rfind(|mount| mount.mount_point == Path::new("/")).map(|mount| mount.mnt_id)
}

/// The bpffs that a path lies on by PID 1's list of mounts, of which the newest hides those it covers.
fn listed_for_init(path: &Path) -> Option<Device> {
    let mounts = MountInfos::from_file("/proc/1/mountinfo").ok()?;
    let covering = mounts.iter().rfind(|mount| path.starts_with(&mount.mount_point))?;
    (covering.fs_type == "bpf").then(|| device(&covering.majmin)).flatten()
}

/// A device number from its form in `mountinfo`: major and minor with a colon between.
fn device(text: &str) -> Option<Device> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn mount_bpffs() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("bpf", MOUNT_POINT, "bpf", flags, c"mode=0700")?)
}

/// Mounts a bpffs in PID 1's mount namespace, by a thread that goes there and ends.
fn mount_for_init() -> io::Result<()> {
    let namespace = File::open("/proc/1/ns/mnt")?;
    let go_and_mount = move || {
        // The kernel lets only a thread change namespace that shares its root and working directory with no other.
        // SAFETY: only those are left; file descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        mount_bpffs()
    };
    let thread = thread::Builder::new().name("bpffs".into()).spawn(go_and_mount)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts it panicked")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const ALONE: Facts = Facts {
        is_standard: true,
        here: None,
        init: None,
        shares_mounts: false,
        reaches_init: false,
        is_init: false,
    };

    #[test]
    fn every_situation_has_its_plan() {
        let reaching = Facts { reaches_init: true, ..ALONE };
        let sharing = Facts { shares_mounts: true, ..ALONE };
        for (situation, facts, plan) in [
            (
                "an ordinary host",
                Facts { here: Some(7), init: Some(7), shares_mounts: true, ..reaching },
                Plan::UseHere { outlives_us: true },
            ),
            (
                "an ordinary host without bpffs",
                Facts { shares_mounts: true, ..reaching },
                Plan::MountHere { outlives_us: true },
            ),
            ("the same, and PID 1 out of reach", sharing, Plan::MountHere { outlives_us: true }),
            (
                "the same, with bpffs",
                Facts { here: Some(7), init: Some(7), ..sharing },
                Plan::UseHere { outlives_us: true },
            ),
            (
                "a unit with a private copy of the mounts",
                Facts { here: Some(7), init: Some(7), ..reaching },
                Plan::UseHere { outlives_us: true },
            ),
            (
                "the same, and PID 1 out of reach",
                Facts { here: Some(7), init: Some(7), ..ALONE },
                Plan::UseHere { outlives_us: true },
            ),
            (
                "ip netns exec, which hides bpffs",
                Facts { init: Some(7), ..reaching },
                Plan::UseThroughInit,
            ),
            (
                "another bpffs than PID 1's",
                Facts { here: Some(8), init: Some(7), ..reaching },
                Plan::UseThroughInit,
            ),
            ("ip netns exec on a host without bpffs", reaching, Plan::MountForInit),
            (
                "a private bpffs on a host without",
                Facts { here: Some(8), ..reaching },
                Plan::MountForInit,
            ),
            (
                "PID 1 out of reach, another bpffs than its",
                Facts { here: Some(8), init: Some(7), ..ALONE },
                Plan::UseHere { outlives_us: false },
            ),
            (
                "PID 1 out of reach, its bpffs hidden",
                Facts { init: Some(7), ..ALONE },
                Plan::MountHere { outlives_us: false },
            ),
            ("PID 1 out of reach, no bpffs", ALONE, Plan::MountHere { outlives_us: false }),
            (
                "guard is a container's first process",
                Facts { here: Some(7), is_init: true, ..sharing },
                Plan::UseHere { outlives_us: false },
            ),
            (
                "the same, without bpffs",
                Facts { is_init: true, ..sharing },
                Plan::MountHere { outlives_us: false },
            ),
            (
                "another path, on a bpffs that PID 1 has too",
                Facts { is_standard: false, here: Some(7), init: Some(7), ..reaching },
                Plan::UseHere { outlives_us: true },
            ),
            (
                "another path, on a bpffs of one's own",
                Facts { is_standard: false, here: Some(8), ..reaching },
                Plan::UseHere { outlives_us: false },
            ),
        ] {
            assert_eq!(decide(&facts), plan, "{situation}");
        }
    }

    #[test]
    fn notes_say_what_is_lost_and_why() {
        let pins = Path::new("/sys/fs/bpf/guard");
        assert_eq!(as_is(pins, true, Some("unused".into())).note, None);
        let note = as_is(pins, false, Some("guard is PID 1 here".into())).note.unwrap();
        assert!(note.contains("ends with guard (guard is PID 1 here)."), "{note}");
        assert_eq!(through_init(pins).path, Path::new("/proc/1/root/sys/fs/bpf/guard"));
    }

    #[test]
    fn device_numbers_as_mountinfo_has_them() {
        assert_eq!(device("0:41"), Some(41));
        assert_eq!(device("254:0"), Some(rustix::fs::makedev(254, 0)));
        assert_eq!(device("254"), None);
        // The same number as stat gives.
        let mounts = MountInfos::from_file("/proc/self/mountinfo").unwrap();
        let proc = mounts.iter().rfind(|mount| mount.mount_point == Path::new("/proc")).unwrap();
        assert_eq!(device(&proc.majmin), Some(fs::metadata("/proc").unwrap().dev()));
    }

    #[test]
    fn path_off_bpffs_is_refused() {
        let error = locate(Path::new("/proc/guard")).unwrap_err();
        assert!(matches!(error, BpffsError::NotBpffs { .. }), "{error}");
    }

    const SCENE: &str = "GUARD_TEST_BPFFS";

    /// Runs [`inside`] in mount and PID namespaces of its own, where a shell is PID 1.
    #[track_caller]
    fn play(scene: &str, prepare: &str) {
        let test = "host::bpffs::tests::inside";
        let script = format!(
            "mount --make-rprivate / && mount -t proc proc /proc && {prepare} \"$0\" --exact {test}"
        );
        let played = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--kill-child", "sh", "-c"])
            .arg(format!("{script}; exit $?"))
            .arg(std::env::current_exe().unwrap())
            .env(SCENE, scene)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&played.stdout);
        let ran = played.status.success() && output.contains("1 passed");
        assert!(ran, "{scene}: {output}{}", String::from_utf8_lossy(&played.stderr));
    }

    #[test]
    fn bpffs_of_pid_1_is_found_or_mounted_from_other_mount_namespaces() {
        crate::host::assert_root();
        // As ip netns exec does.
        let hide = "umount -l /sys && mount -t sysfs sysfs /sys";
        play("mount here", &format!("{hide} &&"));
        play("use here", &format!("{hide} && mount -t bpf bpf /sys/fs/bpf &&"));
        play("use here", &format!("{hide} && mount -t bpf bpf /sys/fs/bpf && unshare --mount"));
        play("mount for init", &format!("{hide} && unshare --mount"));
        let elsewhere = format!("{hide} && mount -t bpf bpf /sys/fs/bpf && unshare --mount sh -c");
        play("use through init", &format!("{elsewhere} '{hide} && exec \"$0\" \"$@\"'"));
    }

    /// What each scene of [`play`] comes to; nothing when it is run by itself.
    #[test]
    fn inside() {
        let Ok(scene) = std::env::var(SCENE) else { return };
        let pins = Path::new("/sys/fs/bpf/guard-test");
        let seen_by_init = bpffs_below(Path::new(INIT_ROOT), pins).unwrap();
        assert_eq!(seen_by_init.is_some(), scene.starts_with("use"), "{scene}");

        let found = locate(pins).unwrap();
        assert!(found.outlives_us);
        fs::create_dir(&found.path).unwrap();
        assert!(below(Path::new(INIT_ROOT), pins).is_dir(), "{scene}: {found:?}");
        assert_eq!(found.path != pins, scene.ends_with("init"), "{scene}: {found:?}");
        // Found again, not mounted over.
        assert_eq!(locate(pins).unwrap(), found);
        assert!(found.path.is_dir());
    }
}
