//! The name of an interface that a rule's packets come by.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::quoted;
use crate::control::Failure;

/// `IFNAMSIZ` of `include/uapi/linux/if.h`, less the zero at the end.
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// A name that the kernel would give an interface (`dev_valid_name` in `net/core/dev.c`), with no character that stands for others
/// and none that only looks like another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Why a text is not the name of one interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    #[error("{} can't be the name of an interface", quoted(.text))]
    NoName { text: String },
    #[error("{} stands for several interfaces, and a rule names one", quoted(.text))]
    Pattern { text: String },
}

impl InterfaceNameError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::NoName { .. } => format!(
                "Write a name as `guard status` shows it, such as eth0, of at most {MAX_INTERFACE_NAME_BYTES} bytes."
            ),
            Self::Pattern { .. } => {
                "Write a rule for each interface, or name the bridge or bond above them.".to_owned()
            }
        }
    }
}

impl From<InterfaceNameError> for Failure {
    fn from(error: InterfaceNameError) -> Self {
        Self::bad_request(error.to_string(), error.fix())
    }
}

impl InterfaceName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<Self, InterfaceNameError> {
        text.parse()
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let never_in_names = |character: char| {
            matches!(character, '/' | ':') || character.is_whitespace() || character.is_control()
        };
        let is_name = !matches!(text, "" | "." | "..")
            && text.len() <= MAX_INTERFACE_NAME_BYTES
            && !text.contains(never_in_names);
        if text.contains(['*', '?', '[']) {
            return Err(InterfaceNameError::Pattern { text: text.to_owned() });
        }
        if !is_name {
            return Err(InterfaceNameError::NoName { text: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes() {
        for text in ["eth0", "tailscale0", "eth0.5", "wg-home_1", "fifteen-letters", "ä"] {
            let name: InterfaceName = text.parse().unwrap();
            assert_eq!((name.as_str(), name.to_string().as_str()), (text, text));
        }
        for text in ["", ".", "..", "sixteen-letters!", "a b", "a/b", "eth0:1", "a\n", "\u{a0}"] {
            let error = text.parse::<InterfaceName>().unwrap_err();
            assert!(matches!(error, InterfaceNameError::NoName { .. }), "{text:?}");
            assert!(error.fix().contains("guard status"));
        }
        for text in ["eth*", "eth?", "[ab]0", "*"] {
            let error = text.parse::<InterfaceName>().unwrap_err();
            assert!(matches!(error, InterfaceNameError::Pattern { .. }), "{text}");
            assert!(error.to_string().contains("a rule names one"));
        }
    }
}
