//! The tables, as they stand in the documentation.

use std::fmt::Write as _;

use super::{
    facts::Facts,
    figures::{Comparison, Measured, Part, Results, Spread, compare},
    live::{self, BARE, BARE_PORT},
    load, memory, talk, testrun,
};

/// What stands around the figures in `docs/performance.md`.
pub const BEGIN: &str = "<!-- figures: begin -->";
pub const END: &str = "<!-- figures: end -->";

/// A comparison that somebody asks for.
struct Question {
    text: &'static str,
    comparison: Comparison,
    this: Place,
    that: Place,
}

/// Where a figure stands.
#[derive(Clone)]
struct Place {
    part: Part,
    group: String,
    case: &'static str,
}

/// The text with these figures in place of those between its markers.
#[must_use]
pub fn between_markers(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{figures}\n{END}{after}"))
}

/// Everything that was measured.
#[must_use]
pub fn markdown(facts: &Facts, rounds: usize, results: &Results) -> String {
    let mut text = format!("{facts}. {rounds} rounds; median (lowest–highest).\n");
    if let Some(busy) = facts.is_busy() {
        let _ = writeln!(text, "\nBusy: {busy}.");
    }
    for noisy in &results.noisy {
        let _ = writeln!(text, "\nNoisy, not to be relied on: {noisy}.");
    }
    answers(&mut text, results);
    let mut groups: Vec<(Part, &str)> = Vec::new();
    for Measured { part, group, .. } in &results.measured {
        if !groups.contains(&(*part, group)) {
            groups.push((*part, group));
        }
    }
    for (part, group) in groups {
        let rows: Vec<&Measured> = results
            .measured
            .iter()
            .filter(|measured| measured.part == part && measured.group == group)
            .collect();
        table(&mut text, part, group, &rows);
    }
    for missing in &results.missing {
        let _ = writeln!(text, "\n{}.", capitalised(missing));
    }
    text
}

fn table(text: &mut String, part: Part, group: &str, rows: &[&Measured]) {
    let Some(first) = rows.first() else { return };
    let is_compared = rows.iter().any(|row| row.base.is_some());
    let title = match part {
        Part::Live => "Floods",
        Part::Testrun => "Single programs",
        Part::Load => "Loading",
        Part::Bulk => "Bulk TCP",
        Part::Latency => "A small request over a kept connection",
        Part::Daemon => "The daemon",
        Part::Memory => "Memory",
    };
    let _ = writeln!(text, "\n### {title}: {group}\n");
    let has_units = rows.iter().any(|row| row.unit != first.unit);
    let unit = if has_units { "measured".to_owned() } else { first.unit.to_owned() };
    let _ = write!(text, "| case | {unit} |");
    let _ = writeln!(text, "{}", if is_compared { " beside its base | base |" } else { "" });
    let _ = writeln!(text, "| --- | ---: |{}", if is_compared { " ---: | --- |" } else { "" });
    for row in rows {
        let unit = if has_units { format!(" {}", row.unit) } else { String::new() };
        let _ = write!(text, "| {} | {}{unit} |", row.case, shown(row.spread()));
        if is_compared {
            match (&row.base, row.compared()) {
                (Some(base), Some(_)) if base.name == row.case => {
                    let _ = write!(text, " 1 | |");
                }
                (Some(base), Some(compared)) => {
                    let compared = said(base.comparison, compared);
                    let _ = write!(text, " {compared} | {} |", base.name);
                }
                _ => text.push_str(" | |"),
            }
        }
        text.push('\n');
    }
}

fn answers(text: &mut String, results: &Results) {
    let questions = questions();
    let answered: Vec<String> = questions
        .iter()
        .filter_map(|question| {
            let find = |place: &Place| results.find(place.part, &place.group, place.case);
            let (this, that) = (find(&question.this)?, find(&question.that)?);
            // Its own base was measured right beside it.
            let beside = this.base.as_ref().filter(|base| base.name == question.that.case);
            let values = beside.map_or(&that.values, |base| &base.values);
            let compared = compare(&this.values, values, question.comparison);
            Some(format!(
                "| {} | {} |",
                question.text,
                said(question.comparison, Spread::of(&compared))
            ))
        })
        .chain(bases(results))
        .chain(of_the_daemon(results))
        .collect();
    if !answered.is_empty() {
        let _ = writeln!(text, "\n### In short\n\n| | median (range) |\n| --- | ---: |");
        let _ = writeln!(text, "{}", answered.join("\n"));
    }
}

