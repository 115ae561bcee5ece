//! The packet of a TCX or cgroup program, through the helper that also reads what is not linear.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::{
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_store_bytes,
    },
};
use guard_common::{
    packet::Protocol,
    parse::{self, ETHERNET_BYTES},
    reader::{Reader, Writer},
};

use super::{Aligned, FrameReader};

/// An skb, read from its network header on.
pub struct SkbReader {
    skb: *mut __sk_buff,
}

impl SkbReader {
    /// `skb` is the program's context.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    #[inline(always)]
    fn field(&self, read: impl FnOnce(&__sk_buff) -> u32) -> u32 {
        // SAFETY: the context lives as long as the program runs, and the verifier checks each field's access.
        read(unsafe { &*self.skb })
    }

    /// [`parse::plain_port`] of an Ethernet device's packet at TC. `None` too where something stands between its link header and the
    /// network header, such as a tag that a VLAN device leaves in place.
    #[inline(always)]
    pub fn plain_port(&self) -> Option<(Protocol, u16)> {
        let frame = FrameReader::of_skb(self.skb);
        let kind = u16::from_be_bytes(frame.read::<2>(ETHERNET_BYTES - 2)?);
        if kind != self.ether_type() {
            return None;
        }
        parse::plain_port(&frame, kind, ETHERNET_BYTES)
    }

    /// [`parse::plain_port`] of a cgroup program's packet, which begins with its network header.
    #[inline(always)]
    pub fn plain_port_at_socket(&self) -> Option<u16> {
        let packet = FrameReader::of_skb(self.skb);
        parse::plain_port(&packet, self.ether_type(), 0).map(|(_, port)| port)
    }

    /// The `EtherType` behind the tags that the kernel has taken off.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        u16::from_be(self.field(|skb| skb.protocol) as u16)
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.field(|skb| skb.ifindex)
    }

    /// Where the packet was last received in this network namespace; 0 for one of this host's own.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        self.field(|skb| skb.ingress_ifindex)
    }

    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.field(|skb| skb.len)
    }

    /// Length without the link header, which `len` holds at TC where there is one.
    #[inline(always)]
    pub fn bytes_from_network_header(&self) -> u32 {
        self.len().saturating_sub(ETHERNET_BYTES as u32)
    }

    /// Packets this one was on the wire.
    #[inline(always)]
    pub fn wire_packets(&self) -> u64 {
        u64::from(self.field(|skb| skb.gso_segs).max(1))
    }

    /// It came to an address of this host's own device, not to many (`PACKET_HOST` of `include/uapi/linux/if_packet.h`).
    #[inline(always)]
    pub fn is_for_this_host(&self) -> bool {
        const PACKET_HOST: u32 = 0;
        self.field(|skb| skb.pkt_type) == PACKET_HOST
    }

    /// The packet from its start at TC on. `None` where its network header stands neither there nor behind an Ethernet header.
    #[inline(always)]
    pub fn at_its_start(&self) -> Option<SkbFromStart> {
        // No helper says where it stands, so its first bytes are looked for.
        let first = u64::from_ne_bytes(self.read(0)?);
        for network_offset in [ETHERNET_BYTES, 0] {
            let packet = SkbFromStart { skb: self.skb, network_offset };
            if packet.read(network_offset).map(u64::from_ne_bytes) == Some(first) {
                return Some(packet);
            }
        }
        None
    }

    /// What a test run wrote to `cb[0]`; zero on a real packet.
    #[inline(always)]
    pub fn mark_of_test_run(&self) -> u32 {
        self.field(|skb| skb.cb[0])
    }
}

impl Reader for SkbReader {
    #[inline(always)]
    fn opaque(number: u32) -> u32 {
        super::opaque(number)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<Aligned<N>>::uninit();
        // SAFETY: the helper writes `N` bytes, or fails where the packet ends before them.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                self.skb.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        // SAFETY: it has written all of them.
        (result == 0).then(|| unsafe { bytes.assume_init() }.0)
    }
}

/// An skb at TC, read and written from its start on: the link header's where there is one.
pub struct SkbFromStart {
    skb: *mut __sk_buff,
    network_offset: usize,
}

impl SkbFromStart {
    #[inline(always)]
    pub fn network_offset(&self) -> usize {
        self.network_offset
    }

    /// Ends the packet there.
    #[inline(always)]
    pub fn cut_to(&self, end: usize) -> Option<()> {
        // SAFETY: the helper checks the length itself.
        let result = unsafe { bpf_skb_change_tail(self.skb.cast(), end as u32, 0) };
        (result == 0).then_some(())
    }
}

impl Reader for SkbFromStart {
    #[inline(always)]
    fn opaque(number: u32) -> u32 {
        super::opaque(number)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<Aligned<N>>::uninit();
        // SAFETY: the helper writes `N` bytes, or fails where the packet ends before them.
        let result = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), offset as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: it has written all of them.
        (result == 0).then(|| unsafe { bytes.assume_init() }.0)
    }
}

impl Writer for SkbFromStart {
    #[inline(always)]
    fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the helper reads `N` bytes, and checks the packet's end itself.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.skb.cast(),
                offset as u32,
                bytes.as_ptr().cast(),
                N as u32,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            )
        };
        (result == 0).then_some(())
    }
}
