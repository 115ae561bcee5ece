//! An interface to put IP packets on, whatever its link's header is.

use std::{
    fs::File,
    io::{self, Write},
    mem::size_of,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketType, netdevice};

use crate::{machine::Machine, wire::Mac};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The kernel wants room for an address as long as the interface's own, up to 32 bytes (`packet_snd` in
/// `net/packet/af_packet.c`): a tunnel's is that of an IPv6 host.
#[repr(C)]
struct LongAddress {
    fields: libc::sockaddr_ll,
    _rest: [u8; 24],
}

/// A machine's interface; the kernel writes its link's header.
#[derive(Debug)]
pub struct Outlet {
    socket: OwnedFd,
    index: u32,
    to: Mac,
}

impl Outlet {
    /// Opens an interface, for packets to this Ethernet address where it has such.
    #[must_use]
    #[track_caller]
    pub fn open(machine: &Machine, interface: &str, to: Mac) -> Self {
        let open = || -> io::Result<(OwnedFd, u32)> {
            let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, None)?;
            let index = netdevice::name_to_index(socket.as_fd(), interface)?;
            Ok((socket, index))
        };
        let (socket, index) = machine.inside(open).unwrap_or_else(|error| {
            panic!("{interface} of {} can't be opened: {error}", machine.netns())
        });
        Self { socket, index, to }
    }

    /// Sends an IP packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.try_send(packet).unwrap_or_else(|error| {
            panic!("a packet of {} bytes can't be sent: {error}", packet.len())
        });
    }

    fn try_send(&self, packet: &[u8]) -> io::Result<()> {
        let kind = if packet[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let mut address = LongAddress {
            fields: libc::sockaddr_ll {
                sll_family: libc::AF_PACKET.cast_unsigned().try_into().map_err(io::Error::other)?,
                sll_protocol: kind.to_be(),
                sll_ifindex: self.index.try_into().map_err(io::Error::other)?,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 6,
                sll_addr: [0; 8],
            },
            _rest: [0; 24],
        };
        address.fields.sll_addr[..6].copy_from_slice(&self.to);
        let length = size_of::<LongAddress>().try_into().map_err(io::Error::other)?;
        // SAFETY: packet and address are whole and live across the call, the lengths are theirs, the descriptor is open.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A tunnel whose other end is this program, as of many VPNs: what is sent arrives on the machine's interface.
#[derive(Debug)]
pub struct Tunnel {
    end: File,
}

impl Tunnel {
    /// Makes the interface, where this kernel has such.
    ///
    /// # Errors
    /// When there is no `/dev/net/tun`.
    #[track_caller]
    pub fn make(machine: &Machine, interface: &str) -> io::Result<Self> {
        let end = machine.inside(|| {
            // SAFETY: a plain record of integers.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
                *place = byte.cast_signed();
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
            // The namespace in which it is opened is that of the interface (`tun_chr_open` in `drivers/net/tun.c`).
            let end = File::options().read(true).write(true).open("/dev/net/tun")?;
            // SAFETY: the request is a whole `ifreq` that lives across the call, and the descriptor is open.
            let made = unsafe { libc::ioctl(end.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            if made < 0 { Err(io::Error::last_os_error()) } else { Ok(end) }
        })?;
        Ok(Self { end })
    }

    /// Gives the interface, which must be down, the type of an Ethernet device; its packets have no Ethernet header all the same.
    #[track_caller]
    pub fn claim_to_be_ethernet(&self) {
        // `TUNSETLINK` of `include/uapi/linux/if_tun.h`.
        const SET_LINK: libc::Ioctl = 0x4004_54cd;
        const ETHERNET: libc::c_ulong = 1;
        // SAFETY: the descriptor is open, and the argument is a number.
        let set = unsafe { libc::ioctl(self.end.as_raw_fd(), SET_LINK, ETHERNET) };
        assert_eq!(set, 0, "the tunnel keeps its type: {}", io::Error::last_os_error());
    }

    /// Lets an IP packet arrive.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        (&self.end)
            .write_all(packet)
            .unwrap_or_else(|error| panic!("the tunnel takes no packet: {error}"));
    }
}
