//! The terminal, taken over and given back as it was.

use std::{
    env,
    ffi::OsStr,
    io::{self, Stdout, stdout},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};

/// Whether the terminal is taken over. A process has one.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

static TELL_OF_PANICS: Once = Once::new();

/// The whole terminal. It is given back as it was when this is dropped, and before anything is said of a panic in any thread.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// # Errors
    /// When standard output is no terminal that can be taken over.
    pub fn take() -> io::Result<Self> {
        TELL_OF_PANICS.call_once(|| {
            let tell = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                give_back();
                tell(panic);
            }));
        });
        IS_TAKEN.store(true, Ordering::SeqCst);
        let taken = || {
            enable_raw_mode()?;
            execute!(stdout(), EnterAlternateScreen, Hide)?;
            Terminal::new(CrosstermBackend::new(stdout()))
        };
        match taken() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// # Errors
    /// When the terminal takes nothing any more.
    pub fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(picture).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Leaves the alternate screen, shows the cursor, and lets the terminal echo and edit lines again.
fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that takes nothing any more has gone, and there is nobody to tell.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Whether this environment's terminal shows no more than ASCII: its locale is not UTF-8 (locale(7): the first of these three
/// that is set and not empty), or it is the kernel's console, whose fonts lack most of the rest.
#[must_use]
pub fn is_ascii_only() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(env::var_os);
    shows_ascii_only(locale.each_ref().map(Option::as_deref), env::var_os("TERM").as_deref())
}

fn shows_ascii_only(locale: [Option<&OsStr>; 3], term: Option<&OsStr>) -> bool {
    let locale = locale.into_iter().flatten().find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_string_lossy().to_lowercase();
    let is_utf_8 = locale.contains("utf-8") || locale.contains("utf8");
    !is_utf_8 || term == Some(OsStr::new("linux"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_that_can_gets_more_than_ascii() {
        let os = |text: &'static str| Some(OsStr::new(text));
        assert!(!shows_ascii_only([None, None, os("en_US.UTF-8")], os("xterm")));
        assert!(!shows_ascii_only([os(""), os("C.utf8"), os("C")], os("screen")));
        assert!(shows_ascii_only([os("C"), None, os("en_US.UTF-8")], os("xterm")));
        assert!(shows_ascii_only([None, None, None], os("xterm")));
        assert!(shows_ascii_only([None, None, os("en_US.UTF-8")], os("linux")));
    }
}
