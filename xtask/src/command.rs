//! Running other programs, each in the environment that suits it.
//!
//! `cargo xtask` runs with variables that cargo and rustup have set for it, among them `CARGO`,
//! `RUSTUP_TOOLCHAIN` and a library path into the stable toolchain. Handed on to another
//! toolchain's compiler they choose the wrong one, and handed on to cargo they make build scripts
//! that watch them run again.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Whether `name` describes the package that cargo is running, not what the user wants.
fn describes_running_package(name: &str) -> bool {
    const EXACT: [&str; 4] =
        ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    const BEGINNINGS: [&str; 3] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_EXE_"];
    EXACT.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Whether `name` says which compiler is used, with which flags and to which place.
///
/// How crates are fetched (`CARGO_HOME`, `CARGO_HTTP_*`, `CARGO_NET_*`, `CARGO_REGISTRIES_*` and
/// the like) is not among them: a proxy or a mirror holds for every toolchain.
fn chooses_toolchain(name: &str) -> bool {
    const EXACT: [&str; 14] = [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN_SOURCE",
        "RUSTUP_TOOLCHAIN",
    ];
    const BEGINNINGS: [&str; 4] =
        ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_UNSTABLE_"];
    EXACT.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn command_without(program: impl AsRef<OsStr>, unwanted: impl Fn(&str) -> bool) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(&unwanted) {
            command.env_remove(name);
        }
    }
    command
}

/// A program that belongs to the toolchain which runs this xtask.
pub fn with_variables_kept(program: impl AsRef<OsStr>) -> Command {
    command_without(program, describes_running_package)
}

/// A program that has nothing to do with the toolchain which runs this xtask.
pub fn without_cargo_variables(program: impl AsRef<OsStr>) -> Command {
    command_without(program, |name| describes_running_package(name) || chooses_toolchain(name))
}

/// Runs `command` with its output shown; `what` says what it is for, as in "building guard".
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{what} failed: could not start {}", program.display()))?;
    if !status.success() {
        bail!("{what} failed: {} ended with {status}, for the reason above", program.display());
    }
    Ok(())
}

/// What `command` prints, when it starts and succeeds.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first file called `program` in the directories of `path`, a value of `PATH`.
pub fn find_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// As [`find_in`], in this process's `PATH` and where administrators' programs are kept: an
/// ordinary user's `PATH` often leaves those out.
pub fn find_program(program: &str) -> Option<PathBuf> {
    env::var_os("PATH").and_then(|path| find_in(&path, program)).or_else(|| {
        ["/usr/sbin", "/sbin"]
            .map(|directory| Path::new(directory).join(program))
            .into_iter()
            .find(|file| file.is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_of_the_running_package_is_not_handed_on() {
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_PKG_VERSION_MAJOR",
            "CARGO_BIN_NAME",
            "OUT_DIR",
        ] {
            assert!(describes_running_package(name), "{name}");
        }
        for name in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_TOOLCHAIN", "PATH"] {
            assert!(!describes_running_package(name), "{name}");
        }
    }

    #[test]
    fn what_chooses_a_compiler_is_not_handed_to_another_toolchain() {
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_STRIP",
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(chooses_toolchain(name), "{name}");
        }
    }

    #[test]
    fn how_crates_are_fetched_is_handed_on() {
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
            "HTTPS_PROXY",
            "RUSTUP_HOME",
        ] {
            assert!(!chooses_toolchain(name) && !describes_running_package(name), "{name}");
        }
    }

    #[test]
    fn programs_are_found_by_path_in_its_order() {
        let path = OsStr::new("relative:/nowhere:/usr/bin:/bin");
        assert_eq!(find_in(path, "env"), Some("/usr/bin/env".into()));
        assert_eq!(find_in(path, "no-such-program"), None);
    }

    #[test]
    fn a_failing_command_is_named_with_its_purpose() {
        let error = run(&mut Command::new("/bin/false"), "building nothing").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("building nothing failed: /bin/false ended with"), "{text}");
        let error = run(&mut Command::new("/no/such/program"), "building").unwrap_err();
        assert!(error.to_string().starts_with("building failed: could not start /no/such/program"));
        assert_eq!(answer(&mut Command::new("/bin/false")), None);
    }
}
