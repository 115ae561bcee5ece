//! The first process of a virtual machine that `cargo xtask vmtest` starts: it makes what a system has, loads the kernel's
//! modules, runs the tests, and ends the machine.
//!
//! What is to be done stands in `/plan`, a line for each step, in order: `module PATH`, `set NAME=VALUE` of the environment,
//! `run NAME PROGRAM ARGUMENT…`. It tells of itself in lines that begin with `vmtest:`; the last one is `vmtest: done`.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, WaitOptions, wait},
    system::{RebootCommand, init_module, reboot},
};

const PLAN: &str = "/plan";

/// Where each file system belongs, in the order in which they are mounted.
const MOUNTS: [(&str, &str); 5] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

fn main() {
    if std::process::id() != 1 {
        eprintln!("guard-guest is the first process of a virtual machine: it would end this one");
        std::process::exit(2);
    }
    match carry_out() {
        Ok(()) => println!("vmtest: done"),
        Err(error) => println!("vmtest: failed: {error:#}"),
    }
    // The console sends what it holds before the machine ends.
    thread::sleep(Duration::from_millis(100));
    let error = reboot(RebootCommand::Restart);
    println!("vmtest: failed: the machine does not end: {error:?}");
}

fn carry_out() -> Result<()> {
    for (kind, directory) in MOUNTS {
        make_directory(directory)?;
        mount(kind, directory, kind, MountFlags::empty(), None)
            .with_context(|| format!("{directory} can't be mounted"))?;
    }
    for directory in ["/tmp", "/run/lock", "/run/netns"] {
        make_directory(directory)?;
    }
    let plan = fs::read_to_string(PLAN).with_context(|| format!("{PLAN} can't be read"))?;
    let mut variables = Vec::new();
    for line in plan.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["module", path] => load_module(Path::new(path))?,
            ["set", variable] => {
                let variable = variable.split_once('=');
                variables.push(variable.with_context(|| format!("no value in `{line}`"))?);
            }
            ["run", name, program, arguments @ ..] => {
                run(name, Command::new(program).args(arguments).envs(variables.clone()))?;
            }
            _ => bail!("`{line}` is no step"),
        }
    }
    Ok(())
}

fn make_directory(path: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("{path} can't be made"))
}

/// A module that does not load is a feature that the tests miss by name: it ends nothing here.
fn load_module(path: &Path) -> Result<()> {
    let image = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    match init_module(&image, c"") {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            println!("vmtest: {} can't be loaded: {error}", path.display());
        }
        _ => {}
    }
    Ok(())
}

/// Runs a program to its end, and takes in the processes that others have left.
fn run(name: &str, command: &mut Command) -> Result<()> {
    println!("vmtest: run {name}");
    let start = Instant::now();
    let child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("{name} can't be started"))?;
    let child = Pid::from_child(&child);
    loop {
        let (ended, status) = wait(WaitOptions::empty())
            .with_context(|| format!("{name} was lost"))?
            .with_context(|| format!("{name} was lost"))?;
        if ended == child {
            let seconds = start.elapsed().as_secs_f32();
            let code = status.exit_status().unwrap_or(-1);
            println!("vmtest: ran {name}: exit {code} after {seconds:.1} s");
            return Ok(());
        }
    }
}
