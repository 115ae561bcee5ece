//! What the engine must know of the host before it decides anything.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{
    config::{Config, LocalSources},
    control::Failure,
    host::{
        forwarders::{self, Published},
        interfaces::{self, Address, Class, Interface, LanPrefixes, Snapshot},
        netlink,
    },
    kernel::seen::{self, Seen},
};

/// One moment's answer of netlink, and what follows from it.
#[derive(Clone, Debug)]
pub struct Facts {
    pub snapshot: Snapshot,
    pub interfaces: Vec<Interface>,
    /// This host's own addresses, and its containers' where the configuration counts them.
    pub local: Vec<IpNet>,
    /// This host's own that only loopback takes packets between; none where that is not certain.
    pub own: Vec<IpNet>,
    /// Its containers' where the configuration does not.
    pub guests: Vec<IpNet>,
    pub lan: LanPrefixes,
    /// The ports that container engines' forwarders publish, or why they could not be looked for.
    pub published: Result<Vec<Published>, String>,
    /// What is attached where, by interface index.
    pub seen: HashMap<u32, Seen>,
}

impl Facts {
    /// Asks netlink and looks through processes, in the network namespace of the calling thread. Must not be called within a
    /// runtime.
    ///
    /// # Errors
    /// When netlink does not answer.
    pub fn gather(config: &Config) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(
            |error| {
                Failure::failed(
                    format!("netlink could not be asked: {error}"),
                    "the policy in force is as it was; `guard status` shows it",
                )
            },
        )?;
        runtime.block_on(async {
            let snapshot = netlink::snapshot()
                .await
                .map_err(|error| Failure::failed(error.to_string(), error.fix()))?;
            let interfaces = interfaces::classify(&snapshot);
            let indexes: Vec<u32> = interfaces
                .iter()
                .filter(|interface| interface.class != Class::Loopback)
                .map(|interface| interface.index)
                .collect();
            let seen = seen::seen(&indexes).await?;
            let mut guests = interfaces::local_sources(&snapshot, &interfaces, true);
            let local = match config.local {
                LocalSources::HostAndContainers => std::mem::take(&mut guests),
                LocalSources::Host => interfaces::local_sources(&snapshot, &interfaces, false),
            };
            guests.retain(|prefix| !local.contains(prefix));
            let published = forwarders::find()
                .map_err(|error| format!("published ports could not be looked for: {error}"));
            let is_certain =
                matches!(&published, Ok(ports) if !ports.iter().any(Published::shares_addresses));
            Ok(Self {
                local,
                own: if is_certain { interfaces::own_by_loopback(&snapshot) } else { Vec::new() },
                guests,
                lan: interfaces::lan(&snapshot, &interfaces),
                published,
                seen,
                interfaces,
                snapshot,
            })
        })
    }

    /// The interfaces over which only guests of this host send, by index.
    pub fn inside(&self) -> BTreeSet<u32> {
        let inside = self.interfaces.iter().filter(|interface| interface.is_inside());
        inside.map(|interface| interface.index).collect()
    }

    /// What is attached to an interface; nothing when it has gone.
    pub fn seen(&self, ifindex: u32) -> Seen {
        self.seen.get(&ifindex).cloned().unwrap_or_default()
    }

    /// Each interface's name, and what is attached to it.
    pub fn attached(&self) -> Vec<(String, Seen)> {
        self.interfaces
            .iter()
            .map(|interface| (interface.name.clone(), self.seen(interface.index)))
            .collect()
    }

    /// An address of this host at which a packet of `source`'s family would arrive by an interface.
    pub fn own_address(&self, source: IpAddr, ifindex: u32) -> Option<IpAddr> {
        self.own_addresses(source)
            .find(|address| address.index == ifindex)
            .map(|address| address.address)
            .or_else(|| self.any_own_address(source))
    }

    /// Any address of this host of `source`'s family.
    pub fn any_own_address(&self, source: IpAddr) -> Option<IpAddr> {
        self.own_addresses(source).next().map(|address| address.address)
    }

    fn own_addresses(&self, source: IpAddr) -> impl Iterator<Item = &Address> {
        self.snapshot.addresses.iter().filter(move |address| {
            address.address.is_ipv4() == source.is_ipv4()
                && !address.address.is_loopback()
                && address.address != source
        })
    }
}

/// A stand-in for the destination where this host has no address of a family.
pub fn documentation_address(source: IpAddr) -> IpAddr {
    match source {
        // RFC 5737 and RFC 3849.
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, 1]),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}
