//! The files that facts come from, read again when they have changed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    geo::{self, Database},
    labels::{self, Labels, List},
    scanners,
};
use crate::{
    bounded_file::{self, Stamp},
    config::Enrich,
};

/// The most label files.
const MAX_LABEL_FILES: usize = 256;

/// What one file held when it was last read.
#[derive(Debug)]
struct Held<T> {
    stamp: Option<Stamp>,
    /// Of the last time it could be read.
    content: Option<Arc<T>>,
    /// Why what it holds now was not taken.
    error: Option<String>,
}

/// What is known of all files. It is replaced as a whole.
#[derive(Clone, Debug)]
pub struct Files {
    databases: BTreeMap<PathBuf, Arc<Held<Database>>>,
    lists: BTreeMap<PathBuf, Arc<Held<List>>>,
    /// In the order of the configuration.
    pub in_order: Vec<Arc<Database>>,
    pub labels: Arc<Labels>,
    /// What is wrong with the lists together.
    error: Option<String>,
}

impl Default for Files {
    /// What guard carries itself.
    fn default() -> Self {
        let mut labels = Labels::default();
        let error = labels.add(&scanners::table()).err();
        Self {
            databases: BTreeMap::new(),
            lists: BTreeMap::new(),
            in_order: Vec::new(),
            labels: Arc::new(labels),
            error,
        }
    }
}

/// What has become of the files.
#[derive(Debug, Default)]
pub struct Reread {
    /// `None` where nothing has changed.
    pub files: Option<Files>,
    /// Some have just been written, and are read later.
    pub is_unfinished: bool,
}

impl Files {
    /// Reads what has changed since these were read. A file that can't be read leaves in place what it held before.
    #[must_use]
    pub fn reread(&self, config: &Enrich, now: SystemTime) -> Reread {
        let mut reread = Reread::default();
        let mut fresh = self.clone();
        let mut has_changed = false;
        let (paths, error) = label_files(&config.labels);
        let mut step = |outcome: Step| match outcome {
            Step::Unchanged => {}
            Step::Changed => has_changed = true,
            Step::Unfinished => reread.is_unfinished = true,
        };
        fresh.databases = follow(&self.databases, &config.mmdb, now, &mut step, |path| {
            read(path, geo::MAX_BYTES).and_then(Database::new)
        });
        fresh.lists = follow(&self.lists, &paths, now, &mut step, |path| {
            let bytes = read(path, labels::MAX_BYTES)?;
            List::parse(&bytes, &labels::name_of(path))
        });
        let in_order = |path| fresh.databases.get(path).and_then(|held| held.content.clone());
        fresh.in_order = config.mmdb.iter().filter_map(in_order).collect();
        // The same files in another order.
        has_changed |=
            !fresh.in_order.iter().map(Arc::as_ptr).eq(self.in_order.iter().map(Arc::as_ptr));
        if has_changed {
            fresh.arrange(error);
            reread.files = Some(fresh);
        }
        reread
    }

    /// Puts all lists together.
    fn arrange(&mut self, error: Option<String>) {
        let mut labels = Labels::default();
        let mut errors: Vec<String> = error.into_iter().collect();
        errors.extend(labels.add(&scanners::table()).err());
        for (path, held) in &self.lists {
            if let Some(list) = &held.content
                && let Err(why) = labels.add(list)
            {
                errors.push(format!("{} gives no labels: {why}", path.display()));
            }
        }
        self.labels = Arc::new(labels);
        self.error = (!errors.is_empty()).then(|| errors.join("; "));
    }

    /// What is wrong with them, one sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let sentence = |path: &Path, error: &str, is_held: bool| {
            let instead = if is_held { "what it held before is used" } else { "it is left out" };
            format!("{} tells nothing of sources, {instead}: {error}", path.display())
        };
        let databases = self.databases.iter().filter_map(|(path, held)| {
            let damage = held.content.as_ref().and_then(|database| database.damage());
            let error = held.error.as_deref().or(damage)?;
            Some(sentence(path, error, held.content.is_some() && damage.is_none()))
        });
        let lists = self.lists.iter().filter_map(|(path, held)| {
            Some(sentence(path, held.error.as_deref()?, held.content.is_some()))
        });
        databases.chain(lists).chain(self.error.clone()).collect()
    }
}

enum Step {
    Unchanged,
    Changed,
    Unfinished,
}

