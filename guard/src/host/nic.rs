//! What a network interface's driver and the kernel say of it, as far as it bears on where packets can be judged: asked over
//! the families `ethtool` and `netdev` of generic netlink, and of the list of `AF_XDP` sockets, in the network namespace of
//! the calling thread. Nothing is tried out, and nothing changed.
//!
//! ethtool's questions wake a card that the kernel has put to sleep (`ethnl_ops_begin` in `net/ethtool/netlink.c`): they are for
//! when somebody asks, or an interface is about to be covered, not for every look.

use std::{convert::Infallible, fs, io, path::Path};

use netlink_packet_core::{
    DefaultNla, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{
    conversation::Conversation,
    generic::{Attributes, Family, Value, nest, number},
    interfaces::{Link, Parent},
};

/// What is known of an interface. Each fact is `None` where this kernel does not give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The driver of the device that it belongs to, or the kind of a device made of software: `mlx5_core`, `veth`.
    pub driver: Option<String>,
    /// Large receive offload is on.
    pub lro: Option<bool>,
    /// Generic receive offload in hardware is on.
    pub gro_hw: Option<bool>,
    pub channels: Option<Channels>,
    /// The driver takes XDP programs, as it is set up.
    pub has_native_xdp: Option<bool>,
    pub queues: Queues,
}

/// The channels of a driver: receive and transmit queues with an interrupt of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub in_use: u32,
    pub most: u32,
}

/// Whether something takes packets from receive queues past the kernel's own stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    #[default]
    Unknown,
    Free,
    Taken(Bypass),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// An `AF_XDP` socket without copying. One that copies takes no queue.
    XdpSocket,
    /// TCP into the memory of another device (Linux 6.12).
    DeviceMemory,
    /// Zero-copy receiving of `io_uring` (Linux 6.15).
    IoUring,
}

impl Bypass {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpSocket => "an AF_XDP socket without copying",
            Self::DeviceMemory => "device memory TCP",
            Self::IoUring => "io_uring's zero-copy receiving",
        }
    }
}

/// Asks for what is known of an interface. What can't be asked is unknown.
#[must_use]
pub fn ask(link: &Link) -> Nic {
    let mut nic = Nic {
        driver: link.kind.clone().or_else(|| link.parent.as_ref().and_then(driver)),
        queues: queues(link.index),
        ..Nic::default()
    };
    let unknown = |what| {
        move |error: &io::Error| {
            log::debug!("{what} of interface {} are not known: {error}", link.index);
        }
    };
    if let Ok(offloads) = offloads(link.index).inspect_err(unknown("the offloads")) {
        nic.lro = Some(offloads.lro);
        nic.gro_hw = Some(offloads.gro_hw);
    }
    nic.channels = channels(link.index).inspect_err(unknown("the channels")).ok().flatten();
    let features = xdp_features(link.index).inspect_err(unknown("the XDP features"));
    nic.has_native_xdp = features.ok().flatten().map(|features| features & XDP_BASIC != 0);
    nic
}

/// `/sys/bus` is the same in every network namespace, unlike `/sys/class/net`.
fn driver(parent: &Parent) -> Option<String> {
    let is_name = |name: &str| !name.is_empty() && !name.contains('/') && name != "..";
    if !is_name(&parent.bus) || !is_name(&parent.name) {
        return None;
    }
    let device = Path::new("/sys/bus").join(&parent.bus).join("devices").join(&parent.name);
    let driver = fs::read_link(device.join("driver")).ok()?;
    driver.file_name()?.to_str().map(str::to_owned)
}

/// `ETHTOOL_MSG_FEATURES_GET` and `ETHTOOL_MSG_CHANNELS_GET` of `include/uapi/linux/ethtool_netlink.h` (Linux 5.7), what stands in
/// their answers, and what every such question begins with.
const FEATURES_GET: u8 = 11;
const CHANNELS_GET: u8 = 17;
const HEADER: u16 = 1;
const HEADER_DEV_INDEX: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const BITSET_BITS: u16 = 3;
const BITSET_BITS_BIT: u16 = 1;
const BITSET_BIT_NAME: u16 = 2;
const CHANNELS_TX_MAX: u16 = 3;
const CHANNELS_COMBINED_MAX: u16 = 5;
const CHANNELS_TX_COUNT: u16 = 7;
const CHANNELS_COMBINED_COUNT: u16 = 9;

