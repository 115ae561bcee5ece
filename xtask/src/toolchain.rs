//! Which compiler builds the kernel programs.
//!
//! Two routes lead to a BPF object. *Upstream*: rustup's nightly with its `rust-src` component,
//! which compiles `core` for BPF on the way, and `bpf-linker` on `PATH`. *Distribution*: Debian's
//! own compiler, whose packages bring `core` compiled for BPF, and a `bpf-linker` built against
//! the LLVM of that compiler. A machine that has the first uses it; any other gets the second.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{answer, find_program, without_cargo_variables},
    workspace::Workspace,
};

/// The target of the kernel programs: BPF in this machine's byte order.
pub const BPF_TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// The release of `bpf-linker` that is built where none works.
pub const LINKER_VERSION: &str = "0.13.0";

/// The LLVM that the distribution's compiler is built on, and `bpf-linker` for it.
pub const LLVM_MAJOR: u32 = 22;

/// The oldest compiler that the workspace's `rust-version` takes.
const OLDEST_COMPILER: Version = Version { major: 1, minor: 95 };

const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const DISTRIBUTION_CARGO: &str = "/usr/bin/cargo";
const DISTRIBUTION_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// Compiled and linked to see whether a linker reads what the distribution's compiler writes. It
/// is kept free of panics, so that nothing of `core` needs linking: that alone takes seconds.
const PROBE: &str = r#"
#![no_std]
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn probe() -> u32 {
    2
}
"#;

/// A compiler release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// From what `rustc --version` prints: `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    fn parse(printed: &str) -> Option<Self> {
        let mut numbers = printed.strip_prefix("rustc ")?.split(['.', '-', ' ']);
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

/// What of the two routes a machine has.
#[expect(clippy::struct_excessive_bools, reason = "independent findings, set and read by name")]
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// rustup has a toolchain `nightly` with `rust-src`.
    pub nightly_with_source: bool,
    /// Every `bpf-linker` there is: on `PATH`, then the one that xtask has built.
    pub linkers: Vec<PathBuf>,
    /// The first of them is the one on `PATH`.
    pub linker_on_path: bool,
    /// The distribution's compiler.
    pub compiler: Option<Version>,
    /// `core` for BPF belongs to it.
    pub core_for_bpf: bool,
    /// The distribution's cargo.
    pub cargo: bool,
    /// The headers and libraries of [`LLVM_MAJOR`], to build `bpf-linker` with.
    pub llvm: bool,
    /// The first of `linkers` that links what the distribution's compiler writes.
    pub working_linker: Option<PathBuf>,
}

/// What cargo does with the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTask {
    Build,
    Clippy,
}

/// A complete route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    Upstream,
    Distribution { linker: PathBuf },
}

/// A package of the distribution, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub purpose: &'static str,
}

const COMPILER: Package =
    Package { name: "rustc-web", purpose: "a Rust compiler that can write BPF, 1.95 or newer" };
const CARGO: Package = Package { name: "cargo-web", purpose: "the cargo of that compiler" };
const CORE_FOR_BPF: Package =
    Package { name: "libstd-rust-web-dev-bpf", purpose: "Rust's core library, compiled for BPF" };
const LLVM: Package =
    Package { name: "llvm-22-dev", purpose: "LLVM as that compiler has it, to build bpf-linker" };

/// What to do next about the BPF toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Use(Toolchain),
    Install(Vec<Package>),
    BuildLinker,
}

/// Chooses the route, or the next step towards the distribution's.
pub fn choose(found: &Found) -> Next {
    if found.nightly_with_source && found.linker_on_path {
        return Next::Use(Toolchain::Upstream);
    }
    let mut packages = Vec::new();
    if found.compiler.is_none_or(|version| version < OLDEST_COMPILER) {
        packages.push(COMPILER);
    }
    if !found.cargo {
        packages.push(CARGO);
    }
    if !found.core_for_bpf {
        packages.push(CORE_FOR_BPF);
    }
    // Whether a linker works shows only when there is a compiler: until then one that is here
    // is taken to.
    let linker_may_work =
        found.working_linker.is_some() || (!packages.is_empty() && !found.linkers.is_empty());
    if !linker_may_work && !found.llvm {
        packages.push(LLVM);
    }
    match &found.working_linker {
        _ if !packages.is_empty() => Next::Install(packages),
        Some(linker) => Next::Use(Toolchain::Distribution { linker: linker.clone() }),
        None => Next::BuildLinker,
    }
}

