//! What guard does as numbers, for Prometheus. `docs/metrics.md` says what each means.

use std::{
    fmt, fs, io,
    path::Path,
    sync::atomic::{AtomicI64, AtomicU64},
};

use guard_common::{
    abi::ABI_VERSION,
    verdict::{Hook, Reason, Verdict},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::{
    bounded_file,
    control::{Failure, Mode, Status},
};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Number = Gauge<u64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Judged {
    hook: String,
    verdict: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hooked {
    interface: String,
    hook: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySink {
    sink: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    layer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct In {
    table: String,
}

/// The metrics of a status, in the text format of `OpenMetrics`.
///
/// # Errors
/// When they can't be written as text, which an encoder for strings never says.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, &registry(status))?;
    Ok(text)
}

/// The same metrics in Prometheus's own older text format, which `node_exporter` reads from files.
///
/// Without a status it is what is known of a daemon that does not answer: no more than that it does not.
///
/// # Errors
/// As [`render`].
pub fn render_plain(status: Option<&Status>) -> Result<String, Failure> {
    let registry = status.map_or_else(|| of_answerer(env!("CARGO_PKG_VERSION"), false), registry);
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).map_err(|error| {
        Failure::failed(
            format!("the metrics can't be written: {error}"),
            "report this as an error of guard",
        )
    })?;
    Ok(text)
}

/// Puts metrics into a file that everybody may read, and that a reader finds whole: the old one or the new one.
///
/// # Errors
/// When it can't be written, or something else than a file has that name. What was there stays.
pub fn write_textfile(path: &Path, text: &str) -> Result<(), Failure> {
    let written = || {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| io::Error::other("it does not end with a name"))?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::other("it is not a regular file"));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        bounded_file::replace_for_all(directory.unwrap_or(Path::new(".")), name, text.as_bytes())
    };
    written().map_err(|error| {
        Failure::failed(
            format!("{} can't be written: {error}", path.display()),
            "name a file in the directory that node_exporter reads (--collector.textfile.directory)",
        )
    })
}

/// What is known whether or not there is a status.
fn of_answerer(version: &str, is_up: bool) -> Registry {
    let mut registry = Registry::with_prefix("guard");
    let build = vec![
        ("version".to_owned(), version.to_owned()),
        ("layout".to_owned(), ABI_VERSION.to_string()),
    ];
    registry.register("build", "The guard that answers", Info::new(build));
    registry.register(
        "daemon_up",
        "1 where a daemon answers; without one the kernel goes on enforcing",
        number(u64::from(is_up)),
    );
    registry
}

fn registry(status: &Status) -> Registry {
    let mut registry = of_answerer(&status.version, status.daemon.is_some());
    enforcement(status, &mut registry);
    counters(status, &mut registry);
    events(status, &mut registry);
    policy(status, &mut registry);
    registry
}

fn enforcement(status: &Status, registry: &mut Registry) {
    let enforced = Family::<Of, Number>::default();
    for layer in &status.layers {
        enforced.get_or_create(&Of { layer: layer.layer.name() }).set(u64::from(layer.enforced));
    }
    registry.register(
        "enforced",
        "1 where all of a layer is in force, 0 where a part of it is missing",
        enforced,
    );
    let observing = number(u64::from(status.mode == Mode::Observe));
    registry.register("observing", "1 while packets are only counted", observing);
    let attached = Family::<Hooked, Number>::default();
    for interface in &status.interfaces {
        let hook = interface.hook.clone();
        let is_attached = hook.is_some();
        let label = Hooked {
            interface: interface.name.clone(),
            hook: hook.unwrap_or_else(|| "none".to_owned()),
        };
        attached.get_or_create(&label).set(u64::from(is_attached));
    }
    let label = Hooked { interface: String::new(), hook: "cgroup".to_owned() };
    attached.get_or_create(&label).set(u64::from(status.backstop.attached));
    registry.register(
        "hook_attached",
        "1 for each hook that judges packets, 0 for an interface without one",
        attached,
    );
}

