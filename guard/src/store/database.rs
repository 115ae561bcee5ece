//! The database: its tables, and the one connection that writes to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use super::{
    Settings, SourceKey,
    fold::{Fold, HOUR_MS, Key, Kind, Row, hour_of},
};
use crate::{bounded_file, events::SourceFacts, history::bounded};

/// Whoever may read the machine's logs reads it by its group.
const MODE: u32 = 0o640;

/// Letters of guard's, by which a file of its own is known.
const APPLICATION_ID: i64 = 0x4752_4468;

/// The newest layout of the tables that is known.
const VERSION: i64 = 1;

/// The most rows of an hour, those of the others not counted: what fills them with forged sources takes no more room than this.
pub const MOST_ROWS_OF_AN_HOUR: usize = 50_000;

/// The hours of which is remembered what rows there are: attempts come a little out of order.
const HOURS_REMEMBERED: usize = 2;

/// Files that were set aside and are kept. With more, somebody has to look.
const MOST_ASIDE: usize = 3;

/// The most labels of one source.
const MOST_LABELS: usize = 16;

/// How much of the oldest is removed at once where the file is too large: one part in so many.
const PRUNED_PART: i64 = 20;

/// Rounds of that in a row.
const PRUNING_ROUNDS: usize = 20;

/// How long is waited where another process holds the file.
const BUSY: Duration = Duration::from_secs(2);

/// The rows stand in the order of their hours, so that an hour is written to and removed in one place, and whoever asks for a span
/// reads nothing else. Times are in milliseconds: a source's since 1970, a row's since its hour began. Source 0 stands for all
/// that there was no room for, facts 0 for knowing nothing.
const TABLES: &str = "
CREATE TABLE facts (
    id INTEGER PRIMARY KEY,
    class TEXT NOT NULL, country TEXT NOT NULL, asn INTEGER NOT NULL, as_name TEXT NOT NULL, labels TEXT NOT NULL,
    UNIQUE (class, country, asn, as_name, labels)
);
CREATE TABLE source (
    id INTEGER PRIMARY KEY,
    address BLOB NOT NULL UNIQUE,
    facts INTEGER NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL
);
CREATE TABLE kind (
    id INTEGER PRIMARY KEY,
    protocol TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE row (
    hour INTEGER NOT NULL, source INTEGER NOT NULL, port INTEGER NOT NULL, kind INTEGER NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    attempts INTEGER NOT NULL, packets INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (hour, source, port, kind)
) WITHOUT ROWID;
INSERT INTO facts VALUES (0, '', '', 0, '', '[]');
INSERT INTO source VALUES (0, x'', 0, 0, 0);
";

/// Sums stop at the largest number that there is.
const ADD_ROW: &str = "
INSERT INTO row VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
ON CONFLICT DO UPDATE SET
    first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen),
    attempts = attempts + min(excluded.attempts, 9223372036854775807 - attempts),
    packets = packets + min(excluded.packets, 9223372036854775807 - packets),
    bytes = bytes + min(excluded.bytes, 9223372036854775807 - bytes)";

/// What is known of a source stays when nothing is known of it any more.
const ADD_SOURCE: &str = "
INSERT INTO source (address, facts, first_seen, last_seen) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT DO UPDATE SET
    facts = CASE excluded.facts WHEN 0 THEN facts ELSE excluded.facts END,
    first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)
RETURNING id";

/// Why a database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It has to be put aside.
    #[error("{0}")]
    Unfit(String),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Unfit(format!("it is damaged, or no database: {error}"))
            }
            _ => Self::Sqlite(error),
        }
    }
}

/// A row of an hour, by which it is known.
type Place = (SourceKey, u16, i64);

#[derive(Debug)]
pub struct Database {
    connection: Connection,
    settings: Settings,
    /// Each kind's number.
    kinds: HashMap<Kind, i64>,
    /// The rows that there are of some hours.
    hours: BTreeMap<i64, HashSet<Place>>,
    rows: u64,
}

