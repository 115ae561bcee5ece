//! What guard's kernel programs and its control plane share: the records that cross the boundary
//! between them, the packet parser, and the verdict.
//!
//! Everything here is pure, `no_std` and free of allocation, so that the same code runs in the
//! kernel and in an ordinary unit test. A packet's path through this crate is one line:
//! a [`reader::Reader`] over the hook's packet → [`parse`] → [`packet::Packet`] →
//! [`verdict`] (asking [`rules::Rules`]) → a [`verdict::Decision`].

#![no_std]
#![deny(unsafe_code)]

pub mod abi;
pub mod model;
pub mod packet;
pub mod parse;
pub mod reader;
pub mod rules;
pub mod verdict;
