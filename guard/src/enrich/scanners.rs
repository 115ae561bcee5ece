//! Scanners of the whole Internet: a table that guard carries, and what a packet's header looks like.

use crate::{enrich::labels::List, events::Attempt};

/// A list as users write them, with the source and date of each part.
const TABLE: &str = include_str!("scanners.txt");

/// The table that guard carries.
#[must_use]
pub fn table() -> List {
    // A test reads it.
    List::parse(TABLE.as_bytes(), "research-scanner").unwrap_or_default()
}

/// What is said of a source whose packets have a scanner's habit: a guess, since devices with small network stacks share it.
pub const MASS_SCAN: &str = "mass-scan";

/// The shortest TCP packet, IP header and TCP header alone (RFC 791, RFC 8200, RFC 9293).
const BARE_V4: u64 = 40;
const BARE_V6: u64 = 60;

/// Ethernet frames are at least 60 bytes long (IEEE 802.3), 46 behind their header, and what fills them up is counted with a
/// packet: so many bytes may be options or nothing.
const ROOM: u64 = 6;

/// Whether these packets are connections begun without TCP options, or with the segment size at most. Operating systems' own
/// take 8 bytes or more for theirs; who sends packets to the whole Internet and keeps no state of them (`ZMap`, masscan) often has none.
#[must_use]
pub fn looks_like_mass_scan(attempt: &Attempt) -> bool {
    let bare = if attempt.source.is_ipv4() { BARE_V4 } else { BARE_V6 };
    attempt.tcp_flags == "SYN"
        && !attempt.sampled
        && attempt.bytes <= attempt.packets.saturating_mul(bare + ROOM)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{enrich::labels::Labels, events::tests::example};

    #[test]
    fn the_table_is_whole() {
        let list = List::parse(TABLE.as_bytes(), "x").unwrap();
        assert_eq!(table(), list);
        assert_eq!(list.names.len(), 9);
        assert!(list.names.iter().all(|name| name.starts_with("research-scanner:")));
        for (prefix, _) in &list.entries {
            // As it stands there: no bit beyond the length.
            assert!(TABLE.contains(&prefix.addr().to_string()), "{prefix}");
        }
        let mut labels = Labels::default();
        labels.add(&list).unwrap();
        let of = |text: &str| labels.of(text.parse::<IpAddr>().unwrap());
        for (address, name) in [
            ("162.142.125.7", "censys"),
            ("2620:96:e000:b0cc:e::7", "censys"),
            ("184.105.247.200", "shadowserver"),
            ("162.216.150.1", "cortex-xpanse"),
            ("94.231.206.1", "onyphe"),
            ("45.83.67.255", "alphastrike"),
            ("66.240.205.34", "shodan"),
            ("85.217.140.16", "modat"),
            ("159.65.18.197", "leakix"),
        ] {
            assert_eq!(of(address), [format!("research-scanner:{name}")]);
        }
        assert!(of("184.105.247.1").is_empty());
    }

    #[test]
    fn a_bare_syn_looks_like_a_scan_and_a_system_s_own_does_not() {
        let of = |source: &str, packets, bytes, flags: &str| {
            let source = source.parse().unwrap();
            let tcp_flags = flags.to_owned();
            looks_like_mass_scan(&Attempt { source, tcp_flags, packets, bytes, ..example() })
        };
        assert!(of("203.0.113.9", 1, 40, "SYN"));
        // Filled up to an Ethernet frame's least, or with the segment size alone.
        assert!(of("203.0.113.9", 1, 46, "SYN"));
        assert!(of("2001:db8::9", 3, 180, "SYN"));
        assert!(of("2001:db8::9", 1, 64, "SYN"));
        // Linux and Windows.
        assert!(!of("203.0.113.9", 1, 60, "SYN"));
        assert!(!of("203.0.113.9", 1, 52, "SYN"));
        assert!(!of("203.0.113.9", 3, 40 + 60 + 60, "SYN"));
        assert!(!of("2001:db8::9", 1, 72, "SYN"));
        assert!(!of("203.0.113.9", 1, 40, "ACK"));
        assert!(!of("203.0.113.9", 1, 40, ""));
        let sampled = Attempt { bytes: 40, sampled: true, ..example() };
        assert!(!looks_like_mass_scan(&sampled));
    }
}
