
//! tmp
use crate::{compile::{Prefix, Tables}, rule::GuardedPort};
use guard_common::abi::{Ladder, PortIndex, SourceValue};
pub struct Plan { pub remove_sources: Vec<Prefix>, pub put_sources: Vec<(Prefix, SourceValue)>, pub remove_ports: Vec<GuardedPort>, pub put_ports: Vec<(GuardedPort, PortIndex)>, pub put_ladders: Vec<(u32, Ladder)> }
pub fn plan(c:&Tables, w:&Tables)->Plan { Plan{ remove_sources: c.sources.keys().filter(|k|!w.sources.contains_key(k)).copied().collect(), put_sources: w.sources.iter().map(|(a,b)|(*a,*b)).collect(), remove_ports: c.ports.keys().filter(|k|!w.ports.contains_key(k)).copied().collect(), put_ports: w.ports.iter().map(|(a,b)|(*a,*b)).collect(), put_ladders: w.ladders.iter().enumerate().map(|(i,l)|(i as u32,*l)).collect() } }
