//! What `guard run` says once it is armed: what was closed, who was in, who stays, and how it goes on.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    control::{Enforcement, Mode, RuleView, Status},
    host::sockets::{Listener, Peer, Process},
    output::{
        backstop, ends, idle, interfaces, native, scope,
        text::{Page, View, bounded, columns, count, count_of, escaped, is_or_are, list, ports},
        who,
    },
    rule::Action,
};

/// Lines of one list, at most.
const MOST: usize = 10;

/// What is known once the policy is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    pub status: Status,
    /// Sockets that other machines could reach until now.
    pub exposed: Vec<Listener>,
    /// Connections of sources that the policy does not allow, as they were open before it was in force.
    pub peers: Vec<Peer>,
    /// Those of them that were ended.
    pub cut: Vec<Peer>,
    pub rules: Vec<RuleView>,
    /// Containers and virtual machines on local bridges are allowed.
    pub containers: bool,
    /// A policy was in force before: this daemon adopted it, and nothing was open.
    pub adopted: bool,
}

/// The whole message. The first line says what was closed; the missing parts follow at once.
#[must_use]
pub fn render(startup: &Startup, view: &View) -> String {
    let status = &startup.status;
    let observes = status.mode == Mode::Observe;
    let mut page = Page::default();
    page.line(headline(startup, view));
    for missing in status.missing.iter().take(MOST) {
        page.line(format!("{} {}", view.bad("missing:"), escaped(missing)));
    }
    if status.missing.len() > MOST {
        page.line("missing: and more (guard status)");
    }
    let mut places = bounded(&interfaces(&status.interfaces), MOST, Clone::clone);
    places.push(vec!["backstop".to_owned(), backstop(&status.backstop)]);
    page.block(&columns(&places));
    exposed(startup, observes, view, &mut page);
    peers(startup, observes, view, &mut page);
    allowed(startup, observes, view, &mut page);
    for line in native(&status.interfaces) {
        page.line(line);
    }
    outlook(status, view, &mut page);
    page.into_text()
}

/// The message's first line: what is in force.
#[must_use]
pub fn headline(startup: &Startup, view: &View) -> String {
    let status = &startup.status;
    let ports = if status.ports.is_empty() { "no port".to_owned() } else { ports(&status.ports) };
    let is = is_or_are(&status.ports);
    let now = if startup.adopted { "still" } else { "now" };
    match (status.enforcement, status.mode) {
        (Enforcement::None, _) => {
            format!("{}: {ports} {is} open to everyone", view.bad("NOT ENFORCED"))
        }
        (Enforcement::Observe, _) | (_, Mode::Observe) => format!(
            "{}: nothing is dropped{}; attempts on {ports} are counted",
            view.notable("observing"),
            status
                .observe_until
                .map(|time| format!(" until {}", view.time(time)))
                .unwrap_or_default(),
        ),
        (Enforcement::Partial, Mode::Enforce) => {
            format!("{}: {ports} {is} closed only in part", view.bad("PARTLY ENFORCED"))
        }
        (Enforcement::Full, Mode::Enforce) => {
            format!("{}: {ports} {is} {now} closed", view.good("enforcing"))
        }
    }
}

/// A service on a guarded port that other machines could reach.
fn exposed(startup: &Startup, observes: bool, view: &View, page: &mut Page) {
    if startup.exposed.is_empty() {
        return;
    }
    let when = match (observes || startup.status.enforcement == Enforcement::None, startup.adopted)
    {
        (true, _) => view.bad("is exposed:"),
        (false, true) => "would be exposed without guard:".to_owned(),
        (false, false) => view.notable("was exposed until now:"),
    };
    for listener in startup.exposed.iter().take(MOST) {
        let local = format!("{} on {}", process(listener.process.as_ref()), listener.local);
        page.line(format!("{when} {local}"));
    }
    if startup.exposed.len() > MOST {
        page.line(format!("{when} {} more", startup.exposed.len() - MOST));
    }
}

