//! Programs of others in the kernel, a few instructions each: written by hand, since the tests have no compiler for them.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketType, sockopt::socket_acceptconn},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{listener::Listener, machine::Machine};

/// A program at work, until this is dropped.
#[derive(Debug)]
pub struct Attached {
    _link: OwnedFd,
}

// Commands, types and places of include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const SOCKMAP: u32 = 15;
const SCHED_CLS: u32 = 3;
const SK_LOOKUP: u32 = 30;
const AT_SK_LOOKUP: u32 = 36;
const AT_TCX_EGRESS: u32 = 47;

/// Gives everything that leaves by an interface a VLAN tag that stands beside the frame, not in it, as a NIC hands one over that
/// has taken it off.
#[must_use]
#[track_caller]
pub fn tag_beside_frames(machine: &Machine, interface: &str, vlan: u16) -> Attached {
    /// `ETH_P_8021Q`, in network byte order.
    const VLAN: i32 = 0x8100_u16.to_be() as i32;
    const VLAN_PUSH: i32 = 18;
    /// `TCX_NEXT`.
    const NEXT: i32 = -1;
    let program = [set(2, VLAN), set(3, vlan.into()), call(VLAN_PUSH), set(0, NEXT), EXIT].concat();
    let attached = machine.inside(|| {
        let program = load(SCHED_CLS, 0, &program)?;
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
        link(&program, index, AT_TCX_EGRESS)
    });
    attached.unwrap_or_else(|error| panic!("no program can be put at {interface}: {error}"))
}

/// Lets a listener of a machine, to whom nobody is connected, take the TCP connections to another port too.
#[must_use]
#[track_caller]
pub fn look_up(machine: &Machine, port: u16, listener: &Listener) -> Attached {
    const PASS: i32 = 1;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    /// Of `local_port` in `struct bpf_sk_lookup`.
    const LOCAL_PORT: i16 = 60;
    let attached = machine.inside(|| {
        let socket = listening_socket_of(listener.pid())?;
        let map = bpf(MAP_CREATE, &words(&[SOCKMAP, 4, 8, 1]))?;
        let (key, value) = (0_u32, u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?);
        let mut update = words(&[number(&map)?, 0]);
        update.extend((&raw const key as u64).to_ne_bytes());
        update.extend((&raw const value as u64).to_ne_bytes());
        update.extend([0; 8]);
        bpf_done(MAP_UPDATE_ELEM, &update)?;

        let program = [
            copy(6, 1),
            instruction(0x61, 2, 1, LOCAL_PORT, 0), // r2 = its port
            instruction(0x55, 2, 0, 14, port.into()), // another: to the end
            instruction(0x62, 10, 0, -4, 0),        // the key
            copy(2, 10),
            instruction(0x07, 2, 0, 0, -4),
            // The map's descriptor, in two instructions.
            instruction(0x18, 1, 1, 0, map.as_raw_fd()),
            instruction(0, 0, 0, 0, 0),
            call(MAP_LOOKUP_ELEM),
            instruction(0x15, 0, 0, 7, 0), // none: to the end
            copy(7, 0),
            copy(1, 6),
            copy(2, 7),
            set(3, 0),
            call(SK_ASSIGN),
            copy(1, 7),
            call(SK_RELEASE),
            set(0, PASS),
            EXIT,
        ]
        .concat();
        let program = load(SK_LOOKUP, AT_SK_LOOKUP, &program)?;
        let netns = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY, Mode::empty())?;
        link(&program, number(&netns)?, AT_SK_LOOKUP)
    });
    attached.unwrap_or_else(|error| panic!("no program can look up sockets: {error}"))
}

/// The socket of a process that listens; others may be of connections that end just now.
fn listening_socket_of(process: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        if !fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        {
            continue;
        }
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<RawFd>().ok());
        let socket = number.map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()));
        if let Some(Ok(socket)) = socket
            && socket_acceptconn(&socket)?
        {
            return Ok(socket);
        }
    }
    Err(io::Error::other("none of its sockets listens"))
}

type Instruction = [u8; 8];

const EXIT: Instruction = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// `struct bpf_insn`, on a little-endian machine.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [v0, v1, v2, v3] = value.to_le_bytes();
    [code, from << 4 | to, o0, o1, v0, v1, v2, v3]
}

fn set(register: u8, value: i32) -> Instruction {
    instruction(0xb7, register, 0, 0, value)
}

fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

fn load(kind: u32, place: u32, program: &[u8]) -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let count =
        u32::try_from(program.len() / size_of::<Instruction>()).map_err(io::Error::other)?;
    let mut attributes = words(&[kind, count]);
    attributes.extend((program.as_ptr() as u64).to_ne_bytes());
    attributes.extend((licence.as_ptr() as u64).to_ne_bytes());
    attributes.resize(68, 0);
    attributes.extend(place.to_ne_bytes());
    bpf(PROG_LOAD, &attributes)
}

fn link(program: &OwnedFd, target: u32, place: u32) -> io::Result<Attached> {
    let link = bpf(LINK_CREATE, &words(&[number(program)?, target, place, 0]))?;
    Ok(Attached { _link: link })
}

fn number(descriptor: &OwnedFd) -> io::Result<u32> {
    u32::try_from(descriptor.as_raw_fd()).map_err(io::Error::other)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_ne_bytes).collect()
}

/// A command that makes something.
fn bpf(command: libc::c_int, attributes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = bpf_done(command, attributes)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf_done(command: libc::c_int, attributes: &[u8]) -> io::Result<i32> {
    // SAFETY: `attributes` is as long as said, and what it points to outlives the call, of which the kernel keeps no pointer.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}
