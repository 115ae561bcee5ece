//! A PPP session over Ethernet whose ends are two machines' kernels, as behind a modem; no program negotiates it (RFC 2516,
//! `drivers/net/ppp/pppoe.c`).

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{machine::Machine, wire::Mac};

/// `PX_PROTO_OE` of `include/uapi/linux/if_pppox.h`.
const PPPOE: libc::c_uint = 0;

/// Of `include/uapi/linux/ppp-ioctl.h`.
const PPPIOCGCHAN: libc::Ioctl = libc::_IOR::<libc::c_int>('t' as u32, 55);
const PPPIOCATTCHAN: libc::Ioctl = libc::_IOW::<libc::c_int>('t' as u32, 56);
const PPPIOCCONNECT: libc::Ioctl = libc::_IOW::<libc::c_int>('t' as u32, 58);
const PPPIOCNEWUNIT: libc::Ioctl = libc::_IOWR::<libc::c_int>('t' as u32, 62);

/// `struct sockaddr_pppox`, of PPPoE.
#[repr(C, packed)]
struct Address {
    family: libc::sa_family_t,
    protocol: libc::c_uint,
    session: u16,
    remote: Mac,
    device: [u8; libc::IFNAMSIZ],
}

/// One end of a session. Its interface lives as long as this does.
#[derive(Debug)]
pub struct Session {
    _socket: OwnedFd,
    _channel: File,
    _unit: File,
    /// The name of its interface.
    pub interface: String,
}

impl Session {
    /// This machine's end of a session with whoever has this Ethernet address, over one of the machine's interfaces.
    ///
    /// # Errors
    /// Where this kernel has no PPPoE.
    pub fn open(machine: &Machine, over: &str, remote: Mac, session: u16) -> io::Result<Self> {
        let mut device = [0; libc::IFNAMSIZ];
        device[..over.len()].copy_from_slice(over.as_bytes());
        let address = Address {
            family: libc::AF_PPPOX as libc::sa_family_t,
            protocol: PPPOE,
            session: session.to_be(),
            remote,
            device,
        };
        machine.inside(|| {
            let socket = connect(&address)?;
            // The namespace in which they are opened is that of the interface.
            let (channel, unit) = (open_ppp()?, open_ppp()?);
            let mut number = 0;
            control(socket.as_raw_fd(), PPPIOCGCHAN, &mut number)?;
            control(channel.as_raw_fd(), PPPIOCATTCHAN, &mut number)?;
            number = -1;
            control(unit.as_raw_fd(), PPPIOCNEWUNIT, &mut number)?;
            control(channel.as_raw_fd(), PPPIOCCONNECT, &mut number)?;
            let interface = format!("ppp{number}");
            Ok(Self { _socket: socket, _channel: channel, _unit: unit, interface })
        })
    }
}

fn open_ppp() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/ppp")
}

fn connect(address: &Address) -> io::Result<OwnedFd> {
    // SAFETY: a call with numbers only.
    let socket = unsafe {
        libc::socket(libc::AF_PPPOX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, PPPOE.cast_signed())
    };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let length = mem::size_of::<Address>().try_into().map_err(io::Error::other)?;
    // SAFETY: the address is whole and lives across the call, the length is its own, the descriptor is open.
    let connected =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const *address).cast(), length) };
    if connected < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn control(descriptor: RawFd, request: libc::Ioctl, number: &mut libc::c_int) -> io::Result<()> {
    // SAFETY: each of these requests reads or writes one integer, which lives across the call.
    let done = unsafe { libc::ioctl(descriptor, request, &raw mut *number) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
