//! How a command ends: the exit codes, which scripts rely on.

use std::process::ExitCode;

use crate::control::{Enforcement, FailureKind};

/// All exit codes. Each number has one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `guard status`: fully enforced.
    Done = 0,
    Failed = 1,
    /// The command was not well formed.
    Usage = 2,
    /// `guard status`: everything is in place, and only counts.
    Observe = 3,
    /// `guard status`: a part is missing.
    Partial = 4,
    /// `guard status`: nothing is enforced.
    NotEnforced = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Enforcement> for Exit {
    fn from(enforcement: Enforcement) -> Self {
        match enforcement {
            Enforcement::Full => Self::Done,
            Enforcement::Observe => Self::Observe,
            Enforcement::Partial => Self::Partial,
            Enforcement::None => Self::NotEnforced,
        }
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::BadRequest => Self::Usage,
            FailureKind::Forbidden | FailureKind::NeedsConfirmation | FailureKind::Failed => {
                Self::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_documented_ones() {
        let all = [
            (Exit::from(Enforcement::Full), 0),
            (Exit::from(Enforcement::Observe), 3),
            (Exit::from(Enforcement::Partial), 4),
            (Exit::from(Enforcement::None), 5),
            (Exit::from(FailureKind::BadRequest), 2),
            (Exit::from(FailureKind::Forbidden), 1),
            (Exit::from(FailureKind::NeedsConfirmation), 1),
            (Exit::from(FailureKind::Failed), 1),
        ];
        for (exit, number) in all {
            assert_eq!(exit as u8, number, "{exit:?}");
        }
    }
}