fn process(process: Option<&Process>) -> String {
    match process {
        Some(process) => format!("{} (pid {})", escaped(&process.name), process.pid),
        None => "a process".to_owned(),
    }
}

/// Those who are connected and may not be, each with the command that lets it in.
fn peers(startup: &Startup, observes: bool, view: &View, page: &mut Page) {
    let peers = if startup.cut.is_empty() { &startup.peers } else { &startup.cut };
    if peers.is_empty() {
        return;
    }
    let mut by_source: BTreeMap<IpAddr, Vec<&Peer>> = BTreeMap::new();
    for peer in peers {
        // A dual-stack socket shows an IPv4 peer as an IPv6 address, which no rule is written with.
        by_source.entry(peer.remote.ip().to_canonical()).or_default().push(peer);
    }
    let heading = if observes {
        "connected now, and cut once guard enforces; to keep one:".to_owned()
    } else if startup.cut.is_empty() {
        format!(
            "{} these connections get no more packets through; to keep one:",
            view.notable("cut:")
        )
    } else {
        format!("{} these connections were ended; to let one in again:", view.notable("cut:"))
    };
    page.line(heading);
    let sources: Vec<(IpAddr, Vec<&Peer>)> = by_source.into_iter().collect();
    page.block(&columns(&bounded(&sources, MOST, |(source, open)| {
        let to = open.first().and_then(|peer| peer.process.as_ref());
        vec![
            source.to_string(),
            format!("{} to {}", count_of(open, "connection"), process(to)),
            format!("guard allow {source}"),
        ]
    })));
}

fn allowed(startup: &Startup, observes: bool, view: &View, page: &mut Page) {
    let allows: Vec<&RuleView> =
        startup.rules.iter().filter(|rule| rule.action == Action::Allow).collect();
    let denies = startup.rules.len() - allows.len();
    let mut let_in = vec!["this machine".to_owned()];
    if startup.containers {
        let_in.push("its containers".to_owned());
    }
    if !allows.is_empty() {
        let_in.push(count_of(&allows, "allow rule"));
    }
    let mut let_in = list(&let_in);
    if denies > 0 {
        let_in = format!("{let_in} (less {})", count(denies as u64, "deny rule"));
    }
    let label = if observes { "allowed, once guard enforces:" } else { "allowed:" };
    page.line(format!("{label} {let_in}"));
    page.block(&columns(&bounded(&allows, MOST, |rule| {
        vec![
            format!("rule {}", escaped(&rule.id.0)),
            who(rule),
            format!("{}{}", scope(rule), ends(rule, view)),
            rule.comment.as_deref().map(escaped).unwrap_or_default(),
        ]
    })));
    for sentence in startup.rules.iter().filter_map(idle).take(MOST) {
        page.line(format!("{} {}", view.notable("note:"), escaped(&sentence)));
    }
}

fn outlook(status: &Status, view: &View, page: &mut Page) {
    page.line("attempts: guard events --follow");
    if status.outlives_daemon {
        page.line("stopping this process leaves the kernel enforcing; guard down lifts it");
    } else {
        page.line(format!(
            "{} enforcement ends with this process, since nothing could be pinned",
            view.bad("missing:")
        ));
    }
}

#[cfg(test)]
mod tests {
    use guard_common::packet::Protocol;

    use super::*;
    use crate::{
        control::{BackstopStatus, EventTotals, InterfaceStatus},
        output::text::tests::view,
        rule::{GuardedPort, Origin, RuleId},
    };

