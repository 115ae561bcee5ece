//! Interfaces, addresses and bridges that come and go, and programs of others at the same hooks.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use guard::{
    control::{InterfaceStatus, Status},
    kernel::{
        attach::{Attacher, Wanted, Way},
        pins::Pins,
        seen::Seen,
    },
};
use guard_tests::{
    command,
    foreign::{
        Foreign, TCX_NEXT, TCX_PASS, XdpFilter, detach_guard, detach_oldest, guard_links, xdp_off,
    },
    kernel,
    lab::{
        BRIDGE, CLIENT, CONTAINER, Lab, NEIGHBOUR, OLLAMA, SERVER, SERVER_TO_NEIGHBOUR,
        every_address,
    },
    listener::Service,
    machine::{Machine, Reply},
    on_each_hook,
    product::{Attach, Guard, counted, covered},
    wait::until,
    wire::{self, Wire},
};

/// What `status` says of an interface that is covered as asked for.
fn hook_of(attach: Attach) -> &'static str {
    match attach {
        Attach::Native => "xdp native",
        Attach::Generic => "xdp generic",
        Attach::Clsact => "clsact",
        Attach::Auto | Attach::Tcx | Attach::Socket => "tcx",
    }
}

fn interface(status: &Status, name: &str) -> Option<InterfaceStatus> {
    status.interfaces.iter().find(|interface| interface.name == name).cloned()
}

/// What `status` misses, but for sockets outside the lab's cgroup.
fn missing(status: &Status) -> Vec<String> {
    let of_the_lab = |what: &&String| what.starts_with("the backstop judges ");
    status.missing.iter().filter(|what| !of_the_lab(what)).cloned().collect()
}

#[track_caller]
fn expect_whole(guard: &Guard<'_>) {
    let status = guard.status();
    assert!(missing(&status).is_empty(), "{status:#?}");
}

#[track_caller]
fn wait_until_covered(guard: &Guard<'_>, name: &str, attach: Attach) {
    until(&format!("{name} is covered"), || covered(&guard.status(), name, hook_of(attach)));
}

/// Calls of both families from the neighbour meet silence, at the hook of this way to attach.
#[track_caller]
fn expect_dropped_at_the_nic(guard: &Guard<'_>, neighbour: &Machine, attach: Attach) {
    for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        neighbour.expect_silence(server);
        assert!(guard.counted(attach.hook(), "drop", "no-rule") > before, "{:#?}", guard.status());
    }
}

on_each_hook!(an_interface_that_is_made_anew_is_covered_anew, [native, tcx, clsact]);
fn an_interface_that_is_made_anew_is_covered_anew(attach: Attach) {
    let lab = Lab::new(&format!("made_anew {attach}"));
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    wait_until_covered(&guard, "eth1", attach);
    let links = guard_links(&lab.pins());
    let number = lab.server.index_of("eth1");

    for index in [None, Some(number)] {
        lab.server.ip("link delete eth1\n");
        lab.plug_in(&neighbour, index);
        // Before it is covered the backstop covers.
        for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
            neighbour.expect_silence(server);
        }
        wait_until_covered(&guard, "eth1", attach);
        expect_dropped_at_the_nic(&guard, &neighbour, attach);
    }
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
    let kept = guard_links(&lab.pins()).intersection(&links).count();
    assert_eq!(kept, if attach == Attach::Clsact { 1 } else { 2 }, "eth0's and the backstop");
    expect_whole(&guard);
}

