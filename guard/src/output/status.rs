//! `guard status`: how much of the promise is in force.

use super::{
    rules::refreshed,
    text::{Page, View, bytes, columns, count, escaped, is_or_are, ports},
};
use crate::{
    control::{
        BackstopStatus, CounterView, Enforcement, InterfaceStatus, Mode, PublishedPort,
        SourceStatus, Status, TrialView,
    },
    duration,
};

/// The whole answer. The first line says it all.
#[must_use]
pub fn status(status: &Status, view: &View) -> String {
    let mut page = Page::default();
    page.line(headline(status, view));
    for missing in &status.missing {
        page.line(format!("{} {}", view.bad("missing:"), escaped(missing)));
    }
    let mut facts = interfaces(&status.interfaces.iter().map(with_reason).collect::<Vec<_>>());
    facts.push(vec!["backstop".to_owned(), backstop(&status.backstop)]);
    page.block(&columns(&facts));
    for line in native(&status.interfaces) {
        page.line(line);
    }
    for published in &status.published {
        page.line(published_port(published));
    }
    page.line(rules(status));
    if let Some(trial) = &status.trial {
        page.line(on_trial(trial, view));
    }
    if status.rolled_back {
        page.line(format!(
            "{} the configuration in force is not the file's, which was tried and not confirmed: guard reload takes it",
            view.notable("note:")
        ));
    }
    for wide in &status.wide_rules {
        page.line(format!("{} {}", view.notable("very wide:"), escaped(wide)));
    }
    for idle in &status.idle_rules {
        page.line(format!("{} {}", view.notable("note:"), escaped(idle)));
    }
    sources(status, view, &mut page);
    page.line(daemon(status));
    totals(&status.counters, &mut page);
    unreported(status, view, &mut page);
    history(status, view, &mut page);
    for problem in &status.enrich_problems {
        page.line(format!("{} {}", view.notable("note:"), escaped(problem)));
    }
    page.line(next(status));
    page.into_text()
}

/// `on trial: allow 192.0.2.7 confirm 1m, for another 42s unless guard confirm is run (until 12:01:00)`
fn on_trial(trial: &TrialView, view: &View) -> String {
    let left = trial.until.duration_since(view.now).as_secs();
    let left = match u64::try_from(left) {
        Ok(left) if left > 0 => {
            format!("for another {} unless guard confirm is run", duration::brief(left))
        }
        _ => "not confirmed in time, and rolled back by the next start or command".to_owned(),
    };
    format!(
        "{} {}, {left} (until {})",
        view.notable("on trial:"),
        escaped(&trial.what),
        view.time(trial.until)
    )
}

fn headline(status: &Status, view: &View) -> String {
    let ports = guarded(status);
    let is = is_or_are(&status.ports);
    match status.enforcement {
        Enforcement::Full => {
            let rules = match status.rules {
                0 => String::new(),
                number => format!(" and {}", count(number as u64, "rule")),
            };
            format!(
                "{}: {ports} {is} closed to everyone but this machine{rules}",
                view.good("enforcing"),
            )
        }
        Enforcement::Observe => {
            format!("{}{}", view.notable("observing"), observing(status, view))
        }
        Enforcement::Partial => match status.mode {
            Mode::Enforce => {
                format!("{}: {ports} {is} closed only in part", view.bad("PARTLY ENFORCED"))
            }
            Mode::Observe => format!(
                "{}, and a part is missing{}",
                view.notable("observing"),
                observing(status, view)
            ),
        },
        Enforcement::None => {
            format!("{}: {ports} {is} open to everyone", view.bad("NOT ENFORCED"))
        }
    }
}

fn guarded(status: &Status) -> String {
    if status.ports.is_empty() { "no port".to_owned() } else { ports(&status.ports) }
}

fn observing(status: &Status, view: &View) -> String {
    let ends = match status.observe_until {
        Some(time) => format!(" until {}", view.time(time)),
        None => String::new(),
    };
    format!(": {} {} open to everyone{ends}", guarded(status), is_or_are(&status.ports))
}

