//! Open connections of those whom the policy stops: they are ended, so that the service stops sending, and nobody else's are.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use guard_tests::{
    command,
    lab::{CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR, every_address},
    listener::{Listener, Service},
    machine::Machine,
    on_each_hook,
    product::{Attach, Guard},
    wait::{PATIENCE, until},
    wire,
};
use rustix::{
    net::netdevice::name_to_index,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Long enough for a busy machine to open a stream or two before it is over.
const A_WHILE: &str = "5s";

/// A connection to a service that sends without an end, read by a thread of its own.
struct Stream {
    local: SocketAddr,
    received: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Stream {
    /// Opens it, and waits for its first bytes.
    #[track_caller]
    fn open(machine: &Machine, to: SocketAddr) -> Self {
        let connection = machine.connect(to);
        let local = connection.local_addr().unwrap_or_else(|error| panic!("{to}: {error}"));
        // The service's own number for the link of a link-local address is another.
        let local = SocketAddr::new(local.ip(), local.port());
        let stream = Self { local, received: Arc::default(), is_over: Arc::default() };
        let (received, is_over) = (stream.received.clone(), stream.is_over.clone());
        thread::spawn(move || {
            read_to_end(connection, &received);
            is_over.store(true, Ordering::Relaxed);
        });
        stream.expect_flow();
        stream
    }

    fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Fails the test unless more comes.
    #[track_caller]
    fn expect_flow(&self) {
        let before = self.received();
        until(&format!("more comes over the stream of {}", self.local), || {
            self.received() > before
        });
        assert!(!self.is_over.load(Ordering::Relaxed), "the stream of {} is over", self.local);
    }

    /// Fails the test unless the service finds the stream ended.
    #[track_caller]
    fn expect_abort(&self, service: &Listener) {
        until(&format!("the service finds the stream of {} ended", self.local), || {
            service.ended().contains(&self.local)
        });
    }

    /// Fails the test unless both sides find the stream ended.
    #[track_caller]
    fn expect_end(&self, service: &Listener) {
        self.expect_abort(service);
        until(&format!("{} finds its stream ended", self.local), || {
            self.is_over.load(Ordering::Relaxed)
        });
    }
}

fn read_to_end(mut connection: TcpStream, received: &AtomicUsize) {
    let mut buffer = [0; 1024];
    while let Ok(length) = connection.read(&mut buffer) {
        if length == 0 {
            return;
        }
        received.fetch_add(length, Ordering::Relaxed);
    }
}

/// A service that sends without an end, on every address of the server at Ollama's port. From here on, what the test starts runs
/// on one processor: a reset that leaves from another one than the last data may overtake it, and is not taken then. The client
/// asks for another, which stops at guard like all it sends.
#[track_caller]
fn generate(lab: &Lab) -> Listener {
    let all = sched_getaffinity(None).unwrap_or_else(|error| panic!("no processor: {error}"));
    let mut one = CpuSet::new();
    (0..CpuSet::MAX_CPU)
        .filter(|processor| all.is_set(*processor))
        .take(1)
        .for_each(|first| one.set(first));
    sched_setaffinity(None, &one).unwrap_or_else(|error| panic!("not one processor: {error}"));
    lab.listen(&lab.server, Service::Stream, every_address(OLLAMA))
}

#[track_caller]
fn open_to_server(machine: &Machine) -> [Stream; 2] {
    SERVER.at(OLLAMA).map(|server| Stream::open(machine, server))
}

/// Runs a command that must be carried out, and returns its notes that tell of connections that were cut.
#[track_caller]
fn cut_by(guard: &Guard<'_>, arguments: &[&str]) -> Vec<String> {
    let notes = guard.change(arguments).notes;
    notes.into_iter().filter(|note| note.starts_with("cut ")).collect()
}

on_each_hook!(arming_ends_what_outsiders_have_open, [native, generic, tcx, clsact, socket]);
fn arming_ends_what_outsiders_have_open(attach: Attach) {
    let lab = Lab::new(&format!("arming_ends_what_outsiders_have_open {attach}"));
    let container = lab.add_container();
    let neighbour = lab.add_neighbour();
    // Of both families, and shows IPv4 addresses as mapped; and one of IPv4 only.
    let service = generate(&lab);
    let v4_only = lab.listen(&lab.server, Service::Stream, ([0, 0, 0, 0], 8081).into());
    let cut = open_to_server(&lab.client);
    let also_cut = Stream::open(&lab.client, SERVER.v4_at(8081));
    let own = open_to_server(&lab.server);
    let loopback = Stream::open(&lab.server, ([127, 0, 0, 1], OLLAMA).into());
    let of_container = open_to_server(&container);
    let allowed = SERVER_TO_NEIGHBOUR.at(OLLAMA).map(|to| Stream::open(&neighbour, to));
    let not_guarded = lab.listen(&lab.server, Service::Stream, ([0, 0, 0, 0], 8082).into());
    let other_port = Stream::open(&lab.client, SERVER.v4_at(8082));

    let guard = lab.guard(attach, "ports = [11434, 8081]");
    // Port 8081 is no known service's.
    guard.expect_no_start(&["8081", "10.77.0.1", "--yes"]);
    cut[0].expect_flow();
    guard.start_with(&["--yes", "--allow", "10.78.0.0/24", "--allow", "fd78::/64"]);

    // An interface that gets a clsact qdisc loses what it sends meanwhile (`qdisc_graft` calls `dev_deactivate`, in
    // `net/sched/sch_api.c`): data before the reset, which is not taken then, or the reset itself.
    let expect_end = match attach {
        Attach::Clsact => Stream::expect_abort,
        _ => Stream::expect_end,
    };
    cut.iter().for_each(|stream| expect_end(stream, &service));
    expect_end(&also_cut, &v4_only);
    own.iter().chain(&of_container).chain(&allowed).for_each(Stream::expect_flow);
    loopback.expect_flow();
    other_port.expect_flow();
    assert_eq!(service.ended().len(), 2, "{:?}", service.ended());
    assert!(not_guarded.ended().is_empty());
    until("the message says who was cut", || {
        guard.log().contains("cut: these connections were ended; to let one in again:")
    });
    let log = guard.log();
    assert!(log.contains("2 connections to guard-lab"), "{log}");
    assert!(log.contains("guard allow fd77::1"), "{log}");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn a_link_local_connection_ends_too() {
    let lab = Lab::new("a_link_local_connection_ends_too");
    let service = generate(&lab);
    let index = lab.client.inside(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        name_to_index(socket, "eth0").map_err(std::io::Error::from)
    });
    let index = index.unwrap_or_else(|error| panic!("eth0 of the client is not there: {error}"));
    // Made from the interface's Ethernet address (RFC 4291, appendix A).
    let server = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x7702);
    let stream = Stream::open(&lab.client, SocketAddrV6::new(server, OLLAMA, 0, index).into());

    let guard = lab.start_guard(Attach::Tcx, "");

    stream.expect_end(&service);
    assert!(guard.log().contains("guard allow fe80::ff:fe00:7701"), "{}", guard.log());
}

#[test]
fn a_start_that_adopts_ends_what_the_policy_stops_now() {
    let lab = Lab::new("a_start_that_adopts_ends_what_the_policy_stops_now");
    let service = generate(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.1", "fd77::1", "--for", A_WHILE]);
    let streams = open_to_server(&lab.client);
    guard.kill();
    // Ended in the kernel while no daemon ran.
    until("the client is shut out", || guard.counted("tcx", "drop", "no-rule") > 0);

    guard.start();

    streams.iter().for_each(|stream| stream.expect_end(&service));
}

on_each_hook!(deny_and_remove_end_what_they_stop, [native, tcx, socket]);
fn deny_and_remove_end_what_they_stop(attach: Attach) {
    let lab = Lab::new(&format!("deny_and_remove_end_what_they_stop {attach}"));
    let neighbour = lab.add_neighbour();
    let service = generate(&lab);
    let guard = lab.start_guard(attach, "");
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64", "10.78.0.0/24"]);
    let [v4, v6] = open_to_server(&lab.client);
    let other = Stream::open(&neighbour, SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));

    let said = cut_by(&guard, &["deny", "10.77.0.1"]);
    v4.expect_end(&service);
    v6.expect_flow();
    let pid = service.pid();
    assert_eq!(said, [format!("cut 1 open connection: 10.77.0.1 to guard-lab (pid {pid})")]);
    until("the daemon's log says so", || guard.log().contains(&said[0]));

    let said = cut_by(&guard, &["remove", "fd77::/64"]);
    v6.expect_end(&service);
    assert_eq!(said, [format!("cut 1 open connection: fd77::1 to guard-lab (pid {pid})")]);

    other.expect_flow();
    assert_eq!(service.ended().len(), 2, "{:?}", service.ended());
    // Nobody is connected whom this would stop.
    assert!(cut_by(&guard, &["deny", "203.0.113.9"]).is_empty());
    other.expect_flow();
}

#[test]
fn a_command_without_a_daemon_ends_what_it_stops() {
    let lab = Lab::new("a_command_without_a_daemon_ends_what_it_stops");
    let service = generate(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.0/24", "fd77::/64"]);
    let [v4, v6] = open_to_server(&lab.client);
    guard.stop();

    assert_eq!(cut_by(&guard, &["deny", "10.77.0.1"]).len(), 1);
    v4.expect_end(&service);
    v6.expect_flow();

    // Asking changes nothing, and lifting lets everybody in.
    guard.tell(&["explain", "10.77.0.1"]);
    let _ = guard.status();
    guard.tell(&["down"]);
    v6.expect_flow();
    assert_eq!(service.ended().len(), 1, "{:?}", service.ended());
}

#[test]
fn a_reload_ends_what_it_stops() {
    let lab = Lab::new("a_reload_ends_what_it_stops");
    let service = generate(&lab);
    let rule = |sources: &str| format!("[[rule]]\nallow = [{sources}]\n");
    let guard = lab.start_guard(Attach::Tcx, &rule("\"10.77.0.1\", \"fd77::1\""));
    let [v4, v6] = open_to_server(&lab.client);

    guard.configure(&rule("\"fd77::1\""));
    assert_eq!(cut_by(&guard, &["reload"]).len(), 1);
    v4.expect_end(&service);
    v6.expect_flow();

    guard.configure("");
    guard.hang_up();
    v6.expect_end(&service);
    until("the log says who was cut", || guard.log().contains("1 open connection: fd77::1"));

    guard.configure("nonsense = 1");
    guard.expect_refusal(&["reload"], &["nonsense"]);
}

#[test]
fn nothing_is_cut_while_packets_are_only_counted() {
    let lab = Lab::new("nothing_is_cut_while_packets_are_only_counted");
    let service = generate(&lab);
    let before = open_to_server(&lab.client);
    let guard = lab.start_guard(Attach::Tcx, "mode = \"observe\"");
    let after = open_to_server(&lab.client);
    assert!(cut_by(&guard, &["deny", "10.77.0.0/24", "fd77::/64"]).is_empty());
    let streams: Vec<Stream> = before.into_iter().chain(after).collect();
    streams.iter().for_each(Stream::expect_flow);
    assert!(service.ended().is_empty());

    let said = cut_by(&guard, &["enforce"]);
    assert!(said[0].starts_with("cut 4 open connections: "), "{said:?}");
    streams.iter().for_each(|stream| stream.expect_end(&service));
}

#[test]
fn the_end_of_observing_ends_what_the_policy_stops() {
    let lab = Lab::new("the_end_of_observing_ends_what_the_policy_stops");
    let service = generate(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["observe", "--for", A_WHILE]);
    let streams = open_to_server(&lab.client);

    streams.iter().for_each(|stream| stream.expect_end(&service));
    until("the log says who was cut", || guard.log().contains("cut 2 open connections: "));
}

#[test]
fn the_end_of_an_allow_ends_what_it_let_in() {
    let lab = Lab::new("the_end_of_an_allow_ends_what_it_let_in");
    let service = generate(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "10.77.0.1", "--for", A_WHILE]);
    // One that ends later does not put off the one that ends sooner.
    guard.tell(&["allow", "fd77::1", "--for", "1h"]);
    let [v4, v6] = open_to_server(&lab.client);

    v4.expect_end(&service);
    v6.expect_flow();
    until("the log says who was cut", || {
        guard.log().contains("cut 1 open connection: 10.77.0.1 to guard-lab")
    });
}

on_each_hook!(a_container_s_service_stops_sending, [native, tcx, socket]);
fn a_container_s_service_stops_sending(attach: Attach) {
    let lab = Lab::new(&format!("a_container_s_service_stops_sending {attach}"));
    let container = lab.add_container();
    let neighbour = lab.add_neighbour();
    lab.let_server_forward();
    let service = lab.listen(&container, Service::Stream, every_address(OLLAMA));
    // Another machine's service, which guard has nothing to do with: its cgroup is none of this host's.
    let root = guard_tests::cgroup::mount_point();
    let theirs = lab.listen_in(&neighbour, Service::Stream, every_address(OLLAMA), &root);
    let cut = CONTAINER.at(OLLAMA).map(|to| Stream::open(&lab.client, to));
    let own = CONTAINER.at(OLLAMA).map(|to| Stream::open(&container, to));
    let of_host = CONTAINER.at(OLLAMA).map(|to| Stream::open(&lab.server, to));
    let forwarded = NEIGHBOUR.at(OLLAMA).map(|to| Stream::open(&lab.client, to));

    let guard = lab.start_guard(attach, "");

    cut.iter().for_each(|stream| stream.expect_end(&service));
    own.iter().chain(&of_host).chain(&forwarded).for_each(Stream::expect_flow);
    assert!(theirs.ended().is_empty());

    guard.tell(&["allow", "10.77.0.1"]);
    let stream = Stream::open(&lab.client, CONTAINER.v4_at(OLLAMA));
    assert_eq!(
        cut_by(&guard, &["remove", "10.77.0.1"]),
        [format!("cut 1 open connection: 10.77.0.1 to guard-lab (pid {})", service.pid())]
    );
    stream.expect_end(&service);
    assert_eq!(service.ended().len(), 3, "{:?}", service.ended());
}

#[test]
fn the_root_backstop_ends_connections_in_every_namespace() {
    let lab = Lab::alone("the_root_backstop_ends_connections_in_every_namespace");
    let elsewhere = lab.add_neighbour();
    lab.let_server_forward();
    let root = guard_tests::cgroup::mount_point();
    let service = lab.listen_in(&elsewhere, Service::Stream, every_address(OLLAMA), &root);
    let cut = NEIGHBOUR.at(OLLAMA).map(|to| Stream::open(&lab.client, to));
    let own = NEIGHBOUR.at(OLLAMA).map(|to| Stream::open(&elsewhere, to));

    let guard = lab.guard(Attach::Tcx, "").at_the_root("");
    guard.start();

    cut.iter().for_each(|stream| stream.expect_end(&service));
    own.iter().for_each(Stream::expect_flow);
    assert_eq!(service.ended().len(), 2, "{:?}", service.ended());
}

#[test]
fn a_session_in_a_container_is_asked_about_too() {
    let lab = Lab::new("a_session_in_a_container_is_asked_about_too");
    let container = lab.add_container();
    lab.let_server_forward();
    let service = lab.listen(&container, Service::Stream, every_address(8081));
    let stream = Stream::open(&lab.client, CONTAINER.v4_at(8081));
    let guard = lab.guard(Attach::Tcx, "ports = [8081]");

    guard.expect_no_start(&["8081", "10.77.0.1", "--yes"]);
    stream.expect_flow();
    guard.start_with(&["--yes"]);
    stream.expect_end(&service);
}

#[test]
fn what_a_container_says_to_itself_goes_on_where_only_the_host_is_local() {
    let lab = Lab::new("what_a_container_says_to_itself_goes_on");
    let container = lab.add_container();
    let service = lab.listen(&container, Service::Stream, every_address(OLLAMA));
    let own = CONTAINER.at(OLLAMA).map(|to| Stream::open(&container, to));
    let of_host = Stream::open(&lab.server, CONTAINER.v4_at(OLLAMA));
    let guard = lab.start_guard(Attach::Tcx, "local = [\"host\"]");

    own.iter().for_each(Stream::expect_flow);
    of_host.expect_flow();
    // Nor does a rule hold over loopback.
    assert!(cut_by(&guard, &["deny", "172.30.0.2", "fd30::2"]).is_empty());
    own.iter().for_each(Stream::expect_flow);
    assert!(service.ended().is_empty());
}

#[test]
fn what_is_only_being_opened_ends_too() {
    let lab = Lab::new("what_is_only_being_opened_ends_too");
    let _service = generate(&lab);
    // Nobody answers the server's part of the handshake, nor says that there is nobody.
    let unanswered = "lladdr 02:00:00:00:77:01 dev eth0 nud permanent";
    for address in ["10.77.0.99", "fd77::99"] {
        lab.server.ip(&format!("neighbour add {address} {unanswered}\n"));
    }
    let wire = lab.wire();
    wire.send(&wire::syn(([10, 77, 0, 99], 4242).into(), SERVER.v4_at(OLLAMA)));
    wire.send(&wire::syn(([0xfd77, 0, 0, 0, 0, 0, 0, 0x99], 4242).into(), SERVER.v6_at(OLLAMA)));
    until("both handshakes have begun", || lab.server.half_open_connections(OLLAMA) == 2);

    let _guard = lab.start_guard(Attach::Tcx, "");
    until("none is under way any more", || lab.server.half_open_connections(OLLAMA) == 0);
}

#[test]
fn a_connected_udp_socket_is_cut_loose() {
    let lab = Lab::new("a_connected_udp_socket_is_cut_loose");
    // An IPv6 socket shows its IPv4 peer as mapped.
    let mapped = SocketAddr::from((CLIENT.v4.to_ipv6_mapped(), 4242));
    // A port each: a test beside this one may be between fork and exec, and hold a copy of the socket before.
    for (at, client) in [
        (SERVER.v4_at(5353), CLIENT.v4_at(4242)),
        (SERVER.v6_at(5354), CLIENT.v6_at(4242)),
        (every_address(5355), mapped),
    ] {
        let connected = lab.server.inside(|| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind(at)?;
            socket.connect(client)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        });
        let socket = connected.unwrap_or_else(|error| panic!("{at}: {error}"));
        let guard = lab.guard(Attach::Tcx, &format!("ports = [\"udp/{}\"]", at.port()));
        guard.start_with(&["--yes"]);

        let received = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
        assert_eq!(received, Err(ErrorKind::ConnectionAborted), "{at}");
        assert!(socket.peer_addr().is_err(), "{at}");
        guard.tell(&["down"]);
    }
}

