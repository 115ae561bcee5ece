//! What attaching native XDP costs an interface's other traffic, driver by driver. `docs/drivers.md` has the sources of each row, and
//! what else is known.

use crate::{
    host::nic::{Channels, Nic},
    output::text::list,
};

/// A driver of which it is known.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// Its names, now and formerly.
    names: &'static [&'static str],
    /// What happens to the traffic when the first program comes and again when the last one goes.
    restart: Option<&'static str>,
    /// What is otherwise as long as a program is there.
    tolls: &'static [Toll],
    /// What it must find, or refuses the program.
    needs: &'static [Need],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toll {
    /// Large receive offload stays off.
    NoLro,
    /// Generic receive offload in hardware stays off.
    NoGroHw,
    /// A larger MTU is refused.
    MtuBelowAPage,
    Other(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    LroOff,
    GroHwOff,
    /// No more than half of the channels are in use.
    HalfOfTheChannels,
}

const CLOSES: &str = "closes and reopens every queue, now and when it is taken off";
const STOPS: &str = "stops every queue for a moment, now, at each update and when it is taken off";
const A_PAGE_EACH: Toll = Toll::Other("spends a page of memory on every packet");

/// None of them attaches for nothing: most rebuild their queues when the first program comes and when the last one goes, and the
/// others put up with less as long as it is there.
const DRIVERS: [Driver; 18] = [
    Driver { names: &["atlantic"], restart: Some(CLOSES), tolls: &[], needs: &[] },
    Driver {
        names: &["bnxt_en"],
        restart: Some("closes and reopens the card, now, at each update and when it is taken off"),
        tolls: &[Toll::NoLro, Toll::NoGroHw, A_PAGE_EACH],
        needs: &[],
    },
    Driver {
        names: &["ena"],
        restart: Some(CLOSES),
        tolls: &[Toll::MtuBelowAPage, Toll::Other("keeps half of the channels for itself")],
        needs: &[Need::HalfOfTheChannels],
    },
    Driver {
        names: &["gve", "gvnic"],
        restart: Some(
            "stops every queue for a while, now, at each update and when it is taken off",
        ),
        tolls: &[Toll::Other("keeps half of the transmit queues for itself")],
        needs: &[Need::LroOff, Need::HalfOfTheChannels],
    },
    Driver {
        names: &["hv_netvsc"],
        restart: None,
        tolls: &[
            Toll::Other("copies every packet into a page of its own"),
            Toll::Other(
                "hands the program on to the virtual function below, at that driver's price",
            ),
        ],
        needs: &[Need::LroOff],
    },
    Driver {
        names: &["i40e"],
        restart: Some("resets the card and its virtual functions, now and when it is taken off"),
        tolls: &[],
        needs: &[],
    },
    Driver {
        names: &["ice"],
        restart: Some(CLOSES),
        tolls: &[Toll::Other("takes a transmit queue for each processor")],
        needs: &[],
    },
    Driver { names: &["igb"], restart: Some(CLOSES), tolls: &[Toll::MtuBelowAPage], needs: &[] },
    Driver {
        names: &["igc"],
        restart: Some(
            "closes and reopens every queue, now, at each update and when it is taken off",
        ),
        tolls: &[Toll::Other("holds the MTU at 1500")],
        needs: &[],
    },
    Driver {
        names: &["ixgbe"],
        restart: Some(CLOSES),
        tolls: &[Toll::NoLro, Toll::MtuBelowAPage],
        needs: &[Need::LroOff],
    },
    Driver {
        names: &["ixgbevf"],
        restart: Some(CLOSES),
        tolls: &[
            Toll::Other("lets nobody change the MTU"),
            Toll::Other("may halve the receive queues"),
        ],
        needs: &[],
    },
    Driver { names: &["mana"], restart: None, tolls: &[Toll::MtuBelowAPage], needs: &[] },
    Driver {
        names: &["mlx5_core"],
        restart: Some(CLOSES),
        tolls: &[Toll::NoLro, Toll::NoGroHw, A_PAGE_EACH],
        needs: &[Need::LroOff, Need::GroHwOff],
    },
    Driver {
        names: &["sfc"],
        restart: None,
        tolls: &[Toll::MtuBelowAPage, Toll::Other("drops frames of several buffers")],
        needs: &[],
    },
    Driver {
        names: &["tun"],
        restart: None,
        tolls: &[Toll::Other("copies what comes in large packets once more")],
        needs: &[],
    },
    Driver {
        names: &["veth"],
        restart: None,
        tolls: &[Toll::Other("cuts bulk TCP over a veth to about a quarter")],
        needs: &[],
    },
    Driver {
        names: &["virtio_net"],
        restart: Some(STOPS),
        tolls: &[
            Toll::NoGroHw,
            Toll::Other("leaves checksums to this machine"),
            A_PAGE_EACH,
            Toll::Other("lets nobody change the channels"),
        ],
        needs: &[],
    },
    Driver {
        names: &["vmxnet3"],
        restart: Some(CLOSES),
        tolls: &[Toll::NoLro, Toll::MtuBelowAPage],
        needs: &[],
    },
];

