//! Facts about this host: its interfaces and addresses, its sockets, its cgroup tree. Nothing here changes the
//! policy or touches a kernel program.

pub mod cgroup;
pub mod interfaces;
pub mod netlink;
pub mod reserved_ports;
pub mod sockets;
