//! Puts the programs and maps into the kernel and under their pins.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSkb, Program, ProgramError, SchedClassifier, Xdp},
};
use guard_common::abi::{map, program};

use super::{KernelError, object, pins::Pins};

/// What loading came to.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Why this kernel has no XDP program of ours; the others are there.
    pub no_xdp: Option<String>,
    /// The maps were there already: a policy may be in force.
    pub adopted: bool,
}

/// Loads this binary's programs over the pinned maps, making what is missing, and pins them in place of older ones. What
/// is attached stays as it is until the links are updated.
///
/// # Errors
/// When the kernel refuses; pins that were there before are untouched.
pub fn load(pins: &Pins) -> Result<Loaded, KernelError> {
    let object = object::object()?;
    let adopted = pins.map(map::ACTIVE).exists();
    let result = load_and_pin(object, pins, adopted);
    if result.is_err() && !adopted {
        // Half a set of pins would look like something to adopt. What failed matters more than that.
        if let Err(error) = pins.remove_all() {
            log::warn!("{error}");
        }
    }
    result
}

/// This binary's programs, none of them loaded yet, over the pinned maps and those that are missing.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn over_pinned_maps(object: &[u8], pins: &Pins) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(object).map_err(|error| KernelError::Load(chain(&error)))
}

fn load_and_pin(object: &[u8], pins: &Pins, adopted: bool) -> Result<Loaded, KernelError> {
    pins.make_directories()?;
    let mut ebpf = over_pinned_maps(object, pins)?;

    for name in program::EVERYWHERE {
        let program = ebpf.program_mut(name).ok_or(KernelError::NoObject)?;
        load_program(program).map_err(|source| KernelError::Program { name, source })?;
        pin_program(program, name, pins)?;
    }
    Ok(Loaded { no_xdp: load_xdp(&mut ebpf, pins)?, adopted })
}

/// Loads and pins the XDP program that this kernel takes, and says why when it takes none. The kernel refuses a program
/// for frames of several buffers without a word below 5.18, so that only a try tells.
fn load_xdp(ebpf: &mut Ebpf, pins: &Pins) -> Result<Option<String>, KernelError> {
    let mut failure = None;
    for name in [program::XDP, program::XDP_PLAIN] {
        let program = ebpf.program_mut(name).ok_or(KernelError::NoObject)?;
        match load_program(program) {
            Ok(()) => return pin_program(program, program::XDP, pins).map(|()| None),
            Err(error) => failure = Some(chain(&error)),
        }
    }
    Ok(failure)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn pin_program(program: &mut Program, name: &'static str, pins: &Pins) -> Result<(), KernelError> {
    let path = pins.program(name);
    let fresh = pins.program(&format!("{name}_new"));
    let failed = |what, path: &Path, source| KernelError::Pin { what, path: path.into(), source };
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("removing", &fresh, error));
        }
        _ => {}
    }
    program
        .pin(&fresh)
        .map_err(|error| failed("pinning a program at", &fresh, std::io::Error::other(error)))?;
    fs::rename(&fresh, &path).map_err(|error| failed("pinning a program at", &path, error))
}

/// The pinned programs, whoever loaded them.
#[derive(Debug)]
pub struct Programs {
    /// `None` where this kernel takes no XDP program of ours.
    pub xdp: Option<Xdp>,
    pub tcx: Classifiers,
    pub edge: Classifiers,
    pub cgroup: CgroupSkb,
}

/// The two programs of a hook at TC.
#[derive(Debug)]
pub struct Classifiers {
    any: SchedClassifier,
    ethernet: SchedClassifier,
}

impl Classifiers {
    fn open(pins: &Pins, any: &'static str, ethernet: &'static str) -> Result<Self, KernelError> {
        let open = |name| {
            SchedClassifier::from_pin(pins.program(name))
                .map_err(|source| KernelError::Program { name, source })
        };
        Ok(Self { any: open(any)?, ethernet: open(ethernet)? })
    }

    /// The one for a device whose packets have an Ethernet header, or for any other.
    #[must_use]
    pub fn of(&self, is_ethernet: bool) -> &SchedClassifier {
        if is_ethernet { &self.ethernet } else { &self.any }
    }

    /// As [`Classifiers::of`].
    pub fn of_mut(&mut self, is_ethernet: bool) -> &mut SchedClassifier {
        if is_ethernet { &mut self.ethernet } else { &mut self.any }
    }
}

impl Programs {
    /// # Errors
    /// [`KernelError::Program`] when a pin is missing or holds something else.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let failed = |name| move |source| KernelError::Program { name, source };
        let xdp_pin = pins.program(program::XDP);
        let xdp = xdp_pin
            .exists()
            .then(|| Xdp::from_pin(&xdp_pin, aya_obj::programs::XdpAttachType::Interface))
            .transpose()
            .map_err(failed(program::XDP))?;
        let tcx = Classifiers::open(pins, program::TCX, program::TCX_ETHERNET)?;
        let edge = Classifiers::open(pins, program::EDGE, program::EDGE_ETHERNET)?;
        let cgroup = CgroupSkb::from_pin(
            pins.program(program::CGROUP),
            aya_obj::programs::CgroupSkbAttachType::Ingress,
        )
        .map_err(failed(program::CGROUP))?;
        Ok(Self { xdp, tcx, edge, cgroup })
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}
