//! How a packet is read and written, whatever holds it.

use core::hint::black_box;

/// "Give me `N` bytes at this offset, or nothing."
///
/// Offsets count from the place the hook's parse starts at: the Ethernet header for a frame, the IP header for a bare
/// packet. A slice made from packet pointers is no substitute: to the verifier its length is a number
/// that proves nothing about the pointer.
pub trait Reader {
    /// The `N` bytes at `offset`, or `None` when the packet ends before them.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same number, of which the compiler knows nothing any more. `black_box` keeps it on the stack for that; who has
    /// little of it has another way.
    #[inline(always)]
    #[must_use]
    fn opaque(number: u32) -> u32 {
        black_box(number)
    }
}

impl Reader for [u8] {
    #[inline]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N)?;
        self.get(offset..end)?.try_into().ok()
    }
}

/// How a packet is written to, where it may be.
pub trait Writer {
    /// Writes over the bytes at `offset`, which counts as for [`Reader`]; `None` when the packet ends before them.
    fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Option<()>;
}
