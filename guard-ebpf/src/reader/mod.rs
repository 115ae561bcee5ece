//! How the parser gets at packets: the only access to them.

mod frame;
mod skb;

use core::{arch::asm, hint::assert_unchecked};

use guard_common::packet::Packet;

pub use frame::{FrameReader, FrameStart};
pub use skb::SkbReader;

/// What is not aligned the compiler reads and writes byte by byte.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

/// The same number, of which the compiler knows nothing any more, without a place on the stack.
#[inline(always)]
fn opaque(number: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: it moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number as u32
}

/// A packet that is kept in memory. Left to itself the compiler takes it apart, and keeps each byte of its addresses in a word
/// of the stack of its own, until the stack is too small.
#[inline(always)]
pub fn whole(packet: &mut Packet) -> &mut Packet {
    let mut pointer: *mut Packet = packet;
    // SAFETY: it moves a register to itself, so that the pointer is the same; the compiler must take it for one that others know.
    unsafe {
        asm!("{0} = {0}", inout(reg) pointer, options(nostack));
        assert_unchecked(pointer.is_aligned());
        &mut *pointer
    }
}
