//! Policies of a million prefixes, thousands of policies in a row, and many questions at once.

use std::{
    mem,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use guard::{
    api::client::Client,
    control::{Control, Explain, Reload},
    history::Requester,
    progress::{Loading, Step},
};
use guard_tests::{
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    list::write_million,
    product::Attach,
    traffic::call_until,
    wait::{EndOnDrop, until},
    wire,
};

const MILLION: u64 = 1_000_000;

/// What a change is seen to be at from one look to the next, each with how far it has come.
fn steps_until(is_over: &AtomicBool, socket: &Path) -> Vec<Option<Loading>> {
    let client = Client::connect(socket).expect("the daemon can be asked");
    let client = client.expect("a daemon is there");
    let mut seen = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        seen.push(client.loading().expect("the daemon answers"));
        thread::sleep(Duration::from_millis(2));
    }
    seen
}

/// How often the lists are exchanged.
const EXCHANGES: usize = 4;

/// Questions that are answered while one exchange is under way. Where they had to wait for its end, it would be one, and one more
/// that was there first.
const QUESTIONS: usize = 5;

#[test]
fn a_million_prefixes_are_exchanged_while_packets_pass_and_questions_are_answered() {
    let lab =
        Lab::new("a_million_prefixes_are_exchanged_while_packets_pass_and_questions_are_answered");
    let listener = lab.serve();
    let lists = [28, 24].map(|length| {
        let path = lab.directory().join(format!("of-{length}"));
        write_million(&path, length);
        path
    });
    let rule = |list: &Path| format!("[[rule]]\nallow = \"@{}\"", list.display());
    let guard = lab.start_guard(Attach::Tcx, &rule(&lists[0]));
    let server = SERVER.v4_at(OLLAMA);
    lab.client.expect_answer(server);
    let wire = lab.wire();
    let is_over = AtomicBool::new(false);
    let outsiders = || {
        let mut sent = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            sent += 1;
            let [.., third, fourth] = (sent as u16).to_be_bytes();
            let outsider = Ipv4Addr::new(10, 77, third | 1, fourth);
            wire.send(&wire::syn((outsider, 40_000).into(), server));
            // The processors have other things to do.
            thread::sleep(Duration::from_micros(200));
        }
        sent
    };

    let (sent, answered) = thread::scope(|scope| {
        let outsiders = scope.spawn(outsiders);
        let insiders = scope.spawn(|| call_until(&is_over, &lab.client));
        let end = EndOnDrop(&is_over);
        let (mut seen, mut on_terminal) = (Vec::new(), String::new());
        for round in 1..=EXCHANGES {
            let before = guard.generation();
            guard.configure(&rule(&lists[round % lists.len()]));
            let is_exchanged = AtomicBool::new(false);
            let socket = guard.socket();
            let client = Client::connect(&socket).expect("the daemon can be asked");
            let client = client.expect("a daemon is there");
            let (questions, steps, shown) = thread::scope(|scope| {
                let steps = scope.spawn(|| steps_until(&is_exchanged, &socket));
                let questions = scope.spawn(|| {
                    let mut answered = 0;
                    while !is_exchanged.load(Ordering::Relaxed) {
                        let status = client.status().expect("the daemon answers");
                        assert!(status.generation >= Some(before));
                        assert_eq!(client.rules().expect("the daemon answers").len(), 1);
                        answered += 1;
                    }
                    answered
                });
                let end = EndOnDrop(&is_exchanged);
                let shown = guard.tell_on_terminal(&["reload"]);
                drop(end);
                let questions = questions.join().expect("the questions are answered");
                (questions, steps.join().expect("they are told"), shown)
            });
            assert!(guard.generation() > before);
            // From the first look that finds it compiling to the last there is no other: whoever asks something takes none away.
            let compiles = |look: &Option<Loading>| {
                look.is_some_and(|it| it.step == Step::Compiling && it.total >= MILLION)
            };
            let first = steps.iter().position(compiles).expect("it is seen to compile");
            let last = steps.iter().rposition(compiles).expect("it is seen to compile");
            assert!(steps[first..=last].iter().all(compiles), "{:?}", &steps[first..=last]);
            seen.extend(steps.into_iter().flatten());
            on_terminal.push_str(&shown);
            println!("exchange {round}: {questions} questions were answered meanwhile");
            assert!(questions > QUESTIONS, "{questions} questions were answered meanwhile");
        }
        for step in [Step::Reading, Step::Compiling, Step::Writing] {
            assert!(seen.iter().any(|it| it.step == step), "{step:?}: {seen:?}");
        }
        assert!(seen.iter().any(|it| (1..it.total).contains(&it.done)), "{seen:?}");
        let words = ["reading lists: ", "compiling 1,000,000 prefixes", "writing tables: "];
        assert!(words.iter().any(|words| on_terminal.contains(words)), "{on_terminal:?}");
        drop(end);
        (outsiders.join().expect("they send"), insiders.join().expect("they are answered"))
    });

    guard.expect_counted("tcx", "drop", "no-rule", sent);
    let reached = listener.reached_by();
    assert_eq!(reached.len() as u64, answered + 1);
    assert!(reached.iter().all(|peer| CLIENT.has(peer.ip())), "{reached:?}");
    println!("{answered} calls were answered and {sent} packets dropped meanwhile");
}

