//! `guard run`, until the policy is in force.

use std::{env, net::IpAddr};

use guard_common::packet::Protocol;

use super::{
    core::{Core, Prepared},
    coverage, cutting,
    facts::Facts,
    settings::{self, Loaded, Settings},
};
use crate::{
    compile::Tables,
    config::LocalSources,
    control::Failure,
    history::{Asked, Kind, Requester, Standing},
    host::{
        reserved_ports,
        sockets::{
            self, Peer,
            open::{self, Elsewhere, Search},
        },
    },
    kernel::{attach::Attacher, load, probe, tables::PolicyMaps},
    output::text::{count_of, escaped},
    policy,
    rule::GuardedPort,
    startup::Startup,
    state::{RunFlags, State},
    trial::{self, Trial},
};

/// Ollama's, the port of the service that guard knows.
const KNOWN_SERVICE: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 11434 };

impl Core {
    /// See [`super::Engine::start`]. Also returns what did not work.
    pub fn start(
        &mut self,
        flags: RunFlags,
        yes: bool,
        asked: &Asked,
    ) -> Result<(Startup, Vec<String>), Failure> {
        probe::check()?;
        let mut before = self.standing()?;
        if before.generation.is_none() {
            before = Standing { rules: Vec::new(), ports: Vec::new(), ..before };
        }
        // All that can be refused comes before anything is touched.
        let mut state = State { run: flags, ..self.state.clone() };
        self.refuse_what_is_lost()?;
        // From here on it is as if there had been none.
        self.lost = None;
        let rolled_back = self.trial_to_roll_back(&mut state);
        let settings = Settings::new(self.configuration(&mut state)?, &state.run)?;
        self.is_daemon = true;
        let facts = Facts::gather(&settings.config)?;
        for rule in &settings.flag_rules {
            policy::check_wide(rule.action, &rule.source, yes)?;
        }
        let is_fresh = self.maps.is_none() && self.pins.older()?.is_none();
        let basis = self.anew();
        let basis = if is_fresh { basis.whatever_can_be_read() } else { basis };
        let policy = self.prepare(&settings, &state, &facts, basis)?;
        let tables = policy.ready.tables();
        // What is rolled back to held before: nobody is asked about it anew.
        let yes = yes || rolled_back.is_some();
        check_sessions(&self.newly_guarded(&settings)?, tables, &settings, yes)?;
        let peers = peers_cut(tables, &settings);
        let exposed = sockets::listeners(&policy.input.every_port());

        let loaded = load::load(&self.pins)?;
        if let Err(failure) = self.put_first(policy, &settings, &state) {
            // Nothing of it is in force, and an older guard is to be able to go on.
            if loaded.is_new_layout {
                self.maps = None;
                self.pins.remove()?;
            }
            return Err(failure);
        }
        let adopted = loaded.adopted;
        let mut problems: Vec<String> =
            facts.published.as_ref().err().cloned().into_iter().collect();
        problems.extend(
            loaded.no_xdp.map(|why| format!("this kernel did not take the XDP program: {why}")),
        );
        // The policy is in force from here on, and is told of whatever fails now.
        let armed = self.arm(settings, state, &facts, &mut problems);
        if let Some(what) = rolled_back {
            let what = format!("not confirmed: {what}");
            let itself = Asked::new(Kind::Rollback, &what, &Requester::itself());
            self.record(&itself, &before, self.standing());
            log::warn!("rolled back, {}", escaped(&what));
            before = self.standing().unwrap_or(before);
        }
        self.record(asked, &before, self.standing());
        armed?;
        if self.state.rolled_back {
            log::warn!(
                "the configuration in force is not that of {}, which was tried and not confirmed: `guard reload` takes it",
                self.place.config.display()
            );
        } else if self.state.trial.is_none() {
            trial::forget(&self.settings.config.paths.state);
        }
        let cut = self.cut();
        problems.extend(cut.problems.iter().cloned());

        for problem in &problems {
            log::warn!("{problem}");
        }
        let startup = Startup {
            status: self.status()?,
            exposed,
            peers,
            cut: cut.peers,
            rules: self.rules()?,
            containers: self.settings.config.local == LocalSources::HostAndContainers,
            adopted,
        };
        Ok((startup, problems))
    }

