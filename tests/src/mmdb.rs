//! Writes small MMDB files: a tree of 24-bit records, what is said of networks, and what a reader must know of it.

use std::net::IpAddr;

/// What is said of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `country.iso_code`.
    Nested(&'static str),
    /// `country_code`.
    Flat(&'static str),
    /// As in `GeoLite2` and DB-IP: `country.iso_code`, `city.names.en`.
    City(&'static str, &'static str),
    /// As in ip-location-db: `country_code`, and `city` as text.
    FlatCity(&'static str, &'static str),
    /// `autonomous_system_number`, `autonomous_system_organization`.
    As(u32, &'static str),
    /// As in `IPinfo`: `country` in words, `country_code`, `asn` as text, `as_name`.
    InWords(&'static str, &'static str, &'static str, &'static str),
}

impl Fact {
    fn write(self, data: &mut Vec<u8>) {
        match self {
            Self::Nested(code) => {
                map(data, 1);
                text(data, "country");
                texts(data, &[("iso_code", code)]);
            }
            Self::Flat(code) => texts(data, &[("country_code", code)]),
            Self::City(code, city) => {
                map(data, 2);
                text(data, "country");
                texts(data, &[("iso_code", code)]);
                text(data, "city");
                map(data, 1);
                text(data, "names");
                texts(data, &[("de", "Stadt"), ("en", city)]);
            }
            Self::FlatCity(code, city) => {
                texts(data, &[("city", city), ("country_code", code)]);
            }
            Self::As(number, name) => {
                map(data, 2);
                text(data, "autonomous_system_number");
                data.push(6 << 5 | 4);
                data.extend(number.to_be_bytes());
                text(data, "autonomous_system_organization");
                text(data, name);
            }
            Self::InWords(country, code, asn, name) => texts(
                data,
                &[("country", country), ("country_code", code), ("asn", asn), ("as_name", name)],
            ),
        }
    }
}

#[derive(Clone, Copy)]
enum Record {
    Nothing,
    Node(usize),
    Fact(usize),
    /// The same as another place of the tree.
    Alias(usize),
}

/// A file of networks (address and length), with IPv4's in `::/96`. The roots of `aliases` lead to IPv4's, as some files have it.
#[must_use]
pub fn file(networks: &[(IpAddr, u8, Fact)], aliases: &[(IpAddr, u8)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut nodes = vec![[Record::Nothing; 2]];
    let bits_of = |address: IpAddr, length: u8| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), length + 96),
        IpAddr::V6(v6) => (u128::from(v6), length),
    };
    for (address, length, fact) in networks {
        let offset = data.len();
        fact.write(&mut data);
        let (bits, length) = bits_of(*address, *length);
        insert(&mut nodes, bits, length, Record::Fact(offset));
    }
    if !aliases.is_empty() {
        let mut ipv4 = 0;
        for _ in 0..96 {
            match nodes[ipv4][0] {
                Record::Node(next) => ipv4 = next,
                _ => panic!("there is no IPv4 in this file"),
            }
        }
        for (address, length) in aliases {
            let (bits, length) = bits_of(*address, *length);
            insert(&mut nodes, bits, length, Record::Alias(ipv4));
        }
    }
    let count = nodes.len();
    let mut bytes = Vec::new();
    for record in nodes.iter().flatten() {
        let value = match record {
            Record::Nothing => count,
            Record::Node(node) | Record::Alias(node) => *node,
            Record::Fact(offset) => count + 16 + offset,
        };
        bytes.extend(&u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()[1..]);
    }
    bytes.extend([0; 16]);
    bytes.extend(data);
    bytes.extend(b"\xab\xcd\xefMaxMind.com");
    metadata(&mut bytes, count);
    bytes
}

fn insert(nodes: &mut Vec<[Record; 2]>, bits: u128, length: u8, record: Record) {
    let mut node = 0;
    for depth in 0..length {
        let side = usize::from(bits >> (127 - depth) & 1 == 1);
        if depth + 1 == length {
            nodes[node][side] = record;
        } else if let Record::Node(next) = nodes[node][side] {
            node = next;
        } else {
            nodes.push([Record::Nothing; 2]);
            let next = nodes.len() - 1;
            nodes[node][side] = Record::Node(next);
            node = next;
        }
    }
}

fn metadata(bytes: &mut Vec<u8>, nodes: usize) {
    map(bytes, 9);
    text(bytes, "node_count");
    bytes.push(6 << 5 | 4);
    bytes.extend(u32::try_from(nodes).unwrap_or(u32::MAX).to_be_bytes());
    for (key, value) in [
        ("record_size", 24_u16),
        ("ip_version", 6),
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
    ] {
        text(bytes, key);
        bytes.push(5 << 5 | 2);
        bytes.extend(value.to_be_bytes());
    }
    text(bytes, "database_type");
    text(bytes, "test");
    text(bytes, "languages");
    // An array (type 11) without items.
    bytes.extend([0, 4]);
    text(bytes, "build_epoch");
    // A number of 64 bits (type 9).
    bytes.extend([1, 2, 7]);
    text(bytes, "description");
    map(bytes, 0);
}

fn map(bytes: &mut Vec<u8>, entries: u8) {
    bytes.push(7 << 5 | entries);
}

/// A map of texts.
fn texts(bytes: &mut Vec<u8>, entries: &[(&str, &str)]) {
    map(bytes, u8::try_from(entries.len()).unwrap_or(u8::MAX));
    for (key, value) in entries {
        text(bytes, key);
        text(bytes, value);
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    // From 29 on the length less 29 stands in a byte of its own.
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    assert!(length < u8::MAX, "longer texts are written in another way");
    if length < 29 {
        bytes.push(2 << 5 | length);
    } else {
        bytes.extend([0b0101_1101, length - 29]);
    }
    bytes.extend(text.as_bytes());
}
