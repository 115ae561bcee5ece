//! The plot of the documentation: what a packet of a flood costs, for each filter.

use std::fmt::Write as _;

use super::{
    figures::{Measured, Part, Results},
    live::{MANY, ONE, Traffic},
};

const WIDTH: f64 = 900.0;
const ROW: f64 = 20.0;
/// Where the names end, and the axis begins.
const LEFT: f64 = 270.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 40.0;

/// Both can be told apart without colours by their shape.
const SERIES: [(Traffic, &str, Mark); 2] =
    [(ONE, "#0072b2", Mark::Circle), (MANY, "#d55e00", Mark::Square)];

#[derive(Clone, Copy)]
enum Mark {
    Circle,
    Square,
}

/// Medians with their ranges on a logarithmic axis, in the order of the tables.
#[must_use]
pub fn svg(results: &Results) -> String {
    let floods: Vec<&Measured> = results.measured.iter().filter(|m| m.part == Part::Live).collect();
    let mut names: Vec<&str> = Vec::new();
    for (traffic, ..) in SERIES {
        for flood in floods.iter().filter(|flood| flood.group == traffic.name()) {
            if !names.contains(&flood.case.as_str()) {
                names.push(&flood.case);
            }
        }
    }
    let shown = floods.iter().filter(|m| SERIES.iter().any(|(t, ..)| t.name() == m.group));
    let values: Vec<f64> = shown.flat_map(|flood| flood.values.iter().copied()).collect();
    let axis = Axis::over(&values);
    let height = TOP + names.len() as f64 * ROW + BOTTOM;

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">What a packet of a flood costs the receiver, \
         ns (median and range)</text>\n"
    );
    for (place, (traffic, colour, mark)) in (0_u8..).zip(SERIES) {
        let x = LEFT + 6.0 + f64::from(place) * 230.0;
        text.push_str(&drawn(mark, x, 36.0, colour));
        let _ =
            writeln!(text, "<text x=\"{}\" y=\"40\">{}</text>", x + 10.0, escaped(&traffic.name()));
    }
    let foot = height - BOTTOM;
    for tick in axis.ticks() {
        let x = axis.place(tick);
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{foot}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            foot + 18.0
        );
    }
    for (row, name) in (0_u16..).zip(&names) {
        let y = TOP + (f64::from(row) + 0.5) * ROW;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            escaped(name)
        );
        for (offset, (traffic, colour, mark)) in [-3.5, 3.5].into_iter().zip(SERIES) {
            let found = floods.iter().find(|m| m.case == **name && m.group == traffic.name());
            let Some(spread) = found.map(|flood| flood.spread()) else { continue };
            let y = y + offset;
            let _ = writeln!(
                text,
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" \
                 stroke-width=\"1.5\"/>",
                axis.place(spread.low),
                axis.place(spread.high)
            );
            text.push_str(&drawn(mark, axis.place(spread.median), y, colour));
        }
    }
    text.push_str("</svg>\n");
    text
}

fn drawn(mark: Mark, x: f64, y: f64, colour: &str) -> String {
    match mark {
        Mark::Circle => {
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\" fill=\"{colour}\"/>\n")
        }
        Mark::Square => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\" fill=\"{colour}\"/>\n",
            x - 3.0,
            y - 3.0
        ),
    }
}

/// A logarithmic one.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// From a tick below all values to one above.
    fn over(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !(least > 0.0 && most.is_finite()) {
            return Self { low: 1.0, high: 10.0 };
        }
        let below = all_ticks().take_while(|tick| *tick <= least).last();
        let above = all_ticks().find(|tick| *tick >= most);
        let (low, high) = (below.unwrap_or(least), above.unwrap_or(most));
        Self { low, high: high.max(low * 2.0) }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        all_ticks().skip_while(|tick| *tick < self.low).take_while(|tick| *tick <= self.high)
    }
}

/// 1, 2, 5, 10, 20, …
fn all_ticks() -> impl Iterator<Item = f64> {
    (0..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(traffic: Traffic, case: &str, values: &[f64]) -> Measured {
        Measured::new(Part::Live, &traffic.name(), case, "ns/packet", values.to_vec())
    }

    #[test]
    fn an_axis_holds_all_values() {
        let axis = Axis::over(&[130.0, 4_200.0]);
        assert_eq!((axis.low, axis.high), (100.0, 5_000.0));
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [100.0, 200.0, 500.0, 1e3, 2e3, 5e3]);
        assert!((axis.place(100.0) - LEFT).abs() < 1e-9);
        assert!((axis.place(5_000.0) - (WIDTH - RIGHT)).abs() < 1e-9);
        let axis = Axis::over(&[]);
        assert!(axis.low < axis.high);
    }

    #[test]
    fn every_case_has_a_row_and_every_traffic_a_mark() {
        let measured = vec![
            flood(ONE, "bare <XDP_DROP>", &[100.0, 120.0]),
            flood(ONE, "guard", &[150.0]),
            flood(MANY, "guard", &[200.0, 260.0]),
        ];
        let text = svg(&Results { measured, ..Results::default() });
        assert_eq!(text.matches(">bare &lt;XDP_DROP></text>").count(), 1, "{text}");
        assert_eq!(text.matches(">guard</text>").count(), 1, "{text}");
        // One of each stands in the legend.
        assert_eq!(text.matches("<circle").count(), 3, "{text}");
        assert_eq!(text.matches("width=\"6\"").count(), 2, "{text}");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_measured_is_an_empty_plot() {
        let text = svg(&Results::default());
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
