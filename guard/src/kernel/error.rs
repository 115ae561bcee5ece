//! Why the kernel's side could not be done.

use std::{io, path::PathBuf};

use guard_common::abi::ABI_VERSION;

use crate::control::Failure;

/// Each says what failed; [`KernelError::fix`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this binary was built without its kernel programs")]
    NoObject,
    #[error("guard needs root to load its kernel programs")]
    NotRoot,
    #[error("the kernel has no type information: {path} is missing")]
    NoBtf { path: &'static str },
    #[error("the kernel did not take guard's programs and maps: {0}")]
    Load(String),
    #[error("the program {name} could not be loaded: {source}")]
    Program { name: &'static str, source: aya::programs::ProgramError },
    #[error("the map {name} could not be {what}: {source}")]
    Map { name: &'static str, what: &'static str, source: aya::maps::MapError },
    #[error("{what} {path} failed: {source}")]
    Pin { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what} failed: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("the policy needs {needed} {what}, and the kernel's table holds {room}")]
    TooLarge { what: &'static str, needed: usize, room: usize },
    #[error("the policy's prefixes take more than the {room_mib} MiB that its table may have")]
    TooManyAddresses { room_mib: u64 },
    #[error("guard already runs here (process {pid})")]
    Locked { pid: u32 },
    #[error("nothing of guard is loaded in the kernel")]
    NotLoaded,
    #[error(
        "a newer guard is in force: its kernel tables have layout {layout}, and this one knows up to {ABI_VERSION}"
    )]
    Newer { layout: u32 },
    #[error(
        "an older guard is in force: its kernel tables have layout {layout}, and this one has {ABI_VERSION}"
    )]
    Older { layout: u32 },
}

impl KernelError {
    /// One sentence: what to do.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NoObject => "Build it with `cargo xtask build`.",
            Self::NotRoot => "Run it with sudo.",
            Self::NoBtf { .. } => {
                "Use a kernel built with CONFIG_DEBUG_INFO_BTF; until then nothing is guarded."
            }
            Self::Load(_) | Self::Program { .. } => {
                "`guard status` says what is in force; a kernel of 5.8 or newer with BPF enabled is needed."
            }
            Self::Map { .. } | Self::Pin { .. } | Self::System { .. } => {
                "The policy in force is as it was; `guard status` shows it."
            }
            Self::TooLarge { .. } => {
                "Use fewer rules with different ports or ends, or wider prefixes."
            }
            Self::TooManyAddresses { .. } => "Use shorter lists of prefixes, or wider prefixes.",
            Self::Locked { .. } => {
                "Change its rules with `guard allow` and `guard deny`, or end it first."
            }
            Self::NotLoaded => "Start it with `guard run`.",
            Self::Newer { .. } => {
                "It stays in force as it is. Use the newer guard; or lift it with the newer `guard down`, then start this one."
            }
            Self::Older { .. } => {
                "It stays in force as it is. `guard run` takes it over without a gap; `guard down` lifts it."
            }
        }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::failed(error.to_string(), error.fix())
    }
}
