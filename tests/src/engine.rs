//! Real container engines and a real firewall, where the machine has them.
//!
//! They live on a lab's server: in its network namespace, in its cgroup, with their files in its directory, and in a mount
//! namespace where `/etc`, `/run` and `/opt` are copies. So nothing of the machine's own engines is touched, and
//! nothing of these is left. One test at a time has one.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command, http,
    lab::{Lab, OLLAMA},
    lock::NameLock,
    machine::Machine,
    wait::until,
};

/// The user whose containers Podman runs: a number that no machine gives to anybody, and the next ones for users inside.
const USER: u32 = 2_000_052_340;

/// What a test of real engines needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Docker,
    /// Podman as an ordinary user has it, with a forwarder of its own.
    RootlessPodman,
    Pasta,
    Ufw,
}

impl Engine {
    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker engine",
            Self::RootlessPodman => "rootless Podman",
            Self::Pasta => "pasta",
            Self::Ufw => "ufw",
        }
    }

    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["dockerd", "docker", "iptables"],
            Self::RootlessPodman => &["podman", "slirp4netns", "runc", "newuidmap"],
            Self::Pasta => &["pasta"],
            Self::Ufw => &["ufw", "iptables"],
        }
    }
}

/// Whether all of these are on the machine; says which is not, and that the test of this name is not run. `.ci/run` installs
/// them: a test must not.
#[must_use]
pub fn have(test: &str, engines: &[Engine]) -> bool {
    let is_there = |engine: &Engine| {
        engine.programs().iter().all(|program| command::is_installed(program))
            && (*engine == Engine::Ufw || static_busybox().is_some())
    };
    let Some(missing) = engines.iter().find(|engine| !is_there(engine)) else {
        return true;
    };
    let needs = missing.programs().join(", ");
    let message = format!(
        "{test}: not run: no {} on this machine (it takes {needs} and a static busybox)\n",
        missing.name()
    );
    // Past the test runner, which shows to nobody what a passing test prints; and whole, among what others write.
    let _ = io::stderr().write_all(message.as_bytes());
    false
}

/// What containers run: the machine's busybox, if it needs no other file.
fn static_busybox() -> Option<PathBuf> {
    let is_static = |path: &PathBuf| {
        let program = fs::read(path).unwrap_or_default();
        // One that is not names its interpreter: `/lib64/ld-linux-x86-64.so.2`, `/lib/ld-musl-aarch64.so.1`.
        !program.is_empty() && !program.windows(4).any(|bytes| bytes == b"/ld-")
    };
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(is_static)
}

/// A command on the lab's server, in its cgroup, among copies of `/etc`, `/run` and `/opt`, after this script. It is told to
/// end when the test's thread dies.
fn on_server(lab: &Lab, script: &str) -> Command {
    let etc = lab.directory().join("etc");
    for directory in ["upper", "work"] {
        fs::create_dir_all(etc.join(directory))
            .unwrap_or_else(|error| panic!("{} can't be made: {error}", etc.display()));
    }
    let etc = etc.display();
    let scene = format!(
        "set -e\n\
         echo $$ >{}/cgroup.procs\n\
         mount -t overlay -o lowerdir=/etc,upperdir={etc}/upper,workdir={etc}/work overlay /etc\n\
         mount -t tmpfs -o mode=755 tmpfs /run\n\
         mount -t tmpfs -o mode=755 tmpfs /opt\n\
         {script}\n\
         exec \"$@\"",
        lab.cgroup().display()
    );
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "nsenter"])
        .arg(format!("--net={}", lab.server.netns_path().display()))
        .args(["unshare", "--mount", "--propagation", "private", "sh", "-c", &scene, "sh"]);
    command
}

/// Runs a command that must succeed, and returns what it prints.
#[track_caller]
fn done(mut command: Command, input: &str) -> String {
    let output = command::output(&mut command, input);
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The files of a container: a tar archive with busybox and a page that reads as an AI server's answer.
#[track_caller]
fn image(lab: &Lab) -> PathBuf {
    let directory = lab.directory().join("image");
    let archive = lab.directory().join("image.tar");
    let made = (|| {
        fs::create_dir_all(directory.join("bin"))?;
        fs::create_dir_all(directory.join("www"))?;
        let busybox = static_busybox().ok_or(io::ErrorKind::NotFound)?;
        fs::copy(busybox, directory.join("bin/busybox"))?;
        fs::write(directory.join("www/index.html"), http::BODY)
    })();
    made.unwrap_or_else(|error| panic!("no image can be made: {error}"));
    let (directory, archive_name) = (directory.display(), archive.display());
    command::run("tar", &["-C", &directory.to_string(), "-cf", &archive_name.to_string(), "."]);
    archive
}

/// What runs in a container: an HTTP server at this port, on every address.
fn service(port: u16) -> Vec<String> {
    let port = port.to_string();
    ["/bin/busybox", "httpd", "-f", "-p", &port, "-h", "/www"].map(str::to_owned).to_vec()
}

/// A Docker daemon of a lab's own. It ends, with its containers, when this is dropped.
#[derive(Debug)]
pub struct Docker<'lab> {
    lab: &'lab Lab,
    daemon: Child,
    _alone: NameLock,
}

