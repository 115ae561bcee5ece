//! The thread that writes. Nobody waits for it but whoever ends it.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{
    HistoryStatus, Settings,
    database::{Database, DatabaseError, set_aside},
    fold::Fold,
};
use crate::{
    events::{Attempt, Hub},
    sinks::SinkState,
};

/// How long attempts gather before they are written: what a kill of the process loses.
const GATHER: Duration = Duration::from_secs(1);

/// How often what is too old or too much is looked for, once something is written, and where nothing is.
const PRUNE: Duration = Duration::from_mins(1);
const PRUNE_IDLE: Duration = Duration::from_mins(30);

/// Before what could not be written is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Keeps attempts in a database until it is closed.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    fold: Fold,
    is_closing: bool,
}

impl Writer {
    /// Starts the thread, which opens the database, or makes it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: Settings, hub: Arc<Hub>, sink: Arc<SinkState>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let work = Work {
            status: HistoryStatus {
                path: settings.path.display().to_string(),
                ..HistoryStatus::default()
            },
            settings,
            shared: Arc::clone(&shared),
            hub,
            sink,
            database: None,
            pruned: None,
        };
        thread::Builder::new().name("history".to_owned()).spawn(move || {
            work.run();
            // Nobody may wait for it any more.
            let _ = end.send(());
        })?;
        Ok(Self { shared, ended })
    }

    /// Takes attempts, at once.
    pub fn add(&self, attempts: &[Arc<Attempt>]) {
        let mut pending = self.shared.lock();
        for attempt in attempts {
            pending.fold.add(attempt);
        }
        drop(pending);
        self.shared.changed.notify_one();
    }

    /// Has what was taken written, and comes back when it is. A disk that hangs is left to itself by whoever drops this.
    pub async fn close(self) {
        self.shared.lock().is_closing = true;
        self.shared.changed.notify_one();
        // The only error is that the thread has ended already.
        let _ = self.ended.await;
    }
}

impl Shared {
    /// Nothing that holds the lock can leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is pending, or for so long, or the end. Then, but at the end, gathers more.
    fn wait(&self, idle: Duration, gather: Duration) {
        let wait_while = |pending, span, so_long: fn(&mut Pending) -> bool| {
            let waited = self.changed.wait_timeout_while(pending, span, so_long);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let pending =
            wait_while(self.lock(), idle, |pending| pending.fold.is_empty() && !pending.is_closing);
        drop(wait_while(pending, gather, |pending| !pending.is_closing));
    }
}

/// What the thread works with.
struct Work {
    settings: Settings,
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    sink: Arc<SinkState>,
    database: Option<Database>,
    /// When it was last looked for what is too old or too much.
    pruned: Option<Instant>,
    status: HistoryStatus,
}

impl Work {
    fn run(mut self) {
        loop {
            let (fold, is_closing) = {
                let mut pending = self.shared.lock();
                (pending.fold.take(), pending.is_closing)
            };
            let mut gather = GATHER;
            if let Err(problem) = self.keep(&fold) {
                self.shared.lock().fold.put_back(Fold { left_out: 0, ..fold });
                self.database = None;
                gather = TRY_AGAIN;
                self.say(Some(problem));
                if is_closing {
                    // It would be lost without a word.
                    let lost = self.shared.lock().fold.attempts();
                    self.sink.has_left_out(lost);
                }
            } else {
                self.say(None);
            }
            if is_closing {
                return;
            }
            let idle = if self.database.is_some() { PRUNE_IDLE } else { Duration::ZERO };
            self.shared.wait(idle, gather);
        }
    }

    fn say(&mut self, problem: Option<String>) {
        self.status.error.clone_from(&problem);
        self.sink.note(problem);
        self.hub.note_history(Some(self.status.clone()));
    }

    /// Writes what is folded, and looks after the file.
    fn keep(&mut self, fold: &Fold) -> Result<(), String> {
        self.sink.has_left_out(fold.left_out);
        match self.try_keep(fold) {
            Err(DatabaseError::Unfit(why)) => {
                self.database = None;
                self.put_aside(&why)?;
                self.try_keep(fold).map_err(|error| cannot_write(&self.settings.path, &error))
            }
            kept => kept.map_err(|error| cannot_write(&self.settings.path, &error)),
        }
    }

    fn try_keep(&mut self, fold: &Fold) -> Result<(), DatabaseError> {
        let database = match &mut self.database {
            Some(database) => database,
            None => self.database.insert(Database::open(&self.settings)?),
        };
        if self.pruned.is_none_or(|pruned| pruned.elapsed() >= PRUNE) {
            database.prune(Timestamp::now())?;
            self.pruned = Some(Instant::now());
        }
        if !fold.rows.is_empty() {
            let of_others = database.write(fold)?;
            self.status.folded_into_others += of_others + fold.of_others;
            self.sink.has_taken(fold.attempts());
        }
        self.status.rows = database.rows();
        self.status.bytes = database.bytes()?;
        self.status.oldest = database.oldest()?;
        Ok(())
    }

    fn put_aside(&mut self, why: &str) -> Result<(), String> {
        let path = self.settings.path.display();
        let to = set_aside(&self.settings.path, Timestamp::now())
            .map_err(|error| format!("the history {path} can't be used ({why}), and {error}"))?;
        let said = format!(
            "the history {path} can't be used ({why}): it is kept as {}, and a new one is begun",
            to.display()
        );
        log::warn!("{said}");
        self.status.set_aside = Some(said);
        Ok(())
    }
}

fn cannot_write(path: &Path, error: &DatabaseError) -> String {
    format!(
        "the history {} can't be written: {error}; attempts are counted all the same, and kept in memory as far as there is room",
        path.display()
    )
}
