//! The binary under test, as an administrator meets it: command line, configuration, output, exit codes.

use std::{
    cell::{Cell, RefCell},
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use guard::{
    control::{Change, Enforcement, Explanation, RuleView, Status},
    events::{Attempt, Line},
    history::Entry,
    store::Sources,
};
use rustix::{
    fs::statfs,
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;

use crate::{
    cgroup, command,
    interrupt::Interrupter,
    kernel,
    lab::Lab,
    lock::NameLock,
    machine::Machine,
    wait::{patience, until},
};

const BPFFS: &str = "/sys/fs/bpf";

/// How guard is attached: the values of `attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Auto,
    Native,
    Generic,
    Tcx,
    Clsact,
    Socket,
}

impl Attach {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "native" => Self::Native,
            "generic" => Self::Generic,
            "tcx" => Self::Tcx,
            "clsact" => Self::Clsact,
            "socket" => Self::Socket,
            other => panic!("{other} is no way to attach"),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Socket => "socket",
        }
    }

    /// The first hook that judges a packet from outside.
    #[must_use]
    pub const fn hook(self) -> &'static str {
        match self {
            Self::Native | Self::Generic => "xdp",
            Self::Auto | Self::Tcx | Self::Clsact => "tcx",
            Self::Socket => "cgroup",
        }
    }

    /// What this kernel lacks for it.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        (self == Self::Tcx && !kernel::has_tcx()).then_some("TCX needs kernel 6.6")
    }

    /// What `status` says of an outside interface; nothing where only sockets are guarded. On a veth, `auto` is TCX: native XDP
    /// would cost other traffic too much.
    fn covered(self) -> Option<&'static str> {
        match self {
            Self::Auto if !kernel::has_tcx() => Some("clsact"),
            Self::Native => Some("xdp native"),
            Self::Generic => Some("xdp generic"),
            Self::Auto | Self::Tcx => Some("tcx"),
            Self::Clsact => Some("clsact"),
            Self::Socket => None,
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Answer {
    pub command: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

impl Answer {
    /// Fails the test unless the command was carried out.
    #[track_caller]
    pub fn expect_done(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
    }

    /// Fails the test unless the command was refused (exit 1) or not understood (exit 2), in few and plain words that
    /// name each of these, with nothing on standard output.
    #[track_caller]
    pub fn expect_refused(&self, names: &[&str]) {
        assert!(matches!(self.code, Some(1 | 2)), "{self:#?}");
        assert!(self.output.is_empty(), "{self:#?}");
        assert!(!self.errors.trim().is_empty(), "{self:#?}");
        assert!(!self.errors.contains("panicked"), "{self:#?}");
        assert!(self.errors.lines().count() <= 8, "{self:#?}");
        for name in names {
            assert!(self.errors.contains(name), "{name} is not named: {self:#?}");
        }
    }

    #[track_caller]
    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.output)
            .unwrap_or_else(|error| panic!("this is not the JSON it should be: {error}: {self:#?}"))
    }
}

/// A guard on a lab's server.
#[derive(Debug)]
pub struct Guard<'lab> {
    lab: &'lab Lab,
    attach: Attach,
    daemon: RefCell<Option<Child>>,
    build: Cell<Build>,
    /// Whether the backstop is attached to the lab's cgroup; otherwise to the root.
    own_cgroup: bool,
    /// Whether there is a tree of cgroups to attach the backstop to.
    has_cgroups: bool,
    /// Words before the daemon's command line: what starts it somewhere else.
    scene: Vec<String>,
    /// What sees the daemon's steps.
    interrupter: Option<Interrupter>,
}

impl<'lab> Guard<'lab> {
    #[track_caller]
    pub(crate) fn new(lab: &'lab Lab, attach: Attach, configuration: &str) -> Self {
        let guard = Self {
            lab,
            attach,
            daemon: RefCell::new(None),
            build: Cell::new(Build::Tested),
            own_cgroup: true,
            has_cgroups: true,
            scene: Vec::new(),
            interrupter: None,
        };
        guard.configure(configuration);
        guard
    }

    /// With the backstop on the root of the cgroup tree, as on a real host.
    #[must_use]
    #[track_caller]
    pub fn at_the_root(mut self, configuration: &str) -> Self {
        self.own_cgroup = false;
        self.configure(configuration);
        self
    }

    /// With daemons that can be killed at each of their steps.
    #[must_use]
    pub fn interrupted_by(mut self, interrupter: &Interrupter) -> Self {
        self.interrupter = Some(interrupter.clone());
        self
    }

