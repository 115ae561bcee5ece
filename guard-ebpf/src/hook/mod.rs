//! The programs, one a hook.

mod cgroup;
mod edge;
mod reject;
mod tcx;
mod xdp;
