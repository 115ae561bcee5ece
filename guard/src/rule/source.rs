//! Sources as people write them: `192.0.2.7`, `2001:db8::/32`, `@/etc/guard/office.txt`, `lan`, `lan6`, `if:wg0`,
//! `host.example.org`, `country:FR`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Action, Country, DnsName, DnsNameError, InterfaceName, InterfaceNameError, Source, quoted,
};
use crate::control::Failure;

/// The longest source, in bytes: `@` and a path (`PATH_MAX` of `include/uapi/linux/limits.h`).
const MAX_SOURCE_BYTES: usize = 4096;

/// Why a text is no source, or a source is none for its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("a source is empty")]
    Empty,
    #[error("the source {} is longer than {MAX_SOURCE_BYTES} bytes", quoted(.text))]
    TooLong { text: String },
    #[error("{} has bits set beyond its prefix", quoted(.text))]
    HostBits { text: String, address: IpAddr, prefix: IpNet },
    #[error("{} has no prefix length from 0 to {most}", quoted(.text))]
    PrefixLength { text: String, most: u8 },
    #[error("{} stands for IPv4 addresses, whose packets never come as IPv6", quoted(.text))]
    MappedIpv4 { text: String, ipv4: IpNet },
    #[error("{} names an interface, which a source can't", quoted(.text))]
    Zone { text: String, address: String },
    #[error("{} names a port, which a source can't", quoted(.text))]
    WithPort { text: String, address: IpAddr, port: u16 },
    #[error("{} is not an address or a prefix", quoted(.text))]
    NotAnAddress { text: String },
    #[error("{} is not a DNS name: {error}", quoted(.text))]
    DnsName { text: String, error: DnsNameError },
    #[error("{name} can't be denied: a name says who to let in")]
    NameDenied { name: DnsName },
    #[error("{} does not name a country by its two letters", quoted(.text))]
    Country { text: String },
    #[error("{} names no interface: {error}", quoted(.text))]
    Interface { text: String, error: InterfaceNameError },
    #[error("if:{name} can't be denied: a name only allows")]
    InterfaceDenied { name: InterfaceName },
    #[error("if:{name} names its interface already, and has via = {} too", quoted(.via.as_str()))]
    InterfaceTwice { name: InterfaceName, via: InterfaceName },
    #[error("{} is not a source", quoted(.text))]
    UnknownWord { text: String },
    #[error("{} does not name a file by its full path", quoted(.text))]
    RelativeFile { text: String },
    #[error("loopback can't be denied, and {prefix} is loopback")]
    LoopbackDenied { prefix: IpNet },
}

impl SourceError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Empty | Self::NotAnAddress { .. } | Self::TooLong { .. } => {
                "Write an address such as 192.0.2.7 or a prefix such as 192.0.2.0/24.".to_owned()
            }
            Self::HostBits { address, prefix, .. } => {
                format!("Write {address} or {prefix}, whichever is meant.")
            }
            Self::PrefixLength { most, .. } => {
                format!("Write a number of bits from 0 to {most} after the slash.")
            }
            Self::MappedIpv4 { ipv4, .. } => format!("Write {}.", written(*ipv4)),
            Self::Zone { address, .. } => {
                format!("Write {address}, and name the interface as the rule's via.")
            }
            Self::WithPort { address, port, .. } => {
                format!("Write {address}, and give the port {port} as a port of the rule.")
            }
            Self::DnsName { error, .. } => error.fix().to_owned(),
            Self::NameDenied { .. } => "Deny its addresses.".to_owned(),
            Self::Country { .. } => {
                "Write the two letters of ISO 3166-1, such as country:FR.".to_owned()
            }
            Self::Interface { error, .. } => error.fix(),
            Self::InterfaceDenied { name } => {
                format!("Deny the prefixes 0.0.0.0/0 and ::/0 via {name}.")
            }
            Self::InterfaceTwice { name, .. } => {
                format!("Leave via out, or name a prefix in place of if:{name}.")
            }
            Self::UnknownWord { .. } => {
                "Write an address, a prefix, a DNS name with a dot, @ and the full path of a file of prefixes, country: and two letters, \
                 lan, lan6, or if: and the name of an interface."
                    .to_owned()
            }
            Self::RelativeFile { .. } => {
                "Write the path from / on, such as @/etc/guard/office.txt.".to_owned()
            }
            Self::LoopbackDenied { .. } => {
                "Leave the rule out: what runs on this machine reaches its own services.".to_owned()
            }
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