    /// With a daemon in a mount namespace of its own, after this shell script has run there.
    #[must_use]
    pub fn in_a_mount_namespace(mut self, script: &str) -> Self {
        self.scene = ["unshare", "--mount", "sh", "-c"].map(str::to_owned).to_vec();
        self.scene.extend([format!("{script} && exec \"$@\""), "sh".to_owned()]);
        self
    }

    /// With a daemon that finds no tree of cgroups and can mount none.
    #[must_use]
    pub fn without_cgroups(mut self) -> Self {
        self.has_cgroups = false;
        let tree = cgroup::mount_point();
        self.in_a_mount_namespace(&format!(
            "umount -l {} && mkdir -p /run/guard && mount -t tmpfs -o ro tmpfs /run/guard",
            tree.display()
        ))
    }

    /// With a daemon in the lab's cgroup and in a cgroup namespace of its own, where that cgroup is the root, as in a container.
    #[must_use]
    pub fn in_a_cgroup_namespace(self) -> Self {
        let tree = cgroup::mount_point();
        let tree = tree.display();
        let join = format!("echo $$ > {}/cgroup.procs", self.lab.cgroup().display());
        let mut guard = self
            .in_a_mount_namespace(&format!("umount -l {tree} && mount -t cgroup2 cgroup2 {tree}"));
        let inner = std::mem::take(&mut guard.scene);
        guard.scene = ["sh", "-c"].map(str::to_owned).to_vec();
        guard.scene.extend([format!("{join} && exec unshare --cgroup \"$@\""), "sh".to_owned()]);
        guard.scene.extend(inner);
        guard
    }

    /// From here on, commands and daemons are of this build.
    pub fn use_build(&self, build: Build) {
        self.build.set(build);
    }

