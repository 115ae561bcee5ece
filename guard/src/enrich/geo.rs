//! Country, city and autonomous system of an address, from MMDB files.
//!
//! The layouts of the files in use are read: `GeoLite2` and DB-IP (`country.iso_code`, `city.names.en`,
//! `autonomous_system_number`), ip-location-db (`country_code`, `city` as text) and `IPinfo` (`asn` as `AS64500`, `as_name`).

use std::{net::IpAddr, sync::OnceLock};

use maxminddb::{MaxMindDbError, Reader};
use serde::Deserialize;

use super::cleaned;
use crate::{events::SourceFacts, rule::Country};

/// The largest file. It is kept in memory: one that is written over while it is mapped would kill the daemon.
pub const MAX_BYTES: u64 = 256 << 20;

/// A file that was read whole.
#[derive(Debug)]
pub struct Database {
    reader: Reader<Vec<u8>>,
    /// What was found wrong when something was looked up.
    damage: OnceLock<String>,
}

/// What a record may hold of what is asked for.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow, default)]
    country: Option<TextOr<'a, CountryRecord<'a>>>,
    #[serde(borrow, default)]
    country_code: Option<&'a str>,
    #[serde(borrow, default)]
    city: Option<TextOr<'a, CityRecord<'a>>>,
    #[serde(default)]
    autonomous_system_number: Option<u32>,
    #[serde(borrow, default)]
    autonomous_system_organization: Option<&'a str>,
    #[serde(borrow, default)]
    asn: Option<&'a str>,
    #[serde(borrow, default)]
    as_name: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOr<'a, T> {
    Text(#[serde(borrow)] &'a str),
    Record(T),
}

#[derive(Deserialize)]
struct CountryRecord<'a> {
    #[serde(borrow, default)]
    iso_code: Option<&'a str>,
}

#[derive(Deserialize)]
struct CityRecord<'a> {
    #[serde(borrow, default)]
    names: Option<Names<'a>>,
}

#[derive(Deserialize)]
struct Names<'a> {
    #[serde(borrow, default)]
    en: Option<&'a str>,
}

impl Database {
    /// # Errors
    /// A sentence, when this is no MMDB file.
    pub fn new(bytes: Vec<u8>) -> Result<Self, String> {
        let reader = Reader::from_source(bytes).map_err(unsound)?;
        Ok(Self { reader, damage: OnceLock::new() })
    }

    /// Adds what it says of an address to what others have said: the first answer counts. Damage that shows only now is
    /// remembered.
    pub fn add_to(&self, facts: &mut SourceFacts, address: IpAddr) {
        if self.damage.get().is_some()
            || (address.is_ipv6() && self.reader.metadata().ip_version == 4)
        {
            return;
        }
        let record = self.reader.lookup(address).and_then(|found| found.decode::<Record<'_>>());
        match record {
            Ok(Some(record)) => record.add_to(facts),
            Ok(None) => {}
            Err(error) => {
                let _ = self.damage.set(unsound(error));
            }
        }
    }

    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }
}

impl Record<'_> {
    fn add_to(&self, facts: &mut SourceFacts) {
        let nested = match &self.country {
            Some(TextOr::Record(country)) => country.iso_code,
            // The country's name in words, beside its code.
            Some(TextOr::Text(_)) | None => None,
        };
        let code = nested.or(self.country_code);
        let country = code.and_then(Country::new).map(|country| country.to_string());
        let city = match &self.city {
            Some(TextOr::Text(name)) => Some(*name),
            Some(TextOr::Record(city)) => city.names.as_ref().and_then(|names| names.en),
            None => None,
        };
        let asn = self.autonomous_system_number.or_else(|| {
            self.asn.and_then(|text| text.strip_prefix("AS").unwrap_or(text).parse().ok())
        });
        let as_name = self.autonomous_system_organization.or(self.as_name);
        // A city belongs to its country and a name to its number: they come from one file.
        if facts.country.is_none() || facts.country == country {
            facts.city = facts.city.take().or_else(|| city.and_then(cleaned));
        }
        facts.country = facts.country.take().or(country);
        if facts.asn.is_none() || facts.asn == asn {
            facts.as_name = facts.as_name.take().or_else(|| as_name.and_then(cleaned));
        }
        facts.asn = facts.asn.or(asn);
    }
}

