//! What the view knows, and where its user is in it. Pure: news and keys go in, a new state and what is to be done come out.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sources::{Source, Sources, who};
use crate::{
    control::{AddRules, Change, Failure, FailureKind, RuleView, Status},
    events::{Attempt, Line},
    output::{self, text::is_unprintable},
    rates::RatesView,
    rule::Action,
};

/// Attempts that are listed.
pub const MOST_ATTEMPTS: usize = 500;

/// Interfaces whose packets are counted here.
const MOST_INTERFACES: usize = 1_000;

/// Characters of a filter.
const MOST_FILTER: usize = 64;

/// How far the keys for a page go.
const PAGE: usize = 10;

const HOUR_SECONDS: u64 = 3_600;

/// What comes from the daemon.
#[derive(Debug)]
pub enum News {
    /// Of the stream of attempts.
    Line(Line),
    /// The stream has ended; it is opened anew.
    StreamEnded(Result<(), Failure>),
    Status(Box<Status>),
    Rates(RatesView),
    Rules(Vec<RuleView>),
    /// It does not answer.
    Gone(Failure),
    /// What became of a change that was asked for here.
    Changed(AddRules, Result<Change, Failure>),
}

/// What a key asks for beyond another picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Quit,
    Change(AddRules),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pane {
    Sources,
    Attempts,
    Hooks,
    Rules,
}

impl Pane {
    pub const ALL: [Self; 4] = [Self::Sources, Self::Attempts, Self::Hooks, Self::Rules];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sources => "Sources",
            Self::Attempts => "Attempts",
            Self::Hooks => "Hooks",
            Self::Rules => "Rules",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Sources => Self::Attempts,
            Self::Attempts => Self::Hooks,
            Self::Hooks => Self::Rules,
            Self::Rules => Self::Sources,
        }
    }

    const fn previous(self) -> Self {
        self.next().next().next()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Rate,
    Packets,
    LastSeen,
    Address,
}

impl Sort {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Packets => "packets",
            Self::LastSeen => "last seen",
            Self::Address => "address",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Packets,
            Self::Packets => Self::LastSeen,
            Self::LastSeen => Self::Address,
            Self::Address => Self::Rate,
        }
    }
}

/// A rule that is made once it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub action: Action,
    /// As rules write it.
    pub source: String,
    /// The ports that it tried.
    pub tried: Vec<u16>,
    pub who: String,
}

impl Proposal {
    fn of(source: &Source, action: Action) -> Self {
        Self {
            action,
            // Of a /64 that is seen as one, only who was there is let in, but everybody is kept out.
            source: match action {
                Action::Allow => source.last.source.to_string(),
                Action::Deny => source.name(),
            },
            tried: source.ports.clone(),
            who: who(&source.last),
        }
    }

    fn request(&self, for_seconds: Option<u64>) -> AddRules {
        AddRules {
            action: self.action,
            sources: vec![self.source.clone()],
            ports: Vec::new(),
            via: None,
            for_seconds,
            comment: None,
            yes: false,
            confirm_seconds: None,
        }
    }
}

/// Who gets the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Focus {
    Panes,
    Help,
    Filter,
    Confirm(Proposal),
}

/// What was told last, until the next key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub text: String,
    pub is_error: bool,
}

/// What is known of the host.
#[derive(Clone, Debug)]
pub struct Data {
    pub now: Timestamp,
    /// Why the daemon does not answer.
    pub gone: Option<String>,
    pub status: Option<Status>,
    pub rates: Option<RatesView>,
    pub rules: Vec<RuleView>,
    pub sources: Sources,
    /// The newest last.
    pub attempts: VecDeque<Arc<Attempt>>,
    /// Packets that attempts told of, by the interface they came by.
    pub interfaces: BTreeMap<String, u64>,
    /// Attempts that came too fast for this view.
    pub lagged: u64,
    /// Attempts until then were had before the stream was opened anew.
    had_until: Option<Timestamp>,
    newest: Option<Timestamp>,
}

impl Data {
    fn new(now: Timestamp) -> Self {
        Self {
            now,
            gone: None,
            status: None,
            rates: None,
            rules: Vec::new(),
            sources: Sources::default(),
            attempts: VecDeque::new(),
            interfaces: BTreeMap::new(),
            lagged: 0,
            had_until: None,
            newest: None,
        }
    }

