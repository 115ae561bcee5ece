//! What this host's own network and local files tell of a source. Nothing is looked up over the network.
//!
//! An [`Enrichment`] is what is known now; whoever has found out more replaces a part of it as a whole. The reader of the event
//! ring takes an [`Enricher`] for each batch of attempts, which asks nobody and waits for nobody.

mod class;
mod files;
mod geo;
pub mod labels;
mod pairs;
mod scanners;

use std::{
    cell::Cell,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use guard_common::verdict::{Hook, Reason};
use tokio::sync::Notify;

pub use self::class::{Network, SourceClass};
use self::files::Files;
use crate::{config::Enrich, events::Attempt, output::text};

/// The longest name that is taken from a file: of a city, an autonomous system or a label.
const MAX_NAME_CHARS: usize = 64;

/// What is known now.
#[derive(Debug, Default)]
pub struct Enrichment {
    network: Mutex<Arc<Network>>,
    files: Mutex<Arc<Files>>,
    /// Problems that were told.
    told: Mutex<Vec<String>>,
    outdated: Notify,
}

/// What has become of the files, as lines for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    pub news: Vec<String>,
    pub problems: Vec<String>,
    /// Files have just been written: they are to be looked at again soon.
    pub is_unfinished: bool,
}

impl Enrichment {
    /// What is known now, for a batch of attempts.
    #[must_use]
    pub fn enricher(&self) -> Enricher<'_> {
        Enricher {
            of: self,
            network: lock(&self.network).clone(),
            files: lock(&self.files).clone(),
            misses_neighbour: Cell::new(false),
        }
    }

    /// Takes what the network is now.
    pub fn take_network(&self, network: Network) {
        *lock(&self.network) = Arc::new(network);
    }

    /// The network may be another than it was.
    pub fn network_may_have_changed(&self) {
        self.outdated.notify_one();
    }

    /// Until the network is to be looked at again.
    pub async fn outdated(&self) {
        self.outdated.notified().await;
    }

    /// Takes what has changed in the files that are configured. Says what is new, once.
    pub fn follow_files(&self, config: &Enrich) -> Followed {
        let before = lock(&self.files).clone();
        let reread = before.reread(config, SystemTime::now());
        if let Some(files) = reread.files {
            *lock(&self.files) = Arc::new(files);
        }
        let problems = self.problems();
        let told = std::mem::replace(&mut *lock(&self.told), problems.clone());
        let over = told.iter().filter(|problem| !problems.contains(problem));
        Followed {
            news: over.map(|problem| format!("no longer so: {problem}")).collect(),
            problems: problems.iter().filter(|problem| !told.contains(problem)).cloned().collect(),
            is_unfinished: reread.is_unfinished,
        }
    }

    /// The directories in which files can appear that the configuration names.
    #[must_use]
    pub fn directories(config: &Enrich) -> Vec<PathBuf> {
        files::directories(config)
    }

    /// What is wrong with the files, one sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        lock(&self.files).problems()
    }
}

/// Nothing that holds such a lock can leave half a change: it is held for as long as a pointer takes to be copied.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds facts to attempts.
#[derive(Debug)]
pub struct Enricher<'a> {
    of: &'a Enrichment,
    network: Arc<Network>,
    files: Arc<Files>,
    misses_neighbour: Cell<bool>,
}

impl Enricher<'_> {
    /// Adds what is known of an attempt's source.
    ///
    /// Of one that is spoofed nothing is: whoever sent it, it is not whose address it bears.
    pub fn enrich(&self, attempt: &mut Attempt) {
        if attempt.reason == Reason::Spoofed.name() {
            return;
        }
        let source = attempt.source;
        // The edge names the interface by which a packet leaves.
        let came_by = attempt.interface.as_deref().filter(|_| attempt.hook != Hook::Edge.name());
        let class = if attempt.reason == Reason::Laundered.name() {
            // This host has translated the address: the true source hides behind it.
            SourceClass::Gateway
        } else {
            self.network.class(source, came_by)
        };
        let facts = &mut attempt.facts;
        facts.class = Some(class.name().to_owned());
        for database in &self.files.in_order {
            database.add_to(facts, source);
        }
        facts.labels = self.files.labels.of(source);
        match class {
            SourceClass::Ipv6OfAllowed => {
                let allowed = self.network.allowed_ipv4_of(source, came_by);
                facts.labels.extend(allowed.map(|address| format!("ipv4:{address}")));
            }
            SourceClass::Lan if self.network.misses_neighbour(source) => {
                self.misses_neighbour.set(true);
            }
            SourceClass::Public if scanners::looks_like_mass_scan(attempt) => {
                attempt.facts.labels.push(scanners::MASS_SCAN.to_owned());
            }
            _ => {}
        }
    }
}

