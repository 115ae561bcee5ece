//! A lab whose receiver's work is done by one thread, that can be timed.

use std::{
    collections::BTreeSet,
    fs, mem,
    os::fd::AsRawFd,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    net::{AddressFamily, SocketType},
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use super::generator::Generator;
use crate::{
    foreign::{Foreign, Place},
    lab::Lab,
    lock::MachineLock,
    machine::Machine,
};

/// `XDP_DROP` of `include/uapi/linux/bpf.h`.
const XDP_DROP: i32 = 1;

/// Packets between two looks at the clock.
const BURST: u32 = 20_000;

/// How long a receiver may take over what still lies in its ring.
const DRAINING: Duration = Duration::from_millis(20);

/// The processors of the two ends; one where there is no other.
#[must_use]
pub fn processors() -> (usize, usize) {
    let count = thread::available_parallelism().map_or(1, usize::from);
    (0, usize::from(count > 1))
}

pub struct Rig {
    // Taken off before the lab goes.
    _sink: Foreign,
    receiver: Pid,
    client_index: u32,
    pub lab: Lab,
}

/// What a receiver has done so far.
#[derive(Clone, Copy, Debug)]
struct Done {
    packets: u64,
    nanoseconds: u64,
    /// TCP segments that have come as far as that.
    segments: u64,
}

/// What a flood has come to.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Nanoseconds that each packet cost the receiver.
    pub cost: f64,
    /// The share of the packets that reached TCP.
    pub passed: f64,
}

impl Rig {
    /// # Errors
    /// When the kernel does not give the receiver a thread.
    pub fn new(machine: &MachineLock, name: &str) -> Result<Self> {
        let lab = Lab::on(machine, name);
        let (sends, receives) = processors();
        let receiver = napi_thread(&lab.server, receives)?;
        napi_thread(&lab.client, sends)?;
        // What the server answers has to cost nobody anything.
        let sink = Foreign::uncounted(&lab.client, "eth0", Place::XdpNative, XDP_DROP)
            .context("no program can be put at the sender's end")?;
        let client_index = lab.client.index_of("eth0");
        Ok(Self { _sink: sink, receiver, client_index, lab })
    }

    /// The sender's interface.
    #[must_use]
    pub fn client_index(&self) -> u32 {
        self.client_index
    }

    /// What a flood of this length costs the receiver.
    ///
    /// # Errors
    /// When nothing can be sent, or nothing arrives.
    pub fn flood(&self, generator: &Generator, length: Duration) -> Result<Flood> {
        let (sends, _) = processors();
        let (server, receiver) = (&self.lab.server, self.receiver);
        self.lab.client.inside(|| {
            pin(None, sends)?;
            generator.send(BURST)?;
            thread::sleep(DRAINING);
            let before = done(server, receiver)?;
            let started = Instant::now();
            while started.elapsed() < length {
                generator.send(BURST)?;
            }
            thread::sleep(DRAINING);
            let after = done(server, receiver)?;
            let packets = after.packets - before.packets;
            ensure!(packets > 0, "no packet has reached the receiver");
            Ok(Flood {
                cost: (after.nanoseconds - before.nanoseconds) as f64 / packets as f64,
                passed: (after.segments - before.segments) as f64 / packets as f64,
            })
        })
    }
}

fn done(server: &Machine, receiver: Pid) -> Result<Done> {
    let (packets, segments) = server.inside(|| anyhow::Ok((received("eth0")?, segments()?)))?;
    Ok(Done { packets, nanoseconds: run_time(receiver)?, segments })
}

/// TCP segments that this thread's namespace has received, of both families.
fn segments() -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/snmp")?;
    // Of two lines that begin so, one holds the names.
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns.find(|(name, _)| *name == "InSegs").context("TCP is not counted")?;
    Ok(value.parse()?)
}

/// What has reached an interface of this thread's namespace: on a veth, what its NAPI has taken, since the generator's frames
/// are not counted at the sending end.
fn received(interface: &str) -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    let fields = line.with_context(|| format!("there is no {interface}"))?;
    let packets = fields.split_ascii_whitespace().nth(1).context("its packets are not told")?;
    Ok(packets.parse()?)
}

/// Nanoseconds that a thread has run; waiting for a processor is not in it.
///
/// # Errors
/// When the kernel does not tell.
pub fn run_time(thread: Pid) -> Result<u64> {
    let path = format!("/proc/{}/schedstat", thread.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("{path} can't be read"))?;
    let first = text.split_ascii_whitespace().next().with_context(|| format!("{path} is empty"))?;
    Ok(first.parse()?)
}

/// Keeps a thread, or the one that calls, on a processor.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(thread: Option<Pid>, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(thread, &set).with_context(|| format!("processor {processor} can't be had"))
}

/// Lets a thread of its own do the receiving work of a machine's `eth0`, on this processor.
fn napi_thread(machine: &Machine, processor: usize) -> Result<Pid> {
    let before = napi_threads();
    // A veth has NAPI as long as it has GRO, and only then takes frames that were redirected to it.
    machine.inside(|| switch_gro_on("eth0"))?;
    // `/sys` shows the interfaces of the namespace that it was mounted in; `ip netns exec` mounts it anew.
    let status = Command::new("ip")
        .args(["netns", "exec", machine.netns(), "sh", "-c"])
        .arg("echo 1 >/sys/class/net/eth0/threaded")
        .status()?;
    ensure!(status.success(), "NAPI can't be moved to a thread: kernel 5.12 can");
    let new: Vec<Pid> =
        napi_threads().difference(&before).copied().filter_map(Pid::from_raw).collect();
    let [thread] = new[..] else { anyhow::bail!("of {} new threads one does NAPI", new.len()) };
    pin(Some(thread), processor)?;
    Ok(thread)
}

fn napi_threads() -> BTreeSet<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            name.starts_with("napi/eth0-").then_some(())?;
            process.file_name().to_str()?.parse().ok()
        })
        .collect()
}

/// `ETHTOOL_SGRO` of `include/uapi/linux/ethtool.h`.
fn switch_gro_on(interface: &str) -> Result<()> {
    const SET_GRO: u32 = 0x2c;
    let mut value: [u32; 2] = [SET_GRO, 1];
    // SAFETY: integers and a union of them and pointers, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request and what it points to outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    ensure!(result == 0, "GRO can't be switched on: {}", std::io::Error::last_os_error());
    Ok(())
}
