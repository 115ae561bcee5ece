//! What people type. Types only: what they mean is found out by the modules that own the meaning.

use std::{path::PathBuf, sync::LazyLock};

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use guard_common::abi::ABI_VERSION;

/// Where the configuration stands when nothing else is said.
pub const DEFAULT_CONFIG: &str = "/etc/guard/guard.toml";

/// The version of this build and of the layout of its kernel tables, which names the pin directory.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (layout {ABI_VERSION})", env!("CARGO_PKG_VERSION")));

const EXIT_CODES: &str = "\
Exit codes:
  0  done; guard status: fully enforced
  1  failed
  2  the command, or a value in it, is not well formed
  3  guard status: everything is in place, and only observes
  4  guard status: a part is missing; each is named
  5  guard status: nothing is enforced

Examples:
  guard run                                close TCP 11434 to everyone but this machine
  guard allow 192.0.2.7 --for 2h           let one address in for two hours
  guard status || echo \"not fully enforced\"
  guard events --follow --json             attempts as JSON lines";

/// Closes the ports of local AI servers to everyone but this machine.
///
/// The kernel drops what no rule allows, on the interfaces and at the sockets, and goes on doing so when guard's own
/// process has ended. Only `guard down` lifts it.
#[derive(Debug, Parser)]
#[command(
    name = "guard",
    version = VERSION.as_str(),
    after_long_help = EXIT_CODES,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command knows.
#[derive(Debug, Args)]
pub struct Global {
    /// The configuration [default: /etc/guard/guard.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE", env = "GUARD_CONFIG")]
    pub config: Option<PathBuf>,

    /// Answer in JSON; errors are JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,

    /// Log more; twice for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Guard this machine, in the foreground
    ///
    /// No flag is needed. Prints what was closed, on which interfaces and how, which service was exposed until now and who
    /// stays allowed. Stopping it leaves the kernel enforcing.
    #[command(after_long_help = "\
Examples:
  guard run
  guard run --port 11434 --port 8080 --allow 10.20.0.0/16
  guard run --observe                      drop nothing, only report")]
    Run(RunArgs),

    /// Lift everything; the only command that does
    Down,

    /// Tell what is enforced, where, and what is missing
    ///
    /// Ends with 0 when everything is enforced, 3 when guard only observes, 4 when a part is missing, and 5 when nothing is
    /// enforced. Works without a daemon.
    Status,

    /// Allow sources
    ///
    /// A rule holds from the next packet on and is kept across restarts. Allowing never shortens the end of a rule that is
    /// there already.
    #[command(after_long_help = SOURCES)]
    Allow(RuleArgs),

    /// Deny sources, also within what is allowed
    ///
    /// The most specific rule decides; between rules of one prefix, deny wins.
    #[command(after_long_help = SOURCES)]
    Deny(RuleArgs),

    /// Remove rules, by id or by source
    #[command(after_long_help = "\
Examples:
  guard remove 7                           the rule with this id (guard rules)
  guard remove 192.0.2.7                   the one rule with this source")]
    Remove {
        /// Ids or sources, as `guard rules` shows them
        #[arg(required = true, value_name = "SRC|ID")]
        rules: Vec<String>,
    },

    /// List the rules
    Rules,

    /// Stop dropping, and only count and report
    Observe {
        /// Resume dropping by itself after this time, such as 10m
        #[arg(long = "for", value_name = "TIME")]
        span: Option<String>,
    },

    /// Drop again what no rule allows
    Enforce,

    /// Show attempts, one a line
    #[command(after_long_help = "\
Examples:
  guard events --since 1h                  what the daemon still has of the last hour
  guard events --follow                    attempts as they come")]
    Events {
        /// Go on with attempts as they come
        #[arg(long)]
        follow: bool,
        /// Only attempts of the last so much time, such as 1h
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },

    /// Watch live: rates, sources, hooks and rules, on the whole terminal
    ///
    /// Needs a daemon. Keys: `?` lists them; `a` and `d` allow and deny the selected source, after a confirmation; `q` quits.
    #[command(after_long_help = "\
Examples:
  guard top
  NO_COLOR=1 guard top                     without colours")]
    Top,

    /// Tell what would happen to a packet, and which rule says so
    ///
    /// Asks the loaded programs themselves, for each place where such a packet can arrive. Leaves no count or event behind.
    #[command(after_long_help = "\
Examples:
  guard explain 203.0.113.9
  guard explain 2001:db8::9 11434")]
    Explain {
        /// The address the packet comes from
        #[arg(value_name = "SRC")]
        source: String,
        /// The port it is for [default: the first guarded port]
        port: Option<String>,
    },

    /// Validate a configuration without using it
    Check { file: PathBuf },

    /// Read the configuration again; a bad one changes nothing
    #[command(after_long_help = "\
Examples:
  guard reload
  guard reload --confirm 60s               goes back by itself unless guard confirm is run in time")]
    Reload {
        /// Go back by itself after this time (5s to 1h), unless `guard confirm` is run
        #[arg(long, value_name = "TIME")]
        confirm: Option<String>,
    },

    /// Keep the change that is on trial
    #[command(after_long_help = "\
Example:
  guard deny 192.0.2.0/24 --confirm 60s && sleep 10 && guard confirm")]
    Confirm,

    /// Take back the change that is on trial
    Rollback,

    /// Show who changed what, one change a line, newest last
    ///
    /// Command lines are what the asking process claims of itself. Works without a daemon.
    #[command(after_long_help = "\
Examples:
  guard history --since 7d
  guard history --json | tail -n 1")]
    History {
        /// Only changes of the last so much time, such as 1h
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },

    /// Print metrics for Prometheus
    ///
    /// What the daemon serves at /metrics of its socket, in the older text format, which `node_exporter` reads from files.
    /// Works without a daemon, and then says `guard_daemon_up` 0.
    #[command(after_long_help = "\
Example:
  guard metrics --textfile /var/lib/prometheus/node-exporter/guard.prom")]
    Metrics {
        /// Write them to this file, which is replaced whole; also where the daemon does not answer
        #[arg(long, value_name = "FILE")]
        textfile: Option<PathBuf>,
    },

    /// Print completions for a shell
    #[command(after_long_help = "\
Example:
  guard completions bash > /usr/share/bash-completion/completions/guard")]
    Completions { shell: Shell },
}

const SOURCES: &str = "\
SRC is one of:
  192.0.2.7, 2001:db8::7                   an address
  192.0.2.0/24, 2001:db8::/32              a prefix
  host.example.org                         a DNS name, kept resolved by the daemon (allow only)
  @/etc/guard/office.txt                   a file of prefixes, one a line; taken when it changes
  country:FR                               a country's networks, from the MMDB files below [enrich]
  lan                                      the private and link-local networks of this machine
  lan6                                     the same, and its global IPv6 networks
  if:tailscale0                            everyone who comes by this interface (allow only)