    fn status() -> Status {
        Status {
            enforcement: Enforcement::Full,
            missing: Vec::new(),
            layers: Vec::new(),
            tables: Vec::new(),
            mode: Mode::Enforce,
            observe_until: None,
            generation: Some(1),
            source_table_bytes: 4 << 20,
            daemon: Some(900),
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
                    name: "wg0".into(),
                    index: 3,
                    class: "tunnel".into(),
                    hook: Some("tcx".into()),
                    note: None,
                    reason: Some("XDP needs frames with an Ethernet header".into()),
                    native_price: None,
                },
            ],
            backstop: BackstopStatus {
                attached: true,
                scope: "root".into(),
                path: Some("/sys/fs/cgroup".into()),
            },
            outlives_daemon: true,
            rules: 0,
            wide_rules: Vec::new(),
            idle_rules: Vec::new(),
            sources: Vec::new(),
            counters: Vec::new(),
            events: EventTotals::default(),
            attempt_history: None,
            version: "0.1.0".into(),
            trial: None,
            rolled_back: false,
            enrich_problems: Vec::new(),
        }
    }

    fn ollama() -> Process {
        Process { pid: 812, name: "ollama".into() }
    }

    fn peer(remote: &str) -> Peer {
        Peer {
            port: GuardedPort { protocol: Protocol::Tcp, number: 11434 },
            local: "[::]:11434".parse().unwrap(),
            remote: remote.parse().unwrap(),
            process: Some(ollama()),
        }
    }

    fn rule(id: &str, action: Action, source: &str) -> RuleView {
        RuleView {
            id: RuleId(id.into()),
            action,
            source: source.into(),
            ports: Vec::new(),
            via: None,
            idle: None,
            until: None,
            comment: None,
            origin: Origin::Command,
            prefixes: 1,
            wide: false,
            refresh: None,
        }
    }

    fn open_connections() -> Vec<Peer> {
        ["[::ffff:203.0.113.9]:50000", "203.0.113.9:50001", "[2001:db8::7]:50002"]
            .map(peer)
            .to_vec()
    }

    fn first_start() -> Startup {
        Startup {
            status: status(),
            exposed: vec![Listener {
                local: "0.0.0.0:11434".parse().unwrap(),
                process: Some(ollama()),
            }],
            peers: open_connections(),
            cut: open_connections(),
            rules: vec![
                RuleView {
                    comment: Some("office".into()),
                    until: Some("2026-11-25T14:00:00Z".parse().unwrap()),
                    ..rule("f1", Action::Allow, "10.20.0.0/16")
                },
                rule("3", Action::Deny, "10.20.3.7"),
            ],
            containers: true,
            adopted: false,
        }
    }

    #[test]
    fn a_first_start_says_everything() {
        assert_eq!(
            render(&first_start(), &view()),
            "enforcing: TCP 11434 is now closed\n  \
               eth0      outside  tcx\n  \
               wg0       tunnel   tcx\n  \
               backstop  at every socket of this machine (/sys/fs/cgroup)\n\
             was exposed until now: ollama (pid 812) on 0.0.0.0:11434\n\
             cut: these connections were ended; to let one in again:\n  \
               203.0.113.9  2 connections to ollama (pid 812)  guard allow 203.0.113.9\n  \
               2001:db8::7  1 connection to ollama (pid 812)   guard allow 2001:db8::7\n\
             allowed: this machine, its containers and 1 allow rule (less 1 deny rule)\n  \
               rule f1  10.20.0.0/16  every guarded port, until 14:00:00  office\n\
             native XDP would drop earlier on eth0: guard run --attach native (its price: it resets its rings)\n\
             attempts: guard events --follow\n\
             stopping this process leaves the kernel enforcing; guard down lifts it\n"
        );
    }

    #[test]
    fn a_quiet_host_hears_little() {
        let mut plain = status();
        plain.interfaces[0].native_price = None;
        let quiet = Startup {
            status: plain,
            exposed: Vec::new(),
            peers: Vec::new(),
            cut: Vec::new(),
            rules: Vec::new(),
            containers: false,
            ..first_start()
        };
        assert_eq!(
            render(&quiet, &view()),
            "enforcing: TCP 11434 is now closed\n  \
               eth0      outside  tcx\n  \
               wg0       tunnel   tcx\n  \
               backstop  at every socket of this machine (/sys/fs/cgroup)\n\
             allowed: this machine\n\
             attempts: guard events --follow\n\
             stopping this process leaves the kernel enforcing; guard down lifts it\n"
        );
    }

    #[test]
    fn what_could_not_be_ended_is_silenced() {
        let startup = Startup { cut: Vec::new(), ..first_start() };
        let text = render(&startup, &view());
        assert!(
            text.contains("cut: these connections get no more packets through; to keep one:\n"),
            "{text}"
        );
        assert!(text.contains("guard allow 2001:db8::7\n"), "{text}");
    }

    #[test]
    fn observing_says_that_nothing_is_dropped() {
        let mut startup = first_start();
        startup.status.enforcement = Enforcement::Observe;
        startup.status.mode = Mode::Observe;
        startup.cut.clear();
        let text = render(&startup, &view());
        assert!(
            text.starts_with("observing: nothing is dropped; attempts on TCP 11434 are counted\n"),
            "{text}"
        );
        assert!(text.contains("is exposed: ollama (pid 812)"), "{text}");
        assert!(text.contains("cut once guard enforces"), "{text}");
        assert!(!text.contains("until now"), "{text}");
        startup.status.observe_until = Some("2026-11-25T12:10:00Z".parse().unwrap());
        assert!(
            render(&startup, &view()).starts_with("observing: nothing is dropped until 12:10:00;")
        );
    }

    #[test]
    fn what_is_missing_is_loud_and_early() {
        let mut startup = first_start();
        startup.status.enforcement = Enforcement::Partial;
        startup.status.missing = vec!["wg0 has no hook: the kernel refused it".into()];
        startup.status.outlives_daemon = false;
        let text = render(&startup, &view());
        assert!(
            text.starts_with(
                "PARTLY ENFORCED: TCP 11434 is closed only in part\n\
                 missing: wg0 has no hook: the kernel refused it\n"
            ),
            "{text}"
        );
        assert!(text.ends_with(
            "missing: enforcement ends with this process, since nothing could be pinned\n"
        ));
        startup.status.enforcement = Enforcement::None;
        let text = render(&startup, &view());
        assert!(text.starts_with("NOT ENFORCED: TCP 11434 is open to everyone\n"), "{text}");
        assert!(text.contains("is exposed: ollama"), "{text}");
    }

    #[test]
    fn a_restart_does_not_claim_to_have_closed_anything() {
        let mut startup = first_start();
        startup.adopted = true;
        startup.status.ports.push("8080".into());
        let text = render(&startup, &view());
        assert!(text.starts_with("enforcing: TCP 11434 and TCP 8080 are still closed\n"), "{text}");
        assert!(text.contains("would be exposed without guard: ollama"), "{text}");
    }

    #[test]
    fn every_list_is_bounded() {
        let mut startup = first_start();
        startup.cut = (0..14).map(|n| peer(&format!("203.0.113.{n}:50000"))).collect();
        startup.rules = (0..13).map(|_| rule("1", Action::Allow, "192.0.2.7")).collect();
        startup.exposed = vec![startup.exposed[0].clone(); 12];
        startup.status.missing = vec!["x".into(); 11];
        startup.status.interfaces = vec![startup.status.interfaces[0].clone(); 30];
        let text = render(&startup, &view());
        for line in [
            "  and 4 more\n",
            "  and 3 more\n",
            "until now: 2 more\n",
            "missing: and more (guard status)\n",
            "  and 20 more\n",
            "eth0 and 20 more: guard run --attach native (its price: it resets",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn a_process_can_not_steer_the_terminal_by_its_name() {
        let mut startup = first_start();
        startup.exposed[0].process = Some(Process { pid: 1, name: "x\u{1b}[2J\n".into() });
        startup.exposed.push(Listener { local: "[::]:11434".parse().unwrap(), process: None });
        let text = render(&startup, &view());
        assert!(text.contains("x\\u{1b}[2J\\u{a} (pid 1) on 0.0.0.0:11434\n"), "{text}");
        assert!(text.contains("until now: a process on [::]:11434\n"), "{text}");
    }
}
