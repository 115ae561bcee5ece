//! How far a change has come that takes long: lists of a million prefixes are read, compiled and written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What a change is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Files are read; counted in bytes.
    Reading,
    /// Rules become tables; counted in prefixes.
    Compiling,
    /// The table of sources is written to the kernel, beside the one in force; counted in bytes.
    Writing,
}

/// How far it is with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    pub step: Step,
    pub done: u64,
    pub total: u64,
}

/// Shared by whoever loads and whoever wants to know how far that is; nobody waits for anybody.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Option<Loading>>>);

impl Progress {
    /// Begins a step. It is over when what this returns is dropped.
    #[must_use]
    pub fn begin(&self, step: Step, total: u64) -> Current<'_> {
        *self.lock() = Some(Loading { step, done: 0, total });
        Current(self)
    }

    /// What is under way; `None` between two steps, and where nothing is.
    #[must_use]
    pub fn now(&self) -> Option<Loading> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Loading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step under way.
#[derive(Debug)]
pub struct Current<'a>(&'a Progress);

impl Current<'_> {
    /// So much of it is done. Cheap, and still nothing for each line of a file.
    pub fn at(&self, done: u64) {
        if let Some(loading) = self.0.lock().as_mut() {
            loading.done = done.min(loading.total);
        }
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_seen_while_it_lasts_and_by_everyone() {
        let progress = Progress::default();
        let other = progress.clone();
        assert_eq!(other.now(), None);
        let current = progress.begin(Step::Reading, 10);
        current.at(4);
        assert_eq!(other.now(), Some(Loading { step: Step::Reading, done: 4, total: 10 }));
        current.at(40);
        assert_eq!(other.now().map(|loading| loading.done), Some(10), "a file may have grown");
        drop(current);
        assert_eq!(other.now(), None);
    }
}
