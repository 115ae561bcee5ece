//! The kernels that guard is tested on, and their modules.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::apt::{Apt, Mirrors};
use crate::command::without_cargo_variables;

/// A line of kernels, and the Debian suite that has its newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    pub name: &'static str,
    suite: &'static str,
    flavour: &'static str,
}

/// From the oldest kernel that guard runs on to the newest that Debian builds for its stable release.
pub const SERIES: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye-security", flavour: CLOUD },
    Series { name: "6.1", suite: "bookworm-security", flavour: CLOUD },
    Series { name: "6.12", suite: "trixie-security", flavour: WHOLE },
    Series { name: "6.18", suite: "trixie-backports", flavour: CLOUD },
    Series { name: NEWEST, suite: "trixie-backports", flavour: CLOUD },
];

const NEWEST: &str = "newest";

/// For virtual machines: small.
const CLOUD: &str = "-cloud-amd64";

/// For real machines too: it has PPP.
const WHOLE: &str = "-amd64";

/// What the tests make networks of. What a kernel has built in, or not at all, is left out.
const MODULES: [&str; 46] = [
    "crc32c_generic",
    "veth",
    "bridge",
    "dummy",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
    "udp_diag",
    "8021q",
    "bonding",
    "team",
    "macvlan",
    "ipvlan",
    "vrf",
    "wireguard",
    "vxlan",
    "geneve",
    "ipip",
    "ip_gre",
    "sit",
    "ip6_tunnel",
    "ip6_gre",
    "fou",
    "pppoe",
    "ppp_generic",
    "xfrm_user",
    "esp4",
    "esp6",
    "gcm",
    "ctr",
    "ghash_generic",
    "jitterentropy_rng",
    "drbg",
    "seqiv",
    "crypto_null",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_socket",
    "nft_tproxy",
    "nft_reject_inet",
    "nft_fib_inet",
];

