//! What the daemon may do: the least that its work needs, from its first step on.
//!
//! A capability belongs to a thread, and a new thread has its maker's. So they are given up before any other thread is
//! started, and what is missing is missed at the start and not in the night. `docs/privileges.md` says more.

use std::io;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// A capability that the daemon keeps, and what for.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub capability: CapabilitySet,
    /// As the kernel's headers call it.
    pub name: &'static str,
    pub why: &'static str,
}

/// All that the daemon keeps. The unit in `packaging/systemd` names the same.
pub const KEPT: [Kept; 5] = [
    Kept {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        why: "finding programs and links by their numbers (BPF_*_GET_FD_BY_ID), loading and changing them (which CAP_BPF and \
              CAP_PERFMON would also allow from Linux 5.8 on), and entering containers' network namespaces (setns)",
    },
    Kept {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        why: "attaching to interfaces and to the cgroup tree, ending connections (SOCK_DESTROY), and reserving ports",
    },
    Kept {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        why: "looking up what other processes hold: the sockets of forwarders and services (/proc/PID/fd) and their network \
              namespaces (/proc/PID/ns/net)",
    },
    Kept {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        why: "listing /proc/PID/fd of other users' processes, and reading files of sources that belong to them",
    },
    Kept {
        capability: CapabilitySet::CHOWN,
        name: "CAP_CHOWN",
        why: "giving the control socket to the group guard",
    },
];

/// Keeps [`KEPT`] of what this process has, for itself and for good, in every set: effective, permitted and bounding; nothing
/// is inheritable or ambient. No program that it starts can gain anything (`no_new_privs`).
///
/// Must be called while there is one thread. What this process lacks already it does not get.
///
/// # Errors
/// When the kernel refuses. That the bounding set can't be made smaller, for want of `CAP_SETPCAP`, is none: it only bounds
/// what an executed program could gain, and with `no_new_privs` that is nothing.
pub fn keep_only_needed() -> io::Result<()> {
    lift_memory_limit();
    let kept = kept();
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    let may_lower = capabilities(None)?.effective.contains(CapabilitySet::SETPCAP);
    for capability in (CapabilitySet::all() - kept).iter() {
        // A kernel older than a capability doesn't know its number, and has nothing to take away.
        if may_lower && capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    let left = capabilities(None)?.permitted & kept;
    let sets =
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

fn kept() -> CapabilitySet {
    KEPT.iter().map(|kept| kept.capability).collect()
}

/// Before Linux 5.11 tables count as locked memory, which only `CAP_SYS_RESOURCE` may have more of.
fn lift_memory_limit() {
    let unlimited = Rlimit { current: None, maximum: None };
    if getrlimit(Resource::Memlock) != unlimited
        && let Err(error) = setrlimit(Resource::Memlock, unlimited)
    {
        log::debug!("the limit of locked memory stays: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_keeps_what_is_needed_and_so_do_those_that_it_starts() {
        assert!(rustix::process::geteuid().is_root(), "needs root: run `cargo xtask test`");
        let check = || {
            let sets = capabilities(None).unwrap();
            assert_eq!(sets.effective, kept());
            assert_eq!(sets.permitted, kept());
            assert_eq!(sets.inheritable, CapabilitySet::empty());
            assert!(!capability_is_in_bounding_set(CapabilitySet::SYS_MODULE).unwrap());
            assert!(capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN).unwrap());
            assert!(rustix::thread::no_new_privs().unwrap());
        };
        // What a thread gives up is gone with it: the other tests keep theirs.
        let given_up = thread::spawn(move || {
            keep_only_needed().unwrap();
            check();
            thread::spawn(check).join().unwrap();
            // Once more is nothing new, also without CAP_SETPCAP.
            keep_only_needed().unwrap();
            check();
        });
        given_up.join().unwrap();
        assert!(capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_CHROOT));
    }

    #[test]
    fn the_unit_names_the_same_capabilities() {
        let unit = include_str!("../../packaging/systemd/guard.service");
        let mut named: Vec<&str> = unit
            .lines()
            .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            .flat_map(str::split_whitespace)
            .collect();
        let mut kept: Vec<&str> = KEPT.iter().map(|kept| kept.name).collect();
        named.sort_unstable();
        kept.sort_unstable();
        assert_eq!(named, kept);
        let document = include_str!("../../docs/privileges.md");
        for kept in KEPT {
            assert!(document.contains(kept.name), "{}", kept.name);
        }
    }
}