/// The comparisons that cases bring with them.
fn bases(results: &Results) -> Vec<String> {
    let shown = [
        (Part::Testrun, testrun::OTHER_PORT),
        (Part::Testrun, testrun::ALLOWED),
        (Part::Testrun, testrun::FLOW),
        (Part::Testrun, testrun::DROPPED),
        (Part::Load, load::FROM_FILE),
        (Part::Load, load::START),
        (Part::Memory, memory::GROUP),
        (Part::Bulk, talk::OVER_VETH),
        (Part::Bulk, talk::OVER_LOOPBACK),
        (Part::Latency, talk::OVER_VETH),
        (Part::Latency, talk::OVER_LOOPBACK),
    ];
    let mut rows = Vec::new();
    for (part, group) in shown {
        let of_group = results.measured.iter().filter(|m| m.part == part && m.group == group);
        for measured in of_group {
            let (Some(base), Some(compared)) = (&measured.base, measured.compared()) else {
                continue;
            };
            if base.name == measured.case || base.values == measured.values {
                continue;
            }
            let what = match part {
                Part::Bulk => "bulk TCP ",
                Part::Latency => "p50 of a small request ",
                _ => "",
            };
            let said = said(base.comparison, compared);
            rows.push(format!(
                "| {what}{group}: {}, beside {} | {said} |",
                measured.case, base.name
            ));
        }
    }
    rows
}

/// What is compared with nothing.
fn of_the_daemon(results: &Results) -> Vec<String> {
    let measured = results.measured.iter().filter(|measured| measured.part == Part::Daemon);
    let row = |m: &Measured| {
        format!("| the daemon {}: {} | {} {} |", m.group, m.case, shown(m.spread()), m.unit)
    };
    measured.map(row).collect()
}

fn questions() -> Vec<Question> {
    use Comparison::Ratio;
    let flood =
        |traffic: live::Traffic, case| Place { part: Part::Live, group: traffic.name(), case };
    let ratio = |text, traffic, this, that| Question {
        text,
        comparison: Ratio,
        this: flood(traffic, this),
        that: flood(traffic, that),
    };
    let (one, many) = (live::ONE, live::MANY);
    vec![
        ratio(
            "A program that only looks for the port, one source, beside bare XDP_DROP",
            one,
            BARE_PORT,
            BARE,
        ),
        ratio(
            "XDP drop, one source, 10k dense, beside bare XDP_DROP",
            one,
            "guard XDP, 10k dense",
            BARE,
        ),
        ratio(
            "XDP drop, one source, 1M dense, beside bare XDP_DROP",
            one,
            "guard XDP, 1M dense",
            BARE,
        ),
        ratio(
            "XDP drop, one source, 1M mixed, beside bare XDP_DROP",
            one,
            "guard XDP, 1M mixed",
            BARE,
        ),
        ratio(
            "XDP drop, one source, 1M spread, beside the same with 10",
            one,
            "guard XDP, 1M spread",
            "guard XDP, 10 spread",
        ),
        ratio(
            "XDP drop, 64k sources, 10k dense, beside bare XDP_DROP",
            many,
            "guard XDP, 10k dense",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 10k spread, beside bare XDP_DROP",
            many,
            "guard XDP, 10k spread",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 100k dense, beside bare XDP_DROP",
            many,
            "guard XDP, 100k dense",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 100k spread, beside bare XDP_DROP",
            many,
            "guard XDP, 100k spread",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 100k mixed, beside bare XDP_DROP",
            many,
            "guard XDP, 100k mixed",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 1M dense, beside bare XDP_DROP",
            many,
            "guard XDP, 1M dense",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 1M spread, beside bare XDP_DROP",
            many,
            "guard XDP, 1M spread",
            BARE,
        ),
        ratio(
            "XDP drop, 64k sources, 1M mixed, beside bare XDP_DROP",
            many,
            "guard XDP, 1M mixed",
            BARE,
        ),
        ratio(
            "nft netdev ingress beside guard XDP, one source, 10k dense",
            one,
            "nft netdev ingress, 10k dense",
            "guard XDP, 10k dense",
        ),
        ratio(
            "nft netdev ingress beside guard XDP, 64k sources, 10k dense",
            many,
            "nft netdev ingress, 10k dense",
            "guard XDP, 10k dense",
        ),
        ratio(
            "nft netdev ingress beside guard XDP, 64k sources, 10k spread",
            many,
            "nft netdev ingress, 10k spread",
            "guard XDP, 10k spread",
        ),
        ratio(
            "nft netdev ingress beside guard XDP, 64k sources, 100k dense",
            many,
            "nft netdev ingress, 100k dense",
            "guard XDP, 100k dense",
        ),
        ratio(
            "nft netdev ingress beside guard XDP, 64k sources, 1M dense",
            many,
            "nft netdev ingress, 1M dense",
            "guard XDP, 1M dense",
        ),
        ratio(
            "iptables raw + ipset beside guard XDP, one source, 10k dense",
            one,
            "iptables raw + ipset, 10k dense",
            "guard XDP, 10k dense",
        ),
        ratio(
            "iptables raw + ipset beside guard XDP, 64k sources, 10k dense",
            many,
            "iptables raw + ipset, 10k dense",
            "guard XDP, 10k dense",
        ),
        ratio(
            "nft netdev ingress beside guard TCX, one source, 10k dense",
            one,
            "nft netdev ingress, 10k dense",
            "guard TCX, 10k dense",
        ),
        ratio(
            "nft netdev ingress beside guard TCX, 64k sources, 10k dense",
            many,
            "nft netdev ingress, 10k dense",
            "guard TCX, 10k dense",
        ),
        Question {
            text: "IPv6 beside IPv4, XDP, one source, 10k",
            comparison: Ratio,
            this: flood(live::ONE_V6, "guard XDP, 10k mixed IPv6"),
            that: flood(one, "guard XDP, 10k spread"),
        },
        Question {
            text: "IPv6 beside IPv4, XDP, 64k sources, 10k",
            comparison: Ratio,
            this: flood(live::MANY_V6, "guard XDP, 10k mixed IPv6"),
            that: flood(many, "guard XDP, 10k spread"),
        },
        Question {
            text: "IPv6 beside IPv4, XDP, 64k sources, 100k mixed",
            comparison: Ratio,
            this: flood(live::MANY_V6, "guard XDP, 100k mixed IPv6"),
            that: flood(many, "guard XDP, 100k mixed"),
        },
        Question {
            text: "IPv6 beside IPv4, XDP, 64k sources, 1M mixed",
            comparison: Ratio,
            this: flood(live::MANY_V6, "guard XDP, 1M mixed IPv6"),
            that: flood(many, "guard XDP, 1M mixed"),
        },
    ]
}