/// Whether a prefix is wider than /8 (IPv4) or /16 (IPv6): to allow it needs a confirmation.
#[must_use]
pub fn is_wide(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => prefix.prefix_len() < 8,
        IpNet::V6(prefix) => prefix.prefix_len() < 16,
    }
}

/// Whether a prefix holds loopback addresses only.
#[must_use]
pub fn is_loopback(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => prefix.prefix_len() >= 8 && prefix.addr().is_loopback(),
        IpNet::V6(prefix) => prefix.prefix_len() == 128 && prefix.addr().is_loopback(),
    }
}

/// Whether a rule may do this with this source.
///
/// # Errors
/// When it would deny loopback, an interface or a name.
pub fn check_action(action: Action, source: &Source) -> Result<(), SourceError> {
    match (action, source) {
        (Action::Deny, Source::Prefix(prefix)) if is_loopback(*prefix) => {
            Err(SourceError::LoopbackDenied { prefix: *prefix })
        }
        (Action::Deny, Source::Interface(name)) => {
            Err(SourceError::InterfaceDenied { name: name.clone() })
        }
        (Action::Deny, Source::Name(name)) => Err(SourceError::NameDenied { name: name.clone() }),
        (Action::Allow | Action::Deny, _) => Ok(()),
    }
}

/// Whether a rule with this source may come by an interface.
///
/// # Errors
/// When the source names one itself.
pub fn check_via(source: &Source, via: Option<&InterfaceName>) -> Result<(), SourceError> {
    match (source, via) {
        (Source::Interface(name), Some(via)) => {
            Err(SourceError::InterfaceTwice { name: name.clone(), via: via.clone() })
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => f.write_str(&written(*prefix)),
            Self::File(path) => write!(f, "@{}", path.display()),
            Self::Lan => f.write_str("lan"),
            Self::Lan6 => f.write_str("lan6"),
            Self::Interface(name) => write!(f, "if:{name}"),
            Self::Name(name) => write!(f, "{name}"),
            Self::Country(country) => write!(f, "country:{country}"),
        }
    }
}

/// A prefix as people write it: without its length when it is one address.
fn written(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text.is_empty() {
            return Err(SourceError::Empty);
        }
        if text.len() > MAX_SOURCE_BYTES {
            return Err(SourceError::TooLong { text: text.to_owned() });
        }
        match text {
            "lan" => return Ok(Self::Lan),
            "lan6" => return Ok(Self::Lan6),
            _ => {}
        }
        if let Some(path) = text.strip_prefix('@') {
            return parse_file(path, text).map(Self::File);
        }
        if let Some(letters) = text.strip_prefix("country:") {
            return Country::new(letters)
                .map(Self::Country)
                .ok_or_else(|| SourceError::Country { text: text.to_owned() });
        }
        if let Some(name) = text.strip_prefix("if:") {
            return name
                .parse()
                .map(Self::Interface)
                .map_err(|error| SourceError::Interface { text: text.to_owned(), error });
        }
        if looks_like_a_name(text) {
            return text
                .parse()
                .map(Self::Name)
                .map_err(|error| SourceError::DnsName { text: text.to_owned(), error });
        }
        parse_prefix(text).map(Self::Prefix)
    }
}

/// Whether this was meant as a DNS name, well formed or not: a word without a dot never is, nor what has no letter.
fn looks_like_a_name(text: &str) -> bool {
    let is_of_names = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.trim_end_matches('.').contains('.')
        && text.chars().any(char::is_alphabetic)
        && text.chars().all(is_of_names)
}

