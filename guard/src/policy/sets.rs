//! What sources stand for that are no prefixes: files, one prefix a line, `#` begins a comment; the networks of countries; and the
//! addresses of names.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    countries,
    names::{Answer, Known, MAX_NAMES, few},
};
use crate::{
    bounded_file::{self, Stamp},
    control::{Failure, Refresh},
    output::text::count_of,
    progress::{Current, Progress, Step},
    rule::{Action, Country, DnsName, Rule, Source, quoted},
};

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;

/// The most prefixes of one file, or of one country.
pub(super) const MAX_PREFIXES: usize = 1_000_000;

/// The most files and countries of a policy.
const MAX_SETS: usize = 256;

/// How often it is noted how far reading has come.
const LINES_PER_NOTE: usize = 1_024;

/// Why a set could not be read. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error("the set {} can't be read: {why}", .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{}:{line}: {} is not an address or a prefix: {why}", .path.display(), quoted(.text))]
    BadLine { path: PathBuf, line: usize, text: String, why: String },
    #[error("the set {} holds more than {MAX_PREFIXES} prefixes", .path.display())]
    TooMany { path: PathBuf },
    #[error("country:{country} stands for nothing: {why}")]
    Country { country: Country, why: String },
    #[error("the set {0} has not been read")]
    NotRead(String),
    #[error("the rules name more than {MAX_NAMES} DNS names")]
    TooManyNames,
    #[error("the rules name more than {MAX_SETS} files and countries")]
    TooManySets,
}

impl SetError {
    /// What to do, in one sentence.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "Name a file that root can read.",
            Self::BadLine { .. } => "Write one address or prefix a line; # begins a comment.",
            Self::TooMany { .. } => "Use wider prefixes, or several files.",
            Self::Country { .. } => {
                "Name an MMDB file that knows it: mmdb = [\"/usr/share/GeoIP/GeoLite2-Country.mmdb\"] below [enrich]."
            }
            Self::NotRead(_) => "Run `guard reload`.",
            Self::TooManyNames => "Remove some, or write their addresses.",
            Self::TooManySets => "Put the prefixes of several files into one.",
        }
    }
}

impl From<SetError> for Failure {
    fn from(error: SetError) -> Self {
        Self::failed(error.to_string(), error.fix())
    }
}

/// A file or a country, as it was last taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    prefixes: Arc<[IpNet]>,
    at: Option<Timestamp>,
    /// Of the files that were looked at last, whether they were taken or not.
    stamps: Vec<Option<Stamp>>,
    /// Why what they hold now was not taken.
    error: Option<String>,
}

/// What all sources stand for that are no prefixes. Nothing changes it by the way: files are read again when they have changed,
/// and names when they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    read: HashMap<Source, Read>,
    names: BTreeMap<DnsName, Known>,
}

/// What is done with what can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The change that names it is refused.
    Refused,
    /// It stands for nothing until it can be read, and says so. For those who only show it, and for starts.
    Shown,
}

/// What has become of the files.
#[derive(Clone, Debug, Default)]
pub struct Reread {
    /// One sentence for each that was taken anew.
    pub news: Vec<String>,
    /// One sentence for each that was not taken.
    pub problems: Vec<String>,
    /// The sources whose prefixes are others now.
    pub changed: Vec<Source>,
    /// One is being written: it is to be looked at again soon.
    pub is_unfinished: bool,
}

