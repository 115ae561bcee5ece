//! What `attach = "auto"` chooses, and what is told of it.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use guard::control::InterfaceStatus;
use guard_tests::{
    foreign::guard_links,
    kernel,
    lab::Lab,
    product::{Attach, Guard, covered},
    wait::until,
};

fn interface(guard: &Guard<'_>, name: &str) -> InterfaceStatus {
    let status = guard.status();
    let found = status.interfaces.iter().find(|interface| interface.name == name);
    found.cloned().unwrap_or_else(|| panic!("{name} is not named: {status:#?}"))
}

/// The hook of [`Attach::Auto`] on what is not free of charge.
fn late() -> &'static str {
    if kernel::has_tcx() { "tcx" } else { "clsact" }
}

#[test]
fn a_veth_is_never_native_by_itself_and_its_price_is_told() {
    let lab = Lab::new("a_veth_is_never_native_by_itself");
    let guard = lab.start_guard(Attach::Auto, "");
    let eth0 = interface(&guard, "eth0");
    assert_eq!(eth0.hook.as_deref(), Some(late()), "{eth0:#?}");
    assert_eq!(eth0.reason.as_deref(), Some("native XDP is not free with veth"));
    let price = "it cuts bulk TCP over a veth to about a quarter";
    assert_eq!(eth0.native_price.as_deref(), Some(price));

    let line = format!(
        "native XDP would drop earlier on eth0: guard run --attach native (its price: {price})"
    );
    let text = guard.ask(&["status"]).output;
    assert!(text.lines().any(|found| found == line), "{text}");
    assert!(text.contains(&format!("{}  native XDP is not free with veth", late())), "{text}");
    until("the start-up message is whole", || guard.log().contains("guard events --follow"));
    assert!(guard.log().lines().any(|found| found == line), "{}", guard.log());
}

#[test]
fn what_was_asked_for_has_no_price() {
    let lab = Lab::new("what_was_asked_for_has_no_price");
    for attach in [Attach::Native, Attach::Generic, Attach::Clsact] {
        let guard = lab.start_guard(attach, "");
        let eth0 = interface(&guard, "eth0");
        assert_eq!(eth0.reason.as_deref(), Some("asked for"), "{eth0:#?}");
        assert_eq!(eth0.native_price, None);
        assert!(!guard.ask(&["status"]).output.contains("--attach native"));
        guard.kill();
    }
    // Nothing is lost when a veth is left alone by XDP, and much is won.
    let guard = lab.start_guard(Attach::Auto, "");
    assert_eq!(interface(&guard, "eth0").hook.as_deref(), Some(late()));
}

#[test]
fn the_choice_does_not_follow_the_carrier() {
    let lab = Lab::new("the_choice_does_not_follow_the_carrier");
    lab.client.ip("link set eth0 down\n");
    let guard = lab.start_guard(Attach::Auto, "");
    // Its routes go with the link, and what it is taken for with them: that is said in its note.
    let choice = || {
        let eth0 = interface(&guard, "eth0");
        (eth0.hook, eth0.reason, eth0.native_price)
    };
    let without = choice();
    assert_eq!(without.0.as_deref(), Some(late()));
    let links = guard_links(&lab.pins());

    for _ in 0..3 {
        lab.client.ip("link set eth0 up\n");
        assert_eq!(choice(), without);
        lab.client.ip("link set eth0 down\n");
        assert_eq!(choice(), without);
    }
    lab.server.ip("link set eth0 down\n");
    assert_eq!(choice(), without);
    lab.server.ip("link set eth0 up\n");
    lab.client.ip("link set eth0 up\n");
    // A daemon that starts again decides the same.
    guard.kill();
    guard.start();
    assert_eq!(choice(), without);
    assert_eq!(guard_links(&lab.pins()), links);
}

#[test]
fn a_tunnel_has_no_header_for_xdp() {
    let lab = Lab::new("a_tunnel_has_no_header_for_xdp");
    lab.server.ip("tuntap add tun7 mode tun\nlink set tun7 up\n");
    for attach in [Attach::Auto, Attach::Native] {
        let guard = lab.start_guard(attach, "");
        until("the tunnel is covered", || covered(&guard.status(), "tun7", late()));
        let tun7 = interface(&guard, "tun7");
        let reason = "XDP needs frames with an Ethernet header";
        assert_eq!(tun7.reason.as_deref(), Some(reason), "{tun7:#?}");
        assert_eq!(tun7.native_price, None);
        guard.kill();
    }
}

#[test]
fn an_xdp_socket_that_copies_is_in_nobodys_way() {
    let lab = Lab::new("an_xdp_socket_that_copies_is_in_nobodys_way");
    let index = lab.server.index_of("eth0");
    let socket = lab.server.inside(|| XdpSocket::bind(index));
    let _socket = socket.unwrap_or_else(|error| panic!("no AF_XDP socket can be bound: {error}"));
    let guard = lab.start_guard(Attach::Auto, "");
    let eth0 = interface(&guard, "eth0");
    assert_eq!(eth0.hook.as_deref(), Some(late()), "{eth0:#?}");
    assert_eq!(eth0.reason.as_deref(), Some("native XDP is not free with veth"));
}

/// An `AF_XDP` socket that is bound to the first queue of an interface, and copies.
struct XdpSocket {
    socket: OwnedFd,
    memory: *mut libc::c_void,
}

/// Frames of the socket's memory, and how large each is.
const FRAMES: usize = 16;
const FRAME_BYTES: usize = 4096;

impl XdpSocket {
    fn bind(ifindex: u32) -> io::Result<Self> {
        // SAFETY: it takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made, and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: a mapping of its own, at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                FRAMES * FRAME_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bound = Self { socket, memory };
        let region = libc::xdp_umem_reg {
            addr: memory as u64,
            len: (FRAMES * FRAME_BYTES) as u64,
            chunk_size: FRAME_BYTES as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        bound.set(libc::XDP_UMEM_REG, &region)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
            bound.set(ring, &(FRAMES as libc::c_int))?;
        }
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: the address is of the length that is given.
        let result = unsafe {
            libc::bind(
                bound.socket.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(bound) } else { Err(io::Error::last_os_error()) }
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the value is of the length that is given, and plain numbers.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_XDP,
                option,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for XdpSocket {
    fn drop(&mut self) {
        // SAFETY: it is this socket's own mapping, and nobody else has an address in it.
        unsafe { libc::munmap(self.memory, FRAMES * FRAME_BYTES) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for XdpSocket {}
