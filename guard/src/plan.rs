
//! tmp
use crate::{compile::{Prefix, Tables}, rule::GuardedPort};
use guard_common::abi::{Ladder, PortIndex, SourceValue};
pub struct Plan { pub remove_sources: Vec<Prefix>, pub put_sources: Vec<(Prefix, SourceValue)>, pub remove_ports: Vec<GuardedPort>, pub put_ports: Vec<(GuardedPort, PortIndex)>, pub put_ladders: Vec<(u32, Ladder)> }
pub fn plan(_current:&Tables, _wanted:&Tables)->Plan { unimplemented!() }
