//! `--reject`: a dropped packet is answered with a reset, by the hook that saw it.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use guard_tests::{
    foreign::Foreign,
    lab::{BRIDGE, CLIENT, CONTAINER, Lab, OLLAMA, SERVER},
    machine::Reply,
    on_each_hook,
    product::Attach,
    wait::until,
    wire::{self, Ears},
};

/// A veth takes what native XDP sends only where its other end has an XDP program too (`veth_xdp_flush` in `drivers/net/veth.c`).
fn receiver(lab: &Lab, attach: Attach) -> Option<Foreign> {
    (attach == Attach::Native)
        .then(|| Foreign::at_xdp(&lab.client, "eth0").expect("the client's slot is free"))
}

on_each_hook!(an_outsider_is_refused, [auto, native, generic, tcx, clsact]);
fn an_outsider_is_refused(attach: Attach) {
    let lab = Lab::new(&format!("an_outsider_is_refused {attach}"));
    let listener = lab.serve();
    let _receiver = receiver(&lab, attach);
    let guard = lab.start_guard(attach, "reject = true");

    for server in SERVER.at(OLLAMA) {
        lab.client.expect_refusal(server);
    }
    assert_eq!(listener.reached_by().len(), 0);
    guard.expect_counted(attach.hook(), "drop", "no-rule", 2);

    guard.tell(&["allow", "10.77.0.0/24"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));
    lab.client.expect_refusal(SERVER.v6_at(OLLAMA));
}

on_each_hook!(an_open_connection_is_reset, [native, generic, tcx, clsact]);
fn an_open_connection_is_reset(attach: Attach) {
    let lab = Lab::new(&format!("an_open_connection_is_reset {attach}"));
    let _listener = lab.serve();
    let _receiver = receiver(&lab, attach);
    let guard = lab.start_guard(attach, "reject = true");
    guard.tell(&["allow", "10.77.0.1", "fd77::1"]);
    let mut streams = SERVER.at(OLLAMA).map(|server| lab.client.connect(server));
    guard.tell(&["deny", "10.77.0.1", "fd77::1"]);
    for stream in &mut streams {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        // The write may go out before the reset is back.
        let written = stream.write_all(b"GET / HTTP/1.1\r\n");
        let error = written.and_then(|()| stream.read(&mut [0; 1])).expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

on_each_hook!(no_answer_to_what_must_have_none, [generic, tcx]);
fn no_answer_to_what_must_have_none(attach: Attach) {
    let lab = Lab::new(&format!("no_answer_to_what_must_have_none {attach}"));
    let _container = lab.add_container();
    let _listener = lab.serve();
    let guard = lab.start_guard(attach, "reject = true");
    let ears = Ears::open(&lab.client, "eth0", OLLAMA);
    let wire = lab.wire();

    for spoofed in [SERVER, CONTAINER, BRIDGE] {
        for (source, server) in spoofed.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
            wire.send(&wire::syn(source, server));
        }
    }
    guard.expect_counted(attach.hook(), "drop", "spoofed", 6);
    for (client, server) in CLIENT.at(4242).into_iter().zip(SERVER.at(OLLAMA)) {
        for fragment in wire::syn_in_fragments(client, server) {
            wire.send(&fragment);
        }
        wire.send(&wire::reset(client, server));
    }
    wire.send(&wire::syn(CLIENT.v4_at(4242), ([224, 0, 0, 1], OLLAMA).into()));
    // A first fragment and a reset of each family, and the multicast packet.
    guard.expect_counted(attach.hook(), "drop", "no-rule", 5);
    assert_eq!(ears.resets(), 0);

    wire.send(&wire::syn(CLIENT.v4_at(4242), SERVER.v4_at(OLLAMA)));
    until("a plain packet is answered", || ears.resets() == 1);
}

#[test]
fn observing_answers_nobody_and_a_flag_is_enough() {
    let lab = Lab::new("observing_answers_nobody_and_a_flag_is_enough");
    let listener = lab.serve();
    let guard = lab.guard(Attach::Tcx, "");
    guard.start_with(&["--reject", "--observe"]);
    lab.client.expect_answer(SERVER.v4_at(OLLAMA));

    guard.tell(&["enforce"]);
    lab.client.expect_refusal(SERVER.v4_at(OLLAMA));
    // A daemon that is not there changes nothing of it, and neither does a command without one.
    guard.kill();
    guard.tell(&["deny", "10.77.0.0/24"]);
    lab.client.expect_refusal(SERVER.v4_at(OLLAMA));
    assert_eq!(listener.reached_by().len(), 1);

    guard.start();
    lab.client.expect_silence(SERVER.v4_at(OLLAMA));
}

#[test]
fn the_backstop_stays_silent() {
    let lab = Lab::new("the_backstop_stays_silent");
    let _listener = lab.serve();
    let _guard = lab.start_guard(Attach::Socket, "reject = true");
    assert_eq!(lab.client.call(SERVER.v4_at(OLLAMA)), Reply::Silent);
}
