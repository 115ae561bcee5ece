//! Rules that name interfaces: which column of a row is read for a packet that came by one.

use std::collections::{BTreeMap, BTreeSet};

use guard_common::abi::MAX_VIAS;

use super::{CompileError, Via};
use crate::rule::InterfaceName;

/// A set of columns: bit N for column N.
pub(super) type ColumnSet = u16;

const _: () = assert!(MAX_VIAS < ColumnSet::BITS, "a column is a bit of ColumnSet");

/// The columns of a row. Column 0 is for interfaces that no rule names; each other one is for the interfaces that the same names
/// stand for (a port of a bridge may be named itself, and by its bridge).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    by_name: BTreeMap<InterfaceName, ColumnSet>,
    by_index: BTreeMap<u32, u32>,
    count: usize,
}

impl Columns {
    /// # Errors
    /// When there are more than a policy can hold.
    pub(super) fn new(vias: &[Via]) -> Result<Self, CompileError> {
        let mut names_of: BTreeMap<u32, BTreeSet<&InterfaceName>> = BTreeMap::new();
        for via in vias {
            for ifindex in &via.indices {
                names_of.entry(*ifindex).or_default().insert(&via.name);
            }
        }
        let alike: BTreeSet<&BTreeSet<&InterfaceName>> = names_of.values().collect();
        let count = alike.len().max(vias.len());
        if count > MAX_VIAS as usize {
            return Err(CompileError::TooManyInterfaces { count });
        }
        let numbers: BTreeMap<_, u32> = alike.iter().copied().zip(1..).collect();
        let of_name = |name| {
            numbers
                .iter()
                .filter(|(names, _)| names.contains(name))
                .fold(0, |set, (_, column)| set | 1 << column)
        };
        Ok(Self {
            by_name: vias.iter().map(|via| (via.name.clone(), of_name(&via.name))).collect(),
            by_index: names_of.iter().map(|(ifindex, names)| (*ifindex, numbers[names])).collect(),
            count: 1 + alike.len(),
        })
    }

    /// Columns without the sockets' own.
    pub(super) fn of_interfaces(&self) -> usize {
        self.count
    }

    /// With the sockets' own, which stands last; there is none where no rule names an interface.
    pub(super) fn with_sockets(&self) -> usize {
        if self.count == 1 { 1 } else { self.count + 1 }
    }

    /// By the index of an interface, from 1 on.
    pub(super) fn by_index(&self) -> &BTreeMap<u32, u32> {
        &self.by_index
    }

    /// The columns that a rule holds in: all of them where it names no interface.
    pub(super) fn of(&self, via: Option<&InterfaceName>) -> ColumnSet {
        match via {
            None => ColumnSet::MAX,
            Some(name) => self.by_name.get(name).copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(name: &str, indices: &[u32]) -> Via {
        Via { name: name.parse().unwrap(), indices: indices.to_vec() }
    }

    fn of(columns: &Columns, name: &str) -> ColumnSet {
        columns.of(Some(&name.parse().unwrap()))
    }

    #[test]
    fn without_interfaces_a_row_is_as_long_as_there_are_ports() {
        let columns = Columns::new(&[]).unwrap();
        assert_eq!((columns.of_interfaces(), columns.with_sockets()), (1, 1));
        assert_eq!(columns.of(None) & 1, 1);
        // One that is not there costs nothing, and holds nowhere.
        let columns = Columns::new(&[via("wg0", &[])]).unwrap();
        assert_eq!((columns.of_interfaces(), columns.with_sockets()), (1, 1));
        assert_eq!(of(&columns, "wg0"), 0);
    }

    #[test]
    fn an_interface_that_two_names_stand_for_has_a_column_of_its_own() {
        let columns =
            Columns::new(&[via("br0", &[2, 3, 4]), via("eth0", &[2]), via("wg0", &[9])]).unwrap();
        assert_eq!((columns.of_interfaces(), columns.with_sockets()), (4, 5));
        let column = |ifindex| columns.by_index()[&ifindex];
        assert_eq!(column(3), column(4));
        assert_eq!(BTreeSet::from([column(2), column(3), column(9)]), BTreeSet::from([1, 2, 3]));
        assert_eq!(of(&columns, "br0"), 1 << column(2) | 1 << column(3));
        assert_eq!(of(&columns, "eth0"), 1 << column(2));
        assert_eq!(of(&columns, "wg0"), 1 << column(9));
        assert_eq!(of(&columns, "eth9"), 0);
    }

    #[test]
    fn more_than_a_policy_holds_are_refused() {
        let vias = |count| -> Vec<Via> {
            (0..count).map(|number| via(&format!("eth{number}"), &[number + 2])).collect()
        };
        assert_eq!(Columns::new(&vias(MAX_VIAS)).unwrap().of_interfaces(), 9);
        let error = Columns::new(&vias(MAX_VIAS + 1)).unwrap_err();
        assert_eq!(error, CompileError::TooManyInterfaces { count: 9 });
        assert!(error.to_string().contains("name 9 interfaces"), "{error}");
    }
}
