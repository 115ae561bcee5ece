//! Keeps what sources stand for up to date: files that have changed are taken, and names are asked for again.

use std::{
    path::PathBuf,
    sync::PoisonError,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

use super::{Core, Engine, Facts, Followed, Following, cutting};
use crate::{
    control::{AddRules, Failure},
    host::resolver,
    policy::{
        Reread, Sets,
        names::{Answer, few},
    },
    rule::{Action, DnsName, Source},
};

/// How long a command waits for the names that it brings.
const COMMAND_WAITS: Duration = Duration::from_secs(5);

/// How long a round of asking for names may take.
const ROUND: Duration = Duration::from_secs(8);

/// Unchanged answers are kept in their file no more often than this: it says when they were last good.
const KEEP_EACH: Duration = Duration::from_hours(1);

/// Asks for the names that a request brings, as many as are asked for side by side; the others are asked for later. Nobody waits
/// for it but whoever made the request. What is wrong with the request is said elsewhere.
pub(super) fn ask(request: &AddRules) -> Vec<(DnsName, Answer)> {
    if request.action != Action::Allow {
        return Vec::new();
    }
    let sources: Result<Vec<Source>, _> = request.sources.iter().map(|text| text.parse()).collect();
    let mut names: Vec<DnsName> = sources
        .unwrap_or_default()
        .into_iter()
        .filter_map(|source| match source {
            Source::Name(name) => Some(name),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { Vec::new() } else { resolver::resolve(&names, COMMAND_WAITS) }
}

/// What is to be said of names that were asked for by a command.
pub(super) fn notes(core: &Core, answers: &[(DnsName, Answer)]) -> Vec<String> {
    let mut notes: Vec<String> = answers
        .iter()
        .filter_map(|(name, _)| {
            let known = core.sets().names().get(name)?;
            let why = known.error().map(|error| format!(": {error}")).unwrap_or_default();
            Some(match known.addresses().next() {
                Some(_) => format!("{name} is {} now{why}", few(known)),
                None => format!("{name} lets nobody in until it resolves{why}"),
            })
        })
        .collect();
    if !notes.is_empty() && !core.is_daemon {
        notes.push(
            "names are kept resolved by a running daemon only: until `guard run` this is what they stand for".to_owned(),
        );
    }
    notes
}

impl Following {
    /// Keeps the answers for names in their file, where there is something new to keep.
    pub(super) fn keep_names(&mut self, core: &Core, is_new: bool) {
        let is_old = self.names_kept.is_none_or(|kept| kept.elapsed() >= KEEP_EACH);
        if core.sets().names().is_empty() || !(is_new || is_old) {
            return;
        }
        match core.save_names() {
            Ok(()) => self.names_kept = Some(Instant::now()),
            Err(problem) => log::warn!("{problem}"),
        }
    }
}

impl Engine {
    /// Takes what has changed in the files of sources and countries, each as a whole or not at all.
    pub fn follow_files(&self) -> Followed {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, mmdb) = {
            let core = self.core();
            (core.sets().clone(), core.mmdb().to_vec())
        };
        let mut sets = before.clone();
        let reread = sets.reread(&mmdb, SystemTime::now(), &self.progress);
        self.take_sets(&before, sets, reread)
    }

    /// The directories in which the files of sources and countries stand.
    #[must_use]
    pub fn file_directories(&self) -> Vec<PathBuf> {
        let core = self.core();
        core.sets().directories(core.mmdb())
    }

    /// How long until a name is to be asked for; `None` where there is none.
    #[must_use]
    pub fn next_name_in(&self) -> Option<Duration> {
        let now = Timestamp::now();
        self.core().sets().names().values().map(|known| known.due_in(now)).min()
    }

    /// Asks for the names that are due, as many as are asked for side by side, and puts in force what is new.
    pub fn follow_names(&self) -> Followed {
        let now = Timestamp::now();
        let due: Vec<DnsName> = {
            let core = self.core();
            let names = core.sets().names().iter();
            let mut due: Vec<_> = names.filter(|(_, known)| known.due_in(now).is_zero()).collect();
            due.sort_by_key(|(_, known)| known.next());
            due.into_iter().take(resolver::AT_ONCE).map(|(name, _)| name.clone()).collect()
        };
        if due.is_empty() {
            return Followed::default();
        }
        // Nothing is held meanwhile.
        let mut answers = resolver::resolve(&due, ROUND);
        let mut following = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.core().sets().clone();
        // A rule may be gone by now.
        answers.retain(|(name, _)| before.names().contains_key(name));
        let mut sets = before.clone();
        let reread = sets.take(answers, Timestamp::now());
        let is_new = !reread.changed.is_empty();
        let followed = self.take_sets(&before, sets, reread);
        following.keep_names(&self.core(), is_new);
        followed
    }

    /// All names are due: whom to ask has changed.
    pub fn ask_names_now(&self) {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sets = self.core().sets().clone();
        sets.ask_now();
        self.core_to_change().keep_sets(sets);
    }

    /// Puts sets in force of which some are new. Where they can't be, those before hold.
    fn take_sets(&self, before: &Sets, mut sets: Sets, reread: Reread) -> Followed {
        let mut followed = Followed {
            news: reread.news,
            problems: reread.problems,
            is_unfinished: reread.is_unfinished,
            ..Followed::default()
        };
        if !reread.changed.is_empty() {
            match self.put_sets(sets.clone()) {
                Ok(notes) => {
                    followed.news.extend(notes);
                    return followed;
                }
                Err(failure) => {
                    let why = failure.to_string();
                    sets.refuse(before, &reread.changed, &why);
                    followed.news.clear();
                    let error = |sets: &Sets, source| sets.refresh(source).and_then(|it| it.error);
                    for source in &reread.changed {
                        let told = error(&sets, source);
                        if told != error(before, source) {
                            followed
                                .problems
                                .push(format!("{source}: {}", told.unwrap_or_default()));
                        }
                    }
                }
            }
        }
        if sets != *before {
            self.core_to_change().keep_sets(sets);
        }
        followed
    }

    /// Returns what is worth a line in the log: the connections that were cut, among others.
    fn put_sets(&self, sets: Sets) -> Result<Vec<String>, Failure> {
        let facts = Facts::gather(&self.core().settings.config)?;
        let planned = self.core().plan_with(&facts, sets.clone())?;
        let Some((ready, mut news)) = planned else {
            self.core_to_change().keep_sets(sets);
            return Ok(Vec::new());
        };
        let generation = self.core_to_change().put(ready)?;
        log::debug!("generation {generation:?} follows its sources");
        news.extend(cutting::notes(&self.core().cut()));
        super::give_memory_back();
        Ok(news)
    }
}
