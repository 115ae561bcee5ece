//! Frames of every shape: whatever a packet looks like, it is judged once, or left to the backstop.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
};

use guard_common::parse::MAX_EXTENSION_HEADERS;
use guard_tests::{
    bpf, cgroup, http,
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, OLLAMA, SERVER, every_address},
    listener::{Listener, Service},
    machine::Machine,
    on_each_hook,
    product::{Attach, Guard},
    rows::{self, Counts, Row},
    wait::{PATIENCE, until},
    wire::{
        self,
        Extension::{
            AtomicFragment, Authentication, DestinationOptions, HopByHop, LongDestinationOptions,
            Routing, Segments,
        },
    },
};
use rustix::net::{AddressFamily, SocketType};
use socket2::{Domain, Socket, Type};

on_each_hook!(tags_are_looked_behind, [auto, native, generic, tcx, clsact, socket]);
fn tags_are_looked_behind(attach: Attach) {
    let lab = Lab::new(&format!("tags_are_looked_behind {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let mut rows = Vec::new();
    for to in SERVER.at(OLLAMA) {
        rows.extend([
            Row::plain("no tag", to),
            behind_tags("a priority tag", to, &[0]),
            behind_tags("two priority tags", to, &[0, 0]),
            // More than are walked, behind the one that the kernel takes off before TCX; any host takes such a frame as untagged.
            behind_tags("four priority tags", to, &[0; 4]).at_the_nic(0, 1),
            // For a VLAN that this host is not in.
            behind_tags("a tag", to, &[5]).never_arrives(),
            behind_tags("two tags", to, &[5, 6]).never_arrives(),
            behind_tags("a priority tag and a tag", to, &[0, 5]).never_arrives(),
        ]);
    }
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn behind_tags(name: &str, to: SocketAddr, tags: &'static [u16]) -> Row {
    Row::new(name, to, |packet| vec![wire::tagged(tags, packet)])
}

on_each_hook!(a_tag_that_the_nic_has_taken_off_changes_nothing);
fn a_tag_that_the_nic_has_taken_off_changes_nothing(attach: Attach) {
    let lab = Lab::new(&format!("a_tag_taken_off {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let priority = bpf::tag_beside_frames(&lab.client, "eth0", 0);
    let rows = SERVER.at(OLLAMA).map(|to| Row::plain("beside a priority tag", to));
    rows::check(&lab, &guard, attach, &listener, &rows);
    drop(priority);

    // What comes beside a VLAN's tag is not for this host, which is in none: so there were tags.
    guard.tell(&["enforce"]);
    let _vlan = bpf::tag_beside_frames(&lab.client, "eth0", 5);
    let listener = lab.listen(&lab.server, Service::Http, every_address(8080));
    let other = (wire::stranger_v4(9), 4242).into();
    lab.wire().send(&wire::opening(other, SERVER.v4_at(8080)));
    let rows = SERVER.at(OLLAMA).map(|to| Row::plain("beside a tag", to).never_arrives());
    rows::check(&lab, &guard, attach, &listener, &rows);
    assert_eq!(lab.server.half_open_connections(8080), 0);
}

on_each_hook!(ipv4_options_are_looked_behind);
fn ipv4_options_are_looked_behind(attach: Attach) {
    let lab = Lab::new(&format!("ipv4_options_are_looked_behind {attach}"));
    for interface in ["all", "eth0"] {
        lab.server.set_sysctl(&format!("net/ipv4/conf/{interface}/accept_source_route"), "1");
    }
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    // RFC 791 section 3.1; router alert is RFC 2113.
    let rows = [
        with_options("one no-operation", &[1, 1, 1, 0]),
        with_options("as many as fit", &[1; 40]),
        with_options("router alert", &[148, 4, 0, 0]),
        with_options("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options("timestamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with_options("a loose source route at its end", &[131, 7, 8, 10, 77, 0, 1, 0]),
        with_options("a strict source route at its end", &[137, 7, 8, 10, 77, 0, 1, 0]),
        with_options("a loose source route that goes on here", &[131, 7, 4, 10, 77, 0, 2, 0]),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn with_options(name: &str, options: &'static [u8]) -> Row {
    Row::new(name, SERVER.v4_at(OLLAMA), |packet| {
        vec![wire::plain(&wire::with_options(packet, options))]
    })
}

on_each_hook!(extension_headers_are_walked);
fn extension_headers_are_walked(attach: Attach) {
    const WALKED: usize = MAX_EXTENSION_HEADERS;
    let lab = Lab::new(&format!("extension_headers_are_walked {attach}"));
    for interface in ["all", "eth0"] {
        lab.server.set_sysctl(&format!("net/ipv6/conf/{interface}/seg6_enabled"), "1");
    }
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let rows = [
        behind("hop-by-hop options", &[HopByHop]),
        behind("destination options", &[DestinationOptions]),
        behind("long destination options", &[LongDestinationOptions]),
        behind("a routing header", &[Routing]),
        behind("a segment routing header", &[Segments]),
        behind("a fragment header", &[AtomicFragment]),
        behind(
            "in the RFC's order",
            &[HopByHop, DestinationOptions, Routing, AtomicFragment, DestinationOptions],
        ),
        behind(
            "in another order",
            &[AtomicFragment, DestinationOptions, Routing, DestinationOptions],
        ),
        behind("as many as are walked", &[DestinationOptions; WALKED]),
        behind(
            "as many different ones",
            &[HopByHop, Routing, Segments, DestinationOptions, AtomicFragment, Routing],
        ),
        behind("one more than are walked", &[DestinationOptions; WALKED + 1]).at_the_nic(0, 1),
        behind("many more", &[DestinationOptions; 4 * WALKED]).at_the_nic(0, 1),
        // Without IPsec no kernel takes it.
        behind("authentication", &[Authentication]).never_arrives(),
        behind("authentication behind others", &[HopByHop, Authentication, DestinationOptions])
            .never_arrives(),
        // Only the first header may be one (RFC 8200 section 4.1).
        behind("hop-by-hop options later", &[DestinationOptions, HopByHop]).never_arrives(),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

fn behind(name: &str, extensions: &'static [wire::Extension]) -> Row {
    Row::new(name, SERVER.v6_at(OLLAMA), |packet| {
        vec![wire::plain(&wire::with_extensions(packet, extensions))]
    })
}

on_each_hook!(nothing_is_put_together_from_fragments);
fn nothing_is_put_together_from_fragments(attach: Attach) {
    let lab = Lab::new(&format!("nothing_is_put_together {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let v4 = SERVER.v4_at(OLLAMA);
    let v6 = SERVER.v6_at(OLLAMA);
    // The first packet's transport header is 32 bytes long. IPv6 wants its first 20 in the first fragment (RFC 8200 section 4.5,
    // `ipv6frag_thdr_truncated` in net/ipv6/reassembly.c).
    let rows = [
        in_fragments("two", v4, &[0..16, 16..END]).at_the_nic(1, 1),
        in_fragments("two", v6, &[0..24, 24..END]).at_the_nic(1, 1),
        in_fragments("a tiny first one", v4, &[0..8, 8..END]).at_the_nic(1, 1),
        in_fragments("a tiny first one", v6, &[0..8, 8..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("four tiny ones", v4, &[0..8, 8..16, 16..24, 24..END]).at_the_nic(1, 3),
        in_fragments("the later one first", v4, &[16..END, 0..16]).at_the_nic(1, 1),
        in_fragments("the later one first", v6, &[24..END, 0..24]).at_the_nic(1, 1),
        in_fragments("the first one twice", v4, &[0..16, 0..16, 16..END]).at_the_nic(2, 1),
        in_fragments("the first one twice", v6, &[0..24, 0..24, 24..END]).at_the_nic(2, 1),
        in_fragments("the later one twice", v4, &[16..END, 16..END, 0..16]).at_the_nic(1, 2),
        in_fragments("the later one twice", v6, &[24..END, 24..END, 0..24]).at_the_nic(1, 2),
        // A host gives up such a packet (RFC 5722, and `inet_frag_queue_insert` in net/ipv4/inet_fragment.c).
        in_fragments("two that overlap", v4, &[0..24, 16..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("two that overlap", v6, &[0..24, 16..END]).at_the_nic(1, 1).never_arrives(),
        in_fragments("the first one never", v4, &[8..16, 16..END]).at_the_nic(0, 2).never_arrives(),
        in_fragments("the first one never", v6, &[8..16, 16..END]).at_the_nic(0, 2).never_arrives(),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

/// Stands for the end of a packet.
const END: usize = usize::MAX;

fn in_fragments(name: &str, to: SocketAddr, parts: &'static [Range<usize>]) -> Row {
    Row::new(format!("fragments: {name}"), to, move |packet| {
        let end = wire::payload(packet).len();
        let fragment = |part: &Range<usize>| {
            wire::plain(&wire::fragment(packet, part.start..part.end.min(end)))
        };
        parts.iter().map(fragment).collect()
    })
}

on_each_hook!(without_a_backstop_what_cannot_be_told_is_dropped, [native, generic, tcx, clsact]);
fn without_a_backstop_what_cannot_be_told_is_dropped(attach: Attach) {
    let lab = Lab::new(&format!("without_a_backstop {attach}"));
    let listener = lab.serve();
    let guard = lab.guard(attach, "").at_the_root("").without_cgroups();
    guard.start();
    // Nobody is there to whom the source, known as it is, could be left.
    guard.tell(&["allow", "198.18.0.0/15", "2001:db8::/32"]);
    let wire = lab.wire();
    let mut frames = Vec::new();
    let senders = [(wire::stranger_v4(1), 4242).into(), (wire::stranger_v6(1), 4242).into()];
    for (from, to) in senders.into_iter().zip(SERVER.at(OLLAMA)) {
        let packet = wire::opening(from, to);
        frames.extend([
            wire::tagged(&[0; 4], &packet),
            wire::plain(&wire::fragment(&packet, 24..32)),
            wire::plain(&packet[..packet.len() - 30]),
        ]);
        if to.is_ipv6() {
            let headers = [DestinationOptions; MAX_EXTENSION_HEADERS + 1];
            frames.push(wire::plain(&wire::with_extensions(&packet, &headers)));
        }
    }
    for frame in &frames {
        wire.put(frame);
    }
    guard.expect_counted(attach.hook(), "drop", "undecidable", frames.len() as u64);
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    assert_eq!(listener.reached_by(), []);

    guard.tell(&["observe"]);
    for frame in &frames {
        wire.put(frame);
    }
    guard.expect_counted(attach.hook(), "would-drop", "undecidable", frames.len() as u64);
    // Tags and headers are nothing to the kernel; the rest is no whole packet for it either.
    until("both connections are half open", || lab.server.half_open_connections(OLLAMA) == 2);
}

/// What is no TCP passes as it is, also where nobody is behind the NIC's hook to decide what it can't.
#[test]
fn other_protocols_are_left_alone() {
    let lab = Lab::new("other_protocols_are_left_alone");
    let _listener = lab.serve();
    let echo = lab.listen(&lab.server, Service::Echo, every_address(OLLAMA));
    let wire = lab.wire();
    for attach in [Attach::Native, Attach::Generic, Attach::Tcx, Attach::Clsact, Attach::Socket] {
        let guard = lab.guard(attach, "");
        let guard = match attach {
            Attach::Socket => guard,
            _ => guard.at_the_root("").without_cgroups(),
        };
        guard.start();
        // GRE, ESP and SCTP. What stands where TCP has its ports is the guarded port's number, as it is SCTP's own.
        for protocol in [47, 50, 132] {
            for (client, server) in CLIENT.at(OLLAMA).into_iter().zip(SERVER.at(OLLAMA)) {
                let ports = [OLLAMA.to_be_bytes(), OLLAMA.to_be_bytes()].concat();
                let payload = [&ports[..], &[protocol; 60]].concat();
                let packet = wire::of_protocol(client.ip(), server.ip(), protocol, &payload);
                let socket = raw_socket(&lab.server, server, protocol);
                wire.send(&packet);
                for part in [0..24, 24..payload.len()] {
                    wire.send(&wire::fragment(&packet, part));
                }
                for _ in 0..2 {
                    assert!(
                        receive(&socket).ends_with(&payload),
                        "{protocol} to {server} {attach}"
                    );
                }
            }
        }
        // A datagram of many fragments, there and back.
        for server in SERVER.at(OLLAMA) {
            let datagram = vec![7; 20_000];
            let echoed = lab.client.inside(|| send_and_receive(server, &datagram));
            assert!(echoed.is_ok_and(|echoed| echoed == datagram), "{server} {attach}");
        }
        assert_eq!(rows::counts(&guard), Counts::new(), "{attach}");
        guard.tell(&["down"]);
        guard.wait_for_end();
    }
    assert_eq!(echo.reached_by().len(), 10);
}

fn raw_socket(machine: &Machine, of_family: SocketAddr, protocol: u8) -> Socket {
    let socket = machine.inside(|| {
        let domain = Domain::for_address(of_family);
        Socket::new(domain, Type::RAW, Some(i32::from(protocol).into()))
    });
    let socket = socket.expect("a raw socket is made");
    socket.set_read_timeout(Some(PATIENCE)).expect("its patience is bounded");
    socket
}

fn receive(mut socket: &Socket) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let length = socket.read(&mut buffer).expect("a packet comes through");
    buffer.truncate(length);
    buffer
}

fn send_and_receive(to: SocketAddr, datagram: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(datagram)?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

on_each_hook!(large_frames_are_judged_and_get_through);
fn large_frames_are_judged_and_get_through(attach: Attach) {
    let lab = Lab::new(&format!("large_frames {attach}"));
    for machine in [&lab.client, &lab.server] {
        machine.ip("link set eth0 mtu 9000\n");
    }
    let _ = expect_bulk(&lab, attach);
}

on_each_hook!(big_tcp_is_judged_and_gets_through);
fn big_tcp_is_judged_and_gets_through(attach: Attach) {
    let lab = Lab::new(&format!("big_tcp {attach}"));
    for machine in [&lab.client, &lab.server] {
        machine.inside(|| let_packets_be_great("eth0")).expect("packets may be great");
    }
    let (guard, _listener) = expect_bulk(&lab, attach);

    // How great TCP makes its packets is up to the moment: these are, for certain. The stack takes the IPv6 one from nobody but
    // itself.
    guard.tell(&["remove", "10.77.0.1", "fd77::1"]);
    let taken = [SERVER.v4_at(OLLAMA)];
    let seen = SERVER.at(OLLAMA);
    let seen = if attach == Attach::Socket { &taken[..] } else { &seen };
    expect_segments(&lab, &guard, attach, 150, seen);
    if matches!(attach, Attach::Tcx | Attach::Clsact | Attach::Socket) {
        guard.tell(&["allow", "198.18.0.0/15"]);
        let passed = guard.counted("cgroup", "pass", "allowed");
        send_segments(&lab, 150, &taken);
        guard.expect_counted("cgroup", "pass", "allowed", passed + 150);
    }
}

/// Lets TCP make packets of 200,000 bytes for an interface, and put them together there: BIG TCP. `ip` of iproute2 6.1 can't
/// say it for IPv4.
fn let_packets_be_great(interface: &str) -> io::Result<()> {
    const BYTES: u32 = 200_000;
    // include/uapi/linux/rtnetlink.h, netlink.h and if_link.h.
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const ATTRIBUTES: [u16; 4] = [
        58, // IFLA_GRO_MAX_SIZE, Linux 5.19
        41, // IFLA_GSO_MAX_SIZE
        63, // IFLA_GSO_IPV4_MAX_SIZE, Linux 6.3
        64, // IFLA_GRO_IPV4_MAX_SIZE
    ];
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let inet = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let index = rustix::net::netdevice::name_to_index(&inet, interface)?;

    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]);
    for attribute in ATTRIBUTES {
        body.extend(8_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(BYTES.to_ne_bytes());
    }
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::io::write(&socket, &message)?;

    // The answer is an error, whose number is 0 when there is none.
    let mut answer = [0; 4096];
    let length = rustix::io::read(&socket, &mut answer[..])?;
    let number = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A great upload comes through from an allowed source only, and there is nothing in it that guard can't read.
#[track_caller]
fn expect_bulk(lab: &Lab, attach: Attach) -> (Guard<'_>, Listener) {
    const BYTES: usize = 8 << 20;
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    assert_eq!(listener.reached_by(), []);

    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    for server in SERVER.at(OLLAMA) {
        let mut stream = lab.client.connect(server);
        stream.set_write_timeout(Some(PATIENCE)).expect("patience is bounded");
        stream.set_read_timeout(Some(PATIENCE)).expect("patience is bounded");
        stream.write_all(&vec![b'x'; BYTES]).expect("the upload goes through");
        http::ask(&mut stream).expect("and is answered");
    }
    let counts = rows::counts(&guard);
    let unread = |(_, verdict, reason): &(String, String, String)| {
        !matches!((verdict.as_str(), reason.as_str()), ("drop", "no-rule") | ("pass", "allowed"))
    };
    assert!(!counts.keys().any(unread), "{counts:#?}");
    (guard, listener)
}

on_each_hook!(segments_are_counted_as_the_packets_they_are);
fn segments_are_counted_as_the_packets_they_are(attach: Attach) {
    let lab = Lab::new(&format!("segments_are_counted {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    expect_segments(&lab, &guard, attach, 5, &SERVER.at(OLLAMA));
}

/// A packet of so many segments to each of these is dropped, and each segment is counted.
#[track_caller]
fn expect_segments(
    lab: &Lab,
    guard: &Guard<'_>,
    attach: Attach,
    segments: u16,
    servers: &[SocketAddr],
) {
    let before = guard.counted(attach.hook(), "drop", "no-rule");
    send_segments(lab, segments, servers);
    // Generic XDP meets the packet before it is cut, and has no way to know into how many.
    let counted = if attach == Attach::Generic { 1 } else { u64::from(segments) };
    let packets = before + counted * servers.len() as u64;
    guard.expect_counted(attach.hook(), "drop", "no-rule", packets);
}

fn send_segments(lab: &Lab, segments: u16, servers: &[SocketAddr]) {
    const SEGMENT_BYTES: u16 = 1000;
    let wire = lab.wire();
    for server in servers {
        let from: IpAddr = match server {
            SocketAddr::V4(_) => wire::stranger_v4(1).into(),
            SocketAddr::V6(_) => wire::stranger_v6(1).into(),
        };
        let bytes = usize::from(segments) * usize::from(SEGMENT_BYTES) - 7;
        let packet = wire::stray((from, 4242).into(), *server, bytes);
        wire.send_segmented(&packet, SEGMENT_BYTES);
    }
}

on_each_hook!(every_address_of_this_host_is_guarded);
fn every_address_of_this_host_is_guarded(attach: Attach) {
    let lab = Lab::new(&format!("every_address_of_this_host {attach}"));
    let _container = lab.add_container();
    lab.let_server_forward();
    lab.server.ip(&format!(
        "address add 169.254.7.2/16 dev eth0\n\
         neighbour add 169.254.7.9 lladdr {CLIENT_MAC} dev eth0 nud permanent\n\
         neighbour add fe80::77:9 lladdr {CLIENT_MAC} dev eth0 nud permanent\n\
         route add local 203.0.113.0/24 dev lo\n\
         route add local 2001:db8:ffff::/64 dev lo\n"
    ));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let at = |address: &str| SocketAddr::new(ip(address), OLLAMA);
    let mut rows = vec![
        Row::plain("link-local", at("169.254.7.2")).from(ip("169.254.7.9")),
        Row::plain("link-local", at("fe80::ff:fe00:7702")).from(ip("fe80::77:9")),
        // No interface has these, and no route shows that they are forwarded: the backstop's business.
        Row::plain("a local route", at("203.0.113.7")).at_the_nic(0, 0),
        Row::plain("a local route", at("2001:db8:ffff::7")).at_the_nic(0, 0),
    ];
    rows.extend(SERVER.at(OLLAMA).map(|to| Row::plain("its own", to)));
    // A neighbour may send to any address by this way, whether or not anybody has told it to.
    rows.extend(BRIDGE.at(OLLAMA).map(|to| Row::plain("its bridge", to)));
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(a_spoofed_source_is_dropped_whatever_it_is_sent_to, [native, generic, tcx, clsact]);
fn a_spoofed_source_is_dropped_whatever_it_is_sent_to(attach: Attach) {
    let lab = Lab::new(&format!("a_spoofed_source_whatever {attach}"));
    let neighbour = lab.add_neighbour();
    let _container = lab.add_container();
    lab.let_server_forward();
    lab.server.ip("route add local 203.0.113.0/24 dev lo\n\
         route add local 2001:db8:ffff::/64 dev lo\n");
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let elsewhere = cgroup::mount_point();
    let theirs = lab.listen_in(&neighbour, Service::Echo, every_address(5353), &elsewhere);
    let guard = lab.start_guard(attach, "ports = [\"udp/5353\"]");
    let wire = lab.wire();
    let send = |from: &str, to: &str| {
        wire.send(&wire::datagram((ip(from), 4242).into(), (ip(to), 5353).into()));
    };
    // No hook knows these for addresses of this host, and behind the NIC's a container's source is the container.
    send("172.30.0.77", "203.0.113.7");
    send("fd30::77", "2001:db8:ffff::7");
    send("fd30::77", "fd77::");
    guard.expect_counted(attach.hook(), "drop", "spoofed", 3);
    // Nor does it matter that another host is meant, for which this one's containers come by another way.
    send("172.30.0.77", "10.78.0.1");
    send("fd30::77", "fd78::1");
    guard.expect_counted(attach.hook(), "drop", "spoofed", 5);
    assert_eq!((listener.reached_by(), theirs.reached_by()), (vec![], vec![]));

    // Others' sources are others' business.
    send("198.18.0.1", "10.78.0.1");
    send("2001:db8::1", "fd78::1");
    until("they have come through", || theirs.reached_by().len() == 2);
    guard.expect_counted(attach.hook(), "drop", "spoofed", 5);
}

on_each_hook!(a_container_is_guarded_at_the_outside, [native, generic, tcx, clsact]);
fn a_container_is_guarded_at_the_outside(attach: Attach) {
    let lab = Lab::new(&format!("a_container_is_guarded_at_the_outside {attach}"));
    let container = lab.add_container();
    lab.let_server_forward();
    let listener = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let guard = lab.start_guard(attach, "");
    let rows = CONTAINER.at(OLLAMA).map(|to| Row::plain("straight to the container", to));
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(datagrams_to_everybody_are_judged);
fn datagrams_to_everybody_are_judged(attach: Attach) {
    let lab = Lab::new(&format!("datagrams_to_everybody {attach}"));
    lab.let_server_forward();
    let guard = lab.start_guard(attach, "ports = [\"udp/5353\"]");
    let to = |name: &str, address: &str| Row::plain(name, SocketAddr::new(ip(address), 5353)).udp();

    // IPv6 sockets get no IPv4 multicast that they have not asked for.
    let listener = lab.listen(&lab.server, Service::Echo, ([0, 0, 0, 0], 5353).into());
    let rows = [
        to("the subnet", "10.77.0.255"),
        to("the link", "255.255.255.255"),
        to("all hosts", "224.0.0.1"),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
    drop(listener);

    guard.tell(&["enforce"]);
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let rows = [
        to("all nodes", "ff02::1"),
        to("all nodes of this host", "ff01::1").never_arrives(),
        // Only a router has it (RFC 4291 section 2.6.1), and on no interface: the backstop's business.
        to("any router of the subnet", "fd77::").at_the_nic(0, 0),
    ];
    rows::check(&lab, &guard, attach, &listener, &rows);
}

on_each_hook!(a_mapped_source_is_not_the_host_embedded_in_it);
fn a_mapped_source_is_not_the_host_embedded_in_it(attach: Attach) {
    let lab = Lab::new(&format!("a_mapped_source {attach}"));
    let listener = lab.listen(&lab.server, Service::Echo, every_address(5353));
    let guard = lab.start_guard(attach, "ports = [\"udp/5353\"]");
    guard.tell(&["allow", "198.18.0.0/15", "127.0.0.1"]);
    let reason = if attach == Attach::Socket { "no-rule" } else { "spoofed" };
    let wire = lab.wire();
    let send = || {
        for source in ["::ffff:198.18.0.1", "::ffff:127.0.0.1", "::ffff:10.77.0.2"] {
            wire.send(&wire::datagram((ip(source), 4242).into(), SERVER.v6_at(5353)));
        }
    };
    send();
    guard.expect_counted(attach.hook(), "drop", reason, 3);
    assert_eq!(listener.reached_by(), []);

    // That it would have come to the socket looking like the IPv4 host is no matter of opinion.
    guard.tell(&["observe"]);
    send();
    guard.expect_counted(attach.hook(), "would-drop", reason, 3);
    let embedded = SocketAddr::new(ip("198.18.0.1"), 4242);
    until("they have come through", || listener.reached_by().contains(&embedded));
}

/// Of the client's end of its link to the server.
const CLIENT_MAC: &str = "02:00:00:00:77:01";

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|error| panic!("{address} is no address: {error}"))
}
