//! Numbers that several CPUs add to at once.

use core::arch::asm;

/// A 64-bit word of a map value that programs on all CPUs load, store and add to.
///
/// `core`'s atomics have no addition on the BPF target, which only has one that returns nothing before kernel 5.12
/// (`BPF_ATOMIC | BPF_ADD` without `BPF_FETCH`).
#[derive(Clone, Copy)]
pub struct Shared(*mut u64);

impl Shared {
    /// # Safety
    /// `word` must be aligned, and point into a map value that stays mapped while the program runs.
    #[inline(always)]
    pub unsafe fn new<T: SharedWord>(word: *mut T) -> Self {
        Self(word.cast())
    }

    #[inline(always)]
    pub fn load(self) -> u64 {
        // SAFETY: as promised to `new`. Volatile, so that it is one load of the whole word.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub fn store(self, value: u64) {
        // SAFETY: as promised to `new`. Volatile, so that it is one store of the whole word.
        unsafe { self.0.write_volatile(value) }
    }

    /// Adds with wrap-around.
    #[inline(always)]
    pub fn add(self, value: u64) {
        // SAFETY: as promised to `new`; the instruction touches nothing but this word.
        unsafe {
            asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) self.0, value = in(reg) value);
        }
    }
}

/// The types a shared word may have.
pub trait SharedWord {}
impl SharedWord for u64 {}
impl SharedWord for i64 {}
