//! The policy's tables: two slots of each, one in force, the other written.

use std::{
    collections::{self, BTreeMap},
    hash::Hash,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use guard_common::{
    abi::{
        ABI_VERSION, InsideKey, Ladder, MAX_GUARDED_PORTS, MAX_INSIDE, MAX_LADDERS,
        MAX_VIA_INDICES, POLICY_SLOTS, PORT_ALIAS, PORT_WORDS, PolicyHeader, PortIndex,
        PortIndices, ViaKey, map, port_index, port_octet, port_word,
    },
    packet::Protocol,
    sources::{
        self, LINES_PER_CHUNK, LINES_PER_PAGE, Line, MAX_CHUNKS, PAGES_PER_CHUNK, Page, TooLong,
    },
};

use super::{KernelError, pins::Pins, probe, sys};
use crate::{
    compile::Tables,
    control::TableUse,
    progress::{Current, Progress, Step},
    rule::GuardedPort,
};

/// Chunks of the source table that the slot out of force keeps, so that the next policy finds room at once.
const KEPT_CHUNKS: usize = 1;

type Chunk = Array<MapData, Page>;

/// The pinned tables.
pub struct PolicyMaps {
    active: Array<MapData, u32>,
    policy: Array<MapData, PolicyHeader>,
    port_bits: Array<MapData, u64>,
    /// The same, to be read many words at once.
    port_words: OwnedFd,
    port_indices: Array<MapData, PortIndices>,
    /// An array of chunks.
    sources: MapData,
    ladders: Array<MapData, Ladder>,
    inside: HashMap<MapData, InsideKey, u32>,
    vias: HashMap<MapData, ViaKey, u32>,
    instance: u64,
    /// The chunks that each slot has.
    chunks: [Vec<Chunk>; POLICY_SLOTS as usize],
    /// What this process has put in force last. Nobody else does while it has the lock.
    put: Option<Tables>,
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

/// Tables that fit, in the form in which the kernel gets them. Making it takes long for a large policy, and touches nothing.
pub struct Ready {
    tables: Tables,
    lines: Vec<Line>,
}

impl Ready {
    /// # Errors
    /// When the kernel's tables have no room for it.
    pub fn new(tables: Tables) -> Result<Self, KernelError> {
        check_room(&tables)?;
        let lines = sources::build(&tables.sources).map_err(|TooLong| {
            KernelError::TooManyAddresses { room_mib: chunks_bytes(MAX_CHUNKS.into()) >> 20 }
        })?;
        Ok(Self { tables, lines })
    }

    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }
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
        let sources = open(pins, map::SOURCES)?;
        Ok(Self {
            active: array(map::ACTIVE)?.try_into().map_err(failed(map::ACTIVE, "opened"))?,
            policy: array(map::POLICY)?.try_into().map_err(failed(map::POLICY, "opened"))?,
            port_bits: array(map::PORT_BITS)?
                .try_into()
                .map_err(failed(map::PORT_BITS, "opened"))?,
            port_words: sys::pinned(&pins.map(map::PORT_BITS)).map_err(|source| {
                KernelError::System { what: "opening the table of ports", source }
            })?,
            port_indices: array(map::PORT_INDICES)?
                .try_into()
                .map_err(failed(map::PORT_INDICES, "opened"))?,
            chunks: [slot_chunks(&sources, 0)?, slot_chunks(&sources, 1)?],
            sources,
            ladders: array(map::LADDERS)?.try_into().map_err(failed(map::LADDERS, "opened"))?,
            inside: Map::HashMap(open(pins, map::INSIDE)?)
                .try_into()
                .map_err(failed(map::INSIDE, "opened"))?,
            vias: Map::HashMap(open(pins, map::VIAS)?)
                .try_into()
                .map_err(failed(map::VIAS, "opened"))?,
            instance: pins.instance,
            put: None,
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

    /// The tables in force, where this process has put them in force.
    #[must_use]
    pub fn put_tables(&self) -> Option<&Tables> {
        self.put.as_ref()
    }

    /// How full the tables are, where this process has filled them.
    #[must_use]
    pub fn fill(&self) -> Vec<TableUse> {
        let Some(put) = &self.put else { return Vec::new() };
        let of_slots = self.chunks.iter().map(Vec::len).max().unwrap_or_default() as u64;
        let sources = ("source-bytes", chunks_bytes(of_slots), chunks_bytes(MAX_CHUNKS.into()));
        let others = rooms(put).map(|(_, table, used, room)| (table, used as u64, room as u64));
        let all = others.into_iter().chain([sources]);
        all.map(|(table, used, room)| TableUse { table: table.to_owned(), used, room }).collect()
    }

    /// What the chunks of the source tables take of the kernel's memory.
    #[must_use]
    pub fn source_table_bytes(&self) -> u64 {
        chunks_bytes(self.chunks.iter().map(Vec::len).sum::<usize>() as u64)
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
    /// When a map can't be written. The policy in force is as it was.
    pub fn put_in_force(
        &mut self,
        ready: Ready,
        terms: Terms,
        progress: &Progress,
    ) -> Result<u64, KernelError> {
        let Ready { tables: wanted, lines } = ready;
        let active = self.active_slot()?;
        let slot = active.map_or(0, |active| (active + 1) % POLICY_SLOTS);
        // A packet that came in before the last swap may still be walking this slot.
        wait_for_packets()?;

        let writing = progress.begin(Step::Writing, size_of_val(lines.as_slice()) as u64);
        self.write_slot(slot, &wanted, &lines, &writing)?;
        drop(writing);
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
            reserved: [0; _],
        };
        self.policy.set(slot, header, 0).map_err(failed(map::POLICY, "written"))?;
        // From here on packets see it.
        self.active.set(0, slot + 1, 0).map_err(failed(map::ACTIVE, "written"))?;
        self.put = Some(wanted);
        if let Some(before) = active
            && let Err(error) = self.give_back(before)
        {
            // The policy is in force, and the next one tries again.
            log::warn!("memory of the policy before stays taken: {error}");
        }
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
        wanted: &Tables,
        lines: &[Line],
        writing: &Current<'_>,
    ) -> Result<(), KernelError> {
        self.write_sources(slot, lines, writing)?;
        for (index, ladder) in (slot * MAX_LADDERS..).zip(&wanted.ladders) {
            self.ladders.set(index, ladder, 0).map_err(failed(map::LADDERS, "written"))?;
        }
        let vias = wanted.vias.iter().map(|(ifindex, column)| (*ifindex, *column));
        let vias = vias.map(|(ifindex, column)| (ViaKey { slot, ifindex }, column));
        replace(&mut self.vias, map::VIAS, |key| key.slot == slot, vias.collect())?;
        let inside = wanted.inside.iter().map(|ifindex| (InsideKey { slot, ifindex: *ifindex }, 1));
        replace(&mut self.inside, map::INSIDE, |key| key.slot == slot, inside.collect())?;
        self.write_ports(slot, wanted)
    }

    fn write_sources(
        &mut self,
        slot: u32,
        lines: &[Line],
        writing: &Current<'_>,
    ) -> Result<(), KernelError> {
        let mut done_bytes = 0;
        self.add_chunks(slot, lines.len().div_ceil(LINES_PER_CHUNK as usize))?;
        let in_chunks = lines.chunks(LINES_PER_CHUNK as usize);
        for (chunk, lines) in self.chunks[slot as usize].iter_mut().zip(in_chunks) {
            for (number, lines) in (0..).zip(lines.chunks(LINES_PER_PAGE as usize)) {
                let words = lines.as_flattened();
                let mut page: Page = [0; _];
                page[..words.len()].copy_from_slice(words);
                chunk.set(number, page, 0).map_err(failed(map::SOURCES, "written"))?;
                done_bytes += size_of_val(lines) as u64;
                writing.at(done_bytes);
            }
        }
        Ok(())
    }

    /// Gives a slot as many chunks as it needs.
    fn add_chunks(&mut self, slot: u32, needed: usize) -> Result<(), KernelError> {
        let failed = |source| KernelError::System { what: "making room for addresses", source };
        let held = self.chunks[slot as usize].len();
        let mut fresh = Vec::new();
        for _ in held..needed {
            fresh.push(
                sys::array_create(size_of::<Page>() as u32, PAGES_PER_CHUNK, true)
                    .map_err(failed)?,
            );
        }
        let first = slot * MAX_CHUNKS + held as u32;
        sys::maps_put(self.sources.fd().as_fd(), first, &fresh).map_err(failed)?;
        for chunk in fresh {
            self.chunks[slot as usize].push(self::chunk(MapData::from_fd(chunk))?);
        }
        Ok(())
    }

    /// Takes the chunks from a slot out of force that it need not keep.
    fn give_back(&mut self, slot: u32) -> Result<(), KernelError> {
        if self.chunks[slot as usize].len() <= KEPT_CHUNKS {
            return Ok(());
        }
        // A packet that came in before the swap may still be walking them.
        wait_for_packets()?;
        while self.chunks[slot as usize].len() > KEPT_CHUNKS {
            let number = self.chunks[slot as usize].len() as u32 - 1;
            sys::map_delete(self.sources.fd().as_fd(), slot * MAX_CHUNKS + number)
                .map_err(|source| KernelError::System { what: "giving memory back", source })?;
            self.chunks[slot as usize].pop();
        }
        Ok(())
    }

    fn write_ports(&mut self, slot: u32, wanted: &Tables) -> Result<(), KernelError> {
        let mut words: BTreeMap<u32, (u64, PortIndices)> = BTreeMap::new();
        let ports = wanted.ports.iter().map(|(port, index)| (port, port_octet(*index, false)));
        let aliases = wanted.aliases.iter().map(|(port, index)| (port, port_octet(*index, true)));
        for (port, octet) in ports.chain(aliases) {
            let place = port_word(slot, port.protocol, port.number);
            let (bits, octets) = words.entry(place).or_insert((0, [0; 64]));
            *bits |= 1 << (port.number & 63);
            octets[usize::from(port.number & 63)] = octet;
        }
        for (place, held) in self.words_of_ports(slot)? {
            let wanted = words.get(&place).copied();
            if held == 0 && wanted.is_none() {
                continue;
            }
            let (bits, octets) = wanted.unwrap_or((0, [0; 64]));
            self.port_indices
                .set(place, octets, 0)
                .map_err(failed(map::PORT_INDICES, "written"))?;
            self.port_bits.set(place, bits, 0).map_err(failed(map::PORT_BITS, "written"))?;
        }
        Ok(())
    }

    /// Each word of a slot's bitmaps of ports, TCP's and UDP's, by its place.
    fn words_of_ports(
        &self,
        slot: u32,
    ) -> Result<impl Iterator<Item = (u32, u64)> + use<>, KernelError> {
        let first = port_word(slot, Protocol::Tcp, 0);
        let words = sys::array_words(self.port_words.as_fd(), first, 2 * PORT_WORDS)
            .map_err(|source| KernelError::System { what: "reading the table of ports", source })?;
        Ok((first..).zip(words))
    }

    /// The guarded ports, and their aliases.
    fn read_ports(&self, slot: u32) -> Result<(Indices, Indices), KernelError> {
        let (mut ports, mut aliases) = (Indices::new(), Indices::new());
        let words: BTreeMap<u32, u64> = self.words_of_ports(slot)?.collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for first in (0..=u16::MAX).step_by(64) {
                let place = port_word(slot, protocol, first);
                if words.get(&place).is_none_or(|word| *word == 0) {
                    continue;
                }
                let octets =
                    self.port_indices.get(&place, 0).map_err(failed(map::PORT_INDICES, "read"))?;
                for (number, octet) in (first..=first + 63).zip(octets) {
                    let kind = if octet & PORT_ALIAS != 0 { &mut aliases } else { &mut ports };
                    let port = GuardedPort { protocol, number };
                    kind.extend(port_index(octet).map(|index| (port, index)));
                }
            }
        }
        Ok((ports, aliases))
    }
}

const fn chunks_bytes(chunks: u64) -> u64 {
    chunks * PAGES_PER_CHUNK as u64 * size_of::<Page>() as u64
}

/// The chunks that a slot has: the first so many.
fn slot_chunks(sources: &MapData, slot: u32) -> Result<Vec<Chunk>, KernelError> {
    let mut chunks = Vec::new();
    for place in (slot * MAX_CHUNKS..).take(MAX_CHUNKS as usize) {
        let id = sys::map_get(sources.fd().as_fd(), place)
            .map_err(|source| KernelError::System { what: "reading the source table", source })?;
        let Some(id) = id else { break };
        chunks.push(chunk(MapData::from_id(id))?);
    }
    Ok(chunks)
}

fn chunk(map: Result<MapData, MapError>) -> Result<Chunk, KernelError> {
    map.and_then(|map| Map::Array(map).try_into()).map_err(failed(map::SOURCES, "opened"))
}

/// Makes these the entries of a slot.
fn replace<K: Pod + Eq + Hash, V: Pod>(
    entries: &mut HashMap<MapData, K, V>,
    name: &'static str,
    is_of_slot: impl Fn(&K) -> bool,
    wanted: collections::HashMap<K, V>,
) -> Result<(), KernelError> {
    let keys: Result<Vec<K>, MapError> = entries.keys().collect();
    let held = keys.map_err(failed(name, "read"))?.into_iter().filter(is_of_slot);
    for key in held.filter(|key| !wanted.contains_key(key)) {
        match entries.remove(&key) {
            Err(MapError::KeyNotFound) | Ok(()) => {}
            Err(error) => return Err(failed(name, "written")(error)),
        }
    }
    for (key, value) in wanted {
        entries.insert(key, value, 0).map_err(failed(name, "written"))?;
    }
    Ok(())
}

fn wait_for_packets() -> Result<(), KernelError> {
    sys::wait_for_running_programs()
        .map_err(|source| KernelError::System { what: "waiting for packets under way", source })
}

/// The tables that can be full: what each is for, its name in metrics, what a policy takes of it, and its room.
fn rooms(wanted: &Tables) -> [(&'static str, &'static str, usize, usize); 4] {
    [
        (
            "guarded ports",
            "ports",
            wanted.ports.len() + wanted.aliases.len(),
            MAX_GUARDED_PORTS as usize,
        ),
        ("combinations of rules", "combinations", wanted.ladders.len(), MAX_LADDERS as usize),
        (
            "local bridges and containers' interfaces",
            "inside-interfaces",
            wanted.inside.len(),
            MAX_INSIDE as usize,
        ),
        (
            "interfaces of rules",
            "via-interfaces",
            wanted.vias.len(),
            (MAX_VIA_INDICES / POLICY_SLOTS) as usize,
        ),
    ]
}

fn check_room(wanted: &Tables) -> Result<(), KernelError> {
    for (what, _, needed, room) in rooms(wanted) {
        if needed > room {
            return Err(KernelError::TooLarge { what, needed, room });
        }
    }
    Ok(())
}
