//! The control API: HTTP and JSON over a Unix socket.

pub mod client;
pub mod server;

use std::{io, path::Path};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

/// What stands at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// A process listens, though it may be too busy to answer.
    Listening,
    /// Nothing, or a socket that its process has left.
    Nobody,
}

/// Looks whether a process listens. Never waits: a blocking connect would, on a process that takes no connections.
fn presence(socket: &Path) -> io::Result<Presence> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(socket)?) {
        // EAGAIN: its queue is full (unix_stream_connect in net/unix/af_unix.c).
        Ok(()) | Err(Errno::AGAIN) => Ok(Presence::Listening),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(Presence::Nobody),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