on_each_hook!(an_interface_stays_covered_when_it_changes, [native, generic, tcx, clsact]);
fn an_interface_stays_covered_when_it_changes(attach: Attach) {
    let lab = Lab::new(&format!("stays_covered {attach}"));
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    wait_until_covered(&guard, "eth1", attach);
    let links = guard_links(&lab.pins());

    lab.server.ip("link set eth1 name lan9\n");
    wait_until_covered(&guard, "lan9", attach);
    expect_dropped_at_the_nic(&guard, &neighbour, attach);

    lab.server.ip("link set lan9 down\nlink set lan9 up\n");
    // An IPv6 address is lost with the link.
    let v6 = SERVER_TO_NEIGHBOUR.v6;
    let theirs = NEIGHBOUR.v6;
    lab.server.ip(&format!(
        "address replace {v6}/64 dev lan9 nodad\n\
         neighbour replace {theirs} lladdr 02:00:00:00:78:01 dev lan9 nud permanent\n\
         neighbour replace {} lladdr 02:00:00:00:78:01 dev lan9 nud permanent\n",
        NEIGHBOUR.v4
    ));
    neighbour.ip(&format!(
        "neighbour replace {v6} lladdr 02:00:00:00:78:02 dev eth0 nud permanent\n\
         neighbour replace {} lladdr 02:00:00:00:78:02 dev eth0 nud permanent\n",
        SERVER_TO_NEIGHBOUR.v4
    ));
    until("both addresses are known for this host's own", || {
        SERVER_TO_NEIGHBOUR.at(OLLAMA).into_iter().all(|server| {
            let before = guard.counted(attach.hook(), "drop", "no-rule");
            neighbour.expect_silence(server);
            guard.counted(attach.hook(), "drop", "no-rule") > before
        })
    });

    assert_eq!(guard_links(&lab.pins()), links);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

on_each_hook!(an_interface_is_let_go_with_its_namespace_and_covered_when_it_is_back, [native, tcx]);
fn an_interface_is_let_go_with_its_namespace_and_covered_when_it_is_back(attach: Attach) {
    let lab = Lab::new(&format!("let_go {attach}"));
    let neighbour = lab.add_neighbour();
    let elsewhere = lab.add_bare_machine("elsewhere");
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    wait_until_covered(&guard, "eth1", attach);
    assert_eq!(guard_links(&lab.pins()).len(), 3, "two interfaces and the backstop");

    lab.server.ip(&format!("link set eth1 netns {}\n", elsewhere.netns()));
    until("guard is on one interface less", || guard_links(&lab.pins()).len() == 2);

    elsewhere.ip(&format!("link set eth1 netns {}\n", lab.server.netns()));
    lab.server.ip(&format!(
        "address add {}/24 dev eth1\n\
         address add {}/64 dev eth1 nodad\n\
         link set eth1 up\n",
        SERVER_TO_NEIGHBOUR.v4, SERVER_TO_NEIGHBOUR.v6
    ));
    for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
        neighbour.expect_silence(server);
    }
    wait_until_covered(&guard, "eth1", attach);
    until("its addresses are known for this host's own", || {
        let before = guard.counted(attach.hook(), "drop", "no-rule");
        neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
        guard.counted(attach.hook(), "drop", "no-rule") > before
    });
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

on_each_hook!(a_container_s_end_that_was_here_for_a_moment_is_let_go, [native, tcx]);
fn a_container_s_end_that_was_here_for_a_moment_is_let_go(attach: Attach) {
    let lab = Lab::new(&format!("container_s_end {attach}"));
    let container = lab.add_bare_machine("container");
    let _theirs = lab.listen(&container, Service::Http, every_address(OLLAMA));
    let guard = lab.start_guard(attach, "");
    // A container engine makes the pair on the host, and moves one end away.
    lab.server
        .ip("link add veth0 type veth peer name veth1\nlink set veth0 up\nlink set veth1 up\n");
    for end in ["veth0", "veth1"] {
        wait_until_covered(&guard, end, attach);
    }

    lab.server.ip(&format!("link set veth1 netns {}\n", container.netns()));
    lab.server.ip(&format!(
        "link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
         address add {}/24 dev br0\n\
         address add {}/64 dev br0 nodad\n\
         link set veth0 master br0\n\
         link set br0 up\n",
        BRIDGE.v4, BRIDGE.v6
    ));
    container.ip(&format!(
        "address add {}/24 dev veth1\n\
         address add {}/64 dev veth1 nodad\n\
         link set veth1 up\n",
        CONTAINER.v4, CONTAINER.v6
    ));

    // At the container's own end the host would look like a stranger that takes a local address.
    until("the host reaches its container's service", || {
        let call = |server| lab.server.call(server) == Reply::Answered;
        CONTAINER.at(OLLAMA).into_iter().all(call)
    });
    until("nothing that comes in is judged but at eth0 and the sockets", || {
        guard_links(&lab.pins()).iter().filter(|(hook, _)| hook != "edge").count() == 2
    });
}

on_each_hook!(a_number_that_another_namespace_has_too_is_told_apart, [native, tcx]);
fn a_number_that_another_namespace_has_too_is_told_apart(attach: Attach) {
    let lab = Lab::new(&format!("another_namespace_s_number {attach}"));
    let _neighbour = lab.add_neighbour();
    let elsewhere = lab.add_bare_machine("elsewhere");
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    wait_until_covered(&guard, "eth1", attach);

    // Its number is taken there, so that it gets the next free one, which is eth0's here. Without the daemon it stays
    // covered there.
    let (eth0, eth1) = (lab.server.index_of("eth0"), lab.server.index_of("eth1"));
    guard.kill();
    elsewhere.ip(&format!("link add taken index {eth1} type bridge\n"));
    lab.server.ip(&format!("link set eth1 netns {}\n", elsewhere.netns()));
    assert_eq!(elsewhere.index_of("eth1"), eth0);
    assert!(covered(&guard.status(), "eth0", hook_of(attach)), "{:#?}", guard.status());

    detach_oldest(&lab.pins(), attach.hook());
    let status = guard.status();
    assert_eq!(interface(&status, "eth0").and_then(|eth0| eth0.hook), None, "{status:#?}");
    assert!(missing(&status).iter().any(|what| what.contains("eth0")), "{status:#?}");

    guard.start();
    let before = guard.counted(attach.hook(), "drop", "no-rule");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > before, "{:#?}", guard.status());
    until("the interface that has moved is let go", || guard_links(&lab.pins()).len() == 2);
}

