//! What holds when, over boot time.

use guard_common::abi::{Ladder, NO_END, Ruling, STEPS, Step};

/// Pieces of time from 0 on, in order: each holds until its own end, in nanoseconds of boot time, the last until
/// [`NO_END`]. Neighbours differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Timeline<T>(Vec<(u64, T)>);

impl<T: Copy + PartialEq> Timeline<T> {
    pub(super) fn always(what: T) -> Self {
        Self(vec![(NO_END, what)])
    }

    /// These pieces in their order, each until its end, and afterwards what held before. A piece that ends no later
    /// than the ones before it is not seen.
    pub(super) fn covered_by(&self, pieces: &[(u64, T)]) -> Self {
        let mut result = Self(Vec::with_capacity(pieces.len() + self.0.len()));
        for (until_ns, what) in pieces.iter().chain(&self.0) {
            result.push(*until_ns, *what);
        }
        result
    }

    /// What all of these say while they say the same, else `otherwise`.
    pub(super) fn agreed(all: &[Self], otherwise: T) -> Self {
        let mut ends: Vec<u64> =
            all.iter().flat_map(|timeline| timeline.0.iter().map(|(end, _)| *end)).collect();
        ends.sort_unstable();
        ends.dedup();
        let mut result = Self(Vec::with_capacity(ends.len()));
        for end in ends {
            let until_then = |timeline: &Self| {
                timeline.0.iter().find(|(until_ns, _)| end <= *until_ns).map(|(_, what)| *what)
            };
            let mut said = all.iter().filter_map(until_then);
            let first = said.next().unwrap_or(otherwise);
            result.push(end, if said.all(|other| other == first) { first } else { otherwise });
        }
        result
    }

    /// Whether it says this at some time.
    pub(super) fn has(&self, what: T) -> bool {
        self.0.iter().any(|(_, said)| *said == what)
    }

    /// Adds a piece that follows what is there, if it ends later.
    fn push(&mut self, until_ns: u64, what: T) {
        match self.0.last_mut() {
            Some(last) if until_ns <= last.0 => {}
            Some(last) if last.1 == what => last.0 = until_ns,
            None if until_ns == 0 => {}
            Some(_) | None => self.0.push((until_ns, what)),
        }
    }
}

impl<T: Copy> Timeline<Option<T>> {
    /// What this says where it says something, else what `below` says.
    pub(super) fn over<U: Copy + PartialEq>(
        &self,
        below: &Timeline<U>,
        converted: impl Fn(T) -> U,
    ) -> Timeline<U> {
        let mut result = Timeline(Vec::with_capacity(self.0.len() + below.0.len()));
        for (until_ns, what) in &self.0 {
            match what {
                Some(what) => result.push(*until_ns, converted(*what)),
                None => {
                    // Pieces that end before this one begins end no later than what is there.
                    for (below_until_ns, what) in &below.0 {
                        result.push(*below_until_ns.min(until_ns), *what);
                    }
                }
            }
        }
        result
    }
}

impl Timeline<Ruling> {
    /// The ladder that says the same, unless it has more pieces than a ladder has steps.
    pub(super) fn ladder(&self) -> Option<Ladder> {
        if self.0.len() > STEPS {
            return None;
        }
        // A step that ended at 0 never holds.
        let mut steps = [Step::new(Ruling::NoRule, 0); STEPS];
        for (step, (until_ns, ruling)) in steps.iter_mut().zip(&self.0) {
            *step = Step::new(*ruling, *until_ns);
        }
        Some(Ladder { steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_covers_is_seen_until_it_ends() {
        let base = Timeline::always('a');
        assert_eq!(base.covered_by(&[]), base);
        assert_eq!(base.covered_by(&[(0, 'b')]), base);
        assert_eq!(base.covered_by(&[(5, 'a')]), base);
        assert_eq!(base.covered_by(&[(5, 'b')]).0, [(5, 'b'), (NO_END, 'a')]);
        assert_eq!(base.covered_by(&[(5, 'b'), (3, 'c')]).0, [(5, 'b'), (NO_END, 'a')]);
        assert_eq!(base.covered_by(&[(5, 'b'), (9, 'a')]).0, [(5, 'b'), (NO_END, 'a')]);
        assert_eq!(base.covered_by(&[(NO_END, 'b')]).0, [(NO_END, 'b')]);
        let two = base.covered_by(&[(5, 'b'), (9, 'c')]);
        assert_eq!(two.covered_by(&[(7, 'd')]).0, [(7, 'd'), (9, 'c'), (NO_END, 'a')]);
        assert_eq!(two.covered_by(&[(5, 'd')]).0, [(5, 'd'), (9, 'c'), (NO_END, 'a')]);
    }

    #[test]
    fn agreement_ends_and_begins_with_the_pieces() {
        let a = Timeline::always('a');
        let b_until_5 = a.covered_by(&[(5, 'b')]);
        let c_from_9 = Timeline::always('c').covered_by(&[(9, 'a')]);
        assert_eq!(Timeline::agreed(std::slice::from_ref(&b_until_5), '?'), b_until_5);
        assert_eq!(Timeline::agreed(&[b_until_5.clone(), b_until_5.clone()], '?'), b_until_5);
        assert_eq!(
            Timeline::agreed(&[a.clone(), b_until_5.clone()], '?').0,
            [(5, '?'), (NO_END, 'a')]
        );
        let all = [a, b_until_5, c_from_9];
        assert_eq!(Timeline::agreed(&all, '?').0, [(5, '?'), (9, 'a'), (NO_END, '?')]);
        assert!(all[1].has('b') && !all[0].has('b'));
    }

    #[test]
    fn gaps_show_what_lies_below() {
        let below = Timeline::always('a').covered_by(&[(5, 'b'), (9, 'c')]);
        let gap = Timeline::always(None);
        assert_eq!(gap.over(&below, |what: char| what), below);
        let over = gap.covered_by(&[(3, Some('x'))]);
        assert_eq!(over.over(&below, |what| what).0, [(3, 'x'), (5, 'b'), (9, 'c'), (NO_END, 'a')]);
        let until_5 = gap.covered_by(&[(5, Some('x'))]);
        assert_eq!(until_5.over(&below, |what| what).0, [(5, 'x'), (9, 'c'), (NO_END, 'a')]);
        let gap_first = Timeline(vec![(7, None), (8, Some('x')), (NO_END, None)]);
        assert_eq!(
            gap_first.over(&below, |what| what).0,
            [(5, 'b'), (7, 'c'), (8, 'x'), (9, 'c'), (NO_END, 'a')]
        );
    }

    #[test]
    fn a_ladder_holds_four_pieces() {
        let one = Timeline::always(Ruling::Local);
        assert_eq!(one.ladder(), Some(Ladder::always(Ruling::Local)));
        let four = Timeline::always(Ruling::NoRule).covered_by(&[
            (1, Ruling::Allow),
            (2, Ruling::Deny),
            (3, Ruling::Allow),
        ]);
        let ladder = four.ladder().unwrap();
        let at = |now_ns| ladder.at(|| now_ns);
        assert_eq!([at(0), at(1), at(2)], [Ruling::Allow, Ruling::Deny, Ruling::Allow]);
        assert_eq!([at(3), at(NO_END - 1)], [Ruling::NoRule; 2]);
        assert!(four.covered_by(&[(0, Ruling::Deny)]).ladder().is_some());
        let five = Timeline::always(Ruling::NoRule).covered_by(&[
            (1, Ruling::Allow),
            (2, Ruling::Deny),
            (3, Ruling::Allow),
            (4, Ruling::Deny),
        ]);
        assert!(five.ladder().is_none());
    }
}
