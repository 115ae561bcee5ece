//! `cargo xtask bench`: builds guard, the packet generator and `guard-bench`, which measures.

use anyhow::Result;

use crate::{
    command::{answer, run as run_command, without_cargo_variables},
    kernel_object::{OBJECT_VARIABLE, build_all, build_generator},
    setup::{self, Scope},
    test::BINARY_VARIABLE,
    workspace::Workspace,
};

/// Tells `guard-bench` where the packet generator is.
const GENERATOR_VARIABLE: &str = "GUARD_BENCH_OBJECT";

/// That nothing can be measured without root, `guard-bench` says itself.
pub fn run(
    workspace: &Workspace,
    quick: bool,
    only: &[String],
    case: Option<&str>,
    rounds: Option<u32>,
) -> Result<()> {
    let toolchain = setup::ensure(workspace, Scope::Test)?;
    let built = build_all(workspace, &toolchain)?;
    let generator = build_generator(workspace, &toolchain)?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--release", "--package", "guard-tests", "--bins"])
        .env(OBJECT_VARIABLE, &built.object);
    run_command(&mut cargo, "building guard-bench")?;

    let mut bench = without_cargo_variables(workspace.target.join("release/guard-bench"));
    bench
        .arg("--documentation")
        .arg(workspace.root.join("docs"))
        .arg("--results")
        .arg(workspace.target.join("bench"))
        .arg("--revision")
        .arg(revision(workspace).unwrap_or_else(|| "of unknown revision".into()))
        .env(BINARY_VARIABLE, &built.binary)
        .env(GENERATOR_VARIABLE, &generator);
    if quick {
        bench.arg("--quick");
    }
    if !only.is_empty() {
        bench.args(["--only", &only.join(",")]);
    }
    if let Some(case) = case {
        bench.args(["--case", case]);
    }
    if let Some(rounds) = rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    run_command(&mut bench, "the benchmark")
}

/// As its history names what is checked out; nothing where there is no history.
fn revision(workspace: &Workspace) -> Option<String> {
    let mut git = without_cargo_variables("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(&workspace.root);
    Some(answer(&mut git)?.trim().to_owned())
}