impl Driver {
    pub fn find(name: &str) -> Option<&'static Self> {
        DRIVERS.iter().find(|driver| driver.names.contains(&name))
    }

    /// Whether programs come and go without a moment's loss for other traffic.
    pub const fn swaps(&self) -> bool {
        self.restart.is_none()
    }

    /// Whether other traffic does not notice a program at all.
    pub const fn is_free(&self) -> bool {
        self.swaps() && self.tolls.is_empty()
    }

    /// What a program costs other traffic on this card; nothing for a driver that is free.
    pub fn price(&self, nic: &Nic) -> Option<String> {
        let mut parts: Vec<String> = self.restart.into_iter().map(str::to_owned).collect();
        parts.extend(self.tolls.iter().filter_map(|toll| toll.on(nic)).map(str::to_owned));
        let refusals = self.needs.iter().filter_map(|need| need.missing(nic));
        let refusals: Vec<String> = refusals.collect();
        let price = (!parts.is_empty()).then(|| format!("it {}", list(&parts)));
        let refused = (!refusals.is_empty())
            .then(|| format!("the driver refuses it as long as {}", list(&refusals)));
        match (price, refused) {
            (Some(price), Some(refused)) => Some(format!("{price}; {refused}")),
            (price, refused) => price.or(refused),
        }
    }
}

impl Toll {
    /// In words, where it makes a difference: an offload that is off already is not lost.
    const fn on(self, nic: &Nic) -> Option<&'static str> {
        match (self, nic.lro, nic.gro_hw) {
            (Self::NoLro, Some(false), _) | (Self::NoGroHw, _, Some(false)) => None,
            (Self::NoLro, ..) => Some("keeps LRO off"),
            (Self::NoGroHw, ..) => Some("keeps hardware GRO off"),
            (Self::MtuBelowAPage, ..) => Some("holds the MTU below a page"),
            (Self::Other(words), ..) => Some(words),
        }
    }
}

impl Need {
    /// In words, where the card is known not to give it.
    fn missing(self, nic: &Nic) -> Option<String> {
        match (self, nic) {
            (Self::LroOff, Nic { lro: Some(true), .. }) => Some("LRO is on".to_owned()),
            (Self::GroHwOff, Nic { gro_hw: Some(true), .. }) => {
                Some("hardware GRO is on".to_owned())
            }
            (Self::HalfOfTheChannels, Nic { channels: Some(Channels { in_use, most }), .. })
                if u64::from(*in_use) * 2 > u64::from(*most) =>
            {
                Some(format!("{in_use} of {most} channels are in use"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use super::*;

    /// One that no kernel has.
    pub const FREE: Driver = Driver { names: &["free"], restart: None, tolls: &[], needs: &[] };

    fn price(name: &str, nic: &Nic) -> String {
        Driver::find(name).unwrap().price(nic).unwrap()
    }

    #[test]
    fn no_driver_of_the_table_attaches_for_nothing_and_each_says_why() {
        for driver in &DRIVERS {
            assert!(!driver.is_free(), "{driver:?}");
            // Also where every offload is off.
            let plain = Nic { lro: Some(false), gro_hw: Some(false), ..Nic::default() };
            assert!(driver.price(&plain).is_some(), "{driver:?}");
        }
        assert!(FREE.is_free());
        assert_eq!(FREE.price(&Nic::default()), None);
    }

    #[test]
    fn every_driver_stands_once_and_in_order() {
        let names: Vec<&str> = DRIVERS.iter().flat_map(|driver| driver.names).copied().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(DRIVERS.iter().map(|driver| driver.names[0]).is_sorted());
        assert!(Driver::find("e1000e").is_none());
        assert_eq!(Driver::find("gvnic").unwrap().names[0], "gve");
    }

    #[test]
    fn every_driver_stands_in_the_document() {
        let document = include_str!("../../../docs/drivers.md");
        for name in DRIVERS.iter().flat_map(|driver| driver.names) {
            assert!(document.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn an_offload_that_is_off_is_not_lost() {
        let on = Nic { lro: Some(false), gro_hw: Some(true), ..Nic::default() };
        assert_eq!(
            price("mlx5_core", &on),
            "it closes and reopens every queue, now and when it is taken off, keeps hardware GRO off and spends a page of memory on every packet; the driver refuses it as long as hardware GRO is on"
        );
        let off = Nic { lro: Some(false), gro_hw: Some(false), ..Nic::default() };
        assert!(!price("mlx5_core", &off).contains("GRO"));
        // What is not known may be.
        let unknown = price("mlx5_core", &Nic::default());
        assert!(unknown.contains("LRO") && unknown.contains("GRO"), "{unknown}");
        assert!(!unknown.contains("refuses"), "{unknown}");
    }

    #[test]
    fn a_driver_that_needs_queues_refuses_without_them() {
        let with =
            |in_use, most| Nic { channels: Some(Channels { in_use, most }), ..Nic::default() };
        assert!(price("ena", &with(5, 8)).ends_with("as long as 5 of 8 channels are in use"));
        assert!(!price("ena", &with(4, 8)).contains("refuses"));
        assert!(!price("ena", &Nic::default()).contains("refuses"));
        assert!(price("ena", &with(u32::MAX, u32::MAX)).contains("refuses"));
    }
}