impl Database {
    /// Opens the database, or makes it where there is none.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn open(settings: &Settings) -> Result<Self, DatabaseError> {
        let path = &settings.path;
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        }
        // SQLite makes files as the umask has it, and the two beside this one like this one.
        bounded_file::open_to_append(path, MODE)?.set_permissions(Permissions::from_mode(MODE))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        prepare(&mut connection)?;
        let rows: i64 = connection.query_row("SELECT count(*) FROM row", [], |row| row.get(0))?;
        let kinds = kinds(&connection)?;
        Ok(Self {
            connection,
            settings: settings.clone(),
            kinds: kinds.into_iter().map(|(id, kind)| (kind, id)).collect(),
            hours: BTreeMap::new(),
            rows: rows.cast_unsigned(),
        })
    }

    /// Adds what is folded, all of it or nothing. Returns how many attempts found no room among the rows of their hour, and were
    /// added to the others'.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&mut self, fold: &Fold) -> Result<u64, DatabaseError> {
        let written = self.try_write(fold);
        if written.is_err() {
            // What is remembered may not be what is there.
            self.hours.clear();
            self.kinds =
                kinds(&self.connection)?.into_iter().map(|(id, kind)| (kind, id)).collect();
        }
        written
    }

    fn try_write(&mut self, fold: &Fold) -> Result<u64, DatabaseError> {
        let mut of_others = 0;
        let mut new_rows = 0;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut keys: Vec<(&Key, &Row)> = fold.rows.iter().collect();
        // In the order that they stand in.
        keys.sort_unstable_by_key(|(key, _)| **key);
        let mut spans: HashMap<SourceKey, Row> = HashMap::new();
        for (key, row) in &fold.rows {
            spans.entry(key.source).and_modify(|span| span.add(*row)).or_insert(*row);
        }
        let mut ids: HashMap<SourceKey, i64> = HashMap::from([(SourceKey::Others, 0)]);
        for (key, row) in keys {
            let Some(kind) = fold.kinds.get(key.kind) else { continue };
            let kind = kind_id(&transaction, &mut self.kinds, kind)?;
            let places = places_of(&transaction, &mut self.hours, key.hour)?;
            let mut source = key.source;
            let mut is_new = !places.contains(&(source, key.port, kind));
            if is_new && source != SourceKey::Others && places.len() >= MOST_ROWS_OF_AN_HOUR {
                of_others += row.totals.attempts;
                source = SourceKey::Others;
                is_new = !places.contains(&(source, key.port, kind));
            }
            let id = if let Some(id) = ids.get(&source) {
                *id
            } else {
                let span = spans.get(&source).unwrap_or(row);
                let id = source_id(&transaction, source, fold.facts.get(&source), span)?;
                *ids.entry(source).or_insert(id)
            };
            add_row(&transaction, key, id, kind, row)?;
            if is_new {
                places.insert((source, key.port, kind));
                new_rows += 1;
            }
        }
        transaction.commit()?;
        self.rows += new_rows;
        Ok(of_others)
    }

    /// Removes what is too old, and the oldest of what is too much.
    ///
    /// # Errors
    /// When it can't be written; nothing is half removed then.
    pub fn prune(&mut self, now: Timestamp) -> Result<(), DatabaseError> {
        let keep = i64::try_from(self.settings.keep.as_secs()).unwrap_or(i64::MAX) / 3_600;
        let too_old = hour_of(now).saturating_sub(keep);
        if self.span()?.is_some_and(|(oldest, _)| oldest < too_old) {
            self.remove(too_old)?;
        }
        for _ in 0..PRUNING_ROUNDS {
            let Some((oldest, newest)) = self.span()? else { break };
            if oldest == newest || self.bytes_in_use()? <= self.settings.max_bytes {
                break;
            }
            self.remove((oldest + 1 + (newest - oldest) / PRUNED_PART).min(newest))?;
        }
        // Gives the room of removed rows back, which would else be kept for new ones.
        self.each("PRAGMA incremental_vacuum(4096)")?;
        Ok(())
    }

    fn remove(&mut self, before: i64) -> Result<(), DatabaseError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let rows = transaction.execute("DELETE FROM row WHERE hour < ?1", [before])?;
        let before_ms = before.saturating_mul(HOUR_MS);
        let sources = transaction
            .execute("DELETE FROM source WHERE last_seen < ?1 AND id <> 0", [before_ms])?;
        if sources > 0 {
            transaction.execute(
                "DELETE FROM facts WHERE id <> 0 AND id NOT IN (SELECT facts FROM source)",
                [],
            )?;
        }
        transaction.commit()?;
        self.rows = self.rows.saturating_sub(rows as u64);
        self.hours.retain(|hour, _| *hour >= before);
        Ok(())
    }

    /// The oldest and the newest hour.
    fn span(&self) -> Result<Option<(i64, i64)>, DatabaseError> {
        let end = |which| {
            let text = format!("SELECT hour FROM row ORDER BY hour {which} LIMIT 1");
            self.connection.query_row(&text, [], |row| row.get(0)).optional()
        };
        Ok(end("ASC")?.zip(end("DESC")?))
    }

    /// When the oldest hour began.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn oldest(&self) -> Result<Option<Timestamp>, DatabaseError> {
        let oldest = self.span()?.map(|(oldest, _)| oldest.saturating_mul(HOUR_MS));
        Ok(oldest.and_then(|oldest_ms| Timestamp::from_millisecond(oldest_ms).ok()))
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The file's size.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn bytes(&self) -> Result<u64, DatabaseError> {
        Ok(self.pragma("page_count")? * self.pragma("page_size")?)
    }

    fn bytes_in_use(&self) -> Result<u64, DatabaseError> {
        let pages = self.pragma("page_count")?.saturating_sub(self.pragma("freelist_count")?);
        Ok(pages * self.pragma("page_size")?)
    }

    fn pragma(&self, name: &str) -> Result<u64, DatabaseError> {
        let number: i64 = self.connection.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(number.cast_unsigned())
    }

    /// Takes every step of a statement that does some of its work at each.
    fn each(&self, text: &str) -> Result<(), DatabaseError> {
        let mut statement = self.connection.prepare(text)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}

