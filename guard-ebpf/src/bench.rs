//! The packet generator of `cargo xtask bench`: an object of its own, of which nothing is in guard.
//!
//! `BPF_PROG_TEST_RUN` with live frames (kernel 5.18) runs it over frames that the kernel makes and takes back. It writes each
//! anew, since the last receiver may have changed it, with the next of a list of sources, and sends it out by an interface.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::XDP_ABORTED,
    helpers::bpf_redirect,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};

/// Most bytes of a frame, in words of 8.
const MAX_WORDS: usize = 10;

/// Before these come 12 bytes of Ethernet addresses, 2 of a type, and what stands in front of the source.
const SOURCE_V4: usize = 26;
const SOURCE_V6: usize = 22;

const V4_BYTES: usize = 60;
const V6_BYTES: usize = 74;

/// What is sent, as user space has written it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Order {
    /// The frame, without source and checksums.
    frame: [u64; MAX_WORDS],
    /// One's complement sums of what the checksums cover, without the source.
    header_sum: u32,
    transport_sum: u32,
    /// 0 stands for TCP, anything else for UDP.
    is_udp: u32,
    /// Out by which interface.
    ifindex: u32,
    /// One less than the sources, of which there are a power of two.
    source_mask: u32,
    next: u32,
}

#[map]
static ORDER: Array<Order> = Array::with_max_entries(1, 0);
/// In network byte order, as all that is summed.
#[map]
static SOURCES_V4: Array<[u16; 2]> = Array::with_max_entries(1 << 20, 0);
#[map]
static SOURCES_V6: Array<[u16; 8]> = Array::with_max_entries(1 << 20, 0);

#[xdp]
fn generate_v4(ctx: XdpContext) -> u32 {
    send::<2, V4_BYTES, SOURCE_V4>(&ctx, &SOURCES_V4).unwrap_or(XDP_ABORTED)
}

#[xdp]
fn generate_v6(ctx: XdpContext) -> u32 {
    send::<8, V6_BYTES, SOURCE_V6>(&ctx, &SOURCES_V6).unwrap_or(XDP_ABORTED)
}

/// Writes and sends a frame of so many bytes, whose source of so many words stands there.
#[inline(always)]
fn send<const WORDS: usize, const BYTES: usize, const SOURCE: usize>(
    ctx: &XdpContext,
    sources: &Array<[u16; WORDS]>,
) -> Option<u32> {
    const HEADER_CHECKSUM: usize = 24;
    const TCP_CHECKSUM: usize = 16;
    const UDP_CHECKSUM: usize = 6;
    let order = ORDER.get_ptr_mut(0)?;
    // SAFETY: one CPU at a time generates, so that nobody else has this entry.
    let order = unsafe { &mut *order };
    let source = sources.get(order.next & order.source_mask)?;
    order.next = order.next.wrapping_add(1);

    let frame = ctx.data();
    if frame + BYTES > ctx.data_end() {
        return None;
    }
    for word in 0..BYTES / 8 {
        // SAFETY: within the frame, which begins at a multiple of 8 (`xdp_test_run_init_page` in `net/bpf/test_run.c`).
        unsafe { ((frame + word * 8) as *mut u64).write(order.frame[word]) };
    }
    for half in BYTES / 8 * 4..BYTES / 2 {
        let bytes = order.frame[half / 4] >> (half % 4 * 16);
        // SAFETY: as above.
        unsafe { ((frame + half * 2) as *mut u16).write(bytes as u16) };
    }
    let mut sum = 0;
    for (word, value) in source.iter().enumerate() {
        sum += u32::from(*value);
        // SAFETY: as above.
        unsafe { ((frame + SOURCE + word * 2) as *mut u16).write(*value) };
    }
    if WORDS == 2 {
        // SAFETY: as above.
        unsafe { ((frame + HEADER_CHECKSUM) as *mut u16).write(checksum(order.header_sum + sum)) };
    }
    // Behind the destination, which is as long as the source and the last of the header.
    let transport = frame + SOURCE + WORDS * 4;
    let checksum = checksum(order.transport_sum + sum);
    // Two stores, each at a place that the verifier knows.
    if order.is_udp == 0 {
        // SAFETY: as above.
        unsafe { ((transport + TCP_CHECKSUM) as *mut u16).write(checksum) };
    } else {
        // SAFETY: as above.
        unsafe { ((transport + UDP_CHECKSUM) as *mut u16).write(checksum) };
    }
    // SAFETY: the helper takes plain numbers.
    Some(unsafe { bpf_redirect(order.ifindex, 0) }.cast_unsigned() as u32)
}

/// The Internet checksum (RFC 1071) of what was summed; at most 32767 words.
#[inline(always)]
fn checksum(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program that can get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