/// Of these names, in this order; all of them where none is named.
pub fn series(names: &[String]) -> Result<Vec<Series>> {
    if names.is_empty() {
        return Ok(SERIES.to_vec());
    }
    let find = |name: &String| {
        SERIES.into_iter().find(|series| series.name == name).with_context(|| {
            let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
            format!("there is no kernel `{name}` to test on: there are {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// An unpacked kernel.
pub struct Kernel {
    /// As Debian's package calls it, such as `6.12.118+deb13`.
    pub release: String,
    tree: PathBuf,
}

impl Kernel {
    /// Fetches the newest kernel of a series, unless it is here already.
    pub fn fetch(series: Series, mirrors: &Mirrors, directory: &Path) -> Result<Self> {
        let apt = Apt::new(directory.join("apt").join(series.suite), mirrors, &[series.suite])?;
        let names = apt.names("linux-");
        let release = newest(series, &names).with_context(|| {
            format!("{} has no kernel {}: is the mirror complete?", series.suite, series.name)
        })?;
        let tree = directory.join("kernels").join(&release);
        if !tree.exists() {
            fs::create_dir_all(directory.join("kernels"))
                .with_context(|| format!("{} can't be made", directory.display()))?;
            apt.unpack(&packages(series, &release, &names), &tree)?;
        }
        Ok(Self { release, tree })
    }

    pub fn image(&self) -> Result<PathBuf> {
        let mut images = Vec::new();
        find(&self.tree, &|name| name.starts_with("vmlinuz"), &mut images)?;
        images.pop().with_context(|| format!("there is no vmlinuz in {}", self.tree.display()))
    }

    /// The wanted modules and those that they need, each behind what it needs, decompressed.
    pub fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        find(&self.tree, &|name| module_name(name).is_some(), &mut files)?;
        let mut paths = BTreeMap::new();
        for path in files {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if let Some(name) = name.as_deref().and_then(module_name) {
                paths.insert(name, path);
            }
        }
        let mut modules = Vec::new();
        let mut seen = HashSet::new();
        for name in MODULES {
            add_module(name, &paths, &mut seen, &mut modules)?;
        }
        ensure!(!modules.is_empty(), "there are no modules in {}", self.tree.display());
        Ok(modules)
    }
}

fn add_module(
    name: &str,
    paths: &BTreeMap<String, PathBuf>,
    seen: &mut HashSet<String>,
    modules: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(path) = paths.get(name).filter(|_| seen.insert(name.to_owned())) else {
        return Ok(());
    };
    let image = read_module(path)?;
    for needed in dependencies(&image) {
        add_module(&needed, paths, seen, modules)?;
    }
    modules.push((name.to_owned(), image));
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("{} can't be read", path.display()));
    }
    let output = without_cargo_variables("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .context("`xz` can't be started: install xz-utils")?;
    if !output.status.success() {
        bail!("{} can't be decompressed: xz ended with {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// The module in a file of this name, as the kernel calls it.
fn module_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// The modules that a module says it needs: `depends=` in its section `.modinfo`, where strings end with a zero.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let names = image[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(names)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The files below a directory whose name is wanted.
fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || format!("{} can't be read", directory.display());
    for entry in fs::read_dir(directory).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let kind = entry.file_type().with_context(failed)?;
        if kind.is_dir() {
            find(&entry.path(), wanted, found)?;
        } else if kind.is_file() && wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The newest release of a series among names of packages.
fn newest(series: Series, packages: &[String]) -> Option<String> {
    let release = |package: &String| {
        let release = package.strip_prefix("linux-image-")?.strip_suffix(series.flavour)?;
        // A package that only names another has the series alone for a version; a name that goes on with words is another flavour's.
        let is_whole = !release.ends_with(|c: char| c.is_ascii_alphabetic())
            && release.starts_with(|c: char| c.is_ascii_digit())
            && numbers(release).len() > numbers(series.name).len().max(2);
        let is_of_series = series.name == NEWEST
            || release.strip_prefix(series.name).is_some_and(|rest| rest.starts_with('.'));
        (is_whole && is_of_series).then(|| release.to_owned())
    };
    packages.iter().filter_map(release).max_by_key(|release| numbers(release))
}

/// The numbers of a version, in order: later releases have greater ones.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The packages that hold a release. From 6.19 on, `linux-image` is empty and others hold kernel and modules.
fn packages(series: Series, release: &str, all: &[String]) -> Vec<String> {
    let known = |kind: &str| {
        let name = format!("linux-{kind}-{release}{}", series.flavour);
        all.contains(&name).then_some(name)
    };
    let image = known("binary").or_else(|| known("image"));
    image.into_iter().chain(known("modules")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_found_by_number() {
        let all = names(&[
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-99-amd64",
            "linux-image-6.12.118+deb13-amd64",
            "linux-image-6.12.119+deb13-cloud-amd64",
            "linux-image-6.12.119+deb13-rt-amd64",
            "linux-image-6.12.115+deb13.1-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ]);
        let of = |name: &str| newest(series(&names(&[name])).unwrap()[0], &all);
        assert_eq!(of("6.1").as_deref(), Some("6.1.0-56"));
        assert_eq!(of("6.12").as_deref(), Some("6.12.118+deb13"));
        assert_eq!(of("newest").as_deref(), Some("7.3.4+deb13"));
        assert_eq!(of("5.10"), None);
    }

    #[test]
    fn an_unknown_series_is_refused_with_those_there_are() {
        let error = series(&names(&["6.12", "4.19"])).unwrap_err().to_string();
        assert!(error.contains("`4.19`") && error.contains("5.10, 6.1, 6.12"), "{error}");
        assert_eq!(series(&[]).unwrap().len(), SERIES.len());
    }

    #[test]
    fn a_kernel_may_lie_in_one_package_or_in_two() {
        let cloud = Series { name: "6.1", suite: "bookworm-security", flavour: CLOUD };
        let all = names(&[
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]);
        assert_eq!(packages(cloud, "6.1.0-56", &all), names(&["linux-image-6.1.0-56-cloud-amd64"]));
        assert_eq!(
            packages(cloud, "7.3.4+deb13", &all),
            names(&[
                "linux-binary-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64"
            ])
        );
    }

    #[test]
    fn modules_are_named_as_the_kernel_names_them() {
        assert_eq!(module_name("nft_chain_nat.ko.xz").as_deref(), Some("nft_chain_nat"));
        assert_eq!(module_name("poly1305-x86_64.ko").as_deref(), Some("poly1305_x86_64"));
        assert_eq!(module_name("modules.dep"), None);
    }

    #[test]
    fn a_modules_needs_are_read() {
        assert_eq!(dependencies(b"x\0depends=udp_tunnel,ip6-udp\0y"), ["udp_tunnel", "ip6_udp"]);
        assert!(dependencies(b"x\0depends=\0y").is_empty());
        assert!(dependencies(b"none").is_empty());
    }
}
