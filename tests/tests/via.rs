//! Rules that name the interface their packets come by.

use std::{net::SocketAddr, thread, time::Duration};

use guard::control::{PlaceVerdict, RuleView};
use guard_common::{abi::VOUCH_SPAN_NS, parse::MAX_EXTENSION_HEADERS};
use guard_tests::{
    http,
    lab::{Lab, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR, every_address},
    listener::Service,
    machine::Reply,
    on_each_hook,
    product::{Attach, Guard},
    wait::until,
    wire::{self, Wire},
};

/// Both families of the client's link.
const CLIENTS_LINK: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];

/// Addresses of the client's link that nobody has: a connection from there stays half open.
fn nobody(port: u16) -> [SocketAddr; 2] {
    ["10.77.0.9", "fd77::9"].map(|address| {
        let address: std::net::IpAddr = address.parse().expect("an address");
        (address, port).into()
    })
}

/// `allow`, for what comes by this interface.
fn allow_via(guard: &Guard<'_>, interface: &str, sources: &[&str]) {
    guard.tell(&[&["allow", "--via", interface], sources].concat());
}

/// Sends the first packet of a connection to each of these, from an address that nobody has.
fn knock(wire: &Wire, servers: [SocketAddr; 2], port: u16) {
    for (source, server) in nobody(port).into_iter().zip(servers) {
        wire.send(&wire::syn(source, server));
    }
}

fn idle(rules: &[RuleView]) -> Vec<&str> {
    rules.iter().filter_map(|rule| rule.idle.as_deref()).collect()
}

