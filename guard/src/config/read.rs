//! From TOML to a configuration, value by value.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    time::Duration,
};

use guard_common::abi::MAX_GUARDED_PORTS;
use jiff::Timestamp;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Attach, AttachPolicy, Config, ConfigError, ConfigErrors, Enrich, Events, Forwarded,
    HistoryFile, InterfacePattern, Interfaces, KeptHistory, LocalSources, MAX_ERRORS, Paths,
    Places,
};
use crate::{
    control::Mode,
    duration,
    rule::{
        Action, GuardedPort, InterfaceName, InterfaceNameError, Origin, Rule, RuleId, Source,
        check_action, check_via, comment_problem, listed, parse_ports, quoted,
    },
    sinks::JsonLines,
};

type Value<'a> = Spanned<DeValue<'a>>;

const KEYS: [&str; 11] = [
    "mode",
    "ports",
    "interfaces",
    "attach",
    "forwarded",
    "local",
    "reject",
    "rule",
    "paths",
    "enrich",
    "events",
];
const RULE_KEYS: [&str; 6] = ["allow", "deny", "ports", "via", "until", "comment"];
const ENRICH_KEYS: [&str; 2] = ["mmdb", "labels"];
const EVENTS_KEYS: [&str; 7] =
    ["jsonl", "jsonl_max_mib", "jsonl_max_age", "jsonl_keep", "history", "history_max_mib", "keep"];
const PATH_KEYS: [&str; 4] = ["pins", "cgroup", "state", "socket"];

/// Keys of the design that this version does not know.
const LATER_KEYS: [&str; 2] = ["services", "web"];

/// The most paths of one key of `[enrich]`.
const MAX_ENRICH_PATHS: usize = 16;

/// How large a file of attempts may be before it is rotated, in mebibytes.
const JSONL_MIB: RangeInclusive<u32> = 1..=1 << 20;
const DEFAULT_JSONL_MIB: u32 = 64;

/// How old it may be.
const DEFAULT_JSONL_AGE: Duration = Duration::from_hours(24);

/// How many rotated ones are kept.
const JSONL_KEEP: RangeInclusive<u32> = 0..=1_000;
const DEFAULT_JSONL_KEEP: u32 = 7;

/// How large the history may be, in mebibytes. With less it could not hold the hours of a flood.
const HISTORY_MIB: RangeInclusive<u32> = 16..=1 << 20;

/// It is removed by whole hours.
const LEAST_KEPT: Duration = Duration::from_hours(1);

/// The longest path of a Unix socket (`sun_path` of `include/uapi/linux/un.h`, less the zero at the end).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Reads a whole configuration; `path` is for messages and the origin of rules.
pub(super) fn config(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
    let mut reader = Reader { path, places: Places::new(text), errors: Vec::new(), left_out: 0 };
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let span = error.span().unwrap_or_default();
        let found = text.get(span.clone()).map(on_one_line).unwrap_or_default();
        let found = if found.is_empty() { found } else { format!(", found {found}") };
        let what = format!("this is not TOML: {}{found}", error.message());
        reader.error(span, what, "Correct it there.");
    }
    // What is left of a broken document would give errors that are none.
    let config = if syntax_errors.is_empty() {
        reader.document(document.get_ref())
    } else {
        Config::default()
    };
    reader.result(config)
}

struct Reader<'a> {
    path: &'a Path,
    places: Places<'a>,
    errors: Vec<(Range<usize>, String, String)>,
    left_out: usize,
}

