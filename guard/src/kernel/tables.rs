//! The policy's tables: two slots of each, one in force, the other written.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use guard_common::{
    abi::{
        ABI_VERSION, InsideKey, Ladder, MAX_GUARDED_PORTS, MAX_INSIDE, MAX_LADDERS, MAX_SOURCES,
        MAX_VIA_INDICES, POLICY_SLOTS, PORT_ALIAS, PORT_WORDS, PolicyHeader, PortIndex, PortKey,
        PortValue, SourceKey, SourceValue, ViaKey, map, port_word,
    },
    packet::Protocol,
};

use super::{KernelError, pins::Pins, probe, sys};
use crate::{
    compile::{Prefix, Tables},
    plan,
    rule::GuardedPort,
};

/// The pinned tables.
pub struct PolicyMaps {
    active: Array<MapData, u32>,
    policy: Array<MapData, PolicyHeader>,
    port_bits: Array<MapData, u64>,
    ports: HashMap<MapData, PortKey, PortValue>,
    sources: LpmTrie<MapData, SourceKey, SourceValue>,
    ladders: Array<MapData, Ladder>,
    inside: HashMap<MapData, InsideKey, u32>,
    vias: HashMap<MapData, ViaKey, u32>,
    instance: u64,
    /// What each slot holds, where this process has written it whole. Nobody else writes while it has the lock.
    written: [Option<Tables>; POLICY_SLOTS as usize],
}

/// What holds for a whole policy, beside its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// See `PolicyHeader::observe_until_ns`.
    pub observe_until_ns: u64,
    /// `FLAG_*` of `guard_common::abi`.
    pub flags: u32,
    pub rule_count: u32,
}

type Indices = BTreeMap<GuardedPort, PortIndex>;

/// Names a map where one of its operations fails.
fn failed(name: &'static str, what: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name, what, source }
}

/// Opens a pinned map.
pub(super) fn open(pins: &Pins, name: &'static str) -> Result<MapData, KernelError> {
    MapData::from_pin(pins.map(name)).map_err(failed(name, "opened"))
}