on_each_hook!(an_allow_via_an_interface_lets_in_by_that_only, [native, generic, tcx, clsact]);
fn an_allow_via_an_interface_lets_in_by_that_only(attach: Attach) {
    let lab = Lab::new(&format!("an_allow_via_an_interface {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    allow_via(&guard, "eth0", &CLIENTS_LINK);

    knock(&lab.wire_of(&neighbour), SERVER_TO_NEIGHBOUR.at(OLLAMA), 4242);
    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

    knock(&lab.wire(), SERVER.at(OLLAMA), 4242);
    until("both connections by eth0 are half open", || {
        lab.server.half_open_connections(OLLAMA) == 2
    });
    guard.expect_counted(attach.hook(), "pass", "allowed", 2);
    guard.expect_counted("cgroup", "pass", "allowed", 2);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    assert_eq!(guard.counted("cgroup", "drop", "no-rule"), 0, "{:#?}", guard.status());
}

on_each_hook!(a_deny_via_an_interface_uncovers_the_less_specific_rule_elsewhere, [native, tcx]);
fn a_deny_via_an_interface_uncovers_the_less_specific_rule_elsewhere(attach: Attach) {
    let lab = Lab::new(&format!("a_deny_via_an_interface {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&[&["allow"], &CLIENTS_LINK[..]].concat());
    guard.tell(&["deny", "10.77.0.9", "fd77::9", "--via", "eth1"]);

    knock(&lab.wire_of(&neighbour), SERVER_TO_NEIGHBOUR.at(OLLAMA), 4242);
    guard.expect_counted(attach.hook(), "drop", "denied", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    // By eth0 the deny is as if it were not there.
    knock(&lab.wire(), SERVER.at(OLLAMA), 4242);
    until("both connections by eth0 are half open", || {
        lab.server.half_open_connections(OLLAMA) == 2
    });
    assert_eq!(guard.counted(attach.hook(), "drop", "no-rule"), 0, "{:#?}", guard.status());
}

on_each_hook!(everyone_by_an_interface_but_who_is_denied, [native, generic, tcx, clsact]);
fn everyone_by_an_interface_but_who_is_denied(attach: Attach) {
    let lab = Lab::new(&format!("everyone_by_an_interface {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "if:eth1"]);

    for (ours, theirs) in SERVER.at(OLLAMA).into_iter().zip(SERVER_TO_NEIGHBOUR.at(OLLAMA)) {
        lab.client.expect_silence(ours);
        neighbour.expect_answer(theirs);
    }
    assert_eq!(guard.status().wide_rules, ["if:eth1 (rule 1)"]);

    // A name never allows against a prefix typed by hand.
    guard.tell(&["deny", "10.78.0.0/24"]);
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v6_at(OLLAMA));
    guard.expect_refusal(&["deny", "if:eth1"], &["if:eth1", "0.0.0.0/0 and ::/0 via eth1"]);
    guard.expect_refusal(&["allow", "if:eth1", "--via", "eth0"], &["if:eth1", "eth0"]);
    guard.expect_refusal(&["allow", "lan", "--via", "eth*"], &["eth*", "several interfaces"]);
}

on_each_hook!(a_way_that_no_hook_sees_does_not_ride_on_a_rule_for_another, [native, tcx]);
fn a_way_that_no_hook_sees_does_not_ride_on_a_rule_for_another(attach: Attach) {
    let lab = Lab::new(&format!("a_way_that_no_hook_sees {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "interfaces = [\"eth0\"]");
    allow_via(&guard, "eth0", &CLIENTS_LINK);

    let strangers = lab.wire_of(&neighbour);
    knock(&strangers, SERVER_TO_NEIGHBOUR.at(OLLAMA), 4242);
    guard.expect_counted("cgroup", "drop", "no-rule", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

    // What eth0's hook has vouched for is one flow, not its source.
    knock(&lab.wire(), SERVER.at(OLLAMA), 4242);
    until("both connections by eth0 are half open", || {
        lab.server.half_open_connections(OLLAMA) == 2
    });
    knock(&strangers, SERVER_TO_NEIGHBOUR.at(OLLAMA), 4243);
    guard.expect_counted("cgroup", "drop", "no-rule", 4);

    let change = guard.change(&["allow", "10.78.0.0/24", "--via", "eth1"]);
    assert!(change.notes.iter().any(|note| note.contains("eth1 has no hook")), "{change:#?}");
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
}

on_each_hook!(fragments_get_in_where_their_first_was_vouched_for, [native, generic, tcx, clsact]);
fn fragments_get_in_where_their_first_was_vouched_for(attach: Attach) {
    let lab = Lab::new(&format!("fragments_get_in_where_vouched {attach}"));
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    allow_via(&guard, "eth0", &CLIENTS_LINK);
    let knock_in_fragments = |wire: &Wire, servers: [SocketAddr; 2]| {
        for (source, server) in nobody(4242).into_iter().zip(servers) {
            for fragment in wire::syn_in_fragments(source, server) {
                wire.send(&fragment);
            }
        }
    };

    knock_in_fragments(&lab.wire_of(&neighbour), SERVER_TO_NEIGHBOUR.at(OLLAMA));
    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);
    guard.expect_counted(attach.hook(), "pass", "undecidable", 2);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

    knock_in_fragments(&lab.wire(), SERVER.at(OLLAMA));
    until("both connections by eth0 are half open", || {
        lab.server.half_open_connections(OLLAMA) == 2
    });
    guard.expect_counted("cgroup", "pass", "allowed", 2);
}

on_each_hook!(what_no_hook_could_decide_needs_a_rule_for_every_interface, [native, tcx]);
fn what_no_hook_could_decide_needs_a_rule_for_every_interface(attach: Attach) {
    let lab = Lab::new(&format!("what_no_hook_could_decide {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    allow_via(&guard, "eth0", &CLIENTS_LINK);
    let headers = u16::try_from(MAX_EXTENSION_HEADERS).expect("a small number") + 1;
    let [_, source] = nobody(4242);
    let knock = || {
        lab.wire().send(&wire::syn_behind_options(source, SERVER.v6_at(OLLAMA), headers));
    };

    knock();
    guard.expect_counted(attach.hook(), "pass", "undecidable", 1);
    guard.expect_counted("cgroup", "drop", "no-rule", 1);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);

    guard.tell(&["allow", "fd77::/64"]);
    knock();
    guard.expect_counted("cgroup", "pass", "allowed", 1);
    until("the connection is half open", || lab.server.half_open_connections(OLLAMA) == 1);
}

on_each_hook!(a_connection_that_rests_is_vouched_for_again, [native, tcx]);
fn a_connection_that_rests_is_vouched_for_again(attach: Attach) {
    let lab = Lab::new(&format!("a_connection_that_rests {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    allow_via(&guard, "eth0", &CLIENTS_LINK);

    let mut connections = SERVER.at(OLLAMA).map(|server| lab.client.connect(server));
    for connection in &mut connections {
        assert!(http::ask(connection).is_ok());
    }
    thread::sleep(Duration::from_nanos(VOUCH_SPAN_NS) + Duration::from_secs(1));
    for connection in &mut connections {
        assert!(http::ask(connection).is_ok());
    }
    assert_eq!(guard.counted("cgroup", "drop", "no-rule"), 0, "{:#?}", guard.status());
}

#[test]
fn datagrams_are_vouched_for_too() {
    let lab = Lab::new("datagrams_are_vouched_for_too");
    let neighbour = lab.add_neighbour();
    let _listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let guard = lab.start_guard(Attach::Tcx, "ports = [\"udp/5353\"]");
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64", "10.78.0.0/24", "--via", "eth0"]);

    for server in SERVER.at(5353) {
        assert_eq!(lab.client.call_udp(server), Reply::Answered);
    }
    assert_eq!(neighbour.call_udp(SERVER_TO_NEIGHBOUR.v4_at(5353)), Reply::Silent);
}

on_each_hook!(a_rule_for_an_interface_ends, [native, tcx]);
fn a_rule_for_an_interface_ends(attach: Attach) {
    let lab = Lab::new(&format!("a_rule_for_an_interface_ends {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");

    guard.tell(&["allow", "10.77.0.1", "--via", "eth0", "--for", "5s"]);
    guard.kill();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    until("the client is shut out again", || {
        lab.client.call(SERVER.v4_at(OLLAMA)) == Reply::Silent
    });
}

on_each_hook!(an_interface_that_comes_later_matches_from_then_on, [native, tcx, clsact]);
fn an_interface_that_comes_later_matches_from_then_on(attach: Attach) {
    let lab = Lab::new(&format!("an_interface_that_comes_later_matches {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let change = guard.change(&["allow", "10.78.0.1", "fd78::1", "--via", "eth1"]);
    let note = "rule 1 matches nothing at present: there is no interface eth1";
    assert!(change.notes.contains(&note.to_owned()), "{change:#?}");
    assert_eq!(guard.status().idle_rules.len(), 2);

    let neighbour = lab.add_neighbour();
    for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
        until("the neighbour gets in", || neighbour.call(server) == Reply::Answered);
    }
    assert_eq!(idle(&guard.rules()), Vec::<&str>::new());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    // Another interface that takes its place under another number gets what the name says.
    lab.server.ip("link delete eth1\n");
    until("that it has gone is said", || guard.status().idle_rules.len() == 2);
}

#[test]
fn at_the_sockets_alone_no_interface_is_known() {
    let lab = Lab::new("at_the_sockets_alone_no_interface_is_known");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Socket, "");
    let change = guard.change(&["allow", "10.77.0.1", "--via", "eth0"]);

    assert!(change.notes[0].contains("eth0 has no hook of guard's"), "{change:#?}");
    assert!(guard.status().idle_rules[0].contains("rule 1 matches nothing"));
    assert!(guard.tell(&["rules"]).output.contains("10.77.0.1 via eth0"));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted("cgroup", "drop", "no-rule") > 0, "{:#?}", guard.status());

    // A deny that can't be told to hold doesn't: the less specific rule decides.
    guard.tell(&["allow", "10.77.0.0/24"]);
    guard.tell(&["deny", "10.77.0.1", "--via", "eth0"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn devices_whose_packets_are_judged_elsewhere_are_said() {
    let lab = Lab::new("devices_whose_packets_are_judged_elsewhere");
    let _container = lab.add_container();
    let _listener = lab.serve();
    lab.server.ip("link add link eth0 name macvlan0 type macvlan\nlink set macvlan0 up\n");
    let guard = lab.start_guard(Attach::Tcx, "");
    let rules = ["macvlan0", "br0", "lo"].map(|name| {
        let change = guard.change(&["allow", "10.77.0.1", "--via", name]);
        change.rules[0].idle.clone().unwrap_or_default()
    });
    assert!(rules[0].ends_with("name eth0"), "{rules:#?}");
    assert!(rules[1].ends_with("name their addresses"), "{rules:#?}");
    assert!(rules[2].contains("loopback"), "{rules:#?}");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn explain_answers_for_each_interface() {
    let lab = Lab::new("explain_answers_for_each_interface");
    let _neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    for attach in [Attach::Native, Attach::Tcx] {
        let guard = lab.start_guard(attach, "");
        guard.tell(&["allow", "203.0.113.0/24", "2001:db8::/32", "--via", "eth1"]);
        let before = guard.status().counters;
        for source in ["203.0.113.9", "2001:db8::9"] {
            let places = guard.explain(source, "11434").places;
            let said = |place: &PlaceVerdict| {
                let rule = place.rule.as_ref().and_then(|rule| rule.via.clone());
                (place.place.clone(), place.verdict.clone(), rule, place.by_interface)
            };
            let expected = [
                ("eth0".to_owned(), "drop".to_owned(), None, false),
                ("eth1".to_owned(), "pass".to_owned(), Some("eth1".to_owned()), false),
                ("socket".to_owned(), "drop".to_owned(), None, true),
            ];
            assert_eq!(places.iter().map(said).collect::<Vec<_>>(), expected);
            let text = guard.tell(&["explain", source]).output;
            assert!(text.contains("gets in by eth1 only"), "{text}");
        }
        // To ask is not to knock: nothing is counted.
        assert_eq!(guard.status().counters, before);
        guard.tell(&["down"]);
        guard.wait_for_end();
    }
}

#[test]
fn the_file_names_interfaces_and_rules_are_kept_with_theirs() {
    let lab = Lab::new("the_file_names_interfaces");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "[[rule]]\nallow = \"10.77.0.1\"\nvia = \"eth0\"\n");
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    guard.tell(&["allow", "10.78.0.1", "--via", "eth1"]);
    guard.tell(&["allow", "10.78.0.1", "--via", "eth0"]);
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    guard.expect_refusal(&["remove", "10.78.0.1"], &["10.78.0.1", "1 and 2"]);

    guard.stop();
    guard.start();
    let interfaces: Vec<_> = guard.rules().into_iter().map(|rule| rule.via).collect();
    assert_eq!(interfaces, ["eth0", "eth1", "eth0"].map(|name| Some(name.to_owned())));
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    guard.tell(&["remove", "1"]);
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert!(guard.log().contains("10.77.0.1 via eth0"), "{}", guard.log());

    // A ninth name is refused before anything changes.
    for number in 2..8 {
        guard.tell(&["allow", "192.0.2.1", "--via", &format!("eth{number}")]);
    }
    guard.tell(&["allow", "10.78.0.1", "--via", "eth1"]);
    guard.expect_refusal(&["allow", "192.0.2.1", "--via", "eth8"], &["9 interfaces", "at most 8"]);
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
}

#[test]
fn no_policy_goes_by_what_another_has_let_in() {
    let lab = Lab::new("no_policy_goes_by_what_another_has_let_in");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "interfaces = [\"eth0\"]");
    allow_via(&guard, "eth0", &CLIENTS_LINK);
    knock(&lab.wire(), SERVER.at(OLLAMA), 4242);
    guard.expect_counted("cgroup", "pass", "allowed", 2);

    // It still depends on the interface; now it is eth0 that does not let them in.
    guard.tell(&["allow", "10.77.0.9", "fd77::9"]);
    guard.tell(&["deny", "10.77.0.9", "fd77::9", "--via", "eth0"]);
    knock(&lab.wire_of(&neighbour), SERVER_TO_NEIGHBOUR.at(OLLAMA), 4242);
    guard.expect_counted("cgroup", "drop", "no-rule", 2);
}

#[test]
fn a_flag_of_run_can_name_an_interface() {
    let lab = Lab::new("a_flag_of_run_can_name_an_interface");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    guard.start_with(&["--allow", "if:eth1"]);
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.log().contains("if:eth1"), "{}", guard.log());
}
