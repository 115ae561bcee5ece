//! The frame of an XDP program, through packet pointers.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, programs::XdpContext};
use guard_common::{
    parse::{ETHERNET_BYTES, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
    reader::{Reader, Writer},
};

use super::Aligned;

/// No header is read from a place beyond this; all bits are set.
const LAST_OFFSET: usize = 0x3fff;

const _: () = {
    const VLAN_TAG_BYTES: usize = 4;
    const IPV6_BYTES: usize = 40;
    const LONGEST_EXTENSION_HEADER_BYTES: usize = 256 * 8;
    let headers = ETHERNET_BYTES
        + MAX_VLAN_TAGS * VLAN_TAG_BYTES
        + IPV6_BYTES
        + MAX_EXTENSION_HEADERS * LONGEST_EXTENSION_HEADER_BYTES;
    assert!(headers <= LAST_OFFSET);
};

/// The linear part of a frame. Headers that reach past it, into a multi-buffer frame's fragments, read as cut short.
///
/// Older kernels' verifiers forget the bounds of a number that is kept on the stack (below 5.11 of each, on 6.1 still of some:
/// `check_stack_write` in `kernel/bpf/verifier.c`), so they are reminded of an offset's before each read.
pub struct FrameReader {
    start: usize,
    end: usize,
}

impl FrameReader {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// The linear part of an skb, from where its program's packet begins: the network header for cgroup programs
    /// (`__cgroup_bpf_run_filter_skb` in `kernel/bpf/cgroup.c`), the link header's for those at TC.
    #[inline(always)]
    pub fn of_skb(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context lives as long as the program runs; the verifier takes these two fields for what they are.
        let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        Self { start, end }
    }

    /// Bytes in the linear part.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }
}

impl Reader for FrameReader {
    #[inline(always)]
    fn opaque(number: u32) -> u32 {
        super::opaque(number)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut offset = offset;
        // SAFETY: the instruction touches nothing but this register. It changes no number that the parser comes to, as
        // is checked above, which is why a compiler that knew would leave it out.
        unsafe {
            asm!(
                "{offset} &= {last}",
                offset = inout(reg) offset,
                last = const LAST_OFFSET,
                options(pure, nomem, nostack),
            );
        }
        // Written with `>`: kernels 5.8 and 5.9 mark the range wrongly for bounds with `>=`.
        if self.start + offset + N > self.end {
            return None;
        }
        // SAFETY: `N` bytes from here lie before the packet's end, as the verifier has seen just above.
        Some(unsafe { load(self.start + offset) })
    }
}

/// A load of a word of a packet, wherever it begins: to the kernel a packet need not be aligned where the processor does not mind
/// (`check_pkt_ptr_alignment` in `kernel/bpf/verifier.c`), to the language it must.
macro_rules! load_word {
    ($type:literal, $place:expr) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", $type, " *)({place} + 0)"),
            place = in(reg) $place,
            word = lateout(reg) word,
            options(pure, readonly, nostack),
        );
        word
    }};
}

/// `N` bytes, in as few loads as they take.
///
/// # Safety
/// They must lie within the packet.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the bytes are aligned to 8, and each word stands at a multiple of its length"
)]
unsafe fn load<const N: usize>(place: usize) -> [u8; N] {
    let mut bytes = MaybeUninit::<Aligned<N>>::uninit();
    let to = bytes.as_mut_ptr().cast::<u8>();
    let mut at = 0;
    // SAFETY: all is within the `N` bytes of both, and what is written is aligned as its type, for the longest come first.
    unsafe {
        while at + 8 <= N {
            to.add(at).cast::<u64>().write(load_word!("u64", place + at));
            at += 8;
        }
        if N & 4 != 0 {
            to.add(at).cast::<u32>().write(load_word!("u32", place + at) as u32);
            at += 4;
        }
        if N & 2 != 0 {
            to.add(at).cast::<u16>().write(load_word!("u16", place + at) as u16);
            at += 2;
        }
        if N & 1 != 0 {
            to.add(at).write(load_word!("u8", place + at) as u8);
        }
        bytes.assume_init().0
    }
}

/// The first `N` bytes of a frame, which are there: only one check was needed, and no end of each read is kept on the stack.
pub struct FrameStart<const N: usize> {
    start: usize,
}

impl<const N: usize> FrameStart<N> {
    /// `None` where the linear part is shorter.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Option<Self> {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + N > end { None } else { Some(Self { start }) }
    }

    /// `None` where it ends behind the first `N`.
    #[inline(always)]
    fn at<const M: usize>(&self, offset: usize) -> Option<*mut [u8; M]> {
        if offset + M > N { None } else { Some((self.start + offset) as *mut [u8; M]) }
    }
}

impl<const N: usize> Reader for FrameStart<N> {
    #[inline(always)]
    fn opaque(number: u32) -> u32 {
        super::opaque(number)
    }

    #[inline(always)]
    fn read<const M: usize>(&self, offset: usize) -> Option<[u8; M]> {
        // SAFETY: these bytes lie before the packet's end, as the verifier has seen when this was made.
        self.at::<M>(offset).map(|place| unsafe { place.read_unaligned() })
    }
}

impl<const N: usize> Writer for FrameStart<N> {
    #[inline(always)]
    fn write<const M: usize>(&self, offset: usize, bytes: &[u8; M]) -> Option<()> {
        let mut place = self.at::<M>(offset)?;
        // SAFETY: as for `read`; the frame is the program's own while it runs. The instruction moves a register to itself; the
        // compiler must take it for one that changes memory, and so reads nothing ahead, which it would keep on the stack.
        unsafe {
            place.write_unaligned(*bytes);
            asm!("{0} = {0}", inout(reg) place, options(nostack));
        }
        let _ = place;
        Some(())
    }
}
