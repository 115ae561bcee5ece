//! Ports as people write them: `11434`, `tcp/11434`, `udp/53`, and ranges of them where several may stand.

use std::{collections::BTreeSet, fmt, net::SocketAddr, str::FromStr};

use guard_common::{abi::MAX_GUARDED_PORTS, packet::Protocol};

use super::{GuardedPort, quoted};
use crate::control::Failure;

/// Why a text is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("{} is not a port", quoted(.text))]
    NotAPort { text: String },
    #[error("{} names port 0, which nothing can listen on", quoted(.text))]
    Zero { text: String },
    #[error("{} names a port above 65535", quoted(.text))]
    TooLarge { text: String },
    #[error("{} names a protocol other than tcp and udp", quoted(.text))]
    UnknownProtocol { text: String },
    #[error("the range {} runs backwards", quoted(.text))]
    Backwards { text: String, ordered: String },
    #[error("{} is a range, and one port is wanted here", quoted(.text))]
    Range { text: String },
    #[error("{} is a port at one address, which this version does not support", quoted(.text))]
    AtAddress { text: String, port: u16 },
    #[error("more than {MAX_GUARDED_PORTS} ports are named, {} among them", quoted(.text))]
    TooMany { text: String },
}

impl PortError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::NotAPort { .. } | Self::UnknownProtocol { .. } => {
                "Write a port as 11434, tcp/11434 or udp/53.".to_owned()
            }
            Self::Zero { .. } | Self::TooLarge { .. } => {
                "Write a number from 1 to 65535.".to_owned()
            }
            Self::Backwards { ordered, .. } => format!("Write {ordered}."),
            Self::Range { .. } => "Name one port, such as 11434.".to_owned(),
            Self::AtAddress { port, .. } => {
                format!("Guard the port at every address: write {port}.")
            }
            Self::TooMany { .. } => {
                format!(
                    "Name at most {MAX_GUARDED_PORTS}: only the ports that the service listens on."
                )
            }
        }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

impl fmt::Display for GuardedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.number),
            Protocol::Udp => write!(f, "udp/{}", self.number),
        }
    }
}

impl From<GuardedPort> for String {
    fn from(port: GuardedPort) -> Self {
        port.to_string()
    }
}

impl TryFrom<String> for GuardedPort {
    type Error = PortError;

    fn try_from(text: String) -> Result<Self, PortError> {
        text.parse()
    }
}

impl FromStr for GuardedPort {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let (protocol, first, last) = parse_range(text)?;
        if first != last {
            return Err(PortError::Range { text: text.to_owned() });
        }
        Ok(Self { protocol, number: first })
    }
}

/// One port or a range: `11434`, `udp/53`, `8000-8002`, `tcp/8000-8002`.
///
/// # Errors
/// When it is neither, or the range holds more ports than a policy can.
pub fn parse_ports(text: &str) -> Result<Vec<GuardedPort>, PortError> {
    let (protocol, first, last) = parse_range(text)?;
    if u32::from(last - first) >= MAX_GUARDED_PORTS {
        return Err(PortError::TooMany { text: text.to_owned() });
    }
    Ok((first..=last).map(|number| GuardedPort { protocol, number }).collect())
}

/// Several of what [`parse_ports`] reads, as a sorted list that holds each port once.
///
/// # Errors
/// As [`parse_ports`].
pub fn parse_port_list<T: AsRef<str>>(texts: &[T]) -> Result<Vec<GuardedPort>, PortError> {
    let mut ports = BTreeSet::new();
    for text in texts {
        ports.extend(parse_ports(text.as_ref())?);
        if ports.len() > MAX_GUARDED_PORTS as usize {
            return Err(PortError::TooMany { text: text.as_ref().to_owned() });
        }
    }
    Ok(ports.into_iter().collect())
}

