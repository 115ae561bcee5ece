//! Questions to the history. Whoever asks has a connection of its own, which writes nothing, sees one moment, and is not open for
//! long.
//!
//! Sums go over whole hours, the one that a span begins in included as far as its rows were last seen within the span. What came
//! from sources that there was no room for is in the sums by hour, port and altogether, and in none by source.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    fmt::Write,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, ToSql, params_from_iter};

use super::{
    Filter, HourLine, SourceKey, SourceLine, Sources, Totals,
    database::{self, DatabaseError, with_suffix},
    filter::{has_label, is_country},
    fold::{HOUR_MS, Kind, hour_of},
};
use crate::{
    control::Failure,
    events::{Attempt, SourceFacts},
};

/// How long whoever has opened the history may ask. Clients wait for half a minute.
const LONGEST: Duration = Duration::from_secs(25);

/// How often the database engine looks at the clock, in its own steps.
const STEPS: i32 = 10_000;

/// Sources that are summed up at once, by their numbers: what bounds the memory of a question.
const SOURCES_AT_ONCE: i64 = 1 << 20;

/// Questions that sum up sources take turns, so that several take no more memory than one.
static SUMMING: Mutex<()> = Mutex::new(());

/// The history, to ask.
#[derive(Debug)]
pub struct History {
    connection: Connection,
    kinds: HashMap<i64, Kind>,
}

/// One source among all.
struct SourceRow {
    id: i64,
    facts: i64,
    first_ms: i64,
}

/// A source by how much it sent: of two that sent the same, the one heard of first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    packets: u64,
    id: Reverse<i64>,
    attempts: u64,
    bytes: u64,
}

/// Sources by whether they were ever heard of before a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newcomers {
    pub new: u64,
    pub returning: u64,
}

/// What came from sources that have something in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub sources: u64,
    pub totals: Totals,
}

/// An autonomous system, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    pub number: Option<u32>,
    pub name: Option<String>,
}

/// What rows have to be, in SQL, and the values in it.
#[derive(Default)]
struct Condition {
    parts: Vec<String>,
    values: Vec<Box<dyn ToSql>>,
}

impl Condition {
    fn text(&self) -> String {
        if self.parts.is_empty() { "1".to_owned() } else { self.parts.join(" AND ") }
    }

    fn and(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self.values.extend(other.values);
        self
    }
}

/// What the attempts of a row have in common.
type RowKey = (i64, SourceKey, u16, Kind);

impl Group {
    fn add(&mut self, totals: Totals) {
        self.sources += 1;
        self.totals += totals;
    }
}

