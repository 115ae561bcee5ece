//! Where guard's objects are kept in a bpffs, so that they outlive its process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use guard_common::abi::{ABI_VERSION, map, program};

use super::KernelError;

/// The pin directory of a layout: `<pins>/v1`.
#[derive(Clone, Debug)]
pub struct Pins {
    /// `<pins>`.
    root: PathBuf,
    pub(super) layout: u32,
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
        Self { root, layout: ABI_VERSION, instance }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn layout(&self) -> PathBuf {
        self.root.join(format!("v{}", self.layout))
    }

    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn programs(&self) -> PathBuf {
        self.layout().join("programs")
    }

    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// The directories of this layout.
    #[must_use]
    pub fn directories(&self) -> [PathBuf; 3] {
        [self.maps(), self.programs(), self.links()]
    }

    /// Whether all maps and programs of this layout are there.
    #[must_use]
    pub fn are_complete(&self) -> bool {
        map::ALL.iter().all(|name| self.map(name).exists())
            && program::EVERYWHERE.iter().all(|name| self.program(name).exists())
    }

    /// The numbers of the layouts that other versions of guard have left, in order.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn other_layouts(&self) -> Result<Vec<u32>, KernelError> {
        let failed = |source| KernelError::Pin { what: "reading", path: self.root.clone(), source };
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut others = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // What has another name is not ours.
            let number = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            others.extend(number.filter(|number| *number != self.layout));
        }
        others.sort_unstable();
        Ok(others)
    }

    /// The newest layout before this one, which an older guard has left.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn older(&self) -> Result<Option<Self>, KernelError> {
        let older = self.other_layouts()?.into_iter().rfind(|number| *number < self.layout);
        Ok(older.map(|layout| Self { layout, ..self.clone() }))
    }

    /// # Errors
    /// [`KernelError::Newer`] where a guard of a later layout is in force, which this one does not understand.
    pub fn refuse_newer(&self) -> Result<(), KernelError> {
        match self.other_layouts()?.last() {
            Some(newest) if *newest > self.layout => Err(KernelError::Newer { layout: *newest }),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`KernelError::Older`] where a guard of an earlier layout is in force.
    pub fn refuse_older(&self) -> Result<(), KernelError> {
        match self.older()? {
            Some(older) => Err(KernelError::Older { layout: older.layout }),
            None => Ok(()),
        }
    }

    /// Removes this layout's pins, and the directory where nothing else is in it.
    ///
    /// # Errors
    /// When one can't be removed.
    pub fn remove(&self) -> Result<(), KernelError> {
        remove(self.layout())?;
        // It stays where there is more in it.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }

    /// # Errors
    /// When a directory can't be made.
    pub fn make_directories(&self) -> Result<(), KernelError> {
        for path in self.directories() {
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
        remove(self.root.clone())
    }
}

fn remove(path: PathBuf) -> Result<(), KernelError> {
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { what: "removing", path, source: error })
        }
        _ => Ok(()),
    }
}
