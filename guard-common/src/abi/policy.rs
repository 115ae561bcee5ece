//! Values of the policy's tables.

/// The most guarded ports one policy can hold: each costs a ladder in every distinct row.
pub const MAX_GUARDED_PORTS: u32 = 64;

/// Ladders a slot holds: distinct rows times guarded ports.
pub const MAX_LADDERS: u32 = 16_384;

/// The most interfaces that the rules of one policy can name: each costs a ladder for every guarded port in every
/// distinct row.
pub const MAX_VIAS: u32 = 8;

/// Entries of `VIAS` over both slots: a bridge or bond that a rule names counts with each of its outside ports.
pub const MAX_VIA_INDICES: u32 = 1024;

/// Entries of `INSIDE` a slot holds.
pub const MAX_INSIDE: u32 = 8_192;

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
/// Dropped TCP packets are answered with a reset, where the NIC's hooks can.
pub const FLAG_REJECT: u32 = 1 << 4;

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
    /// Guarded ports. A row holds `columns` ladders for each.
    pub port_count: u32,
    pub abi_version: u32,
    /// Rules that were compiled, for `status`.
    pub rule_count: u32,
    /// 1 where no rule names an interface. Else the first is for interfaces that no rule names, the last for sockets,
    /// and each between for the interfaces that `VIAS` gives it.
    pub columns: u32,
    pub reserved: [u32; RESERVED_WORDS],
}

const RESERVED_WORDS: usize = if cfg!(feature = "next-layout") { 3 } else { 1 };

const _: () = assert!(size_of::<PolicyHeader>() == 52 + 4 * RESERVED_WORDS);
// Every layout begins like this, so that each guard knows its own programs whichever version has loaded them.
const _: () = assert!(PolicyHeader::INSTANCE_AT == 16);

impl PolicyHeader {
    /// Where `instance` stands, in bytes.
    pub const INSTANCE_AT: usize = core::mem::offset_of!(Self, instance);

    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The place of a guarded port among all of them.
pub type PortIndex = u32;

/// In an octet of `PORT_INDICES`: not guarded by itself, a container engine's forwarder leads from it to the guarded port with
/// the same index.
pub const PORT_ALIAS: u8 = 1 << 7;

/// Key of `VIAS`. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViaKey {
    pub slot: u32,
    /// Of an interface on which a NIC's hook judges.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<ViaKey>() == 8);

/// The address is this host's own, or in a subnet of one of its local bridges.
pub const SOURCE_LOCAL: u16 = 1;
/// At some port it depends on the interface that a packet came by: a NIC's hook that lets one in vouches for its flow.
pub const SOURCE_BY_INTERFACE: u16 = 1 << 1;
/// This host's own address, and packets from one such to another take loopback only.
pub const SOURCE_OWN: u16 = 1 << 2;

/// Rows that a slot's ladders may have.
pub const MAX_ROWS: u32 = 1 << (u16::BITS - SourceValue::FLAG_BITS);

/// An answer of the source table: all that the policy says of an address. 2 bytes, the row above its flags.
///
/// The default (row 0, not local) is what an address has that no prefix covers; row 0 holds "no rule" for every port.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceValue(u16);

impl SourceValue {
    const FLAG_BITS: u32 = 3;

