//! The last good answers for DNS names, kept across restarts in `names.json` of the state directory: with a resolver that is dead
//! the right hosts get in all the same. It holds no rule; where it is lost or bad, names are asked for anew.

use std::{collections::BTreeMap, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bounded_file::{self, ReadError},
    policy::names::{Known, MAX_NAMES},
    rule::DnsName,
};

/// The file's name in the state directory.
pub const FILE_NAME: &str = "names.json";

/// The number of this format.
const VERSION: u32 = 1;

/// As many names with as many addresses as there may be take less.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    names: BTreeMap<DnsName, Known>,
}

/// What was kept in a directory, and what is wrong with it, in one sentence: nothing of it is taken then.
#[must_use]
pub fn load(directory: &Path, now: Timestamp) -> (BTreeMap<DnsName, Known>, Option<String>) {
    let path = directory.join(FILE_NAME);
    let warning = |why: String| {
        let what = format!(
            "The file of names {} is not taken ({why}): names are asked for anew, and let nobody in until they are answered.",
            path.display()
        );
        (BTreeMap::new(), Some(what))
    };
    let bytes = match bounded_file::read(&path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return (BTreeMap::new(), None);
        }
        Err(error) => return warning(error.to_string()),
    };
    let stored: Stored = match serde_json::from_slice(&bytes) {
        Ok(stored) => stored,
        // The error itself may quote what stands there.
        Err(error) => {
            return warning(format!(
                "it breaks off or is wrong at line {}, column {}",
                error.line(),
                error.column()
            ));
        }
    };
    if stored.version != VERSION || stored.names.len() > MAX_NAMES {
        return warning("it is another guard's, or holds too many names".to_owned());
    }
    let names = stored.names.into_iter().map(|(name, known)| (name, known.from_file(now)));
    (names.collect(), None)
}

/// Keeps these in a directory, which is made where it is absent.
///
/// # Errors
/// When they can't be written; the file is as it was then.
pub fn save(directory: &Path, names: &BTreeMap<DnsName, Known>) -> io::Result<()> {
    let stored = Stored { version: VERSION, names: names.clone() };
    let mut text = serde_json::to_string_pretty(&stored)?;
    text.push('\n');
    bounded_file::replace(directory, FILE_NAME, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::policy::names::{Answer, Said};

    #[test]
    fn what_is_kept_is_loaded_and_what_is_bad_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-11-25T01:00:00Z".parse().unwrap();
        assert_eq!(load(directory.path(), now), (BTreeMap::new(), None));
        let mut known = Known::default();
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let v4 = Said::Addresses { addresses, ttl: Duration::from_mins(1) };
        known.take(Answer { v4, v6: Said::Nothing }, now);
        let names = BTreeMap::from([("host.example.org".parse().unwrap(), known)]);
        save(directory.path(), &names).unwrap();
        let (loaded, warning) = load(directory.path(), now);
        assert_eq!(warning, None);
        let addresses = |names: &BTreeMap<DnsName, Known>| -> Vec<String> {
            names.values().flat_map(Known::addresses).map(ToString::to_string).collect()
        };
        assert_eq!(addresses(&loaded), ["192.0.2.1"]);

        let path = directory.path().join(FILE_NAME);
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            good[..good.len() / 2].to_owned(),
            good.replace("host.example.org", "host"),
            good.replace("192.0.2.1", "192.0.2.1/24"),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("gone_since", "gone"),
            "\u{1b}[2J".to_owned(),
            String::new(),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, &bad).unwrap();
            let (loaded, warning) = load(directory.path(), now);
            assert!(loaded.is_empty(), "{bad}");
            let warning = warning.unwrap();
            assert!(warning.contains("asked for anew") && !warning.contains('\u{1b}'), "{warning}");
        }
    }
}