impl Sets {
    /// These, and what these rules name that is not there; less what none of them names.
    ///
    /// # Errors
    /// When a file or country can't be read, or there are too many.
    pub fn completed(
        mut self,
        rules: &[Rule],
        mmdb: &[PathBuf],
        unreadable: Unreadable,
        progress: &Progress,
    ) -> Result<Self, SetError> {
        let mut read = HashMap::new();
        let mut names = BTreeMap::new();
        for rule in rules {
            match &rule.source {
                Source::Name(name) if !names.contains_key(name) => {
                    names.insert(name.clone(), self.names.remove(name).unwrap_or_default());
                }
                Source::File(_) | Source::Country(_) => {
                    if let Some(held) = self.read.remove(&rule.source) {
                        read.insert(rule.source.clone(), held);
                    }
                }
                _ => {}
            }
        }
        let is_new = |rule: &&Rule| {
            matches!(rule.source, Source::File(_) | Source::Country(_))
                && !read.contains_key(&rule.source)
        };
        let mut new: BTreeMap<String, &Rule> = BTreeMap::new();
        for rule in rules.iter().filter(is_new) {
            let held = new.entry(rule.source.to_string()).or_insert(rule);
            if rule.action == Action::Deny {
                *held = rule;
            }
        }
        if names.len() > MAX_NAMES {
            return Err(SetError::TooManyNames);
        }
        if read.len() + new.len() > MAX_SETS {
            return Err(SetError::TooManySets);
        }
        let wanted: Vec<&Source> = new.values().map(|rule| &rule.source).collect();
        let results = read_all(&wanted, mmdb, progress);
        for (rule, (stamps, result)) in new.into_values().zip(results) {
            let one = match result {
                Ok(prefixes) => Read {
                    prefixes: prefixes.into(),
                    at: Some(Timestamp::now()),
                    stamps,
                    error: None,
                },
                Err(error) if unreadable == Unreadable::Refused => return Err(error),
                Err(error) => {
                    let error = Some(error.to_string());
                    Read { prefixes: Arc::default(), at: None, stamps, error }
                }
            };
            read.insert(rule.source.clone(), one);
        }
        Ok(Self { read, names })
    }

    /// What a source stands for; nothing for one that is no set.
    ///
    /// # Errors
    /// [`SetError::NotRead`].
    pub fn prefixes(&self, source: &Source) -> Result<Arc<[IpNet]>, SetError> {
        let held = match source {
            Source::Name(name) => self.names.get(name).map(|known| known.prefixes().collect()),
            _ => self.read.get(source).map(|read| read.prefixes.clone()),
        };
        held.ok_or_else(|| SetError::NotRead(source.to_string()))
    }

    /// When a source was last refreshed, and what is wrong; `None` for one that is never refreshed.
    #[must_use]
    pub fn refresh(&self, source: &Source) -> Option<Refresh> {
        match source {
            Source::Name(name) => self.names.get(name).map(|known| Refresh {
                at: known.refreshed(),
                next: known.next(),
                error: known.error().map(str::to_owned),
            }),
            _ => self.read.get(source).map(|read| Refresh {
                at: read.at,
                next: None,
                error: read.error.clone(),
            }),
        }
    }

    /// Looks at the files again, and takes those that have changed: each as a whole, or not at all.
    pub fn reread(&mut self, mmdb: &[PathBuf], now: SystemTime, progress: &Progress) -> Reread {
        let mut reread = Reread::default();
        let mut changed: Vec<Source> = Vec::new();
        for (source, read) in &self.read {
            let stamps = stamps(source, mmdb);
            if stamps == read.stamps {
                continue;
            }
            if stamps.iter().flatten().all(|stamp| stamp.is_settled(now)) {
                changed.push(source.clone());
            } else {
                reread.is_unfinished = true;
            }
        }
        changed.sort_unstable_by_key(ToString::to_string);
        let results = read_all(&changed.iter().collect::<Vec<_>>(), mmdb, progress);
        for (source, (stamps, result)) in changed.into_iter().zip(results) {
            let Some(read) = self.read.get_mut(&source) else { continue };
            read.stamps = stamps;
            match result {
                Ok(prefixes) => {
                    read.error = None;
                    read.at = Some(Timestamp::now());
                    if *read.prefixes != prefixes[..] {
                        let before = read.prefixes.len();
                        let now = count_of(&prefixes, "prefix");
                        reread.news.push(format!(
                            "{source} has changed: it holds {now} now, and held {before}"
                        ));
                        read.prefixes = prefixes.into();
                        reread.changed.push(source);
                    }
                }
                Err(error) => {
                    reread.problems.push(format!(
                        "{source} has changed and is not taken, what it held before holds: {error}"
                    ));
                    read.error = Some(error.to_string());
                }
            }
        }
        reread
    }

    /// What these have changed could not be put in force: what was before holds, and says so.
    pub fn refuse(&mut self, before: &Self, changed: &[Source], why: &str) {
        for source in changed {
            match source {
                Source::Name(name) => {
                    if let (Some(known), Some(held)) =
                        (self.names.get_mut(name), before.names.get(name))
                    {
                        known.refuse(held, why);
                    }
                }
                _ => {
                    if let (Some(read), Some(held)) =
                        (self.read.get_mut(source), before.read.get(source))
                    {
                        read.prefixes = held.prefixes.clone();
                        read.at = held.at;
                        read.error =
                            Some(format!("what it holds now can't be put in force: {why}"));
                    }
                }
            }
        }
    }

