//! Who is known to send from where: lists of prefixes, each with a label.
//!
//! A plain list has one address or prefix a line; `#` begins a comment, and a line `label: NAME` names what follows, which is
//! named after the file until then. A MISP warning list is the JSON that MISP publishes, of type `cidr`; since each of
//! those is called `list.json`, its directory names it.

use std::{collections::HashMap, net::IpAddr, path::Path};

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;
use serde::Deserialize;

use super::cleaned;
use crate::rule::quoted;

/// The largest file.
pub const MAX_BYTES: u64 = 16 << 20;

/// The most entries of all lists together.
pub const MAX_ENTRIES: usize = 250_000;

/// The most labels of one source.
const MAX_OF_ONE: usize = 8;

/// A list as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    pub entries: Vec<(IpNet, u16)>,
    /// What the numbers in the entries stand for.
    pub names: Vec<String>,
}

/// A warning list of MISP; it says more, which is not needed.
#[derive(Deserialize)]
struct WarningList {
    #[serde(rename = "type")]
    kind: String,
    list: Vec<String>,
}

impl List {
    /// Reads one, whose name is used where it names itself in no other way.
    ///
    /// # Errors
    /// A sentence that names the line or the entry, when something in it is no prefix.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("it is no text: byte {} is not UTF-8", error.valid_up_to()))?;
        let text = text.trim_start_matches('\u{feff}');
        if text.trim_start().starts_with('{') {
            Self::of_misp(text, name)
        } else {
            Self::plain(text, name)
        }
    }

    fn plain(text: &str, name: &str) -> Result<Self, String> {
        let mut list = Self::default();
        let mut label = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(named) = line.strip_prefix("label:") {
                let named = cleaned(named)
                    .ok_or_else(|| format!("line {}: the label has no name", index + 1))?;
                label = Some(list.number_of(named)?);
            } else if !line.is_empty() {
                let prefix = prefix(line).ok_or_else(|| {
                    format!("line {}: {} is not an address or a prefix", index + 1, quoted(line))
                })?;
                let number = match label {
                    Some(number) => number,
                    None => *label.insert(list.number_of(label_of(name))?),
                };
                list.add(prefix, number)?;
            }
        }
        Ok(list)
    }

    fn of_misp(text: &str, name: &str) -> Result<Self, String> {
        let read: WarningList = serde_json::from_str(text)
            .map_err(|error| format!("it is no warning list of MISP: {error}"))?;
        if read.kind != "cidr" {
            return Err(format!(
                "it is a warning list of type {}, and only type cidr holds prefixes",
                quoted(&read.kind)
            ));
        }
        let mut list = Self::default();
        let number = list.number_of(label_of(name))?;
        for entry in &read.list {
            let prefix = prefix(entry)
                .ok_or_else(|| format!("{} is not an address or a prefix", quoted(entry)))?;
            list.add(prefix, number)?;
        }
        Ok(list)
    }

    fn number_of(&mut self, label: String) -> Result<u16, String> {
        let known = self.names.iter().position(|name| *name == label);
        let number = known.unwrap_or_else(|| {
            self.names.push(label);
            self.names.len() - 1
        });
        u16::try_from(number).map_err(|_| "it has too many labels".to_owned())
    }

    fn add(&mut self, prefix: IpNet, number: u16) -> Result<(), String> {
        if self.entries.len() == MAX_ENTRIES {
            return Err(format!("it holds more than {MAX_ENTRIES} prefixes"));
        }
        self.entries.push((prefix, number));
        Ok(())
    }
}

