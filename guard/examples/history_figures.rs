//! What a history of many sources takes, and how long it takes to ask: the figures of docs/history.md.
//!
//! `cargo run --release -p guard --example history_figures [SOURCES] [HOURS]`

use std::{
    env,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use guard::{
    events::{Attempt, SourceFacts},
    store::{Database, Filter, Fold, Settings, query::History},
};
use jiff::{SignedDuration, Timestamp};

/// The hours that each source comes in.
const HOURS_OF_A_SOURCE: u32 = 4;

/// Rows that are written at once, as by the daemon in a second.
const AT_ONCE: usize = 4_096;

fn main() -> Result<()> {
    let mut numbers = env::args().skip(1).map(|text| text.parse::<u32>());
    let sources = numbers.next().transpose()?.unwrap_or(1_000_000);
    let hours = numbers.next().transpose()?.unwrap_or(30 * 24);
    let directory = tempfile::tempdir()?;
    let settings = Settings {
        path: directory.path().join("history.db"),
        keep: Duration::from_hours(90 * 24),
        max_bytes: 1 << 30,
    };
    let began = Instant::now();
    let now = Timestamp::now();
    let mut database = Database::open(&settings)?;
    for hour in 0..hours {
        let time = now.checked_sub(SignedDuration::from_hours(i64::from(hours - hour)))?;
        // Each source once in every so many hours, and which ones is scattered.
        let of_this_hour = (0..sources).filter(|number| {
            (number.wrapping_mul(0x9e37_79b1) >> 8) % (hours / HOURS_OF_A_SOURCE).max(1)
                == hour % (hours / HOURS_OF_A_SOURCE).max(1)
        });
        let mut fold = Fold::default();
        for number in of_this_hour {
            fold.add(&attempt(number, time));
            if fold.rows.len() == AT_ONCE {
                database.write(&fold.take())?;
            }
        }
        database.write(&fold)?;
    }
    database.prune(now)?;
    println!(
        "{} rows in {:.0?}, {} MB",
        database.rows(),
        began.elapsed(),
        database.bytes()? / 1_000_000
    );

    let ask = |what: &str, question: &dyn Fn(&History) -> Result<u64, guard::control::Failure>| {
        let began = Instant::now();
        let history = History::open(&settings.path)?.context("there is one")?;
        let answer = question(&history).map_err(|failure| anyhow!(failure.what))?;
        println!("{what}: {answer} in {:.2?}", began.elapsed());
        anyhow::Ok(())
    };
    let all = Filter::default();
    let since = now.checked_sub(SignedDuration::from_hours(7 * 24))?;
    let week = Filter { since: Some(since), ..Filter::default() };
    let one = Filter { source: "20.0.0.9/32".parse().ok(), ..Filter::default() };
    ask("top 20 of all", &|it| Ok(it.sources(&all, 20)?.matching))?;
    ask("top 20 of a week", &|it| Ok(it.sources(&week, 20)?.matching))?;
    ask("one source", &|it| Ok(it.sources(&one, 20)?.matching))?;
    ask("lines of a week", &|it| Ok(it.lines(&week, [], 10_000)?.1))?;
    ask("hours of all", &|it| Ok(it.hours(&all)?.len() as u64))?;
    ask("countries of all", &|it| Ok(it.countries(&all)?.len() as u64))?;
    ask("new ones of a week", &|it| Ok(it.newcomers(&week)?.new))?;
    Ok(())
}

fn attempt(number: u32, time: Timestamp) -> Attempt {
    const COUNTRIES: [&str; 8] = ["US", "CN", "NL", "DE", "RU", "FR", "BR", "IN"];
    let network = number % 2_000;
    Attempt {
        time,
        verdict: "drop".into(),
        reason: "no-rule".into(),
        hook: "tcx".into(),
        interface: Some("eth0".into()),
        source: Ipv4Addr::from_bits((20 << 24) + number).into(),
        source_port: Some(51_234),
        destination: Ipv4Addr::new(198, 51, 100, 4).into(),
        port: Some(11_434),
        protocol: "tcp".into(),
        tcp_flags: "SYN".into(),
        packets: u64::from(1 + number % 7),
        bytes: u64::from(1 + number % 7) * 60,
        sampled: false,
        facts: SourceFacts {
            class: Some("public".into()),
            country: COUNTRIES.get(network as usize % COUNTRIES.len()).map(|it| (*it).to_owned()),
            asn: Some(64_512 + network),
            as_name: Some(format!("NETWORK-{network}")),
            ..SourceFacts::default()
        },
    }
}