/// Looks at this machine.
pub fn look(workspace: &Workspace) -> Found {
    let on_path = find_program("bpf-linker");
    let linker_on_path = on_path.is_some();
    let own = Some(workspace.tools().join("bin/bpf-linker")).filter(|linker| linker.is_file());
    let linkers: Vec<PathBuf> = on_path.into_iter().chain(own).collect();
    let compiler =
        answer(distribution_rustc().arg("--version")).and_then(|printed| Version::parse(&printed));
    Found {
        nightly_with_source: nightly_has_source(),
        linker_on_path,
        compiler,
        core_for_bpf: distribution_has_core_for_bpf(),
        cargo: Path::new(DISTRIBUTION_CARGO).is_file(),
        llvm: llvm_prefix().join("bin/llvm-config").is_file(),
        working_linker: compiler.and_then(|_| {
            linkers.iter().find(|linker| links_a_program(workspace, linker)).cloned()
        }),
        linkers,
    }
}

/// Where Debian's LLVM packages of [`LLVM_MAJOR`] lie.
pub fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"))
}

fn distribution_rustc() -> Command {
    without_cargo_variables(DISTRIBUTION_RUSTC)
}

/// Whether the distribution's compiler has its clippy.
pub fn distribution_has_clippy() -> bool {
    Path::new(DISTRIBUTION_CLIPPY).is_file()
}

