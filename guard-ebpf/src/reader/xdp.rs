//! The frame of an XDP program, through packet pointers.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use guard_common::{
    parse::{ETHERNET_BYTES, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
    reader::{Reader, Writer},
};

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
        Some(unsafe { ((self.start + offset) as *const [u8; N]).read_unaligned() })
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
