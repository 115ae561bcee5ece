//! The history as a whole: what is written is read again.

use std::{
    collections::BTreeMap, fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    database::{Database, MOST_ROWS_OF_AN_HOUR, set_aside},
    fold::{Fold, MOST_ROWS},
    query::History,
    *,
};
use crate::{
    control::SinkStatus,
    events::{Attempt, Hub, OpenSink},
};

/// The hour of the documentation.
pub(crate) fn example_hour() -> HourLine {
    HourLine {
        hour: "2026-11-25T01:00:00Z".parse().unwrap(),
        first_seen: "2026-11-25T01:02:03.123Z".parse().unwrap(),
        last_seen: "2026-11-25T01:59:00Z".parse().unwrap(),
        verdict: "drop".into(),
        reason: "no-rule".into(),
        source: Some("203.0.113.9".into()),
        port: Some(11434),
        protocol: "tcp".into(),
        totals: Totals { attempts: 4, packets: 30, bytes: 1_800 },
        facts: SourceFacts::default(),
    }
}

const HOUR: i64 = 3_600;

/// An hour's beginning.
const BEGAN: i64 = 1_800_000_000;

fn settings(directory: &TempDir) -> Settings {
    Settings {
        path: directory.path().join("kept/history.db"),
        keep: Duration::from_hours(24),
        max_bytes: 1 << 30,
    }
}

/// An attempt of this source, so many seconds after a certain hour began.
fn attempt(source: &str, second: i64, packets: u64) -> Attempt {
    Attempt {
        time: Timestamp::from_second(BEGAN + second).unwrap(),
        source: source.parse().unwrap(),
        packets,
        bytes: packets * 60,
        ..crate::events::tests::example()
    }
}

fn fold(attempts: &[Attempt]) -> Fold {
    let mut fold = Fold::default();
    for attempt in attempts {
        fold.add(attempt);
    }
    fold
}

/// A database that holds these.
fn database(attempts: &[Attempt]) -> (TempDir, Database) {
    let directory = tempfile::tempdir().unwrap();
    let mut database = Database::open(&settings(&directory)).unwrap();
    database.write(&fold(attempts)).unwrap();
    (directory, database)
}

fn history(directory: &TempDir) -> History {
    History::open(&settings(directory).path).unwrap().expect("it is there")
}

fn sum(attempts: &[Attempt]) -> Totals {
    let mut sum = Totals::default();
    for Attempt { packets, bytes, .. } in attempts {
        sum += Totals { attempts: 1, packets: *packets, bytes: *bytes };
    }
    sum
}

fn all() -> Filter {
    Filter::default()
}

fn asked(query: SourcesQuery) -> Filter {
    query.filter(Timestamp::from_second(BEGAN + 10 * HOUR).unwrap()).unwrap()
}

fn shown(sources: &Sources) -> Vec<(&str, u64)> {
    sources.sources.iter().map(|it| (it.source.as_str(), it.totals.packets)).collect()
}

/// Of several sources, ports and hours.
fn several() -> Vec<Attempt> {
    let facts = SourceFacts {
        class: Some("public".into()),
        country: Some("FR".into()),
        asn: Some(64_500),
        as_name: Some("EXAMPLE".into()),
        labels: vec!["censys".into(), "mass-scan".into()],
        ..SourceFacts::default()
    };
    let dns = |attempt| Attempt { port: Some(53), protocol: "udp".into(), ..attempt };
    vec![
        attempt("203.0.113.9", 10, 3),
        attempt("203.0.113.9", 20, 4),
        dns(attempt("203.0.113.9", HOUR + 5, 1)),
        Attempt { facts: facts.clone(), ..attempt("203.0.113.10", HOUR + 1, 5) },
        Attempt { facts, ..attempt("2001:db8:1:2::1", 2 * HOUR, 2) },
        attempt("2001:db8:1:2:ffff::2", 2 * HOUR + 1, 9),
        attempt("2001:db8:1:3::1", 2 * HOUR + 2, 1),
        Attempt { port: None, ..attempt("198.51.100.1", 9 * HOUR, 1) },
    ]
}

