//! Bad input: refused in plain words, with the policy in force untouched.

use std::fs;

use guard::{control::Status, rule::Action};
use guard_tests::{
    http::{ApiAnswer, ask_api, send_to_api},
    lab::{CLIENT, Lab, OLLAMA, SERVER, every_address},
    listener::Service,
    product::{Attach, Guard, has_pins},
};
use serde_json::json;

#[test]
fn a_bad_command_changes_nothing() {
    let lab = Lab::new("a_bad_command_changes_nothing");
    let directory = lab.directory().display().to_string();
    let bad_set = lab.directory().join("bad.txt");
    assert!(fs::write(&bad_set, "192.0.2.0/24\nnot an address\n").is_ok());
    let bad_set = format!("@{}", bad_set.display());
    let no_set = format!("@{directory}/none.txt");
    let directory_as_set = format!("@{directory}");
    let long = "9".repeat(10_000);
    let guard = lab.start_guard(Attach::Tcx, "[[rule]]\nallow = \"192.0.2.0/24\"");
    let before = Policy::of(&guard);

    // What is typed, and what the refusal must name: the value, and where it offers one, what would be right.
    let cases: &[(&[&str], &[&str])] = &[
        (&["allow"], &[]),
        (&["allow", ""], &[]),
        (&["allow", "10.77.0.1/24"], &["10.77.0.1/24", "10.77.0.0/24"]),
        (&["allow", "fd77::1/64"], &["fd77::1/64", "fd77::/64"]),
        (&["allow", "300.1.1.1"], &["300.1.1.1"]),
        (&["allow", "10.0.0.0/33"], &["10.0.0.0/33"]),
        (&["allow", "fd77::/129"], &["fd77::/129"]),
        (&["allow", "10.77.0.0/24/8"], &["10.77.0.0/24/8"]),
        (&["allow", "localhost"], &["localhost"]),
        (&["allow", "host_1.example.org"], &["host_1.example.org"]),
        (&["deny", "host.example.org"], &["host.example.org", "Deny its addresses"]),
        (&["allow", "country:FR"], &["country:FR"]),
        (&["allow", "if:eth*"], &["if:eth*"]),
        (&["deny", "if:eth0"], &["if:eth0", "0.0.0.0/0"]),
        (&["allow", "10.77.0.1", "--via", "an-interface-too-long"], &["an-interface-too-long"]),
        (&["allow", "10.77.0.1", "--via", ""], &["\"\""]),
        (&["allow", "fe80::1%eth0"], &["fe80::1%eth0"]),
        (&["allow", "::ffff:10.77.0.1"], &["10.77.0.1"]),
        (&["allow", &no_set], &["none.txt"]),
        (&["allow", &directory_as_set], &[&directory]),
        (&["allow", &bad_set], &["bad.txt:2", "not an address"]),
        (&["allow", &long], &[]),
        // One bad source among good ones: none of them is taken.
        (&["allow", "10.77.0.1", "nonsense"], &["nonsense"]),
        (&["allow", "0.0.0.0/0"], &["0.0.0.0/0", "--yes"]),
        (&["allow", "10.0.0.0/7"], &["10.0.0.0/7", "--yes"]),
        (&["allow", "::/0"], &["::/0", "--yes"]),
        (&["allow", "10.77.0.1", "--port", "0"], &["0"]),
        (&["allow", "10.77.0.1", "--port", "70000"], &["70000"]),
        (&["allow", "10.77.0.1", "--port", "http"], &["http"]),
        (&["allow", "10.77.0.1", "--port", "sctp/11434"], &["sctp/11434"]),
        (&["allow", "10.77.0.1", "--port", "8080"], &["8080"]),
        (&["allow", "10.77.0.1", "--port", "udp/11434"], &["udp/11434"]),
        (&["allow", "10.77.0.1", "--for", "0s"], &["0s"]),
        (&["allow", "10.77.0.1", "--for", "soon"], &["soon"]),
        (&["allow", "10.77.0.1", "--for=-1h"], &["-1h"]),
        (&["allow", "10.77.0.1", "--for", "400y"], &["400y"]),
        (&["deny", "127.0.0.1"], &["127.0.0.1"]),
        (&["deny", "::1"], &["::1"]),
        (&["deny", "10.77.0.1/24"], &["10.77.0.1/24"]),
        (&["remove"], &[]),
        (&["remove", "999"], &["999"]),
        (&["remove", "10.99.0.0/16"], &["10.99.0.0/16"]),
        // A rule of the file can only be removed there.
        (&["remove", "192.0.2.0/24"], &["guard.toml:3", "f1"]),
        (&["remove", "f1"], &["guard.toml:3", "f1"]),
        (&["observe", "--for", "never"], &["never"]),
        (&["explain", "nonsense"], &["nonsense"]),
        (&["explain", "10.77.0.1", "99999"], &["99999"]),
        (&["events", "--since", "yesterday"], &["yesterday"]),
        (&["open", "sesame"], &["open"]),
        (&["status", "--loudly"], &["--loudly"]),
    ];
    for (arguments, names) in cases {
        guard.expect_refusal(arguments, names);
        assert_eq!(Policy::of(&guard), before, "{arguments:?} changed the policy");
    }
}

