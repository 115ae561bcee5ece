//! How tests pin a record's layout.

/// Asserts a record's size, its alignment and where each of its fields stands.
///
/// Every field must be named, and together they must fill the record: padding would carry bytes nobody set.
macro_rules! layout {
    ($record:ident, size $size:literal, align $align:literal, {
        $($field:ident: $offset:literal),+ $(,)?
    }) => {
        assert_eq!(size_of::<$record>(), $size, "size of {}", stringify!($record));
        assert_eq!(align_of::<$record>(), $align, "alignment of {}", stringify!($record));
        let mut filled = 0;
        $(
            let place = core::mem::offset_of!($record, $field);
            assert_eq!(place, $offset, "{}.{}", stringify!($record), stringify!($field));
            assert_eq!(place, filled, "padding before {}.{}", stringify!($record), stringify!($field));
            filled += $crate::abi::layout::size_of_field(|record: &$record| &record.$field);
        )+
        assert_eq!(filled, $size, "padding at the end of {}", stringify!($record));
        // Does not compile while a field is left out.
        let _ = |record: $record| {
            let $record { $($field: _),+ } = record;
        };
    };
}

pub(crate) use layout;

pub(crate) const fn size_of_field<Record, Field>(_: fn(&Record) -> &Field) -> usize {
    size_of::<Field>()
}