/// rustup, never installing a toolchain on the way.
pub fn rustup() -> Command {
    let mut command = without_cargo_variables("rustup");
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn nightly_has_source() -> bool {
    answer(rustup().args(["which", "--toolchain", "nightly", "rustc"]))
        .and_then(|printed| source_of(Path::new(printed.trim_end())))
        .is_some_and(|source| source.is_dir())
}

/// Where `rust-src` puts `core`'s source for the compiler `TOOLCHAIN/bin/rustc`.
fn source_of(rustc: &Path) -> Option<PathBuf> {
    Some(rustc.parent()?.parent()?.join("lib/rustlib/src/rust/library/core"))
}

fn distribution_has_core_for_bpf() -> bool {
    answer(distribution_rustc().args(["--print", "target-libdir", "--target", BPF_TARGET]))
        .and_then(|printed| fs::read_dir(printed.trim_end()).ok())
        .is_some_and(|entries| {
            entries.flatten().any(|entry| is_core(&entry.file_name().to_string_lossy()))
        })
}

/// Whether `file` is a compiled `core`: `libcore-8056e5e5b270ef4d.rlib`.
fn is_core(file: &str) -> bool {
    file.starts_with("libcore-") && Path::new(file).extension().is_some_and(|end| end == "rlib")
}

/// Whether `linker` makes a BPF object of what the distribution's compiler writes.
fn links_a_program(workspace: &Workspace, linker: &Path) -> bool {
    // Named after this process: another xtask may be looking at the same time.
    let bitcode = workspace.tools().join(format!("probe-{}.bc", std::process::id()));
    let object = bitcode.with_extension("o");
    let works = compile_probe(&bitcode).is_ok()
        && answer(without_cargo_variables(linker).args(["--btf", "-o"]).arg(&object).arg(&bitcode))
            .is_some();
    for file in [bitcode, object] {
        // It may never have been made; and what can't be removed lies among build products.
        let _ = fs::remove_file(file);
    }
    works
}

fn compile_probe(bitcode: &Path) -> io::Result<()> {
    let source = bitcode.with_extension("rs");
    fs::create_dir_all(bitcode.parent().unwrap_or(bitcode))?;
    fs::write(&source, PROBE)?;
    let status = distribution_rustc()
        .args(["--crate-name", "probe", "--crate-type", "lib", "--edition", "2024"])
        .args(["--target", BPF_TARGET, "--emit", "llvm-bc", "-o"])
        .arg(bitcode)
        .arg(&source)
        .stderr(Stdio::null())
        .status();
    fs::remove_file(&source)?;
    if status?.success() { Ok(()) } else { Err(io::Error::other("the compiler refused the probe")) }
}

impl Toolchain {
    /// A cargo command of this route on the kernel programs; `target` is its own target
    /// directory, so that it never waits for the other cargo or throws away what that built.
    pub fn cargo(&self, task: KernelTask, root: &Path, target: &Path) -> Result<Command> {
        let subcommand = match task {
            KernelTask::Build => "build",
            KernelTask::Clippy => "clippy",
        };
        let mut command = match self {
            Self::Upstream => {
                let mut command = rustup();
                command.args(["run", "nightly", "cargo", subcommand, "-Z", "build-std=core"]);
                command
            }
            Self::Distribution { linker } => {
                // Asked for clippy, cargo would start rustup's where that is installed, too.
                let program = match task {
                    KernelTask::Build => DISTRIBUTION_CARGO,
                    KernelTask::Clippy => DISTRIBUTION_CLIPPY,
                };
                let mut command = without_cargo_variables(program);
                command
                    .env("CARGO", DISTRIBUTION_CARGO)
                    .env("RUSTC", DISTRIBUTION_RUSTC)
                    // The kernel programs, and aya below them, use unstable features.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("PATH", path_with(linker)?)
                    .arg(subcommand);
                command
            }
        };
        command
            .args(["--release", "--package", "guard-ebpf", "--target", BPF_TARGET])
            // One object of all crates. The rest of guard gains nothing by it, and takes minutes longer to link.
            .args(["--config", "profile.release.lto=\"thin\""])
            .arg("--target-dir")
            .arg(target)
            // Full debug information becomes BTF: the verifier quotes source lines from it, and
            // maps are declared in it.
            .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
            .current_dir(root);
        Ok(command)
    }

    /// The release of its compiler, in full.
    pub fn compiler_version(&self) -> Option<String> {
        match self {
            Self::Upstream => answer(rustup().args(["run", "nightly", "rustc", "-vV"])),
            Self::Distribution { .. } => answer(distribution_rustc().arg("-vV")),
        }
    }

    /// Whether its clippy is here; `Err` holds how to get it.
    pub fn clippy(&self) -> std::result::Result<(), &'static str> {
        let (present, remedy) = match self {
            Self::Upstream => (
                answer(rustup().args(["run", "nightly", "cargo", "clippy", "--version"])).is_some(),
                "`rustup component add --toolchain nightly clippy`",
            ),
            Self::Distribution { .. } => (
                distribution_has_clippy(),
                "`cargo xtask setup --lint` or the package rust-web-clippy",
            ),
        };
        if present { Ok(()) } else { Err(remedy) }
    }
}

