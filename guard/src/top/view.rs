//! The picture of a model. Pure, but for the frame it is drawn into.
//!
//! Nothing is told by colour alone: every state has its word, and what is selected is inverse and has a mark.

use std::{collections::BTreeMap, mem, net::SocketAddr};

use guard_common::verdict::Verdict;
use jiff::tz::TimeZone;
use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::bar,
    text::{Line, Span},
    widgets::{
        Block, Cell, Clear, Paragraph, Row, Sparkline, SparklineBar, Table, TableState, Wrap,
    },
};

use super::{
    model::{Data, Focus, Model, Pane, Proposal},
    sources::{Source, who},
};
use crate::{
    control::{CounterView, Enforcement, Mode, Status},
    duration,
    events::Attempt,
    output::{
        self, View,
        text::{bytes, count, escaped},
    },
    rates::{RatesView, Series},
};

/// The smallest terminal that the view is of use in.
const LEAST_WIDTH: u16 = 60;
const LEAST_HEIGHT: u16 = 16;

/// From this height on the curves are higher.
const TALL: u16 = 34;

/// Seconds that "now" is the mean of.
const NOW_SECONDS: usize = 5;

/// Seconds and minutes in a curve.
const POINTS: usize = 60;

/// From this width on there is room for more.
const WIDE: u16 = 100;

const CURVE_LABEL: u16 = 8;

const HELP: &str = "\
1 2 3 4, Tab     sources, attempts, hooks, rules
arrows, j k      move; PgUp PgDn, Home End go further
/                filter: address, prefix, label, country, AS
Esc              take the filter away; without one: quit
s                sort by rate, packets, last seen, address
f, space         freeze what is shown, and go on
a                allow the selected source, once confirmed
d                deny the selected source, once confirmed
q, Ctrl-C        quit: the kernel goes on enforcing

Counts of sources begin with what the daemon still had of
the last hour. Rates and totals are the kernel's own; dots
in a curve stand for when nobody counted.";

/// What the terminal can show.
#[derive(Clone, Debug)]
pub struct Look {
    pub colour: bool,
    /// It shows no more than ASCII.
    pub ascii: bool,
    pub zone: TimeZone,
}

impl Look {
    fn good(&self) -> Style {
        self.bold(Color::Green)
    }

    fn notable(&self) -> Style {
        self.bold(Color::Yellow)
    }

    fn bad(&self) -> Style {
        self.bold(Color::Red)
    }

    fn bold(&self, colour: Color) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if self.colour { bold.fg(colour) } else { bold }
    }
}

