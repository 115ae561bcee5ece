//! One process at a time changes what is in force: the daemon as long as it lives, else a command.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::KernelError;

/// A command holds the lock for well under a second.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(50);

/// Held until it is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, whose directory is made where it is missing. A command that holds it for a moment is waited for.
    ///
    /// # Errors
    /// [`KernelError::Locked`] when another process holds it; else when the file can't be had.
    pub fn take(path: &Path) -> Result<Self, KernelError> {
        let failed =
            |source| KernelError::Pin { what: "taking the lock", path: path.into(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let given_up = Instant::now() + PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < given_up => sleep(RETRY),
                Err(Errno::WOULDBLOCK) => {
                    return Err(KernelError::Locked { pid: read_pid(&mut file) });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// The process that holds the lock at `path`, when one does.
    #[must_use]
    pub fn holder(path: &Path) -> Option<u32> {
        let mut file = File::open(path).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Some(read_pid(&mut file)),
            _ => None,
        }
    }
}

/// 0 when the holder has not written its number yet.
fn read_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(16).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}
