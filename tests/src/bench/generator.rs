//! The packet generator (`guard-ebpf/src/bench.rs`), at work on a thread of its own namespace.

use std::{
    env, fs,
    io::{self, Cursor},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
    programs::Xdp,
};
use aya_obj::generated::bpf_cmd;
use etherparse::PacketBuilder;

use super::lists::Family;
use crate::{
    foreign::{bpf, raw, zeroed},
    lab::{CLIENT_MAC, SERVER_MAC},
};

/// Names the object.
const OBJECT_VARIABLE: &str = "GUARD_BENCH_OBJECT";

/// `BPF_F_TEST_XDP_LIVE_FRAMES` of `include/uapi/linux/bpf.h`.
const LIVE_FRAMES: u32 = 1 << 1;

/// Frames that the kernel makes, runs and sends at once.
const BATCH: u32 = 64;

/// A frame without checksum that is shorter than any on a wire has zeros behind it.
const SHORTEST_FRAME: usize = 60;

const SOURCE_PORT: u16 = 40_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The first packet of a connection.
    Syn,
    /// One of those that follow.
    Ack,
    Udp,
}

/// `Order` of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Order {
    frame: [u64; 10],
    header_sum: u32,
    transport_sum: u32,
    is_udp: u32,
    ifindex: u32,
    source_mask: u32,
    next: u32,
}

// SAFETY: integers without a gap between them, of which every value is one.
unsafe impl Pod for Order {}

/// Loaded, with sources of its own.
pub struct Generator {
    ebpf: Ebpf,
    family: Family,
    sources: usize,
}

impl Generator {
    /// With as many of these sources as are a power of two.
    ///
    /// # Errors
    /// When there is no object, or the kernel does not take it.
    pub fn load(family: Family, sources: &[IpAddr]) -> Result<Self> {
        let path = env::var_os(OBJECT_VARIABLE).with_context(|| {
            format!(
                "{OBJECT_VARIABLE} does not name the packet generator: `cargo xtask bench` does"
            )
        })?;
        let object =
            fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        let mut ebpf = Ebpf::load(&object).context("the packet generator can't be loaded")?;
        let program: &mut Xdp = ebpf
            .program_mut(program_for(family))
            .context("the packet generator's object lacks a program")?
            .try_into()?;
        program.load().context("the kernel does not take the packet generator")?;
        let Some(power) = sources.len().checked_ilog2() else { bail!("there are no sources") };
        let sources = &sources[..1 << power];
        match family {
            Family::V4 => fill(&mut ebpf, "SOURCES_V4", sources, |source| match source {
                IpAddr::V4(source) => words(source.octets()),
                IpAddr::V6(_) => [0; 2],
            })?,
            Family::V6 => fill(&mut ebpf, "SOURCES_V6", sources, |source| match source {
                IpAddr::V4(_) => [0; 8],
                IpAddr::V6(source) => words(source.octets()),
            })?,
        }
        Ok(Self { ebpf, family, sources: sources.len() })
    }

    /// What is sent from now on: packets from the first so many of the sources, a power of two, out by this interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn order(
        &mut self,
        to: SocketAddr,
        transport: Transport,
        sources: usize,
        ifindex: u32,
    ) -> Result<()> {
        let frame = frame(unspecified(self.family), to, transport)?;
        let transport_checksum = transport_checksum(self.family, transport);
        let sum = |place: usize| u32::from(!u16::from_ne_bytes([frame[place], frame[place + 1]]));
        let mut bytes = [0; 80];
        bytes[..frame.len()].copy_from_slice(&frame);
        let mut order = Order {
            frame: [0; 10],
            header_sum: sum(24),
            transport_sum: sum(transport_checksum),
            is_udp: u32::from(transport == Transport::Udp),
            ifindex,
            source_mask: sources.min(self.sources) as u32 - 1,
            next: 0,
        };
        for (word, bytes) in order.frame.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let map = self.ebpf.map_mut("ORDER").context("the packet generator lacks a map")?;
        let mut orders: Array<&mut MapData, Order> = map.try_into()?;
        orders.set(0, order, 0)?;
        Ok(())
    }

    /// Sends so many packets. It has to be called in the network namespace of the interface.
    ///
    /// # Errors
    /// When the kernel has no live frames: below 5.18.
    pub fn send(&self, packets: u32) -> Result<()> {
        let program = self.ebpf.program(program_for(self.family)).context("no program")?;
        let program: &Xdp = program.try_into()?;
        let length = match self.family {
            Family::V4 => SHORTEST_FRAME,
            Family::V6 => 74,
        };
        let run = Run { data: &vec![0; length], context: None, repeat: packets, is_live: true };
        run.on(program.fd()?.as_fd())
            .context("BPF_PROG_TEST_RUN with live frames (kernel 5.18)")?;
        Ok(())
    }
}

fn program_for(family: Family) -> &'static str {
    match family {
        Family::V4 => "generate_v4",
        Family::V6 => "generate_v6",
    }
}