#[test]
fn thousands_of_exchanges_let_in_nobody_else_and_lose_nothing() {
    const EXCHANGES: u64 = 2_000;
    let lab = Lab::new("thousands_of_exchanges_let_in_nobody_else_and_lose_nothing");
    let listener = lab.serve();
    // Both let in the client, each one more, and neither all others.
    let by_turns = [11, 12].map(|host| Ipv4Addr::new(10, 77, 0, host));
    let outsider = Ipv4Addr::new(10, 77, 0, 13);
    let policies =
        by_turns.map(|source| format!("[[rule]]\nallow = [\"{}\", \"{source}\"]", CLIENT.v4));
    let guard = lab.start_guard(Attach::Tcx, &policies[0]);
    let client = Client::connect(&guard.socket()).expect("the daemon can be asked");
    let client = client.expect("a daemon is there");
    let server = SERVER.v4_at(OLLAMA);
    let wire = lab.wire();
    let is_over = AtomicBool::new(false);
    let senders = || {
        let mut sent = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            for source in by_turns.into_iter().chain([outsider]) {
                // Of no connection, so that what was decided of it before may be remembered.
                wire.send(&wire::stray((source, 40_000).into(), server, 60));
            }
            sent += 1;
            thread::sleep(Duration::from_micros(500));
        }
        sent
    };

    let (sent, answered) = thread::scope(|scope| {
        let senders = scope.spawn(senders);
        let insiders = scope.spawn(|| call_until(&is_over, &lab.client));
        let end = EndOnDrop(&is_over);
        for exchange in 1..=EXCHANGES {
            guard.configure(&policies[exchange as usize % policies.len()]);
            let change = client
                .reload(&Reload::default(), &Requester::this_process())
                .expect("the policy is put in force");
            assert!(change.generation > Some(exchange));
        }
        drop(end);
        (senders.join().expect("they send"), insiders.join().expect("they are answered"))
    });

    // Of each pair one is dropped, and the outsider's packet. A pair may lie on both sides of an exchange.
    let mut dropped = 0;
    until("what was sent has been counted", || {
        let before = mem::replace(&mut dropped, guard.counted("tcx", "drop", "no-rule"));
        dropped == before
    });
    println!(
        "{EXCHANGES} exchanges: {answered} calls answered, {dropped} of {} packets dropped",
        3 * sent
    );
    assert!(sent > EXCHANGES, "{sent} is too few to say anything");
    assert!(dropped.abs_diff(2 * sent) <= EXCHANGES, "{dropped} of {sent} times 3");
    let reached = listener.reached_by();
    assert_eq!(reached.len() as u64, answered);
    assert!(reached.iter().all(|peer| CLIENT.has(peer.ip())), "{reached:?}");
}

#[test]
fn who_asks_at_the_same_time_is_told_what_was_asked() {
    let lab = Lab::new("who_asks_at_the_same_time_is_told_what_was_asked");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "192.0.2.1", "2001:db8::1"]);

    thread::scope(|scope| {
        for (source, verdict) in [
            ("192.0.2.1", "pass"),
            ("192.0.2.2", "drop"),
            ("2001:db8::1", "pass"),
            ("2001:db8::2", "drop"),
        ] {
            let client = Client::connect(&guard.socket()).expect("the daemon can be asked");
            let client = client.expect("a daemon is there");
            let source = source.parse().expect("it is an address");
            scope.spawn(move || {
                for _ in 0..200 {
                    let answer = client.explain(&Explain { source, port: None });
                    let places = answer.expect("it is explained").places;
                    let is_right = places.iter().all(|place| place.verdict == verdict);
                    assert!(!places.is_empty() && is_right, "{source}: {places:?}");
                }
            });
        }
    });
}
