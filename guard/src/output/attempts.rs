//! Attempts, one a line.

use std::net::{IpAddr, SocketAddr};

use super::text::{View, count, escaped};
use crate::{
    events::{Attempt, SourceFacts},
    store::HourLine,
};

/// `01:02:03 drop no-rule 203.0.113.9:51234 → 198.51.100.4:11434 tcp SYN on eth0 (xdp), 3 packets`
#[must_use]
pub fn attempt(attempt: &Attempt, view: &View) -> String {
    let verdict = escaped(&attempt.verdict);
    let verdict = if verdict == "drop" { view.bad(&verdict) } else { view.notable(&verdict) };
    let flags = match attempt.tcp_flags.as_str() {
        "" => String::new(),
        flags => format!(" {}", escaped(flags)),
    };
    let place = match &attempt.interface {
        Some(interface) => format!("on {}", escaped(interface)),
        None => "at a socket".to_owned(),
    };
    let about = if attempt.sampled { "about " } else { "" };
    format!(
        "{} {verdict} {} {} → {} {}{flags} {place} ({}), {about}{}{}\n",
        view.time(attempt.time),
        escaped(&attempt.reason),
        end(attempt.source, attempt.source_port),
        end(attempt.destination, attempt.port),
        escaped(&attempt.protocol),
        escaped(&attempt.hook),
        count(attempt.packets, "packet"),
        facts(&attempt.facts),
    )
}

/// Labels that a line names.
const MOST_LABELS: usize = 3;

/// The longest name of a line.
const MOST_NAME_CHARS: usize = 24;

/// `; lan`, `; FR Lyon, AS64500 EXAMPLE, office`: what is known of the source. Most are public: that is not said.
fn facts(facts: &SourceFacts) -> String {
    let known = known(facts);
    if known.is_empty() { known } else { format!("; {known}") }
}