#[test]
fn a_bad_flag_of_run_starts_nothing() {
    let lab = Lab::new("a_bad_flag_of_run_starts_nothing");
    let guard = lab.guard(Attach::Tcx, "");
    for (flags, names) in [
        (["run", "--allow", "10.77.0.1/24"], ["10.77.0.1/24"]),
        (["run", "--allow", "0.0.0.0/0"], ["0.0.0.0/0"]),
        (["run", "--port", "0"], ["0"]),
        (["run", "--port", "70000"], ["70000"]),
        (["run", "--attach", "firmly"], ["firmly"]),
    ] {
        guard.expect_refusal(&flags, &names);
        assert!(!has_pins(&lab.pins()), "{flags:?} has left pins");
    }
}

#[test]
fn cutting_sessions_of_an_unknown_service_needs_a_yes() {
    const SHELL: u16 = 2222;
    const OTHER: u16 = 2223;
    let lab = Lab::new("cutting_sessions_needs_a_yes");
    let guard = lab.guard(Attach::Tcx, "ports = [2222]");
    let _listeners =
        [SHELL, OTHER].map(|port| lab.listen(&lab.server, Service::Http, every_address(port)));
    for (server, client) in
        [(SERVER.v4_at(SHELL), CLIENT.v4.to_string()), (SERVER.v6_at(SHELL), CLIENT.v6.to_string())]
    {
        let session = lab.client.connect(server);
        guard.expect_refusal(&["run"], &["2222", &client, "--yes"]);
        assert!(!has_pins(&lab.pins()), "the refusal has left pins");
        lab.client.expect_answer(server);

        // Whoever is allowed loses nothing.
        guard.start_with(&["--allow", &client]);
        lab.client.expect_answer(server);
        guard.tell(&["down"]);
        guard.wait_for_end();
        drop(session);
    }

    // A confirmation is a confirmation.
    let _session = lab.client.connect(SERVER.v6_at(SHELL));
    guard.start_with(&["--yes"]);
    for server in SERVER.at(SHELL) {
        lab.client.expect_silence(server);
    }

    // A reload can't be confirmed, so it cuts nobody.
    let _other_session = lab.client.connect(SERVER.v6_at(OTHER));
    guard.configure("ports = [2222, 2223]");
    guard.expect_refusal(&["reload"], &["2223", &CLIENT.v6.to_string()]);
    // Nor does a new daemon that adopts what is in force, which stays as it was.
    guard.stop();
    guard.expect_refusal(&["run"], &["2223", &CLIENT.v6.to_string(), "--yes"]);
    for (open, closed) in SERVER.at(OTHER).into_iter().zip(SERVER.at(SHELL)) {
        lab.client.expect_answer(open);
        lab.client.expect_silence(closed);
    }
    // The sessions that are cut already are no reason to ask again.
    guard.configure("ports = [2222]");
    guard.start();
    guard.stop();
    guard.configure("ports = [2222, 2223]");
    guard.start_with(&["--yes"]);
    for server in SERVER.at(OTHER) {
        lab.client.expect_silence(server);
    }
}

