//! The small pieces that every text for people is made of.

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};

/// For whom a text is made: whether colours are wanted, and what time it is there.
#[derive(Clone, Debug)]
pub struct View {
    pub colour: bool,
    pub now: Timestamp,
    pub zone: TimeZone,
}

impl View {
    /// A word that says all is well.
    #[must_use]
    pub fn good(&self, text: &str) -> String {
        self.styled(AnsiColor::Green.on_default().bold(), text)
    }

    /// A word that says something is worth a look.
    #[must_use]
    pub fn notable(&self, text: &str) -> String {
        self.styled(AnsiColor::Yellow.on_default().bold(), text)
    }

    /// A word that says something is wrong.
    #[must_use]
    pub fn bad(&self, text: &str) -> String {
        self.styled(AnsiColor::Red.on_default().bold(), text)
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// The time of day, and the date as well when it is not today.
    #[must_use]
    pub fn time(&self, time: Timestamp) -> String {
        let local = self.zone.to_datetime(time);
        if local.date() == self.zone.to_datetime(self.now).date() {
            local.strftime("%H:%M:%S").to_string()
        } else {
            local.strftime("%Y-%m-%d %H:%M:%S").to_string()
        }
    }
}

/// A text that grows line by line.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds one line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    /// Adds lines that are whole already.
    pub fn block(&mut self, lines: &str) {
        self.0.push_str(lines);
    }

    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

/// What a terminal would not show as it stands, or would obey: control characters, and those that turn the
/// direction of text (Unicode Standard Annex 9).
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

/// Text from outside (a comment, the name of an interface or a process) made safe for a terminal: `\u{1b}`.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// `1 rule`, `1,234 rules`, `2 prefixes`.
#[must_use]
pub fn count(number: u64, one: &str) -> String {
    let plural = match number {
        1 => "",
        _ if one.ends_with('x') => "es",
        _ => "s",
    };
    format!("{} {one}{plural}", grouped(number))
}

/// A collection's size, as [`count`] wants it.
#[must_use]
pub fn count_of<T>(items: &[T], one: &str) -> String {
    count(items.len() as u64, one)
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `950 B`, `1.2 kB`: powers of 1000, cut to one decimal.
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (1_000_000_000_000_000, "PB"),
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    for (size, unit) in UNITS {
        if number >= size {
            let tenths = number / (size / 10);
            return format!("{}.{} {unit}", grouped(tenths / 10), tenths % 10);
        }
    }
    format!("{number} B")
}

/// `a`, `a and b`, `a, b and c`.
#[must_use]
pub fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Ports as they are written in rules (`11434`, `udp/53`) as people say them: `TCP 11434 and UDP 53`.
#[must_use]
pub fn ports(written: &[String]) -> String {
    let spoken: Vec<String> = written.iter().map(|port| spoken_port(port)).collect();
    list(&spoken)
}

/// `TCP 11434`, `UDP 53`.
#[must_use]
pub fn spoken_port(written: &str) -> String {
    let spoken = match written.split_once('/') {
        Some((protocol, number)) => format!("{} {number}", protocol.to_ascii_uppercase()),
        None => format!("TCP {written}"),
    };
    escaped(&spoken)
}

/// `is` or `are`.
#[must_use]
pub fn is_or_are<T>(subjects: &[T]) -> &'static str {
    if subjects.len() <= 1 { "is" } else { "are" }
}

/// Rows with their cells below each other, two spaces in and two between. Cells must be escaped already.
///
/// A row's last cell may be of any width: nothing stands behind it.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        let Some((_, measured)) = row.split_last() else { continue };
        for (index, cell) in measured.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut page = Page::default();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let width = widths.get(index).copied().unwrap_or_default();
            line.push_str("  ");
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
        page.line(line.trim_end());
    }
    page.into_text()
}

/// At most `most` of the items, each as a line by `line`, then how many more there are.
pub fn bounded<T>(items: &[T], most: usize, line: impl Fn(&T) -> Vec<String>) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = items.iter().take(most).map(line).collect();
    if items.len() > most {
        rows.push(vec![format!("and {} more", grouped((items.len() - most) as u64))]);
    }
    rows
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A view without colours at 12:00 UTC on the day of the examples.
    pub(crate) fn view() -> View {
        View { colour: false, now: "2026-11-25T12:00:00Z".parse().unwrap(), zone: TimeZone::UTC }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn nothing_from_outside_can_steer_a_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(escaped("a\rb\nc\u{9b}d\u{7f}"), "a\\u{d}b\\u{a}c\\u{9b}d\\u{7f}");
        assert_eq!(escaped("x\u{202e}y\u{2066}z\u{200b}"), "x\\u{202e}y\\u{2066}z\\u{200b}");
        assert_eq!(escaped("büro – 事務所 ✓"), "büro – 事務所 ✓");
    }

    #[test]
    fn times_of_another_day_carry_the_date() {
        let view = view();
        assert_eq!(view.time("2026-11-25T01:02:03.9Z".parse().unwrap()), "01:02:03");
        assert_eq!(view.time("2026-11-24T23:59:59Z".parse().unwrap()), "2026-11-24 23:59:59");
    }

    #[test]
    fn times_are_the_viewers_own() {
        let view = View { zone: TimeZone::fixed(jiff::tz::offset(2)), ..view() };
        assert_eq!(view.time("2026-11-25T01:02:03Z".parse().unwrap()), "03:02:03");
    }

    #[test]
    fn numbers_are_grouped_and_words_follow_them() {
        assert_eq!(count(0, "rule"), "0 rules");
        assert_eq!(count(1, "rule"), "1 rule");
        assert_eq!(count(999, "rule"), "999 rules");
        assert_eq!(count(1_000, "rule"), "1,000 rules");
        assert_eq!(count(u64::MAX, "rule"), "18,446,744,073,709,551,615 rules");
    }

    #[test]
    fn bytes_have_a_fitting_unit() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_999, "1.9 kB"),
            (999_999, "999.9 kB"),
            (1_234_567, "1.2 MB"),
            (u64::MAX, "18,446.7 PB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn lists_read_like_english() {
        assert_eq!(list(&[]), "");
        assert_eq!(list(&words(&["a"])), "a");
        assert_eq!(list(&words(&["a", "b"])), "a and b");
        assert_eq!(list(&words(&["a", "b", "c"])), "a, b and c");
        assert_eq!(
            ports(&words(&["11434", "tcp/8080", "udp/53"])),
            "TCP 11434, TCP 8080 and UDP 53"
        );
    }

    #[test]
    fn columns_line_up_and_leave_no_blanks_at_the_end() {
        let rows = [words(&["a", "", "ccc"]), words(&["äää", "bb", ""]), words(&["much too wide"])];
        assert_eq!(columns(&rows), "  a        ccc\n  äää  bb\n  much too wide\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn long_lists_say_how_many_more_there_are() {
        let line = |number: &u32| vec![number.to_string()];
        assert_eq!(bounded(&[1, 2], 2, line), [words(&["1"]), words(&["2"])]);
        assert_eq!(bounded(&[1, 2, 3], 1, line), [words(&["1"]), words(&["and 2 more"])]);
    }

    #[test]
    fn colours_are_there_only_when_wanted() {
        assert_eq!(view().bad("x"), "x");
        let coloured = View { colour: true, ..view() }.bad("x");
        assert!(coloured.starts_with('\u{1b}') && coloured.contains('x'), "{coloured:?}");
    }
}
