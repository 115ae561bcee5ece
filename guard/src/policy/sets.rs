//! Sets of prefixes from files: one prefix a line, `#` begins a comment.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    bounded_file,
    control::Failure,
    rule::{Rule, Source, quoted},
};

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;

/// The most prefixes of one file.
const MAX_PREFIXES: usize = 1_000_000;

/// Why a set could not be read. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error("the set {} can't be read: {why}", .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{}:{line}: {} is not an address or a prefix: {why}", .path.display(), quoted(.text))]
    BadLine { path: PathBuf, line: usize, text: String, why: String },
    #[error("the set {} holds more than {MAX_PREFIXES} prefixes", .path.display())]
    TooMany { path: PathBuf },
    #[error("the set {} has not been read", .path.display())]
    NotRead { path: PathBuf },
}

impl SetError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "Name a file that root can read.",
            Self::BadLine { .. } => "Write one address or prefix a line; # begins a comment.",
            Self::TooMany { .. } => "Use wider prefixes, or several files.",
            Self::NotRead { .. } => "Run `guard reload`.",
        }
    }
}

impl From<SetError> for Failure {
    fn from(error: SetError) -> Self {
        Self::failed(error.to_string(), error.fix())
    }
}

/// The sets as they were when they were read. They are read again by a reload only, so that no other change
/// puts a file's newer contents in force by the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets(HashMap<PathBuf, Arc<[IpNet]>>);

impl Sets {
    /// These, and the sets of these rules that have not been read.
    ///
    /// # Errors
    /// When one can't be read or holds anything but prefixes.
    pub fn completed(mut self, rules: &[Rule]) -> Result<Self, SetError> {
        for rule in rules {
            if let Source::File(path) = &rule.source
                && !self.0.contains_key(path)
            {
                self.0.insert(path.clone(), read(path)?.into());
            }
        }
        Ok(self)
    }

    /// # Errors
    /// [`SetError::NotRead`].
    pub fn prefixes(&self, path: &Path) -> Result<Arc<[IpNet]>, SetError> {
        self.0.get(path).cloned().ok_or_else(|| SetError::NotRead { path: path.to_owned() })
    }
}

fn read(path: &Path) -> Result<Vec<IpNet>, SetError> {
    let unreadable = |why: String| SetError::Unreadable { path: path.to_owned(), why };
    let bytes =
        bounded_file::read(path, MAX_BYTES).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not text".to_owned()))?;
    let mut prefixes = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let written = line.split('#').next().unwrap_or_default().trim();
        if written.is_empty() {
            continue;
        }
        let bad = |why: String| SetError::BadLine {
            path: path.to_owned(),
            line: number,
            text: written.to_owned(),
            why,
        };
        match written.parse::<Source>() {
            Ok(Source::Prefix(prefix)) => prefixes.push(prefix),
            Ok(_) => return Err(bad("a set holds no other sets".to_owned())),
            Err(error) => return Err(bad(error.to_string())),
        }
        if prefixes.len() > MAX_PREFIXES {
            return Err(SetError::TooMany { path: path.to_owned() });
        }
    }
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{policy::tests::rule, rule::Action};

    fn read_text(text: &str) -> Result<Vec<IpNet>, SetError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.txt");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn prefixes_and_addresses_stand_one_a_line() {
        let read =
            read_text("# office\n192.0.2.0/24\n\n  2001:db8::7 # printer\r\n10.0.0.1\n").unwrap();
        let expected = ["192.0.2.0/24", "2001:db8::7/128", "10.0.0.1/32"];
        assert_eq!(read, expected.map(|text| text.parse::<IpNet>().unwrap()));
        assert_eq!(read_text("").unwrap(), []);
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in ["192.0.2.1/24", "office", "lan", "@/etc/other", "192.0.2.0/24 10.0.0.0/8"] {
            let error = read_text(&format!("10.0.0.0/8\n{bad}\n")).unwrap_err();
            assert!(matches!(&error, SetError::BadLine { line: 2, .. }), "{error}");
            assert!(error.to_string().contains(bad), "{error}");
        }
        assert!(matches!(read(Path::new("/nowhere/at/all")), Err(SetError::Unreadable { .. })));
    }

    #[test]
    fn a_set_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.txt");
        fs::write(&path, "192.0.2.0/24").unwrap();
        let rules = [rule("1", Action::Allow, &format!("@{}", path.display()))];
        let sets = Sets::default().completed(&rules).unwrap();
        fs::remove_file(&path).unwrap();
        let sets = sets.completed(&rules).unwrap();
        assert_eq!(sets.prefixes(&path).unwrap().len(), 1);
        assert!(Sets::default().completed(&rules).is_err());
        assert!(Sets::default().prefixes(&path).is_err());
    }
}