fn parse_file(path: &str, text: &str) -> Result<PathBuf, SourceError> {
    let path = Path::new(path);
    let names_a_file = matches!(path.components().next_back(), Some(Component::Normal(_)));
    if !path.is_absolute() || !names_a_file || text.chars().any(char::is_control) {
        return Err(SourceError::RelativeFile { text: text.to_owned() });
    }
    Ok(path.to_path_buf())
}

/// An address or a prefix without host bits.
///
/// # Errors
/// When it is neither, or could never match a packet.
pub(crate) fn parse_prefix(text: &str) -> Result<IpNet, SourceError> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(not_an_address(text, address));
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        Some(length) => parse_length(length, most)
            .ok_or_else(|| SourceError::PrefixLength { text: text.to_owned(), most })?,
        None => most,
    };
    let Ok(typed) = IpNet::new(address, length) else {
        return Err(SourceError::PrefixLength { text: text.to_owned(), most });
    };
    let prefix = typed.trunc();
    if let IpNet::V6(v6) = prefix
        && let Some(ipv4) = mapped_ipv4(v6)
    {
        return Err(SourceError::MappedIpv4 { text: text.to_owned(), ipv4: IpNet::V4(ipv4) });
    }
    if prefix.addr() != address {
        return Err(SourceError::HostBits { text: text.to_owned(), address, prefix });
    }
    Ok(prefix)
}

/// Digits without a leading zero: `u8::from_str` would take a sign and zeros as well.
fn parse_length(digits: &str, most: u8) -> Option<u8> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|length| is_plain && *length <= most)
}

/// The IPv4 prefix that an IPv6 prefix inside `::ffff:0:0/96` stands for (RFC 4291 section 2.5.5.2).
fn mapped_ipv4(prefix: Ipv6Net) -> Option<Ipv4Net> {
    let length = prefix.prefix_len().checked_sub(96)?;
    let address: Ipv4Addr = prefix.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, length).ok()
}

