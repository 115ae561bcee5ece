//! Remembering what the tests last passed with, so that they need not run again on the same.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// A number for everything that a test's outcome can depend on: sources, lock file, compilers,
/// kernel, and the programs built from them.
///
/// It is no protection against a forger: who can write here can change the tests as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// `facts` are the versions of what is not part of the workspace; `built` are files that were
    /// made from it.
    pub fn of(workspace: &Workspace, facts: &[String], built: &[&Path]) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        let mut files = Vec::new();
        collect(&workspace.root, &workspace.target, &mut files)
            .context("the sources could not be listed")?;
        files.sort();
        for file in files.iter().map(PathBuf::as_path).chain(built.iter().copied()) {
            file.hash(&mut hasher);
            contents(file)
                .with_context(|| format!("{} could not be read", file.display()))?
                .hash(&mut hasher);
        }
        Ok(Self(hasher.finish()))
    }

    fn text(self) -> String {
        format!("{:016x}\n", self.0)
    }
}

/// Every file below `directory` but what git and cargo keep there.
fn collect(directory: &Path, target: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        // `target` by name, too: what an earlier run with another CARGO_TARGET_DIR has left.
        if path == target || entry.file_name() == ".git" || entry.file_name() == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, target, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// A file's contents, or a symbolic link's destination.
fn contents(file: &Path) -> io::Result<Vec<u8>> {
    if fs::symlink_metadata(file)?.is_symlink() {
        Ok(fs::read_link(file)?.into_os_string().into_encoded_bytes())
    } else {
        fs::read(file)
    }
}

fn file_of(workspace: &Workspace) -> PathBuf {
    workspace.target.join("xtask-test.stamp")
}

/// How long ago the tests passed with `stamp`, if that was their last pass.
pub fn last_pass(workspace: &Workspace, stamp: Stamp) -> Option<Duration> {
    let file = file_of(workspace);
    if fs::read_to_string(&file).ok()? != stamp.text() {
        return None;
    }
    let passed = fs::metadata(&file).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(passed).unwrap_or_default())
}

/// Remembers that the tests pass with `stamp`.
pub fn remember(workspace: &Workspace, stamp: Stamp) -> Result<()> {
    let file = file_of(workspace);
    fs::write(&file, stamp.text())
        .with_context(|| format!("{} could not be written", file.display()))
}

/// Forgets the last pass: a run that fails or is broken off leaves none.
pub fn forget(workspace: &Workspace) -> Result<()> {
    let file = file_of(workspace);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} could not be removed", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small workspace of its own, removed when the test ends.
    struct World(Workspace);

    impl World {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("guard-xtask-{name}-{}", std::process::id()));
            for directory in ["src", "target", ".git"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            fs::write(root.join("src/lib.rs"), "one").unwrap();
            let target = root.join("target");
            Self(Workspace { root, target })
        }

        fn stamp(&self) -> Stamp {
            Stamp::of(&self.0, &["rustc 1".into()], &[]).unwrap()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0.root).unwrap();
        }
    }

    #[test]
    fn a_changed_new_or_renamed_source_changes_the_stamp() {
        let world = World::new("sources");
        let root = &world.0.root;
        let first = world.stamp();
        assert_eq!(world.stamp(), first);
        fs::write(root.join("src/lib.rs"), "two").unwrap();
        let changed = world.stamp();
        assert_ne!(changed, first);
        fs::write(root.join("src/new.rs"), "").unwrap();
        let added = world.stamp();
        assert_ne!(added, changed);
        fs::rename(root.join("src/new.rs"), root.join("src/other.rs")).unwrap();
        assert_ne!(world.stamp(), added);
    }

    #[test]
    fn what_cargo_and_git_keep_does_not() {
        let world = World::new("kept");
        let first = world.stamp();
        fs::write(world.0.root.join(".git/index"), "x").unwrap();
        fs::write(world.0.target.join("object"), "x").unwrap();
        assert_eq!(world.stamp(), first);
    }

    #[test]
    fn versions_and_built_files_are_part_of_it() {
        let world = World::new("built");
        let object = world.0.target.join("object");
        fs::write(&object, "one").unwrap();
        let stamp = |fact: &str| Stamp::of(&world.0, &[fact.into()], &[&object]).unwrap();
        let first = stamp("rustc 1");
        assert_ne!(stamp("rustc 2"), first);
        fs::write(&object, "two").unwrap();
        assert_ne!(stamp("rustc 1"), first);
    }

    #[test]
    fn only_the_last_pass_is_remembered() {
        let world = World::new("pass");
        let stamp = world.stamp();
        assert_eq!(last_pass(&world.0, stamp), None);
        remember(&world.0, stamp).unwrap();
        assert!(last_pass(&world.0, stamp).is_some());
        assert_eq!(last_pass(&world.0, Stamp(stamp.0.wrapping_add(1))), None);
        forget(&world.0).unwrap();
        forget(&world.0).unwrap();
        assert_eq!(last_pass(&world.0, stamp), None);
    }
}
