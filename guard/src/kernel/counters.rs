//! Reads what the programs count.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use guard_common::{
    abi::{Counter, EventCounter, MAX_TALLIES, Sampler, Tally, TallyKey, counter_index, map},
    verdict::{Hook, Reason, Verdict},
};

use super::{KernelError, pins::Pins, probe, sys, tables::open};
use crate::{
    control::{CounterView, EventTotals},
    rates::{Judged, Reading},
};

/// How long after its last attempt a source is one of those in [`EventTotals::sources`].
const RECENT: Duration = Duration::from_mins(5);

/// The pinned counters.
pub struct Counters {
    packets: PerCpuArray<MapData, Counter>,
    events: PerCpuArray<MapData, u64>,
    samplers: PerCpuArray<MapData, Sampler>,
    tallies: OwnedFd,
}

impl Counters {
    /// # Errors
    /// When a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let failed = |name| move |source| KernelError::Map { name, what: "opened", source };
        // Its keys and values are as large as these: the kernel is handed room for them.
        let tallies = Map::LruHashMap(open(pins, map::TALLIES)?);
        HashMap::<_, TallyKey, Tally>::try_from(&tallies).map_err(failed(map::TALLIES))?;
        Ok(Self {
            packets: Map::PerCpuArray(open(pins, map::COUNTERS)?)
                .try_into()
                .map_err(failed(map::COUNTERS))?,
            events: Map::PerCpuArray(open(pins, map::EVENT_COUNTERS)?)
                .try_into()
                .map_err(failed(map::EVENT_COUNTERS))?,
            samplers: Map::PerCpuArray(open(pins, map::SAMPLERS)?)
                .try_into()
                .map_err(failed(map::SAMPLERS))?,
            tallies: sys::pinned(&pins.map(map::TALLIES)).map_err(|source| {
                KernelError::System { what: "opening the tallies of sources", source }
            })?,
        })
    }

    /// Every combination of hook, verdict and reason that has been seen.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn totals(&self) -> Result<Vec<CounterView>, KernelError> {
        let mut totals = Vec::new();
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let per_cpu = self.counted(hook, verdict, reason)?;
                    let packets = per_cpu.iter().map(|counter| counter.packets).sum();
                    if packets > 0 {
                        totals.push(CounterView {
                            hook: hook.name().to_owned(),
                            verdict: verdict.name().to_owned(),
                            reason: reason.name().to_owned(),
                            packets,
                            bytes: per_cpu.iter().map(|counter| counter.bytes).sum(),
                        });
                    }
                }
            }
        }
        Ok(totals)
    }

    /// What rates are made of: a fraction of a millisecond.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn reading(&self) -> Result<Reading, KernelError> {
        let at_ns = probe::boot_ns();
        let mut judged = Vec::new();
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                let mut packets = 0;
                for reason in Reason::ALL {
                    let per_cpu = self.counted(hook, verdict, reason)?;
                    packets += per_cpu.iter().map(|counter| counter.packets).sum::<u64>();
                }
                judged.push(Judged { hook, verdict, packets });
            }
        }
        Ok(Reading { at_ns, judged, repeated: self.event_total(EventCounter::Repeated)? })
    }

    fn counted(
        &self,
        hook: Hook,
        verdict: Verdict,
        reason: Reason,
    ) -> Result<PerCpuValues<Counter>, KernelError> {
        self.packets
            .get(&counter_index(hook, verdict, reason), 0)
            .map_err(|source| KernelError::Map { name: map::COUNTERS, what: "read", source })
    }

    fn event_total(&self, counter: EventCounter) -> Result<u64, KernelError> {
        let per_cpu = self.events.get(&(counter as u32), 0).map_err(|source| KernelError::Map {
            name: map::EVENT_COUNTERS,
            what: "read",
            source,
        })?;
        let sum = per_cpu.iter().fold(0_u64, |sum, part| sum.wrapping_add(*part));
        // Two CPUs may report the same packets at once, which the next event makes good: below zero until then.
        Ok(sum.cast_signed().max(0).cast_unsigned())
    }

    /// # Errors
    /// When the map can't be read.
    pub fn events(&self) -> Result<EventTotals, KernelError> {
        let mut passed_over = 0;
        for hook in Hook::ALL {
            let samplers = self
                .samplers
                .get(&(hook as u32), 0)
                .map_err(|source| KernelError::Map { name: map::SAMPLERS, what: "read", source })?;
            passed_over += samplers.iter().map(|sampler| sampler.packets).sum::<u64>();
        }
        Ok(EventTotals {
            unreported: self.event_total(EventCounter::Unreported)?,
            repeated: self.event_total(EventCounter::Repeated)?,
            passed_over,
            ring_full: self.event_total(EventCounter::RingFull)?,
            sinks: Vec::new(),
            sources: self.sources()?,
        })
    }

    /// Sources with a recent attempt. They are counted one by one: some milliseconds where all tallies are taken.
    fn sources(&self) -> Result<u64, KernelError> {
        let oldest_ns = probe::boot_ns().saturating_sub(RECENT.as_nanos() as u64);
        let mut sources = 0;
        sys::hash_values::<TallyKey, Tally>(self.tallies.as_fd(), MAX_TALLIES, |tally| {
            sources += u64::from(tally.last_ns >= oldest_ns);
        })
        .map_err(|source| KernelError::System { what: "counting the sources", source })?;
        Ok(sources)
    }
}
