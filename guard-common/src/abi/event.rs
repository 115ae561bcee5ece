//! What the kernel programs report.

use crate::packet::AddressBytes;

/// Size of the event ring.
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// Size of the ring of bound sockets.
pub const BIND_RING_BYTES: u32 = 1 << 16;

/// One attempt, as the kernel reports it. 88 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Boot time in nanoseconds.
    pub time_ns: u64,
    /// Wire packets from this source since its last event, this one included; about so many where `is_sampled`.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    pub source: AddressBytes,
    pub destination: AddressBytes,
    /// The interface it came in by; 0 at the cgroup hook, where the number is another namespace's.
    pub ifindex: u32,
    /// Host byte order; 0 where unknown.
    pub source_port: u16,
    /// The guarded port, host byte order; 0 where unknown.
    pub port: u16,
    /// [`crate::verdict::Hook`].
    pub hook: u8,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// [`crate::packet::Family`].
    pub family: u8,
    /// IANA protocol number.
    pub protocol: u8,
    pub tcp_flags: u8,
    /// 1 where others' packets are among them, which stand for this source's that were passed over.
    pub is_sampled: u8,
    pub reserved: u8,
    /// Room for the namespace and the cgroup of the socket.
    pub reserved_ids: [u64; 2],
}

const _: () = assert!(size_of::<Event>() == 88);

/// What a test run is asked and answers. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// 0 when the program said "not ours", else 1.
    pub judged: u8,
    /// [`crate::verdict::Hook`].
    pub hook: u8,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// Written before the test run, for a NIC's hook: the interface that the packet is to have come by.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Explained>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::layout;

    #[test]
    fn layout_is_pinned() {
        layout!(Event, size 88, align 8, {
            time_ns: 0, packets: 8, bytes: 16, source: 24, destination: 40, ifindex: 56,
            source_port: 60, port: 62, hook: 64, verdict: 65, reason: 66, family: 67, protocol: 68,
            tcp_flags: 69, is_sampled: 70, reserved: 71, reserved_ids: 72,
        });
        layout!(Explained, size 8, align 4, {
            judged: 0, hook: 1, verdict: 2, reason: 3, ifindex: 4,
        });
    }

    #[test]
    fn the_rings_have_a_size_the_kernel_takes() {
        // A power of two and whole pages (`ringbuf_map_alloc` in `kernel/bpf/ringbuf.c`); 64 KiB is the
        // largest page.
        for bytes in [EVENT_RING_BYTES, BIND_RING_BYTES] {
            assert!(bytes.is_power_of_two() && bytes >= 65_536);
        }
    }
}
