//! The ways to cover an interface, in the order in which they are tried: a function of what was asked for and what is known of
//! the interface.
//!
//! `auto` takes native XDP only where other traffic does not notice: not when it is attached, not while it is there, and not
//! when it is taken off. The last is why carrier plays no part. A link that is down loses nothing when its queues are rebuilt,
//! but it is up when `guard down` comes, and what was chosen at boot must be what is chosen later.

use crate::{
    config::Attach,
    engine::drivers::Driver,
    host::{
        interfaces::Interface,
        nic::{Nic, Queues},
    },
    kernel::attach::Way,
};

/// A ladder, and why it is as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub ladder: Vec<Way>,
    /// Why its first step is the first, in a few words.
    pub reason: String,
    /// What native XDP would cost other traffic, where the ladder leaves it out for that.
    pub price: Option<String>,
}

impl Choice {
    fn new(ladder: &[Way], reason: impl Into<String>) -> Self {
        Self { ladder: ladder.to_vec(), reason: reason.into(), price: None }
    }
}

/// The ways to judge what comes in by an interface.
pub fn choose(mode: Attach, interface: &Interface, nic: &Nic) -> Choice {
    let driver = nic.driver.as_deref().and_then(Driver::find);
    choose_with(mode, interface.is_ethernet, nic, driver)
}

fn choose_with(mode: Attach, is_ethernet: bool, nic: &Nic, driver: Option<&Driver>) -> Choice {
    use Way::{Clsact, Tcx, XdpGeneric, XdpNative};
    let asked: &[Way] = match mode {
        Attach::Auto => return auto(is_ethernet, nic, driver),
        Attach::Native => &[XdpNative, Tcx, Clsact, XdpGeneric],
        Attach::Generic => &[XdpGeneric, Tcx, Clsact],
        Attach::Tcx => &[Tcx, Clsact],
        Attach::Clsact => &[Clsact, Tcx],
        Attach::Socket => &[],
    };
    let mut choice = Choice::new(asked, "asked for");
    if !is_ethernet && asked.first().is_some_and(|way| way.is_xdp()) {
        choice.ladder.retain(|way| !way.is_xdp());
        NO_HEADER.clone_into(&mut choice.reason);
    }
    choice
}

const NO_HEADER: &str = "XDP needs frames with an Ethernet header";

fn auto(is_ethernet: bool, nic: &Nic, driver: Option<&Driver>) -> Choice {
    use Way::{Clsact, Tcx, XdpGeneric, XdpNative};
    // Generic XDP switches LRO and hardware GRO off (`generic_xdp_install` in `net/core/dev.c`): only where nothing else is to
    // be had.
    let late = [Tcx, Clsact, XdpGeneric];
    if !is_ethernet {
        return Choice::new(&[Tcx, Clsact], NO_HEADER);
    }
    if let Queues::Taken(bypass) = nic.queues {
        let reason = format!("{} has receive queues there", bypass.name());
        return Choice::new(&[Tcx, Clsact], reason);
    }
    if nic.has_native_xdp == Some(false) {
        return Choice::new(&late, "the driver has no native XDP, as it is set up");
    }
    let Some(driver) = driver else {
        let whose = nic.driver.as_deref().map_or_else(
            || "its driver is not known".to_owned(),
            |name| format!("what native XDP costs with {name} is not known"),
        );
        let price = Some("not known for this driver".to_owned());
        return Choice { price, ..Choice::new(&late, whose) };
    };
    let name = nic.driver.as_deref().unwrap_or_default();
    if !driver.is_free() {
        let reason = format!("native XDP is not free with {name}");
        return Choice { price: driver.price(nic), ..Choice::new(&late, reason) };
    }
    if nic.queues == Queues::Unknown || nic.has_native_xdp.is_none() {
        return Choice::new(&late, "who uses the receive queues is not known");
    }
    let reason = format!("native XDP costs other traffic nothing with {name}");
    Choice::new(&[XdpNative, Tcx, Clsact, XdpGeneric], reason)
}