/// What a text is that is no address, as well as can be told.
fn not_an_address(text: &str, address: &str) -> SourceError {
    let text = text.to_owned();
    if let Some((before, _zone)) = address.split_once('%')
        && before.parse::<Ipv6Addr>().is_ok()
    {
        return SourceError::Zone { text, address: before.to_owned() };
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return SourceError::WithPort { text, address: socket.ip(), port: socket.port() };
    }
    let has_name_characters_only = address
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let has_letters = address.bytes().any(|byte| byte.is_ascii_alphabetic());
    if has_name_characters_only && has_letters && !text.contains('/') {
        SourceError::UnknownWord { text }
    } else {
        SourceError::NotAnAddress { text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_read_and_written_in_their_shortest_form() {
        for (text, source, shown) in [
            ("192.0.2.7", Source::Prefix(net("192.0.2.7/32")), "192.0.2.7"),
            ("192.0.2.7/32", Source::Prefix(net("192.0.2.7/32")), "192.0.2.7"),
            ("192.0.2.0/24", Source::Prefix(net("192.0.2.0/24")), "192.0.2.0/24"),
            ("0.0.0.0/0", Source::Prefix(net("0.0.0.0/0")), "0.0.0.0/0"),
            ("::/0", Source::Prefix(net("::/0")), "::/0"),
            ("2001:DB8::/32", Source::Prefix(net("2001:db8::/32")), "2001:db8::/32"),
            ("2001:db8:0:0::1", Source::Prefix(net("2001:db8::1/128")), "2001:db8::1"),
            ("lan", Source::Lan, "lan"),
            ("lan6", Source::Lan6, "lan6"),
            ("if:wg0", Source::Interface("wg0".parse().unwrap()), "if:wg0"),
            (
                "Host.Example.ORG.",
                Source::Name("host.example.org".parse().unwrap()),
                "host.example.org",
            ),
            ("country:fr", Source::Country(Country::new("FR").unwrap()), "country:FR"),
            (
                "@/etc/guard/office.txt",
                Source::File(PathBuf::from("/etc/guard/office.txt")),
                "@/etc/guard/office.txt",
            ),
        ] {
            assert_eq!(text.parse(), Ok(source.clone()), "{text}");
            assert_eq!(source.to_string(), shown);
            assert_eq!(shown.parse(), Ok(source));
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_would_be_right() {
        for (text, what, fix) in [
            ("", "a source is empty", "192.0.2.7"),
            ("192.0.2.7/24", "bits set beyond", "Write 192.0.2.7 or 192.0.2.0/24,"),
            ("2001:db8::1/32", "bits set beyond", "Write 2001:db8::1 or 2001:db8::/32,"),
            ("192.0.2.0/33", "no prefix length from 0 to 32", "0 to 32"),
            ("192.0.2.0/", "no prefix length", "0 to 32"),
            ("192.0.2.0/+24", "no prefix length", "0 to 32"),
            ("192.0.2.0/024", "no prefix length", "0 to 32"),
            ("192.0.2.0/255.255.255.0", "no prefix length", "0 to 32"),
            ("192.0.2.0/24/24", "no prefix length", "0 to 32"),
            ("2001:db8::/129", "no prefix length from 0 to 128", "0 to 128"),
            ("::ffff:192.0.2.7", "stands for IPv4", "Write 192.0.2.7."),
            ("::ffff:0:0/96", "stands for IPv4", "Write 0.0.0.0/0."),
            ("::ffff:192.0.2.0/120", "stands for IPv4", "Write 192.0.2.0/24."),
            ("fe80::1%eth0", "names an interface", "Write fe80::1, and name the interface"),
            ("fe80::%eth0/64", "names an interface", "Write fe80::, and"),
            ("192.0.2.7:11434", "names a port", "Write 192.0.2.7, and give the port 11434"),
            ("[2001:db8::1]:80", "names a port", "Write 2001:db8::1,"),
            ("192.0.2", "is not an address", "192.0.2.7"),
            ("192.0.2.256", "is not an address", "192.0.2.7"),
            ("192.0.2.010", "is not an address", "192.0.2.7"),
            ("192.0.2.1-192.0.2.9", "is not an address", "192.0.2.0/24"),
            ("2001:db8:::1", "is not an address", "192.0.2.7"),
            (" 192.0.2.7", "is not an address", "192.0.2.7"),
            ("7", "is not an address", "192.0.2.7"),
            ("host_1.example.org", "is not a DNS name", "host.example.org"),
            ("bücher.example", "form xn--", "xn--bcher-kva"),
            ("0x7f.1", "its last part is a number", "four numbers"),
            ("1.2.3", "is not an address", "192.0.2.7"),
            ("host.", "is not a source", "a DNS name with a dot"),
            ("host.example.org/24", "is not an address", "192.0.2.7"),
            ("host.example.org:80", "is not an address", "192.0.2.7"),
            ("country:FRA", "two letters", "country:FR"),
            ("country:", "two letters", "country:FR"),
            ("if:", "names no interface", "eth0"),
            ("if:sixteen-letters!", "names no interface", "at most 15 bytes"),
            ("if:eth*", "stands for several interfaces", "the bridge or bond above them"),
            ("if:eth0:1", "can't be the name of an interface", "eth0"),
            ("office", "is not a source", "lan6"),
            ("LAN", "is not a source", "lan6"),
            ("@office.txt", "full path", "@/etc/guard/office.txt"),
            ("@", "full path", "@/etc/guard/office.txt"),
            ("@/", "full path", "@/etc/guard/office.txt"),
            ("@/etc/gu\nard", "full path", "@/etc/guard/office.txt"),
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.fix().contains(fix), "{text}: {}", error.fix());
        }
        let long = format!("@/{}", "x".repeat(MAX_SOURCE_BYTES));
        assert!(matches!(long.parse::<Source>(), Err(SourceError::TooLong { .. })));
    }

    #[test]
    fn wide_is_wider_than_8_and_16() {
        assert!(is_wide(net("10.0.0.0/7")));
        assert!(!is_wide(net("10.0.0.0/8")));
        assert!(is_wide(net("2001::/15")));
        assert!(!is_wide(net("2001::/16")));
        assert!(is_wide(net("0.0.0.0/0")) && is_wide(net("::/0")));
    }

    #[test]
    fn loopback_may_be_allowed_but_not_denied() {
        for text in ["127.0.0.1", "127.0.0.0/8", "::1"] {
            let source: Source = text.parse().unwrap();
            assert!(check_action(Action::Allow, &source).is_ok());
            assert!(matches!(
                check_action(Action::Deny, &source),
                Err(SourceError::LoopbackDenied { .. })
            ));
        }
        for text in ["0.0.0.0/0", "126.0.0.0/7", "::/127", "192.0.2.1", "lan"] {
            let source: Source = text.parse().unwrap();
            assert!(check_action(Action::Deny, &source).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_interface_may_be_allowed_but_not_denied_or_named_twice() {
        let source: Source = "if:wg0".parse().unwrap();
        let other: InterfaceName = "eth0".parse().unwrap();
        assert!(check_action(Action::Allow, &source).is_ok());
        let denied = check_action(Action::Deny, &source).unwrap_err();
        assert!(denied.to_string().contains("if:wg0 can't be denied"), "{denied}");
        assert!(denied.fix().contains("0.0.0.0/0 and ::/0 via wg0"), "{}", denied.fix());
        assert!(check_via(&source, None).is_ok());
        let twice = check_via(&source, Some(&other)).unwrap_err();
        assert!(twice.to_string().contains("via = \"eth0\""), "{twice}");
        assert!(check_via(&"lan".parse().unwrap(), Some(&other)).is_ok());
    }

    #[test]
    fn a_name_may_be_allowed_but_not_denied_and_a_country_both() {
        let name: Source = "host.example.org".parse().unwrap();
        assert!(check_action(Action::Allow, &name).is_ok());
        let denied = check_action(Action::Deny, &name).unwrap_err();
        assert!(denied.to_string().contains("says who to let in"), "{denied}");
        assert!(denied.fix().contains("its addresses"), "{}", denied.fix());
        assert!(check_action(Action::Deny, &"country:FR".parse().unwrap()).is_ok());
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0..=32u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length)),
            (any::<u128>(), 0..=128u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from(bits).into(), length)),
        ]
        .prop_map(|prefix| prefix.unwrap().trunc())
    }

    proptest! {
        #[test]
        fn a_prefix_reads_back_as_it_was_written(prefix in any_prefix()) {
            let mapped = matches!(prefix, IpNet::V6(v6) if mapped_ipv4(v6).is_some());
            prop_assume!(!mapped);
            let source = Source::Prefix(prefix);
            prop_assert_eq!(source.to_string().parse(), Ok(source));
        }

        #[test]
        fn what_reads_is_written_the_same_for_ever(text in "[@a-f0-9.:/%]{0,24}|@/.{0,20}|[A-Za-z0-9.-]{1,12}[.][a-zA-Z0-9-]{1,9}[.]?|country:[A-Za-z]{2}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse(), Ok(source));
            }
        }

        #[test]
        fn both_readings_offered_for_host_bits_are_right(bits: u32, length in 0..32u8) {
            let text = format!("{}/{length}", Ipv4Addr::from(bits));
            if let Err(error) = text.parse::<Source>() {
                let SourceError::HostBits { address, prefix, .. } = error else {
                    panic!("{text}: {error}");
                };
                prop_assert_eq!(address, IpAddr::V4(Ipv4Addr::from(bits)));
                prop_assert!(prefix.contains(&address) && prefix.prefix_len() == length);
                prop_assert!(prefix.to_string().parse::<Source>().is_ok());
            }
        }
    }
}