    /// Writes the configuration: these lines, and what every test needs.
    #[track_caller]
    pub fn configure(&self, lines: &str) {
        let cgroup = self.own_cgroup.then(|| self.lab.cgroup());
        let text = format!("attach = \"{}\"\n{lines}\n{}", self.attach, paths(self.lab, cgroup));
        let path = self.configuration();
        fs::write(&path, text)
            .unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
    }

    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.lab.directory().join("guard.toml")
    }

    /// The directory of the state that outlives a daemon.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        state(self.lab)
    }

    /// The control API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(self.lab)
    }

    /// Starts the daemon, and waits until it guards.
    #[track_caller]
    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// As [`Guard::start`], with these flags.
    #[track_caller]
    pub fn start_with(&self, flags: &[&str]) {
        self.start_until(flags, self.attach.covered());
    }

    /// As [`Guard::start`], where something keeps guard from attaching as it is told, and it comes to this.
    #[track_caller]
    pub fn start_expecting(&self, hook: &str) {
        self.start_until(&[], Some(hook));
    }

    /// As [`Guard::start`]; returns how long it took from the call until the daemon said what it enforces.
    #[must_use]
    #[track_caller]
    pub fn start_measured(&self) -> Duration {
        let said_before = self.log().len();
        let started = Instant::now();
        self.spawn(&[]);
        // "is now closed", or, where the backstop has a cgroup only, "is closed only in part".
        while !self.log()[said_before..].contains("closed") {
            assert!(self.daemon_runs(), "`guard run` ended; it said:\n{}", self.log());
            assert!(started.elapsed() < patience(), "it does not start:\n{}", self.log());
            thread::sleep(Duration::from_micros(500));
        }
        started.elapsed()
    }

    #[track_caller]
    fn start_until(&self, flags: &[&str], hook: Option<&str>) {
        let pid = self.spawn(flags);
        until("guard is in force", || {
            assert!(self.daemon_runs(), "`guard run` ended; it said:\n{}", self.log());
            // Asked before the daemon answers, `status` would look at pins and state by itself, beside it.
            if UnixStream::connect(self.socket()).is_err() {
                return false;
            }
            let answer = self.ask(&["status", "--json"]);
            serde_json::from_str(&answer.output)
                .is_ok_and(|status| self.is_in_force(&status, pid, hook))
        });
    }

    /// Starts the daemon, which is to be killed at one of its steps.
    #[track_caller]
    pub fn start_to_die(&self) {
        self.spawn(&[]);
        self.wait_for_end();
    }

    #[track_caller]
    fn spawn(&self, flags: &[&str]) -> u32 {
        assert!(!self.daemon_runs(), "a daemon runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap_or_else(|error| panic!("the daemon's log can't be opened: {error}"));
        let also_log = log
            .try_clone()
            .unwrap_or_else(|error| panic!("the daemon's log can't be opened twice: {error}"));
        let mut command = self.daemon_command();
        command.args(flags).stdin(Stdio::null()).stdout(log).stderr(also_log);
        let daemon = match &self.interrupter {
            Some(interrupter) => interrupter.spawn(&mut command),
            None => command.spawn(),
        };
        let daemon = daemon.unwrap_or_else(|error| panic!("`guard run` can't be started: {error}"));
        let pid = daemon.id();
        self.daemon.replace(Some(daemon));
        pid
    }

    fn is_in_force(&self, status: &Status, pid: u32, hook: Option<&str>) -> bool {
        let covered = hook.is_none_or(|hook| covered(status, "eth0", hook));
        status.daemon == Some(pid)
            && status.enforcement != Enforcement::None
            && status.backstop.attached == self.has_cgroups
            && covered
    }

    fn daemon_runs(&self) -> bool {
        let mut daemon = self.daemon.borrow_mut();
        daemon.as_mut().is_some_and(|daemon| matches!(daemon.try_wait(), Ok(None)))
    }

    /// The daemon's process.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let daemon = self.daemon.borrow();
        daemon.as_ref().map_or_else(|| panic!("no daemon was started"), Child::id)
    }

    /// What the daemon has said so far, and those before it.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.lab.directory().join("daemon.log")
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait_for_end();
    }

    /// Ends the daemon the way systemd does.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        self.wait_for_end();
    }

    /// Asks the daemon to read its configuration again.
    #[track_caller]
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let daemon = self.daemon.borrow();
        let daemon = daemon.as_ref().unwrap_or_else(|| panic!("no daemon was started"));
        kill_process(Pid::from_child(daemon), signal)
            .unwrap_or_else(|error| panic!("the daemon can't be sent {signal:?}: {error}"));
    }

    /// Waits until the daemon has ended by itself.
    #[track_caller]
    pub fn wait_for_end(&self) {
        until("the daemon has ended", || !self.daemon_runs());
        self.daemon.replace(None);
    }

    /// Runs a command to its end.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Answer {
        finish(&mut self.command(arguments), arguments)
    }

    /// Runs a command that must be carried out, and returns what it prints.
    #[track_caller]
    pub fn tell(&self, arguments: &[&str]) -> Answer {
        let answer = self.ask(arguments);
        answer.expect_done();
        answer
    }

    /// As [`Self::tell`] for somebody at a terminal: what stood there, with all that moves its cursor.
    #[track_caller]
    pub fn tell_on_terminal(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let (mut ours, theirs) = terminal().expect("a terminal can be made");
        let errors = theirs.try_clone().expect("it can be opened twice");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("guard can't be started: {error}"));
        // It holds the other ends, and with them the terminal.
        drop(command);
        let shown = thread::spawn(move || read_all(&mut ours));
        let status = child.wait().expect("it ends");
        let shown = shown.join().expect("it is read");
        assert!(status.success(), "{shown}");
        shown
    }

    /// Runs a command that must be refused, in words that name each of these.
    #[track_caller]
    pub fn expect_refusal(&self, arguments: &[&str], names: &[&str]) {
        self.ask(arguments).expect_refused(names);
    }

    /// Fails the test unless the daemon ends at once, in words that name each of these.
    #[track_caller]
    pub fn expect_no_start(&self, names: &[&str]) {
        finish(&mut self.daemon_command(), &["run"]).expect_refused(names);
    }

    /// Runs a command that changes the policy and must be carried out, and returns what it says of the change.
    #[track_caller]
    pub fn change(&self, arguments: &[&str]) -> Change {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        self.tell(&arguments).json()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(self.build.get(), &self.lab.server, &[], &self.configuration(), arguments)
    }

    fn daemon_command(&self) -> Command {
        command(self.build.get(), &self.lab.server, &self.scene, &self.configuration(), &["run"])
    }

    /// `guard status`, which also agrees with its exit code.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        let answer = self.ask(&["status", "--json"]);
        let status: Status = answer.json();
        let code = match status.enforcement {
            Enforcement::Full => 0,
            Enforcement::Observe => 3,
            Enforcement::Partial => 4,
            Enforcement::None => 5,
        };
        assert_eq!(answer.code, Some(code), "{answer:#?}");
        status
    }

    #[must_use]
    #[track_caller]
    pub fn rules(&self) -> Vec<RuleView> {
        self.tell(&["rules", "--json"]).json()
    }

    /// Who changed what, newest last.
    #[must_use]
    #[track_caller]
    pub fn history(&self) -> Vec<Entry> {
        let answer = self.tell(&["history", "--json"]);
        let entry = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("no change: {error}: {line}"))
        };
        answer.output.lines().map(entry).collect()
    }

    /// Who sent the most, by the history.
    #[must_use]
    #[track_caller]
    pub fn sources(&self, arguments: &[&str]) -> Sources {
        self.tell(&[&["sources", "--json"], arguments].concat()).json()
    }

    /// The number of the policy in force.
    #[must_use]
    #[track_caller]
    pub fn generation(&self) -> u64 {
        let status = self.status();
        status.generation.unwrap_or_else(|| panic!("no policy is in force: {status:#?}"))
    }

    #[must_use]
    #[track_caller]
    pub fn explain(&self, source: &str, port: &str) -> Explanation {
        self.tell(&["explain", source, port, "--json"]).json()
    }

    /// Reads attempts as they are reported, from the first on.
    #[must_use]
    #[track_caller]
    pub fn follow(&self) -> Follower {
        Follower::start(self.command(&["events", "--follow", "--since", "1h", "--json"]))
    }

    /// How many packets were judged so.
    #[must_use]
    #[track_caller]
    pub fn counted(&self, hook: &str, verdict: &str, reason: &str) -> u64 {
        counted(&self.status(), hook, verdict, reason)
    }

    /// Waits until so many packets were judged so, and fails the test when there are more.
    #[track_caller]
    pub fn expect_counted(&self, hook: &str, verdict: &str, reason: &str, packets: u64) {
        let what = format!("{packets} packets are counted as {verdict} {reason} at {hook}");
        until(&what, || self.counted(hook, verdict, reason) >= packets);
        let status = self.status();
        assert_eq!(counted(&status, hook, verdict, reason), packets, "{what}: {status:#?}");
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if thread::panicking() {
            eprintln!("what the daemon said:\n{}", self.log());
        }
    }
}