impl<'lab> Docker<'lab> {
    #[must_use]
    #[track_caller]
    pub fn start(lab: &'lab Lab) -> Self {
        let alone = NameLock::take("guard-test-engine");
        let directory = lab.directory().join("docker");
        let made = fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("daemon.json"), "{}"));
        made.unwrap_or_else(|error| panic!("{} can't be filled: {error}", directory.display()));
        let log = fs::File::create(directory.join("log"))
            .unwrap_or_else(|error| panic!("Docker's log can't be made: {error}"));
        let path = |name: &str| directory.join(name).display().to_string();
        let mut command = on_server(lab, "");
        command
            .args(["dockerd", "--config-file", &path("daemon.json")])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "-H", &format!("unix://{}", path("socket"))])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &format!("/{}", lab.name())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let daemon = command
            .spawn()
            .unwrap_or_else(|error| panic!("the Docker daemon can't be started: {error}"));
        let mut docker = Self { lab, daemon, _alone: alone };
        until("the Docker daemon answers", || {
            let has_ended = !matches!(docker.daemon.try_wait(), Ok(None));
            assert!(!has_ended, "the Docker daemon has ended: {}", docker.log());
            command::output(&mut docker.command(&["version"]), "").status.success()
        });
        let archive = image(lab);
        docker.tell(&["import", &archive.display().to_string(), "service"]);
        docker
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.directory().join("docker/log")).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let socket = self.lab.directory().join("docker/socket");
        let mut command = Command::new("docker");
        // Not with the settings of whoever runs the tests.
        command
            .arg("--config")
            .arg(self.lab.directory().join("docker"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .args(arguments)
            .env_remove("DOCKER_CONTEXT");
        command
    }

    #[track_caller]
    fn tell(&self, arguments: &[&str]) -> String {
        done(self.command(arguments), "")
    }

    /// The daemon's version: its first number.
    #[must_use]
    #[track_caller]
    pub fn version(&self) -> u32 {
        let version = self.tell(&["version", "--format", "{{.Server.Version}}"]);
        let first = version.split('.').next().and_then(|number| number.parse().ok());
        first.unwrap_or_else(|| panic!("{version} is no version of Docker"))
    }

    /// Starts a container with an AI server, with these flags of `docker run`, and waits until it answers.
    #[track_caller]
    pub fn run(&self, name: &str, flags: &[&str]) {
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(flags);
        arguments.push("service");
        let service = service(OLLAMA);
        arguments.extend(service.iter().map(String::as_str));
        self.tell(&arguments);
        let url = format!("http://127.0.0.1:{OLLAMA}/");
        until("the service in the container answers", || {
            let ask = ["exec", name, "/bin/busybox", "wget", "-q", "-O", "-", &url];
            command::output(&mut self.command(&ask), "").status.success()
        });
    }

    /// The container's address on Docker's bridge.
    #[must_use]
    #[track_caller]
    pub fn address(&self, name: &str) -> std::net::IpAddr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.tell(&["inspect", "--format", format, name]);
        address.parse().unwrap_or_else(|error| panic!("{name} has no address: {address}: {error}"))
    }

    /// Ends a container.
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.tell(&["rm", "--force", name]);
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let names = command::output(&mut self.command(&["ps", "--all", "--quiet"]), "");
        for name in String::from_utf8_lossy(&names.stdout).split_whitespace() {
            let _ = command::output(&mut self.command(&["rm", "--force", name]), "");
        }
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
        end_all_in(self.lab.cgroup(), |_| true);
        remove_v1_cgroups(self.lab.name());
    }
}

/// Podman of an ordinary user. What it has started ends when this is dropped.
#[derive(Debug)]
pub struct Podman<'lab> {
    lab: &'lab Lab,
    _alone: NameLock,
}

impl<'lab> Podman<'lab> {
    #[must_use]
    #[track_caller]
    pub fn new(lab: &'lab Lab) -> Self {
        let podman = Self { lab, _alone: NameLock::take("guard-test-engine") };
        make_home(lab);
        let archive = image(lab);
        let _ = done(podman.command(&["import", &archive.display().to_string(), "service"]), "");
        podman
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = as_user(self.lab);
        command
            // crun refuses a cgroup tree with v1 controllers beside it, and an ordinary user has no cgroups to manage.
            .args(["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"])
            .args(["--storage-driver", "vfs", "--events-backend", "file"])
            .args(arguments);
        command
    }

