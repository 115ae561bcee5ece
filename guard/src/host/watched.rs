//! Word of changes in directories, from inotify: `rename` and the closing of a file that was written, which is how a file gets
//! another content.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};

/// Of several directories.
#[derive(Debug)]
pub struct Watched(OwnedFd);

impl Watched {
    /// Watches these, as far as they are there.
    ///
    /// # Errors
    /// When the system has no more watches to give.
    pub fn open(directories: &[PathBuf]) -> io::Result<Self> {
        let watched = Self(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        watched.watch(directories);
        Ok(watched)
    }

    /// Watches these, too: one that was made anew is another one of the same name. Those that are not there are looked for from
    /// time to time.
    pub fn watch(&self, directories: &[PathBuf]) {
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE;
        for directory in directories {
            if let Err(error) = inotify::add_watch(&self.0, directory, changes) {
                log::debug!("{} is not watched: {error}", directory.display());
            }
        }
    }

    /// Forgets what has come.
    pub fn forget(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while !matches!(rustix::io::read(&self.0, &mut buffer[..]), Err(error) if error != Errno::INTR)
        {
        }
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
