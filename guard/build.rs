//! Puts the kernel programs where `guard::kernel` embeds them from: `OUT_DIR/guard-ebpf`.
//!
//! `cargo xtask build` compiles them and names the object in `GUARD_EBPF_OBJECT`. Without that
//! variable the file is empty, so that checking, linting and unit tests need no BPF compiler: an
//! empty object means "built without kernel programs", and whoever loads it must say so.

use std::{env, fs, path::Path};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const OBJECT: &str = "GUARD_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    if let Err(error) = provide_object() {
        println!("cargo::error={error}");
    }
}

fn provide_object() -> Result<(), String> {
    let directory = env::var_os("OUT_DIR").ok_or("cargo has not set OUT_DIR")?;
    let destination = Path::new(&directory).join("guard-ebpf");
    let object = match env::var_os(OBJECT) {
        Some(path) => read_object(Path::new(&path))?,
        None => Vec::new(),
    };
    if object.is_empty() && env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        println!(
            "cargo::warning=this guard is built without its kernel programs and can't guard: \
             build it with `cargo xtask build`"
        );
    }
    fs::write(&destination, object)
        .map_err(|error| format!("{} could not be written: {error}", destination.display()))
}

fn read_object(path: &Path) -> Result<Vec<u8>, String> {
    // Cargo runs build scripts in the crate's directory, not where the user stands.
    if !path.is_absolute() {
        return Err(format!("{OBJECT} is {}: give an absolute path", path.display()));
    }
    println!("cargo::rerun-if-changed={}", path.display());
    let object = fs::read(path)
        .map_err(|error| format!("{OBJECT} is {}, which can't be read: {error}", path.display()))?;
    if !object.starts_with(b"\x7fELF") {
        return Err(format!(
            "{OBJECT} is {}, which is no ELF object: `cargo xtask build` makes one",
            path.display()
        ));
    }
    without_debug_information(&object).map_err(|error| {
        format!("{OBJECT} is {}, which can't be stripped: {error}", path.display())
    })
}

/// Four fifths of the object are for debuggers. guard would read them into memory with the programs; what the kernel wants to know of
/// types and lines stands in `.BTF` and `.BTF.ext`.
fn without_debug_information(object: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM has put the names of sections and symbols into one; the writer makes two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}
