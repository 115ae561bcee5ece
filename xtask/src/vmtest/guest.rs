//! What a machine holds: guard, the tests, and the programs of this machine that they call, with their libraries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{archive::Archive, kernels::Kernel};
use crate::{
    command::{answer, find_program, run, without_cargo_variables},
    kernel_object::{Built, OBJECT_VARIABLE},
    workspace::Workspace,
};

/// Programs that the tests start.
const PROGRAMS: [&str; 10] =
    ["ip", "nft", "nsenter", "setpriv", "unshare", "sh", "mount", "umount", "mkdir", "wg"];

/// A filter of somebody else's that a test meets where this machine has it, and where that looks for its objects.
const FILTER: &str = "xdp-filter";
const FILTER_OBJECTS: &str = "/usr/lib/x86_64-linux-gnu/bpf";

const GUARD: &str = "/guard";
const TESTS: &str = "/tests";
const MODULES: &str = "/modules";

/// How many times slower than this machine the guest is, for the tests' patience.
const SLOWNESS: u32 = 10;

/// The tests of a run: programs, and parts of names; all tests of a program where there are none.
pub type Selection<'a> = &'a [(&'a str, &'a [&'a str])];

/// What cargo has built of the tests.
pub struct TestPrograms {
    programs: Vec<(String, PathBuf)>,
    helpers: Vec<(String, PathBuf)>,
}

impl TestPrograms {
    pub fn build(workspace: &Workspace, built: &Built) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo
            .args(["test", "--package", "guard-tests", "--test", "*", "--no-run"])
            .args(["--message-format", "json-render-diagnostics"])
            .env(OBJECT_VARIABLE, &built.object);
        let output = cargo
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cargo can't be started")?;
        ensure!(output.status.success(), "building the tests failed, for the reason above");
        Ok(Self::among(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The executables that cargo names in its messages, a JSON object a line.
    fn among(messages: &str) -> Self {
        let mut found = Self { programs: Vec::new(), helpers: Vec::new() };
        for line in messages.lines() {
            let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let (Some(path), Some(name)) =
                (message["executable"].as_str(), message["target"]["name"].as_str())
            else {
                continue;
            };
            let program = (name.to_owned(), PathBuf::from(path));
            match message["target"]["kind"][0].as_str() {
                Some("test") => found.programs.push(program),
                Some("bin") => found.helpers.push(program),
                _ => {}
            }
        }
        found
    }
}

/// Packs what runs these tests on this kernel.
pub fn pack(
    workspace: &Workspace,
    built: &Built,
    tests: &TestPrograms,
    kernel: &Kernel,
    selection: Selection<'_>,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut plan = Vec::new();
    for (name, image) in kernel.modules()? {
        let path = format!("{MODULES}/{name}.ko");
        archive.add(Path::new(&path), image)?;
        plan.push(format!("module {path}"));
    }
    for name in PROGRAMS {
        let path = find_program(name).with_context(|| format!("`{name}` is not installed"))?;
        add_program(&mut archive, &path, &format!("/bin/{name}"))?;
    }
    if let Some(path) = find_program(FILTER) {
        add_program(&mut archive, &path, &format!("/bin/{FILTER}"))?;
        let objects = fs::read_dir(FILTER_OBJECTS)
            .with_context(|| format!("{FILTER} is installed without {FILTER_OBJECTS}"))?;
        for object in objects {
            let path = object.context("a directory can't be read to its end")?.path();
            archive.add(&path, read(&path)?)?;
        }
    }
    add_stripped(workspace, &mut archive, &built.binary, GUARD)?;
    for (name, path) in &tests.helpers {
        add_stripped(workspace, &mut archive, path, &format!("{TESTS}/{name}"))?;
        if name == "guard-guest" {
            add_stripped(workspace, &mut archive, path, "/init")?;
        }
    }
    ensure!(archive.contains(Path::new("/init")), "cargo has built no guard-guest");
    plan.push("set PATH=/bin".to_owned());
    plan.push(format!("set GUARD_BIN={GUARD}"));
    plan.push(format!("set GUARD_TEST_SLOWNESS={SLOWNESS}"));
    for (name, filters) in selection {
        let Some((_, path)) = tests.programs.iter().find(|(built, _)| built == name) else {
            anyhow::bail!("there is no test program `{name}`: is its name in tests/tests?");
        };
        // Where cargo has it, so that it finds its helpers.
        let program = format!("{TESTS}/deps/{name}");
        add_stripped(workspace, &mut archive, path, &program)?;
        let run = format!("run {name} {program} --test-threads=2");
        let words: Vec<&str> = [run.as_str()].iter().chain(*filters).copied().collect();
        plan.push(words.join(" "));
    }
    archive.add(Path::new("/plan"), plan.join("\n").into_bytes())?;
    archive.bytes()
}

/// Every test program, with one filter for all.
pub fn everything<'a>(
    tests: &'a TestPrograms,
    filter: &'a [&'a str],
) -> Vec<(&'a str, &'a [&'a str])> {
    tests.programs.iter().map(|(name, _)| (name.as_str(), filter)).collect()
}

/// Adds a program without its debugging information, which would fill the guest's memory.
fn add_stripped(
    workspace: &Workspace,
    archive: &mut Archive,
    path: &Path,
    place: &str,
) -> Result<()> {
    let stripped = workspace.target.join("vmtest/stripped");
    let mut strip = without_cargo_variables("strip");
    strip.arg("-o").arg(&stripped).arg(path);
    run(&mut strip, &format!("stripping {}", path.display()))?;
    add_program(archive, &stripped, place)
}

/// Adds a program, and the libraries that it is linked to, at the paths where it looks for them.
fn add_program(archive: &mut Archive, path: &Path, place: &str) -> Result<()> {
    archive.add(Path::new(place), read(path)?)?;
    // Of a program that is linked to nothing, `ldd` says so by failing.
    let libraries = answer(without_cargo_variables("ldd").arg(path)).unwrap_or_default();
    for library in libraries.lines().filter_map(library) {
        if !archive.contains(library) {
            archive.add(library, read(library)?)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} can't be read", path.display()))
}

/// The file that a line of `ldd` names: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's, which stands alone.
fn library(line: &str) -> Option<&Path> {
    let words = line.split_ascii_whitespace();
    words.map(Path::new).rfind(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        for (line, path) in [
            ("\tlinux-vdso.so.1 (0x00007ffd)", None),
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x7f)", Some("/lib64/ld-linux-x86-64.so.2")),
            ("\tnot a dynamic executable", None),
        ] {
            assert_eq!(library(line), path.map(Path::new), "{line}");
        }
    }

    #[test]
    fn executables_are_read_from_what_cargo_prints() {
        let found = TestPrograms::among(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"guard"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"guard-lab"},"executable":"/t/guard-lab"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"access"},"executable":"/t/deps/access-1"}
{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(found.programs, [("access".to_owned(), "/t/deps/access-1".into())]);
        assert_eq!(found.helpers, [("guard-lab".to_owned(), "/t/guard-lab".into())]);
    }
}