on_each_hook!(what_is_covered_is_not_touched, [native, generic, tcx, clsact]);
fn what_is_covered_is_not_touched(attach: Attach) {
    let lab = Lab::new(&format!("not_touched {attach}"));
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let links = guard_links(&lab.pins());
    let expected = if attach == Attach::Clsact { 1 } else { 2 };
    assert_eq!(links.len(), expected, "{links:?}");
    let facts = |lab: &Lab| (lab.server.index_of("eth0"), lab.server.carrier_changes("eth0"));
    let before = facts(&lab);

    let neighbour = lab.add_neighbour();
    wait_until_covered(&guard, "eth1", attach);
    guard.tell(&["allow", "10.99.0.0/16"]);
    guard.configure("[[rule]]\nallow = \"10.98.0.0/16\"");
    guard.tell(&["reload"]);
    guard.stop();
    guard.start();
    guard.kill();
    guard.start();
    lab.server.ip("link delete eth1\n");
    drop(neighbour);
    until("the interface that has gone is forgotten", || {
        guard_links(&lab.pins()).len() == expected
    });

    assert_eq!(guard_links(&lab.pins()), links);
    assert_eq!(facts(&lab), before);
    let dropped = guard.counted(attach.hook(), "drop", "no-rule");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted(attach.hook(), "drop", "no-rule") > dropped, "{:#?}", guard.status());
}

#[test]
fn an_interface_that_has_gone_is_no_failure() {
    let lab = Lab::new("an_interface_that_has_gone_is_no_failure");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.kill();
    let pins = Pins::new(lab.pins(), &lab.pins());
    let ladders = [
        vec![Way::XdpNative],
        vec![Way::XdpGeneric],
        vec![Way::Tcx],
        vec![Way::Clsact],
        vec![Way::XdpNative, Way::Tcx, Way::Clsact],
    ];
    for ladder in ladders {
        let gone = Wanted {
            ifindex: 4_242,
            name: "gone0".to_owned(),
            is_ethernet: true,
            ladder,
            stays_native: true,
        };
        let tried = lab.server.inside(|| {
            let mut attacher = Attacher::new(&pins).map_err(|error| error.to_string())?;
            attacher.cover(&gone, &Seen::default()).map_err(|error| error.to_string())
        });
        assert_eq!(tried, Ok(None), "{:?}", gone.ladder);
    }
    let links = guard_links(&lab.pins());
    assert_eq!(links.len(), 2, "{links:?}");
}