/// Packets that got this verdict at this hook for this reason.
#[must_use]
pub fn counted(status: &Status, hook: &str, verdict: &str, reason: &str) -> u64 {
    let of = |word: &str, wanted: &str| word == wanted;
    status
        .counters
        .iter()
        .filter(|c| of(&c.hook, hook) && of(&c.verdict, verdict) && of(&c.reason, reason))
        .map(|c| c.packets)
        .sum()
}

/// Whether an interface is covered in this way.
#[must_use]
pub fn covered(status: &Status, interface: &str, hook: &str) -> bool {
    let interface = status.interfaces.iter().find(|candidate| candidate.name == interface);
    interface.is_some_and(|interface| interface.hook.as_deref() == Some(hook))
}

/// `guard events --follow`, read as it comes.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Follower {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`guard events` can't be started: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
        Self { child, lines }
    }

    /// The attempts so far, without those that the history has folded. A line that is none fails the test, also one that says that
    /// some are lost.
    #[must_use]
    #[track_caller]
    pub fn attempts(&self) -> Vec<Attempt> {
        let attempts = self.lines().into_iter().filter_map(|line| match line {
            Line::Attempt(attempt) => Some(Arc::unwrap_or_clone(attempt)),
            Line::Hour(_) | Line::LeftOut { .. } => None,
            Line::Lagged { lagged } => panic!("{lagged} attempts were lost to who follows them"),
        });
        attempts.collect()
    }

    /// Packets that the attempts so far stand for, and how many attempts were lost on the way here.
    #[must_use]
    #[track_caller]
    pub fn reported_and_lost(&self) -> (u64, u64) {
        self.lines().iter().fold((0, 0), |(reported, lost), line| match line {
            Line::Attempt(attempt) => (reported + attempt.packets, lost),
            Line::Lagged { lagged } => (reported, lost + lagged),
            Line::Hour(_) | Line::LeftOut { .. } => (reported, lost),
        })
    }

    #[track_caller]
    fn lines(&self) -> Vec<Line> {
        let parse = |line: &Value| {
            serde_json::from_value(line.clone())
                .unwrap_or_else(|error| panic!("no attempt: {error}: {line}"))
        };
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().map(parse).collect()
    }

    /// Packets that the attempts so far stand for.
    #[must_use]
    #[track_caller]
    pub fn reported(&self) -> u64 {
        self.attempts().iter().map(|attempt| attempt.packets).sum()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With as little locked memory as these kernels allow whom nobody has given more (`MLOCK_LIMIT`).
const AS_LOGGED_IN: [&str; 4] = ["sh", "-c", "ulimit -l 64 && exec \"$@\"", "sh"];

/// A guard command on a machine. The process dies with the thread that starts it, also when that is killed.
fn command(
    build: Build,
    machine: &Machine,
    scene: &[String],
    configuration: &Path,
    arguments: &[&str],
) -> Command {
    // `ip netns exec` would mount another /sys over the one that holds the pins and the cgroups.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "nsenter"])
        .arg(format!("--net={}", machine.netns_path().display()))
        .args(scene)
        .args(AS_LOGGED_IN.into_iter().filter(|_| kernel::counts_locked_memory()))
        .arg(build.binary())
        .arg("--config")
        .arg(configuration)
        .args(arguments)
        .env_remove("GUARD_CONFIG")
        .env_remove("RUST_LOG")
        .env("NO_COLOR", "1");
    command
}

/// Runs a guard command to its end, which it has to come to soon.
#[track_caller]
fn finish(command: &mut Command, arguments: &[&str]) -> Answer {
    let words = format!("guard {}", arguments.join(" "));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{words}` can't be started: {error}"));
    let output = child.stdout.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    let errors = child.stderr.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    let deadline = Instant::now() + patience();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            unfinished => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("`{words}` does not come to an end: {unfinished:?}");
            }
        }
    };
    let text = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Answer { command: words, code: status.code(), output: text(output), errors: text(errors) }
}

/// Both ends of a new terminal of the usual size; the second is what a process takes for one.
fn terminal() -> io::Result<(File, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size)?;
    let path = ptsname(&ours, Vec::new())?;
    let theirs = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(OsStr::from_bytes(path.as_bytes()))?;
    Ok((ours.into(), theirs))
}

fn read_all(mut pipe: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Which guard is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The one under test.
    Tested,
    /// Of the same source, with kernel tables of another layout.
    NextLayout,
}

impl Build {
    fn binary(self) -> PathBuf {
        let variable = match self {
            Self::Tested => "GUARD_BIN",
            Self::NextLayout => "GUARD_NEXT_LAYOUT_BIN",
        };
        let path = std::env::var_os(variable).map(PathBuf::from);
        let Some(path) = path else {
            panic!("{variable} does not name a guard: `cargo xtask test` builds it and sets it")
        };
        // Relative to where cargo was called, not to this crate, it would mean something else.
        assert!(path.is_absolute(), "{variable}={} is not an absolute path", path.display());
        assert!(path.exists(), "{variable}={} does not exist", path.display());
        path
    }
}

fn state(lab: &Lab) -> PathBuf {
    lab.directory().join("state")
}

fn socket(lab: &Lab) -> PathBuf {
    lab.directory().join("guard.sock")
}

fn paths(lab: &Lab, cgroup: Option<&Path>) -> String {
    let cgroup = cgroup.map(|path| format!("cgroup = \"{}\"\n", path.display()));
    format!(
        "[paths]\npins = \"{}\"\nstate = \"{}\"\nsocket = \"{}\"\n{}",
        lab.pins().display(),
        state(lab).display(),
        socket(lab).display(),
        cgroup.unwrap_or_default()
    )
}

/// Whether anything is pinned below a directory.
#[must_use]
pub fn has_pins(directory: &Path) -> bool {
    fs::read_dir(directory).into_iter().flatten().flatten().any(|entry| {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        !is_directory || has_pins(&entry.path())
    })
}

/// Lifts what a test has left in force, with a configuration that no test has touched.
pub(crate) fn lift(lab: &Lab) -> Result<(), String> {
    let configuration = lab.directory().join("lift.toml");
    fs::write(&configuration, paths(lab, Some(lab.cgroup())))
        .map_err(|error| format!("{} can't be written: {error}", configuration.display()))?;
    // The newer one lifts what either has left.
    let is_next = lab.pins().join("v2").exists();
    let build = if is_next { Build::NextLayout } else { Build::Tested };
    let mut down = command(build, &lab.server, &[], &configuration, &["down"]);
    let output = command::output(&mut down, "");
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("`guard down` failed: {errors}"));
    }
    if has_pins(&lab.pins()) {
        return Err(format!("`guard down` has left pins in {}", lab.pins().display()));
    }
    Ok(())
}

/// Mounts bpffs where systemd would have: guards that start side by side might mount it one over the other.
pub(crate) fn mount_bpffs() {
    /// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
    const MAGIC: i64 = 0xcafe_4a11;
    let _alone = NameLock::take("guard-test-bpffs");
    let is_mounted = statfs(BPFFS).is_ok_and(|facts| facts.f_type == MAGIC);
    if !is_mounted {
        command::run("mount", &["-t", "bpf", "bpf", BPFFS]);
    }
}

/// Fails the test when the machine is guarded in earnest: the backstop on the root would judge the lab's packets as well.
#[track_caller]
pub(crate) fn refuse_a_guarded_machine() {
    assert!(
        !has_pins(&Path::new(BPFFS).join("guard")),
        "guard is in force on this machine and would judge the tests' packets too: `guard down` lifts it"
    );
}
