//! Building guard: first the kernel programs, then the binary that carries them; and the benchmark's packet generator.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::run,
    toolchain::{BPF_TARGET, KernelTask, Toolchain},
    workspace::Workspace,
};

/// Tells `guard`'s build script which object to embed, and the tests which one to load.
pub const OBJECT_VARIABLE: &str = "GUARD_EBPF_OBJECT";

/// What a build leaves.
pub struct Built {
    /// The kernel programs.
    pub object: PathBuf,
    /// `guard` itself.
    pub binary: PathBuf,
}

/// Builds both; seconds when nothing has changed.
pub fn build_all(workspace: &Workspace, toolchain: &Toolchain) -> Result<Built> {
    let object = build_object(workspace, toolchain, "guard-ebpf")?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--release", "--package", "guard", "--bin", "guard"])
        .env(OBJECT_VARIABLE, &object);
    run(&mut cargo, "building guard")?;
    let binary = workspace.target.join("release/guard");
    ensure!(binary.is_file(), "building guard left no {}", binary.display());
    Ok(Built { object, binary })
}

/// Builds a guard whose kernel tables have a layout that no release has, for tests of the upgrade to one.
pub fn build_next_layout(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    const FEATURE: [&str; 2] = ["--features", "next-layout"];
    let directory = workspace.target.join("next-layout");
    let target = directory.join("bpf");
    let mut cargo = toolchain.cargo(KernelTask::Build, &workspace.root, &target)?;
    cargo.args(["--bin", "guard-ebpf"]).args(FEATURE);
    run(&mut cargo, "building the kernel programs of another layout")?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--package", "guard", "--bin", "guard"])
        .args(FEATURE)
        .env(OBJECT_VARIABLE, target.join(BPF_TARGET).join("release/guard-ebpf"));
    run(&mut cargo, "building guard with another layout")?;
    // Where it is made the tests' own build makes the other one.
    let binary = directory.join("guard");
    fs::copy(workspace.target.join("debug/guard"), &binary)
        .with_context(|| format!("{} could not be made", binary.display()))?;
    Ok(binary)
}

/// Builds the packet generator of the benchmark.
pub fn build_generator(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    build_object(workspace, toolchain, "guard-ebpf-bench")
}

fn build_object(workspace: &Workspace, toolchain: &Toolchain, name: &str) -> Result<PathBuf> {
    let target = workspace.target.join("bpf");
    let mut cargo = toolchain.cargo(KernelTask::Build, &workspace.root, &target)?;
    run(cargo.args(["--bin", name]), "building the kernel programs")?;
    let object = target.join(BPF_TARGET).join("release").join(name);
    ensure!(object.is_file(), "building the kernel programs left no {}", object.display());
    Ok(object)
}
