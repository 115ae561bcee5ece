//! `cargo xtask install`: guard where the system looks for it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{answer, run as run_command, without_cargo_variables},
    workspace::Workspace,
};

/// Shells, and where each looks for completions that the administrator has installed.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/local/share/bash-completion/completions/guard"),
    ("zsh", "usr/local/share/zsh/site-functions/_guard"),
    ("fish", "usr/local/share/fish/vendor_completions.d/guard.fish"),
];

/// Files of `packaging`, and where they go.
const PACKAGED: [(&str, &str); 7] = [
    ("systemd/guard.service", "usr/local/lib/systemd/system/guard.service"),
    ("prometheus/guard-metrics.service", "usr/local/lib/systemd/system/guard-metrics.service"),
    ("prometheus/guard-metrics.timer", "usr/local/lib/systemd/system/guard-metrics.timer"),
    ("prometheus/guard.rules.yml", "usr/local/share/guard/guard.rules.yml"),
    ("grafana/guard.json", "usr/local/share/guard/grafana-dashboard.json"),
    ("sysusers.d/guard.conf", "usr/local/lib/sysusers.d/guard.conf"),
    ("tmpfiles.d/guard.conf", "usr/local/lib/tmpfiles.d/guard.conf"),
];

/// Puts everything in place below `destdir`, or the root directory; there it also makes the group.
pub fn run(workspace: &Workspace, binary: &Path, destdir: Option<&Path>) -> Result<()> {
    let root = destdir.unwrap_or(Path::new("/"));
    let program = fs::read(binary).with_context(|| format!("{} is not there", binary.display()))?;
    put(root, "usr/local/sbin/guard", &program, 0o755)?;
    for (from, to) in PACKAGED {
        let from = workspace.root.join("packaging").join(from);
        let text = fs::read(&from).with_context(|| format!("{} is not there", from.display()))?;
        put(root, to, &text, 0o644)?;
    }
    for (shell, to) in COMPLETIONS {
        let script = answer(without_cargo_variables(binary).args(["completions", shell]))
            .with_context(|| format!("{} writes no completions", binary.display()))?;
        put(root, to, script.as_bytes(), 0o644)?;
    }
    if destdir.is_none() {
        let mut sysusers = without_cargo_variables("systemd-sysusers");
        run_command(
            sysusers.arg("/usr/local/lib/sysusers.d/guard.conf"),
            "making the group guard",
        )?;
        let mut tmpfiles = without_cargo_variables("systemd-tmpfiles");
        run_command(
            tmpfiles.args(["--create", "/usr/local/lib/tmpfiles.d/guard.conf"]),
            "making the directory of logs",
        )?;
        run_command(
            without_cargo_variables("systemctl").arg("daemon-reload"),
            "telling systemd of the units",
        )?;
        eprintln!("xtask: installed; next: systemctl enable --now guard");
    }
    Ok(())
}

/// Writes a file beside its place and renames it: a running guard goes on with the old one.
fn put(root: &Path, to: &str, content: &[u8], mode: u32) -> Result<()> {
    let path = root.join(to);
    let failed = || format!("{} could not be installed", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(failed)?;
    }
    let mut new = path.clone().into_os_string();
    new.push(".new");
    let new = PathBuf::from(new);
    fs::write(&new, content).with_context(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).with_context(failed)?;
    fs::rename(&new, &path).with_context(failed)?;
    eprintln!("xtask: {}", path.display());
    Ok(())
}
