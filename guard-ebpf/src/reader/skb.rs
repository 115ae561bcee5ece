//! The packet of a TCX or cgroup program, through the helper that also reads what is not linear.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::bpf_skb_load_bytes_relative,
};
use guard_common::reader::Reader;

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
        const ETHERNET_BYTES: u32 = guard_common::parse::ETHERNET_BYTES as u32;
        self.len().saturating_sub(ETHERNET_BYTES)
    }

    /// Packets this one was on the wire.
    #[inline(always)]
    pub fn wire_packets(&self) -> u64 {
        u64::from(self.field(|skb| skb.gso_segs).max(1))
    }

    /// What a test run wrote to `cb[0]`; zero on a real packet.
    #[inline(always)]
    pub fn mark_of_test_run(&self) -> u32 {
        self.field(|skb| skb.cb[0])
    }
}

impl Reader for SkbReader {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the helper writes at most `N` bytes, and fails where the packet ends before them.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                self.skb.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        (result == 0).then_some(bytes)
    }
}