#[test]
fn without_btf_nothing_is_started() {
    let lab = Lab::new("without_btf_nothing_is_started");
    let guard =
        lab.guard(Attach::Tcx, "").in_a_mount_namespace("mount -t tmpfs tmpfs /sys/kernel/btf");
    guard.expect_no_start(&["BTF", "/sys/kernel/btf/vmlinux"]);
    assert!(!has_pins(&lab.pins()), "the refusal has left pins");
}

#[test]
fn a_wide_allow_needs_a_yes_and_stands_in_status() {
    let lab = Lab::new("a_wide_allow_needs_a_yes");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");

    guard.expect_refusal(&["allow", "0.0.0.0/0"], &["--yes"]);
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.status().wide_rules.is_empty());

    guard.tell(&["allow", "0.0.0.0/0", "--yes"]);
    guard.tell(&["allow", "::/0", "--yes"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    assert_eq!(guard.status().wide_rules.len(), 2, "{:#?}", guard.status());

    // The widest that need none.
    guard.tell(&["allow", "11.0.0.0/8"]);
    guard.tell(&["allow", "2001::/16"]);
    assert_eq!(guard.status().wide_rules.len(), 2, "{:#?}", guard.status());
}

#[test]
fn removing_by_a_source_of_two_rules_is_refused() {
    let lab = Lab::new("removing_by_a_source_of_two_rules");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.0/24"]);
    guard.tell(&["deny", "10.77.0.0/24"]);
    let rules = guard.rules();
    let ids: Vec<&str> = rules.iter().map(|rule| rule.id.0.as_str()).collect();

    guard.expect_refusal(&["remove", "10.77.0.0/24"], &ids);
    assert_eq!(guard.rules(), rules);

    let deny = rules.iter().find(|rule| rule.action == Action::Deny);
    let deny = deny.map(|rule| rule.id.0.clone()).unwrap_or_default();
    guard.tell(&["remove", &deny]);
    let left = guard.rules();
    assert_eq!(left.len(), 1, "{left:#?}");
    assert_eq!(left[0].action, Action::Allow);

    // A number is never used again.
    guard.tell(&["deny", "10.77.0.0/24"]);
    assert!(guard.rules().iter().all(|rule| rule.id.0 != deny), "{:#?}", guard.rules());
}

#[test]
fn check_names_line_and_column() {
    let lab = Lab::new("check_names_line_and_column");
    let guard = lab.guard(Attach::Tcx, "");
    // The file, where its fault stands, and what must be named.
    let cases = [
        ("mode = \"enfroce\"\n", "1:8", "enfroce"),
        ("ports = [11434, 0]\n", "1:17", "0"),
        ("ports = [70000]\n", "1:10", "70000"),
        ("ports = [\"11434-11400\"]\n", "1:10", "11434-11400"),
        ("\nattach = \"firmly\"\n", "2:10", "firmly"),
        ("forwarded = \"maybe\"\n", "1:13", "maybe"),
        ("local = [\"everyone\"]\n", "1:9", "everyone"),
        ("prots = [11434]\n", "1:1", "prots"),
        ("[[rule]]\nallow = \"10.77.0.1/24\"\n", "2:9", "10.77.0.0/24"),
        ("[[rule]]\nallow = [\"10.77.0.0/24\", \"nonsense\"]\n", "2:26", "nonsense"),
        ("[[rule]]\nallow = \"10.0.0.0/8\"\nports = [8080]\n", "3:10", "8080"),
        ("[[rule]]\nallow = \"10.0.0.0/8\"\nuntil = 2027-01-31T00:00:00\n", "3:9", "2027-01-31"),
        ("[[rule]]\nallow = \"10.0.0.0/8\"\nwhen = \"later\"\n", "3:1", "when"),
        ("mode = \n", "1:", ""),
        ("ports = [11434\n", "", ""),
    ];
    for (text, position, name) in cases {
        let path = lab.directory().join("candidate.toml");
        assert!(fs::write(&path, text).is_ok());
        let path = path.display().to_string();
        let answer = guard.ask(&["check", &path]);
        answer.expect_refused(&[&format!("{path}:{position}"), name]);
    }
}

#[test]
fn check_refuses_a_rule_that_is_both_and_one_that_is_neither() {
    let lab = Lab::new("check_refuses_a_rule_that_is_both");
    let guard = lab.guard(Attach::Tcx, "");
    let path = lab.directory().join("candidate.toml");
    for text in [
        "[[rule]]\nallow = \"10.0.0.0/8\"\ndeny = \"10.0.0.0/8\"\n",
        "[[rule]]\ncomment = \"nothing\"\n",
    ] {
        assert!(fs::write(&path, text).is_ok());
        guard.expect_refusal(&["check", &path.display().to_string()], &["candidate.toml:"]);
    }
    assert!(fs::remove_file(&path).is_ok());
    guard.expect_refusal(&["check", &path.display().to_string()], &["candidate.toml"]);
}

#[test]
fn check_finds_a_good_file_good() {
    let lab = Lab::new("check_finds_a_good_file_good");
    let guard = lab.guard(Attach::Tcx, "");
    let path = lab.directory().join("candidate.toml");
    let text = "\
mode = \"observe\"
ports = [11434, \"tcp/8081\", \"udp/5353\", \"8000-8002\"]
interfaces = [\"eth0\", \"wl*\"]
attach = \"tcx\"
forwarded = \"guard\"
local = [\"host\"]
[[rule]]
allow = [\"10.20.0.0/16\", \"2001:db8::/32\"]
ports = [11434]
until = 2027-01-31T00:00:00Z
comment = \"office\"
[[rule]]
deny = \"10.20.30.0/24\"
";
    assert!(fs::write(&path, text).is_ok());
    guard.tell(&["check", &path.display().to_string()]);
    assert!(!has_pins(&lab.pins()), "checking has loaded something");
}

#[test]
fn the_api_refuses_what_it_does_not_understand() {
    let lab = Lab::new("the_api_refuses_what_it_does_not_understand");
    let guard = lab.start_guard(Attach::Tcx, "");
    let before = Policy::of(&guard);
    let socket = guard.socket();

    let huge = format!("{{\"action\":\"allow\",\"sources\":[\"{}\"]}}", "1".repeat(4 << 20));
    let cases = [
        ("POST", "/v1/rules", "{\"action\":", 400),
        ("POST", "/v1/rules", "", 400),
        ("POST", "/v1/rules", "[]", 400),
        ("POST", "/v1/rules", "{\"action\":\"permit\",\"sources\":[\"10.77.0.1\"]}", 400),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":\"10.77.0.1\"}", 400),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":[\"10.77.0.1/24\"]}", 400),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":[]}", 400),
        (
            "POST",
            "/v1/rules",
            "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"by\":\"x\"}",
            400,
        ),
        (
            "POST",
            "/v1/rules",
            "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"via\":\"x/y\"}",
            400,
        ),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"for\":-1}", 400),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"for\":0}", 400),
        (
            "POST",
            "/v1/rules",
            "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"for\":18446744073709551615}",
            400,
        ),
        (
            "POST",
            "/v1/rules",
            "{\"action\":\"allow\",\"sources\":[\"10.77.0.1\"],\"comment\":\"two\\nlines\"}",
            400,
        ),
        ("POST", "/v1/rules", "{\"action\":\"allow\",\"sources\":[\"0.0.0.0/0\"]}", 409),
        ("DELETE", "/v1/rules", "{\"rules\":[\"999\"]}", 400),
        ("POST", "/v1/mode", "{\"mode\":\"sleep\"}", 400),
        ("POST", "/v1/mode", "{\"mode\":\"observe\",\"for\":0}", 400),
        ("POST", "/v1/explain", "{\"source\":\"nonsense\"}", 400),
        ("POST", "/v1/explain", "{\"source\":\"10.77.0.1\",\"port\":\"99999\"}", 400),
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/", "", 404),
        ("PUT", "/v1/rules", "{}", 405),
    ];
    for (method, target, body, code) in cases {
        let answer = ask_api(&socket, method, target, body);
        expect_api_refusal(&format!("{method} {target} {body}"), &answer, code);
        assert_eq!(Policy::of(&guard), before, "{method} {target} {body} changed the policy");
    }
    let answer = ask_api(&socket, "POST", "/v1/rules", &huge);
    assert!(matches!(answer.code, 400 | 413), "{answer:#?}");
    // What is not even HTTP may be met with a 400 or a closed connection.
    if let Ok(answer) = send_to_api(&socket, b"\0\0\0\0\r\n\r\n") {
        assert_eq!(answer.code, 400, "{answer:#?}");
    }
    assert_eq!(Policy::of(&guard), before);
}

