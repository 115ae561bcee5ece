//! The programs, one a hook.

mod cgroup;
mod tcx;
mod xdp;
