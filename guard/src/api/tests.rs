//! Server and client against each other, over a real socket, with a control plane that only remembers.

use std::{
    io::{Read, Write},
    net::Shutdown,
    ops::ControlFlow,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use super::{client::Client, server};
use crate::{
    control::{
        AddRules, BackstopStatus, Change, Control, Enforcement, EventTotals, Explain, Explanation,
        Failure, FailureKind, Mode, Reload, RemoveRules, RuleView, SetMode, Status,
    },
    events::{Attempt, Hub, Line},
    history::{History, Requester, Via},
    progress::{Loading, Step},
    rule::{Action, Origin, RuleId},
    store::{EventsQuery, Sources, SourcesQuery},
};

/// Remembers what was asked, and answers with something to recognise.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) asked: Arc<Mutex<Vec<String>>>,
    requesters: Arc<Mutex<Vec<Requester>>>,
}

impl Fake {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }
}

fn view(source: &str) -> RuleView {
    RuleView {
        id: RuleId("1".into()),
        action: Action::Allow,
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

fn change(rules: Vec<RuleView>) -> Change {
    Change { generation: Some(2), rules, notes: Vec::new(), trial: None }
}

impl Control for Fake {
    fn status(&self) -> Result<Status, Failure> {
        self.note("status");
        Ok(Status {
            enforcement: Enforcement::Full,
            missing: Vec::new(),
            layers: Vec::new(),
            tables: Vec::new(),
            mode: Mode::Enforce,
            observe_until: None,
            generation: Some(1),
            source_table_bytes: 4 << 20,
            daemon: Some(1),
            ports: vec!["11434".into()],
            published: Vec::new(),
            interfaces: Vec::new(),
            backstop: BackstopStatus { attached: true, scope: "root".into(), path: None },
            outlives_daemon: true,
            rules: 0,
            wide_rules: Vec::new(),
            idle_rules: Vec::new(),
            sources: Vec::new(),
            counters: Vec::new(),
            events: EventTotals::default(),
            attempt_history: None,
            version: "1".into(),
            trial: None,
            rolled_back: false,
            enrich_problems: Vec::new(),
        })
    }

    fn rules(&self) -> Result<Vec<RuleView>, Failure> {
        self.note("rules");
        Ok(vec![view("192.0.2.7")])
    }

    fn add_rules(&self, request: &AddRules, by: &Requester) -> Result<Change, Failure> {
        self.note(format!("add {request:?}"));
        self.requesters.lock().unwrap().push(by.clone());
        match request.sources[0].as_str() {
            "panic" => panic!("asked to"),
            "0.0.0.0/0" if !request.yes => {
                Err(Failure::needs_confirmation("0.0.0.0/0 is everyone", "confirm with --yes"))
            }
            "nonsense" => Err(Failure::bad_request("nonsense is no source", "give an address")),
            "unlucky" => Err(Failure::failed("the table is full", "remove rules")),
            source => Ok(change(vec![view(source)])),
        }
    }

    fn remove_rules(&self, request: &RemoveRules, _: &Requester) -> Result<Change, Failure> {
        self.note(format!("remove {:?}", request.rules));
        Ok(change(vec![view(&request.rules[0])]))
    }

    fn set_mode(&self, request: &SetMode, _: &Requester) -> Result<Change, Failure> {
        self.note(format!("mode {:?} {:?}", request.mode, request.for_seconds));
        Ok(change(Vec::new()))
    }

    fn explain(&self, request: &Explain) -> Result<Explanation, Failure> {
        self.note(format!("explain {}", request.source));
        Ok(Explanation { source: request.source, port: "11434".into(), places: Vec::new() })
    }

    fn reload(&self, request: &Reload, _: &Requester) -> Result<Change, Failure> {
        self.note(format!("reload {:?}", request.confirm_seconds));
        Ok(change(Vec::new()))
    }

    fn down(&self, _: &Requester) -> Result<Vec<String>, Failure> {
        self.note("down");
        Ok(vec!["the programs are gone".into()])
    }

    fn confirm(&self, _: &Requester) -> Result<Change, Failure> {
        self.note("confirm");
        Ok(change(Vec::new()))
    }

    fn rollback(&self, _: &Requester) -> Result<Change, Failure> {
        self.note("rollback");
        Ok(change(Vec::new()))
    }

    fn loading(&self) -> Result<Option<Loading>, Failure> {
        self.note("loading");
        Ok(Some(Loading { step: Step::Compiling, done: 0, total: 1_000_000 }))
    }

    fn history(&self, since_seconds: Option<u64>) -> Result<History, Failure> {
        self.note(format!("history {since_seconds:?}"));
        Ok(History { changes: vec![crate::history::tests::example()], damaged_lines: 1 })
    }

    fn sources(&self, query: &SourcesQuery) -> Result<Sources, Failure> {
        query.filter(jiff::Timestamp::now())?;
        self.note(format!("sources {query:?}"));
        Ok(Sources { matching: 7, ..Sources::default() })
    }
}

/// A served API, which ends with the test.
struct Served {
    _directory: TempDir,
    socket: PathBuf,
    hub: Arc<Hub>,
    asked: Arc<Mutex<Vec<String>>>,
    requesters: Arc<Mutex<Vec<Requester>>>,
    stop: watch::Sender<bool>,
    server: Option<JoinHandle<()>>,
}

impl Served {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run").join("guard.sock");
        let fake = Fake::default();
        let (asked, requesters) = (Arc::clone(&fake.asked), Arc::clone(&fake.requesters));
        let hub = Arc::new(Hub::new());
        let (stop, _) = watch::channel(false);
        let (bound, is_bound) = mpsc::channel();
        let server = std::thread::spawn({
            let (socket, hub, stop) = (socket.clone(), Arc::clone(&hub), stop.clone());
            move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = server::bind(&socket).unwrap();
                    bound.send(()).unwrap();
                    server::serve(listener, Arc::new(fake), hub, stop).await;
                });
            }
        });
        is_bound.recv().unwrap();
        Self { _directory: directory, socket, hub, asked, requesters, stop, server: Some(server) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap().expect("a daemon is there")
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Sends bytes and gives back the answer's status and body.
    fn raw(&self, request: &[u8]) -> (u16, Value) {
        raw(&self.socket, request)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.raw(
            format!(
                "{method} {path} HTTP/1.1\r\nhost: guard\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let ended = self.server.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

fn raw(socket: &Path, request: &[u8]) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may answer before it has taken everything, and close.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer")).parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("not JSON: {body:?}")))
}

fn add(source: &str) -> AddRules {
    AddRules {
        action: Action::Allow,
        sources: vec![source.into()],
        ports: vec!["11434".into()],
        via: Some("eth0".into()),
        for_seconds: Some(7200),
        comment: Some("office".into()),
        yes: false,
        confirm_seconds: None,
    }
}

/// The daemon finds out by itself who asks.
fn nobody() -> Requester {
    Requester::signal()
}

#[test]
fn who_asks_is_what_the_kernel_says() {
    let served = Served::start();
    served.client().add_rules(&add("192.0.2.8"), &nobody()).unwrap();
    let requesters = served.requesters.lock().unwrap().clone();
    let [asker] = &requesters[..] else { panic!("{requesters:?}") };
    assert_eq!(asker.via, Via::Socket);
    assert_eq!(asker.uid, Some(rustix::process::getuid().as_raw()));
    assert_eq!(asker.pid, Some(std::process::id()));
    let name = std::env::current_exe().unwrap().file_name().unwrap().to_owned();
    assert!(asker.claimed.as_deref().unwrap().contains(name.to_str().unwrap()), "{asker:?}");
}

#[test]
fn every_request_reaches_the_control_plane_and_its_answer_comes_back() {
    let served = Served::start();
    let client = served.client();
    assert_eq!(client.status().unwrap().enforcement, Enforcement::Full);
    assert_eq!(client.rules().unwrap(), [view("192.0.2.7")]);
    assert_eq!(client.add_rules(&add("192.0.2.8"), &nobody()).unwrap().rules, [view("192.0.2.8")]);
    let removal = RemoveRules { rules: vec!["3".into()] };
    assert_eq!(client.remove_rules(&removal, &nobody()).unwrap().rules, [view("3")]);
    let mode = SetMode { mode: Mode::Observe, for_seconds: Some(600) };
    assert_eq!(client.set_mode(&mode, &nobody()).unwrap().generation, Some(2));
    let question = Explain { source: "203.0.113.9".parse().unwrap(), port: None };
    assert_eq!(client.explain(&question).unwrap().source, question.source);
    assert_eq!(client.reload(&Reload::default(), &nobody()).unwrap().generation, Some(2));
    let trial = Reload { confirm_seconds: Some(60) };
    assert_eq!(client.reload(&trial, &nobody()).unwrap().generation, Some(2));
    assert_eq!(client.confirm(&nobody()).unwrap().generation, Some(2));
    assert_eq!(client.rollback(&nobody()).unwrap().generation, Some(2));
    let history = client.history(Some(3600)).unwrap();
    assert_eq!(history.changes, [crate::history::tests::example()]);
    assert_eq!(history.damaged_lines, 1);
    let loading = Loading { step: Step::Compiling, done: 0, total: 1_000_000 };
    assert_eq!(client.loading().unwrap(), Some(loading));
    assert_eq!(served.send("POST", "/v1/reload", "").0, 200);
    assert_eq!(
        served.asked(),
        [
            "status".to_owned(),
            "rules".to_owned(),
            format!("add {:?}", add("192.0.2.8")),
            r#"remove ["3"]"#.to_owned(),
            "mode Observe Some(600)".to_owned(),
            "explain 203.0.113.9".to_owned(),
            "reload None".to_owned(),
            "reload Some(60)".to_owned(),
            "confirm".to_owned(),
            "rollback".to_owned(),
            "history Some(3600)".to_owned(),
            "loading".to_owned(),
            "reload None".to_owned(),
        ]
    );
}

#[test]
fn failures_come_back_as_they_were_with_their_status() {
    let served = Served::start();
    for (source, status, kind) in [
        ("nonsense", 400, FailureKind::BadRequest),
        ("0.0.0.0/0", 409, FailureKind::NeedsConfirmation),
        ("unlucky", 500, FailureKind::Failed),
    ] {
        let failure = served.client().add_rules(&add(source), &nobody()).unwrap_err();
        assert_eq!(failure.kind, kind, "{source}");
        assert!(failure.fix.is_some(), "{source}");
        let body = serde_json::to_string(&add(source)).unwrap();
        let (answered, body) = served.send("POST", "/v1/rules", &body);
        assert_eq!(answered, status, "{source}");
        assert_eq!(body["what"], failure.what);
        assert_eq!(body["kind"], serde_json::to_value(kind).unwrap());
    }
}

#[test]
fn lifting_answers_first_and_then_ends_the_daemon() {
    let mut served = Served::start();
    assert_eq!(served.client().down(&nobody()).unwrap(), ["the programs are gone"]);
    served.server.take().unwrap().join().unwrap();
    assert!(*served.stop.borrow());
    assert!(Client::connect(&served.socket).unwrap().is_none());
    served.server = Some(std::thread::spawn(|| {}));
}

#[test]
fn lifting_ends_the_daemon_even_when_nobody_waits_for_the_answer() {
    let mut served = Served::start();
    let mut stream = UnixStream::connect(&served.socket).unwrap();
    stream
        .write_all(b"POST /v1/down HTTP/1.1\r\nhost: guard\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    while served.asked().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(stream);
    served.server.take().unwrap().join().unwrap();
    served.server = Some(std::thread::spawn(|| {}));
}

#[test]
fn bodies_that_are_not_right_are_refused_by_name() {
    let served = Served::start();
    let cases = [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing"),
        ("[]", "the body is not right"),
        (r#"{"action":"allow"}"#, "missing field `sources`"),
        (r#"{"action":"allow","sources":"192.0.2.7"}"#, r#"field "sources""#),
        (r#"{"action":"allow","sources":["192.0.2.7",4]}"#, r#"field "sources[1]""#),
        (r#"{"action":"permit","sources":[]}"#, r#"field "action""#),
        (r#"{"action":"allow","sources":[],"for":"2h"}"#, r#"field "for""#),
        (r#"{"action":"allow","sources":[],"for":-1}"#, r#"field "for""#),
        (r#"{"action":"allow","sources":[],"by":"eth0"}"#, "unknown field `by`"),
        (r#"{"action":"allow","sources":[],"via":7}"#, r#"field "via""#),
        (r#"{"action":"allow","sources":[]} {}"#, "something follows"),
        ("\u{fe}", "the body is not right"),
    ];
    for (body, expected) in cases {
        let (status, answer) = served.send("POST", "/v1/rules", body);
        assert_eq!(status, 400, "{body}");
        assert_eq!(answer["kind"], "bad-request", "{body}");
        assert!(answer["what"].as_str().unwrap().contains(expected), "{body}: {answer}");
        assert!(answer["fix"].is_string(), "{body}");
    }
    assert!(served.asked().is_empty());
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    let served = Served::start();
    let (status, _) = served.send("POST", "/v1/rules", &"[".repeat(500_000));
    assert_eq!(status, 400);
}

#[test]
fn a_huge_body_is_refused_whether_announced_or_not() {
    let served = Served::start();
    let (status, answer) = served.send("POST", "/v1/rules", &" ".repeat((1 << 20) + 1));
    assert_eq!(status, 413);
    assert_eq!(answer["kind"], "bad-request");

    let mut chunked =
        b"POST /v1/rules HTTP/1.1\r\nhost: guard\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..17 {
        chunked.extend(b"10000\r\n");
        chunked.extend(vec![b' '; 0x10000]);
        chunked.extend(b"\r\n");
    }
    assert_eq!(served.raw(&chunked).0, 413);
    assert!(served.asked().is_empty());
}

#[test]
fn unknown_paths_methods_and_queries_are_answered_in_json() {
    let served = Served::start();
    for (method, path, status, expected) in [
        ("GET", "/", 404, "no \"/\""),
        ("GET", "/v1/statuses", 404, "/v1/statuses"),
        ("POST", "/v2/rules", 404, "/v2/rules"),
        ("PUT", "/v1/rules", 405, "PUT is not for /v1/rules"),
        ("GET", "/v1/down", 405, "GET is not for /v1/down"),
        ("DELETE", "/v1/explain", 405, "DELETE"),
        ("GET", "/v1/events?follow=maybe", 400, "query"),
        ("GET", "/v1/events?since=-1", 400, "query"),
        ("GET", "/v1/events?until=1", 400, "until"),
        ("GET", "/v1/events?source=nowhere", 400, "\"nowhere\" is not a source"),
        ("GET", "/v1/events?port=0", 400, "port 0"),
        ("GET", "/v1/events?country=France", 400, "\"France\" is not a country"),
        ("GET", "/v1/events?label=", 400, "a label is empty"),
        ("GET", "/v1/sources?top=many", 400, "query"),
        ("GET", "/v1/sources?source=192.0.2.1/24", 400, "bits set beyond its prefix"),
        ("POST", "/v1/sources", 405, "POST is not for /v1/sources"),
        ("GET", "/v1/history?since=never", 400, "query"),
        ("GET", "/v1/history?until=1", 400, "until"),
        ("POST", "/v1/history", 405, "POST is not for /v1/history"),
        ("GET", "/v1/confirm", 405, "GET is not for /v1/confirm"),
    ] {
        let (answered, answer) = served.send(method, path, "");
        assert_eq!(answered, status, "{method} {path}");
        assert_eq!(answer["kind"], "bad-request");
        assert!(answer["what"].as_str().unwrap().contains(expected), "{answer}");
    }
    assert!(served.asked().is_empty());
}

#[test]
fn what_is_no_http_is_not_answered_by_the_control_plane() {
    let served = Served::start();
    let mut stream = UnixStream::connect(&served.socket).unwrap();
    stream.write_all(b"\x16\x03\x01\x02\x00\x01nonsense\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
    assert!(served.asked().is_empty());
}

#[test]
fn clients_that_say_nothing_hold_up_nobody() {
    let served = Served::start();
    let silent: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(&served.socket).unwrap()).collect();
    for mut stream in &silent {
        stream.write_all(b"POST /v1/rules HTTP/1.1\r\nhost: gu").unwrap();
    }
    assert!(served.client().status().is_ok());
}

#[test]
fn an_error_inside_a_request_is_told_and_stays_with_its_daemon() {
    let served = Served::start();
    for _ in 0..2 {
        let failure = served.client().add_rules(&add("panic"), &nobody()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Failed);
        assert!(failure.fix.unwrap().contains("Restart the daemon"));
    }
}

fn attempt(packets: u64) -> Attempt {
    Attempt { packets, time: jiff::Timestamp::now(), ..crate::events::tests::example() }
}

fn packets(line: &Line) -> u64 {
    match line {
        Line::Attempt(attempt) => attempt.packets,
        other => panic!("{other:?}"),
    }
}

#[test]
fn events_without_following_are_those_kept() {
    let served = Served::start();
    served.hub.publish(Attempt { time: jiff::Timestamp::UNIX_EPOCH, ..attempt(1) });
    served.hub.publish(attempt(2));
    let taken = |since| {
        let mut taken = Vec::new();
        let query = EventsQuery { since, ..EventsQuery::default() };
        let result = served.client().events(&query, |line| {
            taken.push(packets(&line));
            ControlFlow::Continue(())
        });
        result.unwrap();
        taken
    };
    assert_eq!(taken(None), [1, 2]);
    assert_eq!(taken(Some(3600)), [2]);
    assert_eq!(taken(Some(u64::MAX)), [1, 2]);
}

#[test]
fn events_are_filtered_by_the_daemon() {
    let served = Served::start();
    let from =
        |source: &str, packets| Attempt { source: source.parse().unwrap(), ..attempt(packets) };
    served.hub.publish(from("192.0.2.1", 1));
    let query = |follow| EventsQuery {
        follow,
        since: Some(60),
        source: Some("198.51.100.0/24".into()),
        port: Some("11434".into()),
        ..EventsQuery::default()
    };
    served.hub.publish(from("198.51.100.1", 2));
    served.hub.publish(Attempt { port: Some(53), ..from("198.51.100.1", 3) });
    let mut taken = Vec::new();
    let result = served.client().events(&query(false), |line| {
        taken.push(packets(&line));
        ControlFlow::Continue(())
    });
    result.unwrap();
    assert_eq!(taken, [2]);

    let (tell, heard) = mpsc::channel();
    let follower = std::thread::spawn({
        let client = served.client();
        move || {
            client.events(&query(true), |line| {
                tell.send(packets(&line)).unwrap();
                ControlFlow::Continue(())
            })
        }
    });
    let patience = Duration::from_secs(20);
    assert_eq!(heard.recv_timeout(patience).unwrap(), 2);
    served.hub.publish(from("192.0.2.1", 4));
    served.hub.publish(from("198.51.100.2", 5));
    assert_eq!(heard.recv_timeout(patience).unwrap(), 5);
    served.stop.send_replace(true);
    follower.join().unwrap().unwrap();
}

#[test]
fn sources_are_asked_of_the_control_plane_word_by_word() {
    let served = Served::start();
    let query = SourcesQuery {
        top: Some(3),
        since: Some(60),
        label: Some("a label&=%2 ü".into()),
        ..SourcesQuery::default()
    };
    assert_eq!(served.client().sources(&query).unwrap().matching, 7);
    assert_eq!(served.asked(), [format!("sources {query:?}")]);
    let wrong = SourcesQuery { port: Some("0".into()), ..SourcesQuery::default() };
    let failure = served.client().sources(&wrong).unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadRequest);
}

#[test]
fn followers_hear_of_attempts_as_they_come_until_the_daemon_ends() {
    let served = Served::start();
    served.hub.publish(attempt(1));
    let (tell, heard) = mpsc::channel();
    let follower = std::thread::spawn({
        let client = served.client();
        move || {
            let query = EventsQuery { follow: true, since: Some(60), ..EventsQuery::default() };
            client.events(&query, |line| {
                tell.send(packets(&line)).unwrap();
                ControlFlow::Continue(())
            })
        }
    });
    let patience = Duration::from_secs(20);
    assert_eq!(heard.recv_timeout(patience).unwrap(), 1);
    served.hub.publish(attempt(2));
    assert_eq!(heard.recv_timeout(patience).unwrap(), 2);
    served.stop.send_replace(true);
    follower.join().unwrap().unwrap();
}

#[test]
fn followers_are_counted_and_never_take_the_last_connection() {
    let served = Served::start();
    let following: Vec<UnixStream> = (0..32)
        .map(|_| {
            let mut stream = UnixStream::connect(&served.socket).unwrap();
            stream
                .write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: guard\r\n\r\n")
                .unwrap();
            stream.read_exact(&mut [0; 15]).unwrap();
            stream
        })
        .collect();
    let (status, answer) = served.send("GET", "/v1/events?follow=true", "");
    assert_eq!(status, 503);
    assert_eq!(answer["kind"], "failed");
    assert!(served.client().status().is_ok());
    drop(following);
    // The server hears of each end by itself.
    while served.asked().len() < 100 {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: guard\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        if answer == *b"HTTP/1.1 200 OK" {
            return;
        }
        assert!(served.client().rules().is_ok());
    }
    panic!("no slot came free");
}

#[test]
fn a_process_that_takes_no_connections_is_there_and_does_not_make_anyone_wait() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guard.sock");
    let hung = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&hung, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&hung, 0).unwrap();
    let _queued = UnixStream::connect(&path).unwrap();
    let client = Client::connect(&path).unwrap().expect("a daemon is there");
    let failure = client.status().unwrap_err();
    assert!(failure.what.contains("can't be opened"), "{}", failure.what);
    assert_eq!(server::bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn the_socket_is_for_root_and_one_group() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&served.socket), 0o660);
    assert_eq!(mode(served.socket.parent().unwrap()), 0o750);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guard.sock");
    drop(server::bind(&socket).unwrap());
    let listener = server::bind(&socket).unwrap();
    let error = server::bind(&socket).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);

    let file = directory.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    assert_eq!(server::bind(&file).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}
