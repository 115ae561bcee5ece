//! What takes minutes and mostly waits: one program, so that these run beside each other.

mod crash;
mod scale;
mod soak;