const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &Model, look: &Look) {
    let area = frame.area();
    if area.width < LEAST_WIDTH || area.height < LEAST_HEIGHT {
        let text = format!(
            "guard top needs {LEAST_WIDTH}x{LEAST_HEIGHT} characters, and has {}x{}: make the window larger, or q to quit",
            area.width, area.height
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let data = model.shown();
    let view = View { colour: false, now: data.now, zone: look.zone.clone() };
    let notes = notes(model, &view, look, usize::from(area.width));
    let said = foot_lines(model, look, usize::from(area.width));
    let curve_height = if area.height >= TALL { 3 } else { 1 };
    let [head, below_head, counts, minute, hour, tabs, pane, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(notes.len() as u16),
        Constraint::Length(1),
        Constraint::Length(curve_height),
        Constraint::Length(curve_height),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(said.len() as u16),
    ])
    .areas(area);
    frame.render_widget(headline(data, &view, look), head);
    frame.render_widget(Paragraph::new(notes), below_head);
    frame.render_widget(Paragraph::new(counts_line(data)).style(HEAD), counts);
    curves(frame, data, look, [minute, hour]);
    frame.render_widget(tabs_line(model), tabs);
    match model.pane {
        Pane::Sources => sources(frame, pane, model, &view),
        Pane::Attempts => attempts(frame, pane, model, &view),
        Pane::Hooks => hooks(frame, pane, model),
        Pane::Rules => rules(frame, pane, model, &view),
    }
    frame.render_widget(Paragraph::new(said), foot);
    match &model.focus {
        Focus::Help => window(frame, "Keys (any key closes this)", text_of(HELP)),
        Focus::Confirm(proposal) => {
            window(frame, "Confirm", confirmation(proposal, data.status.as_ref()));
        }
        Focus::Panes | Focus::Filter => {}
    }
    if look.ascii {
        to_ascii(frame.buffer_mut());
    }
}

fn headline<'a>(data: &Data, view: &View, look: &Look) -> Line<'a> {
    let Some(status) = &data.status else { return Line::from("guard: asking the daemon...") };
    let text = output::headline(status, view);
    // The state's own words are what stands before the first punctuation.
    let end = text.find([':', ',']).unwrap_or(text.len());
    let (state, rest) = text.split_at(end);
    let style = match (status.enforcement, status.mode) {
        (Enforcement::Full, _) => look.good(),
        (Enforcement::Observe, _) | (Enforcement::Partial, Mode::Observe) => look.notable(),
        (Enforcement::Partial | Enforcement::None, _) => look.bad(),
    };
    Line::from(vec![Span::styled(state.to_owned(), style), Span::raw(rest.to_owned())])
}

/// Lines that each of the sentences above and below may take.
const MOST_LINES: usize = 3;

/// What is out of the ordinary.
fn notes<'a>(model: &Model, view: &View, look: &Look, width: usize) -> Vec<Line<'a>> {
    let data = model.shown();
    let mut notes = Vec::new();
    let mut note = |word: &str, style: Style, rest: String| {
        let mut lines = wrapped(&format!("{word} {rest}"), width, MOST_LINES).into_iter();
        let first = lines.next().unwrap_or_default();
        let (word, rest) = first.split_at(word.len().min(first.len()));
        notes.push(Line::from(vec![
            Span::styled(word.to_owned(), style),
            Span::raw(rest.to_owned()),
        ]));
        notes.extend(lines.map(Line::from));
    };
    if let Some(gone) = &data.gone {
        let rest = format!("{}; what is shown is old; trying again", escaped(gone));
        note("NO DAEMON:", look.bad(), rest);
    }
    if model.is_frozen() {
        let rest = format!("as it was at {}; f goes on", view.time(data.now));
        note("FROZEN:", look.notable(), rest);
    }
    if let Some(status) = &data.status {
        if let Some(first) = status.missing.first() {
            let more = match status.missing.len() {
                1 => String::new(),
                all => format!(" (and {} more: guard status)", all - 1),
            };
            note("missing:", look.bad(), format!("{}{more}", escaped(first)));
        }
        if let Some(trial) = &status.trial {
            let until = view.time(trial.until);
            let rest = format!("{}; until {until} unless guard confirm", escaped(&trial.what));
            note("on trial:", look.notable(), rest);
        }
    }
    if data.lagged > 0 {
        let rest = format!("{} came too fast to be listed", count(data.lagged, "attempt"));
        note("note:", look.notable(), rest);
    }
    notes
}

/// Packets that were dropped, or would have been.
const fn verdict_words(status: Option<&Status>) -> &'static str {
    match status {
        Some(Status { mode: Mode::Observe, .. }) => "would be dropped",
        _ => "dropped",
    }
}

fn counts_line(data: &Data) -> String {
    let words = verdict_words(data.status.as_ref());
    let Some(RatesView { attempts, known_seconds, .. }) = &data.rates else {
        return format!("{words}: not known yet");
    };
    let minute: u64 = attempts.seconds.iter().rev().take(60).sum();
    let since = match *known_seconds {
        seconds @ ..3_600 => format!("in {}", duration::brief(seconds)),
        _ => "last hour".to_owned(),
    };
    let sources = data.status.as_ref().map_or(0, |status| status.events.sources);
    format!(
        "{words}: {}/s now, {} last minute, {} {since}; {} source{} in 5 minutes",
        per_second(attempts.rate(NOW_SECONDS)),
        brief(minute),
        brief(attempts.hour()),
        brief(sources),
        if sources == 1 { "" } else { "s" },
    )
}

fn curves(frame: &mut Frame<'_>, data: &Data, look: &Look, [minute, hour]: [Rect; 2]) {
    let known_seconds = data.rates.as_ref().map_or(0, |rates| rates.known_seconds);
    let none = Series::default();
    let series = data.rates.as_ref().map_or(&none, |rates| &rates.attempts);
    let of_minute = points(&series.seconds, known_seconds);
    curve(frame, minute, look, "seconds", &of_minute);
    // What came before the daemon is not nothing, but not known.
    let of_hour = points(&series.minutes, known_seconds.div_ceil(60));
    curve(frame, hour, look, "minutes", &of_hour);
}

/// The newest points, of which only so many are known.
fn points(values: &[u64], known: u64) -> Vec<Option<u64>> {
    let newest = values.iter().rev().take(POINTS).enumerate();
    let mut points: Vec<Option<u64>> =
        newest.map(|(back, value)| ((back as u64) < known).then_some(*value)).collect();
    points.resize(POINTS, None);
    points.reverse();
    points
}

