//! The unit in `packaging/systemd`, as it is, under a systemd that boots the lab's server.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use guard::control::{Enforcement, Status};
use guard_tests::{
    cgroup, command, kernel,
    lab::{CLIENT, CLIENT_MAC, Lab, OLLAMA, SERVER},
    listener::Listener,
    lock::NameLock,
    product::counted,
    wait::{EndOnDrop, until},
    wire,
};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Makes the server's own file systems, and becomes its PID 1. As `systemd-nspawn` does, it leaves only the network's settings
/// of `/proc/sys` writable: the others are the machine's.
const BOOT: &str = r#"
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
umount -l /sys/fs/bpf
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
cp -L /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache "$WORLD/etc"
echo 5c1e2a3f4b6d47809a1b2c3d4e5f6071 >"$WORLD/etc/machine-id"
mount --bind "$WORLD/etc" /etc
mount --bind "$WORLD/sbin" /usr/local/sbin
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
systemd-sysusers "$WORLD/sysusers.conf"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=lab SYSTEMD_UNIT_PATH=/etc/systemd/system \
    /lib/systemd/systemd --system --log-target=console --log-level=info --unit=sysinit.target
"#;

/// A unit that does what its name says in systemd's own set, and nothing else.
const EMPTY_TARGET: &str = "[Unit]\nDefaultDependencies=no\n";

/// The server's network, brought up as every network service does it: after `network-pre.target`.
const NETWORK: &str = "[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
StandardOutput=append:WORLD/before-the-network.json
ExecStart=-/usr/local/sbin/guard status --json
ExecStart=/sbin/ip -batch WORLD/network.ip
";

/// What the units of the machine are missing here.
fn missing() -> Option<&'static str> {
    if !Path::new(SYSTEMD).exists() {
        return Some("systemd is not installed");
    }
    (!command::is_installed("systemd-sysusers")).then_some("systemd-sysusers is not installed")
}

/// A lab's server that systemd boots: in namespaces of its own for everything but what the lab sees of it, its network.
struct Booted<'lab> {
    lab: &'lab Lab,
    world: PathBuf,
    systemd: Child,
    /// Guards whose pins have the same path take each other's hooks for their own: one at a time has the default.
    _alone: NameLock,
}

impl<'lab> Booted<'lab> {
    /// Prepares all, with this drop-in for the unit, and lets systemd begin. The server's link is down until it has brought it up.
    fn boot(lab: &'lab Lab, drop_in: &str) -> Self {
        let alone = NameLock::take("guard-test-booted");
        let world = lab.directory().join("world");
        let units = world.join("etc/systemd/system");
        for directory in [&units.join("guard.service.d"), &world.join("sbin"), &units] {
            fs::create_dir_all(directory).unwrap();
        }
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        fs::copy(packaging.join("systemd/guard.service"), units.join("guard.service")).unwrap();
        fs::copy(
            packaging.join("prometheus/guard-metrics.service"),
            units.join("guard-metrics.service"),
        )
        .unwrap();
        fs::copy(packaging.join("sysusers.d/guard.conf"), world.join("sysusers.conf")).unwrap();
        let here = world.display();
        fs::write(
            units.join("guard.service.d/log.conf"),
            format!(
                "[Service]\nStandardOutput=append:{here}/log\nStandardError=append:{here}/log\n{drop_in}"
            ),
        )
        .unwrap();
        for target in ["sysinit", "network-pre", "local-fs", "shutdown"] {
            fs::write(units.join(format!("{target}.target")), EMPTY_TARGET).unwrap();
        }
        let network =
            NETWORK.replace("WORLD", &here.to_string()) + "[Install]\nWantedBy=sysinit.target\n";
        fs::write(units.join("network.service"), network).unwrap();
        fs::write(
            world.join("network.ip"),
            format!(
                "link set eth0 up\n\
                 neighbour replace {client} lladdr {mac} dev eth0 nud permanent\n\
                 route add default via {client}\n",
                client = CLIENT.v4,
                mac = CLIENT_MAC.map(|byte| format!("{byte:02x}")).join(":"),
            ),
        )
        .unwrap();
        // As an administrator does it: this is what `WantedBy=` comes to.
        let root = world.display().to_string();
        command::run("systemctl", &["--root", &root, "enable", "guard.service", "network.service"]);

        lab.server.ip("link set eth0 down");
        let script = world.join("boot");
        fs::write(&script, BOOT).unwrap();
        let join = format!(
            "echo $$ >{}/cgroup.procs && exec unshare --mount --pid --fork --kill-child --ipc --uts --cgroup sh {}",
            lab.cgroup().display(),
            script.display()
        );
        let log = fs::File::create(world.join("systemd.log")).unwrap();
        let mut booted =
            Self { lab, world, systemd: Self::install_and_start(lab, &join, log), _alone: alone };
        booted.wait_for_pid_1();
        booted
    }