fn fill<const N: usize>(
    ebpf: &mut Ebpf,
    name: &str,
    sources: &[IpAddr],
    words: impl Fn(IpAddr) -> [u16; N],
) -> Result<()>
where
    [u16; N]: Pod,
{
    let map = ebpf.map_mut(name).context("the packet generator lacks a map")?;
    let mut map: Array<&mut MapData, [u16; N]> = map.try_into()?;
    for (index, source) in (0..).zip(sources) {
        map.set(index, words(*source), 0)?;
    }
    Ok(())
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: [u8; BYTES]) -> [u16; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u16::from_ne_bytes(*bytes);
    }
    words
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Where it stands in a frame.
fn transport_checksum(family: Family, transport: Transport) -> usize {
    let transport_header = match family {
        Family::V4 => 34,
        Family::V6 => 54,
    };
    transport_header
        + match transport {
            Transport::Syn | Transport::Ack => 16,
            Transport::Udp => 6,
        }
}

/// A frame from the lab's client to its server.
///
/// # Errors
/// When the addresses are not of one family.
pub fn frame(source: IpAddr, to: SocketAddr, transport: Transport) -> Result<Vec<u8>> {
    const HOPS: u8 = 64;
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC);
    let ip = match (source, to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => ethernet.ipv4(source.octets(), to.octets(), HOPS),
        (IpAddr::V6(source), IpAddr::V6(to)) => ethernet.ipv6(source.octets(), to.octets(), HOPS),
        _ => bail!("{source} and {to} are of two families"),
    };
    let mut bytes = Cursor::new(Vec::new());
    match transport {
        Transport::Syn => ip.tcp(SOURCE_PORT, to.port(), 1, 64_240).syn().write(&mut bytes, &[])?,
        Transport::Ack => {
            ip.tcp(SOURCE_PORT, to.port(), 1, 64_240).ack(1).write(&mut bytes, &[])?
        }
        // As long as the other, so that both fit one program.
        Transport::Udp => ip.udp(SOURCE_PORT, to.port()).write(&mut bytes, &[0; 12])?,
    }
    let mut bytes = bytes.into_inner();
    bytes.resize(bytes.len().max(SHORTEST_FRAME), 0);
    Ok(bytes)
}

/// A test run of a program.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub data: &'a [u8],
    pub context: Option<&'a [u8]>,
    pub repeat: u32,
    pub is_live: bool,
}

impl Run<'_> {
    /// Runs it, and returns what it answered.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn on(&self, program: BorrowedFd<'_>) -> io::Result<u32> {
        debug_assert!(program.as_raw_fd() >= 0);
        let mut attr = zeroed();
        attr.test.prog_fd = raw(program);
        // SAFETY: all members of the union are made of integers.
        let test = unsafe { &mut attr.test };
        test.data_in = self.data.as_ptr() as u64;
        test.data_size_in = self.data.len() as u32;
        if let Some(context) = self.context {
            test.ctx_in = context.as_ptr() as u64;
            test.ctx_size_in = context.len() as u32;
        }
        test.repeat = self.repeat;
        if self.is_live {
            test.flags = LIVE_FRAMES;
            test.batch_size = BATCH;
        }
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
        // SAFETY: as above.
        Ok(unsafe { attr.test.retval })
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;
    use crate::lab::SERVER;

    /// RFC 1071, as the program computes it.
    fn checksum(sum: u32) -> u16 {
        let once = (sum & 0xffff) + (sum >> 16);
        !((once & 0xffff) + (once >> 16)) as u16
    }

    #[test]
    fn a_frame_gets_its_source_by_adding_it_to_the_sums() {
        let sources: [IpAddr; 3] = [
            Ipv4Addr::new(203, 0, 113, 7).into(),
            Ipv4Addr::new(11, 255, 0, 1).into(),
            "2a00:1450:4001::200e".parse().unwrap(),
        ];
        for transport in [Transport::Syn, Transport::Ack, Transport::Udp] {
            for source in sources {
                let (family, to) = match source {
                    IpAddr::V4(_) => (Family::V4, SERVER.v4_at(11434)),
                    IpAddr::V6(_) => (Family::V6, SERVER.v6_at(11434)),
                };
                let wanted = frame(source, to, transport).unwrap();
                let template = frame(unspecified(family), to, transport).unwrap();
                let added: u32 = match source {
                    IpAddr::V4(source) => {
                        words::<4, 2>(source.octets()).map(u32::from).iter().sum()
                    }
                    IpAddr::V6(source) => {
                        words::<16, 8>(source.octets()).map(u32::from).iter().sum()
                    }
                };
                let sum = |place: usize| {
                    u32::from(!u16::from_ne_bytes([template[place], template[place + 1]]))
                };
                let place = transport_checksum(family, transport);
                let got = checksum(sum(place) + added).to_ne_bytes();
                assert_eq!(got, wanted[place..place + 2], "{source} {transport:?}");
                if family == Family::V4 {
                    assert_eq!(checksum(sum(24) + added).to_ne_bytes(), wanted[24..26]);
                }
            }
        }
    }

    #[test]
    fn frames_are_as_long_as_the_programs_write() {
        for (family, to, length) in
            [(Family::V4, SERVER.v4_at(1), 60), (Family::V6, SERVER.v6_at(1), 74)]
        {
            for transport in [Transport::Syn, Transport::Ack, Transport::Udp] {
                assert_eq!(frame(unspecified(family), to, transport).unwrap().len(), length);
            }
        }
    }

    #[test]
    fn a_frame_begins_a_connection_to_the_port() {
        let source = Ipv4Addr::new(203, 0, 113, 7).into();
        let frame = frame(source, SERVER.v4_at(11434), Transport::Syn).unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
        assert!(tcp.syn() && !tcp.ack());
        assert_eq!(tcp.destination_port(), 11434);
    }
}
