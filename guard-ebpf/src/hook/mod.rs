//! The programs, one a hook.

mod cgroup;
mod edge;
mod tcx;
mod xdp;
