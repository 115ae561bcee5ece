//! Lets aya copy the records to and from maps.

use super::{
    Budget, Counter, Event, Explained, FlowKey, Here, InsideKey, Ladder, Passed, PolicyHeader,
    Sampler, Step, Tally, TallyKey, ViaKey,
};

macro_rules! pod {
    ($($record:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, without padding (the sizes are asserted beside each record), and made of integers only, so
            // every bit pattern is a value.
            unsafe impl aya::Pod for $record {}
        )+
    };
}

pod!(
    Budget,
    Counter,
    Event,
    Explained,
    FlowKey,
    Here,
    InsideKey,
    Ladder,
    Passed,
    PolicyHeader,
    Sampler,
    Step,
    Tally,
    TallyKey,
    ViaKey,
);
