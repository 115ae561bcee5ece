//! Running other programs.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

/// Runs a program to its end, and fails the test unless it succeeds.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = output(Command::new(program).args(arguments), "");
    assert!(
        output.status.success(),
        "`{program} {}` failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// Runs `ip` commands, one a line, in one process. Blank lines are skipped.
#[track_caller]
pub fn ip(commands: &str) {
    let output = output(Command::new("ip").args(["-batch", "-"]), commands);
    assert!(
        output.status.success(),
        "`ip` refused one of these commands: {}\n{commands}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// Runs a program with this text as its standard input.
#[track_caller]
pub fn output(command: &mut Command, input: &str) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{name}` could not be started: {error}"));
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends without reading its input says why by its exit code.
        let _ = pipe.write_all(input.as_bytes());
    }
    child.wait_with_output().unwrap_or_else(|error| panic!("`{name}` was lost: {error}"))
}

/// Whether a program is installed.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}
