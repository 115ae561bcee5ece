use std::{fs, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::rule::{Action, Origin, RuleId};

const FILE: &str = "/etc/guard/guard.toml";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new(FILE))
}

fn parsed(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn ports(texts: &[&str]) -> Vec<GuardedPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Checks that a text has exactly one error, which begins with a place and holds some words.
fn assert_error(text: &str, place: &str, what: &str, fix: &str) {
    let errors = parse(text).expect_err(text);
    assert_eq!(errors.errors.len(), 1, "{text}\n{errors}");
    let error = &errors.errors[0];
    assert_eq!(error.place(), format!("{FILE}:{place}"), "{text}\n{error}");
    assert!(error.what.contains(what), "{text}\n{error}");
    assert!(error.fix.contains(fix), "{text}\n{error}");
    assert!(error.fix.ends_with('.') && !error.what.ends_with('.'), "{error}");
    assert_eq!(error.to_string(), format!("{FILE}:{place}: {}. {}", error.what, error.fix));
}

#[test]
fn an_empty_file_has_all_defaults() {
    assert_eq!(parsed(""), Config::default());
    assert_eq!(parsed("# nothing\n"), Config::default());
    let config = Config::default();
    assert_eq!(config.ports, ports(&["11434"]));
    assert_eq!(config.paths.lock(), Path::new("/run/guard/guard.lock"));
}

#[test]
fn every_key_is_read() {
    let config = parsed(
        r#"
mode = "observe"
ports = [11434, "udp/53", "8000-8002", 8001]
interfaces = ["eth0", "wl*"]
forwarded = "guard"
local = ["host"]

[attach]
default = "tcx"
eth0 = "native"
"br-1a2b.7" = "socket"

[[rule]]
allow = ["10.20.0.0/16", "lan"]
ports = ["11434", 8001]
until = 2027-01-31T00:00:00+01:00
comment = "office"

[[rule]]
deny = "@/etc/guard/bad.txt"
via = "wg0"
until = "2027-01-31T00:00:00Z"

[paths]
pins = "/sys/fs/bpf/other"
cgroup = "/sys/fs/cgroup/unified/test"
state = "/tmp/state"
socket = "/tmp/guard.sock"
"#,
    );
    assert_eq!(config.mode, Mode::Observe);
    assert_eq!(config.ports, ports(&["8000", "8001", "8002", "11434", "udp/53"]));
    assert!(config.interfaces.includes("eth0") && config.interfaces.includes("wlan0"));
    assert!(!config.interfaces.includes("eth1"));
    assert_eq!(config.forwarded, Forwarded::Guard);
    assert_eq!(config.local, LocalSources::Host);
    assert_eq!(config.attach.of("eth0"), Attach::Native);
    assert_eq!(config.attach.of("br-1a2b.7"), Attach::Socket);
    assert_eq!(config.attach.of("eth1"), Attach::Tcx);
    let sources: Vec<(String, Action, String)> = config
        .rules
        .iter()
        .map(|rule| (rule.id.to_string(), rule.action, rule.source.to_string()))
        .collect();
    assert_eq!(
        sources,
        [
            ("f1".to_owned(), Action::Allow, "10.20.0.0/16".to_owned()),
            ("f2".to_owned(), Action::Allow, "lan".to_owned()),
            ("f3".to_owned(), Action::Deny, "@/etc/guard/bad.txt".to_owned()),
        ]
    );
    assert_eq!(config.rules[0].ports, ports(&["8001", "11434"]));
    assert_eq!(config.rules[1].ports, config.rules[0].ports);
    assert_eq!(config.rules[0].until, Some("2027-01-30T23:00:00Z".parse().unwrap()));
    assert_eq!(config.rules[2].until, Some("2027-01-31T00:00:00Z".parse().unwrap()));
    let interfaces = config.rules.iter().map(|rule| rule.via.as_ref().map(ToString::to_string));
    assert_eq!(interfaces.collect::<Vec<_>>(), [None, None, Some("wg0".to_owned())]);
    assert_eq!(config.rules[1].comment.as_deref(), Some("office"));
    let origin = |line| Origin::File { file: PathBuf::from(FILE), line };
    assert_eq!(config.rules[1].origin, origin(14));
    assert_eq!(config.rules[2].origin, origin(20));
    assert_eq!(config.paths.pins, Path::new("/sys/fs/bpf/other"));
    assert_eq!(config.paths.cgroup.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/test")));
    assert_eq!(config.paths.state, Path::new("/tmp/state"));
    assert_eq!(config.paths.lock(), Path::new("/tmp/guard.lock"));
}

#[test]
fn short_forms_are_read() {
    let config = parsed("ports = 8081\nattach = \"generic\"\ninterfaces = \"outside\"");
    assert_eq!(config.ports, ports(&["8081"]));
    assert_eq!(config.attach.of("eth0"), Attach::Generic);
    assert_eq!(config.interfaces, Interfaces::Outside);
    let config = parsed("local = [\"containers\", \"host\"]\nforwarded = \"pass\"");
    assert_eq!(config.local, LocalSources::HostAndContainers);
    assert_eq!(config.forwarded, Forwarded::Pass);
    let config = parsed("rule = [{ allow = \"192.0.2.7\" }]");
    assert_eq!(config.rules[0].id, RuleId::file(1));
    assert_eq!(parsed("[attach]\neth0 = \"tcx\"").attach.of("eth1"), Attach::Auto);
}

/// Text, place, what is wrong, and what would be right.
const WRONG_VALUES: &[(&str, &str, &str, &str)] = &[
    ("mode = \"off\"", "1:8", "mode can't be \"off\"", "Write \"enforce\" or \"observe\"."),
    ("mode = 3", "1:8", "mode can't be 3", "\"enforce\""),
    ("\n  forwarded = true", "2:15", "forwarded can't be true", "\"pass\" or \"guard\""),
    ("local = [\"hosts\"]", "1:9", "local can't be [\"hosts\"]", "[\"host\"]"),
    ("local = \"host\"", "1:9", "local can't be \"host\"", "[\"host\"]"),
    ("local = []", "1:9", "local can't be []", "[\"host\"]"),
    ("ports = []", "1:9", "ports can't be []", "11434"),
    ("ports = [11434,\n 0]", "2:2", "\"0\" names port 0", "1 to 65535"),
    ("ports = [-1]", "1:10", "\"-1\" is not a port", "11434"),
    ("ports = [70000]", "1:10", "above 65535", "1 to 65535"),
    ("ports = [1.5]", "1:10", "a port can't be 1.5", "8000-8002"),
    ("ports = [\"192.0.2.4:8081\"]", "1:10", "at one address", "write 8081"),
    ("ports = [\"1-40\", \"101-140\"]", "1:9", "80 ports are guarded", "at most 64"),
    ("interfaces = \"eth0\"", "1:14", "interfaces can't be \"eth0\"", "[\"eth0\", \"wlan*\"]"),
    ("interfaces = []", "1:14", "interfaces can't be []", "\"outside\""),
    ("interfaces = [\"eth 0\"]", "1:15", "\"eth 0\" can't be the name", "eth0"),
    ("interfaces = [\"\"]", "1:15", "can't be the name of an interface", "eth0"),
    ("interfaces = [\"a234567890123456\"]", "1:15", "can't be the name", "eth0"),
    ("interfaces = [\"eth[0\"]", "1:15", "can't be the name", "eth0"),
    ("interfaces = [1]", "1:15", "can't be 1", "eth0"),
    ("attach = \"fast\"", "1:10", "attach can't be \"fast\"", "\"auto\" or \"native\" or"),
    ("[attach]\neth0 = \"fast\"", "2:8", "attach can't be \"fast\"", "\"auto\""),
    ("[attach]\n\"eth*\" = \"tcx\"", "2:1", "\"eth*\" is a pattern", "each interface"),
    ("[paths]\npins = \"bpf\"", "2:8", "pins can't be \"bpf\"", "full path"),
    ("[paths]\nstate = 1", "2:9", "state can't be 1", "full path"),
    ("[paths]\nsocket = \"/run/guard.lock\"", "2:10", "socket can't be", ".lock"),
    ("[paths]\nsocket = \"/\"", "2:10", "socket can't be", "path of a file"),
    ("paths = 1", "1:9", "paths can't be 1", "[paths]"),
    ("rule = 1", "1:8", "rule can't be 1", "[[rule]]"),
    ("rule = [1]", "1:9", "rule can't be 1", "[[rule]]"),
    ("[rule]\nallow = \"lan\"", "1:1", "rule can't be a table", "[[rule]]"),
];

#[test]
fn wrong_values_are_named_with_their_place() {
    for (text, place, what, fix) in WRONG_VALUES {
        assert_error(text, place, what, fix);
    }
    let long = format!("[paths]\nsocket = \"/{}\"", "x".repeat(200));
    assert_error(&long, "2:10", "socket can't be", "at most 107 bytes");
}

#[test]
fn mmdb_files_are_named_by_their_full_paths() {
    let read = |text| Config::parse(text, Path::new("/etc/guard/guard.toml"));
    let config = read("[enrich]\nmmdb = [\"/a.mmdb\", \"/b.mmdb\"]").unwrap();
    assert_eq!(config.enrich.mmdb, [PathBuf::from("/a.mmdb"), PathBuf::from("/b.mmdb")]);
    assert_eq!(read("[enrich]\nmmdb = \"/a.mmdb\"").unwrap().enrich.mmdb.len(), 1);
    assert!(read("[enrich]").unwrap().enrich.mmdb.is_empty());
    assert_error("enrich = 1", "1:10", "enrich can't be 1", "[enrich]");
    assert_error("[enrich]\nmmdb = [\"a.mmdb\"]", "2:9", "mmdb can't be", "full path");
    assert_error("[enrich]\nasn = 1", "2:1", "\"asn\" is not a key of enrich", "mmdb");
    let many = format!("[enrich]\nmmdb = [{}]", "\"/a\", ".repeat(17));
    assert_error(&many, "2:8", "17 MMDB files", "at most 16");
}

#[test]
fn lists_of_labels_are_named_by_paths_or_patterns() {
    let labels = |text: &str| parsed(text).enrich.labels;
    let own = ["/etc/guard/labels/*.txt", "/etc/guard/labels/*.json"].map(PathBuf::from);
    assert_eq!(labels(""), own);
    assert_eq!(labels("[enrich]\nmmdb = []"), own);
    assert!(labels("[enrich]\nlabels = []").is_empty());
    assert_eq!(labels("[enrich]\nlabels = \"/a/*/list.json\""), [PathBuf::from("/a/*/list.json")]);
    assert_error("[enrich]\nlabels = [\"a.txt\"]", "2:11", "labels can't be", "full path");
    assert_error("[enrich]\nlabels = \"/a/[\"", "2:10", "labels can't be", "full path");
}

#[test]
fn a_file_of_attempts_is_rotated_unless_others_do_it() {
    let jsonl = |text: &str| parsed(text).events.jsonl;
    assert_eq!(jsonl(""), None);
    let named = jsonl("[events]\njsonl = \"/var/log/guard/a.jsonl\"").unwrap();
    assert_eq!(named.path, PathBuf::from("/var/log/guard/a.jsonl"));
    assert_eq!((named.max_bytes, named.keep), (64 << 20, 7));
    assert_eq!(named.max_age, Duration::from_hours(24));
    let own = "[events]\njsonl = \"/a\"\njsonl_max_mib = 2\njsonl_max_age = \"7d\"\njsonl_keep = 0";
    let own = jsonl(own).unwrap();
    assert_eq!((own.max_bytes, own.keep), (2 << 20, 0));
    assert_eq!(own.max_age, Duration::from_hours(168));
    assert_error("[events]\njsonl = \"a.jsonl\"", "2:9", "jsonl can't be", "full path");
    assert_error("[events]\njsonl_max_mib = 0", "2:17", "jsonl_max_mib can't be 0", "from 1");
    assert_error("[events]\njsonl_max_age = \"x\"", "2:17", "jsonl_max_age can't be", "7d");
    assert_error("[events]\njsonl_keep = -1", "2:14", "jsonl_keep can't be -1", "from 0 to");
    assert_error("[events]\nfile = 1", "2:1", "\"file\" is not a key of events", "jsonl");
}

#[test]
fn the_history_is_beside_the_state_unless_told_otherwise() {
    let history = |text: &str| parsed(text).attempt_history();
    let usual = history("").unwrap();
    assert_eq!(usual.path, PathBuf::from("/var/lib/guard/history.db"));
    assert_eq!((usual.keep.as_secs(), usual.max_bytes), (90 * 86_400, 1 << 30));
    assert_eq!(history("[events]\nhistory = true"), Some(usual));
    assert_eq!(history("[events]\nhistory = false"), None);
    let moved = history("[paths]\nstate = \"/srv/guard\"").unwrap();
    assert_eq!(moved.path, PathBuf::from("/srv/guard/history.db"));
    let own = "[events]\nhistory = \"/srv/a.db\"\nkeep = \"7d\"\nhistory_max_mib = 64";
    let own = history(own).unwrap();
    assert_eq!(own.path, PathBuf::from("/srv/a.db"));
    assert_eq!((own.keep.as_secs(), own.max_bytes), (7 * 86_400, 64 << 20));
    // Whatever is found there is set aside: it must not be a file that is somebody's.
    for wrong in ["\"/etc/passwd\"", "\"a.db\"", "7"] {
        let text = format!("[events]\nhistory = {wrong}");
        assert_error(&text, "2:11", "history can't be", "ends in .db");
    }
    assert_error("[events]\nkeep = \"59m\"", "2:8", "keep can't be", "at least 1h");
    assert_error("[events]\nkeep = 90", "2:8", "keep can't be 90", "7d");
    assert_error("[events]\nhistory_max_mib = 1", "2:19", "history_max_mib can't be 1", "from 16");
}

#[test]
fn unknown_keys_are_errors() {
    assert_error("port = 1", "1:1", "\"port\" is not a key", "mode, ports, interfaces");
    assert_error("[paths]\nlock = \"/x\"", "2:1", "\"lock\" is not a key of paths", "pins, cgroup");
    let rule = "[[rule]]\nallow = \"lan\"\nfrom = 1";
    assert_error(rule, "3:1", "\"from\" is not a key of a rule", "allow, deny");
    for (text, key) in
        [("services = [\"ollama\"]", "services"), ("[web]\nlisten = \"127.0.0.1:9434\"", "web")]
    {
        let place = if text.starts_with('[') { "1:2" } else { "1:1" };
        let what = format!("{key} is not supported by this version");
        assert_error(text, place, &what, "Leave it out.");
    }
}

/// Text, place, what is wrong, and what would be right.
const WRONG_RULES: &[(&str, &str, &str, &str)] = &[
    ("comment = \"x\"", "1:1", "neither allow nor deny", "allow = "),
    ("allow = \"lan\"\ndeny = \"lan6\"", "3:8", "both allow and deny", "two rules"),
    ("deny = \"lan\"\nallow = \"lan6\"", "3:9", "both allow and deny", "two rules"),
    ("allow = []", "2:9", "allow can't be []", "Name a source"),
    ("allow = 1", "2:9", "a source can't be 1", "192.0.2.0/24"),
    ("allow = [\"lan\",\n  \"192.0.2.7/24\"]", "3:3", "bits set", "192.0.2.0/24"),
    ("deny = \"127.0.0.1\"", "2:8", "loopback can't be denied", "Leave the rule out"),
    ("deny = \"host.example.org\"", "2:8", "says who to let in", "Deny its addresses"),
    ("allow = \"host_1.example.org\"", "2:9", "is not a DNS name", "host.example.org"),
    ("allow = \"lan\"\nvia = 7", "3:7", "via can't be 7", "eth0"),
    ("allow = \"lan\"\nvia = \"eth*\"", "3:7", "stands for several interfaces", "bridge or bond"),
    ("allow = \"lan\"\nvia = \"\"", "3:7", "can't be the name of an interface", "eth0"),
    ("deny = \"if:wg0\"", "2:8", "if:wg0 can't be denied", "0.0.0.0/0 and ::/0 via wg0"),
    ("allow = \"if:wg0\"\nvia = \"eth0\"", "2:9", "names its interface already", "Leave via out"),
    ("allow = \"lan\"\nports = [8081]", "3:10", "port 8081 is not guarded", "one of 11434"),
    ("allow = \"lan\"\nports = []", "3:9", "ports can't be []", "leave ports out"),
    ("allow = \"lan\"\nports = \"http\"", "3:9", "\"http\" is not a port", "11434"),
    ("allow = \"lan\"\nuntil = 2027-01-31", "3:9", "until can't be 2027-01-31", "offset"),
    ("allow = \"lan\"\nuntil = 2027-01-31T00:00:00", "3:9", "until can't be", "offset"),
    ("allow = \"lan\"\nuntil = \"2027-01-31T00:00:00\"", "3:9", "until can't be", "offset"),
    ("allow = \"lan\"\nuntil = \"tomorrow\"", "3:9", "until can't be \"tomorrow\"", "offset"),
    ("allow = \"lan\"\nuntil = 7", "3:9", "until can't be 7", "offset"),
    ("allow = \"lan\"\ncomment = 7", "3:11", "comment can't be 7", "office"),
    ("allow = \"lan\"\ncomment = \"a\\nb\"", "3:11", "control characters", "one line"),
];

#[test]
fn wrong_rules_are_named_with_their_place() {
    for (lines, place, what, fix) in WRONG_RULES {
        assert_error(&format!("[[rule]]\n{lines}\n"), place, what, fix);
    }
}

#[test]
fn all_errors_are_reported_in_their_order() {
    let text = "
[[rule]]
allow = [\"office\", \"192.0.2.7/24\"]
until = 7
[[rule]]
[paths]
pins = 1
[attach]
default = \"no\"
";
    let errors = parse(text).unwrap_err();
    let places: Vec<String> = errors.errors.iter().map(ConfigError::place).collect();
    let wanted = ["3:10", "3:20", "4:9", "5:1", "7:8", "9:11"];
    assert_eq!(places, wanted.map(|place| format!("{FILE}:{place}")));
    assert_eq!(errors.to_string().lines().count(), 6);

    // A bad port list must not make the rules' ports wrong as well.
    let errors = parse("ports = [0]\n[[rule]]\nallow = \"x\"\nports = [8081]").unwrap_err();
    assert_eq!(errors.errors.len(), 2, "{errors}");
}

#[test]
fn reports_are_bounded() {
    let errors = parse(&"[[rule]]\n".repeat(1000)).unwrap_err();
    assert_eq!((errors.errors.len(), errors.left_out), (MAX_ERRORS, 980));
    assert!(errors.to_string().ends_with("There are 980 errors more."), "{errors}");
}

#[test]
fn what_is_not_toml_is_named_with_its_place() {
    for (text, place) in [
        ("mode = ", "1:8"),
        ("mode = \"enforce", "1:16"),
        ("mode = \"enforce\"\nmode = \"observe\"", "2:1"),
        ("# ä\nports = [11434,, 1]", "2:16"),
    ] {
        let errors = parse(text).unwrap_err();
        assert_eq!(errors.errors[0].place(), format!("{FILE}:{place}"), "{errors}");
        assert!(errors.errors[0].what.starts_with("this is not TOML: "), "{errors}");
    }
}

#[test]
fn columns_count_characters() {
    assert_error("interfaces = [\"ä\", 0]", "1:20", "can't be 0", "eth0");
}

#[test]
fn files_are_read_within_limits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guard.toml");
    assert_eq!(Config::load(&path, false), Ok(Config::default()));
    let errors = Config::load(&path, true).unwrap_err();
    assert!(errors.to_string().contains("does not exist"), "{errors}");
    assert_eq!(errors.errors[0].place(), path.display().to_string());

    fs::write(&path, "mode = \"observe\"").unwrap();
    assert_eq!(Config::load(&path, false).unwrap().mode, Mode::Observe);
    fs::write(&path, b"# \xc3\xa4\nmode = \"\xff\"").unwrap();
    let errors = Config::load(&path, true).unwrap_err();
    assert_eq!(errors.errors[0].position, Some(Position { line: 2, column: 9 }), "{errors}");
    assert!(errors.to_string().contains("UTF-8"), "{errors}");
    fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(Config::load(&path, false).unwrap_err().to_string().contains("larger than 1048576"));
    let errors = Config::load(directory.path(), false).unwrap_err();
    assert!(errors.to_string().contains("not a regular file"), "{errors}");
}

#[test]
fn a_failure_says_where() {
    let failure = Failure::from(parse("mode = 1").unwrap_err());
    assert_eq!(failure.kind, FailureKind::Failed);
    assert_eq!(failure.what, format!("{FILE}:1:8: mode can't be 1"));
    assert_eq!(failure.fix.as_deref(), Some("Write \"enforce\" or \"observe\"."));
    let failure = Failure::from(parse("mode = 1\nport = 2").unwrap_err());
    assert_eq!(failure.what.lines().count(), 2);
}

#[test]
fn ways_to_attach_read_back() {
    for attach in Attach::ALL {
        assert_eq!(attach.to_string().parse(), Ok(attach));
    }
    assert!("xdp".parse::<Attach>().unwrap_err().fix().contains("tcx, clsact and socket"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_places(
        lines in proptest::collection::vec(
            proptest::sample::select(vec![
                "[[rule]]", "allow = \"lan\"", "deny = \"192.0.2.7/24\"", "ports = [11434", "]",
                "mode = 'observe'", "[attach]", "eth0.x = 'tcx'", "until = 2027-01-31T00:00Z", "ä = 1",
                "[paths]", "pins = '''/x", "'''", "\"", "[[attach]]", "rule = [[]]", "local = {a=1}",
            ]),
            0..12,
        )
    ) {
        if let Err(errors) = parse(&lines.join("\n")) {
            prop_assert!(!errors.errors.is_empty());
            prop_assert!(errors.errors.is_sorted_by_key(|error| error.position));
            for error in errors.errors {
                prop_assert!(error.position.unwrap().line <= lines.len() + 2);
            }
        }
    }
}
