//! Which processes listen on guarded ports, and who is connected to them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A socket that listens on a guarded port at an address other machines may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub local: SocketAddr,
    pub process: Option<Process>,
}

/// An open connection to a guarded port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub process: Option<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub name: String,
}
