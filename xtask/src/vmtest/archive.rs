//! The first file system of a machine: an archive in the format "newc" of cpio, which the kernel unpacks by itself
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use anyhow::{Context as _, Result, ensure};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Files by their path in the guest, without the slash in front; `None` for a directory.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Option<Vec<u8>>>,
}

impl Archive {
    /// Puts a file at an absolute path, with all directories on the way to it. What was there is replaced.
    pub fn add(&mut self, path: &Path, content: Vec<u8>) -> Result<()> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => names.push(
                    name.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?,
                ),
                _ => ensure!(false, "{} is no plain absolute path", path.display()),
            }
        }
        for length in 1..names.len() {
            self.entries.entry(names[..length].join("/")).or_insert(None);
        }
        self.entries.insert(names.join("/"), Some(content));
        Ok(())
    }

    pub fn contains(&self, path: &Path) -> bool {
        path.to_str().is_some_and(|path| self.entries.contains_key(path.trim_start_matches('/')))
    }

    /// The whole archive. A directory stands before what is in it.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (number, (path, content)) in self.entries.iter().enumerate() {
            let mode = if content.is_some() { PROGRAM } else { DIRECTORY };
            let content = content.as_deref().unwrap_or_default();
            write_entry(&mut bytes, number + 1, path, mode, content)?;
        }
        write_entry(&mut bytes, 0, "TRAILER!!!", 0, &[])?;
        Ok(bytes)
    }
}

fn write_entry(
    bytes: &mut Vec<u8>,
    number: usize,
    path: &str,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let size = u32::try_from(content.len())
        .with_context(|| format!("{path} is too large for the guest: {} bytes", content.len()))?;
    // inode, mode, user, group, links, time, size, four device numbers, length of the name, checksum
    let fields = [number as u32, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, path.len() as u32 + 1, 0];
    bytes.extend(b"070701");
    for field in fields {
        bytes.extend(format!("{field:08x}").bytes());
    }
    bytes.extend(path.bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(content);
    pad(bytes);
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_would_write() {
        let mut archive = Archive::default();
        archive.add(Path::new("/a/b"), b"hello".to_vec()).unwrap();
        assert!(archive.contains(Path::new("/a/b")) && archive.contains(Path::new("/a")));
        assert!(!archive.contains(Path::new("/b")));
        let zeros = |count: usize| "00000000".repeat(count);
        let expected = [
            &format!("070701{:08x}{:08x}{}{:08x}{}", 1, 0o40755, zeros(2), 1, zeros(6)),
            "0000000200000000a\0\0\0",
            "\0",
        ];
        let bytes = archive.bytes().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let header = 110;
        assert!(text.starts_with(expected[0]), "{text}");
        assert_eq!(bytes.len() % 4, 0);
        // The directory: its header and "a", padded to four; then the file.
        let file = (header + 2_usize).next_multiple_of(4);
        assert_eq!(&text[file..file + 6], "070701");
        assert_eq!(&text[file + 54..file + 62], "00000005", "the size");
        assert_eq!(&text[file + header..file + header + 4], "a/b\0");
        let content = (file + header + 4).next_multiple_of(4);
        assert_eq!(&text[content..content + 5], "hello");
        assert!(text.contains("TRAILER!!!"));
    }

    #[test]
    fn only_absolute_paths_are_taken() {
        assert!(Archive::default().add(Path::new("/a/../b"), Vec::new()).is_err());
    }
}
