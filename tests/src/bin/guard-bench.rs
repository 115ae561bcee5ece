//! The benchmark, as `cargo xtask bench` starts it; and, with `--talk`, a client of its own that it starts.

use std::{net::SocketAddr, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use clap::Parser;
use guard_tests::bench::{Bench, LEAST_ROUNDS, figures::Part, talk::Talk};

/// Measures guard beside other filters.
#[derive(Parser)]
struct Arguments {
    /// A short run, for function
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_parser = part)]
    only: Vec<Part>,
    /// Only floods and programs whose name holds this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// How often each case is measured
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Where raw results go
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
    /// Where the published table and plot are
    #[arg(long, default_value = "docs")]
    documentation: PathBuf,
    /// Which guard is measured
    #[arg(long, default_value = "unknown")]
    revision: String,
    #[arg(long, hide = true, num_args = 4)]
    talk: Option<Vec<String>>,
}

fn part(name: &str) -> Result<Part, String> {
    Part::named(name).ok_or_else(|| {
        let names = Part::ALL.map(Part::name).join(", ");
        format!("the parts are {names}")
    })
}

fn main() -> Result<()> {
    let Arguments { quick, only, case, rounds, results, documentation, revision, talk } =
        Arguments::parse();
    if let Some([kind, amount, server, cgroup]) = talk.as_deref() {
        let server: SocketAddr =
            server.parse().with_context(|| format!("{server} is no address"))?;
        println!("{}", Talk::parse(kind, amount)?.with(server, cgroup.as_ref())?);
        return Ok(());
    }
    let rounds = rounds.map_or(if quick { 2 } else { LEAST_ROUNDS }, usize::from);
    let parts = Part::ALL.into_iter().filter(|part| only.is_empty() || only.contains(part));
    let bench = Bench {
        is_quick: quick,
        rounds,
        parts: parts.collect(),
        case,
        revision,
        results,
        documentation,
        started: Instant::now(),
    };
    bench.run()
}