/// Makes the tables where there are none, and looks whether those that there are are guard's.
fn prepare(connection: &mut Connection) -> Result<(), DatabaseError> {
    let number = |connection: &Connection, name| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    let is_empty = number(connection, "schema_version")? == 0;
    if is_empty {
        // Only before there is a table.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // What was written survives the process; a power cut may take the last of it.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "journal_size_limit", 4 << 20, |_| Ok(()))?;
    // The sandbox has no directory for temporary files.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    if is_empty {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
        return Ok(());
    }
    check(connection)
}

/// Whether a database that is not empty is guard's, and of a version that is known.
///
/// # Errors
/// When it is not.
pub fn check(connection: &Connection) -> Result<(), DatabaseError> {
    let number = |name| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(DatabaseError::Unfit("it is a database of another program".to_owned()));
    }
    let version = number("user_version")?;
    if version != VERSION {
        return Err(DatabaseError::Unfit(format!(
            "its tables have version {version}, and this guard knows {VERSION}"
        )));
    }
    // Reading a row of each finds out whether they are there.
    for table in ["facts", "source", "kind", "row"] {
        let text = format!("SELECT 1 FROM {table} LIMIT 1");
        connection
            .query_row(&text, [], |_| Ok(()))
            .optional()
            .map_err(|error| DatabaseError::Unfit(format!("its tables can't be read: {error}")))?;
    }
    Ok(())
}

/// Every kind and its number.
///
/// # Errors
/// When they can't be read.
pub fn kinds(connection: &Connection) -> rusqlite::Result<Vec<(i64, Kind)>> {
    let mut statement = connection.prepare("SELECT id, protocol, verdict, reason FROM kind")?;
    let kind = |row: &rusqlite::Row<'_>| {
        let kind = Kind { protocol: row.get(1)?, verdict: row.get(2)?, reason: row.get(3)? };
        Ok((row.get(0)?, kind))
    };
    statement.query_map([], kind)?.collect()
}

fn kind_id(
    transaction: &Transaction<'_>,
    known: &mut HashMap<Kind, i64>,
    kind: &Kind,
) -> rusqlite::Result<i64> {
    if let Some(id) = known.get(kind) {
        return Ok(*id);
    }
    transaction.execute(
        "INSERT INTO kind (protocol, verdict, reason) VALUES (?1, ?2, ?3)",
        params![kind.protocol, kind.verdict, kind.reason],
    )?;
    let id = transaction.last_insert_rowid();
    known.insert(kind.clone(), id);
    Ok(id)
}