    fn install_and_start(lab: &Lab, script: &str, log: fs::File) -> Child {
        let world = lab.directory().join("world");
        install(&binary("GUARD_BIN"), &world);
        Command::new("nsenter")
            .arg(format!("--net={}", lab.server.netns_path().display()))
            .args(["sh", "-c", script])
            .env("WORLD", &world)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn wait_for_pid_1(&mut self) {
        until("systemd answers", || {
            assert!(
                matches!(self.systemd.try_wait(), Ok(None)),
                "systemd has ended: {}",
                self.log_of("systemd.log")
            );
            self.init().is_some() && self.inside(&["systemctl", "--version"]).status.success()
        });
    }

    /// Its PID 1, as this machine numbers it.
    fn init(&self) -> Option<u32> {
        let unshare = self.systemd.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
    }

    fn inside(&self, words: &[&str]) -> std::process::Output {
        let init = self.init().map(|pid| pid.to_string()).unwrap_or_default();
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--mount", "--pid", "--net", "--cgroup", "--wd=/"]);
        command::output(command.args(words), "")
    }

    /// Runs a program there that must succeed, and returns what it prints.
    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        let output = self.inside(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{words:?} failed: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn property(&self, name: &str) -> String {
        let words = ["systemctl", "show", "--value", "--property", name, "guard.service"];
        String::from_utf8_lossy(&self.inside(&words).stdout).trim().to_owned()
    }

    #[track_caller]
    fn wait_until_active(&self) {
        until("the unit is active", || self.property("ActiveState") == "active");
    }

    /// Waits until another process than this one serves the unit.
    #[track_caller]
    fn wait_for_another(&self, pid: &str) {
        until("systemd has started another daemon", || {
            let now = self.property("MainPID");
            now != pid && now != "0" && self.property("ActiveState") == "active"
        });
    }

    #[track_caller]
    fn status(&self) -> Status {
        let output = self.inside(&["guard", "status", "--json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", self.log_of("log")))
    }

    /// What the unit of the metrics writes.
    #[track_caller]
    fn metrics(&self) -> String {
        const DIRECTORY: &str = "/var/lib/prometheus/node-exporter";
        self.run(&["mkdir", "-p", DIRECTORY]);
        self.run(&["systemctl", "start", "guard-metrics.service"]);
        self.run(&["cat", &format!("{DIRECTORY}/guard.prom")])
    }

    fn log_of(&self, name: &str) -> String {
        fs::read_to_string(self.world.join(name)).unwrap_or_default()
    }
}

impl Drop for Booted<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}\n{}", self.log_of("systemd.log"), self.log_of("log"));
        }
        // Its death is that of PID 1 (`--kill-child`), and PID 1's that of all.
        let _ = self.systemd.kill();
        let _ = self.systemd.wait();
        remove_below(self.lab.cgroup());
    }
}

/// Removes the cgroups that systemd has made, once their processes have gone.
fn remove_below(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            until("systemd's processes are gone", || cgroup::remove(&entry.path()).is_ok());
        }
    }
}

fn binary(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    PathBuf::from(path.unwrap_or_else(|| panic!("{variable} is not set: `cargo xtask test` does")))
}

/// Puts a guard where the unit expects it, in one step, as a package manager does.
fn install(binary: &Path, world: &Path) {
    let new = world.join("sbin/guard.new");
    fs::copy(binary, &new).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, world.join("sbin/guard")).unwrap();
}

/// Strangers knock all the time, whatever the link's state, while something is done. Returns how often.
fn while_strangers_knock(lab: &Lab, work: impl FnOnce()) -> u64 {
    let wire = lab.wire();
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed) as u16;
                let from = (wire::stranger_v4(number), 4242).into();
                if wire.send_if_up(&wire::syn(from, SERVER.v4_at(OLLAMA))) {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        let end = EndOnDrop(&is_over);
        work();
        drop(end);
    });
    sent.into_inner()
}

#[track_caller]
fn expect_no_stranger(lab: &Lab, listener: &Listener, when: &str) {
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0, "{when}");
    let reached = listener.reached_by();
    assert!(reached.iter().all(|peer| CLIENT.has(peer.ip())), "{when}: {reached:?}");
}