fn unsound(error: MaxMindDbError) -> String {
    format!("it is no sound MMDB file: {error}")
}

#[cfg(test)]
mod tests {
    use crate::mmdb::{self, Fact};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn facts(files: &[Vec<u8>], address: &str) -> SourceFacts {
        let mut facts = SourceFacts::default();
        for file in files {
            Database::new(file.clone()).unwrap().add_to(&mut facts, ip(address));
        }
        facts
    }

    fn file(fact: Fact) -> Vec<u8> {
        mmdb::file(&[(ip("203.0.113.0"), 24, fact), (ip("2001:db8::"), 32, fact)], &[])
    }

    #[test]
    fn every_layout_in_use_is_read() {
        let city = file(Fact::City("FR", "Lyon"));
        let asn = file(Fact::As(64500, "EXAMPLE"));
        for address in ["203.0.113.9", "2001:db8::9"] {
            let found = facts(&[city.clone(), asn.clone()], address);
            assert_eq!(found.country.as_deref(), Some("FR"));
            assert_eq!(found.city.as_deref(), Some("Lyon"));
            assert_eq!((found.asn, found.as_name.as_deref()), (Some(64500), Some("EXAMPLE")));
            let flat = facts(&[file(Fact::FlatCity("de", "Bonn"))], address);
            assert_eq!((flat.country.as_deref(), flat.city.as_deref()), (Some("DE"), Some("Bonn")));
            let words = facts(&[file(Fact::InWords("France", "FR", "AS64501", "Other"))], address);
            assert_eq!((words.country.as_deref(), words.asn), (Some("FR"), Some(64501)));
            assert_eq!(words.as_name.as_deref(), Some("Other"));
        }
        assert_eq!(facts(&[city, asn], "198.51.100.1"), SourceFacts::default());
    }

    #[test]
    fn the_first_file_that_knows_decides() {
        let files = [file(Fact::Nested("FR")), file(Fact::City("DE", "Bonn"))];
        let found = facts(&files, "203.0.113.9");
        assert_eq!((found.country.as_deref(), found.city), (Some("FR"), None));
        let files = [file(Fact::Nested("DE")), file(Fact::City("DE", "Bonn"))];
        assert_eq!(facts(&files, "203.0.113.9").city.as_deref(), Some("Bonn"));
    }

    #[test]
    fn what_is_no_code_or_steers_a_terminal_is_left_out() {
        let found = facts(&[file(Fact::City("F\u{1b}", "Ly\u{1b}[2Jon\u{202e}"))], "203.0.113.9");
        assert_eq!((found.country, found.city.as_deref()), (None, Some("Ly[2Jon")));
        assert_eq!(facts(&[file(Fact::Nested("FRA"))], "203.0.113.9").country, None);
    }

    #[test]
    fn damage_is_found_at_once_or_when_it_is_met() {
        assert!(Database::new(b"no such file".to_vec()).unwrap_err().contains("no sound MMDB"));
        let mut bytes = file(Fact::Nested("FR"));
        // The data begins 16 bytes behind the tree; its first value becomes a pointer to beyond the end.
        let start =
            bytes.windows(8).position(|window| window == b"Gcountry").unwrap_or_else(|| {
                bytes.windows(7).position(|window| window == b"country").unwrap() - 2
            });
        bytes[start] = 0b0011_1000;
        let database = Database::new(bytes).unwrap();
        let mut facts = SourceFacts::default();
        database.add_to(&mut facts, ip("198.51.100.1"));
        assert_eq!(database.damage(), None);
        database.add_to(&mut facts, ip("203.0.113.9"));
        assert!(database.damage().unwrap().contains("no sound MMDB"));
        assert_eq!(facts, SourceFacts::default());
    }
}
