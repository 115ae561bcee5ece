//! Values of the policy's tables.

/// The most guarded ports one policy can hold: each costs a ladder in every distinct row.
pub const MAX_GUARDED_PORTS: u32 = 64;

/// Ladders a slot holds: distinct rows times guarded ports.
pub const MAX_LADDERS: u32 = 16_384;

/// Entries of `SOURCES` over both slots.
pub const MAX_SOURCES: u32 = 2_097_152;

/// An end that never comes, in nanoseconds of boot time.
pub const NO_END: u64 = u64::MAX;

/// Packets that are only forwarded are judged too.
pub const FLAG_FORWARDED: u32 = 1;
/// The backstop is in force: the NIC's hooks leave to it what they can't decide.
pub const FLAG_BACKSTOP: u32 = 1 << 1;
/// Some TCP port is guarded.
pub const FLAG_GUARDS_TCP: u32 = 1 << 2;
/// Some UDP port is guarded.
pub const FLAG_GUARDS_UDP: u32 = 1 << 3;

/// What holds for a whole policy. 56 bytes. Generation 0 means "not configured".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyHeader {
    /// Counts the policies put in force, from 1.
    pub generation: u64,
    /// Until when packets are only counted, in nanoseconds of boot time: 0 is enforce, [`NO_END`] observe.
    pub observe_until_ns: u64,
    /// Which guard this is: a number made from its pin directory, so that its programs can be told from
    /// another instance's when a pin was lost.
    pub instance: u64,
    /// When it was put in force, in nanoseconds of boot time.
    pub since_ns: u64,
    /// `FLAG_*`.
    pub flags: u32,
    /// Ladders in a row.
    pub port_count: u32,
    pub abi_version: u32,
    /// Rules that were compiled, for `status`.
    pub rule_count: u32,
    pub reserved: u64,
}

const _: () = assert!(size_of::<PolicyHeader>() == 56);

impl PolicyHeader {
    #[inline]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The place of a guarded port in a row of ladders.
pub type PortIndex = u32;

/// Value of `PORTS`. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortValue {
    pub index: PortIndex,
    pub reserved: u32,
}

const _: () = assert!(size_of::<PortValue>() == 8);

/// The address is this host's own, or in a subnet of one of its local bridges.
pub const SOURCE_LOCAL: u32 = 1;

/// Value of `SOURCES`: all that the policy says of the addresses for which this entry is the most specific. 8 bytes.
///
/// The default (row 0, not local) is what an address without an entry has; row 0 holds "no rule" for every port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceValue {
    /// Which row of ladders.
    pub row: u32,
    /// `SOURCE_*`.
    pub flags: u32,
}

const _: () = assert!(size_of::<SourceValue>() == 8);

impl SourceValue {
    #[inline]
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.flags & SOURCE_LOCAL != 0
    }
}

/// What the rules say of a source at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Ruling {
    /// No rule, and not local: dropped.
    #[default]
    NoRule = 0,
    /// A rule allows it.
    Allow = 1,
    /// A rule denies it.
    Deny = 2,
    /// No rule; it is this machine's own.
    Local = 3,
}

impl Ruling {
    /// A number no writer of this layout stores is read as "no rule": closed.
    #[inline]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Allow,
            2 => Self::Deny,
            3 => Self::Local,
            _ => Self::NoRule,
        }
    }
}

/// How many verdicts in time one source can have at one port: now, and after each of three ends.
pub const STEPS: usize = 4;

/// One ruling and how long it holds. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// Boot time in nanoseconds at which it no longer holds; [`NO_END`] for the last.
    pub until_ns: u64,
    ruling: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Step>() == 16);

impl Step {
    #[must_use]
    pub const fn new(ruling: Ruling, until_ns: u64) -> Self {
        Self {
            until_ns,
            ruling: ruling as u32,
            reserved: 0,
        }
    }

    #[inline]
    #[must_use]
    pub const fn ruling(&self) -> Ruling {
        Ruling::from_number(self.ruling)
    }
}

/// Value of `LADDERS`: the rulings of one source at one port, in the order in which time uncovers them. 64 bytes.
///
/// After the last end nothing stands: no rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ladder {
    pub steps: [Step; STEPS],
}

const _: () = assert!(size_of::<Ladder>() == 64);

impl Ladder {
    /// A ladder with one ruling for ever.
    #[must_use]
    pub const fn always(ruling: Ruling) -> Self {
        let never = Step::new(Ruling::NoRule, 0);
        Self {
            steps: [Step::new(ruling, NO_END), never, never, never],
        }
    }

    /// What holds at `now_ns`, which is asked for only where something ends.
    #[inline]
    #[must_use]
    pub fn at(&self, now_ns: impl FnOnce() -> u64) -> Ruling {
        if self.steps[0].until_ns == NO_END {
            return self.steps[0].ruling();
        }
        let now_ns = now_ns();
        for step in &self.steps {
            if now_ns < step.until_ns {
                return step.ruling();
            }
        }
        Ruling::NoRule
    }
}
