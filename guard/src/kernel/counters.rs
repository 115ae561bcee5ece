//! Reads what the programs count.

use aya::maps::{Map, MapData, PerCpuArray};
use guard_common::{
    abi::{Counter, EventCounter, Sampler, counter_index, map},
    verdict::{Hook, Reason, Verdict},
};

use super::{KernelError, pins::Pins, tables::open};
use crate::control::{CounterView, EventTotals};

/// The pinned counters.
pub struct Counters {
    packets: PerCpuArray<MapData, Counter>,
    events: PerCpuArray<MapData, u64>,
    samplers: PerCpuArray<MapData, Sampler>,
}

impl Counters {
    /// # Errors
    /// When a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let failed = |name| move |source| KernelError::Map { name, what: "opened", source };
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
                    let per_cpu =
                        self.packets.get(&counter_index(hook, verdict, reason), 0).map_err(
                            |source| KernelError::Map { name: map::COUNTERS, what: "read", source },
                        )?;
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

    /// # Errors
    /// When the map can't be read.
    pub fn events(&self) -> Result<EventTotals, KernelError> {
        let total = |counter: EventCounter| {
            let per_cpu = self.events.get(&(counter as u32), 0).map_err(|source| {
                KernelError::Map { name: map::EVENT_COUNTERS, what: "read", source }
            })?;
            Ok::<u64, KernelError>(per_cpu.iter().fold(0, |sum, part| sum.wrapping_add(*part)))
        };
        let mut passed_over = 0;
        for hook in Hook::ALL {
            let samplers = self
                .samplers
                .get(&(hook as u32), 0)
                .map_err(|source| KernelError::Map { name: map::SAMPLERS, what: "read", source })?;
            passed_over += samplers.iter().map(|sampler| sampler.packets).sum::<u64>();
        }
        Ok(EventTotals {
            unreported: total(EventCounter::Unreported)?,
            repeated: total(EventCounter::Repeated)?,
            passed_over,
            ring_full: total(EventCounter::RingFull)?,
            sinks: Vec::new(),
        })
    }
}