fn about(index: u32) -> Vec<DefaultNla> {
    vec![nest(HEADER, &[number(HEADER_DEV_INDEX, index)])]
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offloads {
    lro: bool,
    gro_hw: bool,
}

impl Offloads {
    fn of(answer: Attributes<'_>) -> Option<Self> {
        // A list without a mask names what is on.
        let bits = answer.find(FEATURES_ACTIVE)?.inside().find(BITSET_BITS)?.inside();
        let names: Vec<&str> = bits
            .iter()
            .filter(|(kind, _)| *kind == BITSET_BITS_BIT)
            .filter_map(|(_, bit)| bit.inside().find(BITSET_BIT_NAME)?.as_text())
            .collect();
        // `netdev_features_strings` in `net/ethtool/common.c`.
        Some(Self { lro: names.contains(&"rx-lro"), gro_hw: names.contains(&"rx-gro-hw") })
    }
}

fn offloads(index: u32) -> io::Result<Offloads> {
    let mut found = None;
    let mut ethtool = Family::open("ethtool")?;
    ethtool.ask(FEATURES_GET, about(index), |answer| found = found.or(Offloads::of(answer)))?;
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Channels {
    fn of(answer: Attributes<'_>) -> Option<Self> {
        let value = |kind| answer.find(kind).and_then(Value::as_u32).unwrap_or_default();
        let combined =
            Self { in_use: value(CHANNELS_COMBINED_COUNT), most: value(CHANNELS_COMBINED_MAX) };
        let apart = Self { in_use: value(CHANNELS_TX_COUNT), most: value(CHANNELS_TX_MAX) };
        [combined, apart].into_iter().find(|channels| channels.most != 0)
    }
}

fn channels(index: u32) -> io::Result<Option<Channels>> {
    let mut found = None;
    let mut ethtool = Family::open("ethtool")?;
    ethtool.ask(CHANNELS_GET, about(index), |answer| found = found.or(Channels::of(answer)))?;
    Ok(found)
}

/// `NETDEV_CMD_DEV_GET` (Linux 6.3) and `NETDEV_CMD_QUEUE_GET` (6.8) of `include/uapi/linux/netdev.h`, and what stands in their
/// answers.
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const XDP_BASIC: u64 = 1;
const QUEUE_GET: u8 = 10;
const QUEUE_IFINDEX: u16 = 2;
const QUEUE_DMABUF: u16 = 5;
const QUEUE_IO_URING: u16 = 6;

fn xdp_features(index: u32) -> io::Result<Option<u64>> {
    let mut found = None;
    let mut netdev = Family::open("netdev")?;
    netdev.ask(DEV_GET, vec![number(DEV_IFINDEX, index)], |answer| {
        found = found.or(answer.find(DEV_XDP_FEATURES).and_then(Value::as_u64));
    })?;
    Ok(found)
}

fn queues(index: u32) -> Queues {
    let taken = memory_provider(index).and_then(|provider| match provider {
        Some(provider) => Ok(Some(provider)),
        None => Ok(xdp_sockets(index)?.then_some(Bypass::XdpSocket)),
    });
    match taken {
        Ok(Some(bypass)) => Queues::Taken(bypass),
        Ok(None) => Queues::Free,
        Err(error) => {
            log::debug!("who uses the queues of interface {index} is not known: {error}");
            Queues::Unknown
        }
    }
}

/// Whose memory a queue of the interface receives into, where it is not the kernel's.
fn memory_provider(index: u32) -> io::Result<Option<Bypass>> {
    let mut found = None;
    let listed = Family::open("netdev").and_then(|mut netdev| {
        netdev.list(QUEUE_GET, vec![number(QUEUE_IFINDEX, index)], |queue| {
            found = found.or(provider(queue));
        })
    });
    match listed {
        // A kernel that can't list its queues has none of these either: they are younger.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

fn provider(queue: Attributes<'_>) -> Option<Bypass> {
    let has = |kind| queue.find(kind).is_some();
    if has(QUEUE_DMABUF) {
        Some(Bypass::DeviceMemory)
    } else if has(QUEUE_IO_URING) {
        Some(Bypass::IoUring)
    } else {
        None
    }
}

/// `struct xdp_diag_req` and what answers it (`include/uapi/linux/xdp_diag.h`, Linux 5.1). That `netdev` shows a queue with an
/// `AF_XDP` socket (6.15) says nothing: it does for one that copies, too (`xp_assign_dev` in `net/xdp/xsk_buff_pool.c`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const XDP_SHOW_UMEM: u32 = 1 << 2;
const XDP_DIAG_UMEM: u16 = 5;
const XDP_DIAG_MSG_BYTES: usize = 16;
const UMEM_IFINDEX: usize = 24;
const UMEM_FLAGS: usize = 32;
const XDP_DU_F_ZEROCOPY: u32 = 1;

struct XdpQuestion;

impl NetlinkSerializable for XdpQuestion {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        20
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // Everything but the family and what to show is zero.
        buffer.fill(0);
        buffer[0] = libc::AF_XDP as u8;
        buffer[8..12].copy_from_slice(&XDP_SHOW_UMEM.to_ne_bytes());
    }
}

/// The attributes of a socket.
struct XdpAnswer(Vec<u8>);

impl NetlinkDeserializable for XdpAnswer {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(payload.get(XDP_DIAG_MSG_BYTES..).unwrap_or_default().to_vec()))
    }
}

/// Whether an `AF_XDP` socket takes packets from the interface without copying.
fn xdp_sockets(index: u32) -> io::Result<bool> {
    let mut is_any = false;
    let mut conversation = Conversation::open(NETLINK_SOCK_DIAG)?;
    conversation.ask(XdpQuestion, NLM_F_DUMP, |XdpAnswer(attributes)| {
        is_any |= takes_queue(Attributes(&attributes), index);
    })?;
    Ok(is_any)
}

fn takes_queue(socket: Attributes<'_>, index: u32) -> bool {
    let Some(umem) = socket.find(XDP_DIAG_UMEM) else { return false };
    let at = |offset: usize| umem.u32_at(offset);
    at(UMEM_IFINDEX) == Some(index)
        && at(UMEM_FLAGS).is_some_and(|flags| flags & XDP_DU_F_ZEROCOPY != 0)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        bytes
    }

    fn text(kind: u16, text: &str) -> DefaultNla {
        DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
    }

    #[test]
    fn offloads_are_on_where_they_are_named() {
        let bit = |name| nest(BITSET_BITS_BIT, &[number(1, 7), text(BITSET_BIT_NAME, name)]);
        let active = |names: &[&'static str]| {
            let bits: Vec<_> = names.iter().copied().map(bit).collect();
            emitted(&[nest(FEATURES_ACTIVE, &[number(2, 64), nest(BITSET_BITS, &bits)])])
        };
        let of = |names: &[&'static str]| Offloads::of(Attributes(&active(names))).unwrap();
        assert_eq!(of(&["rx-checksum", "rx-lro"]), Offloads { lro: true, gro_hw: false });
        assert_eq!(of(&["rx-gro-hw", "rx-lro"]), Offloads { lro: true, gro_hw: true });
        assert_eq!(of(&["rx-gro", "rx-gro-list"]), Offloads::default());
        assert_eq!(Offloads::of(Attributes(&[])), None);
    }

    #[test]
    fn channels_are_combined_or_apart() {
        let of = |numbers: &[(u16, u32)]| {
            let attributes: Vec<_> =
                numbers.iter().map(|(kind, value)| number(*kind, *value)).collect();
            Channels::of(Attributes(&emitted(&attributes)))
        };
        let combined = [(CHANNELS_COMBINED_MAX, 32), (CHANNELS_COMBINED_COUNT, 8)];
        assert_eq!(of(&combined), Some(Channels { in_use: 8, most: 32 }));
        let apart = [(2, 16), (CHANNELS_TX_MAX, 16), (6, 4), (CHANNELS_TX_COUNT, 4)];
        assert_eq!(of(&apart), Some(Channels { in_use: 4, most: 16 }));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_queue_says_whose_memory_it_fills() {
        let of = |extra: &[DefaultNla]| {
            let mut queue = vec![number(1, 0), number(QUEUE_IFINDEX, 7), number(4, 9)];
            queue.extend(extra.iter().cloned());
            provider(Attributes(&emitted(&queue)))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[number(QUEUE_DMABUF, 3)]), Some(Bypass::DeviceMemory));
        assert_eq!(of(&[nest(QUEUE_IO_URING, &[])]), Some(Bypass::IoUring));
        // An AF_XDP socket, copying or not.
        assert_eq!(of(&[nest(7, &[])]), None);
    }

    #[test]
    fn an_xdp_socket_takes_a_queue_only_without_copying() {
        let socket = |index: u32, flags: u32| {
            let mut umem = vec![0; 40];
            umem[UMEM_IFINDEX..][..4].copy_from_slice(&index.to_ne_bytes());
            umem[UMEM_FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
            emitted(&[DefaultNla::new(XDP_DIAG_UMEM, umem)])
        };
        let takes = |bytes: &[u8]| takes_queue(Attributes(bytes), 7);
        assert!(takes(&socket(7, XDP_DU_F_ZEROCOPY)));
        assert!(!takes(&socket(7, 0)));
        assert!(!takes(&socket(8, XDP_DU_F_ZEROCOPY)));
        assert!(!takes(&[]));
        assert!(!takes(&emitted(&[DefaultNla::new(XDP_DIAG_UMEM, vec![1; 8])])));
    }

    #[test]
    fn loopback_has_no_driver_no_lro_and_no_native_xdp() {
        let nic = ask(&Link { index: 1, ..Link::default() });
        assert_eq!(nic.driver, None);
        assert_eq!((nic.lro, nic.gro_hw), (Some(false), Some(false)));
        assert_ne!(nic.has_native_xdp, Some(true));
        assert!(!matches!(nic.queues, Queues::Taken(_)), "{nic:?}");
    }

    #[test]
    fn what_has_gone_is_unknown() {
        let gone = Link { index: u32::MAX >> 1, kind: Some("veth".into()), ..Link::default() };
        let nic = ask(&gone);
        assert_eq!(nic.driver.as_deref(), Some("veth"));
        assert_eq!((nic.lro, nic.channels, nic.has_native_xdp), (None, None, None));
    }

    #[test]
    fn a_parent_that_leads_elsewhere_is_not_followed() {
        let parent = |bus: &str, name: &str| Parent { bus: bus.into(), name: name.into() };
        for strange in [parent("..", "x"), parent("pci", "../../../x"), parent("", "x")] {
            assert_eq!(driver(&strange), None);
        }
    }
}
