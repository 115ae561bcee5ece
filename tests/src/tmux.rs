//! A real terminal for programs that take over the whole of one: a window of tmux, whose keys are pressed and whose characters
//! are read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{command, kernel, lab::Lab, wait::until};

/// A window with a shell in it. It ends, with all that runs in it, when this is dropped.
#[derive(Debug)]
pub struct Window {
    directory: PathBuf,
    server: Child,
}

impl Window {
    /// Opens one of this size; `None` where there is no tmux, which is said. `.ci/run` installs it.
    #[must_use]
    #[track_caller]
    pub fn open(lab: &Lab, (width, height): (u16, u16)) -> Option<Self> {
        if !command::is_installed("tmux") {
            kernel::skip(lab.name(), "not run: no tmux on this machine");
            return None;
        }
        let directory = lab.directory().to_owned();
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "tmux", "-f", "/dev/null", "-D", "-S"])
            .arg(socket(&directory))
            // It would be inside another else, where this test is run in one.
            .env_remove("TMUX")
            .env("PS1", "$ ")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // That it has no terminal of its own, for which it is started so.
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("tmux can't be started: {error}"));
        let window = Self { directory, server };
        let (width, height) = (width.to_string(), height.to_string());
        until("tmux opens a window", || {
            window.ask(&["new-session", "-d", "-x", &width, "-y", &height, "sh"]).is_some()
        });
        Some(window)
    }

    /// What tmux answers, where it does.
    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(socket(&self.directory)).args(arguments).env_remove("TMUX");
        let output = command::output(&mut tmux, "");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[track_caller]
    fn tell(&self, arguments: &[&str]) -> String {
        self.ask(arguments).unwrap_or_else(|| panic!("tmux refuses {arguments:?}"))
    }

    /// Presses keys by their names: `Enter`, `Down`, `C-c`.
    #[track_caller]
    pub fn press(&self, keys: &[&str]) {
        self.tell(&[&["send-keys"], keys].concat());
    }

    /// Types a text.
    #[track_caller]
    pub fn type_in(&self, text: &str) {
        self.tell(&["send-keys", "-l", text]);
    }

    #[track_caller]
    pub fn resize(&self, (width, height): (u16, u16)) {
        self.tell(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// The characters in it, line by line.
    #[must_use]
    #[track_caller]
    pub fn shown(&self) -> String {
        self.tell(&["capture-pane", "-p"])
    }

    #[track_caller]
    pub fn expect(&self, text: &str) {
        self.expect_that(&format!("{text:?} is shown"), |shown| shown.contains(text));
    }

    #[track_caller]
    pub fn expect_gone(&self, text: &str) {
        self.expect_that(&format!("{text:?} is no longer shown"), |shown| !shown.contains(text));
    }

    /// Waits until the last of so many lines is not empty: the program has drawn them all.
    #[track_caller]
    pub fn expect_that_lines_are(&self, count: usize) {
        self.expect_that(&format!("{count} lines are drawn"), |shown| {
            let lines: Vec<&str> = shown.lines().collect();
            lines.len() == count && lines.last().is_some_and(|line| !line.is_empty())
        });
    }

    #[track_caller]
    fn expect_that(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let mut shown = String::new();
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, || {
                shown = self.shown();
                holds(&shown)
            });
        }));
        assert!(asked.is_ok(), "{what}: not so in\n{shown}");
    }

    /// Whether a program has taken the screen over: it is the alternate one, without a cursor.
    #[must_use]
    #[track_caller]
    pub fn is_taken(&self) -> bool {
        match self.tell(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim() {
            "1 0" => true,
            "0 1" => false,
            other => panic!("neither taken nor given back: {other}"),
        }
    }

    /// Runs a program in it from the shell, and waits until that has the screen. Its process is that which is returned.
    #[must_use]
    #[track_caller]
    pub fn run(&self, words: &[String]) -> u32 {
        for name in ["pid", "before", "code", "after"] {
            let _ = fs::remove_file(self.file(name));
        }
        let quoted: Vec<String> =
            words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let script = format!("echo $$ > {}\nexec {}\n", self.name("pid"), quoted.join(" "));
        fs::write(self.file("script"), script).expect("it can be written");
        self.type_in(&format!(
            "clear; stty -a >{}; sh {}; echo $? >{}; stty -a >{}",
            self.name("before"),
            self.name("script"),
            self.name("code"),
            self.name("after"),
        ));
        self.press(&["Enter"]);
        until("the screen is taken", || {
            let codes = self.tell(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
            codes.trim() == "1 0" || self.read("code").is_some()
        });
        let pid = self.read("pid").and_then(|pid| pid.trim().parse().ok());
        pid.unwrap_or_else(|| panic!("it has no process:\n{}", self.shown()))
    }

    /// Waits until the program has ended, fails the test unless the terminal is as it was before, and returns the exit code as
    /// the shell has it.
    #[must_use]
    #[track_caller]
    pub fn ended(&self) -> i32 {
        until("it has ended", || self.read("after").is_some());
        assert!(!self.is_taken(), "it has left the screen");
        assert_eq!(self.read("after"), self.read("before"), "the terminal's settings");
        let code = self.read("code").and_then(|code| code.trim().parse().ok());
        code.expect("an exit code")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("window-{name}"))
    }

    fn name(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// What is in it, once there is something.
    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.file(name)).ok().filter(|text| text.ends_with('\n'))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.ask(&["kill-server"]);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("tmux.sock")
}
