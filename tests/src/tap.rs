//! A virtual machine's network device, without the virtual machine: what the host sends it is read here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::machine::Machine;

/// The guest's end of a tap device.
#[derive(Debug)]
pub struct Tap {
    frames: File,
}

impl Tap {
    /// Makes a tap device of this name on a machine, and brings it up.
    #[must_use]
    #[track_caller]
    pub fn add(machine: &Machine, name: &str) -> Self {
        let frames = machine.inside(|| open(name));
        let frames = frames.unwrap_or_else(|error| {
            panic!("no tap device can be made on {}: {error}", machine.netns())
        });
        machine.ip(&format!("link set {name} up"));
        Self { frames }
    }

    /// The TCP packets to this port that have come since it was last asked.
    #[must_use]
    #[track_caller]
    pub fn tcp_packets_to(&self, port: u16) -> usize {
        let mut frame = [0; 2048];
        let mut packets = 0;
        loop {
            match (&self.frames).read(&mut frame) {
                Ok(length) => packets += usize::from(is_tcp_to(&frame[..length], port)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return packets,
                Err(error) => panic!("the tap device can't be read: {error}"),
            }
        }
    }
}

fn is_tcp_to(frame: &[u8], port: u16) -> bool {
    SlicedPacket::from_ethernet(frame).is_ok_and(|packet| {
        matches!(packet.net, Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)))
            && matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.destination_port() == port)
    })
}

fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: a plain record of integers and bytes, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads a whole `ifreq`, and the name ends with a zero (drivers/net/tun.c).
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}