fn curve(
    frame: &mut Frame<'_>,
    area: Rect,
    look: &Look,
    label: &'static str,
    points: &[Option<u64>],
) {
    let [name, curve, most] = Layout::horizontal([
        Constraint::Length(CURVE_LABEL),
        Constraint::Length(POINTS as u16),
        Constraint::Min(0),
    ])
    .areas(area);
    let shown = points.iter().rev().take(usize::from(curve.width)).rev();
    let max = points.iter().flatten().max().copied().unwrap_or_default();
    // Whatever the most is, one packet is to be seen.
    let least = max.div_ceil(8 * u64::from(area.height.max(1)));
    let bars = shown.map(|point| {
        SparklineBar::from(point.map(|value| if value == 0 { 0 } else { value.max(least) }))
    });
    let style = if look.colour { Style::new().fg(Color::Cyan) } else { Style::new() };
    let sparkline = Sparkline::default()
        .data(bars)
        .max(max.max(1))
        .style(style)
        .absent_value_symbol("\u{b7}")
        .bar_set(if look.ascii { ASCII_BARS } else { bar::NINE_LEVELS });
    frame.render_widget(Paragraph::new(label), name);
    frame.render_widget(sparkline, curve);
    frame.render_widget(Paragraph::new(format!(" most {}", brief(max))), most);
}

const ASCII_BARS: bar::Set<'static> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "*",
    five_eighths: "*",
    half: "+",
    three_eighths: "=",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

fn tabs_line<'a>(model: &Model) -> Line<'a> {
    let data = model.shown();
    let mut spans = Vec::new();
    for (number, pane) in (1..).zip(Pane::ALL) {
        let size = match pane {
            Pane::Sources => format!(" {}", brief(data.sources.len() as u64)),
            Pane::Rules => {
                data.status.as_ref().map_or_else(String::new, |it| format!(" {}", it.rules))
            }
            Pane::Attempts | Pane::Hooks => String::new(),
        };
        let text = format!("{number} {}{size}", pane.name());
        spans.push(if pane == model.pane {
            Span::styled(format!("[{text}]"), SELECTED.add_modifier(Modifier::BOLD))
        } else {
            Span::raw(format!(" {text} "))
        });
        spans.push(Span::raw(" "));
    }
    if model.pane == Pane::Sources {
        spans.push(Span::raw(format!(" by {}", model.sort.name())));
    }
    if !model.filter.is_empty() {
        spans.push(Span::styled(format!("  filter: {}", escaped(&model.filter)), HEAD));
    }
    Line::from(spans)
}

fn sources(frame: &mut Frame<'_>, area: Rect, model: &Model, view: &View) {
    let data = model.shown();
    let rows = model.rows();
    let [table, detail] = Layout::vertical([Constraint::Min(1), Constraint::Length(2)]).areas(area);
    let cursor = model.cursor(&rows);
    let Some(selected) = rows.get(cursor) else {
        let text = match (&data.status, model.filter.is_empty()) {
            (None, _) => "asking the daemon...",
            (Some(_), true) => "no attempts: nobody who is not allowed has tried lately",
            (Some(_), false) => "no source matches the filter; Esc takes it away",
        };
        frame.render_widget(Paragraph::new(text), area);
        return;
    };
    let body = usize::from(table.height.saturating_sub(1));
    let above = cursor.saturating_sub(body.saturating_sub(1));
    let lines = rows.iter().skip(above).take(body).map(|source| source_row(source, data));
    let widths = [
        Constraint::Length(24),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Min(10),
    ];
    let widget = Table::new(lines, widths)
        .header(head(&["SOURCE", "  PER S", " PACKETS", "   AGO", "PORT", "WHO"]))
        .row_highlight_style(SELECTED)
        .highlight_symbol("> ")
        .highlight_spacing(ratatui::widgets::HighlightSpacing::Always);
    let mut state = TableState::new().with_selected(Some(cursor.saturating_sub(above)));
    frame.render_stateful_widget(widget, table, &mut state);
    frame.render_widget(Paragraph::new(detail_lines(selected, data, view)), detail);
}

fn head<'a>(words: &[&'static str]) -> Row<'a> {
    Row::new(words.iter().map(|word| Cell::from(word.trim_end()))).style(HEAD)
}

fn source_row<'a>(source: &Source, data: &Data) -> Row<'a> {
    let ago = data.now.duration_since(source.last.time).as_secs();
    let port = source.last.port.map_or_else(|| "?".to_owned(), |port| port.to_string());
    Row::new([
        source.name(),
        format!("{:>7}", per_second(source.rate.now(data.now))),
        format!("{:>8}", brief(source.packets)),
        format!("{:>6}", duration::brief(u64::try_from(ago).unwrap_or_default())),
        port,
        who(&source.last),
    ])
}

