//! The project's own tasks: `cargo xtask setup | build | run | install | test | bench | vmtest | fuzz | lint`.
//!
//! This crate is the only place that knows what the build needs and which flags the kernel
//! programs are compiled with. Every other crate builds with plain cargo and stock stable Rust.

mod bench;
mod command;
mod fuzz;
mod install;
mod kernel_object;
mod lint;
mod setup;
mod stamp;
mod test;
mod toolchain;
mod vmtest;
mod workspace;

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::{command::without_cargo_variables, setup::Scope, workspace::Workspace};

/// Builds, runs and tests guard.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the build and the tests need and this machine lacks
    Setup {
        /// What `lint` needs to check the kernel programs, too
        #[arg(long)]
        lint: bool,
    },
    /// Builds the kernel programs and the `guard` binary that carries them
    Build,
    /// Sets up, builds, and starts guard on this host
    Run {
        /// Arguments for `guard run`, after `--`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Sets up, builds, and puts guard, its systemd unit, its group and completions in place; starts nothing
    Install {
        /// Below this directory in place of /, as for a package
        #[arg(long)]
        destdir: Option<PathBuf>,
    },
    /// Sets up, builds, and runs every test: needs root
    Test {
        /// Runs the tests even if nothing has changed since they last passed
        #[arg(long)]
        force: bool,
        /// Arguments for the test programs, after `--`: a name to filter by, `--nocapture`, …
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Measures guard beside other filters, and writes docs/performance.md: needs root, and a machine that has nothing else to do
    Bench {
        /// A short run of every part, for function and not for figures: writes nothing below docs
        #[arg(long)]
        quick: bool,
        /// Only these parts: live, testrun, load, bulk, latency, daemon, memory; writes nothing below docs
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Only floods and programs whose name holds this; writes nothing below docs
        #[arg(long, value_name = "TEXT")]
        case: Option<String>,
        /// How often each case is measured; no fewer than 7 are published
        #[arg(long)]
        rounds: Option<u32>,
    },
    /// Runs the fuzzer on what reads packets, policies, texts and requests; says so where there is no nightly Rust
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// The targets; all where none is named
        targets: Vec<String>,
    },
    /// Runs end-to-end tests on other kernels, in virtual machines: fetches kernels and QEMU
    Vmtest {
        /// Which ones: 5.10, 6.1, 6.12, 6.18, newest; all where none is named
        #[arg(long, value_delimiter = ',')]
        kernel: Vec<String>,
        /// Every test with this in its name, in place of the selection
        #[arg(long)]
        filter: Option<String>,
    },
    /// Checks format, lints, the lock file and dependencies; installs nothing
    Lint,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let workspace = Workspace::of_this_crate()?;
    match task {
        Task::Setup { lint } => {
            let scope = if lint { Scope::Lint } else { Scope::Test };
            setup::ensure(&workspace, scope)?;
            eprintln!("xtask: everything that building and testing needs is here");
            Ok(())
        }
        Task::Build => {
            let toolchain = setup::ensure(&workspace, Scope::Build)?;
            let built = kernel_object::build_all(&workspace, &toolchain)?;
            eprintln!("xtask: built {}", built.binary.display());
            Ok(())
        }
        Task::Run { arguments } => {
            let toolchain = setup::ensure(&workspace, Scope::Build)?;
            let built = kernel_object::build_all(&workspace, &toolchain)?;
            let mut guard = without_cargo_variables(&built.binary);
            let error = guard.arg("run").args(arguments).exec();
            Err(error).with_context(|| format!("could not start {}", built.binary.display()))
        }
        Task::Install { destdir } => {
            let toolchain = setup::ensure(&workspace, Scope::Build)?;
            let built = kernel_object::build_all(&workspace, &toolchain)?;
            install::run(&workspace, &built.binary, destdir.as_deref())
        }
        Task::Test { force, arguments } => test::run(&workspace, force, &arguments),
        Task::Bench { quick, only, case, rounds } => {
            bench::run(&workspace, quick, &only, case.as_deref(), rounds)
        }
        Task::Fuzz { seconds, targets } => fuzz::run(&workspace, seconds, &targets),
        Task::Vmtest { kernel, filter } => vmtest::run(&workspace, &kernel, filter.as_deref()),
        Task::Lint => lint::run(&workspace),
    }
}
