//! The ring of events.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{Map, MapData, RingBuf};
use guard_common::abi::map;

use super::{KernelError, pins::Pins, tables::open};

/// The pinned event ring. Only one process may read it: what one has read, another does not see.
pub struct EventRing(RingBuf<MapData>);

impl EventRing {
    /// # Errors
    /// When the pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let ring = Map::RingBuf(open(pins, map::EVENTS)?);
        let ring = ring.try_into().map_err(|source| KernelError::Map {
            name: map::EVENTS,
            what: "opened",
            source,
        })?;
        Ok(Self(ring))
    }

    /// Hands every event that is there to `take`.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        while let Some(event) = self.0.next() {
            take(&event);
        }
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