impl History {
    /// Opens the history in a file; `None` where there is none. Makes nothing, and locks out nobody.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn open(path: &Path) -> Result<Option<Self>, Failure> {
        Self::try_open(path).map_err(|error| {
            Failure::failed(
                format!("the history {} can't be read: {error}", path.display()),
                "Ask as root; a daemon sets aside what is no history, and begins a new one.",
            )
        })
    }

    fn try_open(path: &Path) -> Result<Option<Self>, DatabaseError> {
        if !path.try_exists()? {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        // Where nobody has it open, and nobody has died over it, the file is all there is. SQLite is told so: it would make the two
        // files beside it.
        let is_alone = !with_suffix(path, "-wal").try_exists()?;
        let mut connection = Connection::open_with_flags(uri(path, is_alone), flags)?;
        let opened = Instant::now();
        connection.progress_handler(STEPS, Some(move || opened.elapsed() > LONGEST))?;
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            // Its first transaction is not over yet.
            return Ok(None);
        }
        database::check(&connection)?;
        // All that is asked is answered from one moment.
        connection.execute_batch("BEGIN")?;
        let kinds = database::kinds(&connection)?.into_iter().collect();
        Ok(Some(Self { connection, kinds }))
    }

    /// All that came.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn totals(&self, filter: &Filter) -> Result<Totals, Failure> {
        let mut all = Totals::default();
        for (_, totals) in self.hours(filter)? {
            all += totals;
        }
        Ok(all)
    }

    /// What came in each hour, by when it began. Hours in which nothing came are absent.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn hours(&self, filter: &Filter) -> Result<Vec<(Timestamp, Totals)>, Failure> {
        let groups = self.sums("hour", filter)?;
        let hour = |(hour, totals): (i64, Totals)| Some((began(hour)?, totals));
        Ok(groups.into_iter().filter_map(hour).collect())
    }

    /// What came to each port, most packets first. A port is written as in rules; one that could not be read is `None`.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn ports(&self, filter: &Filter) -> Result<Vec<(Option<String>, Totals)>, Failure> {
        // The port in front of the kind, which tells the protocol.
        let groups = self.sums("(port << 32) + kind", filter)?;
        let mut ports: BTreeMap<Option<String>, Totals> = BTreeMap::new();
        for (number, totals) in groups {
            let port = u16::try_from(number >> 32).unwrap_or_default();
            let port = self.port(port, number & i64::from(u32::MAX));
            *ports.entry(port).or_default() += totals;
        }
        Ok(most_first(ports, |totals| totals.packets))
    }

    /// What came from each country, most packets first; `None` where it is not known.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn countries(&self, filter: &Filter) -> Result<Vec<(Option<String>, Group)>, Failure> {
        self.by_facts(filter, |facts| facts.country)
    }

    /// What came from each autonomous system, by its number and name, most packets first.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn networks(&self, filter: &Filter) -> Result<Vec<(Network, Group)>, Failure> {
        self.by_facts(filter, |facts| Network { number: facts.asn, name: facts.as_name })
    }

    /// How many sources of a span are new, and how many were heard of before it.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn newcomers(&self, filter: &Filter) -> Result<Newcomers, Failure> {
        let since_ms = filter.since.map_or(i64::MIN, Timestamp::as_millisecond);
        let mut newcomers = Newcomers::default();
        self.each_source(filter, |source, _| {
            if source.first_ms >= since_ms {
                newcomers.new += 1;
            } else {
                newcomers.returning += 1;
            }
        })?;
        Ok(newcomers)
    }

    /// So many sources at most, those with the most packets first.
    ///
    /// # Errors
    /// When the history can't be read, or that takes too long.
    pub fn sources(&self, filter: &Filter, most: usize) -> Result<Sources, Failure> {
        let mut answer = Sources::default();
        // The least of them is on top.
        let mut top: BinaryHeap<Reverse<Ranked>> = BinaryHeap::new();
        let others = self.each_source(filter, |source, totals| {
            answer.matching += 1;
            answer.total += totals;
            let Totals { attempts, packets, bytes } = totals;
            top.push(Reverse(Ranked { packets, id: Reverse(source.id), attempts, bytes }));
            if top.len() > most {
                top.pop();
            }
        })?;
        answer.others = others;
        let wanted = self.ports_of(filter, top.iter().map(|Reverse(ranked)| ranked.id.0))?;
        for Reverse(Ranked { packets, id: Reverse(id), attempts, bytes }) in top.into_sorted_vec() {
            let totals = Totals { attempts, packets, bytes };
            let ports = wanted.get(&id).cloned().unwrap_or_default();
            answer.sources.extend(self.source_line(id, totals, ports)?);
        }
        Ok(answer)
    }

    /// The newest rows, oldest first, and how many older ones there are besides. Of each, what `without` holds of the same is taken
    /// off: it is shown by itself.
    ///
    /// # Errors
    /// As [`Self::sources`].
    pub fn lines<'a>(
        &self,
        filter: &Filter,
        without: impl IntoIterator<Item = &'a Attempt>,
        most: usize,
    ) -> Result<(Vec<HourLine>, u64), Failure> {
        let mut singly: HashMap<RowKey, Totals> = HashMap::new();
        for attempt in without {
            let kind = Kind {
                protocol: attempt.protocol.clone(),
                verdict: attempt.verdict.clone(),
                reason: attempt.reason.clone(),
            };
            let port = attempt.port.unwrap_or_default();
            let key = (hour_of(attempt.time), attempt.source.into(), port, kind);
            *singly.entry(key).or_default() +=
                Totals { attempts: 1, packets: attempt.packets, bytes: attempt.bytes };
        }
        let condition = self.condition(filter)?;
        let mut lines = Vec::new();
        let mut left_out = 0;
        self.each_row(
            &format!(
                "SELECT hour, port, kind, row.first_seen, row.last_seen, attempts, packets, bytes, address, \
                 class, country, asn, as_name, labels \
                 FROM row JOIN source ON source.id = row.source JOIN facts ON facts.id = source.facts \
                 WHERE {} ORDER BY hour DESC",
                condition.text()
            ),
            &condition.values,
            |row| {
                if lines.len() >= most {
                    left_out += 1;
                } else if let Some(line) = self.hour_line(row, &singly)? {
                    lines.push(line);
                }
                Ok(())
            },
        )?;
        lines.sort_by(|one, other| {
            (one.hour, one.first_seen, &one.source).cmp(&(
                other.hour,
                other.first_seen,
                &other.source,
            ))
        });
        Ok((lines, left_out))
    }

    fn hour_line(
        &self,
        row: &Row<'_>,
        singly: &HashMap<RowKey, Totals>,
    ) -> rusqlite::Result<Option<HourLine>> {
        let (hour, port): (i64, u16) = (row.get(0)?, row.get(1)?);
        let Some(kind) = self.kinds.get(&row.get(2)?) else { return Ok(None) };
        let Some(source) = SourceKey::from_bytes(row.get_ref(8)?.as_blob()?) else {
            return Ok(None);
        };
        let moment = |offset_ms: i64| {
            Timestamp::from_millisecond(hour.saturating_mul(HOUR_MS).saturating_add(offset_ms)).ok()
        };
        let mut totals = totals(row, 5)?;
        if let Some(others) = singly.get(&(hour, source, port, kind.clone())) {
            totals = totals.without(*others);
            if totals.attempts == 0 {
                return Ok(None);
            }
        }
        let (Some(hour), Some(first_seen), Some(last_seen)) =
            (began(hour), moment(row.get(3)?), moment(row.get(4)?))
        else {
            return Ok(None);
        };
        Ok(Some(HourLine {
            hour,
            first_seen,
            last_seen,
            verdict: kind.verdict.clone(),
            reason: kind.reason.clone(),
            source: source.shown(),
            port: (port != 0).then_some(port),
            protocol: kind.protocol.clone(),
            totals,
            facts: facts(row, 9)?,
        }))
    }

    /// The sums of what a filter admits, by a number that each row has.
    fn sums(&self, number: &str, filter: &Filter) -> Result<Vec<(i64, Totals)>, Failure> {
        let condition = self.condition(filter)?;
        let tables = if filter.is_of_sources() {
            "row JOIN source ON source.id = row.source JOIN facts ON facts.id = source.facts"
        } else {
            "row"
        };
        let text = format!(
            "SELECT {number}, attempts, packets, bytes FROM {tables} WHERE {} ORDER BY hour",
            condition.text()
        );
        let mut sums: BTreeMap<i64, Totals> = BTreeMap::new();
        self.each_row(&text, &condition.values, |row| {
            *sums.entry(row.get(0)?).or_default() += totals(row, 1)?;
            Ok(())
        })?;
        Ok(sums.into_iter().collect())
    }

    fn by_facts<K: Ord>(
        &self,
        filter: &Filter,
        key: impl Fn(SourceFacts) -> K,
    ) -> Result<Vec<(K, Group)>, Failure> {
        let mut by_id: HashMap<i64, Group> = HashMap::new();
        self.each_source(filter, |source, totals| {
            by_id.entry(source.facts).or_default().add(totals);
        })?;
        let all: HashMap<i64, SourceFacts> = self.all_facts()?.into_iter().collect();
        let mut groups: BTreeMap<K, Group> = BTreeMap::new();
        for (id, group) in by_id {
            let facts = all.get(&id).cloned().unwrap_or_default();
            let sum = groups.entry(key(facts)).or_default();
            sum.sources += group.sources;
            sum.totals += group.totals;
        }
        Ok(most_first(groups, |group| group.totals.packets))
    }

    /// Gives each source that a filter admits, and what came from it, to `take`. Returns what came from those that there was no room
    /// for; nothing where the filter asks for certain sources.
    fn each_source(
        &self,
        filter: &Filter,
        mut take: impl FnMut(SourceRow, Totals),
    ) -> Result<Totals, Failure> {
        // Nothing that panics with it leaves anything half done.
        let _turn = SUMMING.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.condition_of_rows(filter);
        let sources = self.condition_of_sources(filter)?;
        let mut others = Totals::default();
        let mut first = 0;
        while let Some(from) = self.next_source(first)? {
            let end = from.saturating_add(SOURCES_AT_ONCE);
            let mut held: Vec<Totals> = Vec::new();
            let place = |id: i64| usize::try_from(id.saturating_sub(from)).ok();
            let of_these = format!(
                "SELECT source, attempts, packets, bytes FROM row WHERE source >= {from} AND source < {end} AND {}",
                rows.text()
            );
            self.each_row(&of_these, &rows.values, |row| {
                let Some(place) = place(row.get(0)?) else { return Ok(()) };
                if held.len() <= place {
                    held.resize(place + 1, Totals::default());
                }
                if let Some(sum) = held.get_mut(place) {
                    *sum += totals(row, 1)?;
                }
                Ok(())
            })?;
            let these = format!(
                "SELECT id, facts, first_seen FROM source WHERE id >= {from} AND id < {end} AND {} ORDER BY id",
                sources.text()
            );
            self.each_row(&these, &sources.values, |row| {
                let source =
                    SourceRow { id: row.get(0)?, facts: row.get(1)?, first_ms: row.get(2)? };
                let totals = place(source.id).and_then(|place| held.get(place).copied());
                match totals {
                    Some(totals) if source.id == 0 => others = totals,
                    Some(totals) if totals.attempts > 0 => take(source, totals),
                    _ => {}
                }
                Ok(())
            })?;
            first = end;
        }
        Ok(others)
    }

    /// The first source with this number or a larger one.
    fn next_source(&self, first: i64) -> Result<Option<i64>, Failure> {
        self.connection
            .query_row("SELECT id FROM source WHERE id >= ?1 ORDER BY id LIMIT 1", [first], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|error| unread(&error))
    }

    /// The ports that each of some sources has tried, in their order.
    fn ports_of(
        &self,
        filter: &Filter,
        ids: impl Iterator<Item = i64>,
    ) -> Result<HashMap<i64, Vec<String>>, Failure> {
        let is_one = Condition {
            parts: vec!["source IN (SELECT value FROM json_each(?))".to_owned()],
            values: vec![json_list(ids)],
        };
        let condition = is_one.and(self.condition_of_rows(filter));
        let mut found: HashMap<i64, BTreeSet<(u16, i64)>> = HashMap::new();
        // Each hour has its sources in order: so they are looked up in each, and the others not read.
        let text = format!(
            "WITH RECURSIVE hours (hour) AS (SELECT min(hour) FROM row UNION ALL \
             SELECT (SELECT min(hour) FROM row WHERE row.hour > hours.hour) FROM hours WHERE hour IS NOT NULL) \
             SELECT source, port, kind FROM hours CROSS JOIN row ON row.hour = hours.hour \
             WHERE {}",
            condition.text()
        );
        self.each_row(&text, &condition.values, |row| {
            found.entry(row.get(0)?).or_default().insert((row.get(1)?, row.get(2)?));
            Ok(())
        })?;
        let shown = |(id, ports): (i64, BTreeSet<(u16, i64)>)| {
            let mut shown: Vec<String> =
                ports.into_iter().filter_map(|(port, kind)| self.port(port, kind)).collect();
            shown.dedup();
            (id, shown)
        };
        Ok(found.into_iter().map(shown).collect())
    }

    fn source_line(
        &self,
        id: i64,
        totals: Totals,
        ports: Vec<String>,
    ) -> Result<Option<SourceLine>, Failure> {
        let text = "SELECT address, first_seen, last_seen, class, country, asn, as_name, labels \
                    FROM source JOIN facts ON facts.id = source.facts WHERE source.id = ?1";
        let moment = |ms| Timestamp::from_millisecond(ms).ok();
        let line = |row: &Row<'_>| {
            let source = SourceKey::from_bytes(row.get_ref(0)?.as_blob()?);
            let (first, last) = (moment(row.get(1)?), moment(row.get(2)?));
            let facts = facts(row, 3)?;
            Ok(source.and_then(SourceKey::shown).zip(first.zip(last)).map(
                |(source, (first_seen, last_seen))| SourceLine {
                    source,
                    first_seen,
                    last_seen,
                    totals,
                    ports,
                    facts,
                },
            ))
        };
        let found = self.connection.query_row(text, [id], line).optional();
        found.map(Option::flatten).map_err(|error| unread(&error))
    }

    /// As it is written in rules.
    fn port(&self, number: u16, kind: i64) -> Option<String> {
        let protocol = self.kinds.get(&kind).map(|kind| kind.protocol.as_str());
        match (number, protocol) {
            (0, _) => None,
            (_, Some("tcp") | None) => Some(number.to_string()),
            (_, Some(protocol)) => Some(format!("{protocol}/{number}")),
        }
    }

    fn condition(&self, filter: &Filter) -> Result<Condition, Failure> {
        let rows = self.condition_of_rows(filter);
        Ok(if filter.is_of_sources() { rows.and(self.condition_of_sources(filter)?) } else { rows })
    }

    fn condition_of_rows(&self, filter: &Filter) -> Condition {
        let mut condition = Condition::default();
        if let Some(since) = filter.since {
            let hour = hour_of(since);
            let offset_ms = since.as_millisecond() - hour.saturating_mul(HOUR_MS);
            condition.parts.push("hour >= ? AND (hour > ? OR row.last_seen >= ?)".to_owned());
            for value in [hour, hour, offset_ms] {
                condition.values.push(Box::new(value));
            }
        }
        if let Some(port) = filter.port {
            let protocol = port.protocol.name();
            let is_of = |(_, kind): &(&i64, &Kind)| kind.protocol == protocol;
            let kinds = self.kinds.iter().filter(is_of).map(|(id, _)| *id);
            condition
                .parts
                .push("port = ? AND kind IN (SELECT value FROM json_each(?))".to_owned());
            condition.values.push(Box::new(port.number));
            condition.values.push(json_list(kinds));
        }
        condition
    }

    /// The others are wanted where no certain sources are.
    fn condition_of_sources(&self, filter: &Filter) -> Result<Condition, Failure> {
        let mut condition = Condition::default();
        if let Some((first, last)) = filter.source_range() {
            // Addresses of a family are of one length.
            let bytes = first.to_bytes().len();
            condition.parts.push(format!("length(address) = {bytes} AND address BETWEEN ? AND ?"));
            condition.values.push(Box::new(first.to_bytes()));
            condition.values.push(Box::new(last.to_bytes()));
        }
        if filter.label.is_some() || filter.country.is_some() {
            let is_wanted = |(_, facts): &&(i64, SourceFacts)| {
                let country = facts.country.as_deref();
                filter.label.as_ref().is_none_or(|label| has_label(&facts.labels, label))
                    && filter.country.is_none_or(|wanted| is_country(country, wanted))
            };
            let all = self.all_facts()?;
            let ids = all.iter().filter(is_wanted).map(|(id, _)| *id);
            condition.parts.push("source.facts IN (SELECT value FROM json_each(?))".to_owned());
            condition.values.push(json_list(ids));
        }
        Ok(condition)
    }

    fn all_facts(&self) -> Result<Vec<(i64, SourceFacts)>, Failure> {
        let mut all = Vec::new();
        let text = "SELECT id, class, country, asn, as_name, labels FROM facts";
        self.each_row(text, &[], |row| {
            all.push((row.get(0)?, facts(row, 1)?));
            Ok(())
        })?;
        Ok(all)
    }

    /// Gives each row of an answer to `take`.
    fn each_row(
        &self,
        text: &str,
        values: &[Box<dyn ToSql>],
        mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Failure> {
        let mut walk = || {
            let mut statement = self.connection.prepare_cached(text)?;
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                take(row)?;
            }
            Ok(())
        };
        walk().map_err(|error: rusqlite::Error| unread(&error))
    }
}