    /// The directories of the files, and of what they lead to.
    #[must_use]
    pub fn directories(&self, mmdb: &[PathBuf]) -> Vec<PathBuf> {
        let has_country = self.read.keys().any(|source| matches!(source, Source::Country(_)));
        let files = self.read.keys().filter_map(|source| match source {
            Source::File(path) => Some(path),
            _ => None,
        });
        let mut directories: Vec<PathBuf> = files
            .chain(mmdb.iter().filter(|_| has_country))
            .flat_map(|path| [Some(path.clone()), fs::canonicalize(path).ok()])
            .filter_map(|path| path?.parent().map(Path::to_path_buf))
            .collect();
        directories.sort_unstable();
        directories.dedup();
        directories
    }

    /// Only the names: files are to be read again.
    #[must_use]
    pub fn only_names(&self) -> Self {
        Self { read: HashMap::new(), names: self.names.clone() }
    }

    /// With what is known of names.
    #[must_use]
    pub fn with_names(names: BTreeMap<DnsName, Known>) -> Self {
        Self { read: HashMap::new(), names }
    }

    #[must_use]
    pub fn names(&self) -> &BTreeMap<DnsName, Known> {
        &self.names
    }

    /// Takes the answers for names. Those of names that are not there are for a rule that is to come.
    pub fn take(&mut self, answers: Vec<(DnsName, Answer)>, now: Timestamp) -> Reread {
        let mut reread = Reread::default();
        for (name, answer) in answers {
            let known = self.names.entry(name.clone()).or_default();
            let error_before = known.error().map(str::to_owned);
            if known.take(answer, now) {
                reread.news.push(format!("{name} is {} now", few(known)));
                reread.changed.push(Source::Name(name.clone()));
            }
            let error = known.error();
            if let Some(error) = error
                && Some(error) != error_before.as_deref()
            {
                reread.problems.push(format!("{name}: {error}"));
            }
        }
        reread
    }

    /// All names are asked for at once: whom to ask has changed.
    pub fn ask_now(&mut self) {
        self.names.values_mut().for_each(Known::ask_now);
    }
}

fn stamps(source: &Source, mmdb: &[PathBuf]) -> Vec<Option<Stamp>> {
    match source {
        Source::File(path) => vec![Stamp::of(path)],
        Source::Country(_) => mmdb.iter().map(|path| Stamp::of(path)).collect(),
        _ => Vec::new(),
    }
}

type Outcome = (Vec<Option<Stamp>>, Result<Vec<IpNet>, SetError>);

/// Reads files and countries: the MMDB files once for all.
fn read_all(sources: &[&Source], mmdb: &[PathBuf], progress: &Progress) -> Vec<Outcome> {
    let wanted: Vec<Country> = sources
        .iter()
        .filter_map(|source| match source {
            Source::Country(country) => Some(*country),
            _ => None,
        })
        .collect();
    // The stamp comes first: what is written while it is read makes another one.
    let stamped: Vec<_> = sources.iter().map(|source| stamps(source, mmdb)).collect();
    let mut reading = Reading::begin(progress, stamped.iter().flatten().flatten());
    let mut countries = match (wanted.is_empty(), mmdb.is_empty()) {
        (true, _) => Ok(BTreeMap::new()),
        (false, true) => Err("no MMDB file is configured".to_owned()),
        (false, false) => countries::read(mmdb, &wanted),
    };
    let read_one = |source: &&Source| match source {
        Source::Country(country) => {
            let networks = match &mut countries {
                Ok(found) => Ok(found.get(country).cloned().unwrap_or_default()),
                Err(why) => Err(why.clone()),
            };
            match networks {
                Ok(networks) if networks.is_empty() => {
                    Err("the MMDB files hold no network of it".to_owned())
                }
                other => other,
            }
            .map_err(|why| SetError::Country { country: *country, why })
        }
        Source::File(path) => read(path, &mut reading),
        other => Err(SetError::NotRead(other.to_string())),
    };
    let results: Vec<_> = sources.iter().map(read_one).collect();
    stamped.into_iter().zip(results).collect()
}

