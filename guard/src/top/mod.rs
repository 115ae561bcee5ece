//! `guard top`: a live view of the whole terminal.
//!
//! One thread follows attempts, one asks the daemon and makes changes, and the first has the terminal and the [`model`]. Whatever
//! they tell each other goes through one bounded queue, so that a flood makes the daemon leave attempts out for this view, and
//! tell how many.

pub mod model;
mod sources;
pub mod terminal;
pub mod view;

use std::{
    io::{self, IsTerminal, stdout},
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag, low_level,
};

use self::{
    model::{Effect, Model, News},
    terminal::Screen,
    view::Look,
};
use crate::{
    api::client::Client,
    control::{AddRules, Control, Failure, Status},
    history::Requester,
    output,
    rule::quoted,
};

/// How long news waits for a key at most.
const LOOK_FOR_NEWS: Duration = Duration::from_millis(100);

/// How often rates are asked for, and the picture drawn where there is no news.
const ASK_RATES: Duration = Duration::from_secs(1);

/// The status is asked for with each so many rates: it costs the daemon more.
const RATES_TO_A_STATUS: u64 = 3;

/// Before the stream of attempts is opened anew.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// How far back attempts are asked for.
const SINCE_SECONDS: u64 = 3_600;

/// News on its way to the screen.
const ROOM_FOR_NEWS: usize = 1_024;

/// Shows the view until its user or a signal ends it.
///
/// # Errors
/// When standard output is no terminal for it, no daemon runs, it does not answer, or the terminal has gone.
pub fn run(socket: &Path) -> Result<(), Failure> {
    refuse_what_is_no_terminal()?;
    let clients = (Client::connect(socket)?, Client::connect(socket)?);
    let (Some(followed), Some(asked)) = clients else {
        return Err(Failure::failed(
            "no daemon is running, and without one attempts are counted but not listed",
            "see the counts with guard status, or start the daemon with guard run",
        ));
    };
    // What is wrong with it is said before the terminal is taken.
    let status = asked.status()?;

    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGTERM, SIGHUP, SIGINT] {
        flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)
            .map_err(|error| cannot_show(&error))?;
    }
    let (tell, news) = mpsc::sync_channel(ROOM_FOR_NEWS);
    let (change, changes) = mpsc::sync_channel(1);
    let told = tell.clone();
    let workers = [
        thread::Builder::new().spawn(move || follow(&followed, &told)),
        thread::Builder::new().spawn(move || ask(&asked, status, &tell, &changes)),
    ];
    let workers: io::Result<Vec<JoinHandle<()>>> = workers.into_iter().collect();
    let workers = workers.map_err(|error| cannot_show(&error))?;

    let mut screen = Screen::take().map_err(|error| cannot_show(&error))?;
    let ended = show(&mut screen, &news, &change, &workers, &signal);
    drop(screen);
    // As without a handler, so that whoever sent it sees what it did.
    if let Ok(number @ 1..) = i32::try_from(signal.load(Ordering::Relaxed)) {
        low_level::emulate_default_handler(number).map_err(|error| cannot_show(&error))?;
    }
    ended
}

fn refuse_what_is_no_terminal() -> Result<(), Failure> {
    let fix = "see attempts with guard events --follow, and what is in force with guard status";
    if !stdout().is_terminal() {
        return Err(Failure::failed("standard output is not a terminal to show guard top on", fix));
    }
    match std::env::var_os("TERM") {
        Some(term) if !term.is_empty() && term != "dumb" => Ok(()),
        term => {
            let term = term.unwrap_or_default();
            let term = quoted(&term.to_string_lossy());
            let what = format!("this terminal has no cursor to move (TERM is {term})");
            Err(Failure::failed(what, fix))
        }
    }
}

fn cannot_show(error: &io::Error) -> Failure {
    Failure::failed(
        format!("the terminal can't be used: {error}"),
        "see attempts with guard events --follow",
    )
}