#[test]
fn who_sent_the_most_is_known_with_all_that_is_known_of_them() {
    let (directory, _database) = database(&several());
    let sources = history(&directory).sources(&all(), 20).unwrap();
    assert_eq!(
        shown(&sources),
        [
            ("2001:db8:1:2::/64", 11),
            ("203.0.113.9", 8),
            ("203.0.113.10", 5),
            ("2001:db8:1:3::/64", 1),
            ("198.51.100.1", 1),
        ]
    );
    assert_eq!((sources.matching, sources.total), (5, sum(&several())));
    assert_eq!(sources.others, Totals::default());
    let [six, nine, ..] = &sources.sources[..] else { panic!("{sources:?}") };
    assert_eq!(six.facts.labels, ["censys", "mass-scan"], "what is not known later stays known");
    assert_eq!((six.facts.asn, six.facts.country.as_deref()), (Some(64_500), Some("FR")));
    assert_eq!(nine.ports, ["53", "11434"].map(|port| port.replace("53", "udp/53")));
    assert_eq!(nine.totals, Totals { attempts: 3, packets: 8, bytes: 480 });
    assert_eq!(nine.first_seen.as_second(), BEGAN + 10);
    assert_eq!(nine.last_seen.as_second(), BEGAN + HOUR + 5);
    let top = history(&directory).sources(&all(), 2).unwrap();
    assert_eq!(shown(&top), [("2001:db8:1:2::/64", 11), ("203.0.113.9", 8)]);
    assert_eq!((top.matching, top.total), (5, sum(&several())));
}

#[test]
fn filters_admit_the_same_of_what_was_and_what_comes() {
    let (directory, _database) = database(&several());
    let query = SourcesQuery::default;
    let text = |text: &str| Some(text.to_owned());
    for (query, packets) in [
        (query(), 26),
        (SourcesQuery { source: text("203.0.113.9"), ..query() }, 8),
        (SourcesQuery { source: text("203.0.113.0/24"), ..query() }, 13),
        (SourcesQuery { source: text("2001:db8::/32"), ..query() }, 12),
        (SourcesQuery { source: text("2001:db8:1:2::/64"), ..query() }, 11),
        (SourcesQuery { source: text("0.0.0.0/0"), ..query() }, 14),
        (SourcesQuery { port: text("11434"), ..query() }, 24),
        (SourcesQuery { port: text("53"), ..query() }, 0),
        (SourcesQuery { port: text("udp/53"), ..query() }, 1),
        (SourcesQuery { since: Some(9 * 3_600), ..query() }, 19),
        (SourcesQuery { since: Some(8 * 3_600), ..query() }, 13),
        (SourcesQuery { since: Some(1), ..query() }, 0),
        (SourcesQuery { source: text("203.0.113.0/24"), port: text("udp/53"), ..query() }, 1),
    ] {
        let filter = asked(query);
        let admitted = |attempts: &[Attempt]| -> u64 {
            attempts.iter().filter(|it| filter.admits(it)).map(|it| it.packets).sum()
        };
        assert_eq!(admitted(&several()), packets, "{filter:?}");
        assert_eq!(history(&directory).totals(&filter).unwrap().packets, packets, "{filter:?}");
        let sources = history(&directory).sources(&filter, 20).unwrap();
        assert_eq!(sources.total.packets, packets, "{filter:?}");
        let (lines, _) = history(&directory).lines(&filter, [], 100).unwrap();
        let shown: u64 = lines.iter().map(|line| line.totals.packets).sum();
        assert_eq!(shown, packets, "{filter:?}");
    }
    // What is known of a source is known of all that came from it.
    for query in [
        SourcesQuery { label: text("Censys"), ..query() },
        SourcesQuery { country: text("fr"), ..query() },
    ] {
        let filter = asked(query);
        let sources = history(&directory).sources(&filter, 20).unwrap();
        assert_eq!(shown(&sources), [("2001:db8:1:2::/64", 11), ("203.0.113.10", 5)]);
        assert_eq!(history(&directory).totals(&filter).unwrap().packets, 16);
        assert_eq!(several().iter().filter(|it| filter.admits(it)).count(), 2);
    }
    let nobody = asked(SourcesQuery { label: text("nobody"), ..query() });
    assert_eq!(history(&directory).sources(&nobody, 20).unwrap(), Sources::default());
}

