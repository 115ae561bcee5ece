//! `post_bind`: tells the daemon that a socket has taken a port, for it may be a container engine's that publishes one. It judges
//! nothing. Kernel 4.17.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::maps::BINDS;

/// The bind stands.
const GO_ON: i32 = 1;

/// Of `include/linux/net.h`. Not the protocol is asked for: MPTCP's sockets listen to TCP too.
const SOCK_STREAM: u32 = 1;

#[cgroup_sock(post_bind4)]
#[inline(always)]
fn guard_bind4(ctx: SockContext) -> i32 {
    tell(&ctx)
}

#[cgroup_sock(post_bind6)]
#[inline(always)]
fn guard_bind6(ctx: SockContext) -> i32 {
    tell(&ctx)
}

#[inline(always)]
fn tell(ctx: &SockContext) -> i32 {
    // SAFETY: the context lives as long as the program runs, and the verifier allows this field of it.
    if unsafe { (*ctx.sock).type_ } == SOCK_STREAM {
        // It wakes whoever has read all there was, and nobody who has not: a daemon that looks anyway is not disturbed. What
        // finds the ring full is told by what fills it.
        let _ = BINDS.output::<u64>(0, 0);
    }
    GO_ON
}