/// How far the reading of several files has come.
struct Reading<'a> {
    done_bytes: u64,
    current: Current<'a>,
}

impl<'a> Reading<'a> {
    fn begin<'b>(progress: &'a Progress, files: impl Iterator<Item = &'b Stamp>) -> Self {
        let total_bytes = files.map(|file| file.bytes).sum();
        Self { done_bytes: 0, current: progress.begin(Step::Reading, total_bytes) }
    }

    /// One more line of the file, of so many.
    fn line(&mut self, number: usize, line: &str) {
        // Its line break is counted as one byte.
        self.done_bytes += line.len() as u64 + 1;
        if number.is_multiple_of(LINES_PER_NOTE) {
            self.current.at(self.done_bytes);
        }
    }
}

fn read(path: &Path, reading: &mut Reading<'_>) -> Result<Vec<IpNet>, SetError> {
    let unreadable = |why: String| SetError::Unreadable { path: path.to_owned(), why };
    let bytes =
        bounded_file::read(path, MAX_BYTES).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not text".to_owned()))?;
    let mut prefixes = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        reading.line(number, line);
        let written = line.split('#').next().unwrap_or_default().trim();
        if written.is_empty() {
            continue;
        }
        let bad = |why: String| SetError::BadLine {
            path: path.to_owned(),
            line: number,
            text: written.to_owned(),
            why,
        };
        match written.parse::<Source>() {
            Ok(Source::Prefix(prefix)) => prefixes.push(prefix),
            Ok(_) => return Err(bad("a set holds no other sets".to_owned())),
            Err(error) => return Err(bad(error.to_string())),
        }
        if prefixes.len() > MAX_PREFIXES {
            return Err(SetError::TooMany { path: path.to_owned() });
        }
    }
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use std::{fs, iter};

    use super::*;
    use crate::{policy::tests::rule, rule::Action};

    fn read_text(text: &str) -> Result<Vec<IpNet>, SetError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.txt");
        fs::write(&path, text).unwrap();
        let progress = Progress::default();
        read(&path, &mut Reading::begin(&progress, iter::empty()))
    }

    #[test]
    fn prefixes_and_addresses_stand_one_a_line() {
        let read =
            read_text("# office\n192.0.2.0/24\n\n  2001:db8::7 # printer\r\n10.0.0.1\n").unwrap();
        let expected = ["192.0.2.0/24", "2001:db8::7/128", "10.0.0.1/32"];
        assert_eq!(read, expected.map(|text| text.parse::<IpNet>().unwrap()));
        assert_eq!(read_text("").unwrap(), []);
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in ["192.0.2.1/24", "office", "lan", "@/etc/other", "192.0.2.0/24 10.0.0.0/8"] {
            let error = read_text(&format!("10.0.0.0/8\n{bad}\n")).unwrap_err();
            assert!(matches!(&error, SetError::BadLine { line: 2, .. }), "{error}");
            assert!(error.to_string().contains(bad), "{error}");
        }
        let progress = Progress::default();
        let mut reading = Reading::begin(&progress, iter::empty());
        assert!(matches!(
            read(Path::new("/nowhere/at/all"), &mut reading),
            Err(SetError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_set_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.txt");
        fs::write(&path, "192.0.2.0/24").unwrap();
        let rules = [rule("1", Action::Allow, &format!("@{}", path.display()))];
        let refused = Unreadable::Refused;
        let sets = Sets::default().completed(&rules, &[], refused, &Progress::default()).unwrap();
        fs::remove_file(&path).unwrap();
        let sets = sets.completed(&rules, &[], refused, &Progress::default()).unwrap();
        let source = &rules[0].source;
        assert_eq!(sets.prefixes(source).unwrap().len(), 1);
        assert!(Sets::default().completed(&rules, &[], refused, &Progress::default()).is_err());
        assert!(Sets::default().prefixes(source).is_err());
        // What only shows it does not fail for it.
        let shown = Sets::default()
            .completed(&rules, &[], Unreadable::Shown, &Progress::default())
            .unwrap();
        assert_eq!(shown.prefixes(source).unwrap().len(), 0);
        assert!(shown.refresh(source).unwrap().error.unwrap().contains("can't be read"));
        // What no rule names is forgotten.
        assert!(
            sets.completed(&[], &[], refused, &Progress::default())
                .unwrap()
                .prefixes(source)
                .is_err()
        );
    }

    /// Long enough after what was written.
    fn later() -> SystemTime {
        SystemTime::now() + bounded_file::SETTLED
    }

    #[test]
    fn a_changed_file_is_taken_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.txt");
        fs::write(&path, "192.0.2.0/24").unwrap();
        let rules = [rule("1", Action::Allow, &format!("@{}", path.display()))];
        let source = &rules[0].source;
        let mut sets = Sets::default()
            .completed(&rules, &[], Unreadable::Refused, &Progress::default())
            .unwrap();
        let holds = |sets: &Sets| sets.prefixes(source).unwrap()[0].to_string();
        let error = |sets: &Sets| sets.refresh(source).unwrap().error;
        assert_eq!(sets.reread(&[], later(), &Progress::default()).news, [""; 0]);

        let fresh = directory.path().join("fresh");
        fs::write(&fresh, "198.51.100.0/24").unwrap();
        fs::rename(&fresh, &path).unwrap();
        let reread = sets.reread(&[], SystemTime::now(), &Progress::default());
        assert!(reread.is_unfinished && reread.changed.is_empty(), "it may still be written");
        let reread = sets.reread(&[], later(), &Progress::default());
        assert_eq!((reread.changed, reread.is_unfinished), (vec![source.clone()], false));
        assert_eq!(holds(&sets), "198.51.100.0/24");

        for bad in ["198.51.100.1/24", "10.0.0.0/8\noffice"] {
            fs::write(&path, bad).unwrap();
            let reread = sets.reread(&[], later(), &Progress::default());
            assert_eq!((reread.changed.len(), reread.problems.len()), (0, 1), "{reread:?}");
            assert_eq!(holds(&sets), "198.51.100.0/24");
            assert!(error(&sets).unwrap().contains("is not an address"), "{bad}");
            assert_eq!(
                sets.reread(&[], later(), &Progress::default()).problems,
                [""; 0],
                "it is told once"
            );
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(sets.reread(&[], later(), &Progress::default()).problems.len(), 1);
        assert_eq!(holds(&sets), "198.51.100.0/24");
        fs::write(&path, "203.0.113.0/24").unwrap();
        let before = sets.clone();
        let reread = sets.reread(&[], later(), &Progress::default());
        assert_eq!((holds(&sets).as_str(), error(&sets)), ("203.0.113.0/24", None));
        sets.refuse(&before, &reread.changed, "too much");
        assert_eq!(holds(&sets), "198.51.100.0/24");
        assert!(error(&sets).unwrap().contains("too much"));
        assert_eq!(sets.directories(&[]), [directory.path()]);
    }

    #[test]
    fn a_country_without_files_is_refused_or_stands_for_nobody() {
        let allow = [rule("1", Action::Allow, "country:FR")];
        let deny = [rule("1", Action::Deny, "country:FR")];
        let none = Sets::default();
        for rules in [&allow, &deny] {
            let error = none
                .clone()
                .completed(rules, &[], Unreadable::Refused, &Progress::default())
                .unwrap_err();
            assert!(error.to_string().contains("no MMDB file is configured"), "{error}");
            let sets = none
                .clone()
                .completed(rules, &[], Unreadable::Shown, &Progress::default())
                .unwrap();
            assert_eq!(sets.prefixes(&rules[0].source).unwrap().len(), 0);
            assert!(sets.refresh(&rules[0].source).unwrap().error.is_some());
        }
    }

    #[test]
    fn names_and_sets_are_bounded() {
        let names = |number| -> Vec<Rule> {
            (0..number).map(|n| rule("1", Action::Allow, &format!("h{n}.example.org"))).collect()
        };
        let completed = |rules: &[Rule]| {
            Sets::default()
                .completed(rules, &[], Unreadable::Refused, &Progress::default())
                .map(|sets| sets.names.len())
        };
        assert_eq!(completed(&names(MAX_NAMES)), Ok(MAX_NAMES));
        assert_eq!(completed(&names(MAX_NAMES + 1)), Err(SetError::TooManyNames));
        let files: Vec<Rule> =
            (0..=MAX_SETS).map(|n| rule("1", Action::Allow, &format!("@/nowhere/{n}"))).collect();
        assert_eq!(completed(&files), Err(SetError::TooManySets));
    }
}