/// `FR Lyon, AS64500 EXAMPLE, office`
pub(super) fn known(facts: &SourceFacts) -> String {
    let class = facts.class.as_deref().filter(|class| *class != "public").map(escaped);
    let name = |name: &Option<String>| name.as_deref().map(short);
    let place = [name(&facts.country), name(&facts.city)];
    let place: Vec<String> = place.into_iter().flatten().collect();
    let number = facts.asn.map(|asn| format!("AS{asn}"));
    let network: Vec<String> = number.into_iter().chain(name(&facts.as_name)).collect();
    let mut parts: Vec<String> =
        class.into_iter().chain([place.join(" "), network.join(" ")]).collect();
    parts.extend(facts.labels.iter().take(MOST_LABELS).map(|label| escaped(label)));
    if let Some(more) = facts.labels.len().checked_sub(MOST_LABELS).filter(|more| *more > 0) {
        parts.push(format!("and {}", count(more as u64, "label")));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

fn short(name: &str) -> String {
    let mut short: String = name.chars().take(MOST_NAME_CHARS).collect();
    if short.len() < name.len() {
        short = format!("{}…", short.trim_end());
    }
    escaped(&short)
}

fn end(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

/// Told to a follower that was too slow.
#[must_use]
pub fn lagged(attempts: u64) -> String {
    format!(
        "{} not shown: they came faster than they could be printed (guard status has every packet)\n",
        count(attempts, "attempt")
    )
}

/// `01:02:03 to 01:59:00 drop no-rule 203.0.113.9 → port 11434 tcp, 3 packets in 2 attempts (history); FR, AS64500 EXAMPLE`
#[must_use]
pub fn hour(hour: &HourLine, view: &View) -> String {
    let verdict = escaped(&hour.verdict);
    let verdict = if verdict == "drop" { view.bad(&verdict) } else { view.notable(&verdict) };
    let source = hour.source.as_deref().unwrap_or("other sources");
    let port = hour.port.map_or_else(String::new, |port| format!(" → port {port}"));
    format!(
        "{} to {} {verdict} {} {}{port} {}, {} in {} (history){}\n",
        view.time(hour.first_seen),
        view.time(hour.last_seen),
        escaped(&hour.reason),
        escaped(source),
        escaped(&hour.protocol),
        count(hour.totals.packets, "packet"),
        count(hour.totals.attempts, "attempt"),
        facts(&hour.facts),
    )
}

/// Told to whoever asks for more of the history than is shown at once.
#[must_use]
pub fn left_out(lines: u64) -> String {
    format!(
        "{} of the history, older than what follows, not shown: ask for a shorter time or fewer sources, or see guard sources\n",
        count(lines, "line")
    )
}

#[cfg(test)]
mod tests {
    use super::{super::text::tests::view, *};
    use crate::{events::tests::example, store::tests::example_hour};

    #[test]
    fn an_hour_is_one_line_and_says_so() {
        assert_eq!(
            hour(&example_hour(), &view()),
            "01:02:03 to 01:59:00 drop no-rule 203.0.113.9 → port 11434 tcp, 30 packets in 4 attempts (history)\n"
        );
        let others =
            HourLine { source: None, port: None, reason: "a\n\u{1b}[2J".into(), ..example_hour() };
        assert_eq!(
            hour(&others, &view()),
            "01:02:03 to 01:59:00 drop a\\u{a}\\u{1b}[2J other sources tcp, 30 packets in 4 attempts (history)\n"
        );
        assert!(left_out(1_200).starts_with("1,200 lines of the history, older"));
    }

    #[test]
    fn an_attempt_is_one_line() {
        let three = Attempt { packets: 3, ..example() };
        assert_eq!(
            attempt(&three, &view()),
            "01:02:03 drop no-rule 203.0.113.9:51234 → 198.51.100.4:11434 tcp SYN on eth0 (xdp), 3 packets\n"
        );
    }

    #[test]
    fn what_is_known_of_the_source_stands_at_the_end() {
        let end = |facts: SourceFacts| {
            let line = attempt(&Attempt { facts, ..example() }, &view());
            line.split_once("1 packet").unwrap().1.to_owned()
        };
        let class = |class: &str| Some(class.to_owned());
        let public = SourceFacts { class: class("public"), ..SourceFacts::default() };
        assert_eq!(end(public.clone()), "\n");
        assert_eq!(end(SourceFacts { class: class("lan"), ..public.clone() }), "; lan\n");
        let all = SourceFacts {
            class: class("vpn"),
            country: Some("FR".into()),
            city: Some("Lyon".into()),
            asn: Some(64500),
            as_name: Some("A name that is longer than a line has room for".into()),
            labels: ["a", "b\u{1b}[31m", "c", "d", "e"].map(Into::into).to_vec(),
        };
        assert_eq!(
            end(all),
            "; vpn, FR Lyon, AS64500 A name that is longer th…, a, b\\u{1b}[31m, c, and 2 labels\n"
        );
        let network = SourceFacts { asn: Some(7), ..public };
        assert_eq!(end(network), "; AS7\n");
    }

    #[test]
    fn what_was_sampled_is_about_right() {
        let sampled = Attempt { packets: 640, sampled: true, ..example() };
        assert!(attempt(&sampled, &view()).ends_with("(xdp), about 640 packets\n"));
    }

    #[test]
    fn what_is_absent_is_left_out() {
        let at_a_socket = Attempt {
            verdict: "would-drop".into(),
            reason: "undecidable".into(),
            hook: "cgroup".into(),
            interface: None,
            source: "2001:db8::9".parse().unwrap(),
            source_port: None,
            destination: "2001:db8::4".parse().unwrap(),
            protocol: "udp".into(),
            tcp_flags: String::new(),
            ..example()
        };
        assert_eq!(
            attempt(&at_a_socket, &view()),
            "01:02:03 would-drop undecidable 2001:db8::9 → [2001:db8::4]:11434 udp at a socket (cgroup), 1 packet\n"
        );
    }

    #[test]
    fn an_interfaces_name_can_not_forge_a_line() {
        let forged = Attempt { interface: Some("e\n\u{1b}[31m".into()), ..example() };
        let line = attempt(&forged, &view());
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("on e\\u{a}\\u{1b}[31m (xdp)"), "{line}");
    }

    #[test]
    fn lost_lines_are_told() {
        assert_eq!(
            lagged(1_200),
            "1,200 attempts not shown: they came faster than they could be printed (guard status has every packet)\n"
        );
    }
}
