//! The programs, one a hook.
//!
//! The macros put a function around each. `inline(always)` is for that: a large program would become a function that is called, and a
//! packet pays for the call.

mod bind;
mod cgroup;
mod edge;
mod reject;
mod tcx;
mod xdp;