fn show(
    screen: &mut Screen,
    news: &Receiver<News>,
    change: &SyncSender<AddRules>,
    workers: &[JoinHandle<()>],
    signal: &AtomicUsize,
) -> Result<(), Failure> {
    let look = Look {
        colour: output::view_of(&stdout()).colour,
        ascii: terminal::is_ascii_only(),
        zone: TimeZone::system(),
    };
    let mut model = Model::new(Timestamp::now());
    let mut drawn: Option<Instant> = None;
    while signal.load(Ordering::Relaxed) == 0 {
        if workers.iter().any(JoinHandle::is_finished) {
            return Err(Failure::failed(
                "guard top met an error of its own",
                "start it again, and report this as an error of guard",
            ));
        }
        if drawn.is_none_or(|drawn| drawn.elapsed() >= ASK_RATES) {
            model.tick(Timestamp::now());
            screen.draw(|frame| view::draw(frame, &model, &look)).map_err(|e| cannot_show(&e))?;
            drawn = Some(Instant::now());
        }
        let is_pressed = event::poll(LOOK_FOR_NEWS).map_err(|error| cannot_show(&error))?;
        if is_pressed {
            match event::read().map_err(|error| cannot_show(&error))? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match model.press(key) {
                    Some(Effect::Quit) => return Ok(()),
                    // One at a time is under way, and there is room for one.
                    Some(Effect::Change(request)) => drop(change.try_send(request)),
                    None => {}
                },
                _ => {}
            }
            drawn = None;
        }
        // No more than there was room for: keys are not to wait for a flood.
        for _ in 0..ROOM_FOR_NEWS {
            match news.try_recv() {
                Ok(one) => {
                    model.hear(one);
                    drawn = None;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
    }
    Ok(())
}

/// Tells of attempts, for as long as somebody wants to know.
fn follow(client: &Client, tell: &SyncSender<News>) {
    loop {
        let ended =
            client.events(true, Some(SINCE_SECONDS), |line| match tell.send(News::Line(line)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
        if tell.send(News::StreamEnded(ended)).is_err() {
            return;
        }
        thread::sleep(OPEN_AGAIN);
    }
}

/// Asks again and again how things are, and has changes made in between.
fn ask(client: &Client, status: Status, tell: &SyncSender<News>, changes: &Receiver<AddRules>) {
    let mut answerer = Answerer { client, known: None };
    if answerer.hear(status, tell).is_err() {
        return;
    }
    let mut round = 0_u64;
    loop {
        let is_status_due = round.is_multiple_of(RATES_TO_A_STATUS);
        let answered =
            if is_status_due { answerer.ask_all(tell) } else { answerer.ask_rates(tell) };
        if answered.is_err() {
            return;
        }
        round = round.wrapping_add(1);
        match changes.recv_timeout(ASK_RATES) {
            Ok(request) => {
                let result = client.add_rules(&request, &Requester::this_process());
                if tell.send(News::Changed(request, result)).is_err() {
                    return;
                }
                round = 0;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Answerer<'a> {
    client: &'a Client,
    /// The generation and the number of the rules that were told last.
    known: Option<(Option<u64>, usize)>,
}

/// Nobody wants to know any more.
struct Unheard;

impl Answerer<'_> {
    fn ask_all(&mut self, tell: &SyncSender<News>) -> Result<(), Unheard> {
        match self.client.status() {
            Ok(status) => self.hear(status, tell)?,
            Err(failure) => return send(tell, News::Gone(failure)),
        }
        self.ask_rates(tell)
    }

    /// Rules are asked for where they may be others.
    fn hear(&mut self, status: Status, tell: &SyncSender<News>) -> Result<(), Unheard> {
        let now = (status.generation, status.rules);
        send(tell, News::Status(Box::new(status)))?;
        if self.known != Some(now)
            && let Ok(rules) = self.client.rules()
        {
            self.known = Some(now);
            send(tell, News::Rules(rules))?;
        }
        Ok(())
    }

    fn ask_rates(&self, tell: &SyncSender<News>) -> Result<(), Unheard> {
        match self.client.rates() {
            Ok(rates) => send(tell, News::Rates(rates)),
            Err(failure) => send(tell, News::Gone(failure)),
        }
    }
}

fn send(tell: &SyncSender<News>, news: News) -> Result<(), Unheard> {
    tell.send(news).map_err(|_| Unheard)
}