/// Protocol, first and last port.
fn parse_range(text: &str) -> Result<(Protocol, u16, u16), PortError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Err(PortError::AtAddress { text: text.to_owned(), port: address.port() });
    }
    let (protocol, numbers) = match text.split_once('/') {
        None => (Protocol::Tcp, text),
        Some(("tcp", numbers)) => (Protocol::Tcp, numbers),
        Some(("udp", numbers)) => (Protocol::Udp, numbers),
        Some(_) => {
            return Err(PortError::UnknownProtocol { text: text.to_owned() });
        }
    };
    let Some((first, last)) = numbers.split_once('-') else {
        let number = parse_number(numbers, text)?;
        return Ok((protocol, number, number));
    };
    let (first, last) = (parse_number(first, text)?, parse_number(last, text)?);
    if first > last {
        let prefix = text.strip_suffix(numbers).unwrap_or_default();
        let ordered = format!("{prefix}{last}-{first}");
        return Err(PortError::Backwards { text: text.to_owned(), ordered });
    }
    Ok((protocol, first, last))
}

/// Digits only: `u16::from_str` would take a sign as well.
fn parse_number(digits: &str, text: &str) -> Result<u16, PortError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortError::NotAPort { text: text.to_owned() });
    }
    match digits.parse() {
        Ok(0) => Err(PortError::Zero { text: text.to_owned() }),
        Ok(number) => Ok(number),
        Err(_) => Err(PortError::TooLarge { text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(number: u16) -> GuardedPort {
        GuardedPort { protocol: Protocol::Tcp, number }
    }

    fn udp(number: u16) -> GuardedPort {
        GuardedPort { protocol: Protocol::Udp, number }
    }

    #[test]
    fn ports_are_read_in_every_form() {
        assert_eq!("11434".parse(), Ok(tcp(11434)));
        assert_eq!("tcp/11434".parse(), Ok(tcp(11434)));
        assert_eq!("udp/53".parse(), Ok(udp(53)));
        assert_eq!(parse_ports("8000-8002"), Ok(vec![tcp(8000), tcp(8001), tcp(8002)]));
        assert_eq!(parse_ports("udp/8000-8000"), Ok(vec![udp(8000)]));
        assert_eq!(parse_ports("65535"), Ok(vec![tcp(65535)]));
        assert_eq!(parse_ports("65530-65535").map(|ports| ports.len()), Ok(6));
    }

    #[test]
    fn lists_are_sorted_and_hold_each_port_once() {
        assert_eq!(
            parse_port_list(&["udp/53", "8001", "8000-8001"]),
            Ok(vec![tcp(8000), tcp(8001), udp(53)])
        );
        assert_eq!(parse_port_list::<&str>(&[]), Ok(vec![]));
    }

    #[test]
    fn what_is_no_port_is_refused_with_what_would_be_right() {
        for (text, what, fix) in [
            ("", r#""" is not a port"#, "11434"),
            ("http", "is not a port", "tcp/11434"),
            ("+80", "is not a port", "11434"),
            ("80,81", "is not a port", "11434"),
            ("-80", "is not a port", "11434"),
            ("80-", "is not a port", "11434"),
            ("1-2-3", "is not a port", "11434"),
            ("0", "port 0", "1 to 65535"),
            ("tcp/0", "port 0", "1 to 65535"),
            ("65536", "above 65535", "1 to 65535"),
            ("99999999999999999999", "above 65535", "1 to 65535"),
            ("sctp/80", "other than tcp and udp", "udp/53"),
            ("TCP/80", "other than tcp and udp", "udp/53"),
            ("udp/9-8", "runs backwards", "Write udp/8-9."),
            ("9-8", "runs backwards", "Write 8-9."),
            ("192.0.2.4:8081", "at one address", "write 8081"),
            ("[2001:db8::1]:8081", "at one address", "write 8081"),
            ("1-65", "more than 64 ports", "at most 64"),
            ("1-65535", "more than 64 ports", "at most 64"),
        ] {
            let error = parse_ports(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.fix().contains(fix), "{text}: {}", error.fix());
        }
        assert!(parse_ports("1-64").is_ok());
        assert_eq!(
            "8000-8001".parse::<GuardedPort>(),
            Err(PortError::Range { text: "8000-8001".to_owned() })
        );
        assert!(matches!(parse_port_list(&["1-64", "80"]), Err(PortError::TooMany { .. })));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(number in 1..=u16::MAX, is_udp: bool) {
            let port = if is_udp { udp(number) } else { tcp(number) };
            prop_assert_eq!(port.to_string().parse(), Ok(port));
            prop_assert_eq!(format!("{}/{number}", port.protocol.name()).parse(), Ok(port));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(ports) = parse_ports(&text) {
                prop_assert!(!ports.is_empty());
            }
        }
    }
}
