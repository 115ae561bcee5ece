//! Asks the loaded programs what they would do with a packet, by `BPF_PROG_TEST_RUN`: nothing is counted or reported.

use std::net::IpAddr;

use aya::{
    maps::{Array, Map, MapData},
    programs::{ProgramError, TestRun, TestRunOptions},
};
use etherparse::PacketBuilder;
use guard_common::{
    abi::{EXPLAIN_MARK, Explained, map, program},
    packet::Protocol,
    verdict::{Hook, Reason, Verdict},
};

use super::{KernelError, load::Programs, pins::Pins, tables::open};
use crate::rule::GuardedPort;

/// A packet to ask about. Both addresses are of one family.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: GuardedPort,
    /// The interface it comes by, for a NIC's hook; 0 at the socket.
    pub ifindex: u32,
}

/// What a program answered; `None` for "not a guarded port".
pub type Answer = Option<(Verdict, Reason)>;

/// The source port of the packets asked about; no rule looks at it.
const SOURCE_PORT: u16 = 40_000;

/// Where `cb[0]` stands in `struct __sk_buff` of `include/uapi/linux/bpf.h`.
const CB_OFFSET: usize = 48;

/// The pinned programs, and where their answers stand.
pub struct Oracle {
    programs: Programs,
    explained: Array<MapData, Explained>,
}

impl Oracle {
    /// # Errors
    /// When a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let explained = Map::Array(open(pins, map::EXPLAINED)?);
        Ok(Self {
            programs: Programs::open(pins)?,
            explained: explained.try_into().map_err(failed)?,
        })
    }

    /// What would happen to a first packet from the source to the port.
    ///
    /// # Errors
    /// When the kernel refuses the test run, or the hook's program is not loaded.
    pub fn ask(&mut self, hook: Hook, question: &Question) -> Result<Answer, KernelError> {
        self.judge(hook, true, question.ifindex, &frame(question))
    }

    /// What would happen to an Ethernet frame that comes by this interface. At TC there are two programs, of which `is_ethernet` asks
    /// the one for Ethernet devices.
    ///
    /// # Errors
    /// When the kernel refuses the test run (of less than an Ethernet header, for one), or the hook's program is not loaded.
    pub fn judge(
        &mut self,
        hook: Hook,
        is_ethernet: bool,
        ifindex: u32,
        frame: &[u8],
    ) -> Result<Answer, KernelError> {
        let asked = Explained { ifindex, ..Explained::default() };
        self.explained.set(0, asked, 0).map_err(failed)?;
        let mut options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let mut context = [0; CB_OFFSET + 4];
        let (name, result) = match hook {
            Hook::Xdp => {
                let xdp = self.programs.xdp.as_ref().ok_or(KernelError::NotLoaded)?;
                (program::XDP, xdp.test_run(options))
            }
            Hook::Tcx => (program::TCX, self.programs.tcx.of(is_ethernet).test_run(options)),
            Hook::Edge => (program::EDGE, self.programs.edge.of(is_ethernet).test_run(options)),
            Hook::Cgroup => {
                context[CB_OFFSET..].copy_from_slice(&EXPLAIN_MARK.to_ne_bytes());
                options.ctx_in = Some(&context);
                (program::CGROUP, self.programs.cgroup.test_run(options))
            }
        };
        result.map_err(|source: ProgramError| KernelError::Program { name, source })?;
        let answer = self.explained.get(&0, 0).map_err(failed)?;
        Ok(Verdict::from_number(answer.verdict)
            .zip(Reason::from_number(answer.reason))
            .filter(|_| answer.judged != 0))
    }
}

fn failed(source: aya::maps::MapError) -> KernelError {
    KernelError::Map { name: map::EXPLAINED, what: "used", source }
}

/// A first packet from the source to the port, as a NIC would bring it.
fn frame(question: &Question) -> Vec<u8> {
    const TTL: u8 = 64;
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (question.source, question.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), TTL)
        }
        (source, destination) => ethernet.ipv6(octets(source), octets(destination), TTL),
    };
    let mut frame = Vec::new();
    let port = question.port.number;
    // Writing to a vector does not fail.
    let _ = match question.port.protocol {
        Protocol::Tcp => ip.tcp(SOURCE_PORT, port, 0, u16::MAX).syn().write(&mut frame, &[]),
        Protocol::Udp => ip.udp(SOURCE_PORT, port).write(&mut frame, &[]),
    };
    frame
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