/// Containers' devices that are named one by one; of more, one stands for all.
const MOST_CONTAINERS: usize = 3;

/// Each interface as a row, in order; the devices of many containers that are covered alike share one.
#[must_use]
pub fn interfaces(all: &[InterfaceStatus]) -> Vec<Vec<String>> {
    let is_plain = |one: &&InterfaceStatus| {
        one.class == "container" && one.hook.is_some() && one.note.is_none()
    };
    let Some(first) = all.iter().find(is_plain) else {
        return all.iter().map(interface).collect();
    };
    let is_alike = |one: &&InterfaceStatus| is_plain(one) && one.hook == first.hook;
    let alike = all.iter().filter(is_alike).count();
    if alike <= MOST_CONTAINERS {
        return all.iter().map(interface).collect();
    }
    let mut rows: Vec<Vec<String>> =
        all.iter().filter(|one| !is_alike(one)).map(interface).collect();
    let mut shared = interface(first);
    shared[0] = format!("{} and {} more", shared[0], alike - 1);
    rows.push(shared);
    rows
}

/// An interface as a row: name, class, hook, note.
fn interface(interface: &InterfaceStatus) -> Vec<String> {
    vec![
        escaped(&interface.name),
        escaped(&interface.class),
        interface.hook.as_deref().map_or_else(|| "no hook".to_owned(), escaped),
        interface.note.as_deref().map(escaped).unwrap_or_default(),
    ]
}

/// With the reason for its hook beside what else there is to say.
fn with_reason(interface: &InterfaceStatus) -> InterfaceStatus {
    let notes = interface.reason.iter().chain(&interface.note).cloned();
    let notes: Vec<String> = notes.collect();
    InterfaceStatus { note: (!notes.is_empty()).then(|| notes.join("; ")), ..interface.clone() }
}

/// Interfaces that one line names.
const MOST_NAMES: usize = 10;

/// Native XDP is the earliest place to drop, and never chosen by itself where other traffic would pay for it: a line for each
/// price.
#[must_use]
pub fn native(all: &[InterfaceStatus]) -> Vec<String> {
    let mut by_price: Vec<(&str, Vec<String>)> = Vec::new();
    for interface in all {
        let Some(price) = interface.native_price.as_deref() else { continue };
        let name = escaped(&interface.name);
        match by_price.iter_mut().find(|(known, _)| *known == price) {
            Some((_, names)) => names.push(name),
            None => by_price.push((price, vec![name])),
        }
    }
    let line = |(price, names): (&str, Vec<String>)| {
        let more = match names.len().saturating_sub(MOST_NAMES) {
            0 => String::new(),
            number => format!(" and {number} more"),
        };
        let shown = &names[..names.len().min(MOST_NAMES)];
        format!(
            "native XDP would drop earlier on {}{more}: guard run --attach native (its price: {})",
            shown.join(", "),
            escaped(price)
        )
    };
    by_price.into_iter().map(line).collect()
}

/// `published: 8081 leads to 11434 (docker-proxy), and is guarded too`
fn published_port(published: &PublishedPort) -> String {
    let by = published.by.as_deref().map_or_else(String::new, |by| format!(" ({})", escaped(by)));
    let (port, to) = (escaped(&published.port), escaped(&published.to));
    format!("published: {port} leads to {to}{by}, and is guarded too")
}

/// Where the backstop stands, in a few words.
#[must_use]
pub fn backstop(backstop: &BackstopStatus) -> String {
    if !backstop.attached {
        return "none".to_owned();
    }
    let path = match backstop.path.as_deref() {
        Some(path) if path != backstop.scope => format!(" ({})", escaped(path)),
        _ => String::new(),
    };
    match backstop.scope.as_str() {
        "root" => format!("at every socket of this machine{path}"),
        scope => format!("only {}{path}", escaped(scope)),
    }
}

/// The memory of a source table that people are told of.
const WORTH_SAYING_BYTES: u64 = 16 << 20;