impl Reader<'_> {
    fn error(&mut self, span: Range<usize>, what: impl fmt::Display, fix: impl fmt::Display) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push((span, what.to_string(), fix.to_string()));
        } else {
            self.left_out += 1;
        }
    }

    /// Says that a key can't have this value.
    fn wrong_value(&mut self, key: &str, value: &Value<'_>, fix: impl fmt::Display) {
        let text = self.places.text.get(value.span()).unwrap_or_default();
        let text = match value.get_ref() {
            DeValue::String(text) => quoted(text),
            DeValue::Table(_) => "a table".to_owned(),
            _ => on_one_line(text),
        };
        self.error(value.span(), format!("{key} can't be {text}"), fix);
    }

    fn result(mut self, config: Config) -> Result<Config, ConfigErrors> {
        self.errors.sort_by_key(|(span, _, _)| span.start);
        let places = self.places;
        let errors: Vec<ConfigError> = self
            .errors
            .into_iter()
            .map(|(span, what, fix)| ConfigError {
                file: self.path.to_path_buf(),
                position: Some(places.of(span.start)),
                what,
                fix,
            })
            .collect();
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors { errors, left_out: self.left_out })
        }
    }

    /// The configuration, as far as it can be read; it counts only if there are no errors.
    fn document(&mut self, table: &DeTable<'_>) -> Config {
        self.only_keys(table, &KEYS, "the configuration");
        let mut config = Config::default();
        if let Some(value) = table.get("mode") {
            let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
            config.mode = self.word("mode", value, &modes).unwrap_or(config.mode);
        }
        let ports = match table.get("ports") {
            Some(value) => self.ports(value),
            None => Some(config.ports),
        };
        if let Some(value) = table.get("interfaces") {
            config.interfaces = self.interfaces(value).unwrap_or(config.interfaces);
        }
        if let Some(value) = table.get("attach") {
            config.attach = self.attach(value);
        }
        if let Some(value) = table.get("forwarded") {
            let choices = [("pass", Forwarded::Pass), ("guard", Forwarded::Guard)];
            config.forwarded = self.word("forwarded", value, &choices).unwrap_or_default();
        }
        if let Some(value) = table.get("local") {
            config.local = self.local(value).unwrap_or_default();
        }
        if let Some(value) = table.get("reject") {
            config.reject = self.switch("reject", value).unwrap_or_default();
        }
        if let Some(value) = table.get("paths") {
            config.paths = self.paths(value);
        }
        if let Some(value) = table.get("enrich") {
            config.enrich = self.enrich(value);
        }
        if let Some(value) = table.get("events") {
            config.events = self.events(value);
        }
        if let Some(value) = table.get("rule") {
            config.rules = self.rules(value, ports.as_deref());
        }
        config.ports = ports.unwrap_or_default();
        config
    }

    fn only_keys(&mut self, table: &DeTable<'_>, known: &[&str], owner: &str) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            if LATER_KEYS.contains(&name) {
                let what = format!("{name} is not supported by this version");
                self.error(key.span(), what, "Leave it out.");
            } else {
                let what = format!("{} is not a key of {owner}", quoted(name));
                self.error(key.span(), what, format!("Use {}.", listed(known)));
            }
        }
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, key: &str, value: &Value<'_>, choices: &[(&str, T)]) -> Option<T> {
        let word = value.get_ref().as_str();
        let choice = choices.iter().find(|(name, _)| Some(*name) == word);
        if choice.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| quoted(name)).collect();
            self.wrong_value(key, value, format!("Write {}.", names.join(" or ")));
        }
        choice.map(|(_, choice)| *choice)
    }

    fn switch(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        let switch = value.get_ref().as_bool();
        if switch.is_none() {
            self.wrong_value(key, value, "Write true or false.");
        }
        switch
    }

    fn ports(&mut self, value: &Value<'_>) -> Option<Vec<GuardedPort>> {
        let ports =
            self.port_list(value, "Name a port, such as 11434: something must be guarded.")?;
        let ports: BTreeSet<GuardedPort> = ports.into_iter().map(|(_, port)| port).collect();
        if ports.len() > MAX_GUARDED_PORTS as usize {
            let what = format!("{} ports are guarded here", ports.len());
            self.error(
                value.span(),
                what,
                format!(
                    "Name at most {MAX_GUARDED_PORTS}: only those that the service listens on."
                ),
            );
            return None;
        }
        Some(ports.into_iter().collect())
    }

    /// Ports with their places, or `None` when any of them is wrong.
    fn port_list(
        &mut self,
        value: &Value<'_>,
        fix_for_none: &str,
    ) -> Option<Vec<(Range<usize>, GuardedPort)>> {
        let items = one_or_list(value);
        if items.is_empty() {
            self.wrong_value("ports", value, fix_for_none);
            return None;
        }
        let mut ports = Vec::new();
        let mut all_are_right = true;
        for item in items {
            let text = match item.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
                _ => {
                    let fix = "Write ports as 11434, \"tcp/11434\", \"udp/53\" or \"8000-8002\".";
                    self.wrong_value("a port", item, fix);
                    all_are_right = false;
                    continue;
                }
            };
            match parse_ports(&text) {
                Ok(range) => ports.extend(range.into_iter().map(|port| (item.span(), port))),
                Err(error) => {
                    self.error(item.span(), &error, error.fix());
                    all_are_right = false;
                }
            }
        }
        all_are_right.then_some(ports)
    }

    fn interfaces(&mut self, value: &Value<'_>) -> Option<Interfaces> {
        const FIX: &str = "Write \"outside\" or a list of names, such as [\"eth0\", \"wlan*\"].";
        match value.get_ref() {
            DeValue::String(word) if word == "outside" => Some(Interfaces::Outside),
            DeValue::Array(names) if !names.is_empty() => {
                let patterns = names.iter().filter_map(|name| {
                    let Some(text) = name.get_ref().as_str() else {
                        self.wrong_value("the name of an interface", name, FIX);
                        return None;
                    };
                    let pattern: Result<InterfacePattern, _> = text.parse();
                    pattern.map_err(|error| self.error(name.span(), &error, error.fix())).ok()
                });
                Some(Interfaces::Named(patterns.collect()))
            }
            _ => {
                self.wrong_value("interfaces", value, FIX);
                None
            }
        }
    }

    fn attach(&mut self, value: &Value<'_>) -> AttachPolicy {
        let Some(table) = value.get_ref().as_table() else {
            let default = self.attach_word(value).unwrap_or_default();
            return AttachPolicy { default, by_interface: BTreeMap::new() };
        };
        let mut policy = AttachPolicy::default();
        for (key, value) in table {
            let Some(attach) = self.attach_word(value) else {
                continue;
            };
            let name: &str = key.get_ref();
            if name == "default" {
                policy.default = attach;
                continue;
            }
            match name.parse::<InterfacePattern>() {
                Ok(pattern) if !pattern.is_name() => {
                    let what = format!("{} is a pattern, and a name is wanted here", quoted(name));
                    self.error(key.span(), what, "Write one line for each interface.");
                }
                Ok(_) => {
                    policy.by_interface.insert(name.to_owned(), attach);
                }
                Err(error) => self.error(key.span(), &error, "Write a name such as eth0."),
            }
        }
        policy
    }

    fn attach_word(&mut self, value: &Value<'_>) -> Option<Attach> {
        self.word("attach", value, &Attach::ALL.map(|attach| (attach.name(), attach)))
    }

    fn local(&mut self, value: &Value<'_>) -> Option<LocalSources> {
        let words = value.get_ref().as_array().map(|words| {
            let words: Vec<Option<&str>> =
                words.iter().map(|word| word.get_ref().as_str()).collect();
            words
        });
        match words.as_deref() {
            Some([Some("host")]) => Some(LocalSources::Host),
            Some([Some("host"), Some("containers")] | [Some("containers"), Some("host")]) => {
                Some(LocalSources::HostAndContainers)
            }
            _ => {
                let fix = "Write [\"host\", \"containers\"] or [\"host\"].";
                self.wrong_value("local", value, fix);
                None
            }
        }
    }

    fn paths(&mut self, value: &Value<'_>) -> Paths {
        let mut paths = Paths::default();
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_value("paths", value, "Write a table: [paths].");
            return paths;
        };
        self.only_keys(table, &PATH_KEYS, "paths");
        for (key, value) in table {
            let key: &str = key.get_ref();
            let Some(path) = value.get_ref().as_str().and_then(full_path) else {
                if PATH_KEYS.contains(&key) {
                    self.wrong_value(key, value, "Write a full path, from / on.");
                }
                continue;
            };
            match key {
                "pins" => paths.pins = path,
                "cgroup" => paths.cgroup = Some(path),
                "state" => paths.state = path,
                "socket" => {
                    if let Some(fix) = socket_problem(&path) {
                        self.wrong_value(key, value, fix);
                    }
                    paths.socket = path;
                }
                // Reported by `only_keys`.
                _ => {}
            }
        }
        paths
    }

    fn enrich(&mut self, value: &Value<'_>) -> Enrich {
        let mut enrich = Enrich::default();
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_value("enrich", value, "Write a table: [enrich].");
            return enrich;
        };
        self.only_keys(table, &ENRICH_KEYS, "enrich");
        if let Some(files) = table.get("mmdb") {
            enrich.mmdb = self.full_paths("mmdb", files, "MMDB files", full_path);
        }
        if let Some(files) = table.get("labels") {
            let pattern = |text: &str| full_path(text).filter(|_| glob::Pattern::new(text).is_ok());
            enrich.labels = self.full_paths("labels", files, "label files or patterns", pattern);
        }
        enrich
    }

    fn full_paths(
        &mut self,
        key: &str,
        value: &Value<'_>,
        what: &str,
        read: impl Fn(&str) -> Option<PathBuf>,
    ) -> Vec<PathBuf> {
        let items = one_or_list(value);
        if items.len() > MAX_ENRICH_PATHS {
            let what = format!("{} {what} are named here", items.len());
            self.error(value.span(), what, format!("Name at most {MAX_ENRICH_PATHS}."));
            return Vec::new();
        }
        let mut paths = Vec::new();
        for item in items {
            match item.get_ref().as_str().and_then(&read) {
                Some(path) => paths.push(path),
                None => self.wrong_value(key, item, "Write the full path of a file, from / on."),
            }
        }
        paths
    }

    fn events(&mut self, value: &Value<'_>) -> Events {
        let mut events = Events::default();
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_value("events", value, "Write a table: [events].");
            return events;
        };
        self.only_keys(table, &EVENTS_KEYS, "events");
        events.history = self.history(table);
        let max_mib = self.whole_number(table, "jsonl_max_mib", JSONL_MIB);
        let max_age = self.span(table, "jsonl_max_age");
        let keep = self.whole_number(table, "jsonl_keep", JSONL_KEEP);
        if let Some(value) = table.get("jsonl") {
            match value.get_ref().as_str().and_then(full_path) {
                Some(path) => {
                    events.jsonl = Some(JsonLines {
                        path,
                        max_bytes: u64::from(max_mib.unwrap_or(DEFAULT_JSONL_MIB)) << 20,
                        max_age: max_age.unwrap_or(DEFAULT_JSONL_AGE),
                        keep: keep.unwrap_or(DEFAULT_JSONL_KEEP),
                    });
                }
                None => {
                    self.wrong_value("jsonl", value, "Write the full path of a file, from / on.");
                }
            }
        }
        events
    }

    fn history(&mut self, table: &DeTable<'_>) -> KeptHistory {
        let mut history = KeptHistory::default();
        if let Some(mib) = self.whole_number(table, "history_max_mib", HISTORY_MIB) {
            history.max_bytes = u64::from(mib) << 20;
        }
        if let Some(keep) = self.span(table, "keep") {
            history.keep = keep;
            if keep < LEAST_KEPT
                && let Some(value) = table.get("keep")
            {
                self.wrong_value("keep", value, "Write at least 1h: whole hours are removed.");
            }
        }
        let Some(value) = table.get("history") else { return history };
        match value.get_ref() {
            DeValue::Boolean(true) => {}
            DeValue::Boolean(false) => history.file = HistoryFile::Off,
            // What else is found there is set aside: a name that was mistyped must not be that of another's file.
            DeValue::String(text) if text.ends_with(".db") && full_path(text).is_some() => {
                history.file = HistoryFile::At(PathBuf::from(text.as_ref()));
            }
            _ => {
                let fix = "Write the full path of a file that ends in .db, or false for none.";
                self.wrong_value("history", value, fix);
            }
        }
        history
    }

    fn whole_number(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let value = table.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let fix = format!("Write a whole number from {} to {}.", range.start(), range.end());
            self.wrong_value(key, value, fix);
        }
        number
    }

    fn span(&mut self, table: &DeTable<'_>, key: &str) -> Option<Duration> {
        let value = table.get(key)?;
        // What is no text is no span either, and is told what one looks like.
        match duration::parse(value.get_ref().as_str().unwrap_or_default()) {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(error) => {
                self.wrong_value(key, value, error.fix());
                None
            }
        }
    }

    fn rules(&mut self, value: &Value<'_>, guarded: Option<&[GuardedPort]>) -> Vec<Rule> {
        let mut rules = Vec::new();
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_value("rule", value, "Write each rule below a line [[rule]].");
            return rules;
        };
        for item in items {
            match item.get_ref().as_table() {
                Some(table) => self.rule(table, item.span(), guarded, &mut rules),
                None => self.wrong_value("rule", item, "Write each rule below a line [[rule]]."),
            }
        }
        rules
    }

    /// Reads one `[[rule]]`, and adds a rule for each of its sources. `guarded` is `None` where the guarded ports
    /// themselves could not be read.
    fn rule(
        &mut self,
        table: &DeTable<'_>,
        span: Range<usize>,
        guarded: Option<&[GuardedPort]>,
        rules: &mut Vec<Rule>,
    ) {
        self.only_keys(table, &RULE_KEYS, "a rule");
        let ports = table.get("ports").map(|value| self.rule_ports(value, guarded));
        let ports = ports.unwrap_or_default();
        let via = table.get("via").and_then(|value| self.via(value));
        let until = table.get("until").and_then(|value| self.until(value));
        let comment = table.get("comment").and_then(|value| self.comment(value));
        let (action, sources) = match (table.get("allow"), table.get("deny")) {
            (Some(sources), None) => (Action::Allow, sources),
            (None, Some(sources)) => (Action::Deny, sources),
            (Some(allow), Some(deny)) => {
                let later = if allow.span().start < deny.span().start { deny } else { allow };
                let what = "this rule has both allow and deny";
                self.error(later.span(), what, "Write two rules, each below its own [[rule]].");
                return;
            }
            (None, None) => {
                let what = "this rule has neither allow nor deny";
                self.error(span, what, "Add one, such as allow = \"192.0.2.0/24\".");
                return;
            }
        };
        let items = one_or_list(sources);
        if items.is_empty() {
            self.wrong_value(action.name(), sources, "Name a source, or leave the rule out.");
        }
        for item in items {
            let Some(source) = self.source(action, via.as_ref(), item) else {
                continue;
            };
            let line = self.places.line(item.span().start);
            rules.push(Rule {
                id: RuleId::file(rules.len() + 1),
                action,
                source,
                ports: ports.clone(),
                via: via.clone(),
                until,
                comment: comment.clone(),
                origin: Origin::File { file: self.path.to_path_buf(), line },
            });
        }
    }

    fn source(
        &mut self,
        action: Action,
        via: Option<&InterfaceName>,
        item: &Value<'_>,
    ) -> Option<Source> {
        let Some(text) = item.get_ref().as_str() else {
            self.wrong_value("a source", item, "Write a string, such as \"192.0.2.0/24\".");
            return None;
        };
        let source: Result<Source, _> = text.parse();
        source
            .and_then(|source| check_action(action, &source).map(|()| source))
            .and_then(|source| check_via(&source, via).map(|()| source))
            .map_err(|error| self.error(item.span(), &error, error.fix()))
            .ok()
    }

    fn rule_ports(
        &mut self,
        value: &Value<'_>,
        guarded: Option<&[GuardedPort]>,
    ) -> Vec<GuardedPort> {
        let fix = "Name a port, or leave ports out for every guarded port.";
        let mut ports = BTreeSet::new();
        for (span, port) in self.port_list(value, fix).unwrap_or_default() {
            if let Some(guarded) = guarded
                && ports.insert(port)
                && !guarded.contains(&port)
            {
                let what = format!("port {port} is not guarded, so that the rule would do nothing");
                let fix = format!("Guard it too, or name one of {}.", listed(guarded));
                self.error(span, what, fix);
            }
        }
        ports.into_iter().collect()
    }

    fn via(&mut self, value: &Value<'_>) -> Option<InterfaceName> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_value("via", value, "Write the name of an interface, such as \"eth0\".");
            return None;
        };
        text.parse()
            .map_err(|error: InterfaceNameError| self.error(value.span(), &error, error.fix()))
            .ok()
    }

    fn until(&mut self, value: &Value<'_>) -> Option<Timestamp> {
        let text = match value.get_ref() {
            DeValue::Datetime(datetime) => datetime.to_string(),
            DeValue::String(text) => text.to_string(),
            _ => String::new(),
        };
        let until = text.parse().ok();
        if until.is_none() {
            let fix = "Write date, time and offset, such as 2027-01-31T00:00:00Z or \
                       2027-01-31T00:00:00+01:00.";
            self.wrong_value("until", value, fix);
        }
        until
    }

    fn comment(&mut self, value: &Value<'_>) -> Option<String> {
        let Some(comment) = value.get_ref().as_str() else {
            self.wrong_value("comment", value, "Write a string, such as \"office\".");
            return None;
        };
        if let Some((what, fix)) = comment_problem(comment) {
            self.error(value.span(), what, fix);
        }
        Some(comment.to_owned())
    }
}

fn full_path(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    (path.is_absolute() && !text.contains('\0')).then_some(path)
}

/// The items of a list, or the value itself.
fn one_or_list<'v, 'a>(value: &'v Value<'a>) -> Vec<&'v Value<'a>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    }
}

/// A value as it stands in the file, for a message.
fn on_one_line(text: &str) -> String {
    const MOST_CHARS: usize = 80;
    let plain = |character: char| {
        if character.is_control() { ' ' } else { character }
    };
    let mut line: String = text.chars().map(plain).take(MOST_CHARS).collect();
    if text.chars().nth(MOST_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// What to do about a path that can't be the control socket's.
fn socket_problem(path: &Path) -> Option<String> {
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Some(format!("Write a path of at most {MAX_SOCKET_PATH_BYTES} bytes."));
    }
    if path.file_name().is_none() {
        return Some("Write the path of a file.".to_owned());
    }
    if path.with_extension("lock") == path {
        return Some("Write a path that does not end in .lock: the lock file is there.".to_owned());
    }
    None
}
