//! What guard does as numbers, in the text format of `OpenMetrics`, which Prometheus reads.

use std::{fmt, sync::atomic::AtomicU64};

use guard_common::abi::ABI_VERSION;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::control::{Mode, Status};

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

/// The metrics of a status.
///
/// # Errors
/// When they can't be written as text, which an encoder for strings never says.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("guard");
    let build = vec![
        ("version".to_owned(), status.version.clone()),
        ("layout".to_owned(), ABI_VERSION.to_string()),
    ];
    registry.register("build", "The guard that answers", Info::new(build));
    enforcement(status, &mut registry);
    counters(status, &mut registry);

    let rules = number(status.rules as u64);
    registry.register("rules", "Rules of the policy", rules);
    let generation = number(status.generation.unwrap_or_default());
    registry.register(
        "policy_generation",
        "The number of the policy in force; 0 where none is",
        generation,
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

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
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
    registry.register("bytes", "And their bytes", bytes);
    let suppressed = Family::<Why, Counter>::default();
    for (why, number) in [
        ("unreported", status.events.unreported),
        ("repeated", status.events.repeated),
        ("passed-over", status.events.passed_over),
        ("ring-full", status.events.ring_full),
    ] {
        suppressed.get_or_create(&Why { why }).inc_by(number);
    }
    registry.register("events_suppressed", "Packets that no event tells of singly", suppressed);
}

fn number(value: u64) -> Number {
    let gauge = Number::default();
    gauge.set(value);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{CounterView, EventTotals, Layer, LayerStatus, TableUse},
        output::example,
    };

    #[test]
    fn a_status_becomes_lines_that_prometheus_reads() {
        let status = Status {
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
            events: EventTotals { ring_full: 3, ..EventTotals::default() },
            tables: vec![TableUse { table: "ports".to_owned(), used: 2, room: 64 }],
            ..example()
        };
        let text = render(&status).unwrap();
        for line in [
            "# TYPE guard_packets counter",
            "guard_packets_total{hook=\"tcx\",verdict=\"drop\",reason=\"no-rule\"} 7",
            "guard_bytes_total{hook=\"tcx\",verdict=\"drop\",reason=\"no-rule\"} 420",
            "guard_events_suppressed_total{why=\"ring-full\"} 3",
            "guard_enforced{layer=\"policy\"} 1",
            "guard_enforced{layer=\"sockets\"} 0",
            "guard_hook_attached{interface=\"eth0\",hook=\"tcx\"} 1",
            "guard_table_used{table=\"ports\"} 2",
            "guard_table_room{table=\"ports\"} 64",
            "guard_policy_generation 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_name_from_outside_breaks_no_line() {
        let mut status = example();
        status.interfaces[0].name = "e\"} 1\nguard_enforced{layer=\"x".to_owned();
        let text = render(&status).unwrap();
        assert!(!text.lines().any(|line| line.starts_with("guard_enforced{layer=\"x")), "{text}");
    }
}
