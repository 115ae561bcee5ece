//! Attempts, one a line.

use std::net::{IpAddr, SocketAddr};

use super::text::{View, count, escaped};
use crate::{events::Attempt, store::HourLine};

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
        "{} {verdict} {} {} → {} {}{flags} {place} ({}), {about}{}\n",
        view.time(attempt.time),
        escaped(&attempt.reason),
        end(attempt.source, attempt.source_port),
        end(attempt.destination, attempt.port),
        escaped(&attempt.protocol),
        escaped(&attempt.hook),
        count(attempt.packets, "packet"),
    )
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

/// `01:02:03 to 01:59:00 drop no-rule 203.0.113.9 → port 11434 tcp, 3 packets in 2 attempts (history)`
#[must_use]
pub fn hour(hour: &HourLine, view: &View) -> String {
    let verdict = escaped(&hour.verdict);
    let verdict = if verdict == "drop" { view.bad(&verdict) } else { view.notable(&verdict) };
    let source = hour.source.as_deref().unwrap_or("other sources");
    let port = hour.port.map_or_else(String::new, |port| format!(" → port {port}"));
    format!(
        "{} to {} {verdict} {} {}{port} {}, {} in {} (history)\n",
        view.time(hour.first_seen),
        view.time(hour.last_seen),
        escaped(&hour.reason),
        escaped(source),
        escaped(&hour.protocol),
        count(hour.totals.packets, "packet"),
        count(hour.totals.attempts, "attempt"),
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
