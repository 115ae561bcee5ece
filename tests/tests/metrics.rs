//! What guard tells Prometheus, and what is made of it: Prometheus's own parsers read the metrics, and the alerts, the dashboard
//! and the documentation name nothing that is not among them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use guard_tests::{
    command,
    http::ask_api,
    kernel,
    lab::{Lab, OLLAMA, SERVER},
    product::Attach,
    wait::until,
};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

/// What is missing of Prometheus.
fn missing() -> Option<&'static str> {
    (!command::is_installed("promtool"))
        .then_some("promtool is not installed (Debian package prometheus)")
}

/// Runs promtool, which must have nothing to say against its input.
#[track_caller]
fn promtool(arguments: &[&str], input: &str) {
    let output = command::output(Command::new("promtool").args(arguments), input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {}{}\n{input}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// The names of guard's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.starts_with("guard_"))
        .map(str::to_owned)
        .collect()
}

/// The names of those that have a value.
fn served(metrics: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        line.split(['{', ' ']).next().filter(|_| !line.starts_with('#')).map(str::to_owned)
    };
    metrics.lines().filter_map(name).collect()
}

/// The expressions of a dashboard, wherever they stand.
fn expressions(value: &Value, found: &mut String) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match (key.as_str(), member) {
                    ("expr" | "query" | "definition", Value::String(text)) => {
                        found.push_str(text);
                        found.push('\n');
                    }
                    _ => expressions(member, found),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| expressions(member, found)),
        _ => {}
    }
}

#[track_caller]
fn value(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{name} is not in:\n{metrics}"));
    value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}"))
}

#[test]
fn prometheus_reads_what_is_served_and_only_that_is_asked_for() {
    const NAME: &str = "prometheus_reads_what_is_served_and_only_that_is_asked_for";
    let lab = Lab::new(NAME);
    let _listener = lab.serve();
    let attempts = lab.directory().join("attempts.jsonl");
    let guard =
        lab.start_guard(Attach::Tcx, &format!("[events]\njsonl = \"{}\"", attempts.display()));
    let before = guard.tell(&["metrics"]).output;
    let dropped = "guard_packets_total{hook=\"tcx\",verdict=\"drop\",reason=\"no-rule\"}";
    assert_eq!((value(&before, dropped), value(&before, "guard_attempt_sources")), (0, 0));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    let printed = guard.tell(&["metrics"]).output;
    assert!(value(&printed, dropped) > 0, "{printed}");
    assert_eq!(value(&printed, "guard_attempt_sources"), 1);
    assert_eq!(value(&printed, "guard_daemon_up"), 1);
    let answer = ask_api(&guard.socket(), "GET", "/metrics", "");
    assert_eq!(served(&answer.body), served(&printed));

    let served = served(&printed);
    let documented = fs::read_to_string(packaging("../docs/metrics.md")).expect("it is text");
    assert_eq!(names(&documented), served);
    let rules = names(&fs::read_to_string(packaging("prometheus/guard.rules.yml")).expect("text"));
    assert!(rules.len() > 5 && rules.is_subset(&served), "{rules:?}");
    let dashboard = fs::read_to_string(packaging("grafana/guard.json")).expect("it is text");
    let mut asked = String::new();
    expressions(&serde_json::from_str(&dashboard).expect("it is JSON"), &mut asked);
    // Whatever guard tells is shown.
    assert_eq!(names(&asked), served);

    if let Some(what) = missing() {
        return kernel::leave_out(&format!("{NAME}: Prometheus's parsers"), what);
    }
    promtool(&["check", "metrics"], &printed);
    // The parser of OpenMetrics has no tool of its own. What makes blocks of it wants to know when each value was.
    let timed = answer.body.lines().map(|line| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000\n"),
    });
    let (file, blocks) = (lab.directory().join("openmetrics"), lab.directory().join("blocks"));
    fs::write(&file, timed.collect::<String>()).expect("it is written");
    let paths = [&file, &blocks].map(|path| path.display().to_string());
    promtool(&["tsdb", "create-blocks-from", "openmetrics", &paths[0], &paths[1]], "");
}

#[test]
fn a_textfile_never_goes_on_saying_that_all_is_well() {
    let lab = Lab::new("a_textfile_never_goes_on_saying_that_all_is_well");
    let guard = lab.start_guard(Attach::Tcx, "");
    let file = lab.directory().join("guard.prom");
    let write = ["metrics", "--textfile", &file.display().to_string()];
    let read = || fs::read_to_string(&file).expect("it is text");

    assert_eq!(guard.tell(&write).output, "");
    assert_eq!(value(&read(), "guard_daemon_up"), 1);
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o644);

    // Without a daemon the kernel says what is enforced. A lab's backstop has its cgroup only.
    guard.kill();
    guard.tell(&write);
    assert_eq!(value(&read(), "guard_daemon_up"), 0);
    for (layer, is) in [("policy", 1), ("interfaces", 1), ("sockets", 0), ("pins", 1)] {
        assert_eq!(value(&read(), &format!("guard_enforced{{layer=\"{layer}\"}}")), is, "{layer}");
    }

    // Nobody can say: a daemon has the lock, and does not answer.
    let lock = File::open(guard.socket().with_extension("lock")).expect("guard's lock is there");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    guard.expect_refusal(&write, &["already runs here"]);
    assert_eq!(value(&read(), "guard_daemon_up"), 0);
    assert!(!read().contains("guard_enforced"), "{}", read());
    drop(lock);

    guard.tell(&["down"]);
    guard.tell(&write);
    until("nothing is enforced", || {
        value(&read(), "guard_enforced{layer=\"policy\"}") == 0
            && value(&read(), "guard_policy_generation") == 0
    });

    // Who can't even tell whether a daemon is there leaves the file as it is.
    let before = read();
    fs::write(guard.configuration(), "ports = [").expect("it is written");
    guard.expect_refusal(&write, &["guard.toml"]);
    assert_eq!(read(), before);
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    if let Some(what) = missing() {
        return kernel::skip("alerts_fire_when_they_should_and_not_before", what);
    }
    let path = |name: &str| packaging("prometheus").join(name).display().to_string();
    promtool(&["check", "rules", &path("guard.rules.yml")], "");
    promtool(&["test", "rules", &path("guard.rules.test.yml")], "");
}