/// The last attempt of the selected source, and all else that is known of it.
fn detail_lines<'a>(source: &Source, data: &Data, view: &View) -> Vec<Line<'a>> {
    let last = &source.last;
    let flags = match last.tcp_flags.as_str() {
        "" => String::new(),
        flags => format!(" {}", escaped(flags)),
    };
    let to = last.port.map_or_else(
        || last.destination.to_string(),
        |port| SocketAddr::new(last.destination, port).to_string(),
    );
    let how = format!(
        "{} {}: {}{flags} to {to} {}, last {}",
        escaped(&last.verdict),
        escaped(&last.reason),
        escaped(&last.protocol),
        match last.interface {
            Some(_) => format!("on {}", place(last)),
            None => "at a socket".to_owned(),
        },
        view.time(last.time),
    );
    let mut about = format!(
        "first {}, {}, {}",
        view.time(source.first),
        count(source.attempts, "attempt"),
        count(source.packets, "packet"),
    );
    let who = who(&source.last);
    if !who.is_empty() {
        about = format!("{about}; {who}");
    }
    if data.sources.left_out > 0 {
        about = format!("{about}; {} left out", count(data.sources.left_out, "older source"));
    }
    vec![Line::from(how), Line::from(about)]
}

fn attempts(frame: &mut Frame<'_>, area: Rect, model: &Model, view: &View) {
    let attempts = model.attempts();
    if attempts.is_empty() {
        frame.render_widget(Paragraph::new("no attempts"), area);
        return;
    }
    let body = usize::from(area.height.saturating_sub(1));
    let shown = attempts.iter().skip(model.scroll).take(body);
    let rows = shown.map(|attempt| attempt_row(attempt, view));
    let widths = [
        Constraint::Length(8),
        // A whole IPv6 address where there is room for it.
        Constraint::Length(if area.width < WIDE { 26 } else { 39 }),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(17),
        Constraint::Min(8),
    ];
    let table = Table::new(rows, widths)
        .header(head(&["TIME", "SOURCE", "PORT", "PACKETS", "REASON", "WHERE"]));
    frame.render_widget(table, area);
}

fn attempt_row<'a>(attempt: &Attempt, view: &View) -> Row<'a> {
    let reason = escaped(&attempt.reason);
    let is_dropped = attempt.verdict == Verdict::Drop.name();
    Row::new([
        view.time(attempt.time),
        attempt.source.to_string(),
        attempt.port.map_or_else(|| "?".to_owned(), |port| port.to_string()),
        format!("{:>7}", brief(attempt.packets)),
        if is_dropped { reason } else { format!("{reason}, passed") },
        place(attempt),
    ])
}

/// `eth0 (tcx)`
fn place(attempt: &Attempt) -> String {
    let interface = attempt.interface.as_deref().map_or_else(|| "socket".to_owned(), escaped);
    format!("{interface} ({})", escaped(&attempt.hook))
}

/// What each hook has counted, and what stands where.
fn hooks(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let data = model.shown();
    let Some(status) = &data.status else { return };
    let counted = counted(&status.counters);
    let lines: Vec<Row<'_>> = counted
        .iter()
        .map(|((hook, verdict), all)| hook_row(hook, verdict, all, data.rates.as_ref()))
        .collect();
    // Interfaces get at least half of it.
    let height = (lines.len() as u16 + 1).min(area.height / 2);
    let [above, _, below] =
        Layout::vertical([Constraint::Length(height), Constraint::Length(1), Constraint::Min(1)])
            .areas(area);
    let widths = [
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Min(10),
    ];
    let table = Table::new(lines, widths).header(head(&[
        "HOOK",
        "VERDICT",
        "  PER S",
        "    HOUR",
        "     ALL",
        "WHY (since it was loaded)",
    ]));
    frame.render_widget(table, above);

    let mut rows: Vec<Vec<String>> = status
        .interfaces
        .iter()
        .map(|one| {
            let reported = data.interfaces.get(&one.name).copied().unwrap_or_default();
            let note = one.note.as_deref().or(one.reason.as_deref());
            vec![
                escaped(&one.name),
                escaped(&one.class),
                one.hook.as_deref().map_or_else(|| "no hook".to_owned(), escaped),
                format!("{:>8}", brief(reported)),
                note.map(escaped).unwrap_or_default(),
            ]
        })
        .collect();
    rows.push(vec!["backstop".to_owned(), output::backstop(&status.backstop)]);
    let widths = [
        Constraint::Length(16),
        Constraint::Length(13),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Min(10),
    ];
    let [table, backstop] =
        Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(below);
    let last = rows.pop().unwrap_or_default().join("  ");
    let shown = rows.into_iter().skip(model.scroll).map(Row::new);
    let widget =
        Table::new(shown, widths).header(head(&["INTERFACE", "CLASS", "HOOK", "REPORTED", "NOTE"]));
    frame.render_widget(widget, table);
    frame.render_widget(Paragraph::new(last), backstop);
}

/// What one hook has judged so.
#[derive(Default)]
struct Counted {
    packets: u64,
    reasons: Vec<String>,
}