fn said(comparison: Comparison, compared: Spread) -> String {
    let Spread { median, low, high } = compared;
    match comparison {
        Comparison::Ratio => format!("{median:.2} ({low:.2}–{high:.2})"),
        Comparison::Difference => format!("{median:+.0} ns ({low:+.0} to {high:+.0})"),
    }
}

/// With as many digits as tell something.
fn shown(spread: Spread) -> String {
    let digits = match spread.median.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let Spread { median, low, high } = spread;
    format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            revision: "0123abc".to_owned(),
            processor: "Fast CPU 9".to_owned(),
            processors: 2,
            kernel: "6.18.0".to_owned(),
            date: "2026-11-25".to_owned(),
            busy_share: 0.0,
        }
    }

    fn flood(case: &str, values: [f64; 3]) -> Measured {
        let measured =
            Measured::new(Part::Live, &live::ONE.name(), case, "ns/packet", values.to_vec());
        measured.against(BARE, Comparison::Ratio, vec![100.0, 110.0, 90.0])
    }

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let page = format!("# Title\n{BEGIN}\nold\n{END}\nrest\n");
        let new = between_markers(&page, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}\n\nnew\n\n{END}\nrest\n"));
        assert_eq!(between_markers(&new, "new\n").unwrap(), new);
        assert_eq!(between_markers("no markers", "new"), None);
    }

    #[test]
    fn a_table_has_medians_ranges_and_ratios() {
        let measured = vec![
            // Not what it came to beside the other.
            flood(BARE, [90.0, 100.0, 110.0]),
            flood("guard XDP, 10k dense", [150.0, 220.0, 126.0]),
        ];
        let text = markdown(&facts(), 3, &Results { measured, ..Results::default() });
        for line in [
            "guard 0123abc, Fast CPU 9, 2 processors, Linux 6.18.0, 2026-11-25. 3 rounds; median (lowest–highest).",
            "| XDP drop, one source, 10k dense, beside bare XDP_DROP | 1.50 (1.40–2.00) |",
            "### Floods: IPv4 TCP SYN, one source",
            "| case | ns/packet | beside its base | base |",
            "| bare XDP_DROP | 100 (90–110) | 1 | |",
            "| guard XDP, 10k dense | 150 (126–220) | 1.50 (1.40–2.00) | bare XDP_DROP |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_noisy_or_missing_is_marked() {
        let results = Results {
            noisy: vec!["bare XDP_DROP varied by 3.1".to_owned()],
            missing: vec!["not measured: nft: needs nft".to_owned()],
            ..Results::default()
        };
        let text = markdown(&Facts { busy_share: 0.5, ..facts() }, 7, &results);
        for line in [
            "Noisy, not to be relied on: bare XDP_DROP varied by 3.1.",
            "Not measured: nft: needs nft.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("Busy: others take 50 %"), "{text}");
    }

    #[test]
    fn numbers_have_the_digits_that_tell_something() {
        let of = |median| shown(Spread { median, low: median, high: median });
        assert_eq!(of(1234.5), "1234 (1234–1234)");
        assert_eq!(of(45.67), "45.7 (45.7–45.7)");
        assert_eq!(of(3.456), "3.46 (3.46–3.46)");
        let spread = Spread { median: 12.4, low: -3.0, high: 20.0 };
        assert_eq!(said(Comparison::Difference, spread), "+12 ns (-3 to +20)");
    }
}
