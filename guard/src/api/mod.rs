//! The control API: HTTP and JSON over a Unix socket.

pub mod client;
pub mod server;

#[cfg(test)]
mod tests;
