//! TCX ingress (clsact below 6.6) on outside interfaces and tunnels. Headers are read from the network header on, so
//! that the link type never matters.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use guard_common::{
    packet::Packet,
    parse,
    verdict::{self, Hook},
};

use super::reject;
use crate::{
    maps::Slot,
    reader::{self, SkbReader},
    report::{self, Arrival},
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` under clsact: the next program decides (`include/uapi/linux/bpf.h`).
pub(super) const NEXT: i32 = -1;

/// For a link layer of any kind.
#[classifier]
#[inline(always)]
fn guard_tcx(ctx: TcContext) -> i32 {
    judge(&ctx, false)
}

/// For devices whose packets stand behind an Ethernet header, where those to other ports are told without a helper's help.
#[classifier]
#[inline(always)]
fn guard_tcx_eth(ctx: TcContext) -> i32 {
    judge(&ctx, true)
}

#[inline(always)]
fn judge(ctx: &TcContext, is_ethernet: bool) -> i32 {
    let skb = SkbReader::new(ctx.skb.skb);
    let Some(slot) = Slot::in_force() else {
        return NEXT;
    };
    let plain = if is_ethernet { skb.plain_port() } else { None };
    if plain.is_some_and(|(protocol, port)| !slot.may_guard(protocol, port)) {
        return NEXT;
    }
    let mut packet = Packet::EMPTY;
    let packet = reader::whole(&mut packet);
    let outcome = parse::network(&skb, skb.ether_type(), 0, packet);
    if plain.is_none()
        && verdict::is_to_another_port(outcome, packet, |protocol, port| {
            slot.may_guard(protocol, port)
        })
    {
        return NEXT;
    }
    let Some(policy) = slot.policy(Hook::Tcx, skb.ifindex()) else {
        return NEXT;
    };
    let decision = verdict::from_outside(outcome, packet, &policy);
    let arrival = Arrival {
        hook: Hook::Tcx,
        ifindex: skb.ifindex(),
        packets: skb.wire_packets(),
        bytes: u64::from(skb.bytes_from_network_header()),
        is_test_run: report::is_test_run(skb.ifindex()),
    };
    match report::report(decision, packet, &arrival) {
        true if policy.rejects() => reject::skb(ctx, decision),
        true => TC_ACT_SHOT,
        false => NEXT,
    }
}
