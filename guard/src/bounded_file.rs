//! Reads files that somebody else may have written: regular ones only, and no more than a limit. And replaces guard's own whole, or
//! appends to them by whole lines.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use tempfile::NamedTempFile;

/// A file that was changed so recently may still be being written.
pub(crate) const SETTLED: Duration = Duration::from_secs(1);

/// Which file it was, as far as its directory entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    pub(crate) bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamp {
    /// Of the file that a path leads to; `None` where there is none.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let it = fs::metadata(path).ok()?;
        Some(Self {
            device: it.dev(),
            inode: it.ino(),
            bytes: it.size(),
            modified_ns: (it.mtime(), it.mtime_nsec()),
            changed_ns: (it.ctime(), it.ctime_nsec()),
        })
    }

    /// Whether it was changed long enough ago to be whole.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified_ns.max(self.changed_ns);
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds))
        else {
            return true;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        // One of the future is as settled as it will ever be.
        now.duration_since(changed).map_or(true, |age| age >= SETTLED)
    }
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: u64 },
}

/// The whole of a file.
///
/// # Errors
/// When it can't be read, is no regular file, or holds more than `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let mut bytes = Vec::new();
    // The length in the metadata proves nothing: the file may grow while it is read.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { limit });
    }
    Ok(bytes)
}

/// Puts a file with this content into a directory, which is made where it is absent; it is the old one or the new one after a
/// crash, and is called `.NAME.new` until then.
///
/// # Errors
/// When it can't be written; the file is as it was then.
pub(crate) fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let file = fresh(directory, name, content)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name))?;
    // The rename itself must survive a power cut as well.
    File::open(directory)?.sync_all()
}

/// As [`replace`], and nobody waits for the disk: after a power cut it may be spoiled.
pub(crate) fn replace_some_time(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    fresh(directory, name, content)?.persist(directory.join(name))?;
    Ok(())
}

/// As [`replace_some_time`], for everybody to read, and into a directory that is there.
pub(crate) fn replace_for_all(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    fs::metadata(directory)?;
    let file = fresh(directory, name, content)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(directory.join(name))?;
    Ok(())
}

/// A regular file to append to, which is made with this mode where it is absent; no link is followed.
///
/// # Errors
/// When it can't be opened, or is something else.
pub(crate) fn open_to_append(path: &Path, mode: u32) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Appends whole lines, and has `keep` see to it that they stay. Half a line, which a crash has left, stays alone.
///
/// # Errors
/// When they can't be written or kept: nothing of them is there then, as far as that can be had.
pub(crate) fn append_lines(
    file: &mut File,
    lines: &[u8],
    keep: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let length = file.metadata()?.len();
    let is_torn = length > 0 && last_byte(file, length)? != b'\n';
    let lines = [if is_torn { b"\n" } else { &b""[..] }, lines].concat();
    let written = file.write_all(&lines).and_then(|()| keep(file));
    if written.is_err() {
        // Where it can't be taken back, whoever reads skips half a line.
        let _ = file.set_len(length);
    }
    written
}

fn last_byte(file: &mut File, length: u64) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn fresh(directory: &Path, name: &str, content: &[u8]) -> io::Result<NamedTempFile> {
    let fresh_name = format!(".{name}.new");
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Of one name, so that one which a crash has left is not there for ever.
    match fs::remove_file(directory.join(&fresh_name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Only its owner can read it, and it goes where it can't be written.
    let mut fresh = tempfile::Builder::new();
    let mut file = fresh.prefix(&fresh_name).rand_bytes(0).tempfile_in(directory)?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_most_that_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(ReadError::TooLarge { limit: 4 })));
    }

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path(), 5), Err(ReadError::NotRegular)));
        assert!(matches!(read(Path::new("/dev/null"), 5), Err(ReadError::NotRegular)));
        let missing = read(&directory.path().join("missing"), 5);
        assert!(
            matches!(missing, Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound)
        );
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(read(&fifo, 5), Err(ReadError::NotRegular)));
    }
}