    /// Covers sockets and interfaces. Adds what did not work.
    fn arm(
        &mut self,
        settings: Settings,
        mut state: State,
        facts: &Facts,
        problems: &mut Vec<String>,
    ) -> Result<(), Failure> {
        if let Err(failure) = self.cover_sockets(&settings) {
            problems.push(format!("the backstop is missing: {failure}"));
        }
        problems.extend(coverage::cover(&self.pins, &settings.config, facts)?);
        problems.extend(reserve_ports(&settings, &mut state));
        problems.extend(load::forget_older(&self.pins)?);
        // Again, now that it is known whether there is a backstop to leave the undecidable to.
        problems.extend(self.put_at_start(self.plan(settings, state, self.basis()?)?)?);
        Ok(())
    }

    /// Takes a trial that a daemon's end has left open out of the state: one of a configuration at once, since nobody has kept
    /// its time, and one of rules when it is over. Returns what it was.
    fn trial_to_roll_back(&self, state: &mut State) -> Option<String> {
        let is_over = self.trial_left_ns() == Some(0);
        let is_to_go = |trial: &Trial| is_over || trial.is_of_configuration();
        if state.trial.as_ref().is_some_and(is_to_go) {
            trial::undo(state).map(|trial| trial.what)
        } else {
            None
        }
    }

    /// The configuration to start with: the file's, unless that is the very one that was rolled back.
    fn configuration(&self, state: &mut State) -> Result<Loaded, Failure> {
        let file = settings::load(&self.place)?;
        let was_on_trial = self.state.trial.as_ref().is_some_and(Trial::is_of_configuration);
        if was_on_trial {
            return settings::before_trial(&self.place, &file.config.paths.state);
        }
        settings::in_force(&self.place, file, state)
    }

    /// Puts a policy in force in tables that have just been made or adopted.
    fn put_first(
        &mut self,
        mut policy: Prepared,
        settings: &Settings,
        state: &State,
    ) -> Result<(), Failure> {
        self.maps = Some(PolicyMaps::open(&self.pins)?);
        // Only now can it be asked what is attached.
        policy.terms = self.terms(&policy.input, settings, state)?;
        self.put(policy).map(drop)
    }

    fn cover_sockets(&mut self, settings: &Settings) -> Result<(), Failure> {
        let root = settings.cgroup()?;
        Ok(Attacher::new(&self.pins)?.cover_sockets(&root.path)?)
    }
}

/// Adds the guarded TCP ports to those that the kernel does not choose by itself for outgoing connections, and takes
/// out those no longer guarded. Returns what did not work: it costs no protection.
pub fn reserve_ports(settings: &Settings, state: &mut State) -> Option<String> {
    let guarded: Vec<u16> = settings
        .config
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
        .map(|port| port.number)
        .collect();
    let (stay, go): (Vec<u16>, Vec<u16>) =
        state.reserved_ports.iter().partition(|port| guarded.contains(port));
    let changed = reserved_ports::release(&go).and_then(|()| reserved_ports::reserve(&guarded));
    match changed {
        Ok(added) => {
            state.reserved_ports = stay;
            state.reserved_ports.extend(added);
            None
        }
        Err(error) => Some(format!(
            "the guarded ports could not be reserved ({error}): an outgoing connection that starts from one gets no answer"
        )),
    }
}

/// The connections of outsiders that the policy will stop.
fn peers_cut(tables: &Tables, settings: &Settings) -> Vec<Peer> {
    let ports: Vec<GuardedPort> = tables.every_port();
    let now_ns = probe::boot_ns();
    let is_stopped = |source, port| tables.stops(source, port, now_ns);
    let elsewhere = cutting::planned(settings).unwrap_or_else(|failure| {
        log::info!("open connections are looked for in this namespace only: {failure}");
        Elsewhere::Nothing
    });
    open::outsiders(&Search { ports: &ports, elsewhere: &elsewhere, is_stopped: &is_stopped })
}

/// Refuses to guard, without confirmation, the port of the session that asks for it, or one that outsiders are using and
/// that is no known service's. Those whom the policy allows lose nothing and do not count.
///
/// # Errors
/// `NeedsConfirmation` for the first such port.
pub fn check_sessions(
    ports: &[GuardedPort],
    tables: &Tables,
    settings: &Settings,
    yes: bool,
) -> Result<(), Failure> {
    // The kernel takes long to list open connections.
    if yes || ports.is_empty() {
        return Ok(());
    }
    let own = env::var("SSH_CONNECTION").ok().and_then(|text| own_session(&text));
    let own = own.filter(|session| {
        tables.may_stop(session.client.to_canonical(), session.port, probe::boot_ns())
    });
    refuse_to_cut(ports, own, &peers_cut(tables, settings))
}

/// A session that the command is typed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    client: IpAddr,
    port: GuardedPort,
}

