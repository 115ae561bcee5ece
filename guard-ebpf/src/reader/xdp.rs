//! The frame of an XDP program, through packet pointers.

use aya_ebpf::programs::XdpContext;
use guard_common::reader::{Reader, Writer};

/// The linear part of a frame. Headers that reach past it, into a multi-buffer frame's fragments, read as cut short.
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
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // Written with `>`: kernels 5.8 and 5.9 mark the range wrongly for bounds with `>=`.
        if self.start + offset + N > self.end {
            return None;
        }
        // SAFETY: `N` bytes from here lie before the packet's end, as the verifier has seen just above.
        Some(unsafe { ((self.start + offset) as *const [u8; N]).read_unaligned() })
    }
}

impl Writer for FrameReader {
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