    /// Starts a container with an AI server, with these flags of `podman run`, and waits until it answers on this machine.
    #[track_caller]
    pub fn run(&self, name: &str, flags: &[&str]) {
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(flags);
        arguments.push("service");
        let service = service(OLLAMA);
        arguments.extend(service.iter().map(String::as_str));
        let _ = done(self.command(&arguments), "");
        let url = format!("http://127.0.0.1:{OLLAMA}/");
        until("the service in the container answers", || {
            let ask = ["exec", name, "/bin/busybox", "wget", "-q", "-O", "-", &url];
            command::output(&mut self.command(&ask), "").status.success()
        });
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = command::output(&mut self.command(&["rm", "--force", "--all", "--time", "0"]), "");
        end_all_in(self.lab.cgroup(), is_user_s);
    }
}

/// Starts `pasta` with these flags, around an AI server that listens inside. It ends when the child is killed.
#[derive(Debug)]
pub struct Pasta<'lab> {
    lab: &'lab Lab,
    child: Child,
    _alone: NameLock,
}

impl<'lab> Pasta<'lab> {
    #[must_use]
    #[track_caller]
    pub fn start(lab: &'lab Lab, flags: &[&str]) -> Self {
        let alone = NameLock::take("guard-test-engine");
        make_home(lab);
        image(lab);
        let image = lab.directory().join("image");
        let mut command = as_user(lab);
        command
            .args(["pasta", "--config-net", "--foreground", "--quiet"])
            .args(flags)
            .arg("--")
            .arg(image.join("bin/busybox"))
            .args(["httpd", "-f", "-p", &OLLAMA.to_string(), "-h"])
            .arg(image.join("www"))
            .stdin(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("pasta can't start: {error}"));
        Self { lab, child, _alone: alone }
    }
}

impl Drop for Pasta<'_> {
    fn drop(&mut self) {
        end_all_in(self.lab.cgroup(), is_user_s);
        let _ = self.child.wait();
    }
}

/// A firewall on the server that refuses what comes in, as `ufw enable` leaves it.
#[track_caller]
pub fn enable_ufw(lab: &Lab) {
    let mut command = on_server(lab, "");
    command.args(["ufw", "--force", "enable"]);
    let said = done(command, "");
    assert!(said.contains("Firewall is active"), "{said}");
}

/// A home and a runtime directory for the user.
#[track_caller]
fn make_home(lab: &Lab) {
    let made = (|| {
        for name in ["home", "runtime"] {
            let path = lab.directory().join(name);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            std::os::unix::fs::chown(&path, Some(USER), Some(USER))?;
        }
        // Not to be listed by the user, but to be passed through.
        fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o711))
    })();
    made.unwrap_or_else(|error: io::Error| panic!("there can be no home for the user: {error}"));
}

/// A command as an ordinary user of the server, who may make user namespaces and network devices in them.
fn as_user(lab: &Lab) -> Command {
    let directory = lab.directory().display();
    let inside = USER + 10_000;
    let mut command = on_server(
        lab,
        &format!(
            "echo 'guard-test:x:{USER}:{USER}::{directory}/home:/bin/sh' >>/etc/passwd\n\
             echo 'guard-test:x:{USER}:' >>/etc/group\n\
             echo 'guard-test:{inside}:65536' | tee /etc/subuid >/etc/subgid\n\
             mount -t tmpfs -o mode=755 tmpfs /dev/net\n\
             mknod -m 666 /dev/net/tun c 10 200\n\
             cd {directory}/home"
        ),
    );
    command
        .args(["setpriv", "--reuid", &USER.to_string(), "--regid", &USER.to_string()])
        .args(["--clear-groups", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
        .arg(format!("HOME={directory}/home"))
        .arg(format!("XDG_RUNTIME_DIR={directory}/runtime"));
    command
}

fn is_user_s(pid: Pid) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(format!("/proc/{}", pid.as_raw_pid())).map(|process| process.uid());
    owner.is_ok_and(|owner| (USER..USER + 80_000).contains(&owner))
}

/// Ends the processes in a cgroup, and below it, that an engine has left; the cgroups below go with them.
fn end_all_in(cgroup: &Path, is_engine_s: impl Fn(Pid) -> bool) {
    until("the engine's processes have ended", || {
        let below = below(cgroup);
        let left: Vec<Pid> = below
            .iter()
            .map(PathBuf::as_path)
            .chain([cgroup])
            .flat_map(processes)
            .filter(|pid| is_engine_s(*pid))
            .collect();
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        below.iter().rev().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
        left.is_empty()
    });
}

fn processes(cgroup: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw).collect()
}

/// The cgroups below one, outer ones first.
fn below(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        found.push(path.clone());
        found.extend(below(&path));
    }
    found
}

/// Where v1 controllers stand beside the v2 tree, an engine makes its cgroups in each of them.
fn remove_v1_cgroups(name: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for fields in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
        if let [_, mount, "cgroup", ..] = fields[..] {
            let path = Path::new(mount).join(name);
            below(&path).iter().rev().chain([&path]).for_each(|path| drop(fs::remove_dir(path)));
        }
    }
}

/// Asks a machine's service until it answers: a forwarder listens before what it leads to does.
#[track_caller]
pub fn until_answered(caller: &Machine, to: std::net::SocketAddr) {
    until(&format!("{to} answers"), || caller.inside(|| http::get(to)).is_ok());
}
