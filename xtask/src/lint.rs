//! `cargo xtask lint`: what can be said of the code without running it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::{
    command::{answer, find_program, run as run_command},
    toolchain::{KernelTask, Next, choose, look},
    workspace::Workspace,
};

/// What became of one check.
enum Outcome {
    Passed,
    Failed(anyhow::Error),
    /// It could not be made here: why, and how to have it.
    Skipped(String),
}

/// Makes every check, also after one has failed.
pub fn run(workspace: &Workspace) -> Result<()> {
    let checks = [
        ("the lock file", checked(&mut lock_file(workspace), "the lock file check")),
        ("the format", checked(&mut format(workspace), "the format check")),
        ("clippy", checked(&mut clippy(workspace), "clippy")),
        ("clippy for the kernel programs", clippy_for_bpf(workspace)),
        ("the dependencies", dependencies(workspace)),
    ];
    let mut failed = Vec::new();
    for (name, outcome) in checks {
        match outcome {
            Outcome::Passed => eprintln!("xtask: {name}: passed"),
            Outcome::Skipped(why) => eprintln!("xtask: {name}: NOT CHECKED: {why}"),
            Outcome::Failed(error) => {
                eprintln!("xtask: {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("these checks failed: {}", failed.join(", "));
    }
    Ok(())
}

fn checked(command: &mut Command, what: &str) -> Outcome {
    match run_command(command, what) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(error),
    }
}

/// Fails when `Cargo.lock` does not hold what the manifests ask for.
fn lock_file(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--locked", "--format-version", "1"]).stdout(Stdio::null());
    cargo
}

fn format(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["fmt", "--all", "--check"]);
    cargo
}

/// The kernel programs are left out: in one build with the others they get their features.
fn clippy(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["clippy", "--workspace", "--exclude", "guard-ebpf", "--all-targets"]);
    cargo.args(["--", "--deny", "warnings"]);
    cargo
}

fn clippy_for_bpf(workspace: &Workspace) -> Outcome {
    let toolchain = match choose(&look(workspace)) {
        Next::Use(toolchain) => toolchain,
        Next::Install(_) | Next::BuildLinker => {
            return Outcome::Skipped(
                "there is no BPF toolchain; `cargo xtask setup --lint` installs it".into(),
            );
        }
    };
    if let Err(remedy) = toolchain.clippy() {
        return Outcome::Skipped(format!("its clippy is not installed; {remedy} brings it"));
    }
    let target = workspace.target.join("bpf");
    match toolchain.cargo(KernelTask::Clippy, &workspace.root, &target) {
        Ok(mut cargo) => {
            checked(cargo.args(["--", "--deny", "warnings"]), "clippy for the kernel programs")
        }
        Err(error) => Outcome::Failed(error),
    }
}

fn dependencies(workspace: &Workspace) -> Outcome {
    if find_program("cargo-deny").is_none() {
        return Outcome::Skipped("`cargo install cargo-deny --locked` brings the check".into());
    }
    // Advisories come over the network: without them the other checks are made all the same.
    let mut database = workspace.cargo();
    let mut check = workspace.cargo();
    // A skip that is no longer needed goes.
    check.args(["deny", "check", "--deny", "unmatched-skip"]);
    if answer(database.args(["deny", "fetch", "db"])).is_none() {
        eprintln!("xtask: the advisories could not be fetched: dependencies are checked without");
        check.args(["bans", "licenses", "sources"]);
    }
    checked(&mut check, "cargo deny")
}