#[test]
fn words_that_are_not_well_formed_are_told_from_others() {
    let query = SourcesQuery::default;
    let text = |text: &str| Some(text.to_owned());
    for (query, what) in [
        (SourcesQuery { source: text("lan"), ..query() }, "\"lan\" is not a source"),
        (SourcesQuery { source: text("1.2.3.4/99"), ..query() }, "no prefix length"),
        (SourcesQuery { port: text("x"), ..query() }, "\"x\" is not a port"),
        (SourcesQuery { country: text("FRA"), ..query() }, "\"FRA\" is not a country"),
        (SourcesQuery { label: text(""), ..query() }, "a label is empty"),
    ] {
        let failure = query.filter(Timestamp::now()).unwrap_err();
        assert!(failure.what.contains(what), "{failure:?}");
        assert!(failure.fix.is_some());
    }
    for top in [0, 10_001] {
        SourcesQuery { top: Some(top), ..query() }.most().unwrap_err();
    }
    assert_eq!(query().most().unwrap(), 20);
}

#[test]
fn sums_are_had_by_hour_port_country_and_network() {
    let (directory, _database) = database(&several());
    let history = history(&directory);
    let hours = history.hours(&all()).unwrap();
    let began = |(time, totals): &(Timestamp, Totals)| (time.as_second() - BEGAN, totals.packets);
    assert_eq!(
        hours.iter().map(began).collect::<Vec<_>>(),
        [(0, 7), (HOUR, 6), (2 * HOUR, 12), (9 * HOUR, 1)]
    );
    assert_eq!(history.totals(&all()).unwrap(), sum(&several()));
    let ports = history.ports(&all()).unwrap();
    let ports: Vec<_> = ports.iter().map(|(port, it)| (port.as_deref(), it.packets)).collect();
    assert_eq!(ports, [(Some("11434"), 24), (None, 1), (Some("udp/53"), 1)]);
    let countries = history.countries(&all()).unwrap();
    let countries: Vec<_> = countries
        .iter()
        .map(|(country, group)| (country.as_deref(), group.sources, group.totals.packets))
        .collect();
    assert_eq!(countries, [(Some("FR"), 2, 16), (None, 3, 10)]);
    let networks = history.networks(&all()).unwrap();
    assert_eq!(
        networks.first().unwrap().0,
        query::Network { number: Some(64_500), name: Some("EXAMPLE".to_owned()) }
    );
    // The newest two of five were never heard of more than eight hours ago.
    let since = Timestamp::from_second(BEGAN + 2 * HOUR).ok();
    let newcomers = history.newcomers(&Filter { since, ..all() }).unwrap();
    assert_eq!(newcomers, query::Newcomers { new: 3, returning: 0 });
    let since = Timestamp::from_second(BEGAN + HOUR).ok();
    let newcomers = history.newcomers(&Filter { since, ..all() }).unwrap();
    assert_eq!(newcomers, query::Newcomers { new: 4, returning: 1 });
}

#[test]
fn lines_leave_out_what_is_shown_singly_and_say_how_many_there_are_more() {
    let (directory, _database) = database(&several());
    let history = history(&directory);
    let (lines, left_out) = history.lines(&all(), [], 100).unwrap();
    assert_eq!((lines.len(), left_out), (6, 0));
    let first = lines.first().unwrap();
    assert_eq!((first.source.as_deref(), first.port), (Some("203.0.113.9"), Some(11434)));
    assert_eq!(first.totals, Totals { attempts: 2, packets: 7, bytes: 420 });
    assert_eq!(first.hour.as_second(), BEGAN);
    assert_eq!(first.last_seen.as_second(), BEGAN + 20);
    let last = lines.last().unwrap();
    assert_eq!((last.source.as_deref(), last.port), (Some("198.51.100.1"), None));

    let (newest, left_out) = history.lines(&all(), [], 2).unwrap();
    assert_eq!((newest.len(), left_out), (2, 4));
    assert_eq!(newest.last(), lines.last());

    // Those of the backlog are shown by themselves.
    let several = several();
    let (rest, _) = history.lines(&all(), &several[1..], 100).unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest.first().unwrap().totals, sum(&several[..1]));
}

