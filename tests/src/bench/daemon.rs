//! What guard's own process takes: while nothing happens, and in a flood.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::{
    Bench,
    figures::{Measured, Part, Results},
    generator::{Generator, Transport},
    lists::{Family, Shape, outside},
    live::{MANY, MILLION},
    memory::resident_mib,
    rig::{Rig, run_time},
};
use crate::{
    lab::{OLLAMA, SERVER},
    lock::MachineLock,
    product::{Attach, Guard},
};

pub const IDLE: &str = "idle";
pub const IN_FLOOD: &str = "in a flood of random sources";
pub const RESIDENT: &str = "resident memory";
pub const PROCESSOR: &str = "processor time";

/// # Errors
/// When the kernel does not tell, or nothing can be sent.
pub fn run(bench: &Bench, machine: &MachineLock, results: &mut Results) -> Result<()> {
    let sources = if bench.is_quick { MANY.sources } else { MILLION.sources };
    let mut generator =
        Generator::load(Family::V4, &outside([], Family::V4, Shape::Spread, sources))?;
    let rig = Rig::new(machine, "bench daemon")?;
    // As on a host: the daemon sleeps only where it can follow all binds.
    let guard = rig.lab.guard(Attach::Native, "").at_the_root("");
    guard.start();
    generator.order(SERVER.v4_at(OLLAMA), Transport::Syn, sources, rig.client_index())?;
    let length = Duration::from_millis(if bench.is_quick { 200 } else { 3_000 });
    let (mut resident, mut idle, mut busy, mut after) = (vec![], vec![], vec![], vec![]);
    for round in 0..bench.rounds {
        bench.say(Part::Daemon, &format!("round {} of {}", round + 1, bench.rounds));
        if round == 0 {
            resident.push(resident_mib(guard.pid())?);
        }
        idle.push(share(&guard, || {
            thread::sleep(length);
            Ok(())
        })?);
        busy.push(share(&guard, || rig.flood(&generator, length).map(drop))?);
        after.push(resident_mib(guard.pid())?);
    }
    // The first is of a daemon that has seen nothing yet; later ones are another case.
    for round in 1..bench.rounds {
        bench.say(Part::Daemon, &format!("started anew, round {} of {}", round + 1, bench.rounds));
        guard.stop();
        guard.tell(&["down"]);
        guard.start();
        resident.push(resident_mib(guard.pid())?);
    }
    let of = |group, case, unit, values| Measured::new(Part::Daemon, group, case, unit, values);
    results.measured.extend([
        of(IDLE, RESIDENT, "MiB", resident),
        of(IDLE, PROCESSOR, "% of a processor", idle),
        of(IN_FLOOD, RESIDENT, "MiB", after),
        of(IN_FLOOD, PROCESSOR, "% of a processor", busy),
    ]);
    Ok(())
}

/// How much of a processor the daemon takes while something is done.
fn share(guard: &Guard<'_>, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = nanoseconds(guard.pid())?;
    let started = Instant::now();
    work()?;
    let wall = started.elapsed().as_nanos() as f64;
    Ok((nanoseconds(guard.pid())?.saturating_sub(before)) as f64 * 100.0 / wall)
}

/// What a process's threads have run; those that have ended are not in it.
fn nanoseconds(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/task");
    let threads = fs::read_dir(&path).with_context(|| format!("{path} can't be read"))?;
    let threads = threads.flatten().filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    threads.filter_map(Pid::from_raw).map(run_time).sum()
}