    fn add(&mut self, attempt: Arc<Attempt>) {
        if self.had_until.is_some_and(|had| attempt.time <= had) {
            return;
        }
        self.newest = self.newest.max(Some(attempt.time));
        self.sources.add(&attempt);
        if let Some(name) = &attempt.interface
            && (self.interfaces.len() < MOST_INTERFACES || self.interfaces.contains_key(name))
        {
            *self.interfaces.entry(name.clone()).or_default() += attempt.packets;
        }
        if self.attempts.len() == MOST_ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
    }
}

#[derive(Debug)]
pub struct Model {
    live: Data,
    /// What is shown while it goes on.
    frozen: Option<Data>,
    pub pane: Pane,
    pub sort: Sort,
    pub filter: String,
    pub focus: Focus,
    pub message: Option<Message>,
    /// A change is under way.
    is_changing: bool,
    /// The source under the cursor; the first one where nobody has moved it.
    selected: Option<IpAddr>,
    /// Lines of the other panes above what is shown.
    pub scroll: usize,
}

impl Model {
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            live: Data::new(now),
            frozen: None,
            pane: Pane::Sources,
            sort: Sort::Rate,
            filter: String::new(),
            focus: Focus::Panes,
            message: None,
            is_changing: false,
            selected: None,
            scroll: 0,
        }
    }

    /// What is to be shown.
    #[must_use]
    pub fn shown(&self) -> &Data {
        self.frozen.as_ref().unwrap_or(&self.live)
    }

    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub fn tick(&mut self, now: Timestamp) {
        self.live.now = now;
    }

    pub fn hear(&mut self, news: News) {
        let live = &mut self.live;
        match news {
            News::Line(Line::Attempt(attempt)) => live.add(attempt),
            News::Line(Line::Lagged { lagged }) => live.lagged += lagged,
            News::StreamEnded(result) => {
                live.had_until = live.newest;
                if let Err(failure) = result
                    && live.gone.is_none()
                {
                    self.tell_failure("attempts are not followed: ", &failure);
                }
            }
            News::Status(status) => {
                live.status = Some(*status);
                live.gone = None;
            }
            News::Rates(rates) => live.rates = Some(rates),
            News::Rules(rules) => live.rules = rules,
            News::Gone(failure) => live.gone = Some(failure.what),
            News::Changed(request, result) => {
                self.is_changing = false;
                match result {
                    Ok(change) => self.tell(&changed(&request, &change), false),
                    Err(failure) if failure.kind == FailureKind::NeedsConfirmation => {
                        let word = output::action(request.action);
                        let source = request.sources.join(" ");
                        let text = format!(
                            "refused: {}; if it is meant: guard {word} {source} --yes",
                            failure.what
                        );
                        self.tell(&text, true);
                    }
                    Err(failure) => self.tell_failure("refused: ", &failure),
                }
            }
        }
    }

    fn tell(&mut self, text: &str, is_error: bool) {
        self.message = Some(Message { text: text.to_owned(), is_error });
    }

    fn tell_failure(&mut self, before: &str, failure: &Failure) {
        let fix = failure.fix.as_ref().map(|fix| format!(" {fix}")).unwrap_or_default();
        self.tell(&format!("{before}{}.{fix}", failure.what), true);
    }

    /// The sources that the filter lets through, in order.
    #[must_use]
    pub fn rows(&self) -> Vec<&Source> {
        let data = self.shown();
        let filter = Filter::new(&self.filter);
        let matching = data.sources.iter().filter(|source| filter.takes(&source.last));
        let mut rows: Vec<(f64, &Source)> =
            matching.map(|source| (source.rate.now(data.now), source)).collect();
        rows.sort_unstable_by(|(a_rate, a), (b_rate, b)| {
            let first = match self.sort {
                Sort::Rate => b_rate.total_cmp(a_rate),
                Sort::Packets => b.packets.cmp(&a.packets),
                Sort::LastSeen => b.last.time.cmp(&a.last.time),
                Sort::Address => a.key.cmp(&b.key),
            };
            first.then_with(|| a.key.cmp(&b.key))
        });
        rows.into_iter().map(|(_, source)| source).collect()
    }

    /// The attempts that the filter lets through, the newest first.
    #[must_use]
    pub fn attempts(&self) -> Vec<&Attempt> {
        let filter = Filter::new(&self.filter);
        let newest_first = self.shown().attempts.iter().rev();
        newest_first.map(AsRef::as_ref).filter(|attempt| filter.takes(attempt)).collect()
    }

    /// Where the cursor stands among [`Self::rows`].
    #[must_use]
    pub fn cursor(&self, rows: &[&Source]) -> usize {
        let at = |key: IpAddr| rows.iter().position(|source| source.key == key);
        self.selected.and_then(at).unwrap_or_default()
    }

    pub fn press(&mut self, key: KeyEvent) -> Option<Effect> {
        self.message = None;
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return Some(Effect::Quit);
        }
        match self.focus.clone() {
            Focus::Panes if !is_control => return self.press_in_panes(key.code),
            Focus::Panes => {}
            Focus::Help => self.focus = Focus::Panes,
            Focus::Filter => self.type_filter(key.code),
            Focus::Confirm(proposal) => return self.answer(&proposal, key.code),
        }
        None
    }

    fn press_in_panes(&mut self, key: KeyCode) -> Option<Effect> {
        match key {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Esc if self.filter.is_empty() => return Some(Effect::Quit),
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Down | KeyCode::Char('j') => self.step(1, true),
            KeyCode::Up | KeyCode::Char('k') => self.step(1, false),
            KeyCode::PageDown => self.step(PAGE, true),
            KeyCode::PageUp => self.step(PAGE, false),
            KeyCode::Home | KeyCode::Char('g') => {
                self.selected = None;
                self.scroll = 0;
            }
            KeyCode::End | KeyCode::Char('G') => self.step(usize::MAX, true),
            KeyCode::Tab => self.show(self.pane.next()),
            KeyCode::BackTab => self.show(self.pane.previous()),
            KeyCode::Char('1') => self.show(Pane::Sources),
            KeyCode::Char('2') => self.show(Pane::Attempts),
            KeyCode::Char('3') => self.show(Pane::Hooks),
            KeyCode::Char('4') => self.show(Pane::Rules),
            KeyCode::Char('/') => self.focus = Focus::Filter,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('f' | ' ') => {
                self.frozen = if self.is_frozen() { None } else { Some(self.live.clone()) };
            }
            KeyCode::Char('a') => self.propose(Action::Allow),
            KeyCode::Char('d') => self.propose(Action::Deny),
            KeyCode::Char('?' | 'h') => self.focus = Focus::Help,
            _ => {}
        }
        None
    }

    fn show(&mut self, pane: Pane) {
        self.pane = pane;
        self.scroll = 0;
    }

    fn set_filter(&mut self, filter: String) {
        self.filter = filter;
        self.scroll = 0;
    }

    fn step(&mut self, lines: usize, is_down: bool) {
        let go = |at: usize, lines_there: usize| {
            let to = if is_down { at.saturating_add(lines) } else { at.saturating_sub(lines) };
            to.min(lines_there.saturating_sub(1))
        };
        match self.pane {
            Pane::Sources => {
                let rows = self.rows();
                let to = go(self.cursor(&rows), rows.len());
                self.selected = rows.get(to).map(|source| source.key);
            }
            Pane::Attempts => self.scroll = go(self.scroll, self.attempts().len()),
            Pane::Hooks => {
                let status = self.shown().status.as_ref();
                self.scroll = go(self.scroll, status.map_or(0, |status| status.interfaces.len()));
            }
            Pane::Rules => self.scroll = go(self.scroll, self.shown().rules.len()),
        }
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.focus = Focus::Panes,
            KeyCode::Esc => {
                self.set_filter(String::new());
                self.focus = Focus::Panes;
            }
            KeyCode::Backspace => {
                let mut filter = self.filter.clone();
                filter.pop();
                self.set_filter(filter);
            }
            KeyCode::Char(c) if !is_unprintable(c) && self.filter.chars().count() < MOST_FILTER => {
                self.set_filter(format!("{}{c}", self.filter));
            }
            _ => {}
        }
    }

    fn propose(&mut self, action: Action) {
        if self.pane != Pane::Sources {
            self.tell("a and d are for the selected source: press 1 to see sources", true);
            return;
        }
        if self.is_changing {
            self.tell("the change before this one is still under way", true);
            return;
        }
        if let Some(gone) = &self.live.gone {
            let text = format!("nothing can be changed: {gone}");
            self.tell(&text, true);
            return;
        }
        let rows = self.rows();
        let Some(source) = rows.get(self.cursor(&rows)) else {
            self.tell("no source is selected", true);
            return;
        };
        let proposal = Proposal::of(source, action);
        // What the list does meanwhile moves the cursor no more.
        self.selected = Some(source.key);
        self.focus = Focus::Confirm(proposal);
    }

    fn answer(&mut self, proposal: &Proposal, key: KeyCode) -> Option<Effect> {
        let for_seconds = match key {
            KeyCode::Char('y') => None,
            KeyCode::Char('h') => Some(HOUR_SECONDS),
            KeyCode::Char('n' | 'q') | KeyCode::Esc => {
                self.focus = Focus::Panes;
                self.tell("nothing was changed", false);
                return None;
            }
            _ => return None,
        };
        self.focus = Focus::Panes;
        self.is_changing = true;
        let doing = match proposal.action {
            Action::Allow => "allowing",
            Action::Deny => "denying",
        };
        self.tell(&format!("{doing} {}...", proposal.source), false);
        Some(Effect::Change(proposal.request(for_seconds)))
    }
}