#[test]
fn what_finds_no_room_is_counted_with_the_others() {
    let mut fold = Fold::default();
    let attempts: Vec<Attempt> = (0..MOST_ROWS as u32 + 100)
        .map(|number| attempt(&Ipv4Addr::from_bits(number).to_string(), 0, 2))
        .collect();
    for attempt in &attempts {
        fold.add(attempt);
    }
    assert_eq!(fold.rows.len(), MOST_ROWS + 1);
    assert_eq!((fold.of_others, fold.left_out), (100, 0));
    assert_eq!(fold.attempts(), attempts.len() as u64);

    let directory = tempfile::tempdir().unwrap();
    let mut database = Database::open(&settings(&directory)).unwrap();
    assert_eq!(database.write(&fold).unwrap(), 0);
    let sources = history(&directory).sources(&all(), 1).unwrap();
    assert_eq!(sources.matching, MOST_ROWS as u64);
    assert_eq!(sources.others, Totals { attempts: 100, packets: 200, bytes: 12_000 });
    assert_eq!(history(&directory).totals(&all()).unwrap(), sum(&attempts));
    let (lines, _) = history(&directory).lines(&all(), [], 10_000).unwrap();
    assert_eq!(lines.iter().filter(|line| line.source.is_none()).count(), 1);
}

#[test]
fn an_hour_has_only_so_many_rows_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut database = Database::open(&settings(&directory)).unwrap();
    let mut sent = 0;
    let mut flood = |database: &mut Database, sources: usize| {
        let mut of_others = 0;
        for chunk in (sent..sent + sources).collect::<Vec<_>>().chunks(MOST_ROWS) {
            let source = |number: &usize| Ipv4Addr::from_bits(*number as u32).to_string();
            let attempts: Vec<_> = chunk.iter().map(|it| attempt(&source(it), 0, 1)).collect();
            of_others += database.write(&fold(&attempts)).unwrap();
        }
        sent += sources;
        of_others
    };
    assert_eq!(flood(&mut database, MOST_ROWS_OF_AN_HOUR), 0);
    assert_eq!(flood(&mut database, 10), 10);
    drop(database);
    let mut database = Database::open(&settings(&directory)).unwrap();
    assert_eq!(flood(&mut database, 10), 10);
    assert_eq!(database.rows(), MOST_ROWS_OF_AN_HOUR as u64 + 1);
    // Those that have a row go on in it, and the next hour has room.
    let known = [attempt("0.0.0.1", 1, 1), attempt("9.9.9.9", HOUR, 1)];
    assert_eq!(database.write(&fold(&known)).unwrap(), 0);
    assert_eq!(history(&directory).totals(&all()).unwrap().attempts, sent as u64 + 2);
}

#[test]
fn what_is_too_old_is_removed_with_all_that_is_known_of_it() {
    let (directory, mut database) = database(&several());
    let now = |hours: i64| Timestamp::from_second(BEGAN + hours * HOUR).unwrap();
    database.prune(now(24)).unwrap();
    assert_eq!(history(&directory).totals(&all()).unwrap(), sum(&several()));
    database.prune(now(26)).unwrap();
    let left = history(&directory).sources(&all(), 20).unwrap();
    assert_eq!(left.total, sum(&several()[4..]));
    assert_eq!(left.matching, 3);
    assert_eq!(database.rows(), 3);
    assert_eq!(database.oldest().unwrap(), Some(now(2)));
    database.prune(now(1_000)).unwrap();
    assert_eq!(history(&directory).sources(&all(), 20).unwrap(), Sources::default());
    assert_eq!((database.rows(), database.oldest().unwrap()), (0, None));
    database.write(&fold(&several())).unwrap();
    assert_eq!(history(&directory).totals(&all()).unwrap(), sum(&several()));
}

#[test]
fn a_file_that_is_too_large_loses_its_oldest_hours_and_gives_their_room_back() {
    let directory = tempfile::tempdir().unwrap();
    let keep = Duration::from_hours(10_000);
    let settings = Settings { max_bytes: 1 << 20, keep, ..settings(&directory) };
    let mut database = Database::open(&settings).unwrap();
    for hour in 0..40 {
        let source = |number: u32| Ipv4Addr::from_bits((hour << 16) | number).to_string();
        let attempts: Vec<_> =
            (0..1_000).map(|it| attempt(&source(it), i64::from(hour) * HOUR, 1)).collect();
        database.write(&fold(&attempts)).unwrap();
    }
    let before = database.bytes().unwrap();
    assert!(before > 2 << 20, "{before}");
    database.prune(Timestamp::from_second(BEGAN + 40 * HOUR).unwrap()).unwrap();
    let after = database.bytes().unwrap();
    assert!(after <= 1 << 20, "{after} of {before}");
    let hours = history(&directory).hours(&all()).unwrap();
    assert!(hours.len() > 5, "{}", hours.len());
    assert_eq!(hours.last().unwrap().0.as_second(), BEGAN + 39 * HOUR);
}