#[test]
fn a_storm_of_links_keeps_nothing_from_being_covered() {
    let lab = Lab::new("a_storm_of_links");
    let neighbour = lab.add_bare_machine("neighbour");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    let pid = guard.status().daemon.unwrap_or_default();
    let memory_before = peak_memory_kb(pid);
    let over = AtomicBool::new(false);

    thread::scope(|scope| {
        // A thousand links a round, made and deleted.
        let storm = scope.spawn(|| {
            let batch = |verb: &str, tail: &str| -> String {
                (0..500).map(|number| format!("link {verb} storm{number}{tail}\n")).collect()
            };
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) || rounds == 0 {
                lab.server.ip(&batch("add", " type veth"));
                lab.server.ip(&batch("delete", ""));
                rounds += 1;
            }
        });
        let end = EndOnDrop(&over);
        lab.plug_in(&neighbour, None);
        for server in SERVER_TO_NEIGHBOUR.at(OLLAMA) {
            neighbour.expect_silence(server);
        }
        until("eth1 is covered amid the storm", || {
            // Each look is also an answer of the API.
            covered(&guard.status(), "eth1", "tcx")
        });
        drop(end);
        storm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });

    assert_eq!(guard.status().daemon, Some(pid), "{:#?}", guard.status());
    assert!(!guard.log().contains("panicked"), "{}", guard.log());
    let grown = peak_memory_kb(pid).saturating_sub(memory_before);
    assert!(grown < 128 * 1024, "the daemon grew by {grown} kB");
    until("only what is there is covered", || guard_links(&lab.pins()).len() == 3);
    expect_dropped_at_the_nic(&guard, &neighbour, Attach::Tcx);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

/// `VmHWM` of proc(5).
fn peak_memory_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("the daemon's memory is not told:\n{status}"))
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn anothers_xdp_program_stays_and_the_next_step_takes_over() {
    let lab = Lab::new("anothers_xdp_program_stays");
    let listener = lab.serve();
    let _web = lab.listen(&lab.server, Service::Http, every_address(8080));
    let theirs = Foreign::at_xdp_by_ip(&lab, &lab.server, "eth0");
    let guard = lab.guard(Attach::Native, "");
    guard.start_expecting("tcx");

    let status = guard.status();
    let note = interface(&status, "eth0").and_then(|eth0| eth0.note).unwrap_or_default();
    for word in ["xdp native", "foreign", &theirs.id().to_string()] {
        assert!(note.contains(word), "{word} is not in `{note}`");
    }
    let said = "another XDP program is attached there";
    assert_eq!(guard.log().matches(said).count(), 1, "{}", guard.log());

    // Theirs goes on seeing every packet, and ours drops behind it.
    let runs = theirs.runs();
    lab.client.expect_answer(SERVER.v4_at(8080));
    assert!(theirs.runs() > runs);
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    assert!(guard.counted("tcx", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());

    // Once the slot is free, guard takes it as it was asked to.
    assert!(xdp_off(&lab.server, "eth0"));
    wait_until_covered(&guard, "eth0", Attach::Native);
    let before = guard.counted("xdp", "drop", "no-rule");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted("xdp", "drop", "no-rule") > before, "{:#?}", guard.status());
    // And nobody takes it from guard by mistake.
    assert!(!xdp_off(&lab.server, "eth0"));
    assert!(Foreign::at_xdp(&lab.server, "eth0").is_err());
    assert!(covered(&guard.status(), "eth0", "xdp native"), "{:#?}", guard.status());
}

