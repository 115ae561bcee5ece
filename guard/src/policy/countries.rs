//! The networks of countries, from MMDB files (the format of `GeoLite2`).
//!
//! Both ways that such files name a country are read: `country.iso_code`, and `country_code` beside nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use maxminddb::{Reader, WithinOptions, path};

use super::sets::MAX_PREFIXES;
use crate::{bounded_file, rule::Country};

/// The largest file.
const MAX_BYTES: u64 = 256 << 20;

/// The most networks that one file may hold, those without a country among them: a file whose tree leads in circles has no end.
const MAX_NETWORKS: usize = 32_000_000;

/// Parts of IPv6 that stand for IPv4 addresses: `::/96` and `::ffff:0:0/96` (RFC 4291), Teredo (RFC 4380) and 6to4 (RFC 3056). A
/// file may hold IPv4's networks there once more, and nobody in that country has such an address.
const ALIASES: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::UNSPECIFIED, 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// The networks of these countries in all of these files, each list as short as it can be. A country that no file knows has an
/// empty one.
///
/// # Errors
/// A sentence, when a file can't be read or is no such file, or a country has too many networks.
pub fn read(
    files: &[PathBuf],
    countries: &[Country],
) -> Result<BTreeMap<Country, Vec<IpNet>>, String> {
    let mut found: BTreeMap<Country, Vec<IpNet>> =
        countries.iter().map(|country| (*country, Vec::new())).collect();
    for file in files {
        read_one(file, &mut found).map_err(|why| format!("{}: {why}", file.display()))?;
    }
    for networks in found.values_mut() {
        *networks = IpNet::aggregate(networks);
    }
    Ok(found)
}

