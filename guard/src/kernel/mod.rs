//! The kernel's side of guard, and the only module that names aya: loading, attaching, pinning and asking what is in force.
//!
//! Pins are the only record: what this process remembers is never taken for what the kernel does.

pub mod attach;
pub mod binds;
pub mod counters;
mod error;
pub mod explain;
pub mod keep;
pub mod links;
pub mod load;
pub mod lock;
mod object;
pub mod pins;
pub mod probe;
pub mod ring;
pub mod seen;
mod sys;
pub mod tables;

pub use error::KernelError;