fn rules(status: &Status) -> String {
    match status.generation {
        Some(generation) => {
            let memory = match status.source_table_bytes {
                ..WORTH_SAYING_BYTES => String::new(),
                large => format!(", whose sources take {} of memory", bytes(large)),
            };
            let rules = count(status.rules as u64, "rule");
            format!("{rules} in force (generation {generation}){memory}")
        }
        None => format!("{} kept for the next start", count(status.rules as u64, "rule")),
    }
}

fn daemon(status: &Status) -> String {
    match (status.daemon, status.enforcement, status.outlives_daemon) {
        (Some(pid), _, true) => format!("daemon pid {pid}; the kernel goes on without it"),
        (Some(pid), _, false) => {
            format!("daemon pid {pid}; ENFORCEMENT ENDS WITH IT, since nothing could be pinned")
        }
        (None, Enforcement::None, _) => "no daemon".to_owned(),
        (None, _, _) => {
            "no daemon: the kernel enforces without it, and attempts are only counted".to_owned()
        }
    }
}

/// Sources that are told of one by one.
const MOST_SOURCES: usize = 5;

/// Each source that is refreshed, where there are few; else those with something wrong, and how many there are.
fn sources(status: &Status, view: &View, page: &mut Page) {
    let is_wrong = |one: &&SourceStatus| one.refresh.error.is_some();
    let are_few = status.sources.len() <= MOST_SOURCES;
    let told: Vec<&SourceStatus> =
        status.sources.iter().filter(|one| are_few || is_wrong(one)).collect();
    for one in told.iter().take(MOST_SOURCES) {
        page.line(refreshed(&one.source, &one.refresh, view));
    }
    if !are_few {
        let wrong = told.len();
        let all = count(status.sources.len() as u64, "source");
        page.line(format!("{all} refreshed, {wrong} with something wrong: guard rules"));
    }
}