impl PolicyMaps {
    /// # Errors
    /// When a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let array = |name| Ok::<_, KernelError>(Map::Array(open(pins, name)?));
        Ok(Self {
            active: array(map::ACTIVE)?.try_into().map_err(failed(map::ACTIVE, "opened"))?,
            policy: array(map::POLICY)?.try_into().map_err(failed(map::POLICY, "opened"))?,
            port_bits: array(map::PORT_BITS)?
                .try_into()
                .map_err(failed(map::PORT_BITS, "opened"))?,
            ports: Map::HashMap(open(pins, map::PORTS)?)
                .try_into()
                .map_err(failed(map::PORTS, "opened"))?,
            sources: Map::LpmTrie(open(pins, map::SOURCES)?)
                .try_into()
                .map_err(failed(map::SOURCES, "opened"))?,
            ladders: array(map::LADDERS)?.try_into().map_err(failed(map::LADDERS, "opened"))?,
            inside: Map::HashMap(open(pins, map::INSIDE)?)
                .try_into()
                .map_err(failed(map::INSIDE, "opened"))?,
            vias: Map::HashMap(open(pins, map::VIAS)?)
                .try_into()
                .map_err(failed(map::VIAS, "opened"))?,
            instance: pins.instance,
            written: [None, None],
        })
    }

    fn active_slot(&self) -> Result<Option<u32>, KernelError> {
        let active = self.active.get(&0, 0).map_err(failed(map::ACTIVE, "read"))?;
        Ok(active.checked_sub(1).filter(|slot| *slot < POLICY_SLOTS))
    }

    /// What holds for the policy in force; `None` before the first.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn header(&self) -> Result<Option<PolicyHeader>, KernelError> {
        let Some(slot) = self.active_slot()? else {
            return Ok(None);
        };
        self.policy.get(&slot, 0).map(Some).map_err(failed(map::POLICY, "read"))
    }

    /// The tables in force; `None` before the first policy.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn in_force(&self) -> Result<Option<Tables>, KernelError> {
        self.active_slot()?.map(|slot| self.read_slot(slot)).transpose()
    }

    /// The tables in force, where this process has put them in force.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn written_in_force(&self) -> Result<Option<&Tables>, KernelError> {
        Ok(self.active_slot()?.and_then(|slot| self.written[slot as usize].as_ref()))
    }

    /// The guarded ports in force; none before the first policy.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn ports_in_force(&self) -> Result<Vec<GuardedPort>, KernelError> {
        let Some(slot) = self.active_slot()? else {
            return Ok(Vec::new());
        };
        Ok(self.read_ports(slot)?.0.into_keys().collect())
    }

    /// The aliases in force, each with the guarded port it leads to.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn aliases_in_force(&self) -> Result<BTreeMap<GuardedPort, GuardedPort>, KernelError> {
        let Some(slot) = self.active_slot()? else {
            return Ok(BTreeMap::new());
        };
        let (ports, aliases) = self.read_ports(slot)?;
        let guarded = |index| ports.iter().find(|(_, own)| **own == index).map(|(port, _)| *port);
        Ok(aliases
            .into_iter()
            .filter_map(|(alias, index)| Some((alias, guarded(index)?)))
            .collect())
    }

    /// Puts a policy in force, whole: every packet is judged by the one before or by this one. Returns its generation.
    ///
    /// # Errors
    /// When a table can't hold it or a map can't be written. The policy in force is as it was.
    pub fn put_in_force(&mut self, wanted: &Tables, terms: Terms) -> Result<u64, KernelError> {
        check_room(wanted)?;
        let active = self.active_slot()?;
        let slot = active.map_or(0, |active| (active + 1) % POLICY_SLOTS);
        // A packet that came in before the last swap may still be walking this slot.
        sys::wait_for_running_programs().map_err(|source| KernelError::System {
            what: "waiting for packets under way",
            source,
        })?;

        let current = match self.written[slot as usize].take() {
            Some(tables) => tables,
            None => self.read_slot(slot)?,
        };
        self.write_slot(slot, &current, wanted)?;
        let generation = self.newest_generation()? + 1;
        let header = PolicyHeader {
            generation,
            observe_until_ns: terms.observe_until_ns,
            instance: self.instance,
            since_ns: probe::boot_ns(),
            flags: terms.flags,
            port_count: wanted.ports.len() as u32,
            abi_version: ABI_VERSION,
            rule_count: terms.rule_count,
            columns: wanted.columns(),
            reserved: 0,
        };
        self.policy.set(slot, header, 0).map_err(failed(map::POLICY, "written"))?;
        self.written[slot as usize] = Some(wanted.clone());
        // From here on packets see it.
        self.active.set(0, slot + 1, 0).map_err(failed(map::ACTIVE, "written"))?;
        Ok(generation)
    }

    fn newest_generation(&self) -> Result<u64, KernelError> {
        (0..POLICY_SLOTS).try_fold(0, |newest, slot| {
            let header = self.policy.get(&slot, 0).map_err(failed(map::POLICY, "read"))?;
            Ok(header.generation.max(newest))
        })
    }

    fn write_slot(
        &mut self,
        slot: u32,
        current: &Tables,
        wanted: &Tables,
    ) -> Result<(), KernelError> {
        let plan = plan::plan(current, wanted);
        for prefix in &plan.remove_sources {
            match self.sources.remove(&source_key(slot, prefix)) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(failed(map::SOURCES, "written")(error)),
            }
        }
        for (prefix, value) in &plan.put_sources {
            self.sources
                .insert(&source_key(slot, prefix), *value, 0)
                .map_err(failed(map::SOURCES, "written"))?;
        }
        for port in &plan.remove_ports {
            match self.ports.remove(&port_key(slot, *port)) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(failed(map::PORTS, "written")(error)),
            }
        }
        for (port, value) in &plan.put_ports {
            self.ports
                .insert(port_key(slot, *port), *value, 0)
                .map_err(failed(map::PORTS, "written"))?;
        }
        for ifindex in &plan.remove_vias {
            match self.vias.remove(&ViaKey { slot, ifindex: *ifindex }) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(failed(map::VIAS, "written")(error)),
            }
        }
        for (ifindex, column) in &plan.put_vias {
            self.vias
                .insert(ViaKey { slot, ifindex: *ifindex }, *column, 0)
                .map_err(failed(map::VIAS, "written"))?;
        }
        for (index, ladder) in &plan.put_ladders {
            self.ladders
                .set(slot * MAX_LADDERS + index, ladder, 0)
                .map_err(failed(map::LADDERS, "written"))?;
        }
        for ifindex in plan.remove_inside {
            match self.inside.remove(&InsideKey { slot, ifindex }) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(failed(map::INSIDE, "written")(error)),
            }
        }
        for ifindex in plan.put_inside {
            self.inside
                .insert(InsideKey { slot, ifindex }, 1, 0)
                .map_err(failed(map::INSIDE, "written"))?;
        }
        self.write_port_bits(slot, wanted)
    }

    fn write_port_bits(&mut self, slot: u32, wanted: &Tables) -> Result<(), KernelError> {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let first = port_word(slot, protocol, 0);
            let mut words = [0_u64; PORT_WORDS as usize];
            let guarded = wanted.ports.keys().chain(wanted.aliases.keys());
            for port in guarded.filter(|port| port.protocol == protocol) {
                words[usize::from(port.number >> 6)] |= 1 << (port.number & 63);
            }
            for (index, word) in (first..).zip(words) {
                let held = self.port_bits.get(&index, 0).map_err(failed(map::PORT_BITS, "read"))?;
                if held != word {
                    self.port_bits
                        .set(index, word, 0)
                        .map_err(failed(map::PORT_BITS, "written"))?;
                }
            }
        }
        Ok(())
    }

    /// The guarded ports, and their aliases.
    fn read_ports(&self, slot: u32) -> Result<(Indices, Indices), KernelError> {
        let (mut ports, mut aliases) = (Indices::new(), Indices::new());
        for entry in &self.ports {
            let (key, value) = entry.map_err(failed(map::PORTS, "read"))?;
            if let (true, Some(protocol)) = (key.slot() == slot, key.protocol()) {
                let is_alias = value.flags & PORT_ALIAS != 0;
                let indices = if is_alias { &mut aliases } else { &mut ports };
                indices.insert(GuardedPort { protocol, number: key.port() }, value.index);
            }
        }
        Ok((ports, aliases))
    }

    fn read_inside(&self, slot: u32) -> Result<BTreeSet<u32>, KernelError> {
        let keys = self.inside.keys().map(|key| key.map_err(failed(map::INSIDE, "read")));
        keys.filter_map(|key| key.map(|key| (key.slot == slot).then_some(key.ifindex)).transpose())
            .collect()
    }

    fn read_slot(&self, slot: u32) -> Result<Tables, KernelError> {
        let (ports, aliases) = self.read_ports(slot)?;
        let inside = self.read_inside(slot)?;
        let mut tables = Tables { ports, aliases, inside, ..Tables::default() };
        for entry in &self.sources {
            let (key, value) = entry.map_err(failed(map::SOURCES, "read"))?;
            let (bits, key) = (key.prefix_len(), key.data());
            let bits =
                bits.checked_sub(SourceKey::HEAD_BITS).and_then(|bits| u8::try_from(bits).ok());
            if let (true, Some(family), Some(bits)) = (key.slot() == slot, key.family(), bits) {
                tables.sources.insert(Prefix { family, address: *key.address(), bits }, value);
            }
        }
        for entry in &self.vias {
            let (key, column) = entry.map_err(failed(map::VIAS, "read"))?;
            if key.slot == slot {
                tables.vias.insert(key.ifindex, column);
            }
        }
        let rows = tables.sources.values().map(|value| value.row).max().unwrap_or(0) + 1;
        let in_row = tables.ports.len() * tables.columns() as usize;
        let ladders = (rows as usize * in_row).min(MAX_LADDERS as usize) as u32;
        for index in 0..ladders {
            let ladder = self
                .ladders
                .get(&(slot * MAX_LADDERS + index), 0)
                .map_err(failed(map::LADDERS, "read"))?;
            tables.ladders.push(ladder);
        }
        Ok(tables)
    }
}

fn check_room(wanted: &Tables) -> Result<(), KernelError> {
    let rooms = [
        ("guarded ports", wanted.ports.len() + wanted.aliases.len(), MAX_GUARDED_PORTS as usize),
        ("combinations of rules", wanted.ladders.len(), MAX_LADDERS as usize),
        ("local bridges and containers' interfaces", wanted.inside.len(), MAX_INSIDE as usize),
        ("interfaces of rules", wanted.vias.len(), (MAX_VIA_INDICES / POLICY_SLOTS) as usize),
        ("prefixes", wanted.sources.len(), (MAX_SOURCES / POLICY_SLOTS) as usize),
    ];
    for (what, needed, room) in rooms {
        if needed > room {
            return Err(KernelError::TooLarge { what, needed, room });
        }
    }
    Ok(())
}

fn source_key(slot: u32, prefix: &Prefix) -> Key<SourceKey> {
    Key::new(
        SourceKey::prefix_bits(prefix.bits),
        SourceKey::new(slot, prefix.family, prefix.address),
    )
}

const fn port_key(slot: u32, port: GuardedPort) -> PortKey {
    PortKey::at_every_address(slot, port.protocol, port.number)
}
