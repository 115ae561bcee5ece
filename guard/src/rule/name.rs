//! DNS names and countries, as sources.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes, without a dot at its end (RFC 1035 section 3.1: 255 octets on the wire).
const MAX_NAME_BYTES: usize = 253;

/// The longest part of a name (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// A DNS name of a host: two labels or more, in small letters, without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// Why a text is no DNS name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    #[error("it has no dot")]
    OneLabel,
    #[error("it is longer than {MAX_NAME_BYTES} bytes")]
    TooLong,
    #[error("a part between its dots is empty or longer than {MAX_LABEL_BYTES} bytes")]
    LabelLength,
    #[error("a part between its dots begins or ends with a hyphen")]
    Hyphen,
    #[error("it holds letters that DNS has only in their form xn--")]
    NotAscii,
    #[error("a host's name holds letters, digits and hyphens only")]
    Character,
    #[error("its last part is a number, so that it would be read as an address")]
    LastIsNumber,
}

impl DnsNameError {
    /// What to do, in one sentence.
    #[must_use]
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::NotAscii => {
                "Write the name as it stands in DNS, such as xn--bcher-kva.example.org."
            }
            Self::LastIsNumber => "Write an address with four numbers, such as 192.0.2.7.",
            _ => "Write the whole name of a host, such as host.example.org.",
        }
    }
}

impl DnsName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

impl TryFrom<String> for DnsName {
    type Error = DnsNameError;

    fn try_from(text: String) -> Result<Self, DnsNameError> {
        text.parse()
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if !text.is_ascii() {
            return Err(DnsNameError::NotAscii);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(DnsNameError::TooLong);
        }
        let labels: Vec<&str> = text.split('.').collect();
        for label in &labels {
            if label.is_empty() || label.len() > MAX_LABEL_BYTES {
                return Err(DnsNameError::LabelLength);
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(DnsNameError::Hyphen);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                return Err(DnsNameError::Character);
            }
        }
        match labels[..] {
            [.., last] if is_number(last) => Err(DnsNameError::LastIsNumber),
            [_, _, ..] => Ok(Self(text.to_ascii_lowercase())),
            _ => Err(DnsNameError::OneLabel),
        }
    }
}

/// What C libraries take as the last part of an address, in decimal or hexadecimal (`inet_aton`).
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// A country's two letters (ISO 3166-1 alpha-2), as capitals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// The country of two letters; `None` for anything else.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [one, two] if one.is_ascii_alphabetic() && two.is_ascii_alphabetic() => {
                Some(Self([one.to_ascii_uppercase(), two.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(self.0[0]), char::from(self.0[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_small_and_without_a_dot_at_the_end() {
        for (text, name) in [
            ("host.example.org", "host.example.org"),
            ("HOST.Example.ORG.", "host.example.org"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("7.example", "7.example"),
            ("a-b.c0", "a-b.c0"),
        ] {
            assert_eq!(text.parse::<DnsName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = format!("{}.org", "a".repeat(MAX_LABEL_BYTES + 1));
        let longer = format!("{}org", "abcdefg.".repeat(32));
        for (text, error) in [
            ("office", DnsNameError::OneLabel),
            ("office.", DnsNameError::OneLabel),
            ("", DnsNameError::LabelLength),
            (".", DnsNameError::LabelLength),
            ("a..b", DnsNameError::LabelLength),
            ("a.b..", DnsNameError::LabelLength),
            (".a.b", DnsNameError::LabelLength),
            (&long, DnsNameError::LabelLength),
            (&longer, DnsNameError::TooLong),
            ("-a.example", DnsNameError::Hyphen),
            ("a-.example", DnsNameError::Hyphen),
            ("a_b.example", DnsNameError::Character),
            ("a b.example", DnsNameError::Character),
            ("*.example", DnsNameError::Character),
            ("bücher.example", DnsNameError::NotAscii),
            ("1.2.3", DnsNameError::LastIsNumber),
            ("10.0.0.256", DnsNameError::LastIsNumber),
            ("0x7f.1", DnsNameError::LastIsNumber),
            ("127.0x1", DnsNameError::LastIsNumber),
            ("a.0x", DnsNameError::LastIsNumber),
            ("host.7.", DnsNameError::LastIsNumber),
        ] {
            assert_eq!(text.parse::<DnsName>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_country_has_two_letters() {
        assert_eq!(Country::new("fr").unwrap().to_string(), "FR");
        for text in ["", "F", "FRA", "F1", "é"] {
            assert_eq!(Country::new(text), None, "{text}");
        }
    }
}
