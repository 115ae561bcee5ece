//! guard's kernel programs. Each takes one packet along one line:
//! hook → reader → `guard_common::parse` → `guard_common::verdict` (asking [`maps`]) → [`report`] → return code.

#![no_std]
#![no_main]
// `lock *(u64 *)` has no other spelling, see `shared`.
#![feature(asm_experimental_arch)]

mod hook;
mod maps;
mod reader;
mod report;
mod shared;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program that can get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
