//! Where attempts go by themselves, beside those who ask for them: a file of JSON lines, the journal of systemd, and the history.
//!
//! Each follows the [`Hub`] like anybody else, at its own pace. What comes faster than it can be taken is lost to this sink alone,
//! and counted.

mod journal;
mod jsonl;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

pub use self::jsonl::Settings as JsonLines;
use self::{journal::Journal, jsonl::LogFile};
use crate::{
    control::SinkStatus,
    events::{Attempt, Follower, Hub, Line},
    output, store,
};

/// The most attempts that are taken at once.
const BATCH: usize = 512;

/// How long the history may take to write what is left at its end.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// Before a sink that takes nothing is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How a sink fares.
#[derive(Debug)]
pub struct SinkState {
    name: &'static str,
    taken: AtomicU64,
    left_out: AtomicU64,
    error: Mutex<Option<String>>,
}

impl SinkState {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            taken: AtomicU64::default(),
            left_out: AtomicU64::default(),
            error: Mutex::default(),
        }
    }

    #[must_use]
    pub fn status(&self) -> SinkStatus {
        SinkStatus {
            sink: self.name.to_owned(),
            taken: self.taken.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn has_taken(&self, attempts: u64) {
        self.taken.fetch_add(attempts, Ordering::Relaxed);
    }

    pub(crate) fn has_left_out(&self, attempts: u64) {
        self.left_out.fetch_add(attempts, Ordering::Relaxed);
    }

    /// Remembers what is wrong, and says it once.
    pub(crate) fn note(&self, problem: Option<String>) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if *error != problem {
            match &problem {
                Some(problem) => log::warn!("{problem}"),
                None => log::info!("{} takes attempts again", self.name),
            }
            *error = problem;
        }
    }
}

/// Writes attempts to the file that the configuration names, as long as it names one, whatever it is changed to.
pub async fn json_lines(
    hub: Arc<Hub>,
    settings: impl Fn() -> Option<JsonLines>,
    mut policies: watch::Receiver<u64>,
) {
    loop {
        let wanted = settings();
        if let Some(named) = wanted.clone() {
            let following = write_lines(&hub, named);
            tokio::pin!(following);
            loop {
                tokio::select! {
                    () = &mut following => return,
                    changed = policies.changed() => if changed.is_err() {
                        return;
                    },
                }
                if settings() != wanted {
                    break;
                }
            }
        } else if policies.changed().await.is_err() {
            return;
        }
    }
}

async fn write_lines(hub: &Hub, settings: JsonLines) {
    let sink = hub.open_sink("jsonl");
    let (_, mut follower) = hub.follow();
    let mut file = LogFile::new(settings);
    while let Some(batch) = next_batch(&mut follower, sink.state()).await {
        let written = spawn_blocking(move || {
            let mut lines = Vec::new();
            for attempt in &batch {
                // As it is printed: nothing in it steers a terminal that shows the file.
                if let Ok(line) = output::json(attempt.as_ref()) {
                    lines.extend_from_slice(line.as_bytes());
                }
            }
            let written = file.append(&lines);
            (file, batch.len(), written)
        });
        let Ok((back, attempts, written)) = written.await else { return };
        file = back;
        match written {
            Ok(()) => {
                sink.state().has_taken(attempts as u64);
                sink.state().note(None);
            }
            Err(problem) => {
                sink.state().has_left_out(attempts as u64);
                sink.state().note(Some(problem));
                sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// Sends attempts to the journal, where it is what reads standard error: systemd has started the daemon then.
pub async fn journal(hub: Arc<Hub>) {
    if !journal::is_connected() {
        return std::future::pending().await;
    }
    let sink = hub.open_sink("journal");
    let (_, mut follower) = hub.follow();
    let mut journal = Journal::new(journal::SOCKET.into());
    while let Some(batch) = next_batch(&mut follower, sink.state()).await {
        for attempt in batch {
            match journal.send(&attempt) {
                Ok(true) => {
                    sink.state().has_taken(1);
                    sink.state().note(None);
                }
                Ok(false) => sink.state().has_left_out(1),
                Err(problem) => {
                    sink.state().has_left_out(1);
                    sink.state().note(Some(problem));
                }
            }
        }
    }
}

/// Keeps attempts in the history that the configuration names, as long as it names one, whatever it is changed to. Comes back when
/// `stop` says true, and what has come until then is written, or the disk has had its time.
pub async fn history(
    hub: Arc<Hub>,
    settings: impl Fn() -> Option<store::Settings>,
    mut policies: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    let mut is_over = false;
    while !is_over {
        let wanted = settings();
        let Some(named) = wanted.clone() else {
            tokio::select! {
                changed = policies.changed() => is_over = changed.is_err(),
                _ = stop.wait_for(|stop| *stop) => is_over = true,
            }
            continue;
        };
        let sink = hub.open_sink("history");
        let (_, mut follower) = hub.follow();
        let writer = match store::Writer::start(named, hub.clone(), sink.share()) {
            Ok(writer) => writer,
            Err(error) => {
                sink.state().note(Some(format!("no history is kept: {error}")));
                sleep(TRY_AGAIN).await;
                continue;
            }
        };
        let mut is_other = false;
        while !is_over && !is_other {
            tokio::select! {
                batch = next_batch(&mut follower, sink.state()) => match batch {
                    Some(batch) => writer.add(&batch),
                    None => is_over = true,
                },
                changed = policies.changed() => {
                    is_over = changed.is_err();
                    is_other = settings() != wanted;
                }
                _ = stop.wait_for(|stop| *stop) => is_over = true,
            }
        }
        if let Some(line) = follower.at_once() {
            writer.add(&batch_from(line, &mut follower, sink.state(), usize::MAX));
        }
        if timeout(CLOSING_TIME, writer.close()).await.is_err() {
            log::warn!(
                "the newest attempts may be missing in the history: its disk takes too long"
            );
        }
        hub.note_history(None);
    }
}

/// What has come since, once something has; `None` when nothing comes any more.
async fn next_batch(follower: &mut Follower, state: &SinkState) -> Option<Vec<Arc<Attempt>>> {
    let first = follower.next().await?;
    Some(batch_from(first, follower, state, BATCH))
}

/// This line, and what has come since, as far as it is wanted.
fn batch_from(
    first: Line,
    follower: &mut Follower,
    state: &SinkState,
    most: usize,
) -> Vec<Arc<Attempt>> {
    let mut batch = Vec::new();
    let mut line = Some(first);
    while let Some(taken) = line {
        match taken {
            Line::Attempt(attempt) => batch.push(attempt),
            Line::Lagged { lagged } => state.has_left_out(lagged),
            // Only who asks for the past is told of it.
            Line::Hour(_) | Line::LeftOut { .. } => {}
        }
        line = if batch.len() < most { follower.at_once() } else { None };
    }
    batch
}
