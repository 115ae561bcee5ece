//! A file of attempts, one JSON object a line. It may be rotated by guard, or by others: one that was renamed or removed is made
//! anew, and one that was cut is appended to.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::bounded_file;

/// Whoever may read the machine's logs reads it by its group.
const MODE: u32 = 0o640;

/// Which file, and when it is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    /// A file that would grow beyond it becomes `.1`.
    pub max_bytes: u64,
    /// A file that is older becomes `.1`, however small.
    pub max_age: Duration,
    /// How many of those are kept; with none, others rotate the file.
    pub keep: u32,
}

#[derive(Debug)]
pub struct LogFile {
    settings: Settings,
    open: Option<File>,
}

impl LogFile {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: None }
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// One sentence, when they can't be written. The file is opened anew next time.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        self.try_append(lines, SystemTime::now()).map_err(|error| {
            self.open = None;
            format!(
                "attempts can't be written to {}: {error}; they are counted, and `guard events` has the newest",
                self.settings.path.display()
            )
        })
    }

    fn try_append(&mut self, lines: &[u8], now: SystemTime) -> io::Result<()> {
        let mut file = self.current()?;
        let it = file.metadata()?;
        // Where the file system knows no birth, only its size counts.
        let age = it.created().ok().and_then(|made| now.duration_since(made).ok());
        let is_old = age.is_some_and(|age| age > self.settings.max_age);
        let is_full = it.len() + lines.len() as u64 > self.settings.max_bytes;
        if self.settings.keep > 0 && it.len() > 0 && (is_old || is_full) {
            self.rotate()?;
            file = self.current()?;
        }
        bounded_file::append_lines(&mut file, lines, |_| Ok(()))?;
        self.open = Some(file);
        Ok(())
    }

    /// The file that the path leads to now.
    fn current(&mut self) -> io::Result<File> {
        let path = &self.settings.path;
        if let Some(file) = self.open.take()
            && is_at(&file, path)?
        {
            return Ok(file);
        }
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        bounded_file::open_to_append(path, MODE)
    }

    fn rotate(&self) -> io::Result<()> {
        let path = &self.settings.path;
        for number in (1..self.settings.keep).rev() {
            match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(path, numbered(path, 1))
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn log(max_bytes: u64, keep: u32) -> (TempDir, PathBuf, LogFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/attempts.jsonl");
        let settings = Settings { path: path.clone(), max_bytes, max_age: DAY, keep };
        (directory, path, LogFile::new(settings))
    }

    fn held(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_are_appended_to_what_is_there() {
        let (_directory, path, mut log) = log(1_000, 3);
        log.append(b"1\n").unwrap();
        log.append(b"2\n").unwrap();
        assert_eq!(held(&path), "1\n2\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let mut later = LogFile::new(log.settings.clone());
        fs::write(&path, "1\n2\n{\"torn").unwrap();
        later.append(b"3\n").unwrap();
        assert_eq!(held(&path), "1\n2\n{\"torn\n3\n", "half a line stays alone");
    }

    #[test]
    fn a_full_file_is_rotated_and_only_so_many_are_kept() {
        let (_directory, path, mut log) = log(4, 2);
        for line in [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n", b"6\n", b"7\n"] {
            log.append(line).unwrap();
        }
        assert_eq!(held(&path), "7\n");
        assert_eq!(held(&numbered(&path, 1)), "5\n6\n");
        assert_eq!(held(&numbered(&path, 2)), "3\n4\n");
        assert!(!numbered(&path, 3).exists());
        log.append(b"longer than a file may be\n").unwrap();
        assert_eq!(held(&path), "longer than a file may be\n", "and still nothing is lost");
    }

    #[test]
    fn an_old_file_is_rotated_however_small() {
        let (_directory, path, mut log) = log(1_000, 2);
        log.append(b"1\n").unwrap();
        if fs::metadata(&path).unwrap().created().is_err() {
            println!("NOT RUN: this file system knows no birth of files");
            return;
        }
        let now = SystemTime::now();
        log.try_append(b"2\n", now + DAY / 2).unwrap();
        log.try_append(b"3\n", now + DAY * 2).unwrap();
        assert_eq!(held(&numbered(&path, 1)), "1\n2\n");
        assert_eq!(held(&path), "3\n");
    }

    #[test]
    fn others_may_rotate_it() {
        let (_directory, path, mut log) = log(4, 0);
        log.append(b"1\n2\n3\n").unwrap();
        log.append(b"4\n").unwrap();
        assert_eq!(held(&path), "1\n2\n3\n4\n", "with none kept it is theirs to do");
        fs::rename(&path, numbered(&path, 1)).unwrap();
        log.append(b"5\n").unwrap();
        assert_eq!(held(&path), "5\n", "renamed");
        fs::copy(&path, numbered(&path, 1)).unwrap();
        File::options().write(true).truncate(true).open(&path).unwrap();
        log.append(b"6\n").unwrap();
        assert_eq!(held(&path), "6\n", "copied and cut: no hole before it");
        fs::remove_file(&path).unwrap();
        log.append(b"7\n").unwrap();
        assert_eq!(held(&path), "7\n", "removed");
    }

    #[test]
    fn what_is_no_file_is_refused_with_a_sentence_and_taken_once_it_is_one() {
        let (directory, path, mut log) = log(1_000, 1);
        fs::create_dir_all(&path).unwrap();
        let problem = log.append(b"1\n").unwrap_err();
        assert!(problem.contains("attempts can't be written to"), "{problem}");
        fs::remove_dir(&path).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        log.append(b"1\n").unwrap_err();
        assert_eq!(held(&elsewhere), "", "no link is followed");
        fs::remove_file(&path).unwrap();
        log.append(b"1\n").unwrap();
        assert_eq!(held(&path), "1\n");
    }
}