#[test]
fn the_unit_guards_from_before_the_network_and_through_all_that_happens_to_it() {
    const NAME: &str = "the_unit_guards_from_before_the_network_and_through_all_that_happens_to_it";
    if let Some(what) = missing() {
        return kernel::skip(NAME, what);
    }
    let lab = Lab::new(NAME);
    let listener = lab.serve();
    let server = SERVER.v4_at(OLLAMA);
    let mut dropped = 0;

    let sent = while_strangers_knock(&lab, || {
        let booted = Booted::boot(&lab, "");
        booted.wait_until_active();
        until("the network is up", || lab.server.carrier_changes("eth0") > 0);
        until("strangers are dropped", || counted(&booted.status(), "tcx", "drop", "no-rule") > 0);
        // It was in force when the network was about to come up, and its socket answered.
        let before: Status =
            serde_json::from_str(&booted.log_of("before-the-network.json")).unwrap();
        assert_ne!(before.enforcement, Enforcement::None, "{before:#?}");
        assert!(before.backstop.attached && before.daemon.is_some(), "{before:#?}");
        assert!(booted.property("StatusText").contains("11434"));
        assert_eq!(booted.run(&["stat", "-c", "%G %a", "/run/guard/guard.sock"]), "guard 660");
        expect_no_stranger(&lab, &listener, "boot");

        booted.run(&["guard", "allow", &CLIENT.v4.to_string()]);
        let served = |when: &str| {
            lab.client.expect_answer(server);
            expect_no_stranger(&lab, &listener, when);
        };
        served("allowed");
        booted.run(&["systemctl", "reload", "guard.service"]);
        booted.run(&["systemctl", "kill", "--signal=SIGHUP", "guard.service"]);
        until("SIGHUP is answered", || booted.log_of("log").contains("reloaded"));
        booted.wait_until_active();
        served("reloaded");

        let first = booted.property("MainPID");
        booted.run(&["systemctl", "kill", "--signal=SIGKILL", "guard.service"]);
        served("killed");
        booted.wait_for_another(&first);
        served("started after it was killed");

        booted.run(&["systemctl", "stop", "guard.service"]);
        assert_eq!(booted.property("ActiveState"), "inactive");
        let status = booted.status();
        assert_eq!(status.daemon, None);
        assert!(status.outlives_daemon && status.backstop.attached, "{status:#?}");
        let metrics = booted.metrics();
        assert!(metrics.contains("guard_daemon_up 0"), "{metrics}");
        assert!(metrics.contains("guard_enforced{layer=\"interfaces\"} 1"), "{metrics}");
        served("stopped");
        booted.run(&["systemctl", "start", "guard.service"]);
        booted.run(&["systemctl", "restart", "guard.service"]);
        let metrics = booted.metrics();
        assert!(metrics.contains("guard_daemon_up 1"), "{metrics}");
        served("restarted");

        install(&binary("GUARD_NEXT_LAYOUT_BIN"), &lab.directory().join("world"));
        booted.run(&["systemctl", "restart", "guard.service"]);
        served("upgraded");
        assert!(!booted.inside(&["test", "-e", "/sys/fs/bpf/guard/v1"]).status.success());
        dropped = counted(&booted.status(), "tcx", "drop", "no-rule");

        // And lifted it stays, though a unit that fails is started anew.
        booted.run(&["guard", "down"]);
        until("the unit has ended", || booted.property("ActiveState") == "inactive");
        assert_eq!(booted.property("Result"), "success");
    });

    // Whatever came before guard covered the new link was the backstop's.
    assert!(dropped > 0 && dropped <= sent, "{dropped} of {sent}");
}

#[test]
fn a_daemon_that_hangs_is_started_anew() {
    const NAME: &str = "a_daemon_that_hangs_is_started_anew";
    if let Some(what) = missing() {
        return kernel::skip(NAME, what);
    }
    let lab = Lab::new(NAME);
    let listener = lab.serve();
    while_strangers_knock(&lab, || {
        let booted = Booted::boot(&lab, "WatchdogSec=2s\n");
        booted.wait_until_active();
        until("the network is up", || lab.server.carrier_changes("eth0") > 0);
        let first = booted.property("MainPID");
        booted.run(&["systemctl", "kill", "--signal=SIGSTOP", "guard.service"]);
        booted.wait_for_another(&first);
        assert_eq!(booted.property("NRestarts"), "1");
        expect_no_stranger(&lab, &listener, "started after it hung");
        assert_eq!(
            booted.status().daemon.map(|pid| pid.to_string()),
            Some(booted.property("MainPID"))
        );
    });
}
