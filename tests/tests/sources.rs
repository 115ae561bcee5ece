//! Sources that change by themselves: DNS names, watched files and countries. Who gets in is asked with connections.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use guard::control::RuleView;
use guard_tests::{
    dns::{Resolver, Says},
    lab::{CLIENT, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR, every_address},
    listener::Service,
    machine::{Machine, Reply},
    mmdb::{self, Fact},
    product::{Attach, Guard},
    wait::until,
};

const NAME: &str = "host.example.org";

/// An answer that is asked for again as soon as guard asks for any.
const SHORT: u32 = 1;

/// A guard whose daemon asks the resolver on its own machine, and finds no name in its hosts file.
fn guard_with_resolver<'lab>(lab: &'lab Lab, configuration: &str) -> Guard<'lab> {
    let directory = lab.directory().display().to_string();
    fs::write(lab.directory().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    fs::write(lab.directory().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    let bind = |name: &str| format!("mount --bind {directory}/{name} /etc/{name}");
    let script = format!("mount --make-rprivate / && {} && {}", bind("resolv.conf"), bind("hosts"));
    lab.guard(Attach::Tcx, configuration).in_a_mount_namespace(&script)
}

fn addresses(of: &[IpAddr]) -> Says {
    Says::Addresses(of.to_vec(), SHORT)
}

#[track_caller]
fn gets_in(machine: &Machine, to: SocketAddr) -> bool {
    machine.call(to) == Reply::Answered
}

#[track_caller]
fn view(guard: &Guard<'_>, source: &str) -> RuleView {
    let rules = guard.rules();
    let found = rules.iter().find(|rule| rule.source == source);
    found.unwrap_or_else(|| panic!("no rule has the source {source}: {rules:#?}")).clone()
}

#[track_caller]
fn error(guard: &Guard<'_>, source: &str) -> Option<String> {
    let status = guard.status();
    let found = status.sources.iter().find(|one| one.source == source);
    found.unwrap_or_else(|| panic!("{source} is not in status: {status:#?}")).refresh.error.clone()
}

/// Waits until the name was asked for again, both families, at least once from now on.
#[track_caller]
fn expect_round(resolver: &Resolver) {
    let before = resolver.asked();
    until("the name is asked for again", || resolver.asked() >= before + 4);
}

#[test]
fn a_name_lets_in_whom_it_names_now() {
    let lab = Lab::new("a_name_lets_in_whom_it_names_now");
    let neighbour = lab.add_neighbour();
    let service = lab.listen(&lab.server, Service::Stream, every_address(OLLAMA));
    let resolver = Resolver::start(&lab.server);
    let (client, neighbours) = (CLIENT.v4_at(0).ip(), NEIGHBOUR.v4_at(0).ip());
    let six = CLIENT.v6_at(0).ip();
    resolver.say(NAME, addresses(&[client, six]));
    let guard = guard_with_resolver(&lab, "");
    guard.start();

    let change = guard.change(&["allow", NAME]);
    assert!(change.notes.iter().any(|note| note.contains(&client.to_string())), "{change:#?}");
    for server in SERVER.at(OLLAMA) {
        drop(lab.client.connect(server));
    }
    let connection = lab.client.connect(SERVER.v4_at(OLLAMA));
    let local = connection.local_addr().unwrap();
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    assert_eq!(view(&guard, NAME).prefixes, 2);
    assert_eq!(error(&guard, NAME), None);

    // The answer changes: the new address gets in, the old one is cut off.
    resolver.say(NAME, addresses(&[neighbours]));
    until("the rule has the new address", || view(&guard, NAME).prefixes == 1);
    drop(neighbour.connect(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA)));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v6_at(OLLAMA));
    until("the service finds the old one's connection ended", || service.ended().contains(&local));
    drop(connection);
    let news = format!("{NAME} is {neighbours} now");
    until("the log says so", || guard.log().contains(&news));

    // A deny typed by hand wins, and goes again.
    guard.tell(&["deny", "10.78.0.0/16"]);
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    guard.tell(&["remove", "10.78.0.0/16"]);
    drop(neighbour.connect(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA)));

    // No answer of these changes anything.
    let many = (0..100).map(|n| IpAddr::from([10, 77, 0, n])).collect();
    let own = [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.77.0.1",
        "fe80::1",
    ];
    let own: Vec<IpAddr> = own.map(|text| text.parse().unwrap()).to_vec();
    for (says, shown) in [
        (Says::Addresses(many, SHORT), "100 addresses"),
        (addresses(&own), "can't be other hosts'"),
        (Says::Misleading(vec![client, six]), "does not answer"),
    ] {
        resolver.say(NAME, says);
        until(&format!("it is shown that an answer {shown}"), || {
            error(&guard, NAME).is_some_and(|error| error.contains(shown))
        });
        lab.client.expect_silence(SERVER.v4_at(OLLAMA));
        lab.client.expect_silence(SERVER.v6_at(OLLAMA));
        drop(neighbour.connect(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA)));
    }
}

