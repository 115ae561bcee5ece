//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`.
//!
//! What the fuzzer makes itself goes below the target directory; `tests/fuzz/corpus` is read only.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{answer, find_program, run as run_command},
    toolchain::rustup,
    workspace::Workspace,
};

/// The release of cargo-fuzz that is built where there is none.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// One input may take so long; the targets need a fraction of a second.
const INPUT_SECONDS: u32 = 20;

/// Builds the fuzzer, and runs each of these targets (all, where none is named) for so long.
pub fn run(workspace: &Workspace, seconds: u32, wanted: &[String]) -> Result<()> {
    let targets = chosen(&all(workspace)?, wanted)?;
    if let Some(missing) = missing() {
        println!("NOT FUZZED: {missing}");
        return Ok(());
    }
    let program = ensure_cargo_fuzz(workspace)?;
    let fuzz = |task: &str| {
        let mut command = rustup();
        command
            .args(["run", "nightly"])
            .arg(&program)
            .args([task, "--fuzz-dir"])
            .arg(directory(workspace))
            .arg("--target-dir")
            .arg(workspace.target.join("fuzz"));
        command
    };
    run_command(&mut fuzz("build"), "building the fuzzer")?;
    let mut broken = Vec::new();
    for target in targets {
        println!("xtask: fuzzing {target} for {seconds} seconds");
        let found = workspace.target.join("fuzz/corpus").join(&target);
        fs::create_dir_all(&found)
            .with_context(|| format!("{} could not be made", found.display()))?;
        let mut command = fuzz("run");
        // New inputs are written to the first directory.
        command.arg(&target).arg(found).arg(directory(workspace).join("corpus").join(&target));
        limit(&mut command, seconds);
        if let Err(error) = run_command(&mut command, &format!("fuzzing {target}")) {
            eprintln!("xtask: {error:#}");
            broken.push(target);
        }
    }
    if !broken.is_empty() {
        bail!(
            "these targets broke: {}: the inputs are in tests/fuzz/artifacts; fix what they show \
             and keep them in tests/fuzz/crashes, where the tests replay them",
            broken.join(", ")
        );
    }
    Ok(())
}

fn limit(command: &mut Command, seconds: u32) {
    command
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"));
}

fn directory(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/fuzz")
}

/// The targets, by name.
fn all(workspace: &Workspace) -> Result<Vec<String>> {
    let programs = directory(workspace).join("fuzz_targets");
    let unreadable = || format!("{} could not be read", programs.display());
    let mut names = Vec::new();
    for file in fs::read_dir(&programs).with_context(unreadable)? {
        let name = file.with_context(unreadable)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".rs")).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The targets that are asked for: all, where none is named.
fn chosen(all: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown}: name some of {}", all.join(", "));
    }
    Ok(if wanted.is_empty() { all.to_vec() } else { wanted.to_vec() })
}

/// What the fuzzer needs and this machine lacks, and how to have it.
fn missing() -> Option<&'static str> {
    if answer(rustup().args(["which", "--toolchain", "nightly", "cargo"])).is_none() {
        // libFuzzer's instrumentation has no name in stable Rust.
        Some("there is no nightly Rust; `rustup toolchain install nightly` brings it")
    } else if find_program("c++").is_none() {
        Some("there is no C++ compiler for libFuzzer; Debian's package g++ brings it")
    } else {
        None
    }
}

/// cargo-fuzz: the one on `PATH`, or one that is built once.
fn ensure_cargo_fuzz(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.tools();
    let own = tools.join("bin/cargo-fuzz");
    if let Some(program) = find_program("cargo-fuzz").or_else(|| own.is_file().then(|| own.clone()))
    {
        return Ok(program);
    }
    eprintln!("xtask: building cargo-fuzz {CARGO_FUZZ_VERSION} into {}: once", tools.display());
    let mut cargo = workspace.cargo();
    cargo
        .args(["install", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION, "--locked", "--root"])
        .arg(&tools)
        // It only starts others.
        .arg("--debug")
        // Without it cargo builds in a directory of its own and removes that afterwards.
        .env_remove("CARGO_TARGET_DIR");
    run_command(&mut cargo, "building cargo-fuzz")?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_names_every_target_is_fuzzed() {
        let all = ["event".to_owned(), "parser".to_owned()];
        assert_eq!(chosen(&all, &[]).unwrap(), all);
        assert_eq!(chosen(&all, &all[1..]).unwrap(), ["parser"]);
    }

    #[test]
    fn a_target_that_is_none_is_named_with_those_that_are() {
        let all = ["event".to_owned(), "parser".to_owned()];
        let error = chosen(&all, &["packets".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "there is no fuzz target packets: name some of event, parser");
    }

    #[test]
    fn the_targets_are_the_programs() {
        let workspace = Workspace::of_this_crate().unwrap();
        let targets = all(&workspace).unwrap();
        assert!(targets.contains(&"parser".to_owned()), "{targets:?}");
        for target in targets {
            assert!(directory(&workspace).join("corpus").join(&target).is_dir(), "{target}");
        }
    }
}
