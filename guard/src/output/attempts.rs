//! Attempts, one a line.

use std::net::{IpAddr, SocketAddr};

use super::text::{View, count, escaped};
use crate::events::Attempt;

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

#[cfg(test)]
mod tests {
    use super::{super::text::tests::view, *};
    use crate::events::tests::example;

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