/// By hook and verdict, drops first.
fn counted(counters: &[CounterView]) -> BTreeMap<(String, String), Counted> {
    let mut all: BTreeMap<(String, String), Counted> = BTreeMap::new();
    for counter in counters.iter().filter(|counter| counter.packets > 0) {
        let key = (escaped(&counter.hook), escaped(&counter.verdict));
        let one = all.entry(key).or_default();
        one.packets += counter.packets;
        one.reasons.push(format!(
            "{} {} ({})",
            escaped(&counter.reason),
            brief(counter.packets),
            bytes(counter.bytes)
        ));
    }
    all
}

fn hook_row<'a>(hook: &str, verdict: &str, all: &Counted, rates: Option<&RatesView>) -> Row<'a> {
    let series = rates.and_then(|rates| {
        rates.hooks.iter().find(|one| one.hook == hook && one.verdict == verdict)
    });
    let series = series.map(|one| &one.series);
    let rate = series.map_or(0.0, |series| series.rate(NOW_SECONDS));
    Row::new([
        hook.to_owned(),
        verdict.to_owned(),
        format!("{:>7}", per_second(rate)),
        format!("{:>8}", brief(series.map_or(0, Series::hour))),
        format!("{:>8}", brief(all.packets)),
        all.reasons.join(", "),
    ])
}

fn rules(frame: &mut Frame<'_>, area: Rect, model: &Model, view: &View) {
    let rules = &model.shown().rules;
    if rules.is_empty() {
        frame.render_widget(Paragraph::new("no rules: only this machine is let in"), area);
        return;
    }
    let body = usize::from(area.height.saturating_sub(1));
    let shown = rules.iter().skip(model.scroll).take(body);
    let rows = shown.map(|rule| Row::new(output::rule_row(rule, view)));
    let widths = [
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Length(24),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Min(6),
    ];
    frame.render_widget(Table::new(rows, widths).header(head(&output::RULES_HEAD)), area);
}

/// What was told last, or the keys.
fn foot_lines<'a>(model: &Model, look: &Look, width: usize) -> Vec<Line<'a>> {
    if model.focus == Focus::Filter {
        return vec![Line::from(vec![
            Span::styled(format!("/{}", escaped(&model.filter)), HEAD),
            Span::styled(" ", SELECTED),
            Span::raw("  Enter keeps it, Esc takes it away"),
        ])];
    }
    let Some(message) = &model.message else {
        let keys = "? help  / filter  s sort  f freeze  a allow  d deny  Tab pane  q quit";
        return vec![Line::from(keys)];
    };
    let style = if message.is_error { look.bad() } else { look.good() };
    let lines = wrapped(&escaped(&message.text), width, MOST_LINES);
    lines.into_iter().map(|line| Line::styled(line, style)).collect()
}

/// A sentence as lines of at most this width, broken between words where it can be; what does not fit is left out, and that is
/// shown.
fn wrapped(text: &str, width: usize, most: usize) -> Vec<String> {
    let width = width.max(2);
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let is_wider = |line: &str, c: char| Span::raw(format!("{line}{c}")).width() > width;
    for word in text.split_inclusive(' ') {
        if !line.is_empty() && Span::raw(format!("{line}{}", word.trim_end())).width() > width {
            lines.push(mem::take(&mut line));
        }
        for c in word.chars() {
            if is_wider(&line, c) {
                if c == ' ' {
                    continue;
                }
                lines.push(mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            while Span::raw(last.as_str()).width() + 1 > width {
                last.pop();
            }
            last.push('\u{2026}');
        }
    }
    lines
}

fn confirmation<'a>(proposal: &Proposal, status: Option<&Status>) -> Vec<Line<'a>> {
    let action = output::action(proposal.action);
    let ports = status
        .map_or_else(String::new, |status| format!(" ({})", output::text::ports(&status.ports)));
    let tried: Vec<String> = proposal.tried.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        Line::styled(format!("guard {action} {}", escaped(&proposal.source)), HEAD),
        Line::from(format!("at every guarded port{ports}")),
    ];
    if !tried.is_empty() {
        lines.push(Line::from(format!("it tried port {}", tried.join(", "))));
    }
    if !proposal.who.is_empty() {
        lines.push(Line::from(proposal.who.clone()));
    }
    lines.push(Line::default());
    lines.push(Line::from("y  yes, until it is removed"));
    lines.push(Line::from("h  yes, for one hour"));
    lines.push(Line::from("n  no, change nothing"));
    lines
}

fn text_of(text: &'static str) -> Vec<Line<'static>> {
    text.lines().map(Line::from).collect()
}

/// A window over the middle.
fn window(frame: &mut Frame<'_>, title: &'static str, lines: Vec<Line<'_>>) {
    let area = frame.area();
    let widest = lines.iter().map(Line::width).max().unwrap_or_default().max(title.len());
    let width = (widest as u16 + 4).min(area.width);
    let inner = usize::from(width.saturating_sub(4));
    let lines: Vec<Line<'_>> = lines
        .into_iter()
        .flat_map(|line| {
            let style = line.style;
            let lines = wrapped(&line.to_string(), inner, MOST_LINES);
            lines.into_iter().map(move |line| Line::styled(line, style))
        })
        .collect();
    let height = (lines.len() as u16 + 2).min(area.height);
    let text = Paragraph::new(lines);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    let block = Block::bordered().title(title).padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, place);
    frame.render_widget(text.block(block), place);
}

/// In place of what the terminal can't show stands something that it can.
fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().is_ascii() {
            continue;
        }
        let plain = match cell.symbol() {
            "\u{2192}" => ">",
            "\u{2500}" => "-",
            "\u{2502}" => "|",
            "\u{250c}" | "\u{2510}" | "\u{2514}" | "\u{2518}" => "+",
            "\u{b7}" | "\u{2026}" => ".",
            _ => "?",
        };
        cell.set_symbol(plain);
    }
}

