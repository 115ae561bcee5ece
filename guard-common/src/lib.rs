//! What guard's kernel programs and its control plane share: the records that cross the boundary
//! between them, the packet parser, and the verdict.
//!
//! Everything here is pure and, but for what builds the source table (feature `user`), `no_std` and free of allocation, so
//! that the same code runs in the kernel and in an ordinary unit test. A packet's path through this crate is one line:
//! a [`reader::Reader`] over the hook's packet → [`parse`] → [`packet::Packet`] →
//! [`verdict`] (asking [`rules::Rules`]) → a [`verdict::Decision`].
//!
//! [`sources`] is the table that says what a policy holds for an address. [`reset`] turns a packet that is rejected into its
//! answer.
//!
//! Who may import whom, an arrow for "imports": `verdict` → `rules` → `abi` → `packet`; `sources` → `abi`, `packet`; `parse` → `reader`,
//! `packet`; `reset` → `parse`, `reader`. Of `verdict`, `abi` knows only the numbers that packets are counted by.
//!
//! # The verifier
//!
//! The kernel's verifier must follow every path of what it loads. So code on a packet's path has loops with
//! constant bounds, no recursion, nothing that can panic once it is compiled, and reads a packet
//! only through its reader, never through a slice.
//!
//! # Features
//!
//! - `user`: what builds the source table, and aya's `Pod` for the records: for the crate that writes and reads the maps.
//! - `model`: `model`, the rules answered by a plain scan over lists, for tests of what compiles them.
//! - `against-etherparse`: `parse::against_etherparse`, the parser compared with another, for tests and fuzzing.

#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "user", feature = "against-etherparse"))]
extern crate std;

pub mod abi;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod packet;
pub mod parse;
pub mod reader;
pub mod reset;
pub mod rules;
pub mod sources;
pub mod verdict;
