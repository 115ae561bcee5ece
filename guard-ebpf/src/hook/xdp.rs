//! XDP on an outside Ethernet interface: before the kernel allocates anything, and before NAT.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use guard_common::{
    packet::Packet,
    parse::{self, ETHERNET_BYTES},
    verdict::{self, Hook},
};

use super::reject;
use crate::{
    maps::Slot,
    reader::{self, FrameReader},
    report::{self, Arrival},
};

/// Takes frames of any size.
#[xdp(frags)]
#[inline(always)]
fn guard_xdp(ctx: XdpContext) -> u32 {
    judge(&ctx)
}

/// The same for kernels below 5.18, which know no frames of several buffers: there no device gives it one.
#[xdp]
#[inline(always)]
fn guard_xdp_plain(ctx: XdpContext) -> u32 {
    judge(&ctx)
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> u32 {
    let Some(slot) = Slot::in_force() else {
        return xdp_action::XDP_PASS;
    };
    let frame = FrameReader::new(ctx);
    let plain = parse::plain_frame_port(&frame);
    if plain.is_some_and(|(protocol, port)| !slot.may_guard(protocol, port)) {
        return xdp_action::XDP_PASS;
    }
    let mut packet = Packet::EMPTY;
    let packet = reader::whole(&mut packet);
    let outcome = match plain {
        Some((protocol, _)) => parse::plain_frame(&frame, protocol, packet),
        None => parse::frame(&frame, packet),
    };
    if plain.is_none()
        && verdict::is_to_another_port(outcome, packet, |protocol, port| {
            slot.may_guard(protocol, port)
        })
    {
        return xdp_action::XDP_PASS;
    }
    let ifindex = ctx.ingress_ifindex() as u32;
    let Some(policy) = slot.policy(Hook::Xdp, ifindex) else {
        return xdp_action::XDP_PASS;
    };
    let decision = verdict::from_outside(outcome, packet, &policy);
    let arrival = Arrival {
        hook: Hook::Xdp,
        ifindex,
        packets: 1,
        bytes: frame.len().saturating_sub(ETHERNET_BYTES) as u64,
        is_test_run: report::is_test_run(ifindex),
    };
    match report::report(decision, packet, &arrival) {
        true if policy.rejects() => reject::frame(ctx, decision),
        true => xdp_action::XDP_DROP,
        false => xdp_action::XDP_PASS,
    }
}
