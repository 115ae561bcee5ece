//! `cargo xtask bench`: the real binary beside other filters, in one run.
//!
//! Every part makes its own labs. What is compared was measured in the same round; every other round goes backward.

pub mod daemon;
pub mod facts;
pub mod figures;
pub mod filters;
pub mod generator;
pub mod lists;
pub mod live;
pub mod load;
pub mod memory;
pub mod plot;
pub mod report;
pub mod rig;
pub mod talk;
pub mod testrun;

use std::{
    collections::BTreeSet,
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};

use self::{
    facts::Facts,
    figures::{Part, Results},
    filters::Library,
    lists::ListId,
};
use crate::lock::MachineLock;

/// Medians of fewer rounds are not published.
pub const LEAST_ROUNDS: usize = 7;

/// Where the page shows the plot, which lies beside it.
const PLOT: &str = "![What a packet of a flood costs the receiver](performance.svg)";

/// A run of the benchmark.
#[derive(Debug)]
pub struct Bench {
    pub is_quick: bool,
    pub rounds: usize,
    pub parts: Vec<Part>,
    /// What the names of the floods and programs that are measured hold.
    pub case: Option<String>,
    /// Which guard is measured.
    pub revision: String,
    /// Where raw results and lists go.
    pub results: PathBuf,
    /// Where the table and the plot go.
    pub documentation: PathBuf,
    pub started: Instant,
}

impl Bench {
    /// One line of progress.
    pub fn say(&self, part: Part, what: &str) {
        println!("{:>5} s  {:<8} {what}", self.started.elapsed().as_secs(), part.name());
    }

    /// Whether a case of this name is to be measured.
    pub fn is_wanted(&self, name: &str) -> bool {
        self.case.as_deref().is_none_or(|wanted| name.contains(wanted))
    }

    /// Whether nothing is missing for it; otherwise says what.
    pub fn can(&self, missing: Option<&str>, what: &str, results: &mut Results) -> bool {
        let Some(missing) = missing else { return true };
        let message = format!("not measured: {what}: needs {missing}");
        println!("{message}");
        results.missing.push(message);
        false
    }

    /// Measures, and writes what has come out.
    ///
    /// # Errors
    /// When a part failed; the others are measured all the same.
    pub fn run(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            println!(
                "NOT MEASURED: every part loads kernel programs and makes network namespaces, which needs root"
            );
            return Ok(());
        }
        let facts = Facts::gather(&self.revision);
        println!("{facts}");
        let mut results = Results::default();
        if let Some(busy) = facts.is_busy() {
            println!("{busy}");
        }
        fs::create_dir_all(&self.results)
            .with_context(|| format!("{} can't be made", self.results.display()))?;
        let library = Library::new(&self.results, &self.lists())?;
        let mut failed = Vec::new();
        for part in &self.parts {
            // What goes wrong in a lab panics; the labs are removed on that way, too.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                self.measure(*part, &library, &mut results)
            }));
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("for the reason above")));
            if let Err(error) = outcome {
                println!("the part {} failed: {error:#}", part.name());
                failed.push(part.name());
            }
        }
        self.write(&facts, &results, failed.is_empty())?;
        if !failed.is_empty() {
            bail!("these parts failed: {}", failed.join(", "));
        }
        Ok(())
    }

    fn measure(&self, part: Part, library: &Library, results: &mut Results) -> Result<()> {
        // Others get their turn between the parts. Figures need the machine alone.
        let machine = &if self.is_quick { MachineLock::shared() } else { MachineLock::alone() };
        match part {
            Part::Live => live::run(self, machine, library, results),
            Part::Testrun => testrun::run(self, machine, library, results),
            Part::Load => load::run(self, machine, library, results),
            Part::Bulk | Part::Latency => talk::run(part, self, machine, library, results),
            Part::Daemon => daemon::run(self, machine, results),
            Part::Memory => memory::run(self, machine, library, results),
        }
    }

    fn lists(&self) -> Vec<ListId> {
        let of = |part: &Part| match part {
            Part::Live => live::lists(self.is_quick),
            Part::Testrun => testrun::lists(self.is_quick),
            Part::Load => load::lists(self.is_quick),
            Part::Bulk | Part::Latency => talk::lists(),
            Part::Daemon => Vec::new(),
            Part::Memory => memory::lists(self.is_quick),
        };
        self.parts.iter().flat_map(of).collect()
    }

    fn write(&self, facts: &Facts, results: &Results, is_whole: bool) -> Result<()> {
        let raw = self.results.join("results.jsonl");
        fs::write(&raw, results.lines())
            .with_context(|| format!("{} can't be written", raw.display()))?;
        let text = report::markdown(facts, self.rounds, results);
        let table = self.results.join("results.md");
        fs::write(&table, &text)
            .with_context(|| format!("{} can't be written", table.display()))?;
        let plot = self.results.join("performance.svg");
        let drawn = plot::svg(results);
        fs::write(&plot, &drawn).with_context(|| format!("{} can't be written", plot.display()))?;
        println!("{text}");
        println!("every value: {}", raw.display());

        let kept_back = if !is_whole {
            Some("a part failed")
        } else if self.is_quick {
            Some("a quick run shows function, not figures")
        } else if self.parts.iter().map(|part| part.name()).collect::<BTreeSet<_>>().len()
            < Part::ALL.len()
        {
            Some("some parts were not run")
        } else if self.case.is_some() {
            Some("some cases were not measured")
        } else if self.rounds < LEAST_ROUNDS {
            Some("there were too few rounds")
        } else if !results.noisy.is_empty() {
            Some("the machine was too noisy")
        } else {
            None
        };
        if let Some(why) = kept_back {
            println!("not published: {why}; the table is {}", table.display());
            return Ok(());
        }
        let page = self.documentation.join("performance.md");
        let old = fs::read_to_string(&page)
            .with_context(|| format!("{} can't be read", page.display()))?;
        let new = report::between_markers(&old, &format!("{PLOT}\n\n{text}"))
            .with_context(|| format!("{} has not both its markers", page.display()))?;
        fs::write(&page, new).with_context(|| format!("{} can't be written", page.display()))?;
        let plot = self.documentation.join("performance.svg");
        fs::write(&plot, drawn).with_context(|| format!("{} can't be written", plot.display()))?;
        println!("published: {}", page.display());
        Ok(())
    }
}