#[test]
fn the_last_good_answer_outlives_resolver_and_daemon() {
    let lab = Lab::new("the_last_good_answer_outlives_resolver_and_daemon");
    let _listener = lab.serve();
    let resolver = Resolver::start(&lab.server);
    resolver.say(NAME, addresses(&[CLIENT.v4_at(0).ip()]));
    let configuration = format!("[[rule]]\nallow = [\"{NAME}\", \"gone.example.org\"]");
    let guard = guard_with_resolver(&lab, &configuration);
    guard.start();
    until("the name resolves", || view(&guard, NAME).prefixes == 1);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    expect_round(&resolver);

    drop(resolver);
    until("the dead resolver is shown", || error(&guard, NAME).is_some());
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    guard.stop();
    guard.start();
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    until("the dead resolver is shown", || error(&guard, NAME).is_some());
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    assert_eq!(view(&guard, "gone.example.org").prefixes, 0);

    // A file that is damaged is told of, and lets nobody in.
    guard.stop();
    fs::write(guard.state().join("names.json"), "{").unwrap();
    guard.start();
    assert!(guard.log().contains("names.json is not taken"), "{}", guard.log());
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    let resolver = Resolver::start(&lab.server);
    resolver.say(NAME, addresses(&[CLIENT.v4_at(0).ip()]));
    until("the name resolves again", || gets_in(&lab.client, SERVER.v4_at(OLLAMA)));
}

#[test]
fn a_watched_file_is_taken_when_it_changes() {
    let lab = Lab::new("a_watched_file_is_taken_when_it_changes");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let path = lab.directory().join("office.txt");
    let source = format!("@{}", path.display());
    fs::write(&path, "10.77.0.0/24\n").unwrap();
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", &source]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));

    let fresh = lab.directory().join("fresh");
    fs::write(&fresh, "10.78.0.0/24\n").unwrap();
    fs::rename(&fresh, &path).unwrap();
    until("what was renamed is taken", || gets_in(&neighbour, SERVER_TO_NEIGHBOUR.v4_at(OLLAMA)));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));

    fs::write(&path, "10.77.0.0/24\n10.78.0.0/33\n").unwrap();
    until("the bad file is shown", || error(&guard, &source).is_some());
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.tell(&["rules"]).output.contains("10.78.0.0/33"));
    fs::remove_file(&path).unwrap();
    until("the missing file is shown", || {
        error(&guard, &source).is_some_and(|error| error.contains("can't be read"))
    });
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));

    fs::write(&path, "10.77.0.0/24\n").unwrap();
    until("what was written in place is taken", || gets_in(&lab.client, SERVER.v4_at(OLLAMA)));
    assert_eq!(error(&guard, &source), None);
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    let told = guard.log().matches("is not taken").count();
    assert_eq!(told, 2, "each bad change is told once:\n{}", guard.log());
}

#[test]
fn a_country_is_allowed_and_denied_by_its_networks() {
    let lab = Lab::new("a_country_is_allowed_and_denied_by_its_networks");
    let neighbour = lab.add_neighbour();
    let _listener = lab.serve();
    let path = lab.directory().join("countries.mmdb");
    let network = |address: &str, length, fact| (address.parse().unwrap(), length, fact);
    let write = |networks: &[(IpAddr, u8, Fact)]| {
        let fresh = lab.directory().join("fresh");
        let aliases = [("::ffff:0:0".parse().unwrap(), 96), ("2002::".parse().unwrap(), 16)];
        fs::write(&fresh, mmdb::file(networks, &aliases)).unwrap();
        fs::rename(&fresh, &path).unwrap();
    };
    write(&[
        network("10.77.0.0", 25, Fact::Nested("FR")),
        network("10.78.0.0", 24, Fact::Flat("DE")),
        network("fd77::", 64, Fact::Nested("FR")),
    ]);
    let configuration = format!("[enrich]\nmmdb = [\"{}\"]", path.display());
    let guard = lab.start_guard(Attach::Tcx, &configuration);
    guard.expect_refusal(&["allow", "country:IT"], &["country:IT", "no network of it"]);
    guard.tell(&["allow", "country:fr"]);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_answer(server);
    }
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    assert_eq!(view(&guard, "country:FR").prefixes, 2);

    let all = lab.directory().join("all.txt");
    fs::write(&all, "10.0.0.0/8\n").unwrap();
    guard.tell(&["allow", &format!("@{}", all.display())]);
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    guard.tell(&["deny", "country:DE"]);
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));

    // The networks move from one to the other.
    write(&[
        network("10.77.0.0", 24, Fact::Nested("DE")),
        network("10.79.0.0", 24, Fact::Nested("FR")),
    ]);
    until("the new file is taken", || gets_in(&neighbour, SERVER_TO_NEIGHBOUR.v4_at(OLLAMA)));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    fs::write(&path, "no such file").unwrap();
    until("the bad file is shown", || error(&guard, "country:DE").is_some());
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}
