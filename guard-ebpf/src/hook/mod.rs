//! The programs, one a hook.

mod bind;
mod cgroup;
mod edge;
mod reject;
mod tcx;
mod xdp;