/// `own` and `cut` are what the policy will stop.
fn refuse_to_cut(ports: &[GuardedPort], own: Option<Session>, cut: &[Peer]) -> Result<(), Failure> {
    for port in ports {
        if let Some(Session { client, .. }) = own.filter(|session| session.port == *port) {
            return Err(Failure::needs_confirmation(
                format!("{port} carries the session you are typing in, from {client}"),
                format!("Run `guard allow {client}` first; `guard run --yes` cuts it off."),
            ));
        }
        let users: Vec<&Peer> = cut.iter().filter(|peer| peer.port == *port).collect();
        if let Some(user) = users.first().filter(|_| *port != KNOWN_SERVICE) {
            let remote = user.remote.ip().to_canonical();
            return Err(Failure::needs_confirmation(
                format!(
                    "{} to {port} would be cut, the first from {remote}",
                    count_of(&users, "open connection")
                ),
                format!(
                    "Run `guard allow {remote}` for those that should stay; `guard run --yes` cuts them off."
                ),
            ));
        }
    }
    Ok(())
}

/// From `SSH_CONNECTION` (sshd(8)): client address, client port, server address, server port.
fn own_session(text: &str) -> Option<Session> {
    let mut words = text.split_whitespace();
    let client = words.next()?.parse().ok()?;
    let number = words.nth(2)?.parse().ok()?;
    Some(Session { client, port: GuardedPort { protocol: Protocol::Tcp, number } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSH: GuardedPort = GuardedPort { protocol: Protocol::Tcp, number: 22 };
    const SSH_OVER_UDP: GuardedPort = GuardedPort { protocol: Protocol::Udp, number: 22 };

    fn peer(local: &str, remote: &str) -> Peer {
        let local: std::net::SocketAddr = local.parse().unwrap();
        Peer {
            port: GuardedPort { protocol: Protocol::Tcp, number: local.port() },
            local,
            remote: remote.parse().unwrap(),
            process: None,
        }
    }

    fn refusal(
        ports: &[GuardedPort],
        own: Option<Session>,
        cut: &[Peer],
    ) -> Option<(String, String)> {
        refuse_to_cut(ports, own, cut)
            .err()
            .map(|failure| (failure.what, failure.fix.unwrap_or_default()))
    }

    #[test]
    fn the_session_of_the_command_is_known_on_both_families() {
        for (text, client) in [
            ("192.0.2.7 50000 198.51.100.4 22", "192.0.2.7"),
            ("2001:db8::7 50000 2001:db8::4 22", "2001:db8::7"),
        ] {
            let session = Session { client: client.parse().unwrap(), port: SSH };
            assert_eq!(own_session(text), Some(session), "{text}");
        }
        for text in ["", "192.0.2.7 50000", "192.0.2.7 50000 198.51.100.4 ssh", "me 1 you 22"] {
            assert_eq!(own_session(text), None, "{text}");
        }
    }

    #[test]
    fn nobody_cuts_off_the_own_session_unasked() {
        let own = own_session("2001:db8::7 50000 2001:db8::4 22");
        let (what, fix) = refusal(&[KNOWN_SERVICE, SSH], own, &[]).unwrap();
        assert!(what.starts_with("22 carries") && what.ends_with("2001:db8::7"), "{what}");
        assert!(fix.contains("guard allow 2001:db8::7") && fix.contains("--yes"), "{fix}");
        assert_eq!(refusal(&[KNOWN_SERVICE], own, &[]), None);
        // The session is TCP's, whatever the number.
        assert_eq!(refusal(&[SSH_OVER_UDP], own, &[]), None);
    }

    #[test]
    fn others_sessions_are_cut_unasked_at_a_known_service_only() {
        let cut = [
            peer("[::ffff:198.51.100.4]:22", "[::ffff:192.0.2.7]:50000"),
            peer("[2001:db8::4]:22", "[2001:db8::7]:50000"),
            peer("198.51.100.4:11434", "192.0.2.8:50000"),
        ];
        let (what, fix) = refusal(&[KNOWN_SERVICE, SSH], None, &cut).unwrap();
        assert!(what.starts_with("2 open connections to 22 "), "{what}");
        assert!(what.ends_with("the first from 192.0.2.7"), "{what}");
        assert!(fix.contains("guard allow 192.0.2.7"), "{fix}");
        let (what, _) = refusal(&[SSH], None, &cut[1..2]).unwrap();
        assert!(
            what.starts_with("1 open connection to 22 ") && what.ends_with("2001:db8::7"),
            "{what}"
        );
        assert_eq!(refusal(&[KNOWN_SERVICE, SSH_OVER_UDP], None, &cut), None);
    }
}