Examples:
  guard allow 192.0.2.7 --for 2h --comment \"a visitor\"
  guard allow lan --port 11434
  guard allow 100.64.0.0/10 --via tailscale0
  guard deny 192.0.2.66
  guard deny 10.0.0.0/8 --confirm 60s      goes back by itself unless guard confirm is run in time";

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Guard this port (11434, udp/53, 8000-8002) instead of the configured ones; may be repeated
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<String>,

    /// Allow this source until the next `run` or `down`; may be repeated
    #[arg(long = "allow", value_name = "SRC")]
    pub allow: Vec<String>,

    /// Drop early on this interface (a name or a glob) instead of all outside ones; may be repeated
    ///
    /// The sockets stay guarded whatever the interface.
    #[arg(long = "interface", value_name = "IF")]
    pub interfaces: Vec<String>,

    /// How to attach
    ///
    /// auto takes the earliest hook that costs other traffic nothing; native and generic are XDP; tcx needs kernel 6.6, clsact
    /// is its older form; socket is the backstop at the sockets alone.
    #[arg(long, value_name = "MODE", value_parser = ["auto", "native", "generic", "tcx", "clsact", "socket"])]
    pub attach: Option<String>,

    /// Drop nothing; count and report what would be dropped
    #[arg(long)]
    pub observe: bool,

    /// Answer dropped TCP packets with a reset instead of silence
    #[arg(long)]
    pub reject: bool,

    /// Confirm what would otherwise be refused, such as cutting the session this is typed over
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct RuleArgs {
    /// Sources, see below
    #[arg(required = true, value_name = "SRC")]
    pub sources: Vec<String>,

    /// Only for this guarded port; may be repeated
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<String>,

    /// Only for what comes by this interface
    ///
    /// The interface's own hook decides, so it must have one (guard status). A bridge or bond stands for its outside ports.
    #[arg(long, value_name = "IF")]
    pub via: Option<String>,

    /// End after this time, such as 2h, 10m or 7d
    #[arg(long = "for", value_name = "TIME")]
    pub span: Option<String>,

    /// Go back by itself after this time (5s to 1h), unless `guard confirm` is run
    #[arg(long, value_name = "TIME")]
    pub confirm: Option<String>,

    /// A note that is shown with the rule
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,

    /// Confirm what would otherwise be refused, such as a very wide prefix
    #[arg(long)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_are_these() {
        let names: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert_eq!(
            names,
            [
                "run",
                "down",
                "status",
                "allow",
                "deny",
                "remove",
                "rules",
                "observe",
                "enforce",
                "events",
                "top",
                "explain",
                "check",
                "reload",
                "confirm",
                "rollback",
                "history",
                "metrics",
                "completions",
            ]
        );
    }

    #[test]
    fn a_full_line_of_each_kind_is_understood() {
        for line in [
            "guard run",
            "guard run --port 11434 --port udp/53 --allow lan --interface eth* --attach tcx --observe --reject --yes",
            "guard allow 192.0.2.7 2001:db8::/32 --port 11434 --via eth1 --for 2h --comment office --yes",
            "guard allow if:tailscale0",
            "guard deny 192.0.2.7",
            "guard remove 7 192.0.2.7",
            "guard observe",
            "guard observe --for 10m",
            "guard events --follow --since 1h",
            "guard top",
            "guard deny 192.0.2.7 --confirm 60s",
            "guard reload --confirm 60s",
            "guard confirm",
            "guard rollback",
            "guard history --since 7d --json",
            "guard metrics",
            "guard metrics --textfile /tmp/guard.prom",
            "guard explain 203.0.113.9 11434",
            "guard check /tmp/guard.toml",
            "guard completions bash",
            "guard --config x --json -vv status",
            "guard status --json --config x",
        ] {
            let result = parse(line);
            assert!(result.is_ok(), "{line}: {}", result.unwrap_err());
        }
    }

    #[test]
    fn what_is_not_well_formed_is_a_usage_error() {
        for line in [
            "guard frobnicate",
            "guard allow",
            "guard remove",
            "guard explain",
            "guard check",
            "guard run --attach sideways",
            "guard run now",
            "guard status --port 1",
            "guard completions tcsh",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(
            parse("guard").unwrap_err().kind(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
    }

    #[test]
    fn the_version_names_the_layout() {
        let error = parse("guard --version").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("guard {} (layout {ABI_VERSION})\n", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(error.exit_code(), 0);
    }

    #[test]
    fn the_long_help_documents_exit_codes_and_the_short_one_is_short() {
        let long = Cli::command().render_long_help().to_string();
        let short = Cli::command().render_help().to_string();
        assert!(long.contains("5  guard status: nothing is enforced"), "{long}");
        assert!(long.contains("guard allow 192.0.2.7 --for 2h"), "{long}");
        assert!(!short.contains("Exit codes"), "{short}");
        assert!(long.contains(DEFAULT_CONFIG), "{long}");
    }
}
