//! TCX egress (clsact below 6.6) on local bridges and containers' devices: the last point that sees a forwarded packet, behind NAT.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use guard_common::{
    packet::Packet,
    parse,
    verdict::{self, Decision, Hook},
};

use crate::{
    hook::tcx::NEXT,
    maps::Slot,
    reader::{self, SkbReader},
    report::{self, Arrival},
};

/// For a link layer of any kind.
#[classifier]
#[inline(always)]
fn guard_edge(ctx: TcContext) -> i32 {
    judge(&ctx, false)
}

/// As `guard_tcx_eth`.
#[classifier]
#[inline(always)]
fn guard_edge_eth(ctx: TcContext) -> i32 {
    judge(&ctx, true)
}

#[inline(always)]
fn judge(ctx: &TcContext, is_ethernet: bool) -> i32 {
    let skb = SkbReader::new(ctx.skb.skb);
    let is_test_run = report::is_test_run(skb.ifindex());
    let came_in_by = skb.ingress_ifindex();
    // What this host sends itself came in by nothing. A test run can't say by what.
    if came_in_by == 0 && !is_test_run {
        return NEXT;
    }
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
    // Rules by interface go by the one it came in by.
    let by = if is_test_run { skb.ifindex() } else { came_in_by };
    let Some(policy) = slot.policy(Hook::Edge, by) else {
        return NEXT;
    };
    let decision = verdict::at_edge(outcome, packet, &policy);
    // Last, since most packets are to no guarded port.
    if matches!(decision, Decision::NotOurs) || policy.is_inside(came_in_by) {
        return NEXT;
    }
    let arrival = Arrival {
        hook: Hook::Edge,
        ifindex: skb.ifindex(),
        packets: skb.wire_packets(),
        bytes: u64::from(skb.bytes_from_network_header()),
        is_test_run,
    };
    if report::report(decision, packet, &arrival) { TC_ACT_SHOT } else { NEXT }
}
