//! Where guard's objects are kept in a bpffs, so that they outlive its process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use guard_common::abi::{ABI_VERSION, map, program};

use super::KernelError;

/// The pin directory of this layout: `<pins>/v1`.
#[derive(Clone, Debug)]
pub struct Pins {
    /// `<pins>`.
    root: PathBuf,
    /// The number that tells this guard's programs from another's, see `PolicyHeader::instance`.
    pub instance: u64,
}

impl Pins {
    /// `root` is where the pins are reached; `name` is the path as configured, which is the same seen from every mount
    /// namespace.
    #[must_use]
    pub fn new(root: PathBuf, name: &Path) -> Self {
        // FNV-1a, 64 bits: no more is wanted than that two names rarely share a number.
        let instance = name
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Self { root, instance }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn layout(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.layout().join("programs").join(name)
    }

    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// Whether all maps and programs of this layout are there.
    #[must_use]
    pub fn are_complete(&self) -> bool {
        map::ALL.iter().all(|name| self.map(name).exists())
            && program::EVERYWHERE.iter().all(|name| self.program(name).exists())
    }

    /// Other layouts' directories, which another version of guard has left.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let mut others = Vec::new();
        match fs::read_dir(&self.root) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry?.path();
                    if path != self.layout() {
                        others.push(path);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(others)
    }

    /// # Errors
    /// When a directory can't be made.
    pub fn make_directories(&self) -> Result<(), KernelError> {
        for path in [self.maps(), self.layout().join("programs"), self.links()] {
            fs::create_dir_all(&path).map_err(|source| KernelError::Pin {
                what: "making the pin directory",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Removes every pin and directory of guard's. Objects that nothing else holds go with them.
    ///
    /// # Errors
    /// When one can't be removed.
    pub fn remove_all(&self) -> Result<(), KernelError> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::Pin { what: "removing", path: self.root.clone(), source: error })
            }
            _ => Ok(()),
        }
    }
}
