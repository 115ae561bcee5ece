//! From the ring's bytes to attempts that people and programs read.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One attempt: a packet, or a run of packets from one source, that got `drop` or `would-drop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub time: Timestamp,
    pub verdict: String,
    pub reason: String,
    pub hook: String,
    /// `None` where the packet was seen at a socket, whose namespace may be another.
    pub interface: Option<String>,
    pub source: IpAddr,
    /// `None` where the ports could not be read.
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub port: Option<u16>,
    pub protocol: String,
    /// `SYN`, `SYN|ACK`, … ; empty for UDP.
    pub tcp_flags: String,
    /// Everything from this source since its last line.
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
}
