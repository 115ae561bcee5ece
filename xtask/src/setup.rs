//! Installing what is missing, after saying what and why.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{answer, find_program, run, without_cargo_variables},
    toolchain::{
        LINKER_VERSION, LLVM_MAJOR, Next, Package, Toolchain, choose, distribution_has_clippy,
        llvm_prefix, look,
    },
    workspace::Workspace,
};

/// What a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Compilers only.
    Build,
    /// And the programs with which the tests make networks.
    Test,
    /// And what virtual machines are packed with.
    Machines,
    /// And the distribution's clippy.
    Lint,
}

/// A program that the tests start, and the package that holds it.
const TEST_PROGRAMS: [(&str, Package); 3] = [
    ("ip", Package { name: "iproute2", purpose: "`ip`: the tests make networks with it" }),
    ("nsenter", Package { name: "util-linux", purpose: "`nsenter`: the tests enter them" }),
    ("nft", Package { name: "nftables", purpose: "`nft`: the tests redirect with TPROXY" }),
];

/// A program that packs a virtual machine, and the package that holds it.
const MACHINE_PROGRAMS: [(&str, Package); 3] = [
    (
        "strip",
        Package { name: "binutils", purpose: "`strip`: virtual machines hold small programs" },
    ),
    (
        "wg",
        Package { name: "wireguard-tools", purpose: "`wg`: WireGuard tunnels are tested there" },
    ),
    ("xz", Package { name: "xz-utils", purpose: "`xz`: modules of other kernels are compressed" }),
];

const CLIPPY: Package =
    Package { name: "rust-web-clippy", purpose: "clippy for the kernel programs" };

const UPSTREAM_ROUTE: &str = "or have the upstream toolchain instead: \
    `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`";

/// Installs what `scope` needs and this machine lacks, and returns the BPF toolchain. Says
/// nothing, and takes no time, where nothing is missing.
pub fn ensure(workspace: &Workspace, scope: Scope) -> Result<Toolchain> {
    let mut tried: Vec<Package> = Vec::new();
    let mut linker_built = false;
    loop {
        let next = choose(&look(workspace));
        let mut packages = match &next {
            Next::Install(packages) => packages.clone(),
            Next::Use(_) | Next::BuildLinker => Vec::new(),
        };
        packages.extend(missing_programs(scope, |program| find_program(program).is_some()));
        if scope == Scope::Lint
            && next != Next::Use(Toolchain::Upstream)
            && !distribution_has_clippy()
        {
            packages.push(CLIPPY);
        }
        if let Some(package) = packages.iter().find(|package| tried.contains(package)) {
            bail!(
                "{} is installed, and yet there is no {}: see which version apt has, {}",
                package.name,
                package.purpose,
                UPSTREAM_ROUTE
            );
        }
        if !packages.is_empty() {
            install(&packages)?;
            tried.extend(packages);
            continue;
        }
        match next {
            Next::Use(toolchain) => return Ok(toolchain),
            Next::Install(_) | Next::BuildLinker => {
                ensure!(
                    !linker_built,
                    "bpf-linker can't link what /usr/bin/rustc writes: see whether `/usr/bin/rustc \
                     -vV` names an LLVM newer than {LLVM_MAJOR}, {UPSTREAM_ROUTE}"
                );
                build_linker(workspace)?;
                linker_built = true;
            }
        }
    }
}

/// The packages of the programs that `scope` needs and `is_there` denies.
fn missing_programs(scope: Scope, is_there: impl Fn(&str) -> bool) -> Vec<Package> {
    if scope == Scope::Build {
        return Vec::new();
    }
    let machine_programs = MACHINE_PROGRAMS.into_iter().filter(|_| scope == Scope::Machines);
    TEST_PROGRAMS
        .into_iter()
        .chain(machine_programs)
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| package)
        .collect()
}

