//! Packages of any Debian release, fetched and unpacked but never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::command::{answer, run, without_cargo_variables};

/// Debian's keys, for suites that this machine's own sources do not name.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine fetches its own packages: no address stands in the sources.
pub struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    pub fn of_this_machine() -> Result<Self> {
        let mut apt = without_cargo_variables("apt-get");
        apt.args(["indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]);
        let text = answer(&mut apt).context(
            "apt-get does not name its sources: the kernels come as Debian packages, through apt",
        )?;
        Self::among(text.lines())
    }

    fn among<'a>(addresses: impl Iterator<Item = &'a str>) -> Result<Self> {
        let (security, main): (Vec<&str>, Vec<&str>) = addresses
            .filter(|address| address.contains("debian"))
            .partition(|address| address.trim_end_matches('/').ends_with("-security"));
        match (main.first(), security.first()) {
            (Some(main), Some(security)) => {
                Ok(Self { main: (*main).to_owned(), security: (*security).to_owned() })
            }
            _ => bail!(
                "apt knows no Debian mirror with its security archive: add both to its sources, \
                 and run `apt-get update`"
            ),
        }
    }

    fn of_suite(&self, suite: &str) -> &str {
        if suite.ends_with("-security") { &self.security } else { &self.main }
    }
}

/// An apt of its own, with sources of its own, that knows which packages this machine has.
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Reads the lists of these suites anew; where they can't be reached, those from before serve.
    pub fn new(directory: PathBuf, mirrors: &Mirrors, suites: &[&str]) -> Result<Self> {
        let apt = Self { directory };
        for part in ["state/lists/partial", "cache/archives/partial", "sources"] {
            make_directory(&apt.directory.join(part))?;
        }
        let root = apt.directory.display();
        let status = apt.directory.join("status");
        fs::copy("/var/lib/dpkg/status", &status)
            .context("the list of installed packages, /var/lib/dpkg/status, can't be copied")?;
        write(
            &apt.configuration(),
            &format!(
                "Dir::State \"{root}/state\";\nDir::State::status \"{root}/status\";\n\
                 Dir::Cache \"{root}/cache\";\nDir::Etc::sourcelist \"/dev/null\";\n\
                 Dir::Etc::sourceparts \"{root}/sources\";\nAcquire::Languages \"none\";\n\
                 APT::Sandbox::User \"root\";\n"
            ),
        )?;
        let source = |suite: &&str| {
            format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirrors.of_suite(suite))
        };
        let sources: Vec<String> = suites.iter().map(source).collect();
        write(&apt.directory.join("sources/suites.list"), &sources.concat())?;
        let what = format!("reading the lists of {}", suites.join(" and "));
        if let Err(error) = run(apt.command("apt-get").args(["--quiet=2", "update"]), &what) {
            eprintln!("xtask: {error:#}; going on with the lists that are here");
        }
        Ok(apt)
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("apt.conf")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = without_cargo_variables(program);
        command.env("APT_CONFIG", self.configuration()).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The names of all packages that begin so.
    pub fn names(&self, beginning: &str) -> Vec<String> {
        let names = answer(self.command("apt-cache").args(["pkgnames", beginning]));
        names.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Unpacks these packages into a directory, which is there only once it is complete.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download.args(["--quiet=2", "download"]).args(packages);
        unpack_what(&mut download, &packages.join(" and "), into)
    }

    /// As [`Apt::unpack`], one package with all it needs that this machine has not installed.
    pub fn unpack_with_dependencies(&self, package: &str, into: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download
            .args(["--quiet=2", "install", "--download-only", "--yes", "--no-install-recommends"])
            .arg("--option")
            .arg(format!("Dir::Cache::archives={}", partial(into).display()))
            .arg(package);
        unpack_what(&mut download, package, into)
    }
}

/// Runs what downloads packages into a directory beside this one, and unpacks them.
fn unpack_what(download: &mut Command, name: &str, into: &Path) -> Result<()> {
    let place = partial(into);
    if place.exists() {
        fs::remove_dir_all(&place)
            .with_context(|| format!("{} can't be removed", place.display()))?;
    }
    make_directory(&place.join("partial"))?;
    make_directory(&place.join("tree"))?;
    eprintln!("xtask: fetching {name}");
    run(download.current_dir(&place), &format!("fetching {name}"))?;
    for package in files_of(&place, ".deb")? {
        let mut unpack = without_cargo_variables("dpkg-deb");
        unpack.arg("--extract").arg(&package).arg(place.join("tree"));
        run(&mut unpack, &format!("unpacking {}", package.display()))?;
    }
    fs::rename(place.join("tree"), into)
        .with_context(|| format!("{} can't be made", into.display()))?;
    fs::remove_dir_all(&place).with_context(|| format!("{} can't be removed", place.display()))
}

/// Where a directory's content is gathered until it is complete.
fn partial(directory: &Path) -> PathBuf {
    directory.with_extension("partial")
}

fn files_of(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let failed = || format!("{} can't be read", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if path.to_string_lossy().ends_with(ending) {
            files.push(path);
        }
    }
    Ok(files)
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("{} can't be made", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_come_from_the_mirror_that_has_them() {
        let mirrors = Mirrors::among(
            [
                "http://packages.example/other/",
                "http://mirror.example/debian/",
                "http://mirror.example/debian-security/",
            ]
            .into_iter(),
        )
        .unwrap();
        assert_eq!(mirrors.of_suite("trixie-backports"), "http://mirror.example/debian/");
        assert_eq!(mirrors.of_suite("bookworm-security"), "http://mirror.example/debian-security/");
    }

    #[test]
    fn a_missing_mirror_is_said() {
        for addresses in [vec![], vec!["http://mirror.example/debian/"]] {
            let error = Mirrors::among(addresses.into_iter()).err().unwrap();
            assert!(error.to_string().contains("security archive"), "{error}");
        }
    }
}
