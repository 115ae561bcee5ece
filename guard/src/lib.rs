//! guard's control plane: everything but the kernel programs.
//!
//! A rule's path is one line: command line or file → [`rule`] → [`policy`] → [`compile`] → [`kernel`] →
//! the tables that the programs ask. [`engine`] walks it; [`control`] is what people and programs may ask of it, over
//! the socket ([`api`]) or, without a daemon, directly.
//!
//! An attempt's path is another: the kernel's ring ([`kernel`]) → [`events`], which hands it to whoever follows: clients of the
//! [`api`], and the `sinks` that the daemon writes to by itself. One of these is the [`store`], which is asked for what was.

pub mod api;
mod bounded_file;
pub mod cli;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod duration;
pub mod engine;
pub mod enrich;
pub mod events;
pub mod exit;
mod follow;
pub mod history;
pub mod host;
mod kept_names;
pub mod kernel;
pub mod metrics;
#[cfg(test)]
#[path = "../../tests/src/mmdb.rs"]
mod mmdb;
pub mod output;
pub mod policy;
pub mod privileges;
pub mod progress;
pub mod rule;
mod sinks;
pub mod startup;
pub mod state;
pub mod store;
mod systemd;
pub mod trial;