/// The rows that there are of an hour.
fn places_of<'a>(
    transaction: &Transaction<'_>,
    hours: &'a mut BTreeMap<i64, HashSet<Place>>,
    hour: i64,
) -> rusqlite::Result<&'a mut HashSet<Place>> {
    if !hours.contains_key(&hour) {
        while hours.len() >= HOURS_REMEMBERED {
            hours.pop_first();
        }
        let mut statement = transaction.prepare_cached(
            "SELECT address, port, kind FROM row JOIN source ON id = source WHERE hour = ?1",
        )?;
        let mut rows = statement.query([hour])?;
        let mut places = HashSet::new();
        while let Some(row) = rows.next()? {
            let address = row.get_ref(0)?.as_blob()?;
            if let Some(source) = SourceKey::from_bytes(address) {
                places.insert((source, row.get(1)?, row.get(2)?));
            }
        }
        hours.insert(hour, places);
    }
    Ok(hours.entry(hour).or_default())
}

fn source_id(
    transaction: &Transaction<'_>,
    source: SourceKey,
    facts: Option<&SourceFacts>,
    span: &Row,
) -> rusqlite::Result<i64> {
    let facts = match facts {
        Some(facts) => facts_id(transaction, facts)?,
        None => 0,
    };
    transaction
        .prepare_cached(ADD_SOURCE)?
        .query_row(params![source.to_bytes(), facts, span.first_ms, span.last_ms], |row| row.get(0))
}

fn facts_id(transaction: &Transaction<'_>, facts: &SourceFacts) -> rusqlite::Result<i64> {
    let text = |text: &Option<String>| text.as_deref().map(bounded).unwrap_or_default();
    let labels: Vec<String> =
        facts.labels.iter().take(MOST_LABELS).map(|label| bounded(label)).collect();
    let labels = serde_json::to_string(&labels).unwrap_or_else(|_| "[]".to_owned());
    let values = params![
        text(&facts.class),
        text(&facts.country),
        facts.asn.unwrap_or_default(),
        text(&facts.as_name),
        labels,
    ];
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO facts (class, country, asn, as_name, labels) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(values)?;
    transaction
        .prepare_cached(
            "SELECT id FROM facts WHERE (class, country, asn, as_name, labels) = (?1, ?2, ?3, ?4, ?5)",
        )?
        .query_row(values, |row| row.get(0))
}

fn add_row(
    transaction: &Transaction<'_>,
    key: &Key,
    source: i64,
    kind: i64,
    row: &Row,
) -> rusqlite::Result<()> {
    let began_ms = key.hour.saturating_mul(HOUR_MS);
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    transaction.prepare_cached(ADD_ROW)?.execute(params![
        key.hour,
        source,
        key.port,
        kind,
        row.first_ms - began_ms,
        row.last_ms - began_ms,
        whole(row.totals.attempts),
        whole(row.totals.packets),
        whole(row.totals.bytes),
    ])?;
    Ok(())
}

/// Gives the file another name, and the two beside it, so that a new one can be made. Returns the name.
///
/// # Errors
/// One sentence, when it can't be, or when that has happened too often.
pub fn set_aside(path: &Path, now: Timestamp) -> Result<PathBuf, String> {
    let name = path.file_name().unwrap_or_default();
    let directory = path.parent().unwrap_or(path);
    let beginning = [name.as_encoded_bytes(), b".aside-"].concat();
    let others = fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        name.starts_with(&beginning) && !name.ends_with(b"-wal") && !name.ends_with(b"-shm")
    });
    if others.count() >= MOST_ASIDE {
        return Err(format!(
            "{MOST_ASIDE} files are set aside in {} already: look at the disk, and move them away",
            directory.display()
        ));
    }
    let to = with_suffix(path, &format!(".aside-{}", now.as_second()));
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&to, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("it can't be set aside: {error}"));
            }
            _ => {}
        }
    }
    Ok(to)
}

/// The file beside another that is called like it, and this.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