/// `allowed 203.0.113.9 at every guarded port (rule 3): undo with guard remove 3`
fn changed(request: &AddRules, change: &Change) -> String {
    let done = match request.action {
        Action::Allow => "allowed",
        Action::Deny => "denied",
    };
    let ids: Vec<&str> = change.rules.iter().map(|rule| rule.id.0.as_str()).collect();
    let ids = ids.join(" ");
    let notes: Vec<String> = change.notes.iter().map(|note| format!("; {note}")).collect();
    format!(
        "{done} {} at every guarded port (rule {ids}); undo: guard remove {ids}{}",
        request.sources.join(" "),
        notes.concat()
    )
}

/// What is looked for: a prefix, or a piece of what is known of a source.
enum Filter {
    All,
    Prefix(IpNet),
    Piece(String),
}

impl Filter {
    fn new(text: &str) -> Self {
        let text = text.trim();
        match (text, text.parse()) {
            ("", _) => Self::All,
            (_, Ok(prefix)) => Self::Prefix(prefix),
            (_, Err(_)) => Self::Piece(text.to_lowercase()),
        }
    }

    fn takes(&self, attempt: &Attempt) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => prefix.contains(&attempt.source),
            Self::Piece(piece) => {
                attempt.source.to_string().contains(piece)
                    || who(attempt).to_lowercase().contains(piece)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        events::{SourceFacts, tests::example},
        output,
    };