/// At most five characters: `1234`, `12.3k`, `123k`, `1.2M`.
fn brief(number: u64) -> String {
    const UNITS: [(u64, char); 5] = [
        (1_000_000_000_000_000, 'P'),
        (1_000_000_000_000, 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
        (1_000, 'k'),
    ];
    if number < 10_000 {
        return number.to_string();
    }
    for (size, unit) in UNITS {
        if number >= size {
            let (whole, tenth) = (number / size, number % size / (size / 10));
            return if whole < 100 {
                format!("{whole}.{tenth}{unit}")
            } else {
                format!("{whole}{unit}")
            };
        }
    }
    number.to_string()
}

/// `0`, `0.2`, `12`, `1234`: a rate that is not quite nothing is not shown as that.
#[expect(clippy::cast_sign_loss, reason = "what is negative is shown as 0")]
fn per_second(rate: f64) -> String {
    match rate {
        ..0.005 => "0".to_owned(),
        ..0.1 => "<0.1".to_owned(),
        ..9.95 => format!("{rate:.1}"),
        // A rate of packets is far from the ends of u64, where a cast would saturate.
        rate => brief(rate.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::model::{
            Effect, News,
            tests::{at, attempt, hear, model, press},
        },
        *,
    };
    use crate::{control::Failure, rates::HookSeries};

    const PLAIN: Look = Look { colour: false, ascii: false, zone: TimeZone::UTC };

    fn buffer(model: &Model, (width, height): (u16, u16), look: &Look) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, look)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn lines_of(buffer: &Buffer) -> Vec<String> {
        let rows = buffer.content.chunks(usize::from(buffer.area.width));
        let line = |cells: &[ratatui::buffer::Cell]| {
            cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>()
        };
        rows.map(|cells| line(cells).trim_end().to_owned()).collect()
    }

    fn lines(model: &Model, size: (u16, u16)) -> Vec<String> {
        lines_of(&buffer(model, size, &PLAIN))
    }

    #[track_caller]
    fn expect(lines: &[String], texts: &[&str]) {
        for text in texts {
            assert!(lines.iter().any(|line| line.contains(text)), "{text:?} is not in {lines:#?}");
        }
    }

    /// With rates: twelve a second for a minute, and more in an earlier one.
    fn full() -> Model {
        let mut model = model();
        let mut seconds = vec![0; 240];
        seconds.resize(300, 12);
        let mut minutes = vec![0; 58];
        minutes.extend([24_000, 720]);
        let attempts = Series { seconds, minutes };
        let hook =
            HookSeries { hook: "tcx".into(), verdict: "drop".into(), series: attempts.clone() };
        model.hear(News::Rates(RatesView {
            time: at(100),
            known_seconds: 100_000,
            attempts,
            hooks: vec![hook],
        }));
        model
    }

    const SIZES: [(u16, u16); 2] = [(80, 24), (120, 40)];

    #[test]
    fn the_first_look_tells_state_rates_and_sources() {
        for size in SIZES {
            let lines = lines(&full(), size);
            assert_eq!(
                lines[0], "enforcing: TCP 11434 is closed to everyone but this machine and 2 rules",
                "as guard status says it"
            );
            expect(
                &lines,
                &[
                    "dropped: 12/s now, 720 last minute, 24.7k last hour; 0 sources in 5 minutes",
                    "most 12",
                    "most 24.0k",
                    "[1 Sources 3]  2 Attempts   3 Hooks   4 Rules 2   by rate",
                    "> 203.0.113.9",
                    "censys, US, AS64500",
                    "  2001:db8:0:7::/64",
                    "? help  / filter",
                ],
            );
            expect(
                &lines,
                &["drop no-rule: tcp SYN to 198.51.100.4:11434 on eth0 (xdp), last 12:01:38"],
            );
        }
        assert!(lines(&full(), (80, 24)).iter().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn curves_show_what_is_little_and_tell_what_is_not_known() {
        let mut model = model();
        let mut seconds = vec![0; 298];
        seconds.extend([1, 1_000_000]);
        let attempts = Series { seconds, minutes: vec![0; 60] };
        let rates = RatesView { time: at(0), known_seconds: 30, attempts, hooks: Vec::new() };
        model.hear(News::Rates(rates));
        let lines = lines(&model, (80, 24));
        expect(&lines, &["0 in 30s"]);
        let curve = lines.iter().find(|line| line.starts_with("seconds")).unwrap();
        let points: String = curve.chars().skip(8).take(60).collect();
        assert_eq!(points, format!("{}{}▁█", "·".repeat(30), " ".repeat(28)));
        let hour = lines.iter().find(|line| line.starts_with("minutes")).unwrap();
        assert_eq!(hour.matches('·').count(), 59);
    }

    #[test]
    fn each_pane_has_what_it_is_for() {
        let mut model = full();
        for size in SIZES {
            press(&mut model, "2");
            let shown = lines(&model, size);
            expect(
                &shown,
                &["[2 Attempts]", "12:01:38 203.0.113.9", "40 no-rule           eth0 (xdp)"],
            );
            press(&mut model, "3");
            let shown = lines(&model, size);
            expect(&shown, &["[3 Hooks]", "PER S", "INTERFACE", "eth0", "no hook", "backstop"]);
            let tcx = shown.iter().find(|line| line.starts_with("tcx")).unwrap();
            for text in ["drop", " 12 ", "24.7k", "1234", "no-rule 1234 (74.0 kB)"] {
                assert!(tcx.contains(text), "{text}: {tcx}");
            }
            let eth0 = shown.iter().find(|line| line.starts_with("eth0")).unwrap();
            assert!(eth0.contains("outside") && eth0.contains("tcx"), "{eth0}");
            press(&mut model, "4");
            expect(&lines(&model, size), &["no rules: only this machine is let in"]);
        }
        model.hear(News::Rules(vec![output::example_rule()]));
        expect(&lines(&model, (80, 24)), &["ID", "COMMENT", "203.0.113.9"]);
    }

    #[test]
    fn a_confirmation_names_source_ports_and_answers() {
        for size in SIZES {
            let mut model = full();
            press(&mut model, "a");
            expect(
                &lines(&model, size),
                &[
                    "guard allow 203.0.113.9",
                    "at every guarded port (TCP 11434)",
                    "it tried port 11434",
                    "censys, US, AS64500 EXAMPLE, public",
                    "y  yes, until it is removed",
                    "h  yes, for one hour",
                    "n  no, change nothing",
                ],
            );
        }
    }

    #[test]
    fn the_help_fits_and_names_every_key() {
        let mut model = full();
        press(&mut model, "?");
        let lines = lines(&model, (80, 24));
        let texts: Vec<&str> = HELP.lines().filter(|line| !line.is_empty()).collect();
        expect(&lines, &texts);
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_said_above() {
        let mut model = full();
        model.hear(News::Gone(Failure::failed("the daemon's socket is closed", "start it")));
        hear(&mut model, attempt("192.0.2.1", 99, 1));
        press(&mut model, "f");
        let lines = lines(&model, (80, 24));
        expect(
            &lines,
            &["NO DAEMON: the daemon's socket is closed", "FROZEN: as it was at 12:01:40"],
        );
        let mut status = output::example();
        status.enforcement = Enforcement::Partial;
        status.missing = vec!["the backstop is missing".into(), "eth1 has no hook".into()];
        let mut model = full();
        model.hear(News::Status(Box::new(status.clone())));
        let shown = self::lines(&model, (80, 24));
        assert!(shown[0].starts_with("PARTLY ENFORCED: TCP 11434"), "{shown:#?}");
        expect(&shown, &["missing: the backstop is missing (and 1 more: guard status)"]);
        status.mode = Mode::Observe;
        status.enforcement = Enforcement::Observe;
        model.hear(News::Status(Box::new(status)));
        let shown = self::lines(&model, (80, 24));
        assert!(shown[0].starts_with("observing: TCP 11434 is open"), "{shown:#?}");
        expect(&shown, &["would be dropped: 12/s now"]);
    }

    #[test]
    fn what_is_empty_says_why() {
        let mut empty = Model::new(at(0));
        expect(&lines(&empty, (80, 24)), &["asking the daemon"]);
        empty.hear(News::Status(Box::new(output::example())));
        expect(&lines(&empty, (80, 24)), &["nobody who is not allowed has tried lately"]);
        let mut model = full();
        press(&mut model, "/nobody\n");
        expect(&lines(&model, (80, 24)), &["no source matches the filter", "filter: nobody"]);
    }

    #[test]
    fn a_window_that_is_too_small_says_so_and_any_size_can_be_drawn() {
        let mut models = [full(), full(), full(), full(), full(), full()];
        for (model, keys) in models.iter_mut().zip(["", "2", "3", "4", "a", "?"]) {
            press(model, keys);
            for width in [1, 10, 59, 60, 79, 80, 300] {
                for height in [1, 5, 15, 16, 24, 100] {
                    let shown = lines(model, (width, height));
                    assert_eq!(shown.len(), usize::from(height));
                }
            }
        }
        expect(&lines(&models[0], (59, 20)), &["needs 60x16 characters, and has 59x20"]);
    }

    #[test]
    fn without_colours_none_is_used_and_with_them_words_are_the_same() {
        let mut model = full();
        press(&mut model, "2a");
        let coloured = buffer(&model, (80, 24), &Look { colour: true, ..PLAIN });
        let plain = buffer(&model, (80, 24), &PLAIN);
        assert!(
            plain.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
        );
        assert!(coloured.content.iter().any(|cell| cell.fg == Color::Green));
        assert!(coloured.content.iter().any(|cell| cell.fg == Color::Red));
        assert_eq!(lines_of(&coloured), lines_of(&plain));
    }

    #[test]
    fn a_terminal_of_ascii_gets_nothing_else() {
        let mut model = full();
        let look = Look { ascii: true, ..PLAIN };
        for keys in ["", "2", "3", "1a", "n?"] {
            press(&mut model, keys);
            let shown = lines_of(&buffer(&model, (80, 24), &look));
            assert!(shown.iter().all(|line| line.is_ascii()), "{shown:#?}");
        }
    }

    #[test]
    fn nothing_from_outside_reaches_the_terminal_as_it_is() {
        let mut model = full();
        let facts = crate::events::SourceFacts {
            labels: vec!["a\u{1b}[2Jb\u{202e}".into()],
            ..crate::events::SourceFacts::default()
        };
        let hostile = Attempt {
            interface: Some("e\u{1b}\u{7}".into()),
            facts,
            ..attempt("192.0.2.66", 100, 1_000)
        };
        hear(&mut model, hostile);
        model.hear(News::Gone(Failure::failed("x\u{1b}[0m", "y")));
        for keys in ["", "2", "3", "4", "1?", "xa"] {
            press(&mut model, keys);
            for line in lines(&model, (120, 40)) {
                assert!(!line.chars().any(output::text::is_unprintable), "{line:?}");
            }
        }
    }

    #[test]
    fn the_cursor_is_always_to_be_seen() {
        let mut model = full();
        for low in 0..100 {
            hear(&mut model, attempt(&format!("192.0.2.{low}"), 100, 1));
        }
        press(&mut model, "G");
        let shown = lines(&model, (80, 24));
        let rows = model.rows();
        let last = rows.last().unwrap().name();
        assert!(shown.iter().any(|line| line.starts_with(&format!("> {last}"))), "{shown:#?}");
    }

    #[test]
    fn sentences_are_wrapped_between_words_and_cut_only_at_last() {
        let text = "the backstop is missing";
        assert_eq!(wrapped(text, 80, 3), [text]);
        assert_eq!(wrapped(text, 12, 3), ["the backstop", "is missing"]);
        assert_eq!(wrapped(text, 8, 9), ["the", "backstop", "is", "missing"]);
        assert_eq!(wrapped(text, 8, 2), ["the", "backsto\u{2026}"]);
        assert_eq!(wrapped("abcdefgh ij", 3, 9), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("事務所", 4, 9), ["事務", "所"]);
        assert_eq!(wrapped("", 4, 9), [""]);
    }

    #[test]
    fn a_long_refusal_is_there_whole() {
        let mut model = full();
        let Some(Effect::Change(request)) = press(&mut model, "ay") else { panic!("no change") };
        let refusal = Failure::failed(
            "nothing else can be changed while allow 192.0.2.7 confirm 1m is on trial",
            "Run guard confirm to keep it, or guard rollback to take it back.",
        );
        model.hear(News::Changed(request, Err(refusal)));
        let text = lines(&model, (80, 24)).join(" ");
        assert!(text.contains("Run guard confirm to keep it, or guard rollback"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (123_456, "123k"),
            (1_234_567, "1.2M"),
            (u64::MAX, "18446P"),
        ] {
            assert_eq!(brief(number), text);
        }
        for (rate, text) in
            [(0.0, "0"), (0.01, "<0.1"), (0.25, "0.2"), (9.94, "9.9"), (12.4, "12"), (1e6, "1.0M")]
        {
            assert_eq!(per_second(rate), text);
        }
    }
}
