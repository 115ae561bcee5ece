//! Locks between tests, also those of other processes.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

const DIRECTORY: &str = "/run/lock";

/// A file that exists while somebody holds it.
#[derive(Debug)]
pub struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    /// Waits until nobody else has this name.
    #[must_use]
    pub fn take(name: &str) -> Self {
        let path = Path::new(DIRECTORY).join(format!("{name}.lock"));
        loop {
            let file = open(&path);
            lock(&file, &path, FlockOperation::LockExclusive);
            // Whoever held it before has removed the file: then this lock is on a file that no one else will find.
            if is_same_file(&file, &path) {
                return Self { path, _file: file };
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Removed while it is still held, so that nobody can be waiting on a name that is in use.
        let _ = fs::remove_file(&self.path);
    }
}

/// The machine, shared by tests whose backstop sees their own cgroup only, or held alone by the one whose backstop sees
/// every socket there is. Its two lock files belong to no test and stay.
#[derive(Debug)]
pub struct MachineLock {
    _files: Vec<File>,
}

impl MachineLock {
    #[must_use]
    pub fn shared() -> Self {
        let (gate, machine) = Self::open();
        // Waits behind a test that waits to be alone: otherwise it might never be its turn.
        drop(gate.locked(FlockOperation::LockShared));
        Self { _files: vec![machine.locked(FlockOperation::LockShared)] }
    }

    #[must_use]
    pub fn alone() -> Self {
        let (gate, machine) = Self::open();
        let gate = gate.locked(FlockOperation::LockExclusive);
        Self { _files: vec![gate, machine.locked(FlockOperation::LockExclusive)] }
    }

    fn open() -> (Opened, Opened) {
        (Opened::new("guard-test-gate.lock"), Opened::new("guard-test-machine.lock"))
    }
}

struct Opened {
    path: PathBuf,
    file: File,
}

impl Opened {
    fn new(name: &str) -> Self {
        let path = Path::new(DIRECTORY).join(name);
        Self { file: open(&path), path }
    }

    fn locked(self, operation: FlockOperation) -> File {
        lock(&self.file, &self.path, operation);
        self.file
    }
}

fn open(path: &Path) -> File {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("the lock {} can't be opened: {error}", path.display()))
}

fn lock(file: &File, path: &Path, operation: FlockOperation) {
    flock(file, operation)
        .unwrap_or_else(|error| panic!("{} can't be locked: {error}", path.display()));
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}