#[test]
fn an_xdp_link_of_anothers_is_not_evicted_either() {
    let lab = Lab::new("an_xdp_link_of_anothers");
    let listener = lab.serve();
    let theirs = Foreign::at_xdp(&lab.server, "eth0");
    let theirs = theirs.unwrap_or_else(|error| panic!("the slot is taken: {error}"));
    let guard = lab.guard(Attach::Native, "");
    guard.start_expecting("tcx");

    let runs = theirs.runs();
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    assert!(theirs.runs() > runs);
    assert!(guard.counted("tcx", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

#[test]
fn a_filter_of_xdp_tools_goes_on_filtering() {
    if !command::is_installed("xdp-filter") {
        return kernel::skip("a_filter_of_xdp_tools", "`xdp-filter` is not installed");
    }
    let lab = Lab::new("a_filter_of_xdp_tools_goes_on_filtering");
    let listener = lab.serve();
    let _web = lab.listen(&lab.server, Service::Http, every_address(8080));
    let _filtered = lab.listen(&lab.server, Service::Http, every_address(8081));
    let filter = XdpFilter::on(&lab.server, "eth0", 8081);
    let filter = filter.unwrap_or_else(|why| panic!("xdp-filter: {why}"));
    let guard = lab.guard(Attach::Native, "");
    guard.start_expecting(if kernel::has_tcx() { "tcx" } else { "clsact" });

    let note = interface(&guard.status(), "eth0").and_then(|eth0| eth0.note).unwrap_or_default();
    let theirs = XdpFilter::IN_THE_SLOT.into_iter().find(|name| note.contains(name));
    let theirs = theirs.unwrap_or_else(|| panic!("the filter's program is not in `{note}`"));
    kernel::tell(&format!("xdp-tools: {theirs} is in the slot"));
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    for (web, filtered) in SERVER.at(8080).into_iter().zip(SERVER.at(8081)) {
        lab.client.expect_answer(web);
        lab.client.expect_silence(filtered);
    }
    assert!(guard.counted("tcx", "drop", "no-rule") >= 2, "{:#?}", guard.status());
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());

    drop(filter);
    wait_until_covered(&guard, "eth0", Attach::Native);
    assert!(XdpFilter::on(&lab.server, "eth0", 8081).is_err());
    assert!(covered(&guard.status(), "eth0", "xdp native"), "{:#?}", guard.status());
}

#[test]
fn guard_stands_first_at_tcx_and_lets_the_others_see_the_rest() {
    let lab = Lab::new("guard_stands_first_at_tcx");
    let _listener = lab.serve();
    let _web = lab.listen(&lab.server, Service::Http, every_address(8080));
    let earlier = Foreign::first_at_tcx(&lab.server, "eth0", TCX_NEXT);
    let guard = lab.start_guard(Attach::Tcx, "");
    let later = Foreign::last_at_tcx(&lab.server, "eth0", TCX_PASS);
    expect_whole(&guard);

    // Frames by hand: nothing else, such as a repeated SYN, is counted with them.
    let wire = lab.wire();
    let others = [8080, 9].map(|port| wire::syn(CLIENT.v4_at(4242), SERVER.v4_at(port)));
    let runs = || (earlier.runs(), later.runs());
    let before = runs();
    for (number, (client, server)) in CLIENT.at(4243).into_iter().zip(SERVER.at(OLLAMA)).enumerate()
    {
        wire.send(&wire::syn(client, server));
        guard.expect_counted("tcx", "drop", "no-rule", number as u64 + 1);
    }
    let after_drops = runs();
    for packet in &others {
        wire.send(packet);
    }
    until("they saw the others", || {
        let now = runs();
        now.0 >= after_drops.0 + 2 && now.1 >= after_drops.1 + 2
    });
    assert!(after_drops.0 - before.0 < 2, "the dropped packets went on to the next program");
    assert!(after_drops.1 - before.1 < 2, "the dropped packets went on to the last program");
}

#[test]
fn a_tcx_program_before_guard_s_is_named_and_the_backstop_holds() {
    let lab = Lab::new("a_tcx_program_before_guard_s");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");

    for (answer, hook) in [(TCX_NEXT, "tcx"), (TCX_PASS, "cgroup")] {
        let theirs = Foreign::first_at_tcx(&lab.server, "eth0", answer);
        let status = guard.status();
        let names = |text: &str| {
            ["eth0", "foreign", &theirs.id().to_string()].iter().all(|word| text.contains(word))
        };
        assert!(missing(&status).iter().any(|what| names(what)), "{status:#?}");

        for server in SERVER.at(OLLAMA) {
            let before = guard.counted(hook, "drop", "no-rule");
            lab.client.expect_silence(server);
            assert!(guard.counted(hook, "drop", "no-rule") > before, "{:#?}", guard.status());
        }
        drop(theirs);
        expect_whole(&guard);
    }
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

#[test]
fn a_race_for_the_xdp_slot_leaves_no_gap() {
    let lab = Lab::new("a_race_for_the_xdp_slot");
    let listener = lab.serve();
    let guard = lab.start_guard(Attach::Native, "");
    let wire = lab.wire();
    let over = AtomicBool::new(false);
    let (pins, server) = (lab.pins(), &lab.server);

    thread::scope(|scope| {
        let rival = scope.spawn(|| {
            let mut won = 0;
            while !over.load(Ordering::Relaxed) {
                // Guard's program is taken off, and the slot is anybody's until the rival's link is dropped.
                detach_guard(&pins, "xdp");
                let theirs = Foreign::at_xdp(server, "eth0");
                won += u32::from(theirs.is_ok());
                thread::sleep(std::time::Duration::from_millis(30));
            }
            won
        });
        let end = EndOnDrop(&over);
        for number in 0..40_u16 {
            // Each address that comes or goes makes guard look.
            let verb = if number % 2 == 0 { "add" } else { "delete" };
            lab.server.ip(&format!("address {verb} 10.77.0.99/24 dev eth0\n"));
            for (stranger, server) in [
                (IpAddr::from(wire::stranger_v4(number)), SERVER.v4_at(OLLAMA)),
                (wire::stranger_v6(number).into(), SERVER.v6_at(OLLAMA)),
            ] {
                wire.send(&wire::syn((stranger, 4242).into(), server));
            }
            thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
        }
        drop(end);
        let won = rival.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(won > 0, "the rival never had the slot");
    });

    wait_until_covered(&guard, "eth0", Attach::Native);
    expect_whole(&guard);
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
    assert!(!guard.log().contains("panicked"), "{}", guard.log());
    // Nothing about it takes more than a line.
    let lines = guard.log().lines().filter(|line| line.contains("eth0: xdp native")).count();
    assert!(lines <= 40, "{}", guard.log());
}

on_each_hook!(what_somebody_detaches_is_named_and_put_back, [native, tcx, clsact, socket]);
fn what_somebody_detaches_is_named_and_put_back(attach: Attach) {
    let lab = Lab::new(&format!("put_back {attach}"));
    let listener = lab.serve();
    let guard = lab.start_guard(attach, "");
    let (hook, name) = match attach {
        Attach::Socket => ("cgroup", "backstop"),
        _ => (attach.hook(), "eth0"),
    };

    if attach == Attach::Clsact {
        let netns = format!("--net={}", lab.server.netns_path().display());
        command::run("nsenter", &[&netns, "tc", "qdisc", "delete", "dev", "eth0", "clsact"]);
    } else {
        assert_eq!(detach_guard(&lab.pins(), hook), 1);
    }
    // Guard may have looked already.
    let said = missing(&guard.status());
    assert!(said.is_empty() || said[0].contains(name), "{said:#?}");
    if attach != Attach::Socket {
        for server in SERVER.at(OLLAMA) {
            lab.client.expect_silence(server);
        }
    }

    // The kernel gives no notice of it: guard finds out by itself.
    until("it is put back", || missing(&guard.status()).is_empty());
    for server in SERVER.at(OLLAMA) {
        lab.client.expect_silence(server);
    }
    if attach == Attach::Socket {
        return;
    }
    let before = guard.counted(hook, "drop", "no-rule");
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert!(guard.counted(hook, "drop", "no-rule") > before, "{:#?}", guard.status());
    assert!(listener.reached_by().is_empty(), "{:?}", listener.reached_by());
}

/// Sends a packet from this source, and waits until it is judged for this reason.
#[track_caller]
fn expect_reason(guard: &Guard<'_>, wire: &Wire, source: IpAddr, server: SocketAddr, reason: &str) {
    until(&format!("a packet from {source} is judged as {reason}"), || {
        let before = guard.counted("tcx", "drop", reason);
        wire.send(&wire::syn((source, 4242).into(), server));
        thread::sleep(std::time::Duration::from_millis(20));
        guard.counted("tcx", "drop", reason) > before
    });
}

#[test]
fn own_addresses_are_followed() {
    let lab = Lab::new("own_addresses_are_followed");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    let wire = lab.wire();
    let places = [
        (IpAddr::from([10, 77, 0, 9]), 24, SERVER.v4_at(OLLAMA)),
        (IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, 9]), 64, SERVER.v6_at(OLLAMA)),
    ];

    for (address, bits, server) in places {
        expect_reason(&guard, &wire, address, server, "no-rule");
        lab.server.ip(&format!("address add {address}/{bits} dev eth0\n"));
        expect_reason(&guard, &wire, address, server, "spoofed");
        // As a destination it is this host's, too.
        let before = guard.counted("tcx", "drop", "no-rule");
        let client = if address.is_ipv4() { CLIENT.v4_at(4243) } else { CLIENT.v6_at(4243) };
        wire.send(&wire::syn(client, (address, OLLAMA).into()));
        guard.expect_counted("tcx", "drop", "no-rule", before + 1);

        lab.server.ip(&format!("address delete {address}/{bits} dev eth0\n"));
        expect_reason(&guard, &wire, address, server, "no-rule");
    }
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
}

#[test]
fn a_bridge_and_its_container_are_followed() {
    let lab = Lab::new("a_bridge_and_its_container_are_followed");
    let _listener = lab.serve();
    let guard = lab.start_guard(Attach::Tcx, "");
    let wire = lab.wire();
    let container_v4 = IpAddr::from(CONTAINER.v4);
    let container_v6 = IpAddr::from(CONTAINER.v6);
    expect_reason(&guard, &wire, container_v4, SERVER.v4_at(OLLAMA), "no-rule");
    expect_reason(&guard, &wire, container_v6, SERVER.v6_at(OLLAMA), "no-rule");

    let container = lab.add_container();
    until("the container reaches the host's service", || {
        BRIDGE.at(OLLAMA).into_iter().all(|server| container.call(server) == Reply::Answered)
    });
    expect_reason(&guard, &wire, container_v4, SERVER.v4_at(OLLAMA), "spoofed");
    expect_reason(&guard, &wire, container_v6, SERVER.v6_at(OLLAMA), "spoofed");
    let class = |name: &str| interface(&guard.status(), name).map(|found| found.class);
    assert_eq!(class("br0").as_deref(), Some("local bridge"));

    // A port that leads to other machines makes the bridge one of theirs, and its subnet nobody's. A bridge has the lowest
    // address of its ports': a highest one, so that the container need not learn another.
    lab.server.ip("link add uplink link eth0 address fe:ff:ff:ff:ff:fe type macvlan mode bridge\n\
         link set uplink master br0\n");
    until("the container is a stranger like any other on its network", || {
        BRIDGE.at(OLLAMA).into_iter().all(|server| container.call(server) == Reply::Silent)
    });
    assert_ne!(class("br0").as_deref(), Some("local bridge"));
    expect_reason(&guard, &wire, container_v4, SERVER.v4_at(OLLAMA), "no-rule");
    expect_reason(&guard, &wire, container_v6, SERVER.v6_at(OLLAMA), "no-rule");

    lab.server.ip("link delete uplink\n");
    until("the container is this host's own again", || {
        BRIDGE.at(OLLAMA).into_iter().all(|server| container.call(server) == Reply::Answered)
    });

    lab.server.ip("link delete veth0\nlink delete br0\n");
    expect_reason(&guard, &wire, container_v4, SERVER.v4_at(OLLAMA), "no-rule");
    expect_reason(&guard, &wire, container_v6, SERVER.v6_at(OLLAMA), "no-rule");
    assert_eq!(lab.server.half_open_connections(OLLAMA), 0);
    expect_whole(&guard);
}

#[test]
fn what_fails_at_one_interface_fails_there_only() {
    let lab = Lab::new("what_fails_at_one_interface");
    let neighbour = lab.add_neighbour();
    let listener = lab.serve();
    let theirs = Foreign::at_xdp(&lab.server, "eth1");
    assert!(theirs.is_ok(), "{theirs:?}");
    let guard = lab.start_guard(Attach::Native, "");
    let status = guard.status();
    assert!(covered(&status, "eth0", "xdp native"), "{status:#?}");
    assert!(covered(&status, "eth1", "tcx"), "{status:#?}");

    // The policy follows all the same.
    guard.tell(&["allow", "10.78.0.1"]);
    neighbour.expect_answer(SERVER_TO_NEIGHBOUR.v4_at(OLLAMA));
    neighbour.expect_silence(SERVER_TO_NEIGHBOUR.v6_at(OLLAMA));
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
    assert_eq!(listener.reached_by().len(), 1, "{:?}", listener.reached_by());
    assert!(counted(&guard.status(), "tcx", "drop", "no-rule") > 0, "{:#?}", guard.status());
}
