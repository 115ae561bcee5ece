//! Clients of the control socket that mean no good: users who may read, and nothing more.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use guard_tests::{
    bench::memory::resident_mib,
    lab::{Lab, OLLAMA, SERVER},
    product::{Attach, Guard},
    wait::{EndOnDrop, until},
    wire,
};
use rustix::{process::Uid, thread::set_thread_res_uid};

/// `nobody`. Its group stays root's, as it were a member of the group that may open the socket.
const READER: Uid = Uid::from_raw_unchecked(65_534);

/// From here on this thread is another user.
#[track_caller]
fn become_a_reader() {
    set_thread_res_uid(READER, READER, READER).expect("root may become anybody");
}

fn open_files(guard: &Guard<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", guard.pid())).expect("the daemon runs").count()
}

/// Holds as many connections as it can get and says nothing on them, all the time.
fn hold_connections(socket: &Path, is_over: &AtomicBool) {
    become_a_reader();
    let mut held: Vec<UnixStream> = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        held.retain_mut(|stream| {
            let mut byte = [0];
            !matches!(stream.read(&mut byte), Ok(0)) && !matches!(stream.take_error(), Ok(Some(_)))
        });
        while held.len() < 300 {
            let Ok(mut stream) = UnixStream::connect(socket) else { break };
            if stream.set_nonblocking(true).is_err() {
                break;
            }
            let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: gu");
            held.push(stream);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_may_only_read_keeps_root_from_nothing() {
    let lab = Lab::new("who_may_only_read_keeps_root_from_nothing");
    let guard = lab.start_guard(Attach::Tcx, "");
    let is_over = AtomicBool::new(false);
    let socket = guard.socket();
    thread::scope(|scope| {
        scope.spawn(|| hold_connections(&socket, &is_over));
        let end = EndOnDrop(&is_over);
        until("connections are held", || open_files(&guard) > 64);
        for number in 1..=20 {
            guard.tell(&["allow", &format!("192.0.2.{number}")]);
            assert_eq!(guard.rules().len(), number);
        }
        drop(end);
    });
}

/// Requests that are nearly right: each byte of one may be another, and it may end anywhere.
fn nearly_right(number: u32) -> Vec<u8> {
    const RIGHT: [&str; 6] = [
        "GET /v1/status HTTP/1.1\r\nHost: guard\r\n\r\n",
        "GET /v1/events?since=5 HTTP/1.1\r\nHost: guard\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: guard\r\n\r\n",
        "POST /v1/explain HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n{\"source\":\"203.0.113.9\"}\n",
        "POST /v1/rules HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\nContent-Length: 45\r\n\r\n{\"action\":\"allow\",\"sources\":[\"203.0.113.9\"]}\n",
        "POST /v1/rules HTTP/1.1\r\nHost: guard\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"act\r\nfffffff0\r\n",
    ];
    // Numerical Recipes' linear congruential generator: the same requests in every run.
    let mut random = number.wrapping_mul(2_654_435_761);
    let mut draw = move |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % below
    };
    let mut request = RIGHT[draw(RIGHT.len())].as_bytes().to_vec();
    for _ in 0..draw(4) {
        let place = draw(request.len());
        request[place] = draw(256) as u8;
    }
    if draw(4) == 0 {
        request.truncate(draw(request.len()));
    }
    request
}

/// Sends it, and reads what comes until the other side ends it.
fn send_and_read(socket: &Path, request: &[u8]) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn clients_that_mean_no_good_change_nothing_and_leave_nothing() {
    const REQUESTS: u32 = 3_000;
    const FOLLOWERS: usize = 40;
    let lab = Lab::new("clients_that_mean_no_good_change_nothing_and_leave_nothing");
    let guard = lab.start_guard(Attach::Tcx, "");
    guard.tell(&["allow", "192.0.2.7"]);
    let (generation, rules) = (guard.generation(), guard.rules());
    let socket = guard.socket();
    let files = open_files(&guard);
    let mib = resident_mib(guard.pid()).expect("it runs");

    let wire = lab.wire();
    thread::scope(|scope| {
        scope.spawn(|| {
            become_a_reader();
            (0..REQUESTS).for_each(|number| send_and_read(&socket, &nearly_right(number)));
        });
        scope.spawn(|| {
            become_a_reader();
            // A body without end.
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            let head = "POST /v1/explain HTTP/1.1\r\nHost: guard\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            for _ in 0..20 {
                send_and_read(&socket, format!("{head}{}", chunk.repeat(128)).as_bytes());
            }
        });
        scope.spawn(|| {
            become_a_reader();
            // They ask for attempts and never read them, while there are many.
            let request = b"GET /v1/events?follow=true&since=3600 HTTP/1.1\r\nHost: guard\r\n\r\n";
            let follow = |_| {
                let mut stream = UnixStream::connect(&socket).ok()?;
                stream.write_all(request).ok()?;
                Some(stream)
            };
            let followers: Vec<_> = (0..FOLLOWERS).filter_map(follow).collect();
            for number in 0..2_000 {
                let server = SERVER.v4_at(OLLAMA);
                wire.send(&wire::syn((wire::stranger_v4(number), 4242).into(), server));
                thread::sleep(Duration::from_millis(1));
            }
            drop(followers);
        });
    });

    assert_eq!((guard.generation(), guard.rules()), (generation, rules));
    assert!(!guard.log().contains("panicked"), "{}", guard.log());
    until("no file is left open", || open_files(&guard) <= files);
    let after = resident_mib(guard.pid()).expect("it runs");
    println!("the daemon takes {mib:.1} MiB before and {after:.1} MiB after");
    assert!(after < mib + 16.0, "{mib} MiB before, {after} after");
}
