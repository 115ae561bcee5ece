//! Puts the programs and maps into the kernel and under their pins.

use std::{collections::HashSet, fs, os::fd::AsFd, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{CgroupSkb, Program, ProgramError, SchedClassifier, Xdp},
};
use guard_common::abi::{map, program};

use super::{KernelError, links, object, pins::Pins, sys};

/// What loading came to.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Why this kernel has no XDP program of ours; the others are there.
    pub no_xdp: Option<String>,
    /// Maps were there already, of this layout or of an older one: a policy may be in force.
    pub adopted: bool,
    /// None of this layout's were.
    pub is_new_layout: bool,
}

/// Loads this binary's programs over the pinned maps, making what is missing, and pins them in place of older ones. What
/// is attached stays as it is until the links are updated.
///
/// # Errors
/// When the kernel refuses; pins that were there before are untouched.
pub fn load(pins: &Pins) -> Result<Loaded, KernelError> {
    let object = object::object()?;
    pins.refuse_newer()?;
    let older = pins.older()?;
    let is_new_layout = !pins.map(map::ACTIVE).exists();
    let loaded = take_over(object, pins, older.as_ref()).and_then(|()| load_and_pin(object, pins));
    let result = loaded.map(|no_xdp| Loaded {
        no_xdp,
        adopted: !is_new_layout || older.is_some(),
        is_new_layout,
    });
    if result.is_err() && is_new_layout {
        // Half a set of pins would look like something to adopt. What failed matters more than that.
        if let Err(error) = pins.remove() {
            log::warn!("{error}");
        }
    }
    result
}

/// Pins the maps that stay the same from an older layout to this one also under this one's pins.
fn take_over(object: &[u8], pins: &Pins, older: Option<&Pins>) -> Result<(), KernelError> {
    let Some(older) = older else { return Ok(()) };
    pins.make_directories()?;
    let object =
        aya_obj::Object::parse(object).map_err(|error| KernelError::Load(chain(&error)))?;
    for name in map::KEPT {
        let fresh = pins.map(name);
        if fresh.exists() || !older.map(name).exists() {
            continue;
        }
        let failed = |source| KernelError::Map { name, what: "taken over", source };
        let held = MapData::from_pin(older.map(name)).map_err(failed)?;
        let wanted = object.maps.get(name).ok_or(KernelError::NoObject)?;
        let info = held.info().map_err(failed)?;
        let is_same = (info.key_size(), info.value_size(), info.max_entries())
            == (wanted.key_size(), wanted.value_size(), wanted.max_entries())
            && info.map_type().is_ok_and(|kind| kind as u32 == wanted.map_type());
        if is_same {
            sys::pin(held.fd().as_fd(), &fresh).map_err(|source| KernelError::Pin {
                what: "pinning a map at",
                path: fresh,
                source,
            })?;
        } else {
            log::warn!("{name} of layout v{}: it begins anew in this one", older.layout);
        }
    }
    Ok(())
}

/// Removes the pins of older layouts, unless something of theirs is still attached: then it says so.
///
/// # Errors
/// When a pin can't be removed.
pub fn forget_older(pins: &Pins) -> Result<Option<String>, KernelError> {
    while let Some(older) = pins.older()? {
        let programs = Programs::open(pins)?.ids()?;
        let links = links::ours(pins)?;
        let left = links.iter().filter(|link| !programs.contains(&link.program_id)).count();
        if left > 0 {
            return Ok(Some(format!(
                "{left} hooks still judge by what an older guard was told last (layout {}): the next start tries again",
                older.layout
            )));
        }
        for link in links.iter().filter(|link| !link.is_dead()) {
            link.keep(pins)?;
        }
        older.remove()?;
    }
    Ok(None)
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

/// Says why there is no XDP program, where there is none.
fn load_and_pin(object: &[u8], pins: &Pins) -> Result<Option<String>, KernelError> {
    pins.make_directories()?;
    let mut ebpf = over_pinned_maps(object, pins)?;

    for name in program::EVERYWHERE {
        let program = ebpf.program_mut(name).ok_or(KernelError::NoObject)?;
        load_program(program).map_err(|source| KernelError::Program { name, source })?;
        pin_program(program, name, pins)?;
    }
    load_xdp(&mut ebpf, pins)
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

    fn ids(&self) -> Result<HashSet<u32>, KernelError> {
        let failed = |name| move |source| KernelError::Program { name, source };
        let xdp = self.xdp.iter().map(|program| (program::XDP, program.info()));
        let classifiers = [
            (program::TCX, self.tcx.any.info()),
            (program::TCX_ETHERNET, self.tcx.ethernet.info()),
            (program::EDGE, self.edge.any.info()),
            (program::EDGE_ETHERNET, self.edge.ethernet.info()),
            (program::CGROUP, self.cgroup.info()),
        ];
        xdp.chain(classifiers)
            .map(|(name, info)| info.map(|info| info.id()).map_err(failed(name)))
            .collect()
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