impl Drop for Enricher<'_> {
    /// Has the neighbours looked at where one of them sent something and was not known: the next attempts can tell then.
    fn drop(&mut self) {
        if self.misses_neighbour.get() {
            self.of.network_may_have_changed();
        }
    }
}

/// A name from a file: without what a terminal would obey, and not too long. `None` where nothing is left.
fn cleaned(text: &str) -> Option<String> {
    let safe: String = text.chars().filter(|c| !text::is_unprintable(*c)).collect();
    let name: String = safe.trim().chars().take(MAX_NAME_CHARS).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::{
        events::{SourceFacts, tests::example},
        host::interfaces::{Address, Link, Route, Snapshot},
    };

    fn enrichment() -> Enrichment {
        let enrichment = Enrichment::default();
        let eth0 =
            Link { index: 2, name: "eth0".into(), hardware_type: 1, up: true, ..Link::default() };
        let prefix =
            |text: &str| Route { index: 2, destination: text.parse().unwrap(), has_gateway: false };
        let snapshot = Snapshot {
            links: vec![eth0],
            addresses: vec![Address {
                index: 2,
                address: "192.168.1.2".parse().unwrap(),
                prefix_bits: 24,
                broadcast: None,
            }],
            routes: vec![prefix("192.168.1.0/24"), prefix("2001:db8:1::/64")],
            ..Snapshot::default()
        };
        enrichment.take_network(Network::new(&snapshot, &[], |_| false));
        enrichment
    }

    fn facts(enrichment: &Enrichment, attempt: Attempt) -> SourceFacts {
        let mut attempt = attempt;
        enrichment.enricher().enrich(&mut attempt);
        attempt.facts
    }

    fn from(source: &str) -> Attempt {
        Attempt { source: source.parse().unwrap(), ..example() }
    }

    #[test]
    fn class_labels_and_habits_are_added() {
        let enrichment = enrichment();
        let of = |attempt| {
            let SourceFacts { class, labels, .. } = facts(&enrichment, attempt);
            format!("{} {}", class.unwrap_or_default(), labels.join(" ")).trim_end().to_owned()
        };
        assert_eq!(of(from("203.0.113.9")), "public");
        assert_eq!(of(from("192.168.1.9")), "lan");
        assert_eq!(of(from("162.142.125.9")), "public research-scanner:censys");
        let bare = |source| Attempt { bytes: 40, ..from(source) };
        assert_eq!(of(bare("162.142.125.9")), "public research-scanner:censys mass-scan");
        assert_eq!(of(bare("192.168.1.9")), "lan");
        let laundered =
            Attempt { reason: "laundered".into(), hook: "edge".into(), ..from("192.168.1.2") };
        assert_eq!(of(laundered), "gateway");
        let spoofed = Attempt { reason: "spoofed".into(), ..from("162.142.125.9") };
        assert_eq!(facts(&enrichment, spoofed), SourceFacts::default());
    }

    #[test]
    fn a_neighbour_that_is_not_known_has_the_network_looked_at() {
        let enrichment = enrichment();
        let is_outdated = || enrichment.outdated().now_or_never().is_some();
        for known in ["203.0.113.9", "192.168.1.9", "2001:db8:2::1"] {
            assert!(facts(&enrichment, from(known)).class.is_some());
            assert!(!is_outdated(), "{known}");
        }
        assert_eq!(facts(&enrichment, from("2001:db8:1::9")).class.as_deref(), Some("lan"));
        assert!(is_outdated() && !is_outdated());
    }

    #[test]
    fn names_are_short_and_steer_no_terminal() {
        assert_eq!(cleaned(" a\u{1b}[2J\u{202e}b\n").as_deref(), Some("a[2Jb"));
        assert_eq!(cleaned("\u{1b}\n "), None);
        assert_eq!(
            cleaned(&"ü".repeat(1_000)).map(|name| name.chars().count()),
            Some(MAX_NAME_CHARS)
        );
    }
}
