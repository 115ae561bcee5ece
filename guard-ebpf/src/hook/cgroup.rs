//! `cgroup_skb` ingress: the backstop, that sees what sockets see, in every network namespace.

use aya_ebpf::{
    bindings::__sk_buff, helpers::bpf_sk_fullsock, macros::cgroup_skb, programs::SkBuffContext,
};
use guard_common::{
    abi::{EXPLAIN_MARK, LOOPBACK_IFINDEX},
    packet::{Packet, Protocol},
    parse,
    verdict::{self, Hook},
};

use crate::{
    maps::Slot,
    reader::{self, SkbReader},
    report::{self, Arrival},
};

const DROP: i32 = 0;
const PASS: i32 = 1;

/// `SOCK_RAW` of `include/linux/net.h`: such a socket gets a copy beside the one the packet is for.
const SOCK_RAW: u32 = 3;

#[cgroup_skb(ingress)]
#[inline(always)]
fn guard_cgroup(ctx: SkBuffContext) -> i32 {
    let skb = SkbReader::new(ctx.skb.skb);
    let is_test_run = skb.mark_of_test_run() == EXPLAIN_MARK;
    if skb.ifindex() == LOOPBACK_IFINDEX && !is_test_run {
        return PASS;
    }
    let (Some(slot), Some(socket)) = (Slot::in_force(), socket_of(ctx.skb.skb, is_test_run)) else {
        return PASS;
    };
    let may_guard = |port| slot.may_guard(socket.protocol, port);
    let is_by_packet = !may_guard(socket.port);
    if is_by_packet && skb.plain_port_at_socket().is_some_and(|port| !may_guard(port)) {
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    let packet = reader::whole(&mut packet);
    parse::at_socket(&skb, socket.protocol, packet);
    if is_by_packet && !may_guard(packet.port) {
        return PASS;
    }
    let Some(policy) = slot.policy_at_socket() else {
        return PASS;
    };
    let decision = verdict::at_socket(packet, socket.port, &policy);
    let arrival = Arrival {
        hook: Hook::Cgroup,
        // The number belongs to the socket's own network namespace and says nothing in another.
        ifindex: 0,
        packets: skb.wire_packets(),
        bytes: u64::from(skb.len()),
        is_test_run,
    };
    if report::report(decision, packet, &arrival) { DROP } else { PASS }
}

struct Socket {
    protocol: Protocol,
    /// Its local port, host byte order.
    port: u16,
}

/// The socket the packet is for, when its protocol's ports can be guarded.
#[inline(always)]
fn socket_of(skb: *mut __sk_buff, is_test_run: bool) -> Option<Socket> {
    if is_test_run {
        // The kernel's stand-in socket has neither protocol nor port.
        return Some(Socket { protocol: Protocol::Tcp, port: 0 });
    }
    // SAFETY: `skb` is the program's context. The verifier checks each access to it and to the sockets that it
    // and the helper hand out, and that both were compared with null.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() || (*socket).type_ == SOCK_RAW {
            return None;
        }
        let protocol = Protocol::from_number(u8::try_from((*socket).protocol).ok()?)?;
        Some(Socket { protocol, port: (*socket).src_port as u16 })
    }
}