/// `PATH` with the linker's directory before all others: the compiler starts `bpf-linker` by name.
fn path_with(linker: &Path) -> Result<std::ffi::OsString> {
    let directory = linker.parent().context("bpf-linker has no directory")?.to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(directory).chain(env::split_paths(&path));
    env::join_paths(directories)
        .with_context(|| format!("{} can't stand in PATH", linker.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with the distribution's route complete.
    fn complete() -> Found {
        Found {
            nightly_with_source: false,
            linkers: vec!["/tools/bpf-linker".into()],
            linker_on_path: false,
            compiler: Some(Version { major: 1, minor: 96 }),
            core_for_bpf: true,
            cargo: true,
            llvm: true,
            working_linker: Some("/tools/bpf-linker".into()),
        }
    }

    fn names(next: Next) -> Vec<&'static str> {
        match next {
            Next::Install(packages) => packages.iter().map(|package| package.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_machine_gets_all_of_the_distributions_route_at_once() {
        assert_eq!(
            names(choose(&Found::default())),
            ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"]
        );
    }

    #[test]
    fn a_complete_upstream_route_is_preferred() {
        let found = Found {
            nightly_with_source: true,
            linker_on_path: true,
            linkers: vec!["/home/u/.cargo/bin/bpf-linker".into()],
            ..Found::default()
        };
        assert_eq!(choose(&found), Next::Use(Toolchain::Upstream));
        let both = Found { nightly_with_source: true, linker_on_path: true, ..complete() };
        assert_eq!(choose(&both), Next::Use(Toolchain::Upstream));
    }

    #[test]
    fn half_an_upstream_route_is_none() {
        let no_source = Found { linker_on_path: true, ..complete() };
        let no_linker = Found { nightly_with_source: true, ..complete() };
        for found in [no_source, no_linker] {
            let linker = "/tools/bpf-linker".into();
            assert_eq!(choose(&found), Next::Use(Toolchain::Distribution { linker }));
        }
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        assert_eq!(names(choose(&Found { cargo: false, ..complete() })), ["cargo-web"]);
        assert_eq!(
            names(choose(&Found { core_for_bpf: false, ..complete() })),
            ["libstd-rust-web-dev-bpf"]
        );
        let old = Found { compiler: Some(Version { major: 1, minor: 85 }), ..complete() };
        assert_eq!(names(choose(&old)), ["rustc-web"]);
    }

    #[test]
    fn llvm_is_needed_only_to_build_the_linker() {
        assert_eq!(
            choose(&Found { llvm: false, ..complete() }),
            Next::Use(Toolchain::Distribution { linker: "/tools/bpf-linker".into() })
        );
        let no_linker = Found { working_linker: None, ..complete() };
        assert_eq!(choose(&no_linker), Next::BuildLinker);
        assert_eq!(names(choose(&Found { llvm: false, ..no_linker })), ["llvm-22-dev"]);
    }

    #[test]
    fn a_linker_that_could_not_be_tried_yet_is_not_replaced() {
        let found = Found {
            linkers: vec!["/root/.cargo/bin/bpf-linker".into()],
            linker_on_path: true,
            ..Found::default()
        };
        assert_eq!(names(choose(&found)), ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]);
    }

    #[test]
    fn compiler_releases_are_read_and_ordered() {
        let read = |text| Version::parse(text);
        assert_eq!(
            read("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some(Version { major: 1, minor: 96 })
        );
        assert_eq!(read("rustc 2.0-nightly"), Some(Version { major: 2, minor: 0 }));
        assert_eq!(read("cargo 1.96.0"), None);
        assert_eq!(read("rustc"), None);
        assert!(Version { major: 1, minor: 85 } < OLDEST_COMPILER);
        assert!(Version { major: 2, minor: 0 } > OLDEST_COMPILER);
    }

    #[test]
    fn the_oldest_compiler_is_the_one_of_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        let Version { major, minor } = OLDEST_COMPILER;
        assert!(manifest.contains(&format!("rust-version = \"{major}.{minor}\"")));
        assert!(COMPILER.purpose.contains(&format!("{major}.{minor}")));
        assert!(LLVM.name.contains(&LLVM_MAJOR.to_string()));
    }

    #[test]
    fn a_compiled_core_is_told_from_other_files() {
        assert!(is_core("libcore-8056e5e5b270ef4d.rlib"));
        assert!(!is_core("libcore-8056e5e5b270ef4d.rmeta"));
        assert!(!is_core("liballoc-216f9b299ea3c956.rlib"));
    }

    #[test]
    fn the_source_of_core_lies_in_the_toolchain() {
        assert_eq!(
            source_of(Path::new("/r/toolchains/nightly-x/bin/rustc")),
            Some("/r/toolchains/nightly-x/lib/rustlib/src/rust/library/core".into())
        );
        assert_eq!(source_of(Path::new("/")), None);
    }

    #[test]
    fn the_linkers_directory_comes_first() {
        let path = path_with(Path::new("/tools/bin/bpf-linker")).unwrap();
        assert_eq!(env::split_paths(&path).next(), Some("/tools/bin".into()));
    }
}