impl Filter {
    /// Whether it asks for certain sources.
    fn is_of_sources(&self) -> bool {
        self.source.is_some() || self.label.is_some() || self.country.is_some()
    }
}

/// Where the database engine finds the file (<https://sqlite.org/uri.html>). One that is `alone` does not change while it is read.
fn uri(path: &Path, is_alone: bool) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            _ => {
                // Nothing goes wrong that writes to memory.
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    if is_alone {
        uri.push_str("?immutable=1");
    }
    uri
}

fn unread(error: &rusqlite::Error) -> Failure {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
        return Failure::failed(
            format!("the history was not read within {} seconds", LONGEST.as_secs()),
            "Ask for a shorter span, such as --since 1d.",
        );
    }
    Failure::failed(
        format!("the history can't be read: {error}"),
        "Ask again; a daemon sets a damaged history aside, and begins a new one.",
    )
}

/// When an hour began.
fn began(hour: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(hour.saturating_mul(HOUR_MS)).ok()
}

fn totals(row: &Row<'_>, first: usize) -> rusqlite::Result<Totals> {
    let number = |place| row.get::<_, i64>(place).map(|number| u64::try_from(number).unwrap_or(0));
    Ok(Totals { attempts: number(first)?, packets: number(first + 1)?, bytes: number(first + 2)? })
}

fn facts(row: &Row<'_>, first: usize) -> rusqlite::Result<SourceFacts> {
    let text =
        |place| row.get::<_, String>(place).map(|text| Some(text).filter(|text| !text.is_empty()));
    let asn: u32 = row.get(first + 2)?;
    let labels: String = row.get(first + 4)?;
    Ok(SourceFacts {
        class: text(first)?,
        country: text(first + 1)?,
        city: None,
        asn: (asn != 0).then_some(asn),
        as_name: text(first + 3)?,
        labels: serde_json::from_str(&labels).unwrap_or_default(),
    })
}

/// Numbers as one value of a statement, whose text has a bound.
fn json_list(numbers: impl Iterator<Item = i64>) -> Box<dyn ToSql> {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    Box::new(format!("[{}]", numbers.join(",")))
}

fn most_first<K: Ord, T>(groups: BTreeMap<K, T>, packets: impl Fn(&T) -> u64) -> Vec<(K, T)> {
    let mut groups: Vec<(K, T)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| Reverse(packets(group)));
    groups
}