/// A packet may be counted at more than one hook, so hooks are never added up.
fn totals(counters: &[CounterView], page: &mut Page) {
    let rows: Vec<Vec<String>> = counters
        .iter()
        .filter(|counter| counter.packets > 0)
        .map(|counter| {
            vec![
                escaped(&counter.hook),
                escaped(&counter.verdict),
                escaped(&counter.reason),
                count(counter.packets, "packet"),
                bytes(counter.bytes),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page.line("packets to guarded ports, each hook by itself:");
        page.block(&columns(&rows));
    }
}

fn unreported(status: &Status, view: &View, page: &mut Page) {
    let unreported = status.events.unreported + status.events.passed_over;
    if unreported > 0 {
        let packets = count(unreported, "packet");
        page.line(format!("of these not in guard events: {packets}"));
    }
    if status.events.ring_full > 0 {
        let reports = count(status.events.ring_full, "report");
        page.line(format!("{reports} found no room: attempts came faster than they were read"));
    }
    for sink in &status.events.sinks {
        let name = escaped(&sink.sink);
        if sink.left_out > 0 {
            let attempts = count(sink.left_out, "attempt");
            page.line(format!("{name}: {attempts} left out, {} taken", sink.taken));
        }
        if let Some(error) = &sink.error {
            page.line(format!("{} {}", view.bad(&name), escaped(error)));
        }
    }
}

/// Only where somebody should look.
fn history(status: &Status, view: &View, page: &mut Page) {
    let Some(history) = &status.attempt_history else { return };
    if let Some(said) = &history.set_aside {
        page.line(format!("{} {}", view.notable("note:"), escaped(said)));
    }
    if history.folded_into_others > 0 {
        let attempts = count(history.folded_into_others, "attempt");
        page.line(format!("history: {attempts} came too fast to be kept by their sources"));
    }
}

fn next(status: &Status) -> String {
    let command = match (status.enforcement, status.daemon) {
        (Enforcement::None, _) => "guard run",
        (_, None) => "guard run (adopts what is in force, and shows attempts)",
        (Enforcement::Observe, Some(_)) => "guard enforce",
        (Enforcement::Full | Enforcement::Partial, Some(_)) => "guard events --follow",
    };
    format!("next: {command}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{super::text::tests::view, *};
    use crate::control::{EventTotals, Refresh, SinkStatus};

    pub fn example() -> Status {
        Status {
            enforcement: Enforcement::Full,
            missing: Vec::new(),
            layers: Vec::new(),
            tables: Vec::new(),
            mode: Mode::Enforce,
            observe_until: None,
            generation: Some(7),
            source_table_bytes: 4 << 20,
            daemon: Some(812),
            ports: vec!["11434".into()],
            published: Vec::new(),
            interfaces: vec![
                InterfaceStatus {
                    name: "eth0".into(),
                    index: 2,
                    class: "outside".into(),
                    hook: Some("tcx".into()),
                    note: None,
                    reason: Some("native XDP is not free with ice".into()),
                    native_price: Some("it resets its rings".into()),
                },
                InterfaceStatus {
                    name: "docker0".into(),
                    index: 3,
                    class: "local bridge".into(),
                    hook: None,
                    note: None,
                    reason: None,
                    native_price: None,
                },
            ],
            backstop: BackstopStatus {
                attached: true,
                scope: "root".into(),
                path: Some("/sys/fs/cgroup".into()),
            },
            outlives_daemon: true,
            rules: 2,
            wide_rules: Vec::new(),
            idle_rules: Vec::new(),
            sources: Vec::new(),
            counters: vec![
                counter("tcx", "drop", "no-rule", 1_234, 74_040),
                counter("tcx", "pass", "local", 0, 0),
                counter("cgroup", "drop", "undecidable", 1, 60),
            ],
            events: EventTotals::default(),
            attempt_history: None,
            version: "0.1.0".into(),
            trial: None,
            rolled_back: false,
            enrich_problems: Vec::new(),
        }
    }

    fn counter(hook: &str, verdict: &str, reason: &str, packets: u64, bytes: u64) -> CounterView {
        CounterView {
            hook: hook.into(),
            verdict: verdict.into(),
            reason: reason.into(),
            packets,
            bytes,
        }
    }

    #[test]
    fn all_is_well() {
        assert_eq!(
            status(&example(), &view()),
            "enforcing: TCP 11434 is closed to everyone but this machine and 2 rules\n  \
               eth0      outside       tcx      native XDP is not free with ice\n  \
               docker0   local bridge  no hook\n  \
               backstop  at every socket of this machine (/sys/fs/cgroup)\n\
             native XDP would drop earlier on eth0: guard run --attach native (its price: it resets its rings)\n\
             2 rules in force (generation 7)\n\
             daemon pid 812; the kernel goes on without it\n\
             packets to guarded ports, each hook by itself:\n  \
               tcx     drop  no-rule      1,234 packets  74.0 kB\n  \
               cgroup  drop  undecidable  1 packet       60 B\n\
             next: guard events --follow\n"
        );
    }

    #[test]
    fn a_price_is_told_once_for_all_that_have_it() {
        let interface = |number: u32, price: &str| InterfaceStatus {
            name: format!("eth{number}"),
            native_price: (!price.is_empty()).then(|| price.into()),
            ..example().interfaces[0].clone()
        };
        let mut all =
            vec![interface(0, "a"), interface(1, "b"), interface(2, ""), interface(3, "a")];
        assert_eq!(
            native(&all),
            [
                "native XDP would drop earlier on eth0, eth3: guard run --attach native (its price: a)",
                "native XDP would drop earlier on eth1: guard run --attach native (its price: b)",
            ]
        );
        all.extend((10..23).map(|number| interface(number, "b")));
        assert!(native(&all)[1].contains("eth18 and 4 more: guard run"), "{:?}", native(&all));
    }

    #[test]
    fn a_trial_is_told_with_what_is_left_of_it() {
        let trial = |until: &str| TrialView {
            what: "allow 192.0.2.7\u{1b} confirm 1m".into(),
            until: until.parse().unwrap(),
        };
        let of = |until| status(&Status { trial: Some(trial(until)), ..example() }, &view());
        let text = of("2026-11-25T12:00:42Z");
        assert!(
            text.contains(
                "on trial: allow 192.0.2.7\\u{1b} confirm 1m, for another 42s unless guard confirm is run (until 12:00:42)\n"
            ),
            "{text}"
        );
        assert!(of("2026-11-25T11:59:00Z").contains("not confirmed in time"));
        let text = status(&Status { rolled_back: true, ..example() }, &view());
        assert!(text.contains("not the file's") && text.contains("guard reload"), "{text}");
    }

    #[test]
    fn a_large_table_is_told() {
        let large = Status { source_table_bytes: 132_120_576, ..example() };
        let line = "2 rules in force (generation 7), whose sources take 132.1 MB of memory\n";
        assert!(status(&large, &view()).contains(line));
    }

    #[test]
    fn a_reason_stands_before_the_note() {
        let noted =
            InterfaceStatus { note: Some("a note".into()), ..example().interfaces[0].clone() };
        let note = with_reason(&noted).note;
        assert_eq!(note.as_deref(), Some("native XDP is not free with ice; a note"));
        assert_eq!(with_reason(&example().interfaces[1]).note, None);
    }

    #[test]
    fn the_devices_of_many_containers_share_a_row() {
        let container = |number: u32, note: Option<&str>| InterfaceStatus {
            name: format!("cali{number}"),
            index: number,
            class: "container".into(),
            hook: Some("edge tcx".into()),
            note: note.map(Into::into),
            reason: None,
            native_price: None,
        };
        let mut all = example().interfaces;
        all.extend([container(10, None), container(11, None), container(12, None)]);
        assert_eq!(interfaces(&all).len(), 5);
        all.extend((20..60).map(|number| container(number, None)));
        all.push(container(60, Some("a note")));
        let rows = interfaces(&all);
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[2][0], "cali60");
        assert_eq!(rows[3][..3], ["cali10 and 42 more", "container", "edge tcx"]);
    }

    #[test]
    fn without_rules_only_this_machine_is_let_in() {
        let bare = Status { rules: 0, ports: vec!["11434".into(), "8080".into()], ..example() };
        assert!(status(&bare, &view()).starts_with(
            "enforcing: TCP 11434 and TCP 8080 are closed to everyone but this machine\n"
        ));
    }

    #[test]
    fn observing_says_until_when() {
        let observing = Status {
            enforcement: Enforcement::Observe,
            mode: Mode::Observe,
            observe_until: Some("2026-11-25T12:10:00Z".parse().unwrap()),
            ..example()
        };
        let text = status(&observing, &view());
        assert!(
            text.starts_with("observing: TCP 11434 is open to everyone until 12:10:00\n"),
            "{text}"
        );
        assert!(text.ends_with("next: guard enforce\n"), "{text}");
    }

    #[test]
    fn what_is_missing_comes_right_after_the_first_line() {
        let partial = Status {
            enforcement: Enforcement::Partial,
            missing: vec![
                "the backstop holds for this container only: run guard on the host".into(),
            ],
            backstop: BackstopStatus { attached: true, scope: "this container".into(), path: None },
            ..example()
        };
        let text = status(&partial, &view());
        assert!(
            text.starts_with(
                "PARTLY ENFORCED: TCP 11434 is closed only in part\n\
                 missing: the backstop holds for this container only: run guard on the host\n"
            ),
            "{text}"
        );
        assert!(text.contains("backstop  only this container\n"), "{text}");
        let path = "/sys/fs/cgroup/x".to_owned();
        let scoped = BackstopStatus { attached: true, scope: path.clone(), path: Some(path) };
        assert_eq!(backstop(&scoped), "only /sys/fs/cgroup/x");
        let observing = Status { mode: Mode::Observe, ..partial };
        assert!(
            status(&observing, &view())
                .starts_with("observing, and a part is missing: TCP 11434 is open to everyone\n")
        );
    }

    #[test]
    fn published_ports_are_named_with_the_port_they_lead_to() {
        let port = |port: &str, by: Option<&str>| PublishedPort {
            port: port.into(),
            to: "11434".into(),
            by: by.map(str::to_owned),
        };
        let published = Status {
            published: vec![port("8081", Some("docker-proxy")), port("8082", None)],
            ..example()
        };
        let text = status(&published, &view());
        assert!(
            text.contains(
                "published: 8081 leads to 11434 (docker-proxy), and is guarded too\n\
                 published: 8082 leads to 11434, and is guarded too\n\
                 2 rules in force"
            ),
            "{text}"
        );
    }

    #[test]
    fn nothing_enforced_is_loud() {
        let none = Status {
            enforcement: Enforcement::None,
            generation: None,
            daemon: None,
            interfaces: Vec::new(),
            backstop: BackstopStatus { attached: false, scope: String::new(), path: None },
            counters: Vec::new(),
            ..example()
        };
        assert_eq!(
            status(&none, &view()),
            "NOT ENFORCED: TCP 11434 is open to everyone\n  \
               backstop  none\n\
             2 rules kept for the next start\n\
             no daemon\n\
             next: guard run\n"
        );
    }

    #[test]
    fn the_rest_is_said_when_there_is_something_to_say() {
        let busy = Status {
            daemon: None,
            wide_rules: vec!["allow 10.0.0.0/7 (rule 3)".into()],
            events: EventTotals {
                unreported: 30,
                passed_over: 4,
                ring_full: 2,
                sinks: vec![SinkStatus {
                    sink: "journal".into(),
                    taken: 500,
                    left_out: 7,
                    error: Some("the journal takes none\u{7}".into()),
                }],
                ..EventTotals::default()
            },
            ..example()
        };
        let text = status(&busy, &view());
        assert!(text.contains("very wide: allow 10.0.0.0/7 (rule 3)\n"), "{text}");
        assert!(text.contains("of these not in guard events: 34 packets\n"), "{text}");
        assert!(text.contains("2 reports found no room"), "{text}");
        assert!(text.contains("journal: 7 attempts left out, 500 taken\n"), "{text}");
        assert!(text.contains("journal the journal takes none"), "{text}");
        assert!(!text.contains('\u{7}'), "{text:?}");
        assert!(text.contains("no daemon: the kernel enforces without it"), "{text}");
        let fleeting = Status { outlives_daemon: false, ..example() };
        assert!(status(&fleeting, &view()).contains("ENFORCEMENT ENDS WITH IT"));
    }

    #[test]
    fn names_from_outside_are_escaped() {
        let mut hostile = example();
        hostile.interfaces[0].name = "e\u{1b}[2J".into();
        hostile.missing.push("x\u{7}".into());
        let text = status(&hostile, &view());
        assert!(!text.chars().any(|c| c != '\n' && c.is_control()), "{text:?}");
    }

    #[test]
    fn sources_are_told_of_where_few_or_wrong() {
        let source = |number: u32, error: Option<&str>| SourceStatus {
            source: format!("h{number}.example.org"),
            prefixes: 1,
            refresh: Refresh {
                at: Some("2026-11-25T13:00:00Z".parse().unwrap()),
                next: None,
                error: error.map(str::to_owned),
            },
        };
        let mut few = example();
        few.sources = vec![source(1, None), source(2, Some("the resolver does not answer"))];
        let text = status(&few, &view());
        assert!(text.contains("\nh1.example.org: refreshed 13:00:00\n"), "{text}");
        assert!(
            text.contains(
                "\nnote: h2.example.org: refreshed 13:00:00; the resolver does not answer\n"
            ),
            "{text}"
        );
        few.sources = (0..20).map(|number| source(number, (number == 7).then_some("x"))).collect();
        let text = status(&few, &view());
        assert!(
            text.contains("\n20 sources refreshed, 1 with something wrong: guard rules\n"),
            "{text}"
        );
        assert!(text.contains("h7.example") && !text.contains("h8.example"), "{text}");
    }
}