/// What a list is called after its path: the file's name up to its last dot, or for MISP's `list.json` its directory's.
#[must_use]
pub fn name_of(path: &Path) -> String {
    let is_misp = path.file_name().is_some_and(|name| name == "list.json");
    let name = if is_misp { path.parent().and_then(Path::file_name) } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

fn label_of(name: &str) -> String {
    cleaned(name).unwrap_or_else(|| "unnamed".to_owned())
}

/// Bits beyond the prefix's length are nothing: lists that others publish have some, and a label lets nobody in.
fn prefix(text: &str) -> Option<IpNet> {
    let text = text.trim();
    let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(IpNet::trunc(&prefix))
}

/// The labels of all lists, by prefix.
#[derive(Debug, Default)]
pub struct Labels {
    by_prefix: JointPrefixMap<IpNet, Vec<u16>>,
    names: Vec<String>,
    entries: usize,
}

impl Labels {
    /// Adds a list.
    ///
    /// # Errors
    /// A sentence, when there is no room for it: nothing of it is there then.
    pub fn add(&mut self, list: &List) -> Result<(), String> {
        let entries = self.entries + list.entries.len();
        if entries > MAX_ENTRIES {
            return Err(format!("all lists together would hold more than {MAX_ENTRIES} prefixes"));
        }
        let known: HashMap<&str, usize> =
            self.names.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let mut numbers = Vec::new();
        let mut new = Vec::new();
        for name in &list.names {
            let number = known.get(name.as_str()).copied().unwrap_or_else(|| {
                new.push(name.clone());
                self.names.len() + new.len() - 1
            });
            numbers
                .push(u16::try_from(number).map_err(|_| "there are too many labels".to_owned())?);
        }
        self.names.extend(new);
        self.entries = entries;
        for (prefix, number) in &list.entries {
            let Some(number) = numbers.get(usize::from(*number)) else { continue };
            let of_prefix = self.by_prefix.entry(*prefix).or_default();
            if !of_prefix.contains(number) {
                of_prefix.push(*number);
            }
        }
        Ok(())
    }

    /// The labels of an address, those of the longest prefix first.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Vec<String> {
        let covering: Vec<_> = self.by_prefix.cover_values(&IpNet::from(address)).collect();
        let mut labels: Vec<String> = Vec::new();
        for number in covering.into_iter().rev().flatten() {
            if let Some(name) = self.names.get(usize::from(*number))
                && labels.len() < MAX_OF_ONE
                && !labels.contains(name)
            {
                labels.push(name.clone());
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lists: &[(&str, &str)]) -> Labels {
        let mut labels = Labels::default();
        for (name, text) in lists {
            labels.add(&List::parse(text.as_bytes(), name).unwrap()).unwrap();
        }
        labels
    }

    fn of(labels: &Labels, address: &str) -> String {
        labels.of(address.parse().unwrap()).join(" ")
    }

    #[test]
    fn a_plain_list_is_named_after_its_file_or_by_itself() {
        let text =
            "# partners\n192.0.2.0/24\t# office\n\n198.51.100.7\n label: lab  \n2001:db8::/32\n";
        let labels = all(&[("partners", text), ("more", "\u{feff}192.0.2.128/25\r\n")]);
        assert_eq!(of(&labels, "192.0.2.1"), "partners");
        assert_eq!(of(&labels, "192.0.2.129"), "more partners");
        assert_eq!(of(&labels, "198.51.100.7"), "partners");
        assert_eq!(of(&labels, "198.51.100.8"), "");
        assert_eq!(of(&labels, "2001:db8::1"), "lab");
        assert_eq!(of(&labels, "::c000:201"), "");
    }

    #[test]
    fn a_warning_list_is_read_as_it_is_published() {
        let text = r#"{"description": "d", "list": ["192.0.2.1", "198.51.100.9/24", "2001:db8::/80"],
            "matching_attributes": ["ip-src"], "name": "A list", "type": "cidr", "version": 2}"#;
        let labels = all(&[("example-scanning", text)]);
        for address in ["192.0.2.1", "198.51.100.1", "2001:db8::5"] {
            assert_eq!(of(&labels, address), "example-scanning");
        }
        let names = text.replace("cidr", "hostname");
        assert!(List::parse(names.as_bytes(), "x").unwrap_err().contains("type \"hostname\""));
        let error =
            List::parse(text.replace("192.0.2.1", "a.example").as_bytes(), "x").unwrap_err();
        assert!(error.contains("\"a.example\" is not an address"), "{error}");
        assert!(List::parse(b"{\"list\": []}", "x").unwrap_err().contains("no warning list"));
    }

    #[test]
    fn lists_are_called_after_their_files() {
        for (path, name) in [
            ("/etc/guard/labels/office.txt", "office"),
            ("/usr/share/misp/lists/censys-scanning/list.json", "censys-scanning"),
            ("/etc/guard/labels/my.list.json", "my.list"),
            ("list.json", ""),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
        assert_eq!(of(&all(&[("", "192.0.2.1")]), "192.0.2.1"), "unnamed");
    }

    #[test]
    fn what_is_no_prefix_is_named_with_its_line() {
        let error = List::parse(b"192.0.2.1\n\nnonsense\n", "x").unwrap_err();
        assert_eq!(error, "line 3: \"nonsense\" is not an address or a prefix");
        assert!(List::parse(b"label: \x1b\n", "x").unwrap_err().contains("line 1"));
        assert!(List::parse(b"\xff\xfe", "x").unwrap_err().contains("byte 0 is not UTF-8"));
    }

    #[test]
    fn lists_and_labels_have_bounds() {
        let lines: String = (0..=MAX_ENTRIES).map(|_| "192.0.2.1\n").collect();
        assert!(List::parse(lines.as_bytes(), "x").unwrap_err().contains("more than 250000"));
        let most = List::parse(&lines.as_bytes()[10..], "x").unwrap();
        let mut labels = Labels::default();
        labels.add(&most).unwrap();
        let one = List::parse(b"192.0.2.2", "y").unwrap();
        assert!(labels.add(&one).unwrap_err().contains("all lists together"));
        assert_eq!(of(&labels, "192.0.2.1"), "x");
        assert_eq!(of(&labels, "192.0.2.2"), "");

        let many: Vec<String> =
            (0..20).map(|n| format!("label: l{n}\n192.0.2.0/{}", 8 + n)).collect();
        let many = many.join("\n");
        let of_many = all(&[("x", &many)]);
        assert_eq!(of(&of_many, "192.0.2.1"), "l19 l18 l17 l16 l15 l14 l13 l12");
        let long = all(&[(&"n".repeat(500), "192.0.2.1")]);
        assert_eq!(of(&long, "192.0.2.1").len(), super::super::MAX_NAME_CHARS);
    }

    proptest! {
        /// Against a plain scan.
        #[test]
        fn an_address_has_the_labels_of_every_prefix_around_it(
            entries in prop::collection::vec((0_u32..64, 24_u8..=32, 0_u16..4), 0..40),
            address in 0_u32..64,
        ) {
            let v4 = |low: u32| std::net::Ipv4Addr::from(0xc000_0200 + low);
            let names: Vec<String> = (0..4).map(|number| format!("l{number}")).collect();
            let entries: Vec<(IpNet, u16)> = entries
                .into_iter()
                .map(|(low, bits, number)| (IpNet::new(v4(low).into(), bits).unwrap().trunc(), number))
                .collect();
            let mut labels = Labels::default();
            labels.add(&List { entries: entries.clone(), names: names.clone() }).unwrap();
            let mut found = labels.of(v4(address).into());
            found.sort_unstable();
            let around = entries.iter().filter(|(prefix, _)| prefix.contains(&IpNet::from(IpAddr::from(v4(address)))));
            let mut expected: Vec<String> = around.map(|(_, number)| names[usize::from(*number)].clone()).collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(found, expected);
        }
    }
}
