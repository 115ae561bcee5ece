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
/// Below kernel 5.11 the verifier forgets the bounds of a number that is kept on the stack (`check_stack_write` in
/// `kernel/bpf/verifier.c`). With `FORGETFUL` it is reminded of an offset's before each read.
pub struct FrameReader<const FORGETFUL: bool> {
    start: usize,
    end: usize,
}

impl<const FORGETFUL: bool> FrameReader<FORGETFUL> {
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

impl<const FORGETFUL: bool> Reader for FrameReader<FORGETFUL> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut offset = offset;
        if FORGETFUL {
            // SAFETY: the instruction touches nothing but this register. It changes no number that the parser comes
            // to, as is checked above, which is why a compiler that knew would leave it out.
            unsafe {
                asm!(
                    "{offset} &= {last}",
                    offset = inout(reg) offset,
                    last = const LAST_OFFSET,
                    options(pure, nomem, nostack),
                );
            }
        }
        // Written with `>`: kernels 5.8 and 5.9 mark the range wrongly for bounds with `>=`.
        if self.start + offset + N > self.end {
            return None;
        }
        // SAFETY: `N` bytes from here lie before the packet's end, as the verifier has seen just above.
        Some(unsafe { ((self.start + offset) as *const [u8; N]).read_unaligned() })
    }
}

impl<const FORGETFUL: bool> Writer for FrameReader<FORGETFUL> {
    #[inline(always)]
    fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        if self.start + offset + N > self.end {
            return None;
        }
        // SAFETY: as for `read`; the frame is the program's own while it runs.
        unsafe { ((self.start + offset) as *mut [u8; N]).write_unaligned(*bytes) };
        Some(())
    }
}
