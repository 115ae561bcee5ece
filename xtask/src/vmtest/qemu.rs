//! Virtual machines: QEMU without KVM, since a nested KVM may run no ordinary kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::apt::{Apt, Mirrors};
use crate::command::{find_program, without_cargo_variables};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How long one machine may run: several times what the longest selection takes.
const LIMIT: Duration = Duration::from_mins(15);

const MEMORY: &str = "1G";

/// QEMU, installed on this machine or unpacked.
pub struct Qemu {
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The one of this machine; otherwise Debian's, unpacked: to install it might take other packages away.
    pub fn find(mirrors: &Mirrors, directory: &Path) -> Result<Self> {
        if find_program(PROGRAM).is_some() {
            return Ok(Self { unpacked: None });
        }
        let tree = directory.join("qemu");
        if !tree.exists() {
            let release = release_of_this_machine()?;
            let security = format!("{release}-security");
            let suites = [release.as_str(), security.as_str()];
            let apt = Apt::new(directory.join("apt/qemu"), mirrors, &suites)?;
            apt.unpack_with_dependencies(PACKAGE, &tree)?;
        }
        Ok(Self { unpacked: Some(tree) })
    }

    fn command(&self) -> Command {
        let Some(tree) = &self.unpacked else {
            return without_cargo_variables(PROGRAM);
        };
        let mut command = without_cargo_variables(tree.join("usr/bin").join(PROGRAM));
        let libraries =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| tree.join(path));
        command.env(
            "LD_LIBRARY_PATH",
            format!("{}:{}", libraries[0].display(), libraries[1].display()),
        );
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(tree.join(data));
        }
        command
    }

    /// Runs a machine to its end, and hands over each line of its console.
    pub fn run(&self, kernel: &Path, initrd: &Path, mut line: impl FnMut(&str)) -> Result<()> {
        let mut machine = self
            .command()
            // Named, since QEMU would take KVM where /dev/kvm exists.
            .args(["-accel", "tcg", "-cpu", "max", "-M", "q35", "-smp", "1", "-m", MEMORY])
            .args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            // A panic reboots at once, which ends QEMU.
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("QEMU can't be started")?;
        let output = machine.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(clean(&line)).is_err() {
                    return;
                }
            }
        });
        let end = Instant::now() + LIMIT;
        let ended = loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(text) => line(&text),
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        if !ended {
            machine.kill().context("QEMU can't be ended")?;
        }
        let status = machine.wait().context("QEMU was lost")?;
        if !ended {
            bail!("the machine did not end within {} seconds", LIMIT.as_secs());
        }
        if !status.success() {
            bail!("QEMU ended with {status}, for the reason above");
        }
        Ok(())
    }
}

/// A line of a console without what a terminal would act on: the firmware moves the cursor before it starts the kernel.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut clean = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ECMA-48 section 5.4: a control sequence ends with a character from `@` on, behind its bracket.
            characters.next_if_eq(&'[');
            while characters.next_if(|c| !('@'..='~').contains(c)).is_some() {}
            characters.next();
        } else if !character.is_control() {
            clean.push(character);
        }
    }
    clean
}

fn release_of_this_machine() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release can't be read")?;
    codename(&text).with_context(|| {
        format!("/etc/os-release names no Debian release: install `{PROGRAM}` by hand")
    })
}

fn codename(os_release: &str) -> Option<String> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consoles_lines_are_plain_text() {
        assert_eq!(clean(b"\x1b[2J\x1b[1;1Hvmtest: done\r"), "vmtest: done");
        assert_eq!(clean(b"\x1bcplain \xff"), "plain \u{fffd}");
        assert_eq!(clean(b"\x1b["), "");
    }

    #[test]
    fn the_release_is_read() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=debian\n"), None);
    }
}
