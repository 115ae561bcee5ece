//! `cargo xtask vmtest`: the end-to-end tests on other kernels, each in a small virtual machine, one after the other.
//!
//! The kernels are Debian's, unpacked and not installed. Machines run without KVM, some ten times slower than this one:
//! what they run is a selection, and says nothing about speed.

mod apt;
mod archive;
mod guest;
mod kernels;
mod outcome;
mod qemu;

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};

use self::{
    apt::Mirrors,
    guest::TestPrograms,
    kernels::{Kernel, Series},
    outcome::Outcome,
    qemu::Qemu,
};
use crate::{
    kernel_object::build_all,
    setup::{self, Scope},
    workspace::Workspace,
};

/// What runs on each kernel: every program loads and attaches, and packets meet what was promised.
const SELECTION: [(&str, &[&str]); 6] = [
    ("verdict_in_kernel", &["the_verifier_has_little_to_do"]),
    (
        "access",
        &[
            "an_outsider_meets_silence",
            "an_allowed_source_gets_in_from_its_next_packet::clsact",
            "an_allowed_source_gets_in_from_its_next_packet::native",
        ],
    ),
    (
        "lifecycle",
        &[
            "down_lifts_everything::clsact",
            "a_killed_daemon_changes_nothing::clsact",
            "a_killed_daemon_changes_nothing::native",
        ],
    ),
    ("ends", &["an_allow_ends::clsact", "an_allow_ends::native", "observing_ends::clsact"]),
    ("devices", &[]),
    ("ipsec", &[]),
];

/// Runs the selection, or every test with this in its name, on the kernels of these series.
pub fn run(workspace: &Workspace, names: &[String], filter: Option<&str>) -> Result<()> {
    let series = kernels::series(names)?;
    let toolchain = setup::ensure(workspace, Scope::Machines)?;
    let built = build_all(workspace, &toolchain)?;
    let tests = TestPrograms::build(workspace, &built)?;
    let filter: Vec<&str> = filter.into_iter().collect();
    let everything = guest::everything(&tests, &filter);
    let selection = if filter.is_empty() { &SELECTION[..] } else { &everything };

    let directory = workspace.target.join("vmtest");
    let mirrors = Mirrors::of_this_machine()?;
    let qemu = Qemu::find(&mirrors, &directory)?;
    let mut lines = Vec::new();
    let mut all_good = true;
    for series in series {
        let start = Instant::now();
        let (release, outcome) = run_on(series, &mirrors, &directory, &qemu, |kernel| {
            guest::pack(workspace, &built, &tests, kernel, selection)
        })?;
        let problem = outcome.problem().map(|problem| format!(": {problem}")).unwrap_or_default();
        all_good &= outcome.is_good();
        lines.push(format!(
            "kernel {release}: {}{problem} ({} s)",
            outcome.summary(),
            start.elapsed().as_secs()
        ));
        println!("{}", lines.last().map_or("", String::as_str));
    }
    println!("\n{}", lines.join("\n"));
    if !all_good {
        bail!("not all tests passed on all kernels: see above");
    }
    Ok(())
}

fn run_on(
    series: Series,
    mirrors: &Mirrors,
    directory: &Path,
    qemu: &Qemu,
    pack: impl FnOnce(&Kernel) -> Result<Vec<u8>>,
) -> Result<(String, Outcome)> {
    let kernel = Kernel::fetch(series, mirrors, directory)?;
    let initrd = directory.join("initrd");
    fs::write(&initrd, pack(&kernel)?)
        .with_context(|| format!("{} can't be written", initrd.display()))?;
    eprintln!("xtask: starting a machine with kernel {}", kernel.release);
    let mut outcome = Outcome::default();
    qemu.run(&kernel.image()?, &initrd, |line| {
        println!("{}| {line}", series.name);
        outcome.read(line);
    })?;
    for omission in outcome.omissions() {
        println!("kernel {} was not tested for {omission}", kernel.release);
    }
    Ok((kernel.release, outcome))
}
