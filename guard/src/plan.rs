//! From the tables a policy slot holds to the tables wanted: the fewest changes, in an order. Pure.
//!
//! A slot is changed only while it is not in force, so that no packet is judged by half a plan.

use std::collections::BTreeMap;

use guard_common::abi::{Ladder, PortValue, SourceValue};

use crate::{
    compile::{Prefix, Tables},
    rule::GuardedPort,
};

/// Changes, to be made in the order of the fields: what goes makes room first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub remove_sources: Vec<Prefix>,
    /// New entries, and entries whose value changes.
    pub put_sources: Vec<(Prefix, SourceValue)>,
    pub remove_ports: Vec<GuardedPort>,
    /// New ports and aliases, and those whose value changes.
    pub put_ports: Vec<(GuardedPort, PortValue)>,
    /// By the index of the interface.
    pub remove_vias: Vec<u32>,
    /// New interfaces, and interfaces whose column changes.
    pub put_vias: Vec<(u32, u32)>,
    /// By index within the slot. Ladders beyond the wanted ones stay as they are: no entry leads to them.
    pub put_ladders: Vec<(u32, Ladder)>,
    /// Interface indexes.
    pub remove_inside: Vec<u32>,
    pub put_inside: Vec<u32>,
}

impl Plan {
    /// Whether the slot holds what is wanted already.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The changes that turn `current` into `wanted`.
#[must_use]
pub fn plan(current: &Tables, wanted: &Tables) -> Plan {
    let (current_ports, wanted_ports) = (current.port_values(), wanted.port_values());
    Plan {
        remove_sources: gone(&current.sources, &wanted.sources),
        put_sources: new_or_changed(&current.sources, &wanted.sources),
        remove_ports: gone(&current_ports, &wanted_ports),
        put_ports: new_or_changed(&current_ports, &wanted_ports),
        remove_vias: gone(&current.vias, &wanted.vias),
        put_vias: new_or_changed(&current.vias, &wanted.vias),
        put_ladders: (0..)
            .zip(&wanted.ladders)
            .zip(current.ladders.iter().map(Some).chain(std::iter::repeat(None)))
            .filter(|((_, wanted), current)| Some(*wanted) != *current)
            .map(|((index, wanted), _)| (index, *wanted))
            .collect(),
        remove_inside: current.inside.difference(&wanted.inside).copied().collect(),
        put_inside: wanted.inside.difference(&current.inside).copied().collect(),
    }
}

fn gone<K: Ord + Copy, V>(current: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Vec<K> {
    current.keys().filter(|key| !wanted.contains_key(key)).copied().collect()
}

fn new_or_changed<K: Ord + Copy, V: PartialEq + Copy>(
    current: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Vec<(K, V)> {
    wanted
        .iter()
        .filter(|(key, value)| current.get(key) != Some(value))
        .map(|(key, value)| (*key, *value))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use guard_common::{
        abi::{PORT_ALIAS, Ruling},
        packet::{Family, Protocol},
    };
    use proptest::{
        collection::{btree_map, btree_set, vec},
        prelude::*,
        sample::select,
    };

    use super::*;

    fn any_tables() -> impl Strategy<Value = Tables> {
        let prefix = (select(vec![Family::V4, Family::V6]), 0..4u8, 0..3u8).prop_map(
            |(family, first, bits)| {
                let mut address = [0; 16];
                address[0] = first;
                Prefix { family, address, bits }
            },
        );
        let value = (0..3u32, 0..2u32).prop_map(|(row, flags)| SourceValue { row, flags });
        let port = (1..5u16).prop_map(|number| GuardedPort { protocol: Protocol::Tcp, number });
        // Beyond the ports, and among them.
        let alias = (3..7u16).prop_map(|number| GuardedPort { protocol: Protocol::Tcp, number });
        let ladder = select(vec![Ruling::NoRule, Ruling::Allow, Ruling::Deny]);
        (
            btree_map(port, 0..4u32, 0..4),
            btree_map(alias, 0..4u32, 0..3),
            btree_map(prefix, value, 0..8),
            vec(ladder.prop_map(Ladder::always), 0..8),
            (btree_set(1..6u32, 0..4), btree_map(2..6u32, 1..4u32, 0..4)),
        )
            .prop_map(|(ports, mut aliases, sources, ladders, (inside, vias))| {
                aliases.retain(|alias, _| !ports.contains_key(alias));
                Tables { ports, aliases, sources, ladders, inside, vias }
            })
    }

    /// Makes the changes one by one, as the kernel's tables would take them.
    fn apply(tables: &mut Tables, plan: &Plan) {
        for prefix in &plan.remove_sources {
            assert!(tables.sources.remove(prefix).is_some(), "there is nothing to remove");
        }
        for (prefix, value) in &plan.put_sources {
            assert_ne!(tables.sources.insert(*prefix, *value), Some(*value), "no change");
        }
        let mut ports = tables.port_values();
        for port in &plan.remove_ports {
            assert!(ports.remove(port).is_some(), "there is nothing to remove");
        }
        for (port, value) in &plan.put_ports {
            assert_ne!(ports.insert(*port, *value), Some(*value), "no change");
        }
        let indices = |flags| {
            let of_kind = ports.iter().filter(move |(_, value)| value.flags == flags);
            of_kind.map(|(port, value)| (*port, value.index)).collect()
        };
        (tables.ports, tables.aliases) = (indices(0), indices(PORT_ALIAS));
        for ifindex in &plan.remove_vias {
            assert!(tables.vias.remove(ifindex).is_some(), "there is nothing to remove");
        }
        for (ifindex, column) in &plan.put_vias {
            assert_ne!(tables.vias.insert(*ifindex, *column), Some(*column), "no change");
        }
        for (index, ladder) in &plan.put_ladders {
            let index = *index as usize;
            if tables.ladders.len() <= index {
                tables.ladders.resize(index + 1, Ladder::default());
            } else {
                assert_ne!(tables.ladders[index], *ladder, "no change");
            }
            tables.ladders[index] = *ladder;
        }
        for index in &plan.remove_inside {
            assert!(tables.inside.remove(index), "there is nothing to remove");
        }
        for index in &plan.put_inside {
            assert!(tables.inside.insert(*index), "no change");
        }
    }

    #[test]
    fn nothing_is_done_where_nothing_changes() {
        assert!(plan(&Tables::default(), &Tables::default()).is_empty());
    }

    proptest! {
        #[test]
        fn a_plan_leads_to_what_is_wanted_without_a_wasted_step(
            current in any_tables(),
            wanted in any_tables(),
        ) {
            let changes = plan(&current, &wanted);
            let removed: BTreeSet<_> = changes.remove_sources.iter().collect();
            prop_assert!(changes.put_sources.iter().all(|(prefix, _)| !removed.contains(prefix)));
            let mut tables = current;
            apply(&mut tables, &changes);
            tables.ladders.truncate(wanted.ladders.len());
            prop_assert_eq!(&tables, &wanted);
            prop_assert!(plan(&tables, &wanted).is_empty());
        }
    }
}
