//! Connections: bulk TCP and small requests, over a veth as it comes and over loopback.

use std::{
    env, fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Bench,
    figures::{Comparison, Measured, Part, Results, quantile},
    filters::{Installed, Library},
    lists::{ListId, Shape},
    live::{forward_and_back, v4},
};
use crate::{
    http,
    lab::{CLIENT, Lab, OLLAMA, SERVER, every_address},
    listener::Service,
    lock::MachineLock,
    machine::Machine,
    product::Attach,
};

/// A port that nobody guards.
const OTHER: u16 = 5_201;

pub const OVER_VETH: &str = "over a veth";
pub const OVER_LOOPBACK: &str = "over loopback";
pub const NO_GUARD: &str = "no guard";
pub const AUTO_GUARDED: &str = "guard auto, guarded port, allowed source";
pub const AUTO_OTHER: &str = "guard auto, unguarded port";
const NATIVE_GUARDED: &str = "guard native, guarded port, allowed source";
const NATIVE_OTHER: &str = "guard native, unguarded port";

/// What goes over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// As much as goes through in so long.
    Bulk { milliseconds: u64 },
    /// So many small requests, one after the other.
    Requests { count: u64 },
}

impl Talk {
    const fn of(part: Part, is_quick: bool) -> Self {
        match (part, is_quick) {
            (Part::Bulk, true) => Self::Bulk { milliseconds: 200 },
            (Part::Bulk, false) => Self::Bulk { milliseconds: 1_000 },
            (_, true) => Self::Requests { count: 200 },
            (_, false) => Self::Requests { count: 5_000 },
        }
    }

    fn words(self) -> [String; 2] {
        match self {
            Self::Bulk { milliseconds } => ["bulk".to_owned(), milliseconds.to_string()],
            Self::Requests { count } => ["requests".to_owned(), count.to_string()],
        }
    }

    /// # Errors
    /// When these are no words of [`Talk`]'s.
    pub fn parse(kind: &str, amount: &str) -> Result<Self> {
        let amount = amount.parse().with_context(|| format!("{amount} is no number"))?;
        match kind {
            "bulk" => Ok(Self::Bulk { milliseconds: amount }),
            "requests" => Ok(Self::Requests { count: amount }),
            _ => bail!("{kind} is no way to talk"),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Bulk { .. } => "Gbit/s",
            Self::Requests { .. } => "µs",
        }
    }

    const fn service(self) -> Service {
        match self {
            Self::Bulk { .. } => Service::Sink,
            Self::Requests { .. } => Service::Http,
        }
    }

    /// What the client of a process of its own does, which joins a cgroup first: Gbit/s, or the median of a request in µs.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn with(self, server: SocketAddr, cgroup: &Path) -> Result<f64> {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("{} can't be joined", cgroup.display()))?;
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))
            .with_context(|| format!("{server} can't be reached"))?;
        match self {
            Self::Bulk { milliseconds } => {
                let length = Duration::from_millis(milliseconds);
                let piece = vec![0; 1 << 17];
                // The window has to open before it counts.
                let mut send = |length: Duration| -> Result<f64> {
                    let (started, mut bytes) = (Instant::now(), 0);
                    while started.elapsed() < length {
                        bytes += stream.write(&piece)?;
                    }
                    Ok(bytes as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9)
                };
                send(length / 5)?;
                send(length)
            }
            Self::Requests { count } => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut times = Vec::new();
                for _ in 0..count {
                    let started = Instant::now();
                    http::ask(&mut stream)?;
                    times.push(started.elapsed().as_secs_f64() * 1e6);
                }
                times.sort_by(f64::total_cmp);
                Ok(quantile(&times, 0.5))
            }
        }
    }
}

/// The list that guard has besides.
#[must_use]
pub fn lists() -> Vec<ListId> {
    vec![v4(Shape::Dense, 10_000)]
}

