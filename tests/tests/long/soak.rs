//! Everything at once, for a while: floods, callers, policies, rules, interfaces and clients that come and go. Nothing leaks, and
//! what was sent is what was counted.
//!
//! `GUARD_SOAK_SECONDS=3600 cargo xtask test -- all_at_once` runs it for an hour.

use std::{
    env, fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use guard::{
    api::client::Client,
    control::{AddRules, Control, Explain, Reload, RemoveRules},
    history::Requester,
    rule::Action,
};
use guard_tests::{
    bench::memory::resident_mib,
    foreign::{guard_links, pinned_map_bytes},
    http::ask_api,
    lab::{CLIENT, Lab, OLLAMA, SERVER},
    product::{Attach, Guard},
    traffic::call_until,
    wait::{EndOnDrop, until, until_none},
    wire,
};

const SECONDS: &str = "GUARD_SOAK_SECONDS";
const SHORT: Duration = Duration::from_mins(2);

/// Memory that differs by no more has not grown. It is compared when nothing goes on: of a busy daemon it rises and falls by twice
/// as much and more from one minute to the next.
const NOISE_MIB: f64 = 4.0;

/// In so much time a daemon that has nothing to do gives back what it does not need.
const CALM: Duration = Duration::from_secs(20);

/// Threads that differ by no more have not grown: as many wait for work as once had some at the same time.
const NOISE_THREADS: usize = 8;

fn span() -> Duration {
    let seconds = env::var(SECONDS).ok();
    let seconds = seconds.map(|text| text.parse().unwrap_or_else(|_| panic!("{SECONDS}={text}")));
    seconds.map_or(SHORT, Duration::from_secs)
}

/// What guard has of the daemon's and the kernel's.
#[derive(Debug)]
struct Holdings {
    daemon_mib: f64,
    files: usize,
    threads: usize,
    links: usize,
    pins: usize,
    map_bytes: u64,
    source_bytes: u64,
}

impl Holdings {
    fn of(guard: &Guard<'_>, lab: &Lab) -> Self {
        let count = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
        let pid = guard.pid();
        let pins = lab.pins().join("v1");
        Self {
            daemon_mib: resident_mib(pid).expect("it runs"),
            files: count(format!("/proc/{pid}/fd")),
            threads: count(format!("/proc/{pid}/task")),
            links: guard_links(&lab.pins()).len(),
            pins: ["maps", "programs", "links"]
                .map(|part| count(pins.join(part).display().to_string()))
                .into_iter()
                .sum(),
            map_bytes: pinned_map_bytes(&lab.pins()),
            source_bytes: guard.status().source_table_bytes,
        }
    }

    /// As it is once the daemon has come to rest.
    fn at_rest(guard: &Guard<'_>, lab: &Lab) -> Self {
        thread::sleep(CALM);
        Self::of(guard, lab)
    }

    /// What is more than it may be, as `what: that, now`.
    fn growth_since(&self, before: &Self) -> Vec<String> {
        let (now, may_be) = (self.daemon_mib, before.daemon_mib + NOISE_MIB);
        let memory = (now > may_be).then(|| format!("the daemon's MiB: {may_be:.1}, {now:.1}"));
        let counted = [
            ("files", before.files as u64, self.files as u64),
            ("threads", (before.threads + NOISE_THREADS) as u64, self.threads as u64),
            ("links", before.links as u64, self.links as u64),
            ("pins", before.pins as u64, self.pins as u64),
            ("bytes of maps", before.map_bytes, self.map_bytes),
            ("bytes of the source table", before.source_bytes, self.source_bytes),
        ];
        let counted = counted.into_iter().filter(|(_, may_be, now)| now > may_be);
        let counted = counted.map(|(what, may_be, now)| format!("{what}: {may_be}, {now}"));
        memory.into_iter().chain(counted).collect()
    }
}

/// Does this again and again until it is over, with a pause each time.
fn keep_on(is_over: &AtomicBool, pause: Duration, mut step: impl FnMut(u64)) {
    let mut round = 0;
    while !is_over.load(Ordering::Relaxed) {
        step(round);
        round += 1;
        thread::sleep(pause);
    }
}

#[test]
fn all_at_once_for_a_while() {
    let lab = Lab::new("all_at_once_for_a_while");
    let listener = lab.serve();
    let configuration = |number: u64| {
        let others = number % 2 * 5_000;
        let prefixes: Vec<String> =
            (0..others).map(|n| format!("\"100.{}.{}.0/24\"", 64 + n / 256, n % 256)).collect();
        format!(
            "[[rule]]\nallow = [\"{}\"{}{}]\n",
            CLIENT.v4,
            if others > 0 { ", " } else { "" },
            prefixes.join(", ")
        )
    };
    let guard = lab.start_guard(Attach::Tcx, &configuration(0));
    let events = guard.follow();
    let socket = guard.socket();
    let ask = || Client::connect(&socket).expect("the daemon can be asked").expect("it is there");
    let by = Requester::this_process();
    let server = SERVER.v4_at(OLLAMA);
    let wires = [lab.wire(), lab.wire()];
    let sent = AtomicU64::new(0);
    let file = guard.configuration();
    // As `Guard::configure` has it, from a thread that has no `Guard`.
    let template = fs::read_to_string(&file).expect("it is text");

    // Returns how many calls were answered.
    let half = || {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for (number, wire) in wires.iter().enumerate() {
                let (sent, is_over) = (&sent, &is_over);
                scope.spawn(move || {
                    keep_on(is_over, Duration::from_micros(300), |round| {
                        let low = round as u16;
                        let packet = if number == 0 {
                            wire::syn((wire::stranger_v4(low), 4242).into(), server)
                        } else {
                            wire::syn((wire::stranger_v6(low), 4242).into(), SERVER.v6_at(OLLAMA))
                        };
                        wire.send(&packet);
                        sent.fetch_add(1, Ordering::Relaxed);
                    });
                });
            }
            let calls = scope.spawn(|| call_until(&is_over, &lab.client));
            scope.spawn(|| {
                let client = ask();
                keep_on(&is_over, Duration::from_millis(200), |round| {
                    let text = template.replace(&configuration(0), &configuration(round));
                    fs::write(&file, text).expect("it is written");
                    client.reload(&Reload::default(), &by).expect("it is put in force");
                });
            });
            scope.spawn(|| {
                let client = ask();
                keep_on(&is_over, Duration::from_millis(50), |round| {
                    let source = format!("192.0.2.{}", round % 200);
                    let add = AddRules {
                        action: if round % 3 == 0 { Action::Deny } else { Action::Allow },
                        sources: vec![source.clone()],
                        ports: Vec::new(),
                        via: None,
                        for_seconds: (round % 2 == 0).then_some(600),
                        comment: None,
                        yes: false,
                        confirm_seconds: None,
                    };
                    client.add_rules(&add, &by).expect("it is made");
                    let remove = RemoveRules { rules: vec![source] };
                    client.remove_rules(&remove, &by).expect("it is removed");
                });
            });
            scope.spawn(|| {
            keep_on(&is_over, Duration::from_millis(100), |round| {
                let name = format!("churn{}", round % 5);
                lab.server.ip(&format!("link add {name} type veth peer name {name}p\nlink set {name} up\nlink set {name}p up\n"));
                thread::sleep(Duration::from_millis(300));
                lab.server.ip(&format!("link delete {name}\n"));
            });
        });
            scope.spawn(|| {
                let client = ask();
                keep_on(&is_over, Duration::from_millis(30), |round| {
                    client.status().expect("it answers");
                    client.rules().expect("it answers");
                    let source = CLIENT.v4.into();
                    client.explain(&Explain { source, port: None }).expect("it answers");
                    client.history(Some(5)).expect("it answers");
                    assert_eq!(ask_api(&socket, "GET", "/metrics", "").code, 200);
                    if round % 10 == 0 {
                        let answer = ask_api(&socket, "POST", "/v1/rules", "{\"action\":");
                        assert_eq!(answer.code, 400, "{answer:?}");
                    }
                });
            });

            let end = EndOnDrop(&is_over);
            thread::sleep(span() / 2);
            drop(end);
            calls.join().expect("each call is answered")
        })
    };
    let rest = || {
        guard.configure(&configuration(0));
        guard.tell(&["reload"]);
    };

    let answered = half();
    rest();
    // What grows to its size at first is there now.
    let before = Holdings::at_rest(&guard, &lab);
    let answered = answered + half();
    rest();
    let sent = sent.into_inner();
    guard.expect_counted("tcx", "drop", "no-rule", sent);
    until("each packet is reported, or counted as in no report", || {
        let totals = guard.status().events;
        let (reported, lost) = events.reported_and_lost();
        let unseen = sent - (reported + totals.unreported + totals.passed_over);
        // Who follows too slowly is told how many attempts that cost; each stood for one packet or more.
        if lost == 0 { unseen == 0 } else { unseen >= lost }
    });
    let reached = listener.reached_by();
    assert_eq!(reached.len() as u64, answered);
    assert!(reached.iter().all(|peer| CLIENT.has(peer.ip())));
    assert!(!guard.log().contains("panicked"), "{}", guard.log());
    until_none("of these has grown", || Holdings::of(&guard, &lab).growth_since(&before));
    println!(
        "{sent} packets dropped, {answered} calls answered, {} policies; {before:?}, then {:?}",
        guard.generation(),
        Holdings::of(&guard, &lab)
    );
}
