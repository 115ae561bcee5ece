//! Answers what a NIC's hook drops with a reset, out of the interface it came in by. Where it can't, the drop stays silent.

use aya_ebpf::{
    EbpfContext,
    bindings::{xdp_action, xdp_md},
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use guard_common::{
    abi::budget,
    parse::ETHERNET_BYTES,
    reader::{Reader, Writer},
    reset,
    verdict::{Decision, Reason},
};

use crate::{
    maps,
    reader::{FrameReader, SkbReader},
    report::within_budget,
};

/// Both addresses of an Ethernet header.
const MAC_BYTES: usize = 12;

/// The bit of an Ethernet address that many hosts share (IEEE 802.3 section 3.2.3).
const GROUP: u8 = 1;

/// Whether a packet that was dropped for this reason gets an answer, and this CPU may send one more. The policy is asked anew:
/// what is not kept, the verifier need not tell apart.
#[inline(always)]
fn is_due(reason: u32) -> bool {
    let is_by_rule = reason == Reason::NoRule as u32 || reason == Reason::Denied as u32;
    is_by_rule && maps::rejects() && within_budget(budget::RESETS, maps::boot_ns())
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
    // Its offsets are constants, which no verifier forgets.
    let frame = FrameReader::<false>::new(ctx);
    let kind = u16::from_be_bytes(frame.read::<2>(ETHERNET_BYTES - 2)?);
    // A frame with VLAN tags gets no answer: to the verifier each number of tags is another way through all of this.
    let answer_bytes = reset::turn(&frame, kind, ETHERNET_BYTES)?;
    let macs = turned(frame.read::<MAC_BYTES>(0)?)?;
    frame.write(0, &macs)?;
    let more = (ETHERNET_BYTES + answer_bytes) as i32 - frame.len() as i32;
    // SAFETY: the helper checks the length itself, and no pointer into the packet is used after it. What it may refuse
    // to cut off stays behind the answer's end, as padding.
    unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), more) };
    Some(())
}

/// Sends the answer in place of a packet that is dropped; `None` where the drop stays silent.
#[inline(always)]
pub fn skb(skb: &SkbReader, decision: Decision) -> Option<i32> {
    let Decision::Judged(_, reason) = decision else {
        return None;
    };
    if !skb.is_for_this_host() || !is_due(reason as u32) {
        return None;
    }
    let packet = skb.from_start()?;
    let offset = packet.network_offset();
    if offset != 0 {
        packet.write(0, &turned(packet.read::<MAC_BYTES>(0)?)?)?;
    }
    let answer_bytes = reset::turn(&packet, skb.ether_type(), offset)?;
    packet.cut_to(offset + answer_bytes)?;
    // SAFETY: the helper only notes where the packet goes.
    Some(unsafe { bpf_redirect(skb.ifindex(), 0) } as i32)
}

/// The addresses of the answer's Ethernet header; `None` for a frame to many.
#[inline(always)]
fn turned(macs: [u8; MAC_BYTES]) -> Option<[u8; MAC_BYTES]> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    if d0 & GROUP != 0 {
        return None;
    }
    Some([s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5])
}
