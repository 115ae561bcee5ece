//! Kills a process in the middle of its work: right before a call of the kernel that would leave something behind. The process is
//! the one that everybody runs; a seccomp listener (seccomp_unotify(2), Linux 5.5) sees its calls and lets them go on.

use std::{
    io,
    mem::{self, MaybeUninit},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Pid, Signal, kill_process},
};

use crate::wait::until;

/// Calls that change files, and what they are called here. Messages are sent to change interfaces, and for much else.
const CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_mkdirat, "mkdir"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_sendto, "send"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
];

/// The commands of bpf(2) that change something (`enum bpf_cmd` in `include/uapi/linux/bpf.h`). The others ask.
const BPF_COMMANDS: &[(u64, &str)] = &[
    (0, "make a map"),
    (2, "write an element"),
    (3, "delete an element"),
    (5, "load a program"),
    (6, "pin"),
    (8, "attach"),
    (9, "detach"),
    (26, "write elements"),
    (28, "make a link"),
    (29, "update a link"),
    (34, "detach a link"),
];

/// Longer than the daemon pauses between two looks of one burst.
const QUIET: Duration = Duration::from_millis(300);

/// Sees the steps of a process, and kills it before one of them if told to.
#[derive(Clone, Debug, Default)]
pub struct Interrupter(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    seen: Vec<&'static str>,
    fatal: Option<usize>,
}

impl Interrupter {
    /// Sees the steps from here on, which count from 0, and kills before the one of this number.
    pub fn begin(&self, fatal: Option<usize>) {
        *self.steps() = Steps { seen: Vec::new(), fatal };
    }

    /// What has been seen.
    #[must_use]
    pub fn seen(&self) -> Vec<&'static str> {
        self.steps().seen.clone()
    }

    /// Waits until nothing has been done for a while: what a daemon still does by itself after its start would be taken for a
    /// part of the next command.
    #[track_caller]
    pub fn wait_for_quiet(&self) {
        until("the daemon is quiet", || {
            let before = self.steps().seen.len();
            thread::sleep(QUIET);
            self.steps().seen.len() == before
        });
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, Steps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step of the process, and says whether it may be made.
    fn may_go_on(&self, step: &'static str) -> bool {
        let mut steps = self.steps();
        let may_go_on = steps.fatal != Some(steps.seen.len());
        steps.seen.push(step);
        may_go_on
    }

    /// Starts a command under its eyes.
    ///
    /// # Errors
    /// As starting does.
    pub fn spawn(&self, command: &mut Command) -> io::Result<std::process::Child> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // SAFETY: what runs between fork and exec makes three system calls, and neither allocates nor takes locks.
        unsafe { command.pre_exec(move || hand_over(listen_to_this_process()?.as_fd(), &theirs)) };
        let child = command.spawn()?;
        let listener = taken_over(&ours)?;
        let process = Pid::from_child(&child);
        let interrupter = self.clone();
        thread::spawn(move || interrupter.supervise(&listener, process));
        Ok(child)
    }

    fn supervise(&self, listener: &OwnedFd, process: Pid) {
        while let Some(call) = next_call(listener) {
            let may_go_on = step(&call.data).is_none_or(|step| self.may_go_on(step));
            if !may_go_on {
                // It may have ended by itself.
                let _ = kill_process(process, Signal::KILL);
                return;
            }
            let answer = libc::seccomp_notif_resp {
                id: call.id,
                val: 0,
                error: 0,
                flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            };
            // SAFETY: the kernel reads an answer of just this layout. One that it does not want belongs to a thread that is gone.
            unsafe {
                libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer)
            };
        }
    }
}

/// What a call is, if it changes something.
fn step(call: &libc::seccomp_data) -> Option<&'static str> {
    let named = |number: u64, names: &[(u64, &'static str)]| {
        names.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
    };
    if i64::from(call.nr) == libc::SYS_bpf {
        return named(call.args[0], BPF_COMMANDS);
    }
    CALLS.iter().find(|(number, _)| *number == i64::from(call.nr)).map(|(_, name)| *name)
}

/// Waits for a call; `None` once nobody makes any more.
fn next_call(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
            Ok(_) => {}
        }
        if !ready[0].revents().contains(PollFlags::IN) {
            return None;
        }
        // The kernel wants it zeroed.
        // SAFETY: it is made of integers.
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes a notification of just this layout.
        let result = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call)
        };
        // A thread that was killed meanwhile has taken its call back.
        if result == 0 {
            return Some(call);
        }
    }
}

/// The rest of this process's life makes these calls only as whoever has the descriptor lets it.
fn listen_to_this_process() -> io::Result<OwnedFd> {
    const LENGTH: usize = CALLS.len() + 3;
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // The call's number stands first (`struct seccomp_data`).
    let mut filter = [statement(word, 0); LENGTH];
    for (place, (number, _)) in (1..).zip(CALLS) {
        // To the last statement.
        let jt = (LENGTH - 2 - place) as u8;
        filter[place] = libc::sock_filter { code: equal, jt, jf: 0, k: *number as u32 };
    }
    filter[LENGTH - 2] = statement(give, libc::SECCOMP_RET_ALLOW);
    filter[LENGTH - 1] = statement(give, libc::SECCOMP_RET_USER_NOTIF);
    let program = libc::sock_fprog { len: LENGTH as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the call, which copies them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            ptr::from_ref(&program),
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

fn hand_over(descriptor: BorrowedFd<'_>, to: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to, &[io::IoSlice::new(b"!")], &mut control, SendFlags::empty())?;
    Ok(())
}

fn taken_over(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    recvmsg(from, &mut [io::IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = received.by_ref().flatten().next();
    descriptor.ok_or_else(|| io::Error::other("the process did not hand over its listener"))
}
