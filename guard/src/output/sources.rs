//! `guard sources`: who sent the most.

use super::{
    attempts::known,
    text::{Page, View, bytes, columns, count, escaped},
};
use crate::store::{SourceLine, Sources};

/// The most ports that one line names.
const MOST_PORTS: usize = 4;

/// A line for each source, and what all of them come to.
#[must_use]
pub fn sources(answer: &Sources, view: &View) -> String {
    let mut page = Page::default();
    if !answer.sources.is_empty() {
        let heads =
            ["source", "packets", "attempts", "first seen", "last seen", "ports", "known of it"];
        let heads = heads.map(str::to_owned).to_vec();
        let rows = answer.sources.iter().map(|source| row(source, view));
        page.block(&columns(&[heads].into_iter().chain(rows).collect::<Vec<_>>()));
    }
    let shown = answer.sources.len() as u64;
    let all = count(answer.matching, "source");
    let all = if answer.matching > shown { format!("{shown} of {all}") } else { all };
    page.line(format!(
        "{all}: {} in {}, {}",
        count(answer.total.packets, "packet"),
        count(answer.total.attempts, "attempt"),
        bytes(answer.total.bytes),
    ));
    if answer.others.packets > 0 {
        page.line(format!(
            "and {} of sources that came too fast to be kept one by one",
            count(answer.others.packets, "packet")
        ));
    }
    page.into_text()
}

fn row(source: &SourceLine, view: &View) -> Vec<String> {
    vec![
        escaped(&source.source),
        source.totals.packets.to_string(),
        source.totals.attempts.to_string(),
        view.time(source.first_seen),
        view.time(source.last_seen),
        ports(&source.ports),
        known(&source.facts),
    ]
}

/// The first of them, and how many there are more.
fn ports(all: &[String]) -> String {
    let (shown, more) = all.split_at(all.len().min(MOST_PORTS));
    let mut shown: Vec<String> = shown.iter().map(|port| escaped(port)).collect();
    if !more.is_empty() {
        shown.push(format!("{} more", more.len()));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{super::text::tests::view, *};
    use crate::{events::SourceFacts, store::Totals};

    fn example() -> SourceLine {
        SourceLine {
            source: "203.0.113.9".into(),
            first_seen: "2026-11-20T01:02:03Z".parse().unwrap(),
            last_seen: "2026-11-25T01:02:03Z".parse().unwrap(),
            totals: Totals { attempts: 4, packets: 1_234, bytes: 74_040 },
            ports: vec!["11434".into()],
            facts: SourceFacts {
                country: Some("FR".into()),
                asn: Some(64_500),
                as_name: Some("EX\u{1b}AMPLE".into()),
                labels: ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into(),
                ..SourceFacts::default()
            },
        }
    }

    #[test]
    fn each_source_is_a_line_and_the_last_sums_up() {
        let totals = example().totals;
        let other = SourceLine {
            source: "2001:db8:1:2::/64".into(),
            ports: vec!["11434".into(), "udp/53".into()],
            facts: SourceFacts::default(),
            ..example()
        };
        let answer = Sources {
            sources: vec![example(), other],
            matching: 1_000,
            total: totals,
            others: Totals::default(),
        };
        assert_eq!(
            sources(&answer, &view()),
            "  source             packets  attempts  first seen           last seen  ports          known of it\n  \
             203.0.113.9        1234     4         2026-11-20 01:02:03  01:02:03   11434          FR, AS64500 EX\\u{1b}AMPLE, a, b, c, and 3 labels\n  \
             2001:db8:1:2::/64  1234     4         2026-11-20 01:02:03  01:02:03   11434, udp/53\n\
             2 of 1,000 sources: 1,234 packets in 4 attempts, 74.0 kB\n"
        );
    }

    #[test]
    fn nothing_is_said_as_well() {
        assert_eq!(
            sources(&Sources::default(), &view()),
            "0 sources: 0 packets in 0 attempts, 0 B\n"
        );
        let others = Sources { others: example().totals, ..Sources::default() };
        assert!(sources(&others, &view()).ends_with(
            "\nand 1,234 packets of sources that came too fast to be kept one by one\n"
        ));
    }
}