#[test]
fn the_api_does_what_the_command_line_does() {
    let lab = Lab::new("the_api_does_what_the_command_line_does");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    let socket = guard.socket();

    let status: Result<Status, _> =
        serde_json::from_value(ask_api(&socket, "GET", "/v1/status", "").json());
    assert_eq!(status.ok().and_then(|status| status.daemon), guard.status().daemon);

    let body = json!({ "action": "allow", "sources": ["10.77.0.1"], "for": 3600 }).to_string();
    let answer = ask_api(&socket, "POST", "/v1/rules", &body);
    assert_eq!(answer.code, 200, "{answer:#?}");
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    let rules = ask_api(&socket, "GET", "/v1/rules", "").json();
    assert_eq!(rules.as_array().map(Vec::len), Some(1), "{rules:#}");

    let body = json!({ "rules": ["10.77.0.1"] }).to_string();
    let answer = ask_api(&socket, "DELETE", "/v1/rules", &body);
    assert_eq!(answer.code, 200, "{answer:#?}");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn completions_are_printed() {
    let lab = Lab::new("completions_are_printed");
    let guard = lab.guard(Attach::Tcx, "");
    for shell in ["bash", "zsh", "fish"] {
        assert!(guard.tell(&["completions", shell]).output.contains("guard"));
    }
    guard.expect_refusal(&["completions", "csh"], &["csh"]);
}

#[test]
fn without_guard_in_force_status_says_so() {
    let lab = Lab::new("without_guard_in_force_status_says_so");
    let guard = lab.guard(Attach::Tcx, "");
    let status = guard.ask(&["status"]);
    assert_eq!(status.code, Some(5), "{status:#?}");
    guard.expect_refusal(&["explain", "10.77.0.1"], &["guard run"]);
    guard.expect_refusal(&["events"], &["guard run"]);
}

/// What must be the same after a refusal as before.
#[derive(Debug, PartialEq)]
struct Policy {
    generation: u64,
    rules: Vec<guard::control::RuleView>,
}

impl Policy {
    #[track_caller]
    fn of(guard: &Guard<'_>) -> Self {
        Self { generation: guard.generation(), rules: guard.rules() }
    }
}

/// Checks that the answer to a request has this code and a JSON body with one sentence on what failed.
#[track_caller]
fn expect_api_refusal(request: &str, answer: &ApiAnswer, code: u16) {
    assert_eq!(answer.code, code, "{request}: {answer:#?}");
    let what = answer.json()["what"].as_str().map(str::to_owned);
    assert!(what.is_some_and(|what| !what.is_empty()), "{request}: {answer:#?}");
}