fn counters(status: &Status, registry: &mut Registry) {
    let (packets, bytes) =
        (Family::<Judged, Counter>::default(), Family::<Judged, Counter>::default());
    // The kernel's counters are all there from the start, and the rate of one that appears with its first packets would
    // leave these out. So what everybody meets first has its line from the start.
    for hook in Hook::ALL.into_iter().filter(|_| status.generation.is_some()) {
        for verdict in [Verdict::Drop, Verdict::WouldDrop] {
            let label = Judged {
                hook: hook.name().to_owned(),
                verdict: verdict.name().to_owned(),
                reason: Reason::NoRule.name().to_owned(),
            };
            packets.get_or_create(&label).inc_by(0);
            bytes.get_or_create(&label).inc_by(0);
        }
    }
    for counter in &status.counters {
        let label = Judged {
            hook: counter.hook.clone(),
            verdict: counter.verdict.clone(),
            reason: counter.reason.clone(),
        };
        packets.get_or_create(&label).inc_by(counter.packets);
        bytes.get_or_create(&label).inc_by(counter.bytes);
    }
    registry.register("packets", "Packets for guarded ports, each hook by itself", packets);
    registry.register("bytes", "Their bytes, from the IP header on", bytes);
}

fn events(status: &Status, registry: &mut Registry) {
    let totals = &status.events;
    let suppressed = Family::<Why, Counter>::default();
    for (why, number) in [("repeated", totals.repeated), ("ring-full", totals.ring_full)] {
        suppressed.get_or_create(&Why { why }).inc_by(number);
    }
    registry.register("events_suppressed", "Events that were not sent", suppressed);

    // Gauges: the next event of a source takes what it tells of away again.
    let pending = Family::<Why, Gauge<i64, AtomicI64>>::default();
    for (why, number) in [("unreported", totals.unreported), ("passed-over", totals.passed_over)] {
        pending.get_or_create(&Why { why }).set(number.cast_signed());
    }
    registry.register("pending_packets", "Packets that no event has told of yet", pending);
    registry.register(
        "attempt_sources",
        "Sources with attempts in the last five minutes, at most 65536",
        number(totals.sources),
    );

    let by_sink = Family::<BySink, Counter>::default();
    for sink in &totals.sinks {
        for (outcome, number) in [("taken", sink.taken), ("left-out", sink.left_out)] {
            let sink = sink.sink.clone();
            by_sink.get_or_create(&BySink { sink, outcome }).inc_by(number);
        }
    }
    registry.register("sink_attempts", "Attempts that the daemon writes by itself", by_sink);
}

fn policy(status: &Status, registry: &mut Registry) {
    registry.register("rules", "Rules of the policy", number(status.rules as u64));
    registry.register(
        "policy_generation",
        "The number of the policy in force; 0 where none is",
        number(status.generation.unwrap_or_default()),
    );
    let failing = status.sources.iter().filter(|source| source.refresh.error.is_some()).count();
    registry.register(
        "sources_failing",
        "Files, countries and names that could not be taken anew: what was taken before holds",
        number(failing as u64),
    );
    let (used, room) = (Family::<In, Number>::default(), Family::<In, Number>::default());
    for table in &status.tables {
        let label = In { table: table.table.clone() };
        used.get_or_create(&label).set(table.used);
        room.get_or_create(&label).set(table.room);
    }
    registry.register("table_used", "What the policy takes of a table of the kernel's", used);
    registry.register(
        "table_room",
        "What a table holds: a policy that needs more is refused",
        room,
    );
    registry.register(
        "source_table_bytes",
        "What the tables of sources take of the kernel's memory",
        number(status.source_table_bytes),
    );
}

