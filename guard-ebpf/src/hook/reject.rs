//! Answers what a NIC's hook drops with a reset, out of the interface it came in by. Where it can't, the drop stays silent.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md},
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_tail},
    programs::{TcContext, XdpContext},
};
use guard_common::{
    abi::budget,
    parse::{ETHERNET_BYTES, ethertype},
    reader::{Reader, Writer},
    reset,
    verdict::{Decision, Reason},
};

use crate::{
    maps,
    reader::{FrameReader, FrameStart, SkbReader},
    report::within_budget,
};

/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;

/// The bit of an Ethernet address that many hosts share (IEEE 802.3 section 3.2.3).
const GROUP: u8 = 1;

/// Whether a packet that was dropped for this reason gets an answer, and this CPU may send one more.
#[inline(always)]
fn is_due(reason: u32) -> bool {
    let is_by_rule = reason == Reason::NoRule as u32 || reason == Reason::Denied as u32;
    is_by_rule && within_budget(budget::RESETS, maps::boot_ns())
}

/// What becomes of a frame that is dropped: nothing, or the answer in its place.
#[inline(always)]
pub fn frame(ctx: &XdpContext, decision: Decision) -> u32 {
    match decision {
        Decision::Judged(_, reason) => guard_turn_frame(ctx.ctx, reason as u32),
        Decision::NotOurs => xdp_action::XDP_DROP,
    }
}

/// Turns a frame into its answer where it gets one, and else drops it.
///
/// A function with a name that all see is verified once, for any arguments, and not for every way that leads to it (global
/// functions, kernel 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_turn_frame(ctx: *mut xdp_md, reason: u32) -> u32 {
    if is_due(reason) && turn_frame(&XdpContext::new(ctx)).is_some() {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_DROP
    }
}

#[inline(always)]
fn turn_frame(ctx: &XdpContext) -> Option<()> {
    const IPV4_BYTES: usize = ETHERNET_BYTES + reset::IPV4_ANSWER_BYTES;
    const IPV6_BYTES: usize = ETHERNET_BYTES + reset::IPV6_ANSWER_BYTES;
    let kind = FrameStart::<ETHERNET_BYTES>::new(ctx)?.read::<2>(ETHERNET_BYTES - 2)?;
    // A frame with VLAN tags gets no answer: to the verifier each number of tags is another way through all of this.
    let end = match u16::from_be_bytes(kind) {
        ethertype::IPV4 => turn_start::<IPV4_BYTES>(ctx, ethertype::IPV4)?,
        ethertype::IPV6 => turn_start::<IPV6_BYTES>(ctx, ethertype::IPV6)?,
        _ => return None,
    };
    let more = (end.wrapping_sub(FrameReader::new(ctx).len()) as u32).cast_signed();
    // SAFETY: the helper checks the length itself, and no pointer into the packet is used after it. What it may refuse
    // to cut off stays behind the answer's end, as padding.
    unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), more) };
    Some(())
}

/// Returns where the answer ends.
#[inline(always)]
fn turn_start<const N: usize>(ctx: &XdpContext, kind: u16) -> Option<usize> {
    let frame = FrameStart::<N>::new(ctx)?;
    let answer_bytes = reset::turn(&frame, kind, ETHERNET_BYTES)?;
    turn_link_header(&frame)?;
    Some(ETHERNET_BYTES + answer_bytes)
}

/// What becomes of a packet that is dropped: nothing, or the answer in its place.
#[inline(always)]
pub fn skb(ctx: &TcContext, decision: Decision) -> i32 {
    match decision {
        Decision::Judged(_, reason) => guard_turn_skb(ctx.skb.skb, reason as u32),
        Decision::NotOurs => TC_ACT_SHOT,
    }
}

/// As [`guard_turn_frame`], for a packet at TC. It also has a stack of its own in which it is made.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_turn_skb(skb: *mut __sk_buff, reason: u32) -> i32 {
    let skb = SkbReader::new(skb);
    if is_due(reason)
        && skb.is_for_this_host()
        && let Some(action) = turn_skb(&skb)
    {
        action
    } else {
        TC_ACT_SHOT
    }
}

#[inline(always)]
fn turn_skb(skb: &SkbReader) -> Option<i32> {
    let packet = skb.at_its_start()?;
    let offset = packet.network_offset();
    if offset != 0 {
        turn_link_header(&packet)?;
    }
    let answer_bytes = reset::turn(&packet, skb.ether_type(), offset)?;
    packet.cut_to(offset + answer_bytes)?;
    // SAFETY: the helper only notes where the packet goes.
    Some(unsafe { bpf_redirect(skb.ifindex(), 0) } as i32)
}

/// Sends a frame back to where it came from; `None` for one to many.
#[inline(always)]
fn turn_link_header<P: Reader + Writer>(packet: &P) -> Option<()> {
    let [to] = packet.read(0)?;
    if to & GROUP != 0 {
        return None;
    }
    reset::swap::<MAC_BYTES, 2, P>(packet, 0).map(|_| ())
}
