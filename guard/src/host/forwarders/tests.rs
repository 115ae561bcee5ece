use std::net::TcpListener;

use super::*;

fn published(port: u16, leads_to: LeadsTo) -> Published {
    Published { port, forwarder: "docker-proxy", leads_to, is_shared: false, is_of_root: true }
}

fn taken(published: &[Published], guarded: &[GuardedPort]) -> Vec<(u16, u16)> {
    let aliases = aliases(published, guarded);
    aliases.taken.iter().map(|(port, alias)| (port.number, alias.to.number)).collect()
}

const OLLAMA: GuardedPort = tcp(11434);

#[test]
fn a_port_that_leads_to_a_guarded_one_is_its_alias() {
    let all = [
        published(8081, LeadsTo::Port(11434)),
        published(8082, LeadsTo::Port(80)),
        published(8083, LeadsTo::OneOf(vec![80, 11434])),
        published(8084, LeadsTo::OneOf(vec![])),
        // Guarded by itself.
        published(11434, LeadsTo::Port(11434)),
    ];
    assert_eq!(taken(&all, &[OLLAMA]), [(8081, 11434), (8083, 11434)]);
    assert_eq!(taken(&all, &[OLLAMA, tcp(8081)]), [(8083, 11434)]);
    assert_eq!(taken(&all, &[]), []);
    // Forwarders are looked for over TCP only.
    assert_eq!(taken(&all, &[GuardedPort { protocol: Protocol::Udp, number: 11434 }]), []);
}

#[test]
fn what_leads_to_two_guarded_ports_takes_the_first() {
    let both = [published(8081, LeadsTo::OneOf(vec![11434, 80]))];
    assert_eq!(taken(&both, &[tcp(80), OLLAMA]), [(8081, 80)]);
}

#[test]
fn what_was_guarded_stays_so_where_it_still_leads_to_a_guarded_port() {
    let held = BTreeMap::from([(tcp(8081), OLLAMA), (tcp(8082), tcp(80))]);
    let ports = |guarded: &[GuardedPort]| -> Vec<u16> {
        kept(held.clone(), guarded).keys().map(|port| port.number).collect()
    };
    assert_eq!(ports(&[OLLAMA, tcp(80)]), [8081, 8082]);
    assert_eq!(ports(&[OLLAMA]), [8081]);
    assert_eq!(ports(&[OLLAMA, tcp(8081)]), [0; 0]);
    let many: Vec<_> = (1..MAX_GUARDED_PORTS as u16).map(tcp).chain([OLLAMA]).collect();
    assert_eq!(ports(&many), [0; 0]);
}

#[test]
fn a_number_that_another_user_listens_on_is_left_out_and_said() {
    let shared = Published {
        forwarder: "pasta",
        is_shared: true,
        is_of_root: false,
        ..published(8081, LeadsTo::Port(11434))
    };
    let found = aliases(std::slice::from_ref(&shared), &[OLLAMA]);
    assert!(found.taken.is_empty());
    assert_eq!(
        found.left_out,
        [
            "port 8081, published by pasta, leads to 11434 and is not guarded: another user's process listens on it too"
        ]
    );
    let elsewhere = Published { leads_to: LeadsTo::Port(80), ..shared };
    assert_eq!(aliases(&[elsewhere], &[OLLAMA]), Aliases::default());
}

#[test]
fn there_is_a_most_and_the_system_s_come_first() {
    let mut all: Vec<Published> =
        (1000..1070).map(|port| published(port, LeadsTo::Port(11434))).collect();
    for users in &mut all[..10] {
        users.is_of_root = false;
    }
    let found = aliases(&all, &[OLLAMA]);
    assert_eq!(found.taken.len(), MAX_GUARDED_PORTS as usize - 1);
    assert!((1010..1070).all(|port| found.taken.contains_key(&tcp(port))));
    assert_eq!(found.left_out.len(), 7);
    assert!(found.left_out[0].ends_with("too many ports are guarded already"), "{found:?}");
}

#[test]
fn a_forwarder_that_says_nothing_leads_to_what_listens_inside() {
    for (port, published, inside, leads) in [
        (11434, vec![11434], vec![11434], LeadsTo::Port(11434)),
        (8081, vec![8081], vec![11434], LeadsTo::OneOf(vec![11434])),
        // Published twice: by its own number and by another.
        (8081, vec![8081, 11434], vec![11434], LeadsTo::OneOf(vec![11434])),
        // What is published by its own number is not what another number leads to.
        (3000, vec![3000, 11434], vec![8080, 11434], LeadsTo::OneOf(vec![8080])),
        (8080, vec![8080], vec![8080, 11434], LeadsTo::Port(8080)),
        // Could be either.
        (3000, vec![3000], vec![8080, 11434], LeadsTo::OneOf(vec![8080, 11434])),
        (3000, vec![3000], vec![], LeadsTo::OneOf(vec![])),
    ] {
        let found = leads_inside(
            port,
            &published.iter().copied().collect(),
            &inside.iter().copied().collect(),
        );
        assert_eq!(found, leads, "{port} {published:?} {inside:?}");
    }
}

fn forwarder(kind: Kind, uid: u32, line: &str) -> Forwarder {
    let arguments = line.split(' ').map(str::to_owned).collect();
    Forwarder { pid: 1, uid, kind, arguments, ports: BTreeSet::new() }
}

#[test]
fn rootless_docker_s_proxies_say_where_rootlesskit_leads() {
    let kit = forwarder(Kind::RootlessKit, 1000, "rootlesskit dockerd");
    let proxy = |uid, from| {
        let line = format!("docker-proxy -proto tcp -host-port {from} -container-port 11434");
        forwarder(Kind::DockerProxy, uid, &line)
    };
    let all = [kit, proxy(1000, 8081), proxy(1001, 8082)];
    let leads = |port| leads_to(&all[0], port, &all, &BTreeSet::new());
    assert_eq!(leads(8081), LeadsTo::OneOf(vec![11434]));
    // Another user's engine.
    assert_eq!(leads(8082), LeadsTo::OneOf(vec![]));
}

#[test]
fn only_the_same_user_s_sockets_may_share_a_port_with_a_forwarder() {
    let socket = |port, uid| Listening { port, uid, inode: 1 };
    let sockets = [socket(8081, 1000), socket(8081, 1000), socket(8082, 1000), socket(8082, 0)];
    assert!(!is_shared(8081, 1000, &sockets));
    assert!(is_shared(8082, 1000, &sockets));
    assert!(is_shared(8081, 1001, &sockets));
    assert!(!is_shared(8082, 0, &sockets));
}

#[test]
fn this_process_is_no_forwarder() {
    let open = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = open.local_addr().unwrap().port();
    assert!(find().unwrap().iter().all(|published| published.port != port));
}

#[test]
fn nothing_has_changed_at_the_second_look() {
    let mut watch = Watch::default();
    watch.look().unwrap();
    assert!(!watch.look().unwrap());
}

#[test]
fn a_process_that_has_gone_has_nothing() {
    let gone = u32::MAX;
    assert!(inside(gone).is_empty() && command_line(gone).is_empty());
    assert_eq!(network_namespace("/proc/4294967295"), None);
}