fn install(packages: &[Package]) -> Result<()> {
    let apt = find_program("apt-get");
    eprintln!("xtask: missing on this machine:\n{}", listing(packages));
    if let Some(obstacle) = obstacle(packages, apt.is_some(), is_root()?) {
        bail!(obstacle);
    }
    eprintln!("xtask: installing with apt-get");
    // A source that can't be reached must not stop an installation from the others.
    if let Err(error) = run(apt_get().arg("update"), "updating apt's lists of packages") {
        eprintln!("xtask: {error:#}; going on with the lists that are here");
    }
    let unknown: Vec<&str> =
        packages.iter().map(|package| package.name).filter(|name| !apt_knows(name)).collect();
    ensure!(
        unknown.is_empty(),
        "apt has no package {}: add the apt source that has it (Debian 12 needs \
         bookworm-security), {UPSTREAM_ROUTE}",
        unknown.join(", ")
    );
    let mut command = apt_get();
    // Never take away a compiler that the user has installed: these packages conflict with some.
    command.args(["install", "--yes", "--no-remove", "--no-install-recommends"]);
    command.args(packages.iter().map(|package| package.name));
    run(&mut command, &format!("installing {}", names(packages)))
}

fn apt_get() -> std::process::Command {
    let mut command = without_cargo_variables("apt-get");
    command
        .args(["--quiet", "--option", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn apt_knows(package: &str) -> bool {
    answer(without_cargo_variables("apt-cache").args(["show", package])).is_some()
}

/// Whether this process may install packages and load kernel programs.
pub fn is_root() -> Result<bool> {
    // The directory belongs to the effective user of the process.
    let metadata = fs::metadata("/proc/self").context("/proc/self could not be read")?;
    Ok(metadata.uid() == 0)
}

/// Why xtask can't install `packages`, with what to do instead.
fn obstacle(packages: &[Package], has_apt: bool, is_root: bool) -> Option<String> {
    if !has_apt {
        Some(format!(
            "this machine has no apt-get: install what the packages {} of Debian hold, {UPSTREAM_ROUTE}",
            names(packages)
        ))
    } else if !is_root {
        Some(format!(
            "only root can install packages: run this as root, or run `apt-get install \
             --no-install-recommends {}` as root first",
            names(packages).replace(", ", " ")
        ))
    } else {
        None
    }
}

fn names(packages: &[Package]) -> String {
    packages.iter().map(|package| package.name).collect::<Vec<_>>().join(", ")
}

fn listing(packages: &[Package]) -> String {
    packages
        .iter()
        .map(|package| format!("  {:<24} {}", package.name, package.purpose))
        .collect::<Vec<_>>()
        .join("\n")
}

fn build_linker(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools();
    eprintln!(
        "xtask: building bpf-linker {LINKER_VERSION} against LLVM {LLVM_MAJOR} into {}: it makes \
         one BPF object of what the compiler writes; once, a few minutes",
        tools.display()
    );
    let mut cargo = workspace.cargo();
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM_MAJOR}"),
            "--root",
        ])
        .arg(&tools)
        // Without it cargo builds in a directory of its own and removes that afterwards.
        .env_remove("CARGO_TARGET_DIR")
        .env("LLVM_PREFIX", llvm_prefix());
    run(&mut cargo, "building bpf-linker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_needs_no_test_program() {
        assert!(missing_programs(Scope::Build, |_| false).is_empty());
    }

    #[test]
    fn testing_needs_the_programs_that_are_not_there() {
        assert!(missing_programs(Scope::Test, |_| true).is_empty());
        assert_eq!(
            names(&missing_programs(Scope::Test, |program| program == "ip")),
            "util-linux, nftables"
        );
        assert_eq!(
            names(&missing_programs(Scope::Lint, |_| false)),
            "iproute2, util-linux, nftables"
        );
    }

    #[test]
    fn a_machine_without_apt_gets_the_list() {
        let packages = missing_programs(Scope::Test, |_| false);
        let text = obstacle(&packages, false, true).unwrap();
        assert!(text.contains("no apt-get") && text.contains("iproute2, util-linux, nftables"));
        assert!(text.contains("bpf-linker"));
        assert_eq!(obstacle(&packages, false, false), Some(text));
    }

    #[test]
    fn others_than_root_get_the_command() {
        let packages = missing_programs(Scope::Test, |program| program == "ip");
        let text = obstacle(&packages, true, false).unwrap();
        assert!(text.contains("as root"), "{text}");
        assert!(text.contains("--no-install-recommends util-linux nftables`"), "{text}");
        assert_eq!(obstacle(&packages, true, true), None);
    }

    #[test]
    fn every_missing_package_is_listed_with_its_purpose() {
        let packages = missing_programs(Scope::Test, |_| false);
        let text = listing(&packages);
        assert_eq!(text.lines().count(), packages.len());
        for (line, package) in text.lines().zip(&packages) {
            assert!(line.contains(package.name) && line.contains(package.purpose), "{line}");
        }
    }
}