/// Whether native XDP that is there already stays, though `auto` may not choose it anew: it goes only where taking it off costs
/// nothing and keeping it does. A daemon that starts again resets nobody's card.
pub fn stays_native(mode: Attach, driver: Option<&str>) -> bool {
    let goes = |driver: &Driver| driver.swaps() && !driver.is_free();
    mode == Attach::Auto && !driver.and_then(Driver::find).is_some_and(goes)
}

/// The ways to judge what leaves for guests. `attach = "generic"` and `"native"` say how packets are judged that come in; here
/// there is no such choice.
pub fn edge(mode: Attach) -> Vec<Way> {
    match mode {
        Attach::Auto | Attach::Native | Attach::Generic | Attach::Tcx => {
            vec![Way::EdgeTcx, Way::EdgeClsact]
        }
        Attach::Clsact => vec![Way::EdgeClsact, Way::EdgeTcx],
        Attach::Socket => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use guard_common::verdict::Hook;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine::drivers::tests::FREE,
        host::nic::{Bypass, Channels},
    };

    const MODES: [Attach; 6] = [
        Attach::Auto,
        Attach::Native,
        Attach::Generic,
        Attach::Tcx,
        Attach::Clsact,
        Attach::Socket,
    ];

    /// A card of which everything is known, and nothing in the way.
    fn nic(driver: &str) -> Nic {
        Nic {
            driver: Some(driver.into()),
            lro: Some(false),
            gro_hw: Some(false),
            channels: Some(Channels { in_use: 4, most: 8 }),
            has_native_xdp: Some(true),
            queues: Queues::Free,
        }
    }

    fn by_itself(nic: &Nic) -> Choice {
        choose_with(Attach::Auto, true, nic, nic.driver.as_deref().and_then(Driver::find))
    }

    #[test]
    fn what_auto_chooses_and_why() {
        let unknown = Nic::default();
        let zero_copy = |bypass| Nic { queues: Queues::Taken(bypass), ..nic("ice") };
        let cases = [
            (nic("mlx5_core"), "native XDP is not free with mlx5_core", true, 3),
            (nic("veth"), "native XDP is not free with veth", true, 3),
            (nic("sfc"), "native XDP is not free with sfc", true, 3),
            (nic("e1000e"), "what native XDP costs with e1000e is not known", true, 3),
            (unknown, "its driver is not known", true, 3),
            (
                Nic { has_native_xdp: Some(false), ..nic("r8169") },
                "the driver has no native XDP, as it is set up",
                false,
                3,
            ),
            (
                zero_copy(Bypass::XdpSocket),
                "an AF_XDP socket without copying has receive queues there",
                false,
                2,
            ),
            (
                zero_copy(Bypass::DeviceMemory),
                "device memory TCP has receive queues there",
                false,
                2,
            ),
            (
                zero_copy(Bypass::IoUring),
                "io_uring's zero-copy receiving has receive queues there",
                false,
                2,
            ),
        ];
        for (nic, reason, has_price, steps) in cases {
            let choice = by_itself(&nic);
            assert_eq!(choice.reason, reason);
            assert_eq!(choice.price.is_some(), has_price, "{reason}");
            assert_eq!(
                choice.ladder,
                [Way::Tcx, Way::Clsact, Way::XdpGeneric][..steps],
                "{reason}"
            );
        }
    }

    #[test]
    fn a_driver_that_is_free_is_taken_natively_where_nothing_is_in_the_way() {
        let chosen = |nic: &Nic| choose_with(Attach::Auto, true, nic, Some(&FREE));
        let choice = chosen(&nic("free"));
        assert_eq!(choice.ladder[0], Way::XdpNative);
        assert_eq!((choice.ladder.len(), choice.price), (4, None));
        for hindered in [
            Nic { queues: Queues::Taken(Bypass::XdpSocket), ..nic("free") },
            Nic { queues: Queues::Unknown, ..nic("free") },
            Nic { has_native_xdp: None, ..nic("free") },
            Nic { has_native_xdp: Some(false), ..nic("free") },
        ] {
            assert_eq!(chosen(&hindered).ladder[0], Way::Tcx, "{hindered:?}");
        }
        assert_eq!(choose_with(Attach::Auto, false, &nic("free"), Some(&FREE)).ladder[0], Way::Tcx);
    }

    #[test]
    fn what_was_asked_for_comes_first_whatever_is_known() {
        let first = |mode| choose_with(mode, true, &Nic::default(), None).ladder.first().copied();
        assert_eq!(first(Attach::Native), Some(Way::XdpNative));
        assert_eq!(first(Attach::Generic), Some(Way::XdpGeneric));
        assert_eq!(first(Attach::Tcx), Some(Way::Tcx));
        assert_eq!(first(Attach::Clsact), Some(Way::Clsact));
        assert_eq!(first(Attach::Socket), None);
    }

    #[test]
    fn what_leaves_for_guests_is_judged_at_the_edge_unless_only_sockets_are_asked_for() {
        for mode in MODES.into_iter().filter(|mode| *mode != Attach::Socket) {
            let ways = edge(mode);
            assert!(ways.iter().all(|way| way.hook() == Hook::Edge), "{mode:?}");
            assert_eq!(ways.len(), 2, "{mode:?}");
        }
        assert!(edge(Attach::Socket).is_empty());
    }

    #[test]
    fn native_xdp_stays_where_taking_it_off_may_cost_something() {
        for (driver, stays) in [
            (Some("mlx5_core"), true),
            (Some("virtio_net"), true),
            (Some("no-such-driver"), true),
            (None, true),
            (Some("veth"), false),
            (Some("tun"), false),
            (Some("sfc"), false),
        ] {
            assert_eq!(stays_native(Attach::Auto, driver), stays, "{driver:?}");
            for mode in MODES.into_iter().filter(|mode| *mode != Attach::Auto) {
                assert!(!stays_native(mode, driver), "{mode:?}");
            }
        }
    }

    fn any_nic() -> impl Strategy<Value = Nic> {
        let drivers = proptest::option::of(proptest::sample::select(vec![
            "bnxt_en",
            "ena",
            "ice",
            "mana",
            "mlx5_core",
            "sfc",
            "tun",
            "unheard",
            "veth",
            "virtio_net",
        ]));
        let queues = proptest::sample::select(vec![
            Queues::Unknown,
            Queues::Free,
            Queues::Taken(Bypass::XdpSocket),
            Queues::Taken(Bypass::DeviceMemory),
            Queues::Taken(Bypass::IoUring),
        ]);
        let channels = proptest::option::of((any::<u32>(), any::<u32>()));
        let flags = any::<(Option<bool>, Option<bool>, Option<bool>)>();
        (drivers, queues, channels, flags).prop_map(
            |(driver, queues, channels, (lro, gro_hw, has_native_xdp))| Nic {
                driver: driver.map(Into::into),
                lro,
                gro_hw,
                channels: channels.map(|(in_use, most)| Channels { in_use, most }),
                has_native_xdp,
                queues,
            },
        )
    }

    proptest! {
        #[test]
        fn every_ladder_keeps_its_promises(
            nic in any_nic(),
            mode in proptest::sample::select(MODES.to_vec()),
            is_ethernet in any::<bool>(),
            is_free in any::<bool>(),
        ) {
            let known = nic.driver.as_deref().and_then(Driver::find);
            let driver = if is_free { Some(&FREE) } else { known };
            let Choice { ladder, reason, price } = choose_with(mode, is_ethernet, &nic, driver);
            prop_assert!(!reason.is_empty());
            // Some hook is always left, and it needs no Ethernet header.
            prop_assert_eq!(ladder.is_empty(), mode == Attach::Socket);
            prop_assert!(ladder.is_empty() || ladder.contains(&Way::Tcx) && ladder.contains(&Way::Clsact));
            prop_assert!(is_ethernet || ladder.iter().all(|way| !way.is_xdp()));
            // By itself, native XDP is taken only where all is known, and free.
            let is_native = ladder.contains(&Way::XdpNative);
            if mode == Attach::Auto {
                let all_known = nic.queues == Queues::Free && nic.has_native_xdp == Some(true);
                prop_assert_eq!(is_native, is_free && is_ethernet && all_known);
                let is_taken = matches!(nic.queues, Queues::Taken(_));
                prop_assert!(!is_taken || ladder.iter().all(|way| !way.is_xdp()));
            }
            // A price is told only where it was not paid.
            prop_assert!(price.is_none() || mode == Attach::Auto && !is_native);
        }
    }
}
