//! Attempts folded by their source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{events::Attempt, output::text::escaped};

/// Sources that are told apart.
pub const MOST_SOURCES: usize = 10_000;

/// So many of them make room at once: looking for those seen least recently takes a while.
const MAKE_ROOM: usize = MOST_SOURCES / 10;

/// Ports of one source that are named.
const MOST_PORTS: usize = 8;

/// Packets a second, as they were in about the last so many seconds.
const ABOUT_SECONDS: f64 = 10.0;

/// A rate that fades unless more packets come.
#[derive(Clone, Copy, Debug)]
pub struct Fading {
    per_second: f64,
    at: Timestamp,
}

impl Fading {
    fn new(at: Timestamp) -> Self {
        Self { per_second: 0.0, at }
    }

    /// Adds packets that came since the last ones.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with a few digits")]
    fn add(&mut self, at: Timestamp, packets: u64) {
        let gap = seconds_between(self.at, at);
        self.per_second = self.now(at) + packets as f64 / gap.max(ABOUT_SECONDS);
        self.at = self.at.max(at);
    }

    /// Packets a second.
    #[must_use]
    pub fn now(&self, now: Timestamp) -> f64 {
        self.per_second * (-seconds_between(self.at, now) / ABOUT_SECONDS).exp()
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// One source: an IPv4 address or an IPv6 /64.
#[derive(Clone, Debug)]
pub struct Source {
    /// The address, or the first of the /64.
    pub key: IpAddr,
    pub first: Timestamp,
    pub attempts: u64,
    pub packets: u64,
    pub rate: Fading,
    /// The guarded ports it was for, the newest last.
    pub ports: Vec<u16>,
    /// Its last attempt, which says the most recent of what is known of it.
    pub last: Arc<Attempt>,
}

impl Source {
    fn new(attempt: &Arc<Attempt>) -> Self {
        Self {
            key: key(attempt.source),
            first: attempt.time,
            attempts: 0,
            packets: 0,
            rate: Fading::new(attempt.time),
            ports: Vec::new(),
            last: Arc::clone(attempt),
        }
    }

    fn add(&mut self, attempt: &Arc<Attempt>) {
        self.attempts += 1;
        self.packets = self.packets.saturating_add(attempt.packets);
        self.rate.add(attempt.time, attempt.packets);
        if let Some(port) = attempt.port {
            self.ports.retain(|known| *known != port);
            if self.ports.len() == MOST_PORTS {
                self.ports.remove(0);
            }
            self.ports.push(port);
        }
        self.first = self.first.min(attempt.time);
        if attempt.time >= self.last.time {
            self.last = Arc::clone(attempt);
        }
    }

    /// As rules write it: `203.0.113.9`, `2001:db8::/64`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.key {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("{address}/64"),
        }
    }
}

/// By what a source is told from others.
fn key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

/// Who is known to be behind an attempt, the most telling first: `censys, US, AS64500 EXAMPLE, public`.
#[must_use]
pub fn who(attempt: &Attempt) -> String {
    let facts = &attempt.facts;
    let network = match (facts.asn, &facts.as_name) {
        (Some(number), Some(name)) => Some(format!("AS{number} {name}")),
        (Some(number), None) => Some(format!("AS{number}")),
        (None, name) => name.clone(),
    };
    let place = match (&facts.country, &facts.city) {
        (Some(country), Some(city)) => Some(format!("{city} {country}")),
        (country, city) => country.clone().or_else(|| city.clone()),
    };
    let known: Vec<String> = facts
        .labels
        .iter()
        .cloned()
        .chain(place)
        .chain(network)
        .chain(facts.class.clone())
        .collect();
    escaped(&known.join(", "))
}

/// The sources seen most recently.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    all: HashMap<IpAddr, Source>,
    /// How many made room for others.
    pub left_out: u64,
}

impl Sources {
    pub fn add(&mut self, attempt: &Arc<Attempt>) {
        let key = key(attempt.source);
        if self.all.len() >= MOST_SOURCES && !self.all.contains_key(&key) {
            self.make_room();
        }
        self.all.entry(key).or_insert_with(|| Source::new(attempt)).add(attempt);
    }

