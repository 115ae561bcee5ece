//! What a list takes of the machine's memory.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Bench,
    figures::{Comparison, Measured, Part, Results},
    filters::{Filter, Library},
    lists::{ListId, Shape},
    live::v4,
};
use crate::{lab::Lab, lock::MachineLock, product::Attach, wait::EndOnDrop};

pub const GROUP: &str = "memory that a list takes";
pub const PEAK: &str = "guard, kernel, at the peak of a swap";

/// The lists that this part needs.
#[must_use]
pub fn lists(is_quick: bool) -> Vec<ListId> {
    let size = if is_quick { 10_000 } else { 1_000_000 };
    [Shape::Dense, Shape::Spread, Shape::Mixed].map(|shape| v4(shape, size)).to_vec()
}

/// How long freed memory may take to come back: a grace period and more.
const SETTLING: Duration = Duration::from_millis(300);

/// # Errors
/// When the kernel does not tell.
pub fn run(
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    let has_nft = bench.can(Filter::NftIngress.missing(), "the memory of nft", results);
    for id in lists(bench.is_quick) {
        bench.say(Part::Memory, &format!("{id}, {} rounds", bench.rounds));
        let lab = Lab::on(machine, "bench memory");
        let guard = lab.start_guard(Attach::Auto, "");
        let rules = library.nft(Filter::NftIngress, id)?;
        let (mut ours, mut peaks, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut daemons, mut daemon_peaks) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            let before = settled_kernel_mib()?;
            guard.configure(&library.rule(Some(id)));
            guard.tell(&["reload"]);
            ours.push(settled_kernel_mib()? - before);
            daemons.push(resident_mib(guard.pid())?);
            // Put in force again, beside what is in force.
            forget_peak(guard.pid())?;
            peaks.push(peak_kernel_mib(|| drop(guard.tell(&["reload"])))? - before);
            daemon_peaks.push(peak_resident_mib(guard.pid())?);
            guard.configure("");
            guard.tell(&["reload"]);

            if has_nft {
                let before = settled_kernel_mib()?;
                lab.server.nft(&rules);
                theirs.push(settled_kernel_mib()? - before);
                lab.server.nft("delete table netdev bench");
            }
        }
        let of = |case: &str, values| {
            Measured::new(Part::Memory, GROUP, &format!("{case}, {id}"), "MiB", values)
        };
        let mut kernel = [of("guard, kernel", ours), of(PEAK, peaks)];
        if has_nft {
            kernel = kernel
                .map(|measured| measured.against("nft, kernel", Comparison::Ratio, theirs.clone()));
            results.measured.push(of("nft, kernel", theirs));
        }
        results.measured.extend(kernel);
        results.measured.extend([
            of("guard, the daemon's resident memory", daemons),
            of("guard, the daemon's resident memory at its peak", daemon_peaks),
        ]);
    }
    Ok(())
}

/// What the kernel has taken for itself and gives nobody back unasked, once it has settled.
fn settled_kernel_mib() -> Result<f64> {
    thread::sleep(SETTLING);
    kernel_mib()
}

fn kernel_mib() -> Result<f64> {
    let table = fs::read_to_string("/proc/meminfo").context("/proc/meminfo can't be read")?;
    let kib = ["SUnreclaim:", "Percpu:", "VmallocUsed:"].map(|name| field(&table, name));
    Ok(kib.into_iter().sum::<Option<u64>>().context("/proc/meminfo lacks a line")? as f64 / 1024.0)
}

/// The most that it takes while something is done.
fn peak_kernel_mib(work: impl FnOnce()) -> Result<f64> {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let peak = scope.spawn(|| {
            let mut peak = 0.0;
            while !is_done.load(Ordering::Relaxed) {
                peak = f64::max(peak, kernel_mib()?);
            }
            Ok(peak)
        });
        let end = EndOnDrop(&is_done);
        work();
        drop(end);
        peak.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// # Errors
/// When the process is gone.
pub fn resident_mib(process: u32) -> Result<f64> {
    status_mib(process, "VmRSS:")
}

fn peak_resident_mib(process: u32) -> Result<f64> {
    status_mib(process, "VmHWM:")
}

/// Its peak is what it has from now on (`clear_refs` in proc_pid_clear_refs(5)).
fn forget_peak(process: u32) -> Result<()> {
    let path = format!("/proc/{process}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("{path} can't be written"))
}

fn status_mib(process: u32, name: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let table = fs::read_to_string(&path).with_context(|| format!("{path} can't be read"))?;
    Ok(field(&table, name).context("its memory is not told")? as f64 / 1024.0)
}

/// A line of one of the kernel's tables, in KiB.
fn field(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_name() {
        let table = "VmPeak:\t 100 kB\nVmRSS:\t    5120 kB\n";
        assert_eq!(field(table, "VmRSS:"), Some(5_120));
        assert_eq!(field(table, "VmSwap:"), None);
    }
}
