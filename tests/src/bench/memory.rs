//! What a list takes of the machine's memory.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};

use super::{
    Bench,
    figures::{Comparison, Measured, Part, Results},
    filters::{Filter, Library},
    lists::{ListId, Shape},
    live::v4,
};
use crate::{lab::Lab, lock::MachineLock, product::Attach};

pub const GROUP: &str = "memory that a list takes";

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
        let (mut ours, mut theirs, mut daemons) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            let before = kernel_mib()?;
            guard.configure(&library.rule(Some(id)));
            guard.tell(&["reload"]);
            ours.push(kernel_mib()? - before);
            daemons.push(resident_mib(guard.pid())?);
            guard.configure("");
            guard.tell(&["reload"]);

            if has_nft {
                let before = kernel_mib()?;
                lab.server.nft(&rules);
                theirs.push(kernel_mib()? - before);
                lab.server.nft("delete table netdev bench");
            }
        }
        let of = |case: &str, values| {
            Measured::new(Part::Memory, GROUP, &format!("{case}, {id}"), "MiB", values)
        };
        let mut ours = of("guard, kernel", ours);
        if has_nft {
            ours = ours.against("nft, kernel", Comparison::Ratio, theirs.clone());
            results.measured.push(of("nft, kernel", theirs));
        }
        results.measured.extend([ours, of("guard, the daemon's resident memory", daemons)]);
    }
    Ok(())
}

/// What the kernel has taken for itself and gives nobody back unasked.
fn kernel_mib() -> Result<f64> {
    thread::sleep(SETTLING);
    let table = fs::read_to_string("/proc/meminfo").context("/proc/meminfo can't be read")?;
    let kib = ["SUnreclaim:", "Percpu:", "VmallocUsed:"].map(|name| field(&table, name));
    Ok(kib.into_iter().sum::<Option<u64>>().context("/proc/meminfo lacks a line")? as f64 / 1024.0)
}

/// # Errors
/// When the process is gone.
pub fn resident_mib(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let table = fs::read_to_string(&path).with_context(|| format!("{path} can't be read"))?;
    Ok(field(&table, "VmRSS:").context("its memory is not told")? as f64 / 1024.0)
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