    /// Those seen least recently go.
    fn make_room(&mut self) {
        let mut times: Vec<(Timestamp, IpAddr)> =
            self.all.values().map(|source| (source.last.time, source.key)).collect();
        let last = MAKE_ROOM.min(times.len()).saturating_sub(1);
        times.select_nth_unstable(last);
        for (_, key) in times.iter().take(last + 1) {
            self.all.remove(key);
            self.left_out += 1;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.all.values()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{SourceFacts, tests::example};

    fn attempt(source: &str, second: i64, packets: u64) -> Arc<Attempt> {
        let time = Timestamp::from_second(second).unwrap();
        Arc::new(Attempt { time, packets, source: source.parse().unwrap(), ..example() })
    }

    #[test]
    fn ipv6_is_one_source_by_64() {
        let mut sources = Sources::default();
        for address in ["2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1", "203.0.113.9"] {
            sources.add(&attempt(address, 10, 2));
        }
        let mut names: Vec<_> =
            sources.iter().map(|source| (source.name(), source.packets)).collect();
        names.sort();
        let expected = [("2001:db8:0:1::/64", 2), ("2001:db8::/64", 4), ("203.0.113.9", 2)];
        assert_eq!(names, expected.map(|(name, packets)| (name.to_owned(), packets)));
    }

    #[test]
    fn those_seen_least_recently_make_room_and_are_counted() {
        let mut sources = Sources::default();
        for number in 0..MOST_SOURCES as u32 {
            let address = std::net::Ipv4Addr::from_bits(number).to_string();
            sources.add(&attempt(&address, i64::from(number), 1));
        }
        sources.add(&attempt("0.0.0.0", 100_000, 1));
        assert_eq!((sources.len(), sources.left_out), (MOST_SOURCES, 0));
        sources.add(&attempt("255.0.0.1", 100_001, 1));
        assert_eq!(sources.len(), MOST_SOURCES - MAKE_ROOM + 1);
        assert_eq!(sources.left_out, MAKE_ROOM as u64);
        let has = |name: &str| sources.iter().any(|source| source.name() == name);
        assert!(has("0.0.0.0") && has("255.0.0.1") && !has("0.0.0.1"));
    }

    #[test]
    fn a_rate_fades_and_what_gathered_for_long_came_slowly() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let mut rate = Fading::new(second(0));
        rate.add(second(0), 100);
        assert!((rate.now(second(0)) - 10.0).abs() < 0.01);
        assert!(rate.now(second(60)) < 0.1);
        // A minute later it is told of 600 that came meanwhile.
        rate.add(second(60), 600);
        assert!((rate.now(second(60)) - 10.0).abs() < 0.2);
        // A clock that is set back makes nothing larger.
        assert!(rate.now(second(0)) < 10.2);
    }

    #[test]
    fn who_names_the_most_telling_first_and_steers_no_terminal() {
        let facts = SourceFacts {
            class: Some("public".into()),
            country: Some("US".into()),
            city: None,
            asn: Some(64500),
            as_name: Some("EX\u{1b}[31mAMPLE".into()),
            labels: vec!["censys".into(), "mass-scan".into()],
        };
        let known = Attempt { facts, ..example() };
        assert_eq!(who(&known), "censys, mass-scan, US, AS64500 EX\\u{1b}[31mAMPLE, public");
        assert_eq!(who(&example()), "");
    }

    #[test]
    fn the_newest_ports_are_kept() {
        let mut sources = Sources::default();
        for port in (1..=20).chain([15]) {
            let one = Attempt { port: Some(port), ..(*attempt("203.0.113.9", 5, 1)).clone() };
            sources.add(&Arc::new(one));
        }
        let source = sources.iter().next().unwrap();
        assert_eq!(source.ports, [13, 14, 16, 17, 18, 19, 20, 15]);
        assert_eq!(source.attempts, 21);
    }
}
