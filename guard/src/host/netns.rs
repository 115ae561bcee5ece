//! The other network namespaces of this host: its containers', above all.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    panic,
    path::{Path, PathBuf},
    thread,
};

use procfs::{FromRead, process::MountInfos};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// Namespaces that are entered, at most.
const MOST: usize = 4096;

/// A network namespace that stays as long as this is held.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// How it was found.
    path: PathBuf,
}

impl Namespace {
    /// Opens the namespace that this file stands for (`/proc/PID/ns/net`, or where one is mounted).
    ///
    /// # Errors
    /// When it has gone, or the process is none that this one may look into.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_owned() })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does some work in it, on a thread that has moved there and ends with the work: the caller's stays where it is.
    ///
    /// # Errors
    /// When it can't be entered, as by root of another user namespace, or no thread can be started.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let worker = thread::Builder::new().spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })?;
            worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }
}

/// Every other network namespace than the calling thread's in which a process lives, or that is mounted somewhere (as `ip netns`
/// and container engines do). One that goes meanwhile is logged and left out.
pub fn others() -> impl Iterator<Item = Namespace> {
    let own = fs::metadata(OWN).map(|metadata| metadata.ino());
    if let Err(error) = &own {
        log::warn!("this process's own network namespace is not known: {error}");
    }
    let mut seen = HashSet::from_iter(own.ok());
    let mut paths = of_processes();
    paths.extend(mounted());
    paths.into_iter().filter_map(move |path| new(&path, &mut seen))
}

/// The namespace at this path, unless it was seen before.
fn new(path: &Path, seen: &mut HashSet<u64>) -> Option<Namespace> {
    // A process that has ended meanwhile, or is none of ours to look into, says nothing.
    let inode = fs::metadata(path).ok()?.ino();
    if seen.contains(&inode) {
        return None;
    }
    if seen.len() > MOST {
        log::warn!("there are more than {MOST} network namespaces; {} is left out", path.display());
        return None;
    }
    match Namespace::open(path) {
        Ok(namespace) => {
            seen.insert(inode);
            Some(namespace)
        }
        Err(error) => {
            log::info!("the network namespace {} has gone meanwhile: {error}", path.display());
            None
        }
    }
}

fn of_processes() -> Vec<PathBuf> {
    let processes = match fs::read_dir("/proc") {
        Ok(processes) => processes,
        Err(error) => {
            log::warn!("the processes in /proc could not be listed: {error}");
            return Vec::new();
        }
    };
    let is_process =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    processes
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
        .map(|entry| entry.path().join("ns/net"))
        .collect()
}

/// Where network namespaces are mounted: such a mount's root reads `net:[INODE]`.
fn mounted() -> Vec<PathBuf> {
    match MountInfos::from_file("/proc/thread-self/mountinfo") {
        Ok(mounts) => mounts
            .0
            .into_iter()
            .filter(|mount| mount.fs_type == "nsfs" && mount.root.starts_with("net:"))
            .map(|mount| mount.mount_point)
            .collect(),
        Err(error) => {
            log::warn!("the list of mounts could not be read: {error}");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::host::assert_root;

    /// A process in a network namespace of its own, until it is dropped.
    struct Elsewhere(Child);

    impl Elsewhere {
        fn new() -> Self {
            let child = Command::new("unshare")
                .args(["--net", "sleep", "60"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let elsewhere = Self(child);
            let deadline = Instant::now() + Duration::from_secs(30);
            while elsewhere.inode() == fs::metadata(OWN).unwrap().ino() {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(10));
            }
            elsewhere
        }

        fn path(&self) -> PathBuf {
            PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
        }

        fn inode(&self) -> u64 {
            fs::metadata(self.path()).unwrap().ino()
        }
    }

    impl Drop for Elsewhere {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn inode(namespace: &Namespace) -> u64 {
        namespace.file.metadata().unwrap().ino()
    }

    #[test]
    fn each_other_namespace_is_found_once_and_the_own_never() {
        assert_root();
        let elsewhere = [Elsewhere::new(), Elsewhere::new()];
        let found: Vec<u64> = others().map(|namespace| inode(&namespace)).collect();
        for one in &elsewhere {
            assert_eq!(found.iter().filter(|inode| **inode == one.inode()).count(), 1);
        }
        assert!(!found.contains(&fs::metadata(OWN).unwrap().ino()));
        assert_eq!(HashSet::<&u64>::from_iter(&found).len(), found.len());
    }

    #[test]
    fn work_is_done_there_and_the_caller_stays_here() {
        assert_root();
        let elsewhere = Elsewhere::new();
        let own = fs::metadata(OWN).unwrap().ino();
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let namespace = Namespace::open(&elsewhere.path()).unwrap();
        let address = here.local_addr().unwrap();
        let (there, same_port) = namespace
            .inside(|| (fs::metadata(OWN).unwrap().ino(), TcpListener::bind(address).is_err()))
            .unwrap();
        assert_eq!(there, elsewhere.inode());
        // Not even loopback is up there, and whoever binds the address does so beside the one here.
        assert!(!same_port);
        assert_eq!(fs::metadata(OWN).unwrap().ino(), own);
    }

    #[test]
    fn a_namespace_that_is_held_outlives_its_processes() {
        assert_root();
        let elsewhere = Elsewhere::new();
        let path = elsewhere.path();
        let namespace = Namespace::open(&path).unwrap();
        let inode = elsewhere.inode();
        drop(elsewhere);
        let there = namespace.inside(|| fs::metadata(OWN).unwrap().ino()).unwrap();
        assert_eq!(there, inode);
        assert!(Namespace::open(&path).is_err());
        assert!(new(&path, &mut HashSet::new()).is_none());
    }

    #[test]
    fn what_is_no_namespace_is_not_entered() {
        let namespace = Namespace::open(Path::new("/proc/version")).unwrap();
        assert!(namespace.inside(|| ()).is_err());
    }
}
