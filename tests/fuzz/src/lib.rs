//! The targets of `guard_tests::fuzz` by themselves: instrumenting the lab beside them would take longer than all the rest.

#[path = "../../src/fuzz.rs"]
mod targets;

pub use targets::*;