#[test]
fn whoever_only_asks_makes_no_file_and_what_is_no_history_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = settings(&directory).path;
    assert!(History::open(&path).unwrap().is_none());
    assert!(!path.exists() && !path.parent().unwrap().exists());
    let mut database = Database::open(&settings(&directory)).unwrap();
    database.write(&fold(&several())).unwrap();
    drop(database);
    let names = || {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["history.db"], "closed, it is one file");
    assert_eq!(history(&directory).totals(&all()).unwrap(), sum(&several()));
    assert_eq!(names(), ["history.db"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    fs::write(&path, "something else, which is long enough to be looked at as a whole").unwrap();
    let failure = History::open(&path).unwrap_err();
    assert!(failure.what.contains("history.db can't be read"), "{failure:?}");
    // One that was made and not yet written to.
    fs::write(&path, "").unwrap();
    assert!(History::open(&path).unwrap().is_none());
}

fn sink(hub: &Hub) -> OpenSink<'_> {
    hub.open_sink("history")
}

/// Has a writer take these, and end.
fn write(settings: &Settings, attempts: &[Attempt]) -> (HistoryStatus, SinkStatus) {
    let hub = Arc::new(Hub::new());
    let sink = sink(&hub);
    let writer = Writer::start(settings.clone(), Arc::clone(&hub), sink.share()).unwrap();
    let attempts: Vec<_> = attempts.iter().cloned().map(Arc::new).collect();
    writer.add(&attempts);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(writer.close());
    (hub.history().unwrap(), sink.state().status())
}

/// Attempts of now: a writer removes what is old.
fn recent() -> Vec<Attempt> {
    let time = Timestamp::now();
    several().into_iter().map(|attempt| Attempt { time, ..attempt }).collect()
}

#[test]
fn what_a_writer_was_given_is_written_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let (status, sink) = write(&settings(&directory), &recent());
    assert_eq!((sink.taken, sink.left_out, sink.error), (8, 0, None));
    assert_eq!((status.error, status.set_aside), (None, None));
    assert_eq!(status.rows, 6);
    assert!(status.bytes > 0 && status.oldest.is_some());
    write(&settings(&directory), &recent());
    let mut twice = sum(&several());
    twice += sum(&several());
    assert_eq!(history(&directory).totals(&all()).unwrap(), twice);
}

type Spoil = fn(&Path);

#[test]
fn what_is_no_history_of_this_version_is_set_aside_and_a_new_one_begun() {
    let newer = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
    };
    let foreign = |path: &Path| {
        fs::remove_file(path).unwrap();
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
    };
    let torn = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let zeros = vec![0; bytes.len() - 4_096];
        fs::write(path, [&bytes[..4_096], &zeros].concat()).unwrap();
    };
    let no_database = |path: &Path| fs::write(path, [7; 9_000]).unwrap();
    let cases: [(Spoil, &str); 4] = [
        (newer, "version 99"),
        (foreign, "another program"),
        (torn, "malformed"),
        (no_database, "damaged"),
    ];
    for (spoil, why) in cases {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        write(&settings, &recent());
        spoil(&settings.path);
        let spoilt = fs::read(&settings.path).unwrap();
        let (status, sink) = write(&settings, &recent()[..2]);
        assert_eq!((sink.taken, status.error), (2, None), "{why}");
        let said = status.set_aside.expect("it is said");
        assert!(said.contains(why), "{said}");
        assert_eq!(history(&directory).totals(&all()).unwrap().attempts, 2);
        let entries = fs::read_dir(settings.path.parent().unwrap()).unwrap().flatten();
        let aside = entries.map(|entry| entry.path()).find(|it| it != &settings.path).unwrap();
        assert!(said.contains(&aside.display().to_string()), "{said}");
        assert_eq!(fs::read(aside).unwrap().len(), spoilt.len(), "{why}");
    }
}