/// Those files that are wanted now, each as before or, where it has changed, as it can be read.
fn follow<T>(
    before: &BTreeMap<PathBuf, Arc<Held<T>>>,
    wanted: &[PathBuf],
    now: SystemTime,
    step: &mut impl FnMut(Step),
    read: impl Fn(&Path) -> Result<T, String>,
) -> BTreeMap<PathBuf, Arc<Held<T>>> {
    let mut after = BTreeMap::new();
    for path in wanted {
        let stamp = Stamp::of(path);
        let known = before.get(path);
        let held = match known {
            Some(known) if known.stamp == stamp => {
                step(Step::Unchanged);
                known.clone()
            }
            Some(known) if stamp.is_some_and(|stamp| !stamp.is_settled(now)) => {
                step(Step::Unfinished);
                known.clone()
            }
            _ => {
                step(Step::Changed);
                let (content, error) = match read(path) {
                    Ok(content) => (Some(Arc::new(content)), None),
                    Err(error) => (known.and_then(|known| known.content.clone()), Some(error)),
                };
                Arc::new(Held { stamp, content, error })
            }
        };
        after.insert(path.clone(), held);
    }
    if before.keys().any(|path| !after.contains_key(path)) {
        step(Step::Changed);
    }
    after
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    bounded_file::read(path, limit).map_err(|error| error.to_string())
}

/// The files that these patterns name now, in order, and what is wrong with that. A path without a `*` is one file, also where it
/// is not there.
fn label_files(patterns: &[PathBuf]) -> (Vec<PathBuf>, Option<String>) {
    let mut paths = Vec::new();
    for pattern in patterns {
        let text = pattern.to_string_lossy();
        match glob::glob(&text) {
            Ok(found) if text.contains(['*', '?', '[']) => {
                let files = found.flatten().filter(|path| !path.is_dir());
                paths.extend(files.take(MAX_LABEL_FILES + 1));
            }
            // The configuration was refused if it is no pattern.
            Ok(_) | Err(_) => paths.push(pattern.clone()),
        }
    }
    paths.sort_unstable();
    paths.dedup();
    let is_too_many = paths.len() > MAX_LABEL_FILES;
    paths.truncate(MAX_LABEL_FILES);
    let error =
        format!("more than {MAX_LABEL_FILES} label files are named: the others are left out");
    (paths, is_too_many.then_some(error))
}

