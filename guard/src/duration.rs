//! Spans of time as people write them: `90s`, `10m`, `1h30m`, `7d`.

use jiff::{Span, SpanRelativeTo, Unit};

use crate::{control::Failure, rule::quoted};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The longest span: ten years of 365 days, in seconds.
pub const MAX_SECONDS: u64 = 10 * 365 * DAY;

/// The longest text: no sensible span is longer.
const MAX_BYTES: usize = 64;

/// Why a text is no span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("{} is not a span of time", quoted(.text))]
    NotASpan { text: String },
    #[error("{} counts months or years, which differ in length", quoted(.text))]
    Calendar { text: String },
    #[error("{} is shorter than a second", quoted(.text))]
    TooShort { text: String },
    #[error("{} is longer than ten years", quoted(.text))]
    TooLong { text: String },
}

impl DurationError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::NotASpan { .. } => {
                "Write numbers with units, such as 90s, 10m, 1h30m or 7d.".to_owned()
            }
            Self::Calendar { .. } => "Write it in days, such as 30d.".to_owned(),
            Self::TooShort { .. } => "Write at least 1s.".to_owned(),
            Self::TooLong { .. } => {
                format!("Write at most {}d, or leave the end out.", MAX_SECONDS / DAY)
            }
        }
    }
}

impl From<DurationError> for Failure {
    fn from(error: DurationError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

/// Seconds of a span such as `90s`, `10m`, `1h30m` or `7d`, a day being 24 hours; parts of a second are cut off.
///
/// # Errors
/// When it is no span, shorter than a second, longer than [`MAX_SECONDS`], or counts months or years.
pub fn parse(text: &str) -> Result<u64, DurationError> {
    let not_a_span = || DurationError::NotASpan { text: text.to_owned() };
    if text.len() > MAX_BYTES {
        return Err(not_a_span());
    }
    let span: Span = text.parse().map_err(|_| not_a_span())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(DurationError::Calendar { text: text.to_owned() });
    }
    let seconds = span
        .total((Unit::Second, SpanRelativeTo::days_are_24_hours()))
        .map_err(|_| DurationError::TooLong { text: text.to_owned() })?;
    if seconds < 1.0 {
        return Err(DurationError::TooShort { text: text.to_owned() });
    }
    #[expect(clippy::cast_precision_loss, reason = "ten years of seconds are exact in an f64")]
    if seconds >= (MAX_SECONDS + 1) as f64 {
        return Err(DurationError::TooLong { text: text.to_owned() });
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is at least 1 and at most MAX_SECONDS here; the part of a second is to be cut off"
    )]
    Ok(seconds as u64)
}

/// Seconds in their two largest units, cut off below: `7d`, `1h30m`, `45s`.
#[must_use]
pub fn brief(seconds: u64) -> String {
    let (large, large_name, small, small_name) = match seconds {
        DAY.. => (DAY, 'd', HOUR, 'h'),
        HOUR.. => (HOUR, 'h', MINUTE, 'm'),
        MINUTE.. => (MINUTE, 'm', 1, 's'),
        _ => return format!("{seconds}s"),
    };
    match (seconds / large, seconds % large / small) {
        (count, 0) => format!("{count}{large_name}"),
        (count, rest) => format!("{count}{large_name}{rest}{small_name}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_are_read_to_seconds() {
        for (text, seconds) in [
            ("90s", 90),
            ("10m", 600),
            ("2h", 7200),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("7d", 7 * DAY),
            ("2w", 14 * DAY),
            ("1.5h", 5400),
            ("1500ms", 1),
            ("3650d", MAX_SECONDS),
            ("PT10M", 600),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused_with_what_would_be_right() {
        for (text, what, fix) in [
            ("", "not a span", "10m"),
            ("600", "not a span", "90s"),
            ("soon", "not a span", "90s"),
            ("-", "not a span", "90s"),
            ("1mo", "months or years", "30d"),
            ("1y", "months or years", "30d"),
            ("0s", "shorter than a second", "1s"),
            ("999ms", "shorter than a second", "1s"),
            ("-2h", "shorter than a second", "1s"),
            ("2h ago", "shorter than a second", "1s"),
            ("3651d", "longer than ten years", "3650d"),
            ("3650d1s", "longer than ten years", "3650d"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.fix().contains(fix), "{text}: {}", error.fix());
        }
        assert!(parse(&"1h".repeat(100)).is_err());
    }

    #[test]
    fn spans_are_written_in_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (45, "45s"),
            (60, "1m"),
            (90, "1m30s"),
            (5400, "1h30m"),
            (3601, "1h"),
            (7 * DAY, "7d"),
            (DAY + 3 * HOUR + 59, "1d3h"),
        ] {
            assert_eq!(brief(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_to_within_its_second_unit(seconds in 1..=MAX_SECONDS) {
            let read = parse(&brief(seconds)).unwrap();
            let unit = if seconds >= DAY { HOUR } else if seconds >= HOUR { MINUTE } else { 1 };
            prop_assert!(read <= seconds && seconds - read < unit);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            if let Ok(seconds) = parse(&text) {
                prop_assert!((1..=MAX_SECONDS).contains(&seconds));
            }
        }
    }
}
