//! Where the sources and what is built from them lie.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::command::with_variables_kept;

/// The checkout that this xtask was built from.
pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's target directory: `CARGO_TARGET_DIR` where it is set, else `target`.
    pub target: PathBuf,
}

impl Workspace {
    pub fn of_this_crate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the xtask crate does not lie in a workspace")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => env::current_dir()
                .context("the current directory could not be read")?
                .join(directory),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The cargo that runs this xtask, for everything but the kernel programs.
    pub fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = with_variables_kept(cargo);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Where xtask keeps the programs that it builds for itself.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}
