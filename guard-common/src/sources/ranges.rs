//! What is said of every address, as ranges.

use std::vec::Vec;

use crate::{
    abi::SourceValue,
    packet::{AddressBytes, Family},
};

/// An address as a number.
pub trait Number: Copy + Ord + Into<u128> {
    const FIRST: Self;
    const LAST: Self;

    /// The one after it; `None` behind the last.
    fn next(self) -> Option<Self>;
}

impl Number for u32 {
    const FIRST: Self = 0;
    const LAST: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u128 {
    const FIRST: Self = 0;
    const LAST: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Where what is said changes, over all addresses of a family: each range begins with its address and ends before the
/// next one's. The first begins with the first address, and neighbours differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<N>(Vec<(N, SourceValue)>);

impl<N: Number> Default for Ranges<N> {
    fn default() -> Self {
        Self(Vec::from([(N::FIRST, SourceValue::default())]))
    }
}

impl<N: Number> Ranges<N> {
    #[must_use]
    pub fn as_slice(&self) -> &[(N, SourceValue)] {
        &self.0
    }

    /// What is said of an address.
    #[must_use]
    pub fn find(&self, address: N) -> SourceValue {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).map_or_else(SourceValue::default, |place| self.0[place].1)
    }

    /// From this address on it is this, whatever was said of what is behind it.
    fn from(&mut self, first: N, value: SourceValue) {
        if self.0.last().is_some_and(|(last, _)| *last == first) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, said)| *said != value) {
            self.0.push((first, value));
        }
    }
}

/// What is said of every address of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub v4: Ranges<u32>,
    pub v6: Ranges<u128>,
}

impl Sources {
    /// What is said of an address.
    #[must_use]
    pub fn find(&self, family: Family, address: &AddressBytes) -> SourceValue {
        match family {
            Family::V4 => self.v4.find(super::v4_number(address)),
            Family::V6 => self.v6.find(u128::from_be_bytes(*address)),
        }
    }
}

/// Makes ranges of prefixes that lie in each other or apart, as prefixes do: given in order, outer ones before what they
/// hold. What is said of a prefix holds where no prefix inside it says otherwise.
#[derive(Debug)]
pub struct Sweep<N> {
    ranges: Ranges<N>,
    /// The prefixes around the last one, and that itself: their last addresses and what is said of them.
    around: Vec<(N, SourceValue)>,
}

impl<N: Number> Default for Sweep<N> {
    fn default() -> Self {
        Self { ranges: Ranges::default(), around: Vec::new() }
    }
}

impl<N: Number> Sweep<N> {
    /// Adds a prefix by its first and its last address.
    pub fn add(&mut self, first: N, last: N, value: SourceValue) {
        while self.around.last().is_some_and(|(end, _)| *end < first) {
            self.leave();
        }
        self.ranges.from(first, value);
        self.around.push((last, value));
    }

    #[must_use]
    pub fn finish(mut self) -> Ranges<N> {
        while !self.around.is_empty() {
            self.leave();
        }
        self.ranges
    }

    fn leave(&mut self) {
        let Some((last, _)) = self.around.pop() else { return };
        if let Some(next) = last.next() {
            let value = self.around.last().map_or_else(SourceValue::default, |(_, value)| *value);
            self.ranges.from(next, value);
        }
    }
}
