//! From a file of prefixes to in force, and from a start to armed.

use std::{fs, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use guard::kernel::{load, pins::Pins};

use super::{
    Bench,
    figures::{Comparison, Measured, Part, Results},
    filters::{Filter, Library},
    lists::{ListId, Shape},
    live::v4,
};
use crate::{lab::Lab, lock::MachineLock, product::Attach};

pub const FROM_FILE: &str = "from a file of prefixes to in force";
pub const START: &str = "start";
pub const ARMED: &str = "guard run, until it says that it enforces";
pub const KERNEL: &str = "the kernel's time to load and verify its programs";

/// The lists that this part needs.
#[must_use]
pub fn lists(is_quick: bool) -> Vec<ListId> {
    let sizes: &[usize] = if is_quick { &[10_000] } else { &[10_000, 100_000, 1_000_000] };
    let of_size = |size: &usize| [v4(Shape::Dense, *size), v4(Shape::Mixed, *size)];
    sizes.iter().flat_map(of_size).collect()
}

/// # Errors
/// When something can't be loaded.
pub fn run(
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    from_files(bench, machine, library, results)?;
    start(bench, machine, results)
}

fn from_files(
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    let has_nft = bench.can(Filter::NftIngress.missing(), "nft -f", results);
    for id in lists(bench.is_quick) {
        bench.say(Part::Load, &format!("{id}, {} rounds", bench.rounds));
        let lab = Lab::on(machine, "bench load");
        let guard = lab.start_guard(Attach::Auto, "");
        let rules = lab.directory().join("bench.nft");
        fs::write(&rules, library.nft(Filter::NftIngress, id)?)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..bench.rounds {
            let mut reload = || {
                guard.configure(&library.rule(Some(id)));
                let started = Instant::now();
                guard.tell(&["reload"]);
                ours.push(started.elapsed().as_secs_f64() * 1e3);
                guard.configure("");
                guard.tell(&["reload"]);
            };
            let mut load = || -> Result<()> {
                let nft = |words: &[&str]| {
                    let mut command = Command::new("nsenter");
                    command.arg(format!("--net={}", lab.server.netns_path().display()));
                    command.arg("nft").args(words).status().context("nft can't be started")
                };
                let started = Instant::now();
                let status = nft(&["-f", &rules.display().to_string()])?;
                theirs.push(started.elapsed().as_secs_f64() * 1e3);
                ensure!(status.success(), "nft does not take {id}");
                ensure!(nft(&["delete", "table", "netdev", "bench"])?.success(), "it stays");
                Ok(())
            };
            let is_forward = round.is_multiple_of(2);
            if is_forward {
                reload();
            }
            if has_nft {
                load()?;
            }
            if !is_forward {
                reload();
            }
        }
        let base = format!("nft -f, {id}");
        let mut ours =
            Measured::new(Part::Load, FROM_FILE, &format!("guard reload, {id}"), "ms", ours);
        if has_nft {
            ours = ours.against("nft -f", Comparison::Ratio, theirs.clone());
            results.measured.push(Measured::new(Part::Load, FROM_FILE, &base, "ms", theirs));
        }
        results.measured.push(ours);
    }
    Ok(())
}

fn start(bench: &Bench, machine: &MachineLock, results: &mut Results) -> Result<()> {
    bench.say(Part::Load, &format!("starting, {} rounds", bench.rounds));
    let lab = Lab::on(machine, "bench start");
    let (mut armed, mut kernel) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        let guard = lab.guard(Attach::Auto, "");
        armed.push(guard.start_measured().as_secs_f64() * 1e3);
        guard.stop();
        guard.tell(&["down"]);
        kernel.push(kernel_ms(&lab)?);
    }
    results.measured.push(Measured::new(Part::Load, START, KERNEL, "ms", kernel.clone()));
    results.measured.push(Measured::new(Part::Load, START, ARMED, "ms", armed).against(
        KERNEL,
        Comparison::Ratio,
        kernel,
    ));
    Ok(())
}

/// Time in the kernel of whoever loads guard's programs and makes their maps.
fn kernel_ms(lab: &Lab) -> Result<f64> {
    let path = lab.pins();
    let pins = Pins::new(path.clone(), &path);
    lab.server.inside(|| {
        let before = system_ms();
        load::load(&pins).context("the programs can't be loaded")?;
        let spent = system_ms() - before;
        pins.remove_all().context("the pins can't be removed")?;
        Ok(spent)
    })
}

/// Of this thread.
fn system_ms() -> f64 {
    // SAFETY: a plain record of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the record outlives the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_stime.tv_sec as f64 * 1e3 + usage.ru_stime.tv_usec as f64 / 1e3
}