fn number(value: u64) -> Number {
    let gauge = Number::default();
    gauge.set(value);
    gauge
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::{
        control::{
            CounterView, EventTotals, Layer, LayerStatus, Refresh, SinkStatus, SourceStatus,
            TableUse,
        },
        output::example,
    };

    fn full() -> Status {
        Status {
            layers: vec![
                LayerStatus { layer: Layer::Policy, enforced: true },
                LayerStatus { layer: Layer::Sockets, enforced: false },
            ],
            counters: vec![CounterView {
                hook: "tcx".to_owned(),
                verdict: "drop".to_owned(),
                reason: "no-rule".to_owned(),
                packets: 7,
                bytes: 420,
            }],
            events: EventTotals {
                ring_full: 3,
                unreported: 2,
                passed_over: 5,
                sources: 4,
                sinks: vec![SinkStatus {
                    sink: "journal".to_owned(),
                    taken: 9,
                    left_out: 2,
                    error: None,
                }],
                ..EventTotals::default()
            },
            tables: vec![TableUse { table: "ports".to_owned(), used: 2, room: 64 }],
            sources: vec![SourceStatus {
                source: "host.example.org".to_owned(),
                prefixes: 1,
                refresh: Refresh { error: Some("no answer".to_owned()), ..Refresh::default() },
            }],
            daemon: Some(7),
            ..example()
        }
    }

    #[track_caller]
    fn expect_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} is not in:\n{text}");
        }
    }

    /// Lines of both formats.
    const LINES: [&str; 18] = [
        "guard_daemon_up 1",
        "guard_packets_total{hook=\"tcx\",verdict=\"drop\",reason=\"no-rule\"} 7",
        "guard_packets_total{hook=\"cgroup\",verdict=\"would-drop\",reason=\"no-rule\"} 0",
        "guard_bytes_total{hook=\"tcx\",verdict=\"drop\",reason=\"no-rule\"} 420",
        "guard_events_suppressed_total{why=\"ring-full\"} 3",
        "guard_pending_packets{why=\"unreported\"} 2",
        "guard_pending_packets{why=\"passed-over\"} 5",
        "guard_attempt_sources 4",
        "guard_sink_attempts_total{sink=\"journal\",outcome=\"taken\"} 9",
        "guard_sink_attempts_total{sink=\"journal\",outcome=\"left-out\"} 2",
        "guard_enforced{layer=\"policy\"} 1",
        "guard_enforced{layer=\"sockets\"} 0",
        "guard_hook_attached{interface=\"eth0\",hook=\"tcx\"} 1",
        "guard_table_used{table=\"ports\"} 2",
        "guard_table_room{table=\"ports\"} 64",
        "guard_policy_generation 7",
        "guard_sources_failing 1",
        "guard_observing 0",
    ];

    #[test]
    fn a_status_becomes_lines_that_prometheus_reads() {
        let text = render(&full()).unwrap();
        expect_lines(&text, &LINES);
        expect_lines(&text, &["# TYPE guard_packets counter", "# TYPE guard_build info"]);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_older_format_has_the_same_lines_and_nothing_that_it_does_not_know() {
        let text = render_plain(Some(&full())).unwrap();
        expect_lines(&text, &LINES);
        expect_lines(
            &text,
            &["# TYPE guard_packets_total counter", "# TYPE guard_build_info gauge"],
        );
        assert!(!text.contains("# EOF") && !text.contains(" info\n"), "{text}");
    }

    #[test]
    fn of_a_daemon_that_does_not_answer_nothing_else_is_told() {
        let text = render_plain(None).unwrap();
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(values.len(), 2, "{text}");
        assert!(values[0].starts_with("guard_build_info{"), "{text}");
        assert_eq!(values[1], "guard_daemon_up 0");
    }

    #[test]
    fn where_nothing_is_loaded_nothing_is_counted() {
        let text = render(&Status { generation: None, counters: Vec::new(), ..full() }).unwrap();
        assert!(!text.contains("guard_packets_total"), "{text}");
        expect_lines(&text, &["guard_policy_generation 0"]);
    }

    #[test]
    fn a_name_from_outside_breaks_no_line() {
        let mut status = example();
        status.interfaces[0].name = "e\"} 1\nguard_enforced{layer=\"x".to_owned();
        for text in [render(&status).unwrap(), render_plain(Some(&status)).unwrap()] {
            assert!(
                !text.lines().any(|line| line.starts_with("guard_enforced{layer=\"x")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_textfile_is_replaced_whole_and_everybody_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guard.prom");
        for text in ["one\n", "2\n"] {
            write_textfile(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        }
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_textfile_takes_no_other_files_place_and_makes_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let here = |name: &str| directory.path().join(name);
        fs::create_dir(here("directory")).unwrap();
        fs::write(here("other"), "other").unwrap();
        symlink(here("other"), here("link")).unwrap();
        for name in ["directory", "link", "missing/guard.prom", ".."] {
            let failure = write_textfile(&here(name), "x").unwrap_err();
            assert!(failure.what.contains("can't be written"), "{failure:?}");
        }
        assert!(write_textfile(Path::new("/dev/null"), "x").is_err());
        assert_eq!(fs::read_to_string(here("other")).unwrap(), "other");
        assert!(!here("missing").exists());
        assert!(fs::symlink_metadata(here("link")).unwrap().is_symlink());
    }
}