#[test]
fn namespaces_that_vanish_meanwhile_fail_nothing() {
    let lab = Lab::new("namespaces_that_vanish_meanwhile_fail_nothing");
    let service = generate(&lab);
    let guard = lab.start_guard(Attach::Tcx, "");
    let _churn = Churn::start();
    for _ in 0..10 {
        guard.tell(&["allow", "10.77.0.1"]);
        let stream = Stream::open(&lab.client, SERVER.v4_at(OLLAMA));
        assert_eq!(cut_by(&guard, &["remove", "10.77.0.1"]).len(), 1);
        stream.expect_end(&service);
    }
}

on_each_hook!(a_connection_diverted_by_a_transparent_proxy_ends_too, [tcx, socket]);
fn a_connection_diverted_by_a_transparent_proxy_ends_too(attach: Attach) {
    if !command::is_installed("nft") {
        eprintln!("not tested: `nft` is not installed (Debian package nftables)");
        return;
    }
    let lab = Lab::new(&format!("a_connection_diverted_ends_too {attach}"));
    let neighbour = lab.add_neighbour();
    let at_every_v4_address = ([0, 0, 0, 0], OLLAMA).into();
    let service = lab.listen(&lab.server, Service::StreamTransparent, at_every_v4_address);
    // As able to take connections to other ports, and at a port that nobody guards.
    let other_service =
        lab.listen(&lab.server, Service::StreamTransparent, ([0, 0, 0, 0], 8082).into());
    lab.server.nft(
        "table ip divert {\n\
           chain prerouting {\n\
             type filter hook prerouting priority mangle;\n\
             tcp dport 8080 tproxy to :11434 meta mark set 1 accept;\n\
           }\n\
         }\n",
    );
    lab.server.ip("rule add fwmark 1 lookup 100\nroute add local default dev lo table 100\n");
    let diverted = Stream::open(&lab.client, SERVER.v4_at(8080));
    let allowed = Stream::open(&neighbour, SERVER_TO_NEIGHBOUR.v4_at(8080));
    let other = Stream::open(&lab.client, SERVER.v4_at(8082));

    let guard = lab.guard(attach, "");
    guard.start_with(&["--allow", "10.78.0.0/24"]);
    diverted.expect_end(&service);
    allowed.expect_flow();

    // What was let in is judged by the port that the service listens on, and so is its end.
    guard.tell(&["allow", "10.77.0.1"]);
    let diverted = Stream::open(&lab.client, SERVER.v4_at(8080));
    assert_eq!(cut_by(&guard, &["deny", "10.77.0.1"]).len(), 1);
    diverted.expect_end(&service);
    allowed.expect_flow();
    other.expect_flow();
    assert!(other_service.ended().is_empty());
}

/// Network namespaces that come and go, until it is dropped.
struct Churn(Child);

impl Churn {
    #[track_caller]
    fn start() -> Self {
        let churn = Command::new("sh")
            .args(["-c", "while :; do unshare --net true; done"])
            .stdin(Stdio::null())
            .spawn();
        Self(churn.unwrap_or_else(|error| panic!("`sh` can't be started: {error}")))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