    /// A row below [`MAX_ROWS`], and `SOURCE_*`.
    #[must_use]
    pub const fn new(row: u16, flags: u16) -> Self {
        Self(row << Self::FLAG_BITS | flags)
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Which row of ladders.
    #[inline(always)]
    #[must_use]
    pub const fn row(self) -> u32 {
        (self.0 >> Self::FLAG_BITS) as u32
    }

    /// Whether it is row 0, which holds "no rule" for every port.
    #[inline(always)]
    #[must_use]
    pub const fn has_no_rule(self) -> bool {
        self.row() == 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 & SOURCE_LOCAL != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_by_interface(self) -> bool {
        self.0 & SOURCE_BY_INTERFACE != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_own(self) -> bool {
        self.0 & SOURCE_OWN != 0
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
    /// At a socket, where nothing says by which interface a packet came: what a NIC's hook has vouched for is allowed,
    /// for anything else there is no rule.
    Vouched = 4,
}

impl Ruling {
    /// A number no writer of this layout stores is read as "no rule": closed.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Allow,
            2 => Self::Deny,
            3 => Self::Local,
            4 => Self::Vouched,
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
        Self { until_ns, ruling: ruling as u32, reserved: 0 }
    }

    #[inline(always)]
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
        Self { steps: [Step::new(ruling, NO_END), never, never, never] }
    }

    /// What holds at `now_ns`, which is asked for only where something ends.
    #[inline(always)]
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi::layout::layout;

    #[test]
    fn layout_is_pinned() {
        layout!(PolicyHeader, size 56, align 8, {
            generation: 0, observe_until_ns: 8, instance: 16, since_ns: 24, flags: 32,
            port_count: 36, abi_version: 40, rule_count: 44, columns: 48, reserved: 52,
        });
        layout!(ViaKey, size 8, align 4, { slot: 0, ifindex: 4 });
        layout!(Step, size 16, align 8, { until_ns: 0, ruling: 8, reserved: 12 });
        layout!(Ladder, size 64, align 8, { steps: 0 });
    }

    #[test]
    fn numbers_are_pinned() {
        assert_eq!([FLAG_FORWARDED, FLAG_BACKSTOP, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP], [1, 2, 4, 8]);
        assert_eq!(FLAG_REJECT, 16);
        assert_eq!([SOURCE_LOCAL, SOURCE_BY_INTERFACE, SOURCE_OWN], [1, 2, 4]);
        assert_eq!((PORT_ALIAS, MAX_ROWS), (128, 8192));
        assert!(MAX_GUARDED_PORTS < u32::from(PORT_ALIAS));
        let rulings = [Ruling::NoRule, Ruling::Allow, Ruling::Deny, Ruling::Local, Ruling::Vouched];
        assert_eq!(rulings.map(|ruling| ruling as u32), [0, 1, 2, 3, 4]);
        for ruling in rulings {
            assert_eq!(Ruling::from_number(ruling as u32), ruling);
        }
    }

    #[test]
    fn a_value_holds_its_row_and_flags() {
        for row in [0, 1, 4711, 8191] {
            for flags in 0..8 {
                let value = SourceValue::new(row, flags);
                assert_eq!(value.row(), u32::from(row));
                assert_eq!(value.is_local(), flags & SOURCE_LOCAL != 0);
                assert_eq!(value.is_by_interface(), flags & SOURCE_BY_INTERFACE != 0);
                assert_eq!(value.is_own(), flags & SOURCE_OWN != 0);
                assert_eq!(SourceValue::from_number(value.number()), value);
            }
        }
    }

    #[test]
    fn unknown_rulings_are_closed() {
        for number in [5, 6, 255, 256, u32::MAX] {
            assert_eq!(Ruling::from_number(number), Ruling::NoRule);
        }
    }

    #[test]
    fn zeros_mean_nothing_is_configured_or_allowed() {
        let header = PolicyHeader::default();
        assert_eq!(header.generation, 0);
        for flag in [FLAG_FORWARDED, FLAG_BACKSTOP, FLAG_GUARDS_TCP, FLAG_GUARDS_UDP] {
            assert!(!header.has(flag));
        }
        assert_eq!(SourceValue::default(), SourceValue::new(0, 0));
        assert_eq!(Ladder::default().at(|| 0), Ruling::NoRule);
        assert_eq!(Ladder::default().at(|| 1), Ruling::NoRule);
    }

    #[test]
    fn a_header_has_the_flags_it_was_given() {
        let header =
            PolicyHeader { flags: FLAG_BACKSTOP | FLAG_GUARDS_UDP, ..PolicyHeader::default() };
        assert!(header.has(FLAG_BACKSTOP) && header.has(FLAG_GUARDS_UDP));
        assert!(!header.has(FLAG_FORWARDED) && !header.has(FLAG_GUARDS_TCP));
    }

    #[test]
    fn a_ladder_without_ends_never_asks_for_the_time() {
        for ruling in [Ruling::NoRule, Ruling::Allow, Ruling::Deny, Ruling::Local, Ruling::Vouched]
        {
            assert_eq!(Ladder::always(ruling).at(|| unreachable!()), ruling);
        }
    }

    #[test]
    fn a_step_holds_until_its_end_and_not_at_it() {
        let ladder = Ladder {
            steps: [
                Step::new(Ruling::Allow, 100),
                Step::new(Ruling::Deny, 200),
                Step::new(Ruling::Local, 300),
                Step::new(Ruling::NoRule, NO_END),
            ],
        };
        for (now_ns, ruling) in [
            (0, Ruling::Allow),
            (99, Ruling::Allow),
            (100, Ruling::Deny),
            (199, Ruling::Deny),
            (200, Ruling::Local),
            (299, Ruling::Local),
            (300, Ruling::NoRule),
            (NO_END - 1, Ruling::NoRule),
        ] {
            assert_eq!(ladder.at(|| now_ns), ruling, "at {now_ns}");
        }
    }

    #[test]
    fn after_the_last_end_there_is_no_rule() {
        let mut ladder = Ladder::default();
        ladder.steps[0] = Step::new(Ruling::Allow, 100);
        assert_eq!(ladder.at(|| 99), Ruling::Allow);
        assert_eq!(ladder.at(|| 100), Ruling::NoRule);
        ladder.steps = [Step::new(Ruling::Allow, 100); STEPS];
        assert_eq!(ladder.at(|| 100), Ruling::NoRule);
    }

    proptest! {
        /// Ends in ascending order: what holds is the first step whose end is still to come.
        #[test]
        fn a_ladder_is_read_in_the_order_of_its_ends(
            rulings in proptest::array::uniform4(0_u32..5),
            mut ends in proptest::array::uniform4(0_u64..100),
            last_is_for_ever: bool,
            now_ns in 0_u64..120,
        ) {
            ends.sort_unstable();
            if last_is_for_ever {
                ends[3] = NO_END;
            }
            let mut ladder = Ladder::default();
            for ((step, ruling), end) in ladder.steps.iter_mut().zip(rulings).zip(ends) {
                *step = Step::new(Ruling::from_number(ruling), end);
            }
            let ended = ends.iter().filter(|end| **end <= now_ns).count();
            let expected = rulings.get(ended).map_or(Ruling::NoRule, |n| Ruling::from_number(*n));
            prop_assert_eq!(ladder.at(|| now_ns), expected);
        }
    }
}
