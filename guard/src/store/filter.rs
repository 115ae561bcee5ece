//! Which attempts somebody asks for.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fold::SourceKey;
use crate::{
    control::Failure,
    events::Attempt,
    history::seconds_before,
    rule::{Country, GuardedPort, parse_prefix, quoted},
};

/// The most sources that are shown at once.
pub const MOST_SOURCES: usize = 10_000;

/// How many are shown unless told otherwise.
const SOURCES: usize = 20;

/// The longest label that is asked for.
const MAX_LABEL_BYTES: usize = 256;

/// Asks for attempts: the query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsQuery {
    /// Goes on with attempts as they come.
    pub follow: bool,
    /// Only attempts of the last so many seconds. Where it is absent: all that the daemon has singly, or none when following.
    pub since: Option<u64>,
    /// The others as typed.
    pub source: Option<String>,
    pub port: Option<String>,
    pub label: Option<String>,
    pub country: Option<String>,
}

/// Asks for sources: the query of `GET /v1/sources`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourcesQuery {
    /// How many are shown: 20 where it is absent.
    pub top: Option<usize>,
    /// Only attempts of the last so many seconds, the hour that these begin in counting whole.
    pub since: Option<u64>,
    /// The others as typed.
    pub source: Option<String>,
    pub port: Option<String>,
    pub label: Option<String>,
    pub country: Option<String>,
}

impl EventsQuery {
    /// # Errors
    /// When a word is not well formed.
    pub fn filter(&self, now: Timestamp) -> Result<Filter, Failure> {
        let Self { follow: _, since, source, port, label, country } = self;
        Filter::typed(*since, [source, port, label, country], now)
    }
}

impl SourcesQuery {
    /// # Errors
    /// When a word is not well formed.
    pub fn filter(&self, now: Timestamp) -> Result<Filter, Failure> {
        let Self { top: _, since, source, port, label, country } = self;
        Filter::typed(*since, [source, port, label, country], now)
    }

    /// # Errors
    /// When it asks for none or too many.
    pub fn most(&self) -> Result<usize, Failure> {
        match self.top {
            None => Ok(SOURCES),
            Some(top @ 1..=MOST_SOURCES) => Ok(top),
            Some(top) => Err(Failure::bad_request(
                format!("{top} sources can't be shown"),
                format!("Ask for 1 to {MOST_SOURCES}, such as --top 20."),
            )),
        }
    }
}

/// Which attempts are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not older than this.
    pub since: Option<Timestamp>,
    pub source: Option<IpNet>,
    pub port: Option<GuardedPort>,
    /// Whatever the case of its letters.
    pub label: Option<String>,
    pub country: Option<Country>,
}

impl Filter {
    fn typed(
        since: Option<u64>,
        [source, port, label, country]: [&Option<String>; 4],
        now: Timestamp,
    ) -> Result<Self, Failure> {
        Ok(Self {
            since: since.map(|seconds| seconds_before(now, seconds)),
            source: source.as_deref().map(parse_prefix).transpose()?,
            port: port.as_deref().map(str::parse).transpose()?,
            label: label.as_deref().map(parse_label).transpose()?,
            country: country.as_deref().map(parse_country).transpose()?,
        })
    }

    #[must_use]
    pub fn admits(&self, attempt: &Attempt) -> bool {
        let is_of_port = |port: GuardedPort| {
            attempt.port == Some(port.number) && attempt.protocol == port.protocol.name()
        };
        let facts = &attempt.facts;
        self.since.is_none_or(|since| attempt.time >= since)
            && self.source.is_none_or(|prefix| prefix.contains(&attempt.source))
            && self.port.is_none_or(is_of_port)
            && self.label.as_ref().is_none_or(|label| has_label(&facts.labels, label))
            && self.country.is_none_or(|country| is_country(facts.country.as_deref(), country))
    }

    /// The sources that may be meant, as the first and the last in the order of their bytes. Of an IPv6 prefix longer than a /64 it
    /// is the /64 that it is in.
    pub(super) fn source_range(&self) -> Option<(SourceKey, SourceKey)> {
        let prefix = self.source?;
        let ends: [IpAddr; 2] = [prefix.network(), prefix.broadcast()];
        let [first, last] = ends.map(SourceKey::from);
        Some((first, last))
    }
}

fn parse_label(text: &str) -> Result<String, Failure> {
    if text.is_empty() || text.len() > MAX_LABEL_BYTES {
        let what = if text.is_empty() { "a label is empty" } else { "a label is too long" };
        return Err(Failure::bad_request(what, "Write a label such as censys."));
    }
    Ok(text.to_owned())
}

fn parse_country(text: &str) -> Result<Country, Failure> {
    Country::new(text).ok_or_else(|| {
        Failure::bad_request(
            format!("{} is not a country", quoted(text)),
            "Write the two letters of ISO 3166-1, such as FR.",
        )
    })
}

pub(super) fn has_label(labels: &[String], wanted: &str) -> bool {
    labels.iter().any(|label| label.eq_ignore_ascii_case(wanted))
}

pub(super) fn is_country(country: Option<&str>, wanted: Country) -> bool {
    country.and_then(Country::new) == Some(wanted)
}