fn read_one(file: &Path, found: &mut BTreeMap<Country, Vec<IpNet>>) -> Result<(), String> {
    let bytes = bounded_file::read(file, MAX_BYTES).map_err(|error| error.to_string())?;
    let damaged = |error: maxminddb::MaxMindDbError| format!("it is no sound MMDB file: {error}");
    let reader = Reader::from_source(bytes).map_err(damaged)?;
    let everything: IpNet = if reader.metadata().ip_version == 4 {
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let everything = everything.to_string().parse().map_err(|_| "no prefix".to_owned())?;
    // Those without a country, too: only with them does each step come to an end.
    let options = WithinOptions::default().include_networks_without_data();
    // Networks share what is said of them.
    let mut said: HashMap<usize, Option<Country>> = HashMap::new();
    let networks = reader.within(everything, options).map_err(damaged)?;
    for (number, network) in networks.enumerate() {
        if number >= MAX_NETWORKS {
            return Err(format!("it holds more than {MAX_NETWORKS} networks"));
        }
        let network = network.map_err(damaged)?;
        let Some(offset) = network.offset() else { continue };
        let country = if let Some(country) = said.get(&offset) {
            *country
        } else {
            let country = country_of(&network).map_err(damaged)?;
            said.insert(offset, country);
            country
        };
        let Some(networks) = country.and_then(|country| found.get_mut(&country)) else {
            continue;
        };
        let place = network.network().map_err(damaged)?;
        let Some(prefix) = usable(place.ip(), place.prefix()) else { continue };
        if networks.len() == MAX_PREFIXES {
            return Err(format!("a country has more than {MAX_PREFIXES} networks"));
        }
        networks.push(prefix);
    }
    Ok(())
}

fn country_of<S: AsRef<[u8]>>(
    network: &maxminddb::LookupResult<'_, S>,
) -> Result<Option<Country>, maxminddb::MaxMindDbError> {
    let nested: Option<&str> = network.decode_path(&path!["country", "iso_code"])?;
    let code = match nested {
        Some(code) => Some(code),
        None => network.decode_path(&path!["country_code"])?,
    };
    Ok(code.and_then(Country::new))
}

/// The prefix of a network, unless it stands for others' addresses.
fn usable(address: IpAddr, length: u8) -> Option<IpNet> {
    let prefix = IpNet::new(address, length).ok()?.trunc();
    if let IpNet::V6(v6) = prefix {
        let overlaps = |(address, length): (Ipv6Addr, u8)| {
            let alias = Ipv6Net::new_assert(address, length);
            alias.contains(&v6) || v6.contains(&alias)
        };
        if ALIASES.into_iter().any(overlaps) {
            return None;
        }
    }
    Some(prefix)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mmdb::{self, Fact};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn country(text: &str) -> Country {
        Country::new(text).unwrap()
    }

    fn networks(files: &[Vec<u8>], of: &str) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..files.len())
            .map(|number| directory.path().join(format!("{number}.mmdb")))
            .collect();
        for (path, bytes) in paths.iter().zip(files) {
            fs::write(path, bytes).unwrap();
        }
        let found = read(&paths, &[country(of), country("XX")])?;
        assert!(found[&country("XX")].is_empty());
        Ok(found[&country(of)].iter().map(ToString::to_string).collect())
    }

    #[test]
    fn both_layouts_are_read_and_neighbours_become_one() {
        let nested = mmdb::file(
            &[
                (ip("10.0.0.0"), 25, Fact::Nested("FR")),
                (ip("10.0.0.128"), 25, Fact::Nested("FR")),
                (ip("10.1.0.0"), 16, Fact::Nested("DE")),
                (ip("2001:db8::"), 32, Fact::Nested("FR")),
            ],
            &[],
        );
        let flat = mmdb::file(
            &[(ip("192.0.2.0"), 24, Fact::Flat("FR")), (ip("192.0.3.0"), 24, Fact::Flat("fr"))],
            &[],
        );
        let fr = networks(&[nested.clone(), flat], "FR").unwrap();
        assert_eq!(fr, ["10.0.0.0/24", "192.0.2.0/23", "2001:db8::/32"]);
        assert_eq!(networks(std::slice::from_ref(&nested), "DE").unwrap(), ["10.1.0.0/16"]);
        assert_eq!(networks(&[nested], "IT").unwrap(), [""; 0]);
    }

    #[test]
    fn what_stands_for_ipv4_is_no_prefix() {
        let four = (ip("10.0.0.0"), 24, Fact::Nested("FR"));
        let aliases = [(ip("::ffff:0:0"), 96), (ip("2002::"), 16), (ip("2001::"), 32)];
        let linked = mmdb::file(&[four], &aliases);
        assert_eq!(networks(&[linked], "FR").unwrap(), ["10.0.0.0/24"]);
        // Where the networks themselves stand there once more.
        let again = [
            four,
            (ip("::ffff:10.0.0.0"), 120, Fact::Nested("FR")),
            (ip("2002:a00::"), 40, Fact::Nested("FR")),
            (ip("2001:0:a00::"), 48, Fact::Nested("FR")),
            (ip("2001:1::"), 32, Fact::Nested("FR")),
        ];
        let fr = networks(&[mmdb::file(&again, &[])], "FR").unwrap();
        assert_eq!(fr, ["10.0.0.0/24", "2001:1::/32"]);
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let good = mmdb::file(&[(ip("10.0.0.0"), 24, Fact::Nested("FR"))], &[]);
        for bad in [Vec::new(), b"10.0.0.0/24".to_vec(), good[..good.len() / 3].to_vec()] {
            let error = networks(&[good.clone(), bad], "FR").unwrap_err();
            assert!(error.contains("1.mmdb") && error.contains("no sound MMDB"), "{error}");
        }
        assert!(read(&[PathBuf::from("/nowhere")], &[country("FR")]).is_err());
    }

    #[test]
    fn a_tree_that_leads_in_circles_comes_to_an_end() {
        let mut bytes = mmdb::file(&[(ip("8000::"), 2, Fact::Nested("FR"))], &[]);
        // The root's first record leads to the root.
        bytes[..3].copy_from_slice(&[0, 0, 0]);
        let error = networks(&[bytes], "FR").unwrap_err();
        assert!(error.contains("no sound MMDB"), "{error}");
    }
}
