//! What was measured, and what is said of it: medians, ranges, and comparisons within a round.

use serde::Serialize;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Live,
    Testrun,
    Load,
    Bulk,
    Latency,
    Daemon,
    Memory,
}

impl Part {
    /// In the order in which they run.
    pub const ALL: [Self; 7] = [
        Self::Live,
        Self::Testrun,
        Self::Load,
        Self::Bulk,
        Self::Latency,
        Self::Daemon,
        Self::Memory,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Testrun => "testrun",
            Self::Load => "load",
            Self::Bulk => "bulk",
            Self::Latency => "latency",
            Self::Daemon => "daemon",
            Self::Memory => "memory",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// How two cases are compared, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Ratio,
    Difference,
}

impl Comparison {
    fn of(self, this: f64, that: f64) -> f64 {
        match self {
            Self::Ratio => this / that,
            Self::Difference => this - that,
        }
    }
}

/// What a case is compared with: the name of another, and what that came to in the same rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    pub name: String,
    pub comparison: Comparison,
    pub values: Vec<f64>,
}

/// A case, with a value for each round.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub part: Part,
    /// What is done to it: the table that it stands in.
    pub group: String,
    pub case: String,
    pub unit: &'static str,
    pub values: Vec<f64>,
    pub base: Option<Base>,
}

impl Measured {
    #[must_use]
    pub fn new(part: Part, group: &str, case: &str, unit: &'static str, values: Vec<f64>) -> Self {
        Self { part, group: group.to_owned(), case: case.to_owned(), unit, values, base: None }
    }

    #[must_use]
    pub fn against(self, name: &str, comparison: Comparison, values: Vec<f64>) -> Self {
        Self { base: Some(Base { name: name.to_owned(), comparison, values }), ..self }
    }

    #[must_use]
    pub fn spread(&self) -> Spread {
        Spread::of(&self.values)
    }

    /// What it comes to beside its base.
    #[must_use]
    pub fn compared(&self) -> Option<Spread> {
        let base = self.base.as_ref()?;
        Some(Spread::of(&compare(&self.values, &base.values, base.comparison)))
    }
}

/// Round by round.
#[must_use]
pub fn compare(these: &[f64], those: &[f64], comparison: Comparison) -> Vec<f64> {
    these.iter().zip(those).map(|(this, that)| comparison.of(*this, *that)).collect()
}

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Nothing measured is no number.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            low: quantile(&sorted, 0.0),
            high: quantile(&sorted, 1.0),
        }
    }
}

/// Of values in order, with a straight line between neighbours.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let below = place.floor();
    let (left, right) = (sorted[below as usize], sorted[(below as usize + 1).min(last)]);
    left + (right - left) * (place - below)
}

/// A bare `XDP_DROP` does the same work in every round: what it varies by is the machine's doing.
pub const MOST_NOISE: f64 = 2.5;

/// How much slower the slowest round was than the fastest.
#[must_use]
pub fn noise(values: &[f64]) -> f64 {
    let spread = Spread::of(values);
    spread.high / spread.low
}

/// The result of a whole run.
#[derive(Debug, Default)]
pub struct Results {
    pub measured: Vec<Measured>,
    /// What was not measured, and why.
    pub missing: Vec<String>,
    /// Why the figures are not to be relied on.
    pub noisy: Vec<String>,
}

impl Results {
    #[must_use]
    pub fn find(&self, part: Part, group: &str, case: &str) -> Option<&Measured> {
        self.measured
            .iter()
            .find(|found| found.part == part && found.group == group && found.case == case)
    }

    /// One line of JSON for each value.
    #[must_use]
    pub fn lines(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            part: Part,
            group: &'a str,
            case: &'a str,
            round: usize,
            unit: &'a str,
            value: f64,
        }
        let mut lines = String::new();
        for Measured { part, group, case, unit, values, .. } in &self.measured {
            for (round, value) in values.iter().enumerate() {
                let line = Line { part: *part, group, case, round, unit, value: *value };
                lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
                lines.push('\n');
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_stands_in_the_middle() {
        for (values, [median, low, high]) in [
            (vec![3.0, 1.0, 2.0], [2.0, 1.0, 3.0]),
            (vec![4.0, 1.0, 2.0, 3.0], [2.5, 1.0, 4.0]),
            (vec![7.0], [7.0; 3]),
        ] {
            assert_eq!(Spread::of(&values), Spread { median, low, high });
        }
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let values = [10.0, 20.0, 30.0, 40.0, 50.0];
        for (share, value) in [(0.0, 10.0), (0.25, 20.0), (0.9, 46.0), (1.0, 50.0)] {
            assert!((quantile(&values, share) - value).abs() < 1e-9, "{share}");
        }
    }

    #[test]
    fn cases_are_compared_round_by_round() {
        let case = Measured::new(Part::Live, "flood", "guard", "ns", vec![200.0, 900.0, 330.0]);
        let base = vec![100.0, 300.0, 110.0];
        let ratio = case.clone().against("bare", Comparison::Ratio, base.clone());
        assert_eq!(ratio.compared(), Some(Spread { median: 3.0, low: 2.0, high: 3.0 }));
        let over = case.against("bare", Comparison::Difference, base);
        assert_eq!(over.compared(), Some(Spread { median: 220.0, low: 100.0, high: 600.0 }));
    }

    #[test]
    fn a_line_is_written_for_each_value() {
        let measured = vec![Measured::new(Part::Load, "files", "nft", "ms", vec![1.5, 2.0])];
        let results = Results { measured, ..Results::default() };
        let lines = results.lines();
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["value"], 2.0);
        assert_eq!(lines[1]["part"], "load");
        assert_eq!(lines[1]["round"], 1);
    }

    #[test]
    fn every_part_is_known_by_its_name() {
        for part in Part::ALL {
            assert_eq!(Part::named(part.name()), Some(part));
        }
        assert_eq!(Part::named("everything"), None);
    }
}