    pub fn at(second: i64) -> Timestamp {
        let start: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        start + jiff::SignedDuration::from_secs(second)
    }

    pub fn attempt(source: &str, second: i64, packets: u64) -> Attempt {
        Attempt { time: at(second), packets, source: source.parse().unwrap(), ..example() }
    }

    pub fn hear(model: &mut Model, attempt: Attempt) {
        model.hear(News::Line(Line::Attempt(Arc::new(attempt))));
    }

    pub fn press(model: &mut Model, keys: &str) -> Option<Effect> {
        let mut effect = None;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\u{1b}' => KeyCode::Esc,
                '\u{8}' => KeyCode::Backspace,
                '↓' => KeyCode::Down,
                key => KeyCode::Char(key),
            };
            effect = model.press(code.into());
        }
        effect
    }

    /// Three sources: one slow and long, one known, one of IPv6.
    pub fn model() -> Model {
        let mut model = Model::new(at(100));
        model.hear(News::Status(Box::new(output::example())));
        hear(&mut model, attempt("198.51.100.7", 0, 5_000));
        let facts = SourceFacts {
            class: Some("public".into()),
            country: Some("US".into()),
            asn: Some(64500),
            as_name: Some("EXAMPLE".into()),
            labels: vec!["censys".into()],
            ..SourceFacts::default()
        };
        hear(&mut model, Attempt { facts, ..attempt("203.0.113.9", 98, 40) });
        hear(&mut model, attempt("2001:db8:0:7::9", 99, 10));
        model
    }

    fn names(model: &Model) -> Vec<String> {
        model.rows().iter().map(|source| source.name()).collect()
    }

    #[test]
    fn sources_are_sorted_as_asked() {
        let mut model = model();
        assert_eq!(names(&model), ["203.0.113.9", "2001:db8:0:7::/64", "198.51.100.7"]);
        press(&mut model, "s");
        assert_eq!(names(&model), ["198.51.100.7", "203.0.113.9", "2001:db8:0:7::/64"]);
        press(&mut model, "s");
        assert_eq!(names(&model), ["2001:db8:0:7::/64", "203.0.113.9", "198.51.100.7"]);
        press(&mut model, "s");
        assert_eq!(names(&model), ["198.51.100.7", "203.0.113.9", "2001:db8:0:7::/64"]);
        press(&mut model, "s");
        assert_eq!(model.sort, Sort::Rate);
    }

    #[test]
    fn a_filter_takes_addresses_prefixes_labels_countries_and_networks() {
        let mut model = model();
        for (filter, expected) in [
            ("198.51", &["198.51.100.7"][..]),
            ("203.0.113.0/24", &["203.0.113.9"]),
            ("2001:db8::/32", &["2001:db8:0:7::/64"]),
            ("CENSYS", &["203.0.113.9"]),
            ("us", &["203.0.113.9"]),
            ("as64500", &["203.0.113.9"]),
            ("nobody", &[]),
        ] {
            press(&mut model, &format!("/{filter}\n"));
            assert_eq!(names(&model), expected, "{filter}");
            assert_eq!(model.attempts().len(), expected.len(), "{filter}");
            // The first Esc takes the filter away.
            assert_eq!(press(&mut model, "\u{1b}"), None);
            assert_eq!(model.rows().len(), 3);
        }
        press(&mut model, "/quit\u{8}\u{8}\u{8}\u{8}7\n");
        assert_eq!(model.filter, "7");
        press(&mut model, &format!("/{}", "x".repeat(1_000)));
        assert_eq!(model.filter.chars().count(), MOST_FILTER);
        press(&mut model, "\u{1b}");
        assert_eq!((model.filter.as_str(), &model.focus), ("", &Focus::Panes));
    }

    #[test]
    fn every_way_to_quit() {
        for keys in ["q", "\u{1b}"] {
            assert_eq!(press(&mut model(), keys), Some(Effect::Quit), "{keys:?}");
        }
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for keys in ["", "/", "?", "a"] {
            let mut model = model();
            press(&mut model, keys);
            assert_eq!(model.press(control_c), Some(Effect::Quit), "{keys:?}");
        }
        assert_eq!(press(&mut model(), "?q"), None, "q closes the help");
    }

    #[test]
    fn the_cursor_stays_on_its_source_whatever_the_order() {
        let mut model = model();
        press(&mut model, "j");
        let selected = |model: &Model| {
            let rows = model.rows();
            rows[model.cursor(&rows)].name()
        };
        assert_eq!(selected(&model), "2001:db8:0:7::/64");
        for _ in 0..4 {
            press(&mut model, "s");
            assert_eq!(selected(&model), "2001:db8:0:7::/64");
        }
        press(&mut model, "jjjjjj");
        assert_eq!(selected(&model), "198.51.100.7");
        press(&mut model, "kkkkkkkkk");
        assert_eq!(selected(&model), "203.0.113.9");
        press(&mut model, "Gg");
        assert_eq!(selected(&model), "203.0.113.9");
    }

    #[test]
    fn nothing_is_changed_without_a_confirmation() {
        let mut model = model();
        assert_eq!(press(&mut model, "a"), None);
        assert!(matches!(model.focus, Focus::Confirm(_)));
        for key in ["\n", "x", "a", "d", "1", "\t"] {
            assert_eq!(press(&mut model, key), None, "{key:?}");
            assert!(matches!(model.focus, Focus::Confirm(_)), "{key:?}");
        }
        assert_eq!(press(&mut model, "n"), None);
        assert_eq!(model.focus, Focus::Panes);
        assert_eq!(press(&mut model, "a\u{1b}"), None);
        assert_eq!(model.focus, Focus::Panes);
    }

    #[test]
    fn a_confirmed_change_is_for_the_source_that_was_named() {
        let mut model = model();
        press(&mut model, "d");
        // Another overtakes it meanwhile.
        hear(&mut model, attempt("198.51.100.7", 100, 1_000_000));
        let Some(Effect::Change(request)) = press(&mut model, "y") else { panic!("no change") };
        assert_eq!((request.action, request.for_seconds), (Action::Deny, None));
        assert_eq!(request.sources, ["203.0.113.9"]);
        assert!(!request.yes && request.ports.is_empty());
        press(&mut model, "a");
        assert!(model.message.as_ref().unwrap().text.contains("still under way"));
        let change =
            Change { generation: Some(2), rules: Vec::new(), notes: Vec::new(), trial: None };
        model.hear(News::Changed(request, Ok(change)));
        assert!(model.message.as_ref().unwrap().text.starts_with("denied 203.0.113.9"));
        let Some(Effect::Change(request)) = press(&mut model, "ah") else { panic!("no change") };
        assert_eq!((request.action, request.for_seconds), (Action::Allow, Some(3_600)));
    }

    #[test]
    fn of_a_64_one_address_is_allowed_and_all_are_denied() {
        let mut model = model();
        let sources = |effect| match effect {
            Some(Effect::Change(request)) => request.sources,
            effect => panic!("{effect:?}"),
        };
        assert_eq!(sources(press(&mut model, "jay")), ["2001:db8:0:7::9"]);
        model.is_changing = false;
        assert_eq!(sources(press(&mut model, "dy")), ["2001:db8:0:7::/64"]);
    }

    #[test]
    fn a_refusal_is_told_with_what_to_do() {
        let mut model = model();
        let Some(Effect::Change(request)) = press(&mut model, "ay") else { panic!("no change") };
        let forbidden = Failure {
            kind: FailureKind::Forbidden,
            what: "the user with uid 7 may not change what guard does".into(),
            fix: Some("Ask as root.".into()),
        };
        model.hear(News::Changed(request.clone(), Err(forbidden)));
        assert_eq!(
            model.message,
            Some(Message {
                text: "refused: the user with uid 7 may not change what guard does. Ask as root."
                    .into(),
                is_error: true
            })
        );
        let wide = Failure::needs_confirmation("it cuts this session", "confirm with --yes");
        model.hear(News::Changed(request, Err(wide)));
        let text = model.message.clone().unwrap().text;
        assert!(text.ends_with("if it is meant: guard allow 203.0.113.9 --yes"), "{text}");
        press(&mut model, "j");
        assert_eq!(model.message, None, "the next key takes it away");
    }

    #[test]
    fn changes_are_for_sources_and_for_a_daemon_that_is_there() {
        let mut model = model();
        press(&mut model, "2a");
        assert!(model.message.as_ref().unwrap().text.contains("press 1"));
        model.hear(News::Gone(Failure::failed("no daemon", "start it")));
        press(&mut model, "1a");
        assert_eq!(model.focus, Focus::Panes);
        assert!(model.message.as_ref().unwrap().text.contains("no daemon"));
        let mut empty = Model::new(at(0));
        press(&mut empty, "a");
        assert!(empty.message.as_ref().unwrap().text.contains("no source"));
    }

    #[test]
    fn what_is_frozen_stays_and_the_rest_goes_on() {
        let mut model = model();
        press(&mut model, "f");
        hear(&mut model, attempt("192.0.2.1", 101, 1));
        model.tick(at(200));
        assert_eq!((model.rows().len(), model.shown().now), (3, at(100)));
        press(&mut model, " ");
        assert_eq!((model.rows().len(), model.shown().now), (4, at(200)));
    }

    #[test]
    fn a_stream_that_is_opened_anew_counts_nothing_twice() {
        let mut model = model();
        model.hear(News::StreamEnded(Ok(())));
        hear(&mut model, attempt("198.51.100.7", 0, 5_000));
        hear(&mut model, attempt("198.51.100.7", 120, 1));
        let rows = model.rows();
        let source = rows.iter().find(|source| source.name() == "198.51.100.7").unwrap();
        assert_eq!((source.packets, source.attempts), (5_001, 2));
        assert_eq!(model.shown().interfaces["eth0"], 5_051);
    }

    #[test]
    fn a_daemon_that_is_gone_is_told_until_it_is_back() {
        let mut model = model();
        model.hear(News::Gone(Failure::failed("the socket is closed", "start it")));
        model.hear(News::StreamEnded(Err(Failure::failed("broken", "x"))));
        assert_eq!(model.message, None, "one sentence is enough");
        assert_eq!(model.shown().gone.as_deref(), Some("the socket is closed"));
        model.hear(News::Status(Box::new(output::example())));
        assert_eq!(model.shown().gone, None);
        model.hear(News::StreamEnded(Err(Failure::failed("no room", "end one"))));
        assert!(model.message.unwrap().text.contains("no room"));
    }

    #[test]
    fn panes_go_round_and_scrolling_is_bounded() {
        let mut model = model();
        let panes: Vec<Pane> = (0..5)
            .map(|_| {
                press(&mut model, "\t");
                model.pane
            })
            .collect();
        assert_eq!(
            panes,
            [Pane::Attempts, Pane::Hooks, Pane::Rules, Pane::Sources, Pane::Attempts]
        );
        model.press(KeyCode::BackTab.into());
        assert_eq!(model.pane, Pane::Sources);
        for (key, pane) in ["1", "2", "3", "4"].into_iter().zip(Pane::ALL) {
            press(&mut model, key);
            assert_eq!(model.pane, pane);
            press(&mut model, "GGjjjj");
            assert!(model.scroll < 3, "{pane:?}: {}", model.scroll);
        }
    }
}
