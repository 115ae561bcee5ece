//! Full tables: what does not fit is refused or aged, is said, and opens nothing.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::atomic::AtomicBool,
    thread,
};

use guard_tests::{
    bench::memory::resident_mib,
    foreign::pinned_map_bytes,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    list::{self, write_million},
    product::Attach,
    traffic::call_until,
    wait::{EndOnDrop, until},
    wire,
};

/// As many sources as prefixes, half of each family, of which no prefix of this length in the list covers any: IPv4 addresses
/// each in a network of its own, and IPv6 addresses each in a /64 of its own.
fn strangers(length: u32) -> impl Iterator<Item = SocketAddr> {
    let half = list::MILLION / 2;
    let listed: HashSet<u32> = list::scattered(length).map(u32::from).collect();
    let is_stranger = move |address: &u32| {
        !listed.contains(address)
            && !matches!(address >> 24, 0 | 10 | 127 | 224..)
            && address >> 8 != u32::from(SERVER.v4) >> 8
    };
    let v4 = (0..=u32::MAX >> (32 - length)).map(move |number| number << (32 - length));
    let v4 = v4.filter(is_stranger).map(|network| Ipv4Addr::from(network | 9).into());
    let v6 = (0..half as u128)
        .map(|number| Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | number << 64 | 9).into());
    v4.take(half).chain(v6).map(|address| SocketAddr::new(address, 40_000))
}

#[test]
fn a_million_sources_attack_where_a_million_prefixes_are_allowed() {
    const LENGTH: u32 = 24;
    let lab = Lab::new("a_million_sources_attack_where_a_million_prefixes_are_allowed");
    let listener = lab.serve();
    let list = lab.directory().join("list");
    write_million(&list, LENGTH);
    let guard = lab.start_guard(Attach::Tcx, &format!("[[rule]]\nallow = \"@{}\"", list.display()));
    let server = SERVER.v4_at(OLLAMA);
    lab.client.expect_answer(server);
    let events = guard.follow();
    let kernel_before = pinned_map_bytes(&lab.pins());
    let daemon_before_mib = resident_mib(guard.pid()).expect("it runs");
    let wire = lab.wire();
    let is_over = AtomicBool::new(false);

    let (sent, answered) = thread::scope(|scope| {
        let calls = scope.spawn(|| call_until(&is_over, &lab.client));
        let end = EndOnDrop(&is_over);
        let mut sent = 0;
        for source in strangers(LENGTH) {
            let to = if source.is_ipv4() { server } else { SERVER.v6_at(OLLAMA) };
            wire.send(&wire::syn(source, to));
            sent += 1;
        }
        drop(end);
        (sent, calls.join().expect("each call is answered"))
    });

    assert_eq!(sent, list::MILLION as u64);
    guard.expect_counted("tcx", "drop", "no-rule", sent);
    until("each packet is reported, or counted as in no report", || {
        let totals = guard.status().events;
        events.reported() + totals.unreported + totals.passed_over == sent
    });
    let reached = listener.reached_by();
    assert_eq!(reached.len() as u64, answered + 1);
    assert!(reached.iter().all(|peer| CLIENT.has(peer.ip())), "{reached:?}");
    // What sources are remembered for has its room from the start, and the daemon keeps the newest attempts.
    assert_eq!(pinned_map_bytes(&lab.pins()), kernel_before);
    let daemon_mib = resident_mib(guard.pid()).expect("it runs");
    println!(
        "{answered} calls were answered; kernel {} MiB and {} MiB of sources, daemon {daemon_before_mib:.1} MiB before and {daemon_mib:.1} MiB after",
        kernel_before >> 20,
        guard.status().source_table_bytes >> 20
    );
    assert!(daemon_mib < daemon_before_mib + 16.0, "{daemon_before_mib} MiB, then {daemon_mib}");
}

#[test]
fn a_policy_that_has_no_room_is_refused_whole() {
    let lab = Lab::new("a_policy_that_has_no_room_is_refused_whole");
    let listener = lab.serve();
    let [long, other, too_long] =
        ["long", "other", "too-long"].map(|name| lab.directory().join(name));
    write_million(&long, 24);
    write_million(&other, 25);
    write_million(&too_long, 24);
    let mut text = fs::read_to_string(&too_long).expect("it was written");
    text.push_str("192.0.2.0/24\n");
    fs::write(&too_long, text).expect("it is written");
    let of_client = format!("[[rule]]\nallow = \"{}\"\n", CLIENT.v4);
    let guard = lab.start_guard(Attach::Tcx, &of_client);
    let generation = guard.generation();

    let lists = |lists: &[&Path]| {
        let rule = |list: &&Path| format!("[[rule]]\nallow = \"@{}\"\n", list.display());
        lists.iter().map(rule).collect::<String>()
    };
    for (policy, words) in [
        (lists(&[&too_long]), "more than 1000000 prefixes"),
        (lists(&[&long, &other]), "more than 1048576 prefixes"),
        ("ports = [\"8000-8100\"]\n".to_owned(), "at most 64"),
    ] {
        guard.configure(&policy);
        guard.expect_refusal(&["reload"], &[words]);
        assert_eq!(guard.generation(), generation, "{words}");
        lab.client.expect_answer(SERVER.v4_at(OLLAMA));
        lab.client.expect_silence(SERVER.v6_at(OLLAMA));
    }
    // What fits next is taken as if nothing had been.
    guard.configure(&of_client);
    guard.tell(&["reload"]);
    assert!(listener.reached_by().iter().all(|peer| peer.ip() == CLIENT.v4), "{listener:?}");
}