struct Case<'lab> {
    group: &'static str,
    name: &'static str,
    lab: &'lab Lab,
    client: &'lab Machine,
    to: SocketAddr,
    values: Vec<f64>,
}

/// # Errors
/// When a connection does not come about.
pub fn run(
    part: Part,
    bench: &Bench,
    machine: &MachineLock,
    library: &Library,
    results: &mut Results,
) -> Result<()> {
    let talk = Talk::of(part, bench.is_quick);
    let plain = Lab::on(machine, &format!("bench {} plain", part.name()));
    let auto = Lab::on(machine, &format!("bench {} auto", part.name()));
    let native = Lab::on(machine, &format!("bench {} native", part.name()));
    bench.say(part, "setting up");
    let rules = format!("[[rule]]\nallow = \"{}\"\n{}", CLIENT.v4, library.rule(lists().pop()));
    let mut guards = Vec::new();
    let mut listeners = Vec::new();
    for (lab, attach) in
        [(&plain, None), (&auto, Some(Attach::Auto)), (&native, Some(Attach::Native))]
    {
        for port in [OLLAMA, OTHER] {
            listeners.push(lab.listen(&lab.server, talk.service(), every_address(port)));
        }
        let guard = attach.map(|attach| Installed::Guard(lab.start_guard(attach, &rules)));
        guards.extend(guard);
    }

    let case = |group, name, lab, port| {
        let case =
            Case { group, name, lab, client: &lab.client, to: SERVER.v4_at(port), values: vec![] };
        if group == OVER_LOOPBACK {
            Case { client: &lab.server, to: (Ipv4Addr::LOCALHOST, port).into(), ..case }
        } else {
            case
        }
    };
    let mut cases = vec![
        case(OVER_VETH, NO_GUARD, &plain, OTHER),
        case(OVER_VETH, AUTO_GUARDED, &auto, OLLAMA),
        case(OVER_VETH, AUTO_OTHER, &auto, OTHER),
        case(OVER_VETH, NATIVE_GUARDED, &native, OLLAMA),
        case(OVER_VETH, NATIVE_OTHER, &native, OTHER),
        case(OVER_LOOPBACK, NO_GUARD, &plain, OTHER),
        case(OVER_LOOPBACK, AUTO_GUARDED, &auto, OLLAMA),
        case(OVER_LOOPBACK, AUTO_OTHER, &auto, OTHER),
    ];
    for round in 0..bench.rounds {
        bench.say(
            part,
            &format!("{} connections, round {} of {}", cases.len(), round + 1, bench.rounds),
        );
        for case in forward_and_back(&mut cases, round) {
            let value =
                call(case, talk).with_context(|| format!("{}, {}", case.name, case.group))?;
            case.values.push(value);
        }
    }
    for case in &cases {
        let base = cases.iter().find(|base| base.name == NO_GUARD && base.group == case.group);
        let base = base.map(|base| base.values.clone()).unwrap_or_default();
        let measured = Measured::new(part, case.group, case.name, talk.unit(), case.values.clone());
        results.measured.push(measured.against(NO_GUARD, Comparison::Ratio, base));
    }
    Ok(())
}

/// Both ends are in the lab's cgroup, as on a host all processes are below the root.
fn call(case: &Case<'_>, talk: Talk) -> Result<f64> {
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "nsenter"])
        .arg(format!("--net={}", case.client.netns_path().display()))
        .arg(env::current_exe()?)
        .arg("--talk")
        .args(talk.words())
        .arg(case.to.to_string())
        .arg(case.lab.cgroup())
        .output()
        .context("a client can't be started")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the client failed: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_understands_what_it_is_told() {
        for part in [Part::Bulk, Part::Latency] {
            for is_quick in [true, false] {
                let talk = Talk::of(part, is_quick);
                let [kind, amount] = talk.words();
                assert_eq!(Talk::parse(&kind, &amount).unwrap(), talk);
            }
        }
        assert!(Talk::parse("shout", "1").is_err());
        assert!(Talk::parse("bulk", "much").is_err());
    }
}