/// The directories in which files can appear that the configuration names.
#[must_use]
pub fn directories(config: &Enrich) -> Vec<PathBuf> {
    let (labels, _) = label_files(&config.labels);
    let files = config.mmdb.iter().chain(&labels);
    let parents = files
        .flat_map(|path| [Some(path.clone()), fs::canonicalize(path).ok()])
        .filter_map(|path| path?.parent().map(Path::to_path_buf));
    // The longest part of a pattern that stands for itself.
    let roots = config.labels.iter().map(|pattern| {
        let is_plain = |part: &std::path::Component<'_>| {
            !part.as_os_str().to_string_lossy().contains(['*', '?', '['])
        };
        let mut root: PathBuf = pattern.components().take_while(is_plain).collect();
        if root == *pattern {
            root.pop();
        }
        root
    });
    let mut directories: Vec<PathBuf> = parents.chain(roots).collect();
    directories.sort_unstable();
    directories.dedup();
    directories
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        events::SourceFacts,
        mmdb::{self, Fact},
    };

    struct World {
        directory: tempfile::TempDir,
        config: Enrich,
        files: Files,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            let config =
                Enrich { mmdb: vec![at("a.mmdb"), at("b.mmdb")], labels: vec![at("labels/*.txt")] };
            fs::create_dir(at("labels")).unwrap();
            Self { directory, config, files: Files::default() }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            fs::write(self.at(name), content).unwrap();
        }

        /// Reads again when all that was written is settled; says whether anything was new.
        fn reread(&mut self) -> bool {
            let later = SystemTime::now() + bounded_file::SETTLED;
            let reread = self.files.reread(&self.config, later);
            assert!(!reread.is_unfinished);
            let is_new = reread.files.is_some();
            if let Some(files) = reread.files {
                self.files = files;
            }
            is_new
        }

        fn problems(&self) -> String {
            self.files
                .problems()
                .join("\n")
                .replace(&self.directory.path().display().to_string(), "")
        }

        fn labels(&self, address: &str) -> String {
            self.files.labels.of(address.parse().unwrap()).join(" ")
        }

        fn country(&self, address: &str) -> Option<String> {
            let address: IpAddr = address.parse().unwrap();
            let mut facts = SourceFacts::default();
            self.files.in_order.iter().for_each(|database| database.add_to(&mut facts, address));
            facts.country
        }
    }

    fn country(code: &'static str) -> Vec<u8> {
        mmdb::file(&[("203.0.113.0".parse().unwrap(), 24, Fact::Nested(code))], &[])
    }

    #[test]
    fn a_file_is_read_when_it_comes_changes_and_goes() {
        let mut world = World::new();
        world.write("a.mmdb", country("FR"));
        world.write("b.mmdb", country("DE"));
        assert!(world.reread());
        assert!(!world.reread());
        assert_eq!(world.problems(), "");
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("FR"));
        assert_eq!(world.labels("203.0.113.9"), "");
        assert_eq!(world.labels("162.142.125.1"), "research-scanner:censys");

        world.write("labels/office.txt", "203.0.113.0/24\n");
        world.write("labels/other.md", "nonsense\n");
        assert!(world.reread());
        assert_eq!(world.labels("203.0.113.9"), "office");
        fs::rename(world.at("labels/office.txt"), world.at("labels/branch.txt")).unwrap();
        assert!(world.reread());
        assert_eq!(world.labels("203.0.113.9"), "branch");
        fs::remove_file(world.at("labels/branch.txt")).unwrap();
        assert!(world.reread());
        assert_eq!((world.labels("203.0.113.9"), world.problems()), (String::new(), String::new()));

        world.config.mmdb.remove(0);
        world.reread();
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("DE"));
    }

    #[test]
    fn the_order_of_the_configuration_decides_also_when_it_changes() {
        let mut world = World::new();
        world.write("a.mmdb", country("FR"));
        world.write("b.mmdb", country("DE"));
        world.reread();
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("FR"));
        world.config.mmdb.reverse();
        world.reread();
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("DE"));
        assert!(!world.reread());
    }

    #[test]
    fn a_bad_file_is_named_and_takes_nothing_else_with_it() {
        let mut world = World::new();
        world.write("b.mmdb", country("DE"));
        world.write("labels/bad.txt", "192.0.2.1\nnonsense\n");
        world.write("labels/good.txt", "203.0.113.0/24\n");
        world.reread();
        assert_eq!(
            world.problems(),
            "/a.mmdb tells nothing of sources, it is left out: No such file or directory (os error 2)\n\
             /labels/bad.txt tells nothing of sources, it is left out: line 2: \"nonsense\" is not an address or a prefix"
        );
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("DE"));
        assert_eq!(
            (world.labels("203.0.113.9"), world.labels("192.0.2.1")),
            ("good".into(), String::new())
        );

        // What was good stays while its file is bad.
        world.write("b.mmdb", "no such file");
        world.write("labels/good.txt", "nonsense");
        world.write("labels/bad.txt", "192.0.2.1\n");
        world.write("a.mmdb", country("FR"));
        world.reread();
        assert_eq!(world.country("203.0.113.9").as_deref(), Some("FR"));
        assert_eq!(
            (world.labels("203.0.113.9"), world.labels("192.0.2.1")),
            ("good".into(), "bad".into())
        );
        let problems = world.problems();
        assert!(
            problems.starts_with(
                "/b.mmdb tells nothing of sources, what it held before is used: it is no sound MMDB"
            ),
            "{problems}"
        );
        assert!(
            problems.contains("/labels/good.txt tells nothing of sources, what it held"),
            "{problems}"
        );
        world.write("b.mmdb", country("DE"));
        world.write("labels/good.txt", "");
        world.reread();
        assert_eq!((world.problems(), world.labels("203.0.113.9")), (String::new(), String::new()));
    }

    #[test]
    fn what_is_being_written_is_read_later() {
        let mut world = World::new();
        world.config.mmdb.clear();
        world.write("labels/a.txt", "192.0.2.1\n");
        world.reread();
        world.write("labels/a.txt", "192.0.2.1\n192.0.2.2\n");
        let reread = world.files.reread(&world.config, SystemTime::now());
        assert!(reread.is_unfinished && reread.files.is_none());
        assert!(world.reread());
        assert_eq!(world.labels("192.0.2.2"), "a");
    }

    #[test]
    fn too_many_label_files_are_told() {
        let mut world = World::new();
        world.config.mmdb.clear();
        for number in 0..=MAX_LABEL_FILES {
            world.write(&format!("labels/{number:04}.txt"), "192.0.2.1\n");
        }
        world.reread();
        assert!(world.problems().contains("more than 256 label files"), "{}", world.problems());
    }

    #[test]
    fn the_directories_of_files_and_patterns_are_known() {
        let config = Enrich {
            mmdb: vec!["/nowhere/a.mmdb".into()],
            labels: vec!["/lists/*/list.json".into(), "/one/file.txt".into()],
        };
        let known = directories(&config);
        for path in ["/nowhere", "/lists", "/one"] {
            assert!(known.contains(&PathBuf::from(path)), "{path} in {known:?}");
        }
        assert!(!known.contains(&PathBuf::from("/one/file.txt")));
    }
}
