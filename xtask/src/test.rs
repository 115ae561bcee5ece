//! `cargo xtask test`: every test there is, in one order, unattended.

use std::{env, ffi::OsString, fs, num::NonZero, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{answer, run as run_command, with_variables_kept},
    kernel_object::{Built, OBJECT_VARIABLE, build_all, build_next_layout},
    setup::{self, Scope},
    stamp::{self, Stamp},
    toolchain::Toolchain,
    workspace::Workspace,
};

/// Tells the end-to-end tests which program to test.
pub const BINARY_VARIABLE: &str = "GUARD_BIN";

/// Tells them which one has kernel tables of the next layout.
const NEXT_LAYOUT_VARIABLE: &str = "GUARD_NEXT_LAYOUT_BIN";

/// How many tests run side by side, of Rust's test runner; whoever has set it is asked nothing.
const THREADS_VARIABLE: &str = "RUST_TEST_THREADS";

/// On each processor: most tests wait most of the time.
const TESTS_PER_PROCESSOR: usize = 2;

/// The runs, in order: the quick ones first, and the end-to-end tests last, so that theirs is the
/// summary at the end. All select the same packages: cargo then builds every dependency once.
const RUNS: [(&str, &[&str]); 3] = [
    ("the unit tests", &["--lib", "--bins"]),
    ("the tests in the documentation", &["--doc"]),
    ("the end-to-end tests", &["--test", "*"]),
];

pub fn run(workspace: &Workspace, force: bool, arguments: &[OsString]) -> Result<()> {
    if !setup::is_root()? {
        bail!(
            "the tests load kernel programs and make network namespaces, which needs root: run \
             `cargo xtask test` as root, or `cargo test` for the unit tests alone"
        );
    }
    let toolchain = setup::ensure(workspace, Scope::Test)?;
    let built = build_all(workspace, &toolchain)?;
    let stamp = stamp_of(workspace, &toolchain, &built)?;
    let ci = env::var("CI").unwrap_or_default();
    if may_skip(force, &ci, arguments)
        && let Some(ago) = stamp::last_pass(workspace, stamp)
    {
        println!(
            "Nothing has changed since all tests passed {} ago: they were not run again. \
             `cargo xtask test --force` runs them.",
            rough(ago)
        );
        return Ok(());
    }
    if arguments.is_empty() {
        stamp::forget(workspace)?;
    }
    let next_layout = build_next_layout(workspace, &toolchain)?;
    run_all(workspace, &built, &next_layout, arguments)?;
    if arguments.is_empty() {
        stamp::remember(workspace, stamp)?;
    }
    Ok(())
}

/// Runs all, also when some fail: one run then shows everything that is wrong.
fn run_all(
    workspace: &Workspace,
    built: &Built,
    next_layout: &Path,
    arguments: &[OsString],
) -> Result<()> {
    let mut failed = Vec::new();
    for (name, selection) in RUNS {
        let mut cargo = workspace.cargo();
        cargo
            .args(["test", "--workspace", "--exclude", "guard-ebpf", "--no-fail-fast"])
            .args(selection)
            .arg("--")
            .args(arguments)
            .env(THREADS_VARIABLE, threads())
            .env(OBJECT_VARIABLE, &built.object)
            .env(BINARY_VARIABLE, &built.binary)
            .env(NEXT_LAYOUT_VARIABLE, next_layout);
        if let Err(error) = run_command(&mut cargo, name) {
            eprintln!("xtask: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("not all tests passed: see {} above", failed.join(" and "));
    }
    Ok(())
}

fn threads() -> String {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    env::var(THREADS_VARIABLE).unwrap_or_else(|_| (processors * TESTS_PER_PROCESSOR).to_string())
}

fn stamp_of(workspace: &Workspace, toolchain: &Toolchain, built: &Built) -> Result<Stamp> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("the kernel's release could not be read")?;
    let stable = answer(with_variables_kept("rustc").arg("-vV")).unwrap_or_default();
    let facts = [kernel, stable, toolchain.compiler_version().unwrap_or_default()];
    Stamp::of(workspace, &facts, &[&built.object, &built.binary])
}

/// A pass may stand for this run only where nobody asked for another, and never in CI; a run of
/// some tests says nothing of the others.
fn may_skip(force: bool, ci: &str, arguments: &[OsString]) -> bool {
    !force && matches!(ci, "" | "0" | "false") && arguments.is_empty()
}

/// A span as a person says it: `40 seconds`, `3 minutes`.
fn rough(span: Duration) -> String {
    const UNITS: [(&str, u64); 3] = [("day", 86_400), ("hour", 3_600), ("minute", 60)];
    let seconds = span.as_secs();
    let (unit, size) =
        UNITS.into_iter().find(|(_, size)| seconds >= *size).unwrap_or(("second", 1));
    let count = seconds / size;
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_idle_repetition_is_skipped() {
        assert!(may_skip(false, "", &[]));
        assert!(may_skip(false, "false", &[]));
        assert!(!may_skip(true, "", &[]));
        assert!(!may_skip(false, "true", &[]));
        assert!(!may_skip(false, "1", &[]));
        assert!(!may_skip(false, "", &["expiry".into()]));
    }

    #[test]
    fn spans_are_said_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (7_199, "1 hour"),
            (172_800, "2 days"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
    }
}
