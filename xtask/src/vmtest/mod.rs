//! `cargo xtask vmtest`: the end-to-end tests on other kernels, each in a small virtual machine.
//!
//! The kernels are Debian's, unpacked and not installed. Machines run without KVM, some ten times slower than this one:
//! what they run is a selection, and says nothing about speed.

mod apt;
mod archive;
mod guest;
mod kernels;
mod outcome;
mod qemu;

use std::{
    fmt, fs,
    num::NonZero,
    panic,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

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
const SELECTION: [(&str, &[&str]); 9] = [
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
    (
        "ends",
        &[
            "an_allow_ends::clsact",
            "an_allow_ends::native",
            "an_allow_ends_without_the_daemon::clsact",
            "observing_ends::clsact",
        ],
    ),
    ("interfaces", &["a_filter_of_xdp_tools_goes_on_filtering"]),
    ("true_root", &["an_idle_daemon_sleeps_until_a_port_may_have_been_published"]),
    ("clock", &[]),
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
    let machines = series
        .into_iter()
        .map(|series| {
            let kernel = Kernel::fetch(series, &mirrors, &directory)?;
            let initrd = directory.join(format!("initrd-{}", series.name));
            fs::write(&initrd, guest::pack(workspace, &built, &tests, &kernel, selection)?)
                .with_context(|| format!("{} can't be written", initrd.display()))?;
            Ok(Machine { series, image: kernel.image()?, release: kernel.release, initrd })
        })
        .collect::<Result<Vec<_>>>()?;
    let ended = run_all(&machines, &qemu)?;

    println!();
    for end in &ended {
        for omission in end.outcome.omissions() {
            println!("kernel {} was not tested for {omission}", end.release);
        }
    }
    for end in &ended {
        println!("{end}");
    }
    if !ended.iter().all(|end| end.outcome.is_good()) {
        bail!("not all tests passed on all kernels: see above");
    }
    Ok(())
}

/// A machine that is ready to be started.
struct Machine {
    series: Series,
    release: String,
    image: PathBuf,
    initrd: PathBuf,
}

/// How the tests went on a kernel.
struct End {
    release: String,
    outcome: Outcome,
    seconds: u64,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = self.outcome.problem().map(|problem| format!(": {problem}"));
        let (release, summary) = (&self.release, self.outcome.summary());
        write!(f, "kernel {release}: {summary}{} ({} s)", problem.unwrap_or_default(), self.seconds)
    }
}

/// Runs the machines, as many at once as this one has processors: each keeps one busy.
fn run_all(machines: &[Machine], qemu: &Qemu) -> Result<Vec<End>> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get).min(machines.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut ended = Vec::new();
        while let Some(machine) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
            ended.push(run_one(machine, qemu)?);
        }
        Ok(ended)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut ended: Vec<End> = Vec::new();
        for worker in workers {
            let ends: Result<Vec<End>> =
                worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
            ended.extend(ends?);
        }
        ended.sort_by_key(|end| machines.iter().position(|machine| machine.release == end.release));
        Ok(ended)
    })
}

fn run_one(machine: &Machine, qemu: &Qemu) -> Result<End> {
    let start = Instant::now();
    eprintln!("xtask: starting a machine with kernel {}", machine.release);
    let mut outcome = Outcome::default();
    qemu.run(&machine.image, &machine.initrd, |line| {
        println!("{}| {line}", machine.series.name);
        outcome.read(line);
    })?;
    let release = machine.release.clone();
    let end = End { release, outcome, seconds: start.elapsed().as_secs() };
    println!("{end}");
    Ok(end)
}