#[test]
fn only_so_much_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory);
    fs::create_dir_all(settings.path.parent().unwrap()).unwrap();
    for second in 0..3 {
        fs::write(&settings.path, [7; 9_000]).unwrap();
        set_aside(&settings.path, Timestamp::from_second(second).unwrap()).unwrap();
    }
    fs::write(&settings.path, [7; 9_000]).unwrap();
    let (status, sink) = write(&settings, &recent());
    let error = status.error.unwrap();
    assert!(error.contains("3 files are set aside in"), "{error}");
    assert_eq!((sink.taken, sink.left_out), (0, 8), "what is lost at the end is counted");
    assert_eq!(fs::read(&settings.path).unwrap(), [7; 9_000]);
}

#[test]
fn what_can_t_be_written_is_said_and_kept_until_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory);
    // In the way of its directory.
    let parent = settings.path.parent().unwrap();
    fs::write(parent, "").unwrap();
    let hub = Arc::new(Hub::new());
    let sink = sink(&hub);
    let writer = Writer::start(settings.clone(), Arc::clone(&hub), sink.share()).unwrap();
    let attempts: Vec<_> = recent().into_iter().map(Arc::new).collect();
    writer.add(&attempts);
    while sink.state().status().error.is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = hub.history().unwrap().error.unwrap();
    assert!(error.contains("kept/history.db can't be written"), "{error}");
    fs::remove_file(parent).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(writer.close());
    let SinkStatus { taken, left_out, error, .. } = sink.state().status();
    assert_eq!((taken, left_out, error), (8, 0, None));
    assert_eq!(history(&directory).totals(&all()).unwrap(), sum(&several()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn totals_are_the_sum_of_all_attempts_whatever_the_order_and_the_writes(
        attempts in prop::collection::vec((0_u32..6, 0_i64..6 * HOUR, 1_u64..100, any::<bool>()), 1..80),
        writes in prop::collection::vec(1_usize..20, 1..10),
        fails in any::<bool>(),
    ) {
        let attempts: Vec<Attempt> = attempts
            .into_iter()
            .map(|(source, second, packets, is_denied)| {
                let source = match source % 2 {
                    0 => Ipv4Addr::from_bits(source).to_string(),
                    _ => format!("2001:db8:0:{source}::{packets}"),
                };
                let reason = if is_denied { "denied" } else { "no-rule" };
                Attempt { reason: reason.into(), ..attempt(&source, second, packets) }
            })
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let mut database = Database::open(&settings(&directory)).unwrap();
        let mut pending = Fold::default();
        let mut rest = &attempts[..];
        for many in writes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*many).min(rest.len()));
            for attempt in now {
                pending.add(attempt);
            }
            let taken = pending.take();
            if fails && many % 3 == 0 {
                pending.put_back(taken);
            } else {
                database.write(&taken).unwrap();
            }
            rest = later;
        }
        database.write(&pending.take()).unwrap();

        let history = history(&directory);
        prop_assert_eq!(history.totals(&all()).unwrap(), sum(&attempts));
        let mut by_source: BTreeMap<SourceKey, Totals> = BTreeMap::new();
        let mut span: BTreeMap<SourceKey, (Timestamp, Timestamp)> = BTreeMap::new();
        for attempt in &attempts {
            let key = SourceKey::from(attempt.source);
            *by_source.entry(key).or_default() += sum(std::slice::from_ref(attempt));
            let (first, last) = span.entry(key).or_insert((attempt.time, attempt.time));
            *first = (*first).min(attempt.time);
            *last = (*last).max(attempt.time);
        }
        let sources = history.sources(&all(), 100).unwrap();
        prop_assert_eq!(sources.sources.len(), by_source.len());
        for (key, totals) in by_source {
            let name = key.shown();
            let line = sources.sources.iter().find(|line| Some(&line.source) == name.as_ref());
            let line = line.expect("it is there");
            prop_assert_eq!(line.totals, totals);
            prop_assert_eq!((line.first_seen, line.last_seen), span[&key]);
        }
        prop_assert_eq!(fold(&attempts).attempts(), attempts.len() as u64);
    }
}
